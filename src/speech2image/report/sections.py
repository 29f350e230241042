"""Turns runs of one corpus into the values the page template shows.

Here are the choices of a reader's page: what stands in the tables, what the summary says, which
curves are drawn.  The same utterances are laid out in `showcase.py`, tables in `stages.py`, drawing
is in `curves.py` and `compute.py`, the structure of the page in `template.py`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from speech2image.report import media
from speech2image.report.collect import Run
from speech2image.report.compute import compute_figures, is_over_processor_time, time_charts
from speech2image.report.costs import Costs, costs_of, mean_costs
from speech2image.report.curves import NUM_COLOURS, Chart, draw_chart
from speech2image.report.exports import cost_words
from speech2image.report.groups import Group
from speech2image.report.journal import Curve
from speech2image.report.published import published_for
from speech2image.report.showcase import Room, Showcase, build_rows
from speech2image.report.stages import Stage, built_of
from speech2image.report.steps import draw_svg, steps_figure
from speech2image.report.tables import Cell, Column, columns, duration, parameters

STAGE_TITLES = {"encoder": "Speech encoders", "codec": "Codecs", "generator": "Generators"}
STAGE_NOUNS = {"encoder": "speech encoder", "codec": "codec", "generator": "generator"}
MAX_EVENTS = 200


def build_section(corpus: str, stages: Sequence[Stage], shown: Showcase, num_all_runs: int) -> dict[str, Any]:
    """Return everything the page shows of one corpus.

    Args:
        corpus: its name.
        stages: its tables, see `stages.py`.
        shown: which utterances are shown, and how attention is found.
        num_all_runs: runs on the whole page; more runs share the same room.
    """
    runs = [run for stage in stages for run in stage.runs]
    groups = [group for stage in stages for group in stage.groups]
    numbers = {run: place for place, group in enumerate(groups) for run in group.runs}
    views = {run: _run_view(numbers[run], run) for run in runs}
    room = Room(len(runs) / max(num_all_runs, 1), num_all_runs)
    rows, notes = build_rows(views, shown, room, corpus)
    laid = [_stage(stage, views, numbers, room) for stage in stages]
    return {
        "id": "corpus-" + (re.sub(r"[^a-z0-9]+", "-", corpus.lower()).strip("-") or "unnamed"),
        "corpus": corpus,
        "summary": _summary(stages),
        "gaps": [(run.label, gap) for run in runs for gap in run.gaps],
        "stages": laid,
        "stages_with_charts": [stage for stage in laid if stage["charts"] or stage["rates"]],
        "stages_with_costs": [stage for stage in laid if stage["figures"] or stage["time_charts"]],
        "published": published_for(corpus),
        "steps": [
            {"figure": figure, "svg": draw_svg(figure)} for run in runs if (figure := steps_figure(run))
        ],
        "rows": rows,
        "is_stacked": sum(bool(run.paintings) for run in runs) > 2,
        "rows_note": " ".join(notes),
        "grids": _grids(views, num_all_runs),
        "runs": list(views.values()),
    }


def _run_view(place: int, run: Run) -> dict[str, Any]:
    costs = costs_of(run)
    return {
        "label": run.label,
        "colour": f"c{place % NUM_COLOURS}",
        "built_of": built_of(run),
        "seeds": "",
        "input": run.input or "–",
        "costs": _cost_view(costs),
        "facts": _facts(run),
        "command": _text(run.about.get("command")),
        "config": run.config_text.strip(),
        "gaps": run.gaps,
        "events": [_event(event) for event in run.journal.events[-MAX_EVENTS:]],
        "evaluations": [(name, json.dumps(content, indent=1, ensure_ascii=False))
                        for name, content in run.metric_files.items()],
    }  # fmt: skip


def _cost_view(costs: Costs) -> dict[str, str]:
    time, processor, memory, rate = cost_words(costs)
    steps = "" if costs.train_step is None else f"{costs.train_step:,.0f} steps"
    return {"time": time, "steps": steps, "processor": processor, "memory": memory, "rate": rate,
            "machine": costs.machine}  # fmt: skip


def _facts(run: Run) -> list[tuple[str, str]]:
    about = run.about
    facts = [("run", run.run_id), ("stage", run.stage), ("corpus", run.corpus)]
    facts += [(name, _text(about.get(name))) for name in ("status", "created", "finished")]
    facts += [("parameters", parameters(about.get("parameters")))] if about.get("parameters") else []
    rate = run.journal.train.get("images_per_s")
    if rate is not None and np.isfinite(rate.values).any():
        facts.append(("images per second (median)", f"{np.nanmedian(rate.values):.4g}"))
    facts += [("machine", _text(about.get("machine"))), ("versions", _text(about.get("versions")))]
    journal = run.journal
    lines = f"{journal.num_lines:,} lines read, {journal.num_damaged} cut or damaged"
    facts.append(("journal", f"{lines}, {journal.num_repeated} written again after a resume"))
    facts.append(("folder", run.path.name))
    return [(name, value) for name, value in facts if value]


def _text(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_text(part)}" for name, part in value.items())
    if isinstance(value, list):
        return " ".join(_text(part) for part in value)
    return "" if value is None else str(value)


def _event(event: Mapping[str, Any]) -> str:
    rest = {name: value for name, value in event.items() if name not in ("step", "time", "kind")}
    return f"step {event.get('step')}: " + ", ".join(f"{name} {_text(value)}" for name, value in rest.items())


def _stage(
    stage: Stage, views: Mapping[Run, Mapping[str, Any]], numbers: Mapping[Run, int], room: Room
) -> dict[str, Any]:
    heads = stage.headlines
    single = {_key(column): column for column in columns(stage.runs)}
    groups = [_group_view(group, position, stage, views) for position, group in enumerate(stage.groups)]
    for view, group in zip(groups, stage.groups, strict=True):
        view["members"] = [
            {"run": views[run],
             "cells": [single[_key(column)].cells[stage.runs.index(run)] for column in heads]}
            for run in (group.runs if group.is_seeds else ())
        ]  # fmt: skip
    charts = _charts(stage, numbers, room)
    rates = [chart for chart in charts if chart.kind == "train" and "loss" not in chart.name.lower()]
    colours = {run: view["colour"] for run, view in views.items()}
    return {
        "name": stage.kind,
        "title": STAGE_TITLES.get(stage.kind, f"Runs of stage “{stage.kind}”"),
        "groups": groups,
        "runs": [views[run] for run in stage.runs],
        "headlines": heads,
        "names": [one for view in groups for one in (view, *(member["run"] for member in view["members"]))],
        "columns": [(column, _wide(column, single, stage)) for column in stage.contenders],
        "controls": [(column, _wide(column, single, stage)) for column in stage.controls],
        "comparisons": stage.comparisons,
        "has": {
            key: any(view["costs"][key] != "–" for view in groups) for key in ("processor", "memory", "rate")
        },
        "figures": compute_figures(stage, colours),
        "time_charts": time_charts(stage, numbers),
        "time_axis": "processor time" if is_over_processor_time(stage) else "time by the clock",
        "charts": [chart for chart in charts if chart not in rates],
        "rates": rates,
    }


def _key(column: Column) -> tuple[str, str, str, str]:
    return (column.name, column.protocol, column.split, column.unit)


def _wide(
    column: Column, single: Mapping[tuple[str, str, str, str], Column], stage: Stage
) -> list[Cell | None]:
    """Return the cells of a metric over all groups, each followed by those of its seeds."""
    cells: list[Cell | None] = []
    for position, group in enumerate(stage.groups):
        cells.append(column.cells[position])
        members = group.runs if group.is_seeds else ()
        cells += [single[_key(column)].cells[stage.runs.index(run)] for run in members]
    return cells


def _group_view(
    group: Group, position: int, stage: Stage, views: Mapping[Run, Mapping[str, Any]]
) -> dict[str, Any]:
    first = views[group.runs[0]]
    return {
        "label": group.label,
        "colour": first["colour"],
        "built_of": first["built_of"],
        "input": first["input"],
        "seeds": f"{len(group.runs)} seeds" if group.is_seeds else "",
        "place": position,
        "costs": _cost_view(mean_costs(group.runs)),
        "cells": [column.cells[position] for column in stage.headlines],
    }


def _charts(stage: Stage, numbers: Mapping[Run, int], room: Room) -> list[Chart]:
    found: dict[tuple[str, str], list[tuple[int, str, Curve]]] = {}
    for run in stage.runs:
        for kind, curves in (("val", run.journal.val), ("train", run.journal.train)):
            for name, curve in curves.items():
                found.setdefault((kind, name), []).append((numbers[run], run.label, curve))
    order = sorted(found, key=lambda key: (key[0] != "val", key[1] not in ("loss", "loss_g"), key[1]))
    charts = [draw_chart(name, kind, found[kind, name], max_points=room.curve_points) for kind, name in order]
    return [chart for chart in charts if chart is not None]


def _summary(stages: Sequence[Stage]) -> str:
    parts = []
    for stage in stages:
        count = len(stage.runs)
        noun = STAGE_NOUNS.get(stage.kind, f"“{stage.kind}” run")
        times = [costs_of(run).train_seconds for run in stage.runs]
        total = sum(time for time in times if time is not None)
        spent = f", {duration(total)} of training in all" if total else ""
        several = sum(group.is_seeds for group in stage.groups)
        methods = f" of {len(stage.groups)} method{'' if len(stage.groups) == 1 else 's'}" if several else ""
        parts.append(f"{count} {noun}{'' if count == 1 else 's'}{methods}{spent}.")
        for column in stage.headlines[:2]:
            parts.append(_best(column, stage.groups))
    return " ".join(parts)


def _best(column: Column, groups: Sequence[Group]) -> str:
    cells = [(cell, group) for cell, group in zip(column.cells, groups, strict=True) if cell is not None]
    cell, group = next(((cell, group) for cell, group in cells if cell.best), cells[0])
    word = "Best " if len(cells) > 1 else ""
    title = column.title if word or not column.title.islower() else column.title.capitalize()
    chance = f" ({cell.chance})" if cell.chance else ""
    return f"{word}{title}: {' '.join(filter(None, (cell.value, cell.spread, cell.interval)))} by {group.label}{chance}."


def _grids(views: Mapping[Run, Mapping[str, Any]], num_all_runs: int) -> list[dict[str, Any]]:
    most = int(min(max(48 // max(num_all_runs, 1), 2), 12))
    made = []
    for run, view in views.items():
        if not run.grids:
            continue
        places = np.unique(np.linspace(0, len(run.grids) - 1, min(most, len(run.grids))).round().astype(int))
        chosen = [
            (step, media.embed_picture(path, 560 if num_all_runs <= 12 else 400))
            for step, path in (run.grids[place] for place in places)
        ]
        whole = [(step, one) for step, one in chosen if one.address]
        if whole:
            steps = [f"{step:,}" for step, _ in whole]
            made.append({"run": view, "steps": steps, "pictures": [one for _, one in whole]})
    return made
