"""What wandb's files and servers are asked without wandb: a run's own history, records on disk, an address that answers.

Here: the history and the sample grids of a run folder, to be told to wandb again; the records of a `.wandb` file, to see
whether all of them reached the disk; and whether a server answers in time.  wandb itself is in `loggers.py`.
"""

from __future__ import annotations

import json
import queue
import threading
import urllib.error
import urllib.request
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

_NOT_SCALARS = frozenset({"step", "time", "kind", "epoch", "cpu_seconds"})
_BLOCK, _HEADER = 32768, 7
_FULL, _FIRST, _LAST = 1, 2, 4


def journal_history(folder: Path, last_step: int) -> dict[int, dict[str, float]]:
    """Return the scalars of a run by step, training and validation together, as wandb was told them.

    Args:
        folder: run folder; lines that are no JSON object with a step are left out.
        last_step: later lines are left out.
    """
    history: dict[int, dict[str, float]] = {}
    for name in ("journal.jsonl", "clock.jsonl"):
        path = folder / name
        for text in path.read_bytes().splitlines() if path.is_file() else ():
            try:
                line = json.loads(text)
            except ValueError:
                continue
            if not isinstance(line, dict) or not isinstance(line.get("step"), int):
                continue
            if "event" in line or line.get("kind") == "event" or line["step"] > last_step:
                continue
            scalars = {
                key: value
                for key, value in line.items()
                if key not in _NOT_SCALARS and isinstance(value, int | float)
            }
            if scalars:
                history.setdefault(line["step"], {}).update(scalars)
    return history


def sample_grids(folder: Path, last_step: int) -> dict[int, Path]:
    """Return the sample grids of a run folder by step, none later than `last_step`."""
    found = {
        int(path.stem[5:]): path for path in folder.glob("samples/step_*.png") if path.stem[5:].isdigit()
    }
    return {step: path for step, path in found.items() if step <= last_step}


def read_records(path: Path) -> Iterator[bytes]:
    """Yield the whole records of a `.wandb` file, each a message of wandb's protocol; stop at the first damaged one.

    Source:  LevelDB's log format, doc/log_format.md; wandb's differs in its header of 7 bytes and in a plain CRC-32.
    """
    content = path.read_bytes()
    place, record = _HEADER, b""
    while place < len(content):
        left = _BLOCK - place % _BLOCK
        if left < _HEADER:
            place += left
            continue
        header = content[place : place + _HEADER]
        checksum, length, kind = (int.from_bytes(header[a:b], "little") for a, b in ((0, 4), (4, 6), (6, 7)))
        chunk = content[place + _HEADER : place + _HEADER + length]
        if len(chunk) < length or zlib.crc32(bytes([kind]) + chunk) != checksum:
            return
        place += _HEADER + length
        record = chunk if kind in (_FULL, _FIRST) else record + chunk
        if kind in (_FULL, _LAST):
            yield record


def within(seconds: float, action: Callable[[], Any], what: str) -> Any:
    """Return what `action` returns; where it takes longer than `seconds` it is left to itself.

    Raises:  TimeoutError: it is not done; and what `action` raises.
    """
    answers: queue.SimpleQueue[tuple[Any, BaseException | None]] = queue.SimpleQueue()

    def work() -> None:
        try:
            answers.put((action(), None))
        except BaseException as error:  # noqa: BLE001  raised again below, in the thread that asked
            answers.put((None, error))

    threading.Thread(target=work, daemon=True, name=what).start()
    try:
        found, error = answers.get(timeout=seconds)
    except queue.Empty:
        raise TimeoutError(f"{what} was not done in {seconds:g} s") from None
    if error is not None:
        raise error
    return found


def require_answer(address: str, seconds: float) -> None:
    """Return when the server at an address answers anything at all; names, sockets and silence share the limit.

    Raises:  ConnectionError, TimeoutError: it does not.
    """

    def ask() -> None:
        try:
            with urllib.request.urlopen(address, timeout=seconds):
                return
        except urllib.error.HTTPError:
            return  # an answer
        except urllib.error.URLError as error:
            if "CERTIFICATE" in str(error.reason).upper():
                return  # whom to trust is wandb's own setting
            raise ConnectionError(f"{address} cannot be reached ({error.reason})") from None

    within(seconds, ask, f"the answer of {address}")
