"""Reads journals: the append-only JSON lines a training run leaves behind.

Here are the curves of a run as arrays, made from `journal.jsonl`, what training said, and `clock.jsonl`, what the
clock said; older journals hold both.  Lines may be cut at the end (a killed run) or repeated (a run resumed from an
earlier step).  Drawing them is in `curves.py`; everything else of a run folder is read in `collect.py`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from speech2image.safe.records import read_json, read_limited

NOT_SCALARS = frozenset({"step", "time", "kind", "epoch", "cpu_seconds", "event"})
PAUSE_S = 300.0
"""A longer silence between two lines of an older journal is a pause of a killed run, not training."""
TOLD_EVENTS = ("note", "preempted", "pretrained")
"""What of the clock's events is an event of the run; `start` and `end` bound its sessions."""


@dataclass(frozen=True)
class Curve:
    """One scalar over training steps.

    Attributes:
        steps: `(N,)` int64, increasing, each step once.
        values: `(N,)` float64; NaN where training wrote NaN or infinity.
    """

    steps: np.ndarray
    values: np.ndarray


@dataclass(frozen=True)
class Journal:
    """Everything a journal says.

    Attributes:
        train: scalar name to its curve, from lines of kind `train`.
        val: scalar name to its curve, from lines of kind `val`.
        events: lines of kind `event`, in order, and those of the clock that tell something.
        num_lines: readable lines.
        num_damaged: lines that are no JSON object with a step (usually one, cut by a kill).
        num_repeated: lines whose step was written again later; the later line counts.
        seconds: time between the first and the last line, or None without times.
        elapsed: step to seconds of the clock since the first line, pauses left out.
        processor: step to seconds of processor time, from lines that carry `cpu_seconds`.
    """

    train: Mapping[str, Curve] = field(default_factory=dict)
    val: Mapping[str, Curve] = field(default_factory=dict)
    events: tuple[Mapping[str, Any], ...] = ()
    num_lines: int = 0
    num_damaged: int = 0
    num_repeated: int = 0
    seconds: float | None = None
    elapsed: Mapping[int, float] = field(default_factory=dict)
    processor: Mapping[int, float] = field(default_factory=dict)


def read_journal(path: Path) -> Journal:
    """Read `path`; damaged lines are counted, never fatal.

    Args:    path: `journal.jsonl` of a run folder.
    Returns: the curves, the events and the counts.
    Raises:  OSError: `path` cannot be read.
    """
    lines, num_damaged = read_json_lines(path)
    steps = [line for line in lines if _is_bounded(line.get("step"))]
    num_damaged += len(lines) - len(steps)
    clock = _read_clock(path.with_name("clock.jsonl"))
    rates = [line for line in clock if "event" not in line]
    train, train_repeated = _curves([line for line in steps if line.get("kind", "train") == "train"])
    val, val_repeated = _curves([line for line in steps if line.get("kind") == "val"])
    for name, curve in _curves(rates)[0].items():
        (val if name.startswith("val_") else train).setdefault(name, curve)
    elapsed = _elapsed(clock or steps, PAUSE_S if not clock else math.inf)
    events = [line for line in steps if line.get("kind") == "event"]
    return Journal(
        train=train,
        val=val,
        events=(*events, *(line for line in clock if line.get("event") in TOLD_EVENTS)),
        num_lines=len(steps),
        num_damaged=num_damaged,
        num_repeated=train_repeated + val_repeated,
        seconds=_seconds(steps) if not clock else max(elapsed.values(), default=None),
        elapsed=elapsed,
        processor={int(line["step"]): float(line["cpu_seconds"]) for line in (*steps, *clock)
                   if _is_bounded(line.get("cpu_seconds"))},
    )  # fmt: skip


def _read_clock(path: Path) -> list[dict[str, Any]]:
    """Return the lines of the clock that led to the end: what a session did beyond its last checkpoint is lost."""
    try:
        lines, _ = read_json_lines(path)
    except OSError:
        return []
    kept: list[dict[str, Any]] = []
    for line in lines:
        if not _is_bounded(line.get("step")):
            continue
        if line.get("event") == "start":
            kept = [earlier for earlier in kept if earlier["step"] <= line["step"]]
        kept.append(line)
    return kept


