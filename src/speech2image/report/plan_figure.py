"""Draw a plan: where the seconds of a step go, and how speed and cost grow with GPUs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

#: Part of a step: its words in the figure and its colour.
PARTS = {
    "arithmetic": ("products and convolutions", "#2f6fde"),
    "memory": ("device memory, optimizer", "#1798b8"),
    "host": ("host: starting, drawing", "#b58900"),
    "gradients": ("gradients between GPUs", "#d9622b"),
    "norms": ("shared batch norms", "#cf3d67"),
    "data": ("waiting for batches", "#159a72"),
    "checkpoints": ("checkpoints", "#b04ac0"),
    "interruptions": ("interruptions", "#6b7280"),
}


def draw_plan(plan: dict[str, Any], path: Path) -> None:
    """Write a PNG: parts of a step for both scalings, and images a second against GPUs.

    Args:
        plan: from `app/plan.py: make_plan`.
        path: file to write.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    scalings = list(plan["rows"])
    figure, axes = pyplot.subplots(1, 3, figsize=(13.5, 4.6), layout="constrained")
    for axis, scaling in zip(axes, scalings, strict=False):
        _draw_parts(axis, scaling, plan["rows"][scaling])
    _draw_speed(axes[2], plan["rows"])
    handles, labels = axes[1].get_legend_handles_labels()
    if handles:
        figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False, fontsize=9)
    figure.suptitle(
        f"{plan['experiment']} on {plan['hardware']}, {plan['strategy']}, {plan['precision']} (a model, not a measurement)"
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def _draw_parts(axis: Any, scaling: str, rows: list[dict[str, Any]]) -> None:
    names = [f"{row['gpus']}\n{row['images_per_gpu']}" for row in rows]
    bottom = [0.0] * len(rows)
    for part, (words, colour) in PARTS.items():
        heights = [1000 * row["parts_s"][part] for row in rows]
        axis.bar(names, heights, bottom=bottom, label=words, color=colour, width=0.7)
        bottom = [low + height for low, height in zip(bottom, heights, strict=True)]
    axis.set(title=f"{scaling}: one step", xlabel="GPUs, and images on each", ylabel="ms")
    axis.set_ylim(0, 1.05 * max(bottom, default=1.0))


def _draw_speed(axis: Any, rows_of: dict[str, list[dict[str, Any]]]) -> None:
    styles = {"same batch": ("o-", "#d9622b"), "same share": ("s-", "#2f6fde")}
    for scaling, rows in rows_of.items():
        if not rows:
            continue
        style, colour = styles[scaling]
        gpus = [row["gpus"] for row in rows]
        axis.loglog(gpus, [row["images_per_s"] for row in rows], style, color=colour, label=scaling)
        alone = rows[0]["images_per_s"] / rows[0]["gpus"] / rows[0]["efficiency"]
        axis.loglog(gpus, [alone * count for count in gpus], ":", color=colour, linewidth=1)
        for row in rows[1:]:
            axis.annotate(
                f"{100 * row['efficiency']:.0f} %", (row["gpus"], row["images_per_s"]),
                xytext=(0, -13 if scaling == "same batch" else 7), textcoords="offset points", ha="center" if scaling == "same batch" else "right", fontsize=8, color=colour,
            )  # fmt: skip
    axis.set(title="images a second (dotted: no loss)", xlabel="GPUs")
    ticks = sorted({row["gpus"] for rows in rows_of.values() for row in rows})
    axis.set_xticks(ticks, [str(count) for count in ticks])
    axis.minorticks_off()
    axis.grid(True, which="major", alpha=0.3)
    axis.legend(frameon=False, fontsize=9)
