"""Damaged, hostile and foreign checkpoints: one message each, and nothing in them runs."""

from __future__ import annotations

import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from speech2image.errors import CheckpointError
from speech2image.gan.stackgan import StackGenerator
from speech2image.hub.convert import li_encoder, sen, stackgan_v2
from speech2image.hub.released import load_released
from speech2image.hub.weights import content_hash, load_weights, read_foreign, read_weights, save_weights
from speech2image.speech.conv_gru import ConvGru


def generator() -> StackGenerator:
    return StackGenerator(sentence_dim=8, condition_dim=4, noise_dim=4, gf_dim=8, num_stages=2, base_px=16)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    path = tmp_path / "netG_1.pth"
    torch.save({f"module.{k}": v for k, v in generator().state_dict().items()}, path)
    return path


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    path = tmp_path / "weights.safetensors"
    save_weights(path, generator().state_dict(), {"model": "StackGenerator", "step": 3})
    return path


def one_message(error: pytest.ExceptionInfo[CheckpointError], path: Path) -> str:
    text = str(error.value)
    assert str(path) in text
    assert "Traceback" not in text
    assert error.value.remedy
    return text


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="there is no checkpoint") as error:
        read_foreign(tmp_path / "none.pth")
    one_message(error, tmp_path / "none.pth")


@pytest.mark.parametrize("keep", [0.0, 0.001, 0.3, 0.7, 0.999])
def test_truncated_checkpoint_is_refused(checkpoint: Path, keep: float) -> None:
    content = checkpoint.read_bytes()
    checkpoint.write_bytes(content[: int(len(content) * keep)])
    with pytest.raises(CheckpointError, match="is empty|is damaged") as error:
        stackgan_v2.convert_generator(checkpoint)
    one_message(error, checkpoint)


