"""Quality against compute: each run a point, its headline metric over what training or painting cost.

Here the points are gathered and drawn; time by the clock and processor time are never mixed in one
figure.  Quality against the steps of one model's sampler is in `steps.py`.
"""

from __future__ import annotations

import html
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from speech2image.report.collect import Run
from speech2image.report.costs import costs_of
from speech2image.report.curves import Chart, draw_chart, ticks
from speech2image.report.journal import Curve
from speech2image.report.measures import Metric
from speech2image.report.stages import Stage
from speech2image.report.tables import duration, metric_family, number

WIDTH_PX, HEIGHT_PX = 600, 330
LEFT_PX, RIGHT_PX, TOP_PX, BOTTOM_PX = 58, 18, 14, 44
MAX_LABELS = 12
LETTER_PX = 6.0
Cost = Callable[[Run], float | None]
#: Validation numbers that say how good the pictures are.
QUALITY = ("fid", "kid", "attribute_accuracy", "inception_score", "precision", "recall", "class_accuracy")


@dataclass(frozen=True)
class Point:
    """One run: where it stands, its interval, its colour and what the pointer reads on it."""

    label: str
    colour: str
    cost: float
    value: float
    low: float
    high: float
    about: str


@dataclass(frozen=True)
class Figure:
    """One figure: headline metric over one cost, `note` says what a reader must know of the axis."""

    title: str
    axis: str
    note: str
    svg: str
    points: tuple[Point, ...]


def compute_figures(stage: Stage, colours: Mapping[Run, str]) -> list[Figure]:
    """Draw the headline metric of a table against training time and against the time of an image.

    Args:
        stage: one table.
        colours: run to the class of its colour.
    """
    if not stage.headlines:
        return []
    head = stage.headlines[0]
    found: list[tuple[Run, Metric]] = []
    for run in stage.runs:
        own = [metric for metric in run.metrics if (metric.name, metric.protocol, metric.split) ==
               (head.name, head.protocol, head.split) and metric.value is not None]  # fmt: skip
        found += [(run, own[0])] if own else []
    has_processor = [costs_of(run).train_cpu_seconds is not None for run, _ in found]
    note = "" if not any(has_processor) or all(has_processor) else "Some runs recorded no processor time."
    training: Cost = lambda run: costs_of(run).train_seconds
    axis = "training time by the clock"
    if found and all(has_processor):
        training, axis = (lambda run: costs_of(run).train_cpu_seconds), "processor time of training"
    title = f"{head.title} {head.arrow}".strip()
    painting: Cost = lambda run: costs_of(run).seconds_per_image
    made = [
        _figure(title, axis, _lacking(found, training, note), _points(found, training, colours)),
        _figure(title, "time to paint an image", _lacking(found, painting, _machines(found)),
                _points(found, painting, colours)),
    ]  # fmt: skip
    return [figure for figure in made if figure is not None]


def _lacking(found: Sequence[tuple[Run, Metric]], cost: Cost, note: str) -> str:
    """Return `note`, and which runs are not in the figure because they recorded no time."""
    lacking = [run.label for run, _ in found if not cost(run)]
    said = (
        f"Not recorded for {', '.join(lacking)}."
        if len(lacking) < 4
        else f"{len(lacking)} runs recorded none."
    )
    return f"{note} {said}".strip() if lacking else note


def _machines(found: Sequence[tuple[Run, Metric]]) -> str:
    machines = dict.fromkeys(machine for run, _ in found if (machine := costs_of(run).machine))
    return f"Timed on {' and '.join(machines)}." if machines else ""


def _points(found: Sequence[tuple[Run, Metric]], cost: Cost, colours: Mapping[Run, str]) -> list[Point]:
    points = []
    for run, metric in found:
        spent = cost(run)
        if spent is None or spent <= 0 or metric.value is None:
            continue
        scale = 100.0 if metric.unit == "fraction" else 1.0
        low = metric.value if metric.low is None else metric.low
        high = metric.value if metric.high is None else metric.high
        about = f"{run.label}: {number(metric.value, metric.unit)} after {duration(spent)}"
        points.append(Point(run.label, colours[run], spent, metric.value * scale, low * scale, high * scale,
                            about))  # fmt: skip
    return points


def _figure(title: str, axis: str, note: str, points: Sequence[Point]) -> Figure | None:
    if len(points) < 2:
        return None
    return Figure(title, axis, note, _draw(title, axis, points), tuple(points))


