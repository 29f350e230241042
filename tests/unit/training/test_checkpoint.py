"""Checkpoints are whole or absent, and damage is found."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from speech2image.errors import CheckpointError
from speech2image.training.checkpoint import load_checkpoint, load_newest, save_checkpoint


def state(step: int) -> dict[str, object]:
    return {"train_step": step, "module": {"weight": torch.arange(64.0) + step}}


def test_saved_state_comes_back(tmp_path: Path) -> None:
    path = save_checkpoint(tmp_path, 7, state(7))
    back = load_checkpoint(path)
    assert back["train_step"] == 7
    assert torch.equal(back["module"]["weight"], torch.arange(64.0) + 7)
    assert not list(tmp_path.glob("*.part"))


def test_only_the_newest_are_kept(tmp_path: Path) -> None:
    for step in range(5):
        save_checkpoint(tmp_path, step, state(step), keep=2)
    assert sorted(path.name for path in tmp_path.glob("*.ckpt")) == [
        "step_00000003.ckpt",
        "step_00000004.ckpt",
    ]
    assert len(list(tmp_path.glob("*.sha256"))) == 2


@pytest.mark.parametrize("damage", ["truncate", "empty", "flip", "rename", "no_sidecar"])
def test_damage_is_found_and_the_previous_one_is_used(tmp_path: Path, damage: str) -> None:
    save_checkpoint(tmp_path, 1, state(1))
    path = save_checkpoint(tmp_path, 2, state(2))
    content = bytearray(path.read_bytes())
    if damage == "truncate":
        path.write_bytes(content[: len(content) // 2])
    elif damage == "empty":
        path.write_bytes(b"")
    elif damage == "flip":
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    elif damage == "rename":
        os.replace(tmp_path / "step_00000001.ckpt", path)
        save_checkpoint(tmp_path, 1, state(1))
    else:
        path.with_suffix(".sha256").unlink()
    newest, problems = load_newest(tmp_path)
    assert newest is not None and newest["train_step"] == 1
    assert len(problems) == 1 and path.name in problems[0]


def test_pickled_code_does_not_run(tmp_path: Path) -> None:
    canary = tmp_path / "canary"

    class Evil:
        def __reduce__(self) -> tuple[object, ...]:
            return os.system, (f"touch {canary}",)

    path = tmp_path / "step_00000001.ckpt"
    torch.save({"train_step": 1, "evil": Evil()}, path)
    import hashlib

    path.with_suffix(".sha256").write_text(hashlib.sha256(path.read_bytes()).hexdigest())
    with pytest.raises(CheckpointError):
        load_checkpoint(path)
    assert not canary.exists()


def test_unwritable_folder_is_one_clear_error(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(CheckpointError, match="step 3"):
        save_checkpoint(blocked / "checkpoints", 3, state(3))


def test_full_disk_leaves_no_checkpoint_and_says_so(tmp_path: Path) -> None:
    if not os.path.exists("/dev/full"):
        pytest.skip("this system has no /dev/full to write to")
    target = tmp_path / "step_00000004.part"
    target.symlink_to("/dev/full")
    with pytest.raises(CheckpointError, match="could not be written"):
        save_checkpoint(tmp_path, 4, state(4))
    assert not list(tmp_path.glob("*.ckpt"))