def test_every_flipped_bit_in_the_tensors_is_found(checkpoint: Path) -> None:
    content = checkpoint.read_bytes()
    with zipfile.ZipFile(checkpoint) as archive:
        parts = [part for part in archive.infolist() if "/data/" in part.filename and part.file_size > 64]
    assert len(parts) > 10
    for part in parts[:: len(parts) // 10]:
        flipped = bytearray(content)
        flipped[part.header_offset + 200 + part.file_size // 2] ^= 0x10
        checkpoint.write_bytes(flipped)
        with pytest.raises(CheckpointError, match="damaged") as error:
            read_foreign(checkpoint)
        one_message(error, checkpoint)


def test_old_format_is_read_and_its_truncation_found(tmp_path: Path) -> None:
    path = tmp_path / "netG_old.pth"
    torch.save(generator().state_dict(), path, _use_new_zipfile_serialization=False)
    assert stackgan_v2.convert_generator(path).arguments["base_px"] == 16
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(CheckpointError, match="damaged") as error:
        read_foreign(path)
    one_message(error, path)


class Hostile:
    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.system, (f"touch {self.canary}",)


@pytest.mark.parametrize("kind", ["zip", "old", "pickle"])
def test_code_in_a_checkpoint_never_runs(tmp_path: Path, kind: str) -> None:
    canary, path = tmp_path / "canary", tmp_path / "netG_1.pth"
    content = {"state_dict": generator().state_dict(), "extra": Hostile(canary)}
    if kind == "pickle":
        path.write_bytes(pickle.dumps({"extra": Hostile(canary)}, protocol=2))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=kind == "zip")
    with pytest.raises(CheckpointError) as error:
        load_released("stackgan_v2", path)
    assert not canary.exists()
    text = one_message(error, path)
    assert "asks to run or build" in text
    assert "system" in text
    torch.load(path, weights_only=False) if kind != "pickle" else pickle.loads(path.read_bytes())
    assert canary.exists(), "the file must be able to do harm, else this test proves nothing"


def test_something_else_than_a_checkpoint_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "netG_1.pth"
    for content in (b"<html>404</html>" * 40, b"\x00" * 500, b"PK\x03\x04" + b"\x00" * 400):
        path.write_bytes(content)
        with pytest.raises(CheckpointError) as error:
            read_foreign(path)
        one_message(error, path)
    torch.save([1, 2, 3], path)
    with pytest.raises(CheckpointError, match="holds no tensors by name: its content is a list"):
        read_foreign(path)
    torch.save({"ca_net.fc.weight": torch.tensor([1.0, float("nan")])}, path)
    with pytest.raises(CheckpointError, match="not finite"):
        read_foreign(path)


def test_checkpoint_of_another_system_is_recognised(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="looks like a StackGAN-v2") as error:
        li_encoder.convert(checkpoint)
    one_message(error, checkpoint)
    with pytest.raises(CheckpointError, match="looks like a StackGAN-v2"):
        sen.convert(checkpoint)
    speech = tmp_path / "best_audio_model.pth"
    torch.save(
        ConvGru(mel_dim=8, hidden_channels=4, out_channels=4, rnn_dim=4, attention_dim=4).state_dict(), speech
    )
    with pytest.raises(CheckpointError, match="looks like the S2IGAN speech encoder"):
        stackgan_v2.convert_generator(speech)
    with pytest.raises(CheckpointError, match="looks like the S2IGAN speech encoder"):
        stackgan_v2.convert_discriminator(speech)


def test_unknown_system_suggests_the_nearest(checkpoint: Path) -> None:
    with pytest.raises(CheckpointError, match="system=stackgan_v2"):
        load_released("stackgan2", checkpoint)


def test_s2igan_generator_is_named(tmp_path: Path) -> None:
    state = generator().state_dict()
    state["h_net2.upsample.1.weight"] = torch.zeros(8, 16, 3, 3)
    torch.save(state, tmp_path / "netG_600.pth")
    with pytest.raises(CheckpointError, match="is an S2IGAN generator"):
        stackgan_v2.convert_generator(tmp_path / "netG_600.pth")


def test_wrong_shapes_and_names_come_in_one_message(tmp_path: Path) -> None:
    state = generator().state_dict()
    state["img_net2.img.0.weight"] = torch.zeros(3, 5, 3, 3)
    state["ca_net.fc.bias"] = torch.zeros(3)
    path = tmp_path / "netG_1.pth"
    torch.save(state, path)
    with pytest.raises(CheckpointError) as error:
        stackgan_v2.convert_generator(path)
    text = one_message(error, path)
    assert "img_net2.img.0.weight is (3, 5, 3, 3), expected (3, 4, 3, 3)" in text
    assert "ca_net.fc.bias" in text


def test_our_weights_round_trip(weights: Path) -> None:
    module = generator()
    assert load_weights(weights, module) == {"model": "StackGenerator", "step": 3}
    assert content_hash(module.state_dict()) == content_hash(read_weights(weights)[0])
    assert not list(weights.parent.glob("*.part"))


def test_every_difference_is_in_one_message_and_nothing_is_loaded(weights: Path) -> None:
    module = StackGenerator(
        sentence_dim=9, condition_dim=4, noise_dim=4, gf_dim=8, num_stages=1, base_px=16
    ).double()
    before = content_hash(module.state_dict())
    with pytest.raises(CheckpointError) as error:
        load_weights(weights, module)
    text = one_message(error, weights)
    assert "unknown: h_net2" in text
    assert "of another shape: ca_net.fc.weight (16, 8), expected (16, 9)" in text
    assert "of another type" in text
    assert content_hash(module.state_dict()) == before


@pytest.mark.parametrize("keep", [0, 6, 400, 0.5, 0.999])
def test_truncated_safetensors_is_refused(weights: Path, keep: float) -> None:
    content = weights.read_bytes()
    weights.write_bytes(content[: int(keep * len(content)) if 0 < keep < 1 else int(keep)])
    with pytest.raises(CheckpointError, match="empty|damaged") as error:
        load_weights(weights, generator())
    one_message(error, weights)


def test_flipped_bits_in_safetensors_are_found(weights: Path) -> None:
    content = weights.read_bytes()
    for position in (3, 60, len(content) // 3, len(content) // 2, len(content) - 1):
        flipped = bytearray(content)
        flipped[position] ^= 0x04
        weights.write_bytes(flipped)
        with pytest.raises(CheckpointError) as error:
            load_weights(weights, generator())
        one_message(error, weights)


def test_foreign_safetensors_points_to_import(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    save_file({"a": torch.zeros(2)}, tmp_path / "x.safetensors")
    with pytest.raises(CheckpointError, match="not one that speech2image wrote"):
        load_weights(tmp_path / "x.safetensors", nn.Linear(1, 1))


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="the system has no /dev/full to write to")
def test_full_disk_leaves_nothing(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    (tmp_path / "weights.safetensors.part").symlink_to("/dev/full")
    with pytest.raises(CheckpointError, match="could not be written"):
        save_weights(path, {"a": torch.zeros(4)}, {})
    assert not path.exists()
    assert not path.with_name(path.name + ".part").is_symlink()


def test_read_only_place_is_one_message(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(CheckpointError, match="could not be written"):
        save_weights(tmp_path / "file" / "weights.safetensors", {"a": torch.zeros(4)}, {})
