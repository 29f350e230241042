"""Lays numbers out: formats, columns of one metric under one protocol, what is best, what is a control.

Here a metric becomes text, always with its interval, count, chance and protocol.  Own numbers and
published numbers never share a table.  Files of these tables are written in `exports.py` and
`latex.py`, their HTML forms in `template.py`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from speech2image.report.measures import Metric, number_of

CONTROLS = frozenset({"shuffled_speech", "probe_accuracy", "copies", "fid_bound", "kid_bound"})
"""Families of metrics that check the measurement, not the run: never marked as best."""

_OF_SETS = frozenset({"fid", "kid", "inception_score", "precision", "recall_prdc", "density", "coverage", "map",
                      "r_precision", "clip_score", "classifier_accuracy"})  # fmt: skip
"""Families whose `<family>/<what>` can only be a bound: they have no parts."""
_BOUNDS = frozenset({"real_halves", "noise", "transcript", "text", "nearest_train", "chance", "blank"})

_ORDER = (
    "attribute_accuracy/mean", "class_accuracy", "fid", "inception_score", "map", "recall@50", "recall@10", "recall@1",
    "recall", "kid", "classifier_accuracy", "r_precision", "clip_score", "precision", "recall_prdc", "density",
    "coverage", "ap", "shuffled_speech", "probe_accuracy/mean",
)  # fmt: skip


class Measured(Protocol):
    """A run, or a group of seeds: anything with metrics."""

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """Its numbers."""


@dataclass(frozen=True)
class Cell:
    """One number as text: value, interval, count and chance; `best` of its column or `tied` with it.

    `spread` is the standard deviation over seeds, where there are several.
    """

    value: str
    spread: str
    interval: str
    count: str
    chance: str
    note: str
    exact: str
    best: bool = False
    tied: bool = False


@dataclass(frozen=True)
class Column:
    """One metric under one protocol over all runs; `cells` holds None where a run lacks it."""

    name: str
    title: str
    arrow: str
    protocol: str
    split: str
    unit: str
    cells: tuple[Cell | None, ...]

    @property
    def notes(self) -> list[str]:
        """What the metric says about itself, each note once."""
        return list(dict.fromkeys(cell.note for cell in self.cells if cell is not None and cell.note))


def columns(rows: Sequence[Measured]) -> list[Column]:
    """Lay the metrics of runs or groups out as columns; different protocols never share one."""
    found: dict[tuple[str, str, str, str], dict[int, Metric]] = {}
    for position, row in enumerate(rows):
        for metric in row.metrics:
            found.setdefault(metric.identity, {})[position] = metric
    made = [_column(by_row, len(rows)) for by_row in found.values()]
    return sorted(made, key=lambda column: metric_rank(column.name))


def headlines(made: Sequence[Column], most: int) -> list[Column]:
    """Choose the columns of the main table: the first of each family and protocol, controls never."""
    firsts: dict[tuple[str, str, str], Column] = {}
    for column in made:
        if not is_control(column.name):
            firsts.setdefault((metric_family(column.name), column.protocol, column.split), column)
    return list(firsts.values())[:most]


def _column(by_row: Mapping[int, Metric], num_rows: int) -> Column:
    some = next(iter(by_row.values()))
    sign = 1.0 if some.higher_is_better else -1.0
    values = {
        position: sign * metric.value for position, metric in by_row.items() if metric.value is not None
    }
    top = max(values.values(), default=None)
    is_race = len(values) > 1 and not is_control(some.name)
    leaders = [position for position, value in values.items() if value == top] if is_race else []
    if len(leaders) == len(values):  # all alike: nobody leads
        leaders = []
    cells: list[Cell | None] = []
    for position in range(num_rows):
        metric = by_row.get(position)
        if metric is None:
            cells.append(None)
            continue
        best = position in leaders
        tied = bool(leaders) and not best and _overlap(metric, by_row[leaders[0]])
        cells.append(_cell(metric, best, tied))
    arrow = "" if is_control(some.name) else "↑" if some.higher_is_better else "↓"
    return Column(some.name, readable(some.name), arrow, some.protocol, some.split, some.unit, tuple(cells))


def _cell(metric: Metric, best: bool, tied: bool) -> Cell:
    # The ends of an interval need as many digits as its middle, and a whole number needs some too.
    decimals = _decimals(metric.value or 0.0, metric.unit)
    if metric.low is not None and metric.value is not None and metric.value == int(metric.value):
        decimals = _decimals(metric.low, metric.unit)
    interval, exact = "", repr(metric.value)
    if metric.low is not None and metric.high is not None:
        ends = [number(end, metric.unit, decimals).removesuffix(" %") for end in (metric.low, metric.high)]
        interval = f"[{', '.join(ends)}]"
        level = f"{metric.level:.0%} " if metric.level else ""
        exact = f"{metric.value!r} {level}interval {metric.low!r} to {metric.high!r}"
    count = "" if metric.count is None else f"n = {metric.count:,}"
    spread = ""
    if metric.deviation is not None:
        count = ", ".join(part for part in (f"{metric.num_seeds} seeds", count) if part)
        spread = f"± {number(metric.deviation, metric.unit, decimals).removesuffix(' %')}"
        exact = f"mean {exact}, standard deviation {metric.deviation!r} over {metric.num_seeds} seeds"
    return Cell(
        value=number(metric.value, metric.unit, decimals),
        spread=spread,
        interval=interval,
        count=count,
        chance="" if metric.chance is None else f"chance {number(metric.chance, metric.unit)}",
        note=metric.note,
        exact=exact,
        best=best,
        tied=tied,
    )


def _overlap(one: Metric, other: Metric) -> bool:
    bounds = (one.low, one.high, other.low, other.high)
    if any(bound is None for bound in bounds):
        return False
    return max(one.low or 0.0, other.low or 0.0) <= min(one.high or 0.0, other.high or 0.0)


def metric_family(name: str) -> str:
    """Return the family of a metric: `recall` of `recall@10`."""
    return re.split("[@/]", name, maxsplit=1)[0]


def is_control(name: str) -> bool:
    """Return whether a metric is a bound or a control, which no run can win.

    >>> [is_control(name) for name in ("fid", "fid/noise", "recall/shuffled@50", "recall/image_to_speech@10")]
    [False, True, True, False]
    """
    family = metric_family(name)
    part = name.split("/", 1)[1].split("@")[0] if "/" in name else ""
    known = part in _BOUNDS or part.startswith(("shuffled", "real_"))
    return family in CONTROLS or bool(part) and (family in _OF_SETS or known)


def metric_rank(name: str) -> int:
    """Return the place of a metric in tables, the headline first."""
    if name in _ORDER:
        return _ORDER.index(name)
    rest = len(_ORDER) + is_control(name)
    if is_control(name):
        return rest
    return _ORDER.index(metric_family(name)) if metric_family(name) in _ORDER else rest


def number(value: float | None, unit: str = "", decimals: int | None = None) -> str:
    """Return `value` for reading: about four significant digits, fractions as percent.

    Args:
        value: the number; None: there is none.
        unit: `fraction` is shown as percent; `%`, `s`, `ms` and `px` are written behind it.
        decimals: digits behind the point; None: as many as `value` needs.

    >>> number(0.83456), number(18.374, "%"), number(12345.6), number(0.912, "fraction"), number(None)
    ('0.8346', '18.37 %', '12,346', '91.2 %', 'not a number')
    """
    if value is None:
        return "not a number"
    shown = 100.0 * value if unit == "fraction" else value
    if decimals is None:
        decimals = _decimals(value, unit)
    if shown and abs(shown) < 1e-3:
        text = f"{shown:.2e}"
    elif shown == int(shown) and decimals == 0:
        text = f"{int(shown):,}"
    else:
        text = f"{shown:,.{decimals}f}"
    return (
        f"{text} {'%' if unit == 'fraction' else unit}"
        if unit in ("fraction", "%", "s", "ms", "px")
        else text
    )


def _decimals(value: float, unit: str) -> int:
    """Return the digits behind the point that show about four significant ones."""
    if unit == "fraction":
        return 1 if abs(value) >= 0.1 or value == 0 else 2
    if value == int(value):
        return 0
    return min(max(3 - math.floor(math.log10(abs(value))), 0), 6)


def readable(name: str) -> str:
    """Return a metric's or scalar's name as a reader says it: underscores become blanks."""
    short = {
        "fid": "FID",
        "kid": "KID",
        "inception_score": "Inception score",
        "recall_prdc": "recall of sets",
        "r_precision": "R-precision",
        "clip_score": "CLIP score",
        "map": "mAP",
        "lr": "learning rate",
    }
    family, mark, part = name.removeprefix("val_").partition("/")
    head = short.get(family.lower(), family.replace("_", " "))
    return f"{head}, {part.replace('_', ' ')}" if mark else head


def duration(seconds: float | None) -> str:
    """Return a time span in words.

    >>> duration(692), duration(42.4), duration(7322), duration(None)
    ('11 min 32 s', '42.4 s', '2 h 2 min', '–')
    """
    if seconds is None:
        return "–"
    if seconds < 100:
        return f"{seconds:.3g} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def parameters(value: Any) -> str:
    """Return parameter counts as text: `generator 1.24 M, discriminators 3.4 M`."""
    count = number_of(value)
    if count is not None:
        for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
            if count >= size:
                return f"{count / size:.3g} {letter}"
        return str(int(count))
    if isinstance(value, Mapping):
        return ", ".join(f"{readable(str(name))} {parameters(part)}" for name, part in value.items() if part)
    return "–"
