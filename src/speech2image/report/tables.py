"""Writes numbers: formats, the overview of runs, the Markdown table and the CSV file.

Here a metric becomes text, always with its interval, count, chance and protocol.  Own numbers and
published numbers never share a table.  The HTML forms of these tables are in `template.py`.
"""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from speech2image.report.collect import Metric, Run
from speech2image.report.published import SOURCES, PublishedTable

CSV_FIELDS = (
    "corpus", "run_id", "label", "stage", "encoder", "generator", "status", "train_step", "train_seconds",
    "parameters", "metric", "value", "low", "high", "level", "count", "chance", "unit", "higher_is_better",
    "protocol", "split", "note", "folder",
)  # fmt: skip

CONTROLS = frozenset({"shuffled_speech", "probe_accuracy"})
"""Families of metrics that check the measurement, not the run: never marked as best."""

_ORDER = (
    "attribute_accuracy/mean", "class_accuracy", "recall@10", "recall@1", "recall", "fid", "kid",
    "inception_score", "map", "ap", "shuffled_speech", "probe_accuracy/mean",
)  # fmt: skip


@dataclass(frozen=True)
class Cell:
    """One number as text: value, interval, count and chance; `best` of its column or `tied` with it."""

    value: str
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
    cells: tuple[Cell | None, ...]

    @property
    def notes(self) -> list[str]:
        """What the metric says about itself, each note once."""
        return list(dict.fromkeys(cell.note for cell in self.cells if cell is not None and cell.note))


def columns(runs: Sequence[Run]) -> list[Column]:
    """Lay the metrics of `runs` out as columns; different protocols never share one."""
    found: dict[tuple[str, str, str, str], dict[int, Metric]] = {}
    for position, run in enumerate(runs):
        for metric in run.metrics:
            found.setdefault(metric.identity, {})[position] = metric
    made = [_column(by_run, len(runs)) for by_run in found.values()]
    return sorted(made, key=lambda column: metric_rank(column.name))


def _column(by_run: Mapping[int, Metric], num_runs: int) -> Column:
    some = next(iter(by_run.values()))
    sign = 1.0 if some.higher_is_better else -1.0
    values = {
        position: sign * metric.value for position, metric in by_run.items() if metric.value is not None
    }
    top = max(values.values(), default=None)
    is_race = len(values) > 1 and metric_family(some.name) not in CONTROLS
    leaders = [position for position, value in values.items() if value == top] if is_race else []
    cells: list[Cell | None] = []
    for position in range(num_runs):
        metric = by_run.get(position)
        if metric is None:
            cells.append(None)
            continue
        best = position in leaders
        tied = bool(leaders) and not best and _overlap(metric, by_run[leaders[0]])
        cells.append(_cell(metric, best, tied))
    arrow = "" if metric_family(some.name) in CONTROLS else "↑" if some.higher_is_better else "↓"
    return Column(some.name, readable(some.name), arrow, some.protocol, some.split, tuple(cells))


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
    return Cell(
        value=number(metric.value, metric.unit, decimals),
        interval=interval,
        count="" if metric.count is None else f"n = {metric.count:,}",
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


def metric_rank(name: str) -> int:
    """Return the place of a metric in tables, the headline first."""
    if name in _ORDER:
        return _ORDER.index(name)
    rest = len(_ORDER) + (metric_family(name) in CONTROLS)
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
        "map": "mAP",
        "lr": "learning rate",
    }
    plain = name.removeprefix("val_").replace("/", ", ").replace("_", " ")
    return short.get(name.removeprefix("val_").lower(), plain)


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
    if isinstance(value, int | float) and not isinstance(value, bool):
        for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
            if value >= size:
                return f"{value / size:.3g} {letter}"
        return str(int(value))
    if isinstance(value, Mapping):
        return ", ".join(f"{readable(str(name))} {parameters(part)}" for name, part in value.items() if part)
    return "–"


def train_seconds(run: Run) -> float | None:
    """Return the training time of `run` from run.json, else from the times in its journal."""
    value = run.about.get("train_seconds")
    return float(value) if isinstance(value, int | float) and value > 0 else run.journal.seconds


