"""Draws curves over training steps, or over time, as small scalable pictures inside the page.

Here a scalar of several runs becomes one SVG whose colours follow the page (light or dark), with
the raw values faint behind a light smoothing.  Reading and smoothing are in `journal.py`.
"""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from speech2image.report.journal import Curve, smooth, thin
from speech2image.report.tables import number, readable

WIDTH_PX, HEIGHT_PX = 420, 210
LEFT_PX, RIGHT_PX, TOP_PX, BOTTOM_PX = 52, 10, 10, 30
MAX_POINTS = 240
NUM_COLOURS = 8


@dataclass(frozen=True)
class Chart:
    """One drawn scalar: its name, the SVG text, and the points a pointer can ask for.

    Attributes:
        points: for each line its run's label, colour number, steps and (smoothed) values.
        view: `[first step, last step, low, high]` of the plotted window.
        unit: what the axis counts: `step`, or a unit of time.
    """

    name: str
    title: str
    kind: str
    svg: str
    points: tuple[Mapping[str, object], ...]
    view: tuple[float, float, float, float]
    unit: str = "step"


def draw_chart(
    name: str,
    kind: str,
    curves: Sequence[tuple[int, str, Curve]],
    unit: str = "step",
    max_points: int = MAX_POINTS,
) -> Chart | None:
    """Draw one scalar of several runs.

    Args:
        name: the scalar as the journal calls it.
        kind: `train` (smoothed, raw values faint) or `val` (every point marked, no smoothing).
        curves: for each run the number of its colour, its label and its curve.
        unit: what the curves' steps count.
        max_points: points kept of a curve, each the mean of its neighbours.
    Returns: the chart, or None where no run has a finite value.
    """
    lines = [(place, label, thin(curve, max_points)) for place, label, curve in curves]
    lines = [line for line in lines if np.isfinite(line[2].values).any()]
    if not lines:
        return None
    first, last = _steps(lines)
    smoothed = [_drawn(line[2], kind) for line in lines]
    low, high = _range(smoothed, [line[2].values for line in lines], kind)
    view = (first, last, low, high)
    parts = [_frame(view)]
    points = []
    for (place, label, curve), values in zip(lines, smoothed, strict=True):
        colour = f"c{place % NUM_COLOURS}" + (" dashed" if place >= NUM_COLOURS else "")
        if kind == "train" and len(curve.steps) > 8:
            parts.append(f'<path class="raw {colour}" d="{_path(curve.steps, curve.values, view)}"/>')
        parts.append(f'<path class="line {colour}" d="{_path(curve.steps, values, view)}"/>')
        if len(curve.steps) <= 40 and (kind == "val" or len(curve.steps) == 1):
            parts.append(_dots(curve.steps, values, view, colour))
        points.append(_points(place, label, curve.steps, values, unit))
    ends = "; ".join(f"{point['label']} ends at {point['values'][-1]}" for point in points)  # type: ignore[index]
    axis = "training steps" if unit == "step" else f"time in {unit}"
    label = html.escape(f"{readable(name)} over {axis}: {ends}", quote=True)
    svg = f'<svg viewBox="0 0 {WIDTH_PX} {HEIGHT_PX}" role="img" aria-label="{label}">{"".join(parts)}</svg>'
    return Chart(name, readable(name), kind, svg, tuple(points), view, unit)


def _steps(lines: Sequence[tuple[int, str, Curve]]) -> tuple[float, float]:
    first = min(float(curve.steps[0]) for _, _, curve in lines)
    last = max(float(curve.steps[-1]) for _, _, curve in lines)
    first = 0.0 if first < 0.25 * last else first
    return first, last if last > first else first + 1.0


def _drawn(curve: Curve, kind: str) -> np.ndarray:
    return smooth(curve.values, span=max(1.0, len(curve.values) / 20.0)) if kind == "train" else curve.values


