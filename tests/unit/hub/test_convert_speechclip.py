"""Released SpeechCLIP files: nesting, names, what is dropped, what is refused.

The files are written at toy size in the released layout: a trainer's checkpoint whose hyperparameters
hold an object of the project's own class, fairseq's names for the tower, CLIP stored twice.
"""

from __future__ import annotations

import re
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from speech2image.config.schema_encoder import SpeechClipConfig
from speech2image.data.embeddings import read_embeddings
from speech2image.errors import CheckpointError
from speech2image.hub.convert import speechclip
from speech2image.hub.released import build_converted
from speech2image.losses.contrastive import MaskedContrastiveLoss
from speech2image.speech import towers
from speech2image.speech.cascaded import CascadedSpeechClip
from speech2image.speech.speechclip import SpeechClip
from speech2image.speech.towers import TowerSpec
from speech2image.types import SpeechBatch

TINY: dict[str, Any] = {"dim": 64, "num_layers": 2, "heads": 4, "ff_dim": 48, "conv_dim": 16}
FORMS = {
    "hubert_tiny": TowerSpec("none", **TINY),
    "hubert_tiny_large": TowerSpec("none", **TINY, layer_norm=True, normalise_wave=True),
}
FAIRSEQ = (
    ("encoder.feature_projection.layer_norm.", "layer_norm."),
    ("encoder.feature_projection.projection.", "post_extract_proj."),
    (
        "encoder.transformer.pos_conv_embed.conv.parametrizations.weight.original0",
        "encoder.pos_conv.0.weight_g",
    ),
    (
        "encoder.transformer.pos_conv_embed.conv.parametrizations.weight.original1",
        "encoder.pos_conv.0.weight_v",
    ),
    ("encoder.transformer.pos_conv_embed.conv.", "encoder.pos_conv.0."),
    ("encoder.transformer.layers.", "encoder.layers."),
    ("encoder.transformer.layer_norm.", "encoder.layer_norm."),
    (".attention.", ".self_attn."),
    (".feed_forward.intermediate_dense.", ".fc1."),
    (".feed_forward.output_dense.", ".fc2."),
)


