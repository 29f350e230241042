"""Reads `items*.jsonl`: what `evaluate` found for each generated image, so that runs can be paired.

One line an image: its utterance and sample, which spoken attributes it shows (`hits`), and at which
rank the right image was retrieved (`rank`).  Tests on them are in `differences.py`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from speech2image.report.journal import read_json_lines
from speech2image.report.measures import number_of


@dataclass(frozen=True)
class Item:
    """One generated image as it was scored; `hits` has the attributes its utterance names."""

    utterance: str
    sample: int
    seed: int
    class_id: str
    hits: Mapping[str, bool]
    rank: int | None


def items_file(metrics_file: str) -> str:
    """Return the name of the items beside a file of metrics.

    >>> items_file("metrics-clean.json")
    'items-clean.jsonl'
    """
    return "items" + metrics_file.removeprefix("metrics").removesuffix(".json") + ".jsonl"


def read_items(folder: Path, metric_files: Iterable[str], gaps: list[str]) -> dict[str, tuple[Item, ...]]:
    """Return the items beside each metrics file of a run; files that have none are left out.

    Args:
        folder: of the run.
        metric_files: names of its metrics files.
        gaps: gets in words what is damaged.
    """
    found = {}
    for name in metric_files:
        path = folder / items_file(name)
        if not path.is_file():
            continue
        lines, num_damaged = read_json_lines(path)
        items = [item for item in map(_item, lines) if item is not None]
        num_damaged += len(lines) - len(items)
        if num_damaged:
            gaps.append(f"{path.name}: {num_damaged} damaged lines, left out of the tests of differences")
        found[name] = tuple(items)
    return found


def _item(line: Mapping[str, Any]) -> Item | None:
    hits, rank = line.get("hits"), number_of(line.get("rank"))
    if not line.get("utterance"):
        return None
    class_id = line.get("class_id")
    return Item(
        utterance=str(line["utterance"]),
        sample=int(number_of(line.get("sample")) or 0),
        seed=int(number_of(line.get("seed")) or 0),
        class_id="" if class_id is None else str(class_id),
        hits={str(key): bool(value) for key, value in hits.items() if value is not None}
        if isinstance(hits, Mapping) else {},
        rank=None if rank is None else int(rank),
    )  # fmt: skip
