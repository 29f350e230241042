"""What readers of official layouts share: finding the root, decoding lists, counting what is missing."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from speech2image.data.manifest import MAX_CAPTION_CHARS, Problem, key_problem
from speech2image.data.plain_json import parse_json
from speech2image.errors import ConfigError, DataError
from speech2image.types import ImageRecord, Utterance

MAX_LIST_BYTES = 256_000_000
"""Largest text list of a corpus: Flickr8k's captions take 3 MB, those of two million images 250."""
MAX_CAPTIONS_BYTES = 100_000
"""Largest caption file of one image."""

_NAMED = 8
_NO_TEXT = re.compile("[\x00-\x08\x0b\x0e-\x1f\x7f]")


class Findings:
    """Damaged items of one scan: counted and named, then raised in one message or kept.

    Args:
        on_error: `raise` or `skip`.

    Raises: ConfigError: anything else.
    """

    def __init__(self, on_error: str) -> None:
        if on_error not in ("raise", "skip"):
            raise ConfigError(f"on_error={on_error!r} is unknown", "Choose raise or skip.")
        self.on_error = on_error
        self.problems: list[Problem] = []

    def add(self, kind: str, path: str, message: str) -> None:
        """Note one damaged item."""
        self.problems.append(Problem(kind, path, message))

    def finish(self, total: int, what: str, num_left: int) -> None:
        """Raise everything found in one message, unless items may be skipped.

        Args:
            total: items looked at.
            what: what they are, e.g. `images`.
            num_left: images that can still be used.

        Raises:  DataError: something was found and `on_error` is `raise`, or nothing is left.
        """
        if num_left and (self.on_error == "skip" or not self.problems):
            return
        lines = [f"  - {item.kind}: {item.path}: {item.message}" for item in self.problems[:_NAMED]]
        if len(self.problems) > _NAMED:
            lines.append(f"  … and {len(self.problems) - _NAMED} more")
        head = f"{len(self.problems)} damaged or missing items among {total} {what}"
        if not num_left:
            raise DataError(
                "\n".join([f"{head}: no usable image is left", *lines]), "Check the layout of data.root."
            )
        raise DataError(
            "\n".join([f"{head}:", *lines]), "Repair them, or go on without them: data.on_error=skip"
        )


def find_root(root: Path, marks: Sequence[str], corpus: str, expected: str) -> Path:
    """Return the folder that holds all of `marks`: `root`, one of its parents, or one of its children.

    Raises:  DataError: none does; says what is missing in `root` and what it holds instead.
    """
    try:
        children = sorted(path for path in root.iterdir())
    except OSError as error:
        raise DataError(f"data.root={root}: no readable folder ({error.strerror})", expected) from None
    above = list(root.resolve().parents)[:2]
    for folder in (root, *above, *children):
        if all(_exists(folder / mark) for mark in marks):
            return folder
    missing = [mark for mark in marks if not _exists(root / mark)]
    held = ", ".join(path.name for path in children[:8]) or "nothing at all"
    more = f" and {len(children) - 8} more" if len(children) > 8 else ""
    raise DataError(
        f"data.root={root} is no {corpus} folder: {', '.join(missing)} missing; it holds {held}{more}",
        expected,
    )


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # a folder without the right to look into it
        return False


def read_text(path: Path, max_bytes: int = MAX_LIST_BYTES) -> str:
    r"""Read a text file of unknown making: UTF-8 with or without mark, else Windows-1252; `\n` ends lines.

    Raises:  DataError: there is no such file, it is larger than `max_bytes`, or holds no text.
    """
    raw = _read_bytes(path, max_bytes)
    text = decode_text(raw)
    if text is None:
        raise DataError(
            f"{path}: expected text (UTF-8 or Windows-1252), found other bytes: {raw[:8].hex(' ')} …",
            "Get the file from its original source.",
        )
    return text.replace("\r\n", "\n").replace("\r", "\n")


def decode_text(raw: bytes) -> str | None:
    """Return text in UTF-8 with or without mark, else in Windows-1252; None: it is neither, or has control bytes."""
    for encoding in ("utf-8-sig", "cp1252"):
        try:
            text = raw.decode(encoding)
        except UnicodeDecodeError:
            continue
        return None if _NO_TEXT.search(text) else text
    return None


