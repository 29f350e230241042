"""Released codec files, written in each of their nestings, become the codec they came from."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from torch import Tensor

from speech2image.codecs.code_map import CodeMap
from speech2image.codecs.codec import Codec
from speech2image.codecs.discriminator import PatchDiscriminator
from speech2image.codecs.vqgan import VqGan
from speech2image.errors import CheckpointError
from speech2image.hub.convert import vqgan
from speech2image.hub.released import build_converted
from speech2image.losses.perceptual import Lpips

SIZES: dict[str, Any] = {"image_px": 32, "channels": 32, "channel_mult": (1, 2), "num_res_blocks": 1}
FORMS = ("vector", "gumbel", "ema")


def network(quantizer: str = "vector") -> VqGan:
    torch.manual_seed(3)
    return VqGan(**SIZES, attn_px=(16,), latent_dim=12, code_dim=8, num_codes=20, quantizer=quantizer).eval()  # type: ignore[arg-type]


def prefixed(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {prefix + name: value for name, value in state.items()}


def trainer_file(path: Path, state: dict[str, Tensor]) -> Path:
    """Write what Lightning 1.0 wrote: a callback class as a key, optimizers and counters around it."""
    callbacks = {ModelCheckpoint: {"best_model_score": torch.tensor(0.4), "best_model_path": "last.ckpt"}}
    around = {"epoch": 3, "global_step": 9, "callbacks": callbacks, "optimizer_states": [{"state": {}}]}
    torch.save({**around, "pytorch-lightning_version": "1.0.8", "state_dict": state}, path)
    return path


def assert_same(path: Path, original: VqGan) -> vqgan.Converted:
    converted = vqgan.convert(path, image_px=32)
    found = build_converted(converted, path)
    assert isinstance(found, VqGan)
    assert Codec(found).fingerprint() == Codec(copy.deepcopy(original)).fingerprint()
    images = torch.rand(2, 3, 32, 32) * 2 - 1
    assert torch.equal(Codec(found).encode(images), original.tokens(images))
    return converted


@pytest.mark.parametrize("form", FORMS)
def test_trainer_checkpoint_becomes_the_codec_and_lists_what_it_drops(tmp_path: Path, form: str) -> None:
    original = network(form)
    loss = prefixed(PatchDiscriminator(2, 4).state_dict(), "loss.discriminator.")
    path = trainer_file(tmp_path / "last.ckpt", {**original.state_dict(), **loss})
    converted = assert_same(path, original)
    assert converted.arguments["quantizer"] == form and converted.arguments.get("legacy", True)
    assert set(converted.dropped) == set(loss)


def test_transformer_file_gives_its_first_stage(tmp_path: Path) -> None:
    original = network()
    rest = {"transformer.tok_emb.weight": torch.zeros(4, 4)}
    path = trainer_file(
        tmp_path / "ffhq.ckpt", {**prefixed(original.state_dict(), "first_stage_model."), **rest}
    )
    assert assert_same(path, original).dropped == tuple(rest)


def diffusion_state(original: VqGan) -> dict[str, Tensor]:
    enc, dec = ("encoder", "quant_conv", "quantize"), ("decoder", "post_quant_conv", "quantize")
    parts = {"content_codec.enc.": enc, "content_codec.dec.": dec}
    return {
        prefix + name: value.clone()
        for prefix, chosen in parts.items()
        for name, value in original.state_dict().items()
        if name.split(".")[0] in chosen
    }


@pytest.mark.parametrize("form", FORMS)
def test_codec_inside_a_diffusion_checkpoint_is_found(tmp_path: Path, form: str) -> None:
    original, path = network(form), tmp_path / "cub.pth"
    rest = {"transformer.log_at": torch.zeros(3)}
    torch.save({"last_epoch": 1, "ema": rest, "model": {**diffusion_state(original), **rest}}, path)
    assert assert_same(path, original).dropped == tuple(rest)


def test_two_code_books_that_differ_are_refused(tmp_path: Path) -> None:
    state, path = diffusion_state(network()), tmp_path / "edited.pth"
    state["content_codec.dec.quantize.embedding.weight"][0, 0] += 1.0
    torch.save({"model": state}, path)
    with pytest.raises(CheckpointError, match=r"two different copies of quantize\.embedding\.weight"):
        vqgan.convert(path)


def test_another_system_missing_tensors_and_wrong_shapes_are_named(tmp_path: Path) -> None:
    path = tmp_path / "file.pth"
    torch.save({"Conv.0.weight": torch.zeros(1), "RNN.weight_ih_l0": torch.zeros(4, 1)}, path)
    with pytest.raises(CheckpointError, match="it looks like the speech encoder of Li et al"):
        vqgan.convert(path)
    state = network().state_dict()
    del state["decoder.up.0.block.1.norm1.weight"]
    torch.save(state, path)
    with pytest.raises(CheckpointError, match=r"1 missing: decoder\.up\.0\.block\.1\.norm1\.weight"):
        build_converted(vqgan.convert(path, 32), path)
    state = {**network().state_dict(), "quant_conv.weight": torch.zeros(8, 7, 1, 1)}
    torch.save(state, path)
    with pytest.raises(
        CheckpointError, match=r"quant_conv\.weight is \(8, 7, 1, 1\), expected \(8, 12, 1, 1\)"
    ):
        vqgan.convert(path, 32)
    state = {name: value for name, value in network().state_dict().items() if "quantize" not in name}
    torch.save(state, path)
    with pytest.raises(CheckpointError, match=r"none of quantize\.embedding\.weight"):
        vqgan.convert(path, 32)


def test_perceptual_network_of_a_codec_file_is_read(tmp_path: Path) -> None:
    lpips = Lpips()
    state = {**prefixed(lpips.state_dict(), "loss.perceptual_loss."), **network().state_dict()}
    path = trainer_file(tmp_path / "last.ckpt", state)
    found = build_converted(vqgan.convert_perceptual(path), path)
    pair = torch.rand(2, 1, 3, 32, 32)
    assert isinstance(found, Lpips) and torch.equal(found(*pair), lpips(*pair))
    torch.save(network().state_dict(), path)
    with pytest.raises(CheckpointError, match="not a file with a perceptual network"):
        vqgan.convert_perceptual(path)


def test_code_map_is_read_and_damage_is_named(tmp_path: Path) -> None:
    path = tmp_path / "map.pt"
    torch.save(torch.tensor([0, 1, 0, 2, 0]), path)
    found = build_converted(vqgan.convert_code_map(path), path)
    assert isinstance(found, CodeMap) and found.reduced_to_full.tolist() == [0, 1, 3]
    torch.save([0, 1], path)
    with pytest.raises(CheckpointError, match="holds a list, not a table"):
        vqgan.convert_code_map(path)
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(CheckpointError, match="damaged"):
        vqgan.convert_code_map(path)
    with pytest.raises(CheckpointError, match="no code map at"):
        vqgan.convert_code_map(tmp_path / "absent.pt")
