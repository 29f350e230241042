"""Seeded mutations of valid files, and a child process in which each is read under a watchdog.

Tests load this file with `runpy.run_path`, which works under every import mode of pytest.
"""

from __future__ import annotations

import os
import resource
import signal
import struct
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from speech2image.errors import Speech2ImageError

CPU_S, WALL_S = 2.0, 60.0
MAX_GROWTH_BYTES = 1_000_000_000
_CHUNK = 50
_INTEGERS = (0, 1, 0x7F, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 1 << 62, (1 << 64) - 1)
_TEXTS = (
    b"\x00", b"\xff\xfe", b"\r\n\r\n", "é\u2028\u0661²".encode(), b"\\ud800", b"NaN", b"1e999", b"-1", b"null", b"[]", b"{}",
    b"9" * 30, b"9" * 5000, b"[" * 3000, b'{"a":' * 3000, b"[" * 200_000, b"../" * 20, b"/etc/passwd", b"A" * 70_000,
    b'"', b"\\", b"\t", b"#", b"true", b'"x"', b"\xf0\x9f\x90\xa6",
)  # fmt: skip


def mutate(raw: bytes, others: Sequence[bytes], rng: np.random.Generator) -> bytes:
    """Return one to three mutations of a file, never more than 2 MB.

    Args:
        raw: valid file.
        others: valid files of the same kind, for splices.
        rng: decides everything.
    """
    for _ in range(int(rng.integers(1, 4))):
        way = _WAYS[int(rng.integers(len(_WAYS)))]
        raw = way(raw, others, rng)[:2_000_000]
    return raw


def _place(raw: bytes, rng: np.random.Generator) -> int:
    """A place in a file; headers, where most is decided, are twice as likely."""
    return int(rng.integers(0, (min(len(raw), 200) if rng.random() < 0.5 else len(raw)) + 1))


def _flip(raw: bytes, others: Sequence[bytes], rng: np.random.Generator) -> bytes:
    changed = bytearray(raw)
    for _ in range(int(rng.integers(1, 9)) if raw else 0):
        changed[min(_place(raw, rng), len(raw) - 1)] ^= 1 << int(rng.integers(8))
    return bytes(changed)


def _cut(raw: bytes, others: Sequence[bytes], rng: np.random.Generator) -> bytes:
    return raw[: _place(raw, rng)]


def _remove(raw: bytes, others: Sequence[bytes], rng: np.random.Generator) -> bytes:
    start = _place(raw, rng)
    return raw[:start] + raw[start + int(rng.integers(1, 40)) :]


def _integer(raw: bytes, others: Sequence[bytes], rng: np.random.Generator) -> bytes:
    start, width = _place(raw, rng), int(rng.choice([1, 2, 4, 8]))
    value = _INTEGERS[int(rng.integers(len(_INTEGERS)))] & ((1 << 8 * width) - 1)
    order = "little" if rng.random() < 0.5 else "big"
    return raw[:start] + value.to_bytes(width, order) + raw[start + width :]  # type: ignore[arg-type]


def _insert(raw: bytes, others: Sequence[bytes], rng: np.random.Generator) -> bytes:
    start = _place(raw, rng)
    return raw[:start] + _TEXTS[int(rng.integers(len(_TEXTS)))] + raw[start:]


def _token(raw: bytes, others: Sequence[bytes], rng: np.random.Generator) -> bytes:
    """Replace one word, number or line of a text."""
    mark = [b" ", b",", b"\n", b":", b"\t", b'"'][int(rng.integers(6))]
    parts = raw.split(mark)
    parts[int(rng.integers(len(parts)))] = _TEXTS[int(rng.integers(len(_TEXTS)))]
    return mark.join(parts)


def _splice(raw: bytes, others: Sequence[bytes], rng: np.random.Generator) -> bytes:
    other = others[int(rng.integers(len(others)))]
    return raw[: _place(raw, rng)] + other[_place(other, rng) :]


def _repeat(raw: bytes, others: Sequence[bytes], rng: np.random.Generator) -> bytes:
    start = _place(raw, rng)
    part = raw[start : start + int(rng.integers(1, 60))]
    return raw[:start] + part * int(rng.choice([2, 10, 1000, 20_000])) + raw[start:]