def _range(smoothed: Sequence[np.ndarray], raw: Sequence[np.ndarray], kind: str) -> tuple[float, float]:
    """Cover every smoothed value, but not the few raw ones that would flatten the rest."""
    drawn = np.concatenate([values[np.isfinite(values)] for values in smoothed])
    # The first steps of a loss may be huge; the window starts once a tenth of training is drawn.
    late = np.concatenate([values[len(values) // 50 :] for values in smoothed])
    late = late[np.isfinite(late)]
    drawn = late if len(late) > 4 else drawn
    low, high = float(drawn.min()), float(drawn.max())
    if kind == "train":
        finite = np.concatenate([values[np.isfinite(values)] for values in raw])
        low = min(low, float(np.quantile(finite, 0.02)))
        high = max(high, float(np.quantile(finite, 0.98)))
    if 0.0 <= low < 0.35 * high:
        low = 0.0
    margin = 0.06 * (high - low) or 0.05 * abs(high) or 0.5
    return (low if low == 0.0 else low - margin), high + margin


def ticks(low: float, high: float, target: int) -> list[float]:
    """Return about `target` round numbers between `low` and `high`."""
    raw = (high - low) / target
    size = 10.0 ** math.floor(math.log10(raw))
    step = next(size * factor for factor in (1.0, 2.0, 2.5, 5.0, 10.0) if size * factor >= raw * 0.999)
    start = math.ceil(low / step - 1e-9)
    count = math.floor(high / step + 1e-9) - start + 1
    return [0.0 if start + place == 0 else (start + place) * step for place in range(count)]


def _frame(view: tuple[float, float, float, float]) -> str:
    parts = []
    for tick in ticks(view[2], view[3], 4):
        y = _y(tick, view)
        parts.append(f'<path class="rule" d="M{LEFT_PX} {y:.1f}H{WIDTH_PX - RIGHT_PX}"/>')
        parts.append(f'<text x="{LEFT_PX - 6}" y="{y + 4:.1f}" text-anchor="end">{_short(tick)}</text>')
    for tick in ticks(view[0], view[1], 4):
        x = _x(tick, view)
        anchor = "end" if x > WIDTH_PX - 24 else "middle"
        parts.append(f'<text x="{x:.1f}" y="{HEIGHT_PX - 12}" text-anchor="{anchor}">{_short(tick)}</text>')
    parts.append(f'<path class="axis" d="M{LEFT_PX} {HEIGHT_PX - BOTTOM_PX}H{WIDTH_PX - RIGHT_PX}"/>')
    return "".join(parts)


def _short(value: float) -> str:
    size = abs(value)
    for bound, letter in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if size >= bound:
            return f"{value / (1e3 if letter == 'k' else bound):g}{letter}"
    return f"{value:.0e}".replace("e-0", "e-") if 0 < size < 1e-3 else f"{value:.6g}"


def _x(step: float, view: tuple[float, float, float, float]) -> float:
    return LEFT_PX + (step - view[0]) / (view[1] - view[0]) * (WIDTH_PX - LEFT_PX - RIGHT_PX)


def _y(value: float, view: tuple[float, float, float, float]) -> float:
    share = (value - view[2]) / (view[3] - view[2])
    return TOP_PX + (1.0 - min(max(share, -0.02), 1.02)) * (HEIGHT_PX - TOP_PX - BOTTOM_PX)


def _path(steps: np.ndarray, values: np.ndarray, view: tuple[float, float, float, float]) -> str:
    parts, pen = [], "M"
    for step, value in zip(steps, values, strict=True):
        if math.isfinite(value):
            parts.append(f"{pen}{_x(float(step), view):.1f} {_y(float(value), view):.1f}")
            pen = "L"
        else:
            pen = "M"
    return "".join(parts)


def _dots(steps: np.ndarray, values: np.ndarray, view: tuple[float, float, float, float], colour: str) -> str:
    return "".join(
        f'<circle class="dot {colour}" r="3" cx="{_x(float(step), view):.1f}" '
        f'cy="{_y(float(value), view):.1f}"/>'
        for step, value in zip(steps, values, strict=True)
        if math.isfinite(value)
    )


def _points(place: int, label: str, steps: np.ndarray, values: np.ndarray, unit: str) -> dict[str, object]:
    kept = [(int(step) if unit == "step" else round(float(step), 2), number(float(value))) for step, value in zip(steps, values, strict=True)
            if math.isfinite(value)]  # fmt: skip
    return {
        "label": label,
        "colour": place % NUM_COLOURS,
        "steps": [step for step, _ in kept],
        "values": [value for _, value in kept],
    }
