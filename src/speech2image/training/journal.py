"""The local journal of a run, always written: what training said, and beside it what the clock said.

`journal.jsonl` holds only what is a function of the configuration, so a run killed anywhere and continued ends with
the same bytes; `clock.jsonl` holds times, rates and what happened to the process.  Lines a disk does not take are
kept and tried again: a full disk costs no training.  Reading them is in `report/journal.py`.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

from tqdm import tqdm

from speech2image.errors import DataError


def say(message: str) -> None:
    """Print one line of warning that leaves a progress bar whole."""
    tqdm.write(f"speech2image: {message}", file=sys.stderr)


class Journal:
    """Append-only JSON lines of one run.

    Args:
        path: `journal.jsonl` of the run; `clock.jsonl` lies beside it.
        keep_bytes: length at the checkpoint the run continues from: lines beyond were written by a killed session
            and will come again; None: keep all.
    Raises:  DataError: the files cannot be opened.
    """

    def __init__(self, path: Path, keep_bytes: int | None = None, writes: bool = True) -> None:
        self.path, self.writes = path, writes
        if not writes:
            return
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._lines = _Lines(path, keep_bytes)
            self._clock = _Lines(path.with_name("clock.jsonl"))
        except OSError as error:
            raise DataError(
                f"{path} cannot be opened: {error.strerror}", "Type: paths.runs=<folder>"
            ) from None

    def write(self, step: int, kind: str, **values: Any) -> None:
        """Append one line and hand it to the operating system; `values` depend on the configuration only."""
        if self.writes:
            self._lines.append({"step": step, "kind": kind, **values})

    def write_clock(self, step: int, **values: Any) -> None:
        """Append one line about time, speed or machine, or an `event` such as start, end or preempted."""
        if self.writes:
            self._clock.append({"step": step, "time": round(time.time(), 3), **values})

    def position(self) -> int:
        """Return the length of the journal, all of it on the disk.

        Raises:  DataError: the disk does not take it.
        """
        if not self.writes:
            return 0
        try:
            self._lines.sync()
        except OSError as error:
            raise DataError(
                f"{self.path} cannot be written ({error.strerror}): {self._lines.num_waiting} lines wait in memory",
                "Free space, then give the same command: the run continues from its last checkpoint.",
            ) from None
        return self._lines.size

    def close(self) -> None:
        """Sync to disk and close.

        Raises:  DataError: the disk does not take the last lines.
        """
        try:
            self.position()
        finally:
            if self.writes:
                self._lines.close()
                self._clock.close()


class _Lines:
    """One append-only file; what cannot be written waits and is tried before the next line."""

    def __init__(self, path: Path, keep_bytes: int | None = None) -> None:
        self.path = path
        self._waiting = bytearray()
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
        self._has_warned = False
        whole = _whole_lines(self._file, keep_bytes)
        if keep_bytes is not None and whole < keep_bytes:
            say(f"{path} is shorter than at the checkpoint: lines of earlier steps are lost, training is not")
        if os.fstat(self._file).st_size > whole:
            os.ftruncate(self._file, whole)
        self.size = whole

    @property
    def num_waiting(self) -> int:
        return self._waiting.count(b"\n")

    def append(self, line: dict[str, Any]) -> None:
        self._waiting += json.dumps(line).encode() + b"\n"
        try:
            self._flush()
        except OSError as error:
            if not self._has_warned:
                say(
                    f"{self.path} cannot be written ({error.strerror}): its lines wait in memory, training goes on"
                )
            self._has_warned = True
        else:
            self._has_warned = False

    def sync(self) -> None:
        self._flush()
        os.fsync(self._file)

    def close(self) -> None:
        os.close(self._file)

    def _flush(self) -> None:
        while self._waiting:
            written = os.write(self._file, self._waiting)
            self.size += written
            del self._waiting[:written]


def _whole_lines(file: int, most: int | None) -> int:
    """Return where the last whole line within the first `most` bytes ends."""
    end = os.fstat(file).st_size if most is None else min(most, os.fstat(file).st_size)
    while end > 0:
        start = max(0, end - 65536)
        place = os.pread(file, end - start, start).rfind(b"\n")
        if place >= 0:
            return start + place + 1
        end = start
    return 0
