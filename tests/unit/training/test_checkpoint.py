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


def test_a_save_keeps_earlier_ones_and_drops_those_of_a_history_given_up(tmp_path: Path) -> None:
    for step in (1, 2, 30, 40):
        save_checkpoint(tmp_path, step, state(step), keep=4)
    (tmp_path / "step_00000007.part").write_bytes(b"left by a killed save")
    save_checkpoint(tmp_path, 3, state(3), keep=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step_00000002.ckpt", "step_00000003.ckpt"]


def test_pickled_code_does_not_run(tmp_path: Path) -> None:
    canary = tmp_path / "canary"

    class Evil:
        def __reduce__(self) -> tuple[object, ...]:
            return os.system, (f"touch {canary}",)

    path = save_checkpoint(tmp_path, 1, {"train_step": 1, "evil": Evil()})  # whole, with the right hash
    with pytest.raises(CheckpointError, match="cannot be read"):
        load_checkpoint(path)
    assert not canary.exists()
    torch.load(path, weights_only=False)
    assert canary.exists(), "the file must be able to do harm, else this test proves nothing"


def test_checkpoint_of_an_older_version_is_kept_and_named(tmp_path: Path) -> None:
    torch.save(state(5), tmp_path / "step_00000005.ckpt")
    (tmp_path / "step_00000005.sha256").write_text("0" * 64)
    with pytest.raises(CheckpointError, match=r"step_00000005\.ckpt is of an older version") as error:
        load_newest(tmp_path)
    assert "resume=never" in error.value.remedy and (tmp_path / "step_00000005.ckpt").is_file()
    save_checkpoint(tmp_path, 6, state(6))
    found, message = load_newest(tmp_path)
    assert found is not None and found["train_step"] == 6 and message is None


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
