"""Whole-or-absent saves of the state of a run.

A checkpoint is one file: a `torch.save` archive of tensors, numbers, texts, lists and mappings, read back with
`weights_only=True`, and behind it who wrote it (run, step, layout) and the SHA-256 of all before.  One rename makes
it visible, so that there is no moment at which content and hash disagree.  Weights for use leave through
`hub/weights.py`; when to save and what to do when a disk is full is in `callbacks.py`.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import re
import struct
from pathlib import Path
from typing import Any, BinaryIO, cast

import torch

from speech2image.errors import CheckpointError

LAYOUT = 2
"""Number of the layout of state and file; 1 was the form with a `.sha256` file beside."""
_NAME = "step_{step:08d}.ckpt"
_MAGIC = b"s2i-ckpt"
_FOOT = struct.Struct("<8sI32s")  # magic, length of the description before it, SHA-256 of all but itself
_LONGEST_DESCRIPTION = 4096


class ForeignCheckpoint(CheckpointError):
    """A checkpoint is in order, but of another run or of another layout than this version reads."""


def save_checkpoint(folder: Path, step: int, state: dict[str, Any], keep: int = 2, run: str = "") -> Path:
    """Write `state` as the checkpoint of `step`, read it back, then drop all but the newest `keep`.

    Args:
        folder: `checkpoints/` of the run.
        step: `train_step` of the state; part of name and content.
        state: what `load_checkpoint` gives back.
        keep: whole checkpoints left in the end, this one included; those of later steps are of a history that
            was given up and go.
        run: id of the run, which must be the same at resume.
    Raises:  CheckpointError: the disk is full, read-only or returns other bytes than were written; what was there
        before is still there.
    Cost:    the file is written once and read once.
    """
    path = folder / _NAME.format(step=step)
    temporary = path.with_suffix(".part")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            digest = _write(file, state, {"layout": LAYOUT, "run": run, "step": step})
        if _digest(temporary) != digest:
            raise OSError("the disk returns other bytes than were written")
        os.replace(temporary, path)
        _sync_folder(folder)
    except (OSError, RuntimeError) as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise CheckpointError(
            f"checkpoint of step {step} could not be written to {folder}: {_reason(error)}",
            "Free space or make the folder writable, then give the same command: the run continues.",
        ) from None
    with contextlib.suppress(OSError):  # a leftover is no reason to stop
        _drop_old(folder, path, keep)
    return path


def load_newest(folder: Path, run: str = "") -> tuple[dict[str, Any] | None, str | None]:
    """Return the newest whole checkpoint of a run, and one message where newer ones were no good.

    Args:
        folder: `checkpoints/` of the run.
        run: id the checkpoints must have; "": any.
    Returns: the state, None where there is no whole one; and the message: files, what was found, what is used.
    Raises:  CheckpointError: there is nothing to continue from but what is of another run or layout; it is kept.
    """
    damaged: list[str] = []
    foreign: list[str] = []
    for path in _newest_first(folder):
        try:
            state = load_checkpoint(path, run)
        except CheckpointError as error:
            damaged.append(error.message)
            foreign += [error.message] if isinstance(error, ForeignCheckpoint) else []
            continue
        return state, _told(damaged, f"{path.name} is used instead")
    if foreign:
        raise CheckpointError(
            "; ".join(foreign[:3]),
            "Move them away, or start anew with callbacks.checkpoint.resume=never.",
        )
    return None, _told(damaged, "there is no whole one to use instead, training starts anew")


def load_checkpoint(path: Path, run: str = "") -> dict[str, Any]:
    """Read one checkpoint after comparing hash, name, run and layout.

    Args:
        path: `step_*.ckpt`.
        run: id it must have; "": any.
    Raises:
        CheckpointError: other bytes than were saved, the name of another step, of another run or layout.
    """
    about, length = _description(path)
    if about["layout"] != LAYOUT:
        raise ForeignCheckpoint(f"{path} has layout {about['layout']}, this version reads layout {LAYOUT}")
    if run and about["run"] != run:
        raise ForeignCheckpoint(f"{path} is of the run {about['run'] or 'without a name'}, expected {run}")
    if path.name != _NAME.format(step=about["step"]):
        raise CheckpointError(f"{path} holds step {about['step']}: the file was renamed")
    try:
        with path.open("rb") as file:
            state = torch.load(cast(BinaryIO, _Window(file, length)), map_location="cpu", weights_only=True)
    except Exception as error:  # noqa: BLE001  a file fails in many ways
        raise CheckpointError(f"{path} cannot be read: {error}") from None
    if not isinstance(state, dict) or state.get("train_step") != about["step"]:
        raise CheckpointError(f"{path} is no checkpoint of this suite: its train_step is not {about['step']}")
    return state


def _write(file: BinaryIO, state: dict[str, Any], about: dict[str, Any]) -> bytes:
    """Write archive, description and foot; return the hash in the foot, with the bytes on the disk."""
    hashed = _Hashed(file)
    try:
        torch.save(state, cast(BinaryIO, hashed))
    except RuntimeError as error:  # torch says that a write failed, not why
        raise hashed.problem or error from None
    description = json.dumps(about).encode()
    hashed.write(description)
    hashed.write(_FOOT.pack(_MAGIC, len(description), bytes(32))[:-32])
    digest = hashed.sha256.digest()
    file.write(digest)
    file.flush()
    os.fsync(file.fileno())
    if hasattr(os, "posix_fadvise"):  # so that reading back asks the disk, not the memory
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    return digest


def _digest(path: Path) -> bytes:
    """Return the hash of a file without its last 32 bytes, if these are that hash; else nothing."""
    sha256, rest = hashlib.sha256(), path.stat().st_size - 32
    with path.open("rb") as file:
        while rest > 0 and (block := file.read(min(rest, 1 << 20))):
            sha256.update(block)
            rest -= len(block)
        return sha256.digest() if file.read() == sha256.digest() else b""


def _description(path: Path) -> tuple[dict[str, Any], int]:
    """Return what a whole file says of itself and the length of its archive.

    Raises:  CheckpointError: it is not as it was saved.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            file.seek(max(0, size - _FOOT.size))
            foot = file.read()
            is_ours = len(foot) == _FOOT.size and foot.startswith(_MAGIC)
            if not is_ours and path.with_suffix(".sha256").is_file():
                raise ForeignCheckpoint(
                    f"{path} is of an older version of this suite (layout 1, not read any more)"
                )
            if not is_ours:
                raise CheckpointError(
                    f"{path} is damaged: {_bytes(size)} without the end that every save has"
                )
            _, length, _ = _FOOT.unpack(foot)
            if length > min(_LONGEST_DESCRIPTION, size - _FOOT.size) or not _digest(path):
                raise CheckpointError(
                    f"{path} is damaged: its {_bytes(size)} are not those that were saved (SHA-256)"
                )
            file.seek(size - _FOOT.size - length)
            about = json.loads(file.read(length))
            return {
                "layout": about["layout"],
                "run": about["run"],
                "step": about["step"],
            }, file.tell() - length
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path} cannot be read: {_reason(error)}") from None


