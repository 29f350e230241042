"""What `evaluate` leaves behind: `metrics.json`, `items.jsonl` beside it, and the printed table."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from speech2image.data.whole import write_whole
from speech2image.metrics.bounds import is_bound


def metrics_name(protocol: str, split: str, sampler: str) -> str:
    """Return the file name of an evaluation: one for each protocol, split and sampler of a run.

    Args:
        protocol: its name; empty: the corpus's own.
        split: the test split is not named.
        sampler: label of a sampler; empty: the run's own.

    >>> metrics_name("", "test", ""), metrics_name("clean", "test", "halton-16")
    ('metrics.json', 'metrics-clean-halton-16.json')
    """
    parts = ["metrics", protocol, "" if split == "test" else split, sampler]
    return "-".join(filter(None, parts)) + ".json"


def items_name(metrics_file: str) -> str:
    """Return the name of the file of single images beside a file of metrics.

    >>> items_name("metrics-clean.json")
    'items-clean.jsonl'
    """
    return metrics_file.replace("metrics", "items", 1) + "l"


def write_metrics(
    path: Path, protocol: Any, split: str, metrics: list[Any], details: dict[str, Any], scored: Any
) -> None:
    """Write a file of metrics whole or not at all."""
    from importlib.metadata import version

    content = {
        "protocol": protocol.name,
        "split": split,
        "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "metrics": [metric if isinstance(metric, dict) else metric.to_dict() for metric in metrics],
        "details": {**details, "protocol": protocol.to_dict()},
        "versions": {
            name: version(name) for name in ("speech2image", "torch", "torch_fidelity", "torchmetrics")
        },
        "weights": {"run": scored.info["run_id"]},
    }
    write_whole(path, (json.dumps(content, indent=1) + "\n").encode())


def item_lines(
    records: Sequence[dict[str, Any]], hits: Sequence[dict[str, bool]], ranks: np.ndarray, nearest: Any
) -> list[dict[str, Any]]:
    """Return one line for each generated image, for `items.jsonl`.

    Args:
        records: their lines of the manifest.
        hits: attributes named by the utterance, and whether the image shows them.
        ranks: rank of the right real image, from 1; 0: not known.
        nearest: nearest training images, keys of training images and flags of copies; None: not looked for.
    """
    from speech2image.metrics.copies import nearest_keys

    found: Sequence[Any] = [None] * len(records)
    if nearest is not None:
        found = [
            line | {"copy": bool(flag)}
            for line, flag in zip(nearest_keys(nearest[0], nearest[1]), nearest[2], strict=True)
        ]
    return [
        {
            **{
                key: record.get(key)
                for key in ("file", "utterance", "image_key", "class_id", "sample", "seed")
            },
            "hits": hits[row],
            "rank": int(ranks[row]) or None,
            "nearest_train": found[row],
        }
        for row, record in enumerate(records)
    ]


def write_items(path: Path, items: Sequence[dict[str, Any]]) -> None:
    """Write one JSON line for each generated image, whole or not at all."""
    write_whole(path, "".join(json.dumps(item) + "\n" for item in items).encode())


def table(metrics: Sequence[Any]) -> list[str]:
    """Return metrics as aligned lines, bounds and controls in a block below: value, interval, count, chance."""
    width = max([28, *(len(_field(metric, "name")) + 2 for metric in metrics)])
    lines = [f"  {'metric':<{width}}{'value':>10}  {'95 % interval':<22}{'count':>7}  chance"]
    blocks = [
        [metric for metric in metrics if is_bound(_field(metric, "name")) is bound] for bound in (False, True)
    ]
    lines += [_line(metric, width) for metric in blocks[0]]
    if blocks[1]:
        lines += ["  bounds and controls", *(_line(metric, width) for metric in blocks[1])]
    return lines


def _field(metric: Any, name: str) -> Any:
    return metric[name] if isinstance(metric, dict) else getattr(metric, name)


def _line(metric: Any, width: int) -> str:
    name, value, low, high, chance, unit, count = (
        _field(metric, key) for key in ("name", "value", "low", "high", "chance", "unit", "count")
    )
    scale, suffix = (100.0, " %") if unit == "fraction" else (1.0, "")
    spread = "" if low is None or high is None else f"[{low * scale:.4g}, {high * scale:.4g}]"
    shown = "" if chance is None else f"{chance * scale:.4g}{suffix}"
    return f"  {name:<{width}}{f'{value * scale:.4g}{suffix}':>10}  {spread:<22}{count:>7}  {shown}".rstrip()