def train_step(run: Run) -> int | None:
    """Return the steps `run` was trained for, from run.json, else from its journal."""
    value = run.about.get("train_step")
    if isinstance(value, int | float) and value > 0:
        return int(value)
    lasts = [int(curve.steps[-1]) for curve in run.journal.train.values() if len(curve.steps)]
    return max(lasts, default=None)


def markdown(
    title: str, sections: Mapping[str, Sequence[Run]], tables: Mapping[str, PublishedTable | None]
) -> str:
    """Return the tables of all corpora as Markdown, published numbers in tables of their own."""
    lines = [f"# {_plain(title)}", ""]
    for corpus, runs in sections.items():
        lines += [f"## {_plain(corpus)}", ""]
        for kind in dict.fromkeys(run.kind for run in runs):
            lines += [*_own_lines([run for run in runs if run.kind == kind]), ""]
        gaps = [f"- {_plain(run.label)}: {_plain(gap)}" for run in runs for gap in run.gaps]
        lines += [*(["Missing or damaged:", "", *gaps, ""] if gaps else [])]
        table = tables.get(corpus)
        if table is not None:
            lines += [*_published_lines(table), ""]
    return "\n".join(lines).rstrip() + "\n"


def _own_lines(runs: Sequence[Run]) -> list[str]:
    made = columns(runs)
    heads = ["run", "encoder", "generator", "steps", "training time", "parameters"]
    heads += [f"{column.title} {column.arrow} ({column.protocol}, {column.split})" for column in made]
    lines = [
        f"Own numbers, {_plain(runs[0].kind)} runs: value [low, high] (count, chance); best in bold.",
        "",
    ]
    lines += ["| " + " | ".join(map(_plain, heads)) + " |", "|" + " --- |" * len(heads)]
    for position, run in enumerate(runs):
        step = train_step(run)
        words = [run.label, run.encoder or "–", run.generator or "–", "–" if step is None else f"{step:,}"]
        words += [duration(train_seconds(run)), parameters(run.about.get("parameters"))]
        cells = [_markdown_cell(column.cells[position]) for column in made]
        lines.append("| " + " | ".join([*map(_plain, words), *cells]) + " |")
    return lines


def _markdown_cell(cell: Cell | None) -> str:
    if cell is None:
        return "–"
    value = f"**{cell.value}**" if cell.best else cell.value
    extra = ", ".join(text for text in (cell.count, cell.chance) if text)
    return " ".join(text for text in (value, cell.interval, f"({extra})" if extra else "") if text)


def _published_lines(table: PublishedTable) -> list[str]:
    lines = [f"Published numbers, {table.title}. {table.caution}", ""]
    heads = ["method", "input", *table.metrics, "source", "note"]
    lines += ["| " + " | ".join(heads) + " |", "|" + " --- |" * len(heads)]
    for row in table.rows:
        name, address = SOURCES[row.source]
        source = f"[{name}]({address})" if address else name
        values = [row.values.get(metric, "–") for metric in table.metrics]
        lines.append("| " + " | ".join([row.method, row.input, *values, source, row.note]) + " |")
    return lines


def comma_separated(runs: Sequence[Run]) -> str:
    """Return one CSV line a run and metric (a run without metrics: one line), full precision."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(CSV_FIELDS)
    for run in runs:
        lead: list[Any] = [run.corpus, run.run_id, run.label, run.stage, run.encoder, run.generator]
        lead += [run.about.get("status", ""), train_step(run), train_seconds(run)]
        lead += [parameters(run.about.get("parameters"))]
        for metric in run.metrics or (None,):
            middle: list[Any] = [""] * 12
            if metric is not None:
                middle = [metric.name, metric.value, metric.low, metric.high, metric.level, metric.count]
                middle += [metric.chance, metric.unit, metric.higher_is_better, metric.protocol]
                middle += [metric.split, metric.note]
            writer.writerow([_safe(value) for value in [*lead, *middle, run.path.name]])
    return buffer.getvalue()


def _plain(text: str) -> str:
    return " ".join(str(text).split()).replace("|", "\\|").replace("<", "&lt;")


def _safe(value: Any) -> Any:
    """Keep spreadsheets from reading text as a formula."""
    return f"'{value}" if isinstance(value, str) and value[:1] in ("=", "+", "-", "@") else value