def _newest_first(folder: Path) -> list[Path]:
    return sorted(folder.glob("step_*.ckpt"), key=lambda path: (_step_of(path), path.name), reverse=True)


def _step_of(path: Path) -> int:
    found = re.fullmatch(r"step_(\d+)", path.stem)
    return int(found[1]) if found else -1


def _drop_old(folder: Path, newest: Path, keep: int) -> None:
    """Remove what is older than the newest `keep`, of a later step than the newest, or left of a killed save."""
    step = _step_of(newest)
    earlier = [path for path in _newest_first(folder) if 0 <= _step_of(path) < step]
    later = [path for path in _newest_first(folder) if _step_of(path) > step]
    for path in (*later, *earlier[max(0, keep - 1) :], *folder.glob("step_*.part")):
        path.unlink(missing_ok=True)
        path.with_suffix(".sha256").unlink(missing_ok=True)  # of layout 1


def _told(damaged: list[str], instead: str) -> str | None:
    if not damaged:
        return None
    what = (
        "a checkpoint cannot be used" if len(damaged) == 1 else f"{len(damaged)} checkpoints cannot be used"
    )
    return f"{what}: {'; '.join(damaged)}; {instead}"


def _reason(error: Exception) -> str:
    return (isinstance(error, OSError) and error.strerror) or str(error)


def _bytes(size: int) -> str:
    return "0 bytes" if not size else f"{size:,} bytes"


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


class _Hashed:
    """A file that hashes what is written to it."""

    def __init__(self, file: BinaryIO) -> None:
        self.file, self.sha256 = file, hashlib.sha256()
        self.problem: OSError | None = None

    def write(self, content: bytes | memoryview) -> int:
        self.sha256.update(content)
        try:
            return self.file.write(content)
        except OSError as error:
            self.problem = self.problem or error
            raise

    def flush(self) -> None:
        self.file.flush()


class _Window(io.RawIOBase):
    """The first `length` bytes of a file, as a file."""

    def __init__(self, file: BinaryIO, length: int) -> None:
        self.file, self.length = file, length

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self.file.tell(), io.SEEK_END: self.length}[whence]
        return self.file.seek(start + offset)

    def tell(self) -> int:
        return self.file.tell()

    def readinto(self, target: Any) -> int:
        view = memoryview(target)
        content = self.file.read(max(0, min(len(view), self.length - self.file.tell())))
        view[: len(content)] = content
        return len(content)