# ---- drawing ----------------------------------------------------------------------------------
def _draw(title: str, axis: str, points: Sequence[Point]) -> str:
    low, high = min(point.low for point in points), max(point.high for point in points)
    margin = 0.08 * (high - low) or 1.0
    low, high = low - margin, high + margin
    costs = [point.cost for point in points]
    is_log = max(costs) / min(costs) > 4.0
    unit, scale = _unit(max(costs))
    left, right = (math.log10(min(costs)), math.log10(max(costs))) if is_log else (0.0, max(costs))
    pad = 0.06 * (right - left) or 0.1
    left, right = (left - pad if is_log else left), right + pad

    def x(cost: float) -> float:
        share = ((math.log10(cost) if is_log else cost) - left) / (right - left)
        return LEFT_PX + share * (WIDTH_PX - LEFT_PX - RIGHT_PX)

    def y(value: float) -> float:
        return TOP_PX + (high - value) / (high - low) * (HEIGHT_PX - TOP_PX - BOTTOM_PX)

    parts = []
    for tick in ticks(low, high, 5):
        parts.append(f'<path class="rule" d="M{LEFT_PX} {y(tick):.1f}H{WIDTH_PX - RIGHT_PX}"/>')
        parts.append(f'<text x="{LEFT_PX - 7}" y="{y(tick) + 4:.1f}" text-anchor="end">{tick:g}</text>')
    marks = _log_ticks(10.0**left / scale, 10.0**right / scale) if is_log else ticks(0.0, right / scale, 5)
    for tick in marks:
        at = x(tick * scale) if tick > 0 or not is_log else LEFT_PX
        parts.append(f'<path class="axis" d="M{at:.1f} {HEIGHT_PX - BOTTOM_PX}v4"/>')
        parts.append(f'<text x="{at:.1f}" y="{HEIGHT_PX - 26}" text-anchor="middle">{tick:g}</text>')
    parts.append(f'<path class="axis" d="M{LEFT_PX} {HEIGHT_PX - BOTTOM_PX}H{WIDTH_PX - RIGHT_PX}"/>')
    middle = (LEFT_PX + WIDTH_PX - RIGHT_PX) / 2
    parts.append(f'<text x="{middle}" y="{HEIGHT_PX - 7}" text-anchor="middle">{axis}, {unit}'
                 f'{" (logarithmic)" if is_log else ""}</text>')  # fmt: skip
    places = [(x(point.cost), y(point.value)) for point in points]
    for point, (at_x, at_y) in zip(points, places, strict=True):
        parts.append(
            f'<g class="{point.colour}"><title>{html.escape(point.about)}</title>'
            f'<path class="whisker {point.colour}" d="M{at_x:.1f} {y(point.low):.1f}V{y(point.high):.1f}"/>'
            f'<circle class="dot {point.colour}" r="4.5" cx="{at_x:.1f}" cy="{at_y:.1f}"/></g>'
        )
    parts += _labels(points, places)
    said = html.escape(f"{title} against {axis}: " + "; ".join(point.about for point in points), quote=True)
    return f'<svg viewBox="0 0 {WIDTH_PX} {HEIGHT_PX}" role="img" aria-label="{said}">{"".join(parts)}</svg>'


def _unit(most: float) -> tuple[str, float]:
    if most < 2.0:
        return "ms", 1e-3
    return ("s", 1.0) if most < 180.0 else ("min", 60.0) if most < 10_800.0 else ("h", 3600.0)


def _log_ticks(low: float, high: float) -> list[float]:
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    every = [digit * 10.0**power for power in powers for digit in (1, 2, 5)]
    return [tick for tick in every if low <= tick <= high]


def _labels(points: Sequence[Point], places: Sequence[tuple[float, float]]) -> list[str]:
    """Write names where they fit; a name that fits nowhere is left to the pointer and the legend."""
    taken = [(x - 6, y - 6, x + 6, y + 6) for x, y in places]
    written = []
    order = range(len(points)) if len(points) <= MAX_LABELS else ()
    for place in order:
        (x, y), name = places[place], points[place].label
        width = LETTER_PX * len(name) + 4
        sides = ((x + 9, y + 4), (x - 9 - width, y + 4), (x - width / 2, y - 10), (x - width / 2, y + 20),
                 (x + 9, y - 10), (x + 9, y + 18), (x - 9 - width, y - 10), (x - 9 - width, y + 18))  # fmt: skip
        for left, base in sides:
            box = (left, base - 10, left + width, base + 3)
            inside = (
                box[0] >= LEFT_PX
                and box[2] <= WIDTH_PX
                and TOP_PX - 4 <= box[1]
                and box[3] <= HEIGHT_PX - BOTTOM_PX
            )
            if inside and not any(_meet(box, other) for other in taken):
                taken.append(box)
                written.append(f'<text class="name" x="{left:.1f}" y="{base:.1f}">{html.escape(name)}</text>')
                break
    return written


def _meet(one: tuple[float, float, float, float], other: tuple[float, float, float, float]) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


# ---- in training ------------------------------------------------------------------------------
def time_charts(stage: Stage, places: Mapping[Run, int]) -> list[Chart]:
    """Draw validation metrics of quality over processor time, over the clock where that is not known.

    Args:
        stage: one table.
        places: run to the number of its colour.
    """
    found: dict[str, list[tuple[Run, Curve]]] = {}
    for run in stage.runs:
        for name, curve in run.journal.val.items():
            if metric_family(name.removeprefix("val_")) in QUALITY and run.journal.elapsed:
                found.setdefault(name, []).append((run, curve))
    made = []
    is_processor = is_over_processor_time(stage)
    for name, curves in sorted(found.items()):
        lines = [
            (run, line) for run, curve in curves if (line := _timed(run, curve, is_processor)) is not None
        ]
        if not lines:
            continue
        unit, scale = _unit(max(float(line.steps[-1]) for _, line in lines))
        said = [(places[run], run.label, Curve(line.steps / scale, line.values)) for run, line in lines]
        chart = draw_chart(name, "val", said, unit)
        made += [chart] if chart is not None else []
    return made


def is_over_processor_time(stage: Stage) -> bool:
    """Return whether every run of a table can be laid over processor time."""
    return all(run.journal.processor or costs_of(run).train_cpu_seconds for run in stage.runs)


def _timed(run: Run, curve: Curve, is_processor: bool) -> Curve | None:
    """Return `curve` over seconds; processor time the journal lacks is the clock's, scaled to the whole run's."""
    times, factor = run.journal.elapsed, 1.0
    if is_processor and run.journal.processor:
        times = run.journal.processor
    elif is_processor:
        costs = costs_of(run)
        if not costs.train_cpu_seconds or not costs.train_seconds:
            return None
        factor = costs.train_cpu_seconds / costs.train_seconds
    kept = [(times[int(step)] * factor, value) for step, value in zip(curve.steps, curve.values, strict=True)
            if int(step) in times]  # fmt: skip
    if not kept:
        return None
    return Curve(np.array([at for at, _ in kept]), np.array([value for _, value in kept]))
