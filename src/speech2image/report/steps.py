"""Quality against the number of steps: one line a sampler, as a figure, a table and a PNG.

Here the evaluations of one run under several samplers are laid side by side.  They are read in
`collect.py`; charts over training steps are in `curves.py`, the page around them in `template.py`.
"""

from __future__ import annotations

import html
import io
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from speech2image.report.collect import Run
from speech2image.report.curves import NUM_COLOURS, ticks
from speech2image.report.measures import Metric, Sampling
from speech2image.report.tables import duration, is_control, metric_rank, number, readable

WIDTH_PX, HEIGHT_PX = 640, 330
LEFT_PX, RIGHT_PX, TOP_PX, BOTTOM_PX = 58, 16, 14, 44
_COLOURS = ("#2f6fde", "#d9622b", "#159a72", "#b04ac0", "#b58900", "#1798b8", "#cf3d67", "#6b7280")
_OPEN = ("name", "steps")


@dataclass(frozen=True)
class StepsRow:
    """One point: which line it belongs to, where it stands, and its numbers as text."""

    line: int
    sampler: str
    steps: str
    calls: int
    metric: Metric
    value: str
    interval: str
    time: str


@dataclass(frozen=True)
class StepsFigure:
    """The figure of one run: title, what all points share, lines in the order of their colours, points."""

    label: str
    metric: str
    about: str
    lines: tuple[str, ...]
    rows: tuple[StepsRow, ...]

    @property
    def file(self) -> str:
        """Return the name of its PNG."""
        return f"quality_against_steps_{re.sub(r'[^A-Za-z0-9]+', '_', self.label).strip('_')}.png"

    @property
    def arrow(self) -> str:
        """Return which way is better."""
        return "↑" if self.rows[0].metric.higher_is_better else "↓"

    def colour(self, line: int) -> str:
        """Return the class of a line's colour."""
        return f"c{line % NUM_COLOURS}"


def steps_figure(run: Run) -> StepsFigure | None:
    """Lay the evaluations of a run under several samplers out; None where there is one at most."""
    chosen = _headline(run.samplings)
    if chosen is None:
        return None
    points = [(one, metric) for one in run.samplings for metric in one.metrics if metric.identity == chosen]
    shared = _shared([one.sampler for one, _ in points])
    labels = _line_labels([one.sampler for one, _ in points], shared)
    lines = tuple(dict.fromkeys(sorted(labels)))
    rows = [
        StepsRow(
            lines.index(label), label, str(one.sampler.get("steps", "")), one.calls, metric,
            number(metric.value, metric.unit), _interval(metric), duration(one.seconds_per_image),
        )
        for (one, metric), label in zip(points, labels, strict=True)
    ]  # fmt: skip
    rows.sort(key=lambda row: (row.line, row.calls, row.steps))
    same = ", ".join(f"{readable(key)} {value}" for key, value in shared.items())
    first = rows[0].metric
    about = f"{first.protocol}, {first.split}; n = {first.count:,}" if first.count else first.protocol
    devices = dict.fromkeys(one.machine for one, _ in points if one.machine)
    about = "; ".join(part for part in (about, same, *devices) if part)
    return StepsFigure(run.label, readable(first.name), about, lines, tuple(rows))


def _headline(samplings: Sequence[Sampling]) -> tuple[str, str, str, str] | None:
    """Choose the metric most points have; of those, the one that stands first in every table."""
    found = [metric for one in samplings for metric in one.metrics if metric.value is not None]
    times = Counter(metric.identity for metric in found if not is_control(metric.name))
    many = [identity for identity, count in times.items() if count > 1 and count == max(times.values())]
    return min(many, key=lambda identity: (metric_rank(identity[0]), identity), default=None)