def _noise(raw: bytes, others: Sequence[bytes], rng: np.random.Generator) -> bytes:
    start = _place(raw, rng)
    noise = rng.bytes(int(rng.integers(1, 64)))
    return raw[:start] + noise + raw[start + len(noise) :]


_WAYS = (_flip, _flip, _cut, _remove, _integer, _integer, _insert, _token, _splice, _repeat, _noise)


def run_watched(count: int, attempt: Callable[[int], object], folder: Path) -> tuple[list[str], int, int]:
    """Attempt numbers 0 .. `count` - 1 in child processes; return what went wrong, how many were refused, peak growth.

    Each attempt may return or raise a `Speech2ImageError`, in 2 s of processor time, and may not even ask for
    more than 1 GB beyond what the process had (address space, so untouched memory counts, too).

    Args:
        count: how many.
        attempt: writes its file and reads it.
        folder: for the notes of the children.
    """
    wrong: list[str] = []
    refused = peak = start = 0
    notes = folder / "notes.txt"
    while start < count:
        end = min(count, start + _CHUNK)
        notes.write_bytes(b"")
        child = os.fork()
        if child == 0:
            _child(range(start, end), attempt, notes)
        status = os.waitpid(child, 0)[1]
        said = notes.read_text(encoding="utf-8", errors="replace").split("\x1e")[:-1]
        refused += sum(line == "refused" for line in said)
        peak = max([peak, *(int(line[5:]) for line in said if line.startswith("peak "))])
        wrong += [line for line in said if line.startswith("wrong")]
        started = [int(line[6:]) for line in said if line.startswith("start ")]
        if status != 0:
            name = signal.Signals(status & 127).name if status & 127 else f"exit {status >> 8}"
            wrong.append(f"attempt {started[-1] if started else start} ended its process: {name}")
        start = (
            started[-1] if started else start
        ) + 1  # a child may have stopped before the end of its chunk
    return wrong, refused, peak


def _child(numbers: range, attempt: Callable[[int], object], notes: Path) -> None:
    """Attempt and note; the alarms kill, since code in C cannot be interrupted otherwise."""
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    code = 1
    try:
        before = _address_space()
        with notes.open("w", encoding="utf-8", errors="replace") as file:
            for number in numbers:
                file.write(f"start {number}\x1e")
                file.flush()
                signal.setitimer(signal.ITIMER_PROF, CPU_S)
                signal.setitimer(signal.ITIMER_REAL, WALL_S)
                file.write(_outcome(number, attempt))
                signal.setitimer(signal.ITIMER_PROF, 0)
                growth = _address_space() - before
                file.write(f"peak {growth}\x1e")
                if growth > MAX_GROWTH_BYTES:
                    file.write(f"wrong {number}: {growth:,} bytes were asked for\x1e")
                    break
                file.flush()
        code = 0
    finally:
        os._exit(code)


def _outcome(number: int, attempt: Callable[[int], object]) -> str:
    try:
        attempt(number)
    except Speech2ImageError as error:
        if not error.message or "\x00" in str(error) or len(str(error)) > 5000:
            return f"wrong {number}: no message for a reader: {str(error)[:100]!r}\x1e"
        if _asked_for_too_much(error):
            return f"wrong {number}: memory ran out: {error}\x1e"
        return "refused\x1e"
    except BaseException:  # noqa: BLE001  that is what is looked for
        return f"wrong {number}: {traceback.format_exc(limit=-6)}\x1e"
    return "read\x1e"


def _asked_for_too_much(error: BaseException | None) -> bool:
    while error is not None:
        if isinstance(error, MemoryError):
            return True
        error = error.__cause__ or error.__context__
    return False


def _address_space() -> int:
    """Peak of the address space of this process, bytes; where the system does not say, of its memory."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmPeak"))
    except (OSError, StopIteration):
        return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def integers_at(raw: bytes, offsets: Sequence[int], values: Sequence[int]) -> list[bytes]:
    """Return copies with each 32-bit little-endian field set to each value: headers that lie."""
    return [
        raw[:offset] + struct.pack("<I", value) + raw[offset + 4 :] for offset in offsets for value in values
    ]
