"""The mean over seeds of generation, with the spread over them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np


def combine_seeds(scores: Sequence[Sequence[Any]], seeds: Sequence[int]) -> list[Any]:
    """Return the mean of each metric over seeds of generation.

    The interval is the mean of the intervals (what other utterances would change), widened where the
    seeds themselves spread further; the values and their standard deviation are in `details`.

    Args:
        scores: metrics of each seed.
        seeds: the seeds; empty: there is one only, and its metrics are returned as they are.
    """
    if not seeds:
        return list(scores[0])
    by_name: dict[str, list[Any]] = {}
    for part in scores:
        for metric in part:
            by_name.setdefault(metric.name, []).append(metric)
    return [_mean(found, seeds) if len(found) == len(seeds) else found[0] for found in by_name.values()]


def _mean(found: Sequence[Any], seeds: Sequence[int]) -> Any:
    values = np.array([metric.value for metric in found])
    lows, highs = ([getattr(metric, end) for metric in found] for end in ("low", "high"))
    low = values.min() if None in lows else min(float(np.mean(lows)), float(values.min()))
    high = values.max() if None in highs else max(float(np.mean(highs)), float(values.max()))
    deviation = float(values.std(ddof=1))
    spread = {"seeds": list(seeds), "seed_values": values.tolist(), "seed_deviation": deviation}
    note = f"mean of {len(seeds)} seeds of generation, deviation {deviation:.3g}"
    return dataclasses.replace(
        found[0], value=float(values.mean()), low=float(low), high=float(high),
        note=f"{found[0].note}; {note}" if found[0].note else note, details={**found[0].details, **spread},
    )  # fmt: skip