def _shared(samplers: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    first = samplers[0]
    return {
        key: value
        for key, value in first.items()
        if key not in _OPEN and all(key in one and one[key] == value for one in samplers)
    }


def _line_labels(samplers: Sequence[Mapping[str, Any]], shared: Mapping[str, Any]) -> list[str]:
    """Name each line by its sampler; by more where one sampler was tried with several settings."""
    own = [{k: v for k, v in one.items() if k not in _OPEN and k not in shared} for one in samplers]
    names = [str(one.get("name", "sampler")) for one in samplers]
    labels = []
    for name, settings in zip(names, own, strict=True):
        rivals = [other for rival, other in zip(names, own, strict=True) if rival == name]
        odd = {k: v for k, v in settings.items() if any(rival.get(k) != v for rival in rivals)}
        labels.append(", ".join([name, *(f"{readable(k)} {v}" for k, v in sorted(odd.items()))]))
    return labels


def _interval(metric: Metric) -> str:
    if metric.low is None or metric.high is None:
        return ""
    ends = [number(end, metric.unit).removesuffix(" %") for end in (metric.low, metric.high)]
    return f"[{', '.join(ends)}]"


# ---- drawing ----------------------------------------------------------------------------------
@dataclass(frozen=True)
class _Mark:
    """One point in the units of the axes."""

    line: int
    calls: int
    value: float
    low: float
    high: float


def _marks(figure: StepsFigure) -> list[_Mark]:
    scale = 100.0 if figure.rows[0].metric.unit == "fraction" else 1.0
    marks = []
    for row in figure.rows:
        value = (row.metric.value or 0.0) * scale
        low, high = row.metric.low, row.metric.high
        ends = (value, value) if low is None or high is None else (low * scale, high * scale)
        marks.append(_Mark(row.line, max(row.calls, 1), value, *ends))
    return marks


def _axis_title(figure: StepsFigure) -> str:
    return figure.metric + (", %" if figure.rows[0].metric.unit == "fraction" else "")


def draw_svg(figure: StepsFigure) -> str:
    """Draw a figure as SVG text whose colours follow the page."""
    marks = _marks(figure)
    low, high = min(mark.low for mark in marks), max(mark.high for mark in marks)
    margin = 0.08 * (high - low) or 1.0
    low, high = low - margin, high + margin
    calls = sorted({mark.calls for mark in marks})
    left, right = math.log2(calls[0]) - 0.2, math.log2(calls[-1]) + 0.2

    def x(mark_calls: int, line: int | None = None) -> float:
        share = (math.log2(mark_calls) - left) / (right - left)
        aside = 0.0 if line is None else 3.0 * (line - (len(figure.lines) - 1) / 2)
        return LEFT_PX + share * (WIDTH_PX - LEFT_PX - RIGHT_PX) + aside

    def y(value: float) -> float:
        return TOP_PX + (high - value) / (high - low) * (HEIGHT_PX - TOP_PX - BOTTOM_PX)

    parts = []
    for tick in ticks(low, high, 5):
        parts.append(f'<path class="rule" d="M{LEFT_PX} {y(tick):.1f}H{WIDTH_PX - RIGHT_PX}"/>')
        parts.append(f'<text x="{LEFT_PX - 7}" y="{y(tick) + 4:.1f}" text-anchor="end">{tick:g}</text>')
    written = -math.inf
    for count in calls:
        if x(count) - written > 22:  # labels that would touch are left out
            parts.append(f'<text x="{x(count):.1f}" y="{HEIGHT_PX - 26}" text-anchor="middle">{count}</text>')
            written = x(count)
    parts.append(f'<path class="axis" d="M{LEFT_PX} {HEIGHT_PX - BOTTOM_PX}H{WIDTH_PX - RIGHT_PX}"/>')
    middle = (LEFT_PX + WIDTH_PX - RIGHT_PX) / 2
    parts.append(
        f'<text x="{middle}" y="{HEIGHT_PX - 7}" text-anchor="middle">calls of the network an image</text>'
    )
    for line in range(len(figure.lines)):
        own, colour = [mark for mark in marks if mark.line == line], figure.colour(line)
        path = "L".join(f"{x(mark.calls, line):.1f} {y(mark.value):.1f}" for mark in own)
        whiskers = "".join(f"M{x(mark.calls, line):.1f} {y(mark.low):.1f}V{y(mark.high):.1f}" for mark in own)
        parts.append(
            f'<path class="whisker {colour}" d="{whiskers}"/><path class="line {colour}" d="M{path}"/>'
        )
        parts += [
            f'<circle class="dot {colour}" r="3.5" cx="{x(mark.calls, line):.1f}" cy="{y(mark.value):.1f}"/>'
            for mark in own
        ]
    said = html.escape(
        f"{_axis_title(figure)} against calls of the network: "
        + "; ".join(f"{row.sampler} {row.calls} calls {row.value}" for row in figure.rows), quote=True,
    )  # fmt: skip
    return f'<svg viewBox="0 0 {WIDTH_PX} {HEIGHT_PX}" role="img" aria-label="{said}">{"".join(parts)}</svg>'


def draw_png(figure: StepsFigure) -> bytes:
    """Draw a figure as a PNG; equal numbers give equal bytes."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    canvas = Figure(figsize=(7.0, 4.2), dpi=160, layout="constrained")
    FigureCanvasAgg(canvas)
    axes = canvas.add_subplot()
    marks = _marks(figure)
    for line, name in enumerate(figure.lines):
        own = [mark for mark in marks if mark.line == line]
        whiskers = [[mark.value - mark.low for mark in own], [mark.high - mark.value for mark in own]]
        aside = 2.0 ** (0.02 * (line - (len(figure.lines) - 1) / 2))
        axes.errorbar(
            [mark.calls * aside for mark in own], [mark.value for mark in own], yerr=whiskers, label=name,
            color=_COLOURS[line % len(_COLOURS)], marker="o", markersize=4, linewidth=1.6, elinewidth=1.1,
            capsize=2.5,
        )  # fmt: skip
    calls = sorted({mark.calls for mark in marks})
    shown = [count for place, count in enumerate(calls) if place == 0 or count / calls[place - 1] > 1.09]
    axes.set_xscale("log", base=2)
    axes.set_xticks(shown, [str(count) for count in shown])
    axes.minorticks_off()
    axes.set_xlabel("calls of the network an image")
    axes.set_ylabel(f"{_axis_title(figure)} {figure.arrow}")
    axes.set_title(f"{figure.label}\n{figure.about}", fontsize=8, loc="left", color="#5c646e", wrap=True)
    axes.grid(axis="y", color="#e3e1dc")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8)
    buffer = io.BytesIO()
    canvas.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


def steps_markdown(figures: Sequence[StepsFigure]) -> str:
    """Return the tables of the figures as Markdown, each with its PNG; empty where there is none."""
    lines: list[str] = []
    for figure in figures:
        lines += [f"\n## Quality against steps: {figure.label}\n", f"{figure.about}\n"]
        lines += [f"![{figure.metric} against calls of the network]({figure.file})\n"]
        lines += [f"| sampler | steps | calls | {figure.metric} {figure.arrow} | time an image |"]
        lines += ["|" + " --- |" * 5]
        lines += [
            f"| {row.sampler} | {row.steps} | {row.calls} | {row.value} {row.interval} | {row.time} |"
            for row in figure.rows
        ]
    return "\n".join(lines) + "\n" if lines else ""
