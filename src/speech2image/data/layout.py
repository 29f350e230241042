"""What readers of official layouts share: finding the root, decoding lists, counting what is missing."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from speech2image.data.manifest import Problem
from speech2image.errors import ConfigError, DataError

_NAMED = 8


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
    for folder in (root, *above, *(child for child in children if child.is_dir())):
        if all((folder / mark).exists() for mark in marks):
            return folder
    missing = [mark for mark in marks if not (root / mark).exists()]
    held = ", ".join(path.name for path in children[:8]) or "nothing at all"
    more = f" and {len(children) - 8} more" if len(children) > 8 else ""
    raise DataError(
        f"data.root={root} is no {corpus} folder: {', '.join(missing)} missing; it holds {held}{more}",
        expected,
    )


def read_text(path: Path) -> str:
    r"""Read a text file of unknown making: UTF-8 with or without mark, else Windows-1252; `\n` ends lines.

    Raises:  DataError: there is no such file.
    """
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise DataError(
            f"{path}: cannot be read ({error.strerror})", "Check the layout of the corpus."
        ) from None
    for encoding in ("utf-8-sig", "cp1252", "latin-1"):
        try:
            return raw.decode(encoding).replace("\r\n", "\n").replace("\r", "\n")
        except UnicodeDecodeError:
            continue
    raise AssertionError("latin-1 decodes everything")


def read_lines(path: Path) -> list[str]:
    """Return the lines of `read_text` that are not blank."""
    return [line for line in read_text(path).split("\n") if line.strip()]


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
            record = json.loads(line)
            index[record[key]] = record
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(
                f"{path} line {number}: expected a JSON object with {key!r} ({error})",
                "Make the corpus again.",
            ) from None
    return index
