"""Writes the tables of a report as Markdown and as CSV.

Own numbers, bounds and controls, differences and published numbers are separate tables; the CSV has
every number of every run in full precision.  The LaTeX form is in `latex.py`.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any

from speech2image.report.costs import Costs, costs_of, mean_costs
from speech2image.report.differences import Comparison
from speech2image.report.measures import Metric
from speech2image.report.published import SOURCES, PublishedTable
from speech2image.report.stages import Stage, built_of
from speech2image.report.tables import Cell, duration, is_control, metric_rank, parameters

CSV_FIELDS = (
    "row", "corpus", "run_id", "label", "stage", "input", "encoder", "generator", "seed", "status", "train_step",
    "train_seconds", "train_cpu_seconds", "peak_memory_mb", "seconds_per_image", "parameters", "metric", "value", "low",
    "high", "level", "deviation", "num_seeds", "count", "chance", "unit", "higher_is_better", "is_control", "protocol",
    "split", "note", "folder",
)  # fmt: skip


def markdown(
    title: str,
    sections: Mapping[str, Sequence[Stage]],
    tables: Mapping[str, PublishedTable | None],
    unfinished: Sequence[tuple[str, str]] = (),
) -> str:
    """Return the tables of all corpora as Markdown, published numbers in tables of their own."""
    lines = [f"# {_plain(title)}", ""]
    if unfinished:
        named = [f"- {_plain(name)}: {_plain(reason)}" for name, reason in unfinished]
        lines += ["Jobs of this sweep that did not finish:", "", *named, ""]
    if len(sections) > 1:
        lines += ["Corpora stand apart: numbers of different corpora are not comparable.", ""]
    for corpus, stages in sections.items():
        lines += [f"## {_plain(corpus)}", ""]
        for stage in stages:
            lines += [*_own_lines(stage), "", *_bound_lines(stage), *_difference_lines(stage.comparisons)]
        gaps = [
            f"- {_plain(run.label)}: {_plain(gap)}"
            for stage in stages for run in stage.runs for gap in run.gaps
        ]  # fmt: skip
        lines += [*(["Missing or damaged:", "", *gaps, ""] if gaps else [])]
        table = tables.get(corpus)
        if table is not None:
            lines += [*_published_lines(table), ""]
    return "\n".join(lines).rstrip() + "\n"


def cost_words(costs: Costs) -> tuple[str, str, str, str]:
    """Return training time, processor time, memory and images per second as text; `–`: not recorded."""
    memory, rate = costs.peak_memory_mb, costs.images_per_second
    return (
        duration(costs.train_seconds),
        duration(costs.train_cpu_seconds),
        "–" if memory is None else f"{memory:,.0f} MB",
        "–" if rate is None else f"{rate:.3g}",
    )


def _own_lines(stage: Stage) -> list[str]:
    made, groups = stage.contenders, stage.groups
    heads = [
        "method",
        "input",
        "built of",
        "steps",
        "training time",
        "processor time",
        "memory",
        "images per s",
    ]
    heads += [f"{column.title} {column.arrow} ({column.protocol}, {column.split})" for column in made]
    said = (
        f"Own numbers, {_plain(stage.kind)} runs: value [low, high] (count, chance); of several seeds mean ± "
        "standard deviation [t interval of the mean]. Best in bold; whether it is more than chance is said below."
    )
    lines = [said, ""]
    lines += ["| " + " | ".join(map(_plain, heads)) + " |", "|" + " --- |" * len(heads)]
    for position, group in enumerate(groups):
        costs = mean_costs(group.runs)
        words = [group.label, group.runs[0].input or "–", built_of(group.runs[0])]
        words += ["–" if costs.train_step is None else f"{costs.train_step:,.0f}", *cost_words(costs)]
        cells = [_markdown_cell(column.cells[position]) for column in made]
        lines.append("| " + " | ".join([*map(_plain, words), *cells]) + " |")
    return lines


def _bound_lines(stage: Stage) -> list[str]:
    if not stage.controls:
        return []
    lines = ["Bounds and controls: what the measure itself says, no contenders.", ""]
    heads = ["bound or control", *(group.label for group in stage.groups)]
    lines += ["| " + " | ".join(map(_plain, heads)) + " |", "|" + " --- |" * len(heads)]
    for column in stage.controls:
        words = [_plain(f"{column.title} ({column.protocol}, {column.split})")]
        lines.append("| " + " | ".join([*words, *map(_markdown_cell, column.cells)]) + " |")
    return [*lines, ""]


def _difference_lines(found: Sequence[Comparison]) -> list[str]:
    lines: list[str] = []
    for one in found:
        lines += [f"Differences in {_plain(one.metric)} ({_plain(one.protocol)}). {_plain(one.about)}", ""]
        lines += [*(f"- {_plain(sentence)}" for sentence in one.sentences), ""]
    return lines


def _markdown_cell(cell: Cell | None) -> str:
    if cell is None:
        return "–"
    value = f"**{cell.value}**" if cell.best else cell.value
    extra = ", ".join(text for text in (cell.count, cell.chance) if text)
    return " ".join(
        text for text in (value, cell.spread, cell.interval, f"({extra})" if extra else "") if text
    )


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


# ---- CSV --------------------------------------------------------------------------------------
def comma_separated(stages: Sequence[Stage]) -> str:
    """Return one CSV line a run and metric (a run without metrics: one line), then one a group of seeds."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(CSV_FIELDS)
    for run in (run for stage in stages for run in stage.runs):
        costs = costs_of(run)
        lead: list[Any] = [
            "run",
            run.corpus,
            run.run_id,
            run.label,
            run.stage,
            run.input,
            run.encoder,
            run.generator,
        ]
        lead += [run.seed, run.about.get("status", ""), *_cost_fields(costs)]
        lead += [parameters(run.about.get("parameters"))]
        for metric in run.metrics or (None,):
            _write(writer, [*lead, *_metric_fields(metric), run.path.name])
    for stage in stages:
        for group in (group for group in stage.groups if group.is_seeds):
            first = group.runs[0]
            lead = [
                "seeds",
                stage.corpus,
                "",
                group.label,
                first.stage,
                first.input,
                first.encoder,
                first.generator,
            ]
            lead += ["", "", *_cost_fields(mean_costs(group.runs)), parameters(first.about.get("parameters"))]
            for metric in sorted(group.metrics, key=lambda one: metric_rank(one.name)):
                _write(writer, [*lead, *_metric_fields(metric), ""])
    return buffer.getvalue()


def _cost_fields(costs: Costs) -> list[Any]:
    step = None if costs.train_step is None else round(costs.train_step)
    return [step, costs.train_seconds, costs.train_cpu_seconds, costs.peak_memory_mb, costs.seconds_per_image]


def _metric_fields(metric: Metric | None) -> list[Any]:
    if metric is None:
        return [""] * 15
    return [
        metric.name, metric.value, metric.low, metric.high, metric.level, metric.deviation, metric.num_seeds,
        metric.count, metric.chance, metric.unit, metric.higher_is_better, is_control(metric.name), metric.protocol,
        metric.split, metric.note,
    ]  # fmt: skip


def _write(writer: Any, values: Sequence[Any]) -> None:
    assert len(values) == len(CSV_FIELDS)
    writer.writerow([_safe(value) for value in values])


def _plain(text: str) -> str:
    return " ".join(str(text).split()).replace("|", "\\|").replace("<", "&lt;")


def _safe(value: Any) -> Any:
    """Keep spreadsheets from reading text as a formula."""
    return f"'{value}" if isinstance(value, str) and value[:1] in ("=", "+", "-", "@") else value