def _read_bytes(path: Path, max_bytes: int) -> bytes:
    try:
        if path.exists() and not path.is_file():  # a pipe would be waited for
            raise ValueError("it is no file")
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            raw = file.read() if size <= max_bytes else b""
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        raise DataError(
            f"{path}: cannot be read ({getattr(error, 'strerror', None) or error})",
            "Check the layout of the corpus.",
        ) from None
    if size > max_bytes:
        raise DataError(
            f"{path}: {size:,} bytes, larger than the {max_bytes:,} bytes that are accepted",
            "Get the file from its original source.",
        )
    return raw


def read_lines(path: Path) -> list[str]:
    """Return the lines of `read_text` that are not blank."""
    return [line for line in read_text(path).split("\n") if line.strip()]


def read_each_line(path: Path) -> list[tuple[int, str | None]]:
    """Return number and text of each line that is not blank; None: this line holds no text.

    Raises:  DataError: the file is missing or too large.
    """
    lines = _read_bytes(path, MAX_LIST_BYTES).replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n")
    return [(number, decode_text(raw)) for number, raw in enumerate(lines, start=1) if raw.strip()]


def small_number(text: object, limit: int = 1_000_000) -> int | None:
    """Return a whole number from 0 below `limit` that a list gives in digits; None: it gives none.

    Args:    text: a number, or text with blanks around; `²` and signs are no digits.
    """
    digits = str(text).strip() if isinstance(text, (str, int)) else ""
    if not digits.isascii() or not digits.isdecimal() or len(digits) > len(str(limit)):
        return None
    return int(digits) if int(digits) < limit else None


def caption_problem(caption: str) -> str | None:
    """Return what is wrong with a caption, None where nothing is."""
    if len(caption) > MAX_CAPTION_CHARS:
        return f"a caption of {len(caption):,} letters, {MAX_CAPTION_CHARS:,} are accepted"
    return None


def unrecorded(records: Sequence[ImageRecord], share: float = 0.9) -> list[Utterance]:
    """Return captions that have no recording although nearly all images have one of the caption at that place.

    A corpus whose speakers read the first two captions of each image lacks nothing; one in which a few
    recordings are gone does, and no list in the official layout of CUB names them.

    Args:    share: of the images with a caption at this place, those that must be recorded.
    """
    by_place: dict[int, list[Utterance]] = {}
    for record in records:
        for utterance in record.utterances:
            by_place.setdefault(utterance.caption_index, []).append(utterance)
    gone = []
    for utterances in by_place.values():
        silent = [utterance for utterance in utterances if utterance.wave is None]
        if len(silent) <= (1 - share) * len(utterances):
            gone += silent
    return gone


def require_keys(keys: Sequence[object], source: Path) -> None:
    """Refuse a list of names that lead out of the corpus, hold control characters, or stand in it twice.

    Raises:  DataError: names the first one and its place.
    """
    seen: set[object] = set()
    for number, key in enumerate(keys, start=1):
        problem = key_problem(key) or ("it stands there twice" if key in seen else None)
        if problem:
            raise DataError(
                f"{source}: entry {number}, {str(key)[:80]!r}: {problem}",
                "Get the file from its original source.",
            )
        seen.add(key)


def read_table(path: Path) -> dict[str, str]:
    """Read lines of a name and a value with space between, as `images.txt` has them.

    Raises:  DataError: a line has no value; its text is shown.
    """
    table = {}
    for line in read_lines(path):
        name, _, value = line.strip().partition(" ")
        if not value.strip():
            raise DataError(
                f"{path}: expected a number and a name in each line, found {line[:60]!r}",
                "Get the file from its original source.",
            )
        table[name] = value.strip()
    return table


def read_index(path: Path, key: str) -> dict[str, dict[str, Any]]:
    """Read JSON lines as a mapping by one of their fields; empty where there is no such file.

    Raises:  DataError: a line is damaged; its number is named.
    """
    index: dict[str, dict[str, Any]] = {}
    for number, line in enumerate(read_lines(path) if path.is_file() else [], start=1):
        try:
            record = parse_json(line)
            if not isinstance(record[key], str):
                raise TypeError(f"{key!r} is no text")
            index[record[key]] = record
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(
                f"{path} line {number}: expected a JSON object with {key!r} ({error})",
                "Make the corpus again.",
            ) from None
    return index