@pytest.fixture(autouse=True)
def _tiny_towers(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, spec in FORMS.items():
        monkeypatch.setitem(towers.TOWERS, name, spec)
    torch.manual_seed(0)


def fairseq_name(name: str, large: bool) -> str:
    convolution = re.match(r"feature_extractor\.conv_layers\.(\d+)\.(conv|layer_norm)\.(\w+)", name)
    if convolution:
        place, kind, last = convolution.groups()
        inside = "0" if kind == "conv" else "2.1" if large else "2"
        return f"feature_extractor.conv_layers.{place}.{inside}.{last}"
    layer = re.match(r"encoder\.transformer\.layers\.(\d+)\.layer_norm\.(\w+)", name)
    if layer:
        return f"encoder.layers.{layer[1]}.self_attn_layer_norm.{layer[2]}"
    for ours, theirs in FAIRSEQ:
        name = name.replace(ours, theirs)
    return name


def released_state(model: nn.Module, large: bool) -> dict[str, Tensor]:
    """Return the state of an encoder as the project's checkpoints hold it, with all they add."""
    inner, state = "audio_encoder.encoder.network.", {}
    for name, value in model.state_dict().items():
        if name.startswith(inner):
            name = f"audio_encoder.encoder.{fairseq_name(name.removeprefix(inner), large)}"
        state[name] = value.clone()
    state |= {
        "audio_encoder.encoder.mask_emb": torch.zeros(64),
        "audio_encoder.encoder.final_proj.weight": torch.zeros(8, 64),
        "audio_encoder.encoder.final_proj.bias": torch.zeros(8),
        "audio_encoder.encoder.label_embs_concat": torch.zeros(504, 8),
        "clip.model.visual.proj": torch.zeros(4, 4),
        "clip.model.logit_scale": torch.tensor(4.6),
        "clip.original_text_emb_weight": torch.zeros(50, 4),
        "criterion.eye_mat": torch.eye(256).bool(),
        "criterion.neg_eye_mat": ~torch.eye(256).bool(),
        "criterion.eye_mat_fl": torch.eye(256),
    }
    if isinstance(model, CascadedSpeechClip):
        state |= {f"cascaded_branch.clip.{k}": v.clone() for k, v in model.clip.state_dict().items()}
    else:
        state["clip.model.token_embedding.weight"] = torch.zeros(30, 4)
    return state


def write_checkpoint(path: Path, state: dict[str, Tensor]) -> Path:
    """Write a trainer's checkpoint whose settings are an object of `avssl`, as released."""
    place = "avssl.base.ordered_namespace"
    module = types.ModuleType(place)
    settings_class = type("OrderedNamespace", (), {"__module__": place})
    module.OrderedNamespace = settings_class  # type: ignore[attr-defined]
    settings: Any = settings_class()
    settings.model_settings = {"parallel_objective_weight": 1.0}
    names = ("avssl", "avssl.base", place)
    sys.modules.update({name: types.ModuleType(name) for name in names[:2]} | {place: module})
    try:
        content = {
            "state_dict": state,
            "hyper_parameters": {"config": settings},
            "epoch": 131,
            "global_step": 15443,
            "optimizer_states": [{"state": {}, "param_groups": [{"lr": 1e-4, "betas": (0.9, 0.999)}]}],
            "pytorch-lightning_version": "1.5.10",
        }
        torch.save(content, path)
    finally:
        for name in names:
            del sys.modules[name]
    return path


def shaken(model: nn.Module) -> nn.Module:
    for parameter in model.parameters():
        parameter.data.add_(0.05 * torch.randn_like(parameter))
    return model.eval()


def waves() -> SpeechBatch:
    return SpeechBatch(torch.randn(2, 3000, 1), torch.tensor([3000, 1500]))


@pytest.mark.parametrize("tower", FORMS)
def test_parallel_checkpoint_gives_the_same_encoder(tower: str, tmp_path: Path) -> None:
    source = shaken(SpeechClip(tower, embed_dim=24, ff_dim=96, legacy_len=True))
    path = write_checkpoint(tmp_path / "a.ckpt", released_state(source, "large" in tower))
    converted = speechclip.convert(path)
    assert converted.target.endswith(".SpeechClip")
    assert converted.arguments == {
        "tower": tower, "embed_dim": 24, "ff_dim": 96, "num_layers": 1, "legacy_len": True
    }  # fmt: skip
    encoder, batch = build_converted(converted, path), waves()
    assert torch.equal(encoder(batch).sentence, source(batch).sentence)
    expected = {
        "audio_encoder.encoder.mask_emb", "audio_encoder.encoder.final_proj.weight",
        "audio_encoder.encoder.final_proj.bias", "audio_encoder.encoder.label_embs_concat",
        "clip.model.visual.proj", "clip.model.logit_scale", "clip.original_text_emb_weight",
        "clip.model.token_embedding.weight", "criterion.eye_mat", "criterion.neg_eye_mat",
        "criterion.eye_mat_fl",
    }  # fmt: skip
    assert set(converted.dropped) == expected


def test_cascaded_checkpoint_gives_the_same_encoder(tmp_path: Path) -> None:
    source = shaken(
        CascadedSpeechClip(
            "hubert_tiny", num_keywords=3, vocab_size=30, text_dim=64, text_layers=2, embed_dim=40
        )
    )
    state = released_state(source, large=False)
    path = write_checkpoint(tmp_path / "c.ckpt", state)
    converted = speechclip.convert(path)
    assert converted.target.endswith(".CascadedSpeechClip")
    encoder, batch = build_converted(converted, path), waves()
    assert isinstance(encoder, CascadedSpeechClip) and isinstance(source, CascadedSpeechClip)
    source.audio_encoder.encoder.legacy_len = True
    assert torch.equal(encoder.keywords(batch), source.keywords(batch))
    assert torch.equal(encoder(batch).sentence, source(batch).sentence)
    copies = [name for name in state if name.startswith("cascaded_branch.clip.")]
    assert copies and set(copies) <= set(converted.dropped)


def test_learned_temperature_is_read(tmp_path: Path) -> None:
    state = released_state(SpeechClip("hubert_tiny", embed_dim=24), large=False)
    plain = write_checkpoint(tmp_path / "base.ckpt", state)
    with pytest.raises(CheckpointError, match="learned temperature"):
        speechclip.convert_loss(plain)
    path = write_checkpoint(tmp_path / "large.ckpt", {**state, "criterion.temperature": torch.tensor(4.8)})
    loss = build_converted(speechclip.convert_loss(path), path)
    assert isinstance(loss, MaskedContrastiveLoss)
    assert torch.as_tensor(loss.scale).item() == pytest.approx(121.51, abs=0.01)  # above CLIP's limit


def test_files_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    state = released_state(SpeechClip("hubert_tiny", embed_dim=24), large=False)
    missing = dict(state)
    del missing["audio_encoder.encoder.encoder.layers.1.fc2.bias"]
    path = write_checkpoint(tmp_path / "missing.ckpt", missing)
    with pytest.raises(CheckpointError, match=r"1 missing: .*layers\.1\.feed_forward\.output_dense\.bias"):
        build_converted(speechclip.convert(path), path)
    short = {name: value for name, value in state.items() if "encoder.layers.1." not in name}
    with pytest.raises(CheckpointError, match="tower of 1 layers, width 64"):
        speechclip.convert(write_checkpoint(tmp_path / "short.ckpt", short))
    cut = {**state, "parallel_branch.linear_proj.bias": torch.zeros(3)}
    with pytest.raises(CheckpointError, match=r"linear_proj.bias is \(3,\), expected \(24,\)"):
        speechclip.convert(write_checkpoint(tmp_path / "cut.ckpt", cut))
    other = write_checkpoint(
        tmp_path / "other.ckpt", {"Conv.0.weight": torch.zeros(1), "RNN.weight_ih_l0": torch.zeros(1)}
    )
    with pytest.raises(CheckpointError, match="the speech encoder of Li et al."):
        speechclip.convert(other)
    broken = tmp_path / "broken.ckpt"
    broken.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(CheckpointError, match="damaged"):
        speechclip.convert(broken)


class _Hostile:
    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (Path("touched_by_pickle"),))


