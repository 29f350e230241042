"""Damaged items of a corpus, by name: the file that lists them all, and lines for the reader.

Items are found by the readers of layouts (`layout.py: Findings`) and while stores are filled
(`prepare.py`), and kept in the manifest.  Here is how a person and a run's records learn of them.
"""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from speech2image.data.manifest import Problem
from speech2image.data.whole import write_whole

__all__ = ["FILE", "count_by_kind", "summary_lines", "write_quarantine"]

FILE = "quarantine.jsonl"
_SHOWN = 10


def write_quarantine(folder: Path, problems: Sequence[Problem]) -> None:
    """Write `quarantine.jsonl` with one line an item: kind, path, message; without items there is no file.

    Raises:  DataError: the folder cannot be written.
    """
    path = folder / FILE
    if problems:
        lines = (json.dumps(dataclasses.asdict(problem), ensure_ascii=False) + "\n" for problem in problems)
        write_whole(path, "".join(lines).encode("utf-8", "backslashreplace"))
    else:
        path.unlink(missing_ok=True)


def count_by_kind(problems: Sequence[Problem]) -> dict[str, int]:
    """Return how many items of each kind were left out, most first."""
    return dict(Counter(problem.kind for problem in problems).most_common())


def summary_lines(problems: Sequence[Problem], folder: Path) -> list[str]:
    """Return lines for the terminal: the count, the count of each kind, the first names, where all of them stand."""
    if not problems:
        return []
    kinds = ", ".join(f"{count} {kind}" for kind, count in count_by_kind(problems).items())
    lines = [f"{len(problems)} damaged items were left out ({kinds}):"]
    lines += [f"  {problem.kind}: {problem.path}: {problem.message}" for problem in problems[:_SHOWN]]
    if len(problems) > _SHOWN:
        lines.append(f"  … and {len(problems) - _SHOWN} more")
    return [*lines, f"all of them, with what was found: {folder / FILE}"]