def _seconds(lines: list[dict[str, Any]]) -> float | None:
    times = [float(line["time"]) for line in lines if _is_bounded(line.get("time"))]
    return max(times) - min(times) if len(times) > 1 else None


def read_json_lines(path: Path) -> tuple[list[dict[str, Any]], int]:
    """Read a JSON-lines file; return its objects and the number of lines that are none."""
    objects: list[dict[str, Any]] = []
    num_damaged = 0
    for line in read_limited(path).splitlines():
        if not line.strip():
            continue
        try:
            value = read_json(line)
        except ValueError:
            value = None
        if isinstance(value, dict):
            objects.append(value)
        else:
            num_damaged += 1
    return objects, num_damaged


def smooth(values: np.ndarray, span: float) -> np.ndarray:
    """Return the exponential moving average of `values` `(N,)`, unbiased at the start.

    Args:
        values: `(N,)` float64; NaN are skipped and stay NaN.
        span: number of points over which the weight falls by about e^2, at least 1.

    Source: debiased average as in Adam (Kingma and Ba 2015, section 3).

    >>> smooth(np.array([2.0, 2.0, 2.0]), span=5.0).round(6).tolist()
    [2.0, 2.0, 2.0]
    """
    decay = 1.0 - 2.0 / (max(span, 1.0) + 1.0)
    smoothed = np.full(len(values), np.nan)
    total, weight = 0.0, 0.0
    for position, value in enumerate(values):
        if math.isfinite(value):
            total = decay * total + (1.0 - decay) * float(value)
            weight = decay * weight + (1.0 - decay)
            smoothed[position] = total / weight
    return smoothed


def thin(curve: Curve, max_points: int) -> Curve:
    """Return `curve` with at most `max_points` points, each the mean of its neighbours."""
    if len(curve.steps) <= max_points:
        return curve
    edges = np.linspace(0, len(curve.steps), max_points + 1).astype(np.int64)
    starts, counts = edges[:-1], np.diff(edges)
    values = np.add.reduceat(curve.values, starts) / counts
    return Curve(steps=curve.steps[edges[1:] - 1], values=values)


def _elapsed(lines: list[dict[str, Any]], pause_s: float) -> dict[int, float]:
    """Return step to seconds since the first line, without longer pauses and those between sessions."""
    elapsed: dict[int, float] = {}
    total, before = 0.0, None
    for line in lines:
        if not _is_bounded(line.get("time")):
            continue
        now = float(line["time"])
        gap = 0.0 if before is None or line.get("event") == "start" else now - before
        total += gap if 0.0 < gap <= pause_s else 0.0
        before = now
        elapsed[int(line["step"])] = total
    return elapsed


def _curves(lines: list[dict[str, Any]]) -> tuple[dict[str, Curve], int]:
    points: dict[str, dict[int, float]] = {}
    seen: set[tuple[int, frozenset[str]]] = set()
    num_repeated = 0
    for line in lines:
        scalars = {name: line[name] for name in line if name not in NOT_SCALARS and _is_number(line[name])}
        mark = (int(line["step"]), frozenset(scalars))
        num_repeated += mark in seen
        seen.add(mark)
        for name, value in scalars.items():
            number = float(value)
            points.setdefault(name, {})[mark[0]] = number if math.isfinite(number) else math.nan
    curves = {}
    for name, values in points.items():
        steps = sorted(values)
        curves[name] = Curve(np.array(steps, dtype=np.int64), np.array([values[step] for step in steps]))
    return curves, num_repeated


def _is_bounded(value: Any) -> bool:
    """Whether a value may be a step or a time: a number that arrays of whole numbers hold, and so are sums of it."""
    return _is_number(value) and abs(value) < 2**53


def _is_number(value: Any) -> bool:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and not (isinstance(value, int) and abs(value) > 10**300)
