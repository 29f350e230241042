"""What is shown of a search: a table of its trials and a picture of its history.

Rows come from `app/search.py`; nothing here knows Optuna.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True)
class TrialRow:
    """One trial of a search.

    Attributes:
        number: in the study, from 0.
        state: finished, pruned, failed or open.
        value: the metric, of a finished one.
        steps: (step, value) reported on the way.
        point: key to value, as typed.
        run: name of its run.
        message: why it failed.
        is_best: whether it is the best of the study.
    """

    number: int
    state: str
    value: float | None = None
    steps: tuple[tuple[int, float], ...] = ()
    point: Mapping[str, str] = field(default_factory=dict)
    run: str = ""
    message: str = ""
    is_best: bool = False


def search_table(rows: Sequence[TrialRow], metric: str) -> list[list[str]]:
    """Return the table, its head first: number, state, metric, what was varied, run."""
    keys = list(dict.fromkeys(key for row in rows for key in row.point))
    lines = [["trial", "state", metric, *keys, "run"]]
    for row in rows:
        lines.append([
            f"{row.number}{' *' if row.is_best else ''}",
            row.state + (f" at step {row.steps[-1][0]}" if row.state == "pruned" and row.steps else ""),
            "" if row.value is None else f"{row.value:.6g}",
            *(row.point.get(key, "") for key in keys),
            row.run,
        ])  # fmt: skip
    return lines


def markdown(table: Sequence[Sequence[str]]) -> str:
    """Return a table as Markdown, padded so that it reads well as text too."""
    widths = [max(len(line[column]) for line in table) for column in range(len(table[0]))]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |"
        for line in table
    ]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(lines) + "\n"


def comma_separated(table: Sequence[Sequence[str]]) -> str:
    """Return a table as CSV."""
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerows(table)
    return buffer.getvalue()


def draw_history(rows: Sequence[TrialRow], metric: str, direction: str) -> bytes:
    """Draw value and best value so far against the number of the trial, and what was reported on the way.

    Returns: a PNG; equal rows give equal bytes.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.0, 3.8), dpi=160, layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    finished = [(row.number, row.value) for row in rows if row.value is not None]
    pruned = [(row.number, row.steps[-1][1]) for row in rows if row.state == "pruned" and row.steps]
    better, best = (min if direction == "minimize" else max), list[float]()
    for _, value in finished:
        best.append(better(best[-1], value) if best else value)
    left.scatter(*_columns(finished), color="#2f6fde", s=18, label="finished", zorder=3)
    left.scatter(*_columns(pruned), color="#8a919b", s=18, marker="x", label="pruned, last value", zorder=3)
    for row in rows:
        if row.state == "failed":
            left.axvline(row.number, color="#cf3d67", linewidth=0.8, linestyle=":")
    left.step([number for number, _ in finished], best, where="post", color="#d9622b", label="best so far")
    left.set_xlabel("trial (dotted: failed)")
    left.xaxis.get_major_locator().set_params(integer=True)
    left.set_ylabel(f"{metric} {'↓' if direction == 'minimize' else '↑'}")
    left.legend(frameon=False, fontsize=8)
    for row in rows:
        steps = [(step, value) for step, value in row.steps if math.isfinite(value)]
        colour = "#d9622b" if row.is_best else "#8a919b" if row.state == "pruned" else "#2f6fde"
        right.plot(*_columns(steps), color=colour, linewidth=1.8 if row.is_best else 0.9, marker=".",
                   alpha=1.0 if row.is_best else 0.6)  # fmt: skip
    right.set_xlabel("training step (orange: the best, grey: pruned)")
    for axes in (left, right):
        axes.grid(axis="y", color="#e3e1dc")
        axes.spines[["top", "right"]].set_visible(False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


def _columns(pairs: Sequence[tuple[float, float]]) -> tuple[list[float], list[float]]:
    return [first for first, _ in pairs], [second for _, second in pairs]
