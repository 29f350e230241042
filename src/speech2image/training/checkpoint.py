"""Whole-or-absent saves of the state of a run.

A checkpoint is one `torch.save` file of tensors, numbers, texts, lists and mappings, read back
with `weights_only=True`, and a sidecar with its SHA-256.  It is written beside, flushed, synced
and renamed; the newest whole one wins at resume.  Weights for use leave through `hub/weights.py`.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from pathlib import Path
from typing import Any

import torch

from speech2image.errors import CheckpointError

_NAME = "step_{step:08d}.ckpt"


def save_checkpoint(folder: Path, step: int, state: dict[str, Any], keep: int = 2) -> Path:
    """Write `state` as the checkpoint of `step` and drop all but the newest `keep`.

    Raises:
        CheckpointError: the disk is full, read-only or returns other bytes than were written.
    """
    path = folder / _NAME.format(step=step)
    temporary = path.with_suffix(".part")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        digest = _sha256(temporary)
        _write_text(path.with_suffix(".sha256"), digest)
        os.replace(temporary, path)
        _sync_folder(folder)
    except (OSError, RuntimeError) as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise CheckpointError(
            f"checkpoint of step {step} could not be written to {folder}: {error}",
            "Free space or make the folder writable, then give the same command: the run continues.",
        ) from None
    for old in sorted(folder.glob("step_*.ckpt"))[:-keep]:
        old.unlink(missing_ok=True)
        old.with_suffix(".sha256").unlink(missing_ok=True)
    return path


def load_newest(folder: Path) -> tuple[dict[str, Any] | None, list[str]]:
    """Return the newest whole checkpoint of `folder`, and a sentence for each damaged one."""
    damaged: list[str] = []
    for path in sorted(folder.glob("step_*.ckpt"), reverse=True):
        try:
            return load_checkpoint(path), damaged
        except CheckpointError as error:
            damaged.append(error.message)
    return None, damaged


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read one checkpoint after comparing its hash.

    Raises:
        CheckpointError: missing sidecar, other bytes than were saved, or not our format.
    """
    sidecar = path.with_suffix(".sha256")
    if not sidecar.is_file():
        raise CheckpointError(f"{path} has no {sidecar.name} beside it: it was not saved whole")
    expected, found = sidecar.read_text().strip(), _sha256(path)
    if expected != found:
        raise CheckpointError(f"{path} is damaged: SHA-256 {found[:12]}…, expected {expected[:12]}…")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # noqa: BLE001  a damaged file fails in many ways
        raise CheckpointError(f"{path} cannot be read: {error}") from None
    if not isinstance(state, dict) or "train_step" not in state:
        raise CheckpointError(f"{path} is no checkpoint of this suite: it has no train_step")
    return state


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _write_text(path: Path, text: str) -> None:
    temporary = path.with_name(path.name + ".part")
    with temporary.open("w") as file:
        file.write(text + "\n")
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