def test_other_objects_in_a_checkpoint_are_not_built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": {}, "hyper_parameters": _Hostile()}, "hostile.ckpt")
    with pytest.raises(CheckpointError, match="was not opened"):
        speechclip.convert(Path("hostile.ckpt"))
    assert not Path("touched_by_pickle").exists()


def test_imported_run_embeds_and_says_what_evaluation_needs(
    command: Callable[..., tuple[int, str, str]],
    tmp_path: Path,
    tiny_cub: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tower = SpeechClipConfig.__dataclass_fields__["tower"]  # a published tower would take a gigabyte here
    choices = (*tower.metadata["choices"], "hubert_tiny")
    monkeypatch.setattr(tower, "metadata", {**tower.metadata, "choices": choices})
    source = shaken(SpeechClip("hubert_tiny", embed_dim=512, ff_dim=96, legacy_len=True))
    path = write_checkpoint(tmp_path / "epoch_1.ckpt", released_state(source, large=False))
    corpus = ("data=cub200", f"data.root={tiny_cub}", "data.max_captions=1", "data.speak=espeak")
    code, out, err = command("import", "system=speechclip", f"checkpoint={path}", *corpus, "data.image_px=32")
    assert code == 0, err
    run = out.strip().splitlines()[-1]
    code, out, err = command("embed", f"run={run}", "split=test", f"out={tmp_path}")
    assert code == 0, err
    sentences = read_embeddings(tmp_path / "test.safetensors").arrays["sentence"]
    assert sentences.shape == (6, 512)
    assert np.allclose(np.linalg.norm(sentences, axis=1), 1, atol=1e-5)
    code, out, err = command("evaluate", f"run={run}", "protocol=offline")
    assert code == 2 and ("clip_vit_b32.safetensors" in err or "open_clip_torch" in err), err
    assert "Traceback" not in err
