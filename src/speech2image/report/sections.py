"""Turns runs of one corpus into the values the page template shows.

Here are the choices of a reader's page: which runs stand together, how many pictures and seconds
fit, what the summary says.  Reading is in `collect.py`, encoding in `media.py`, drawing in
`curves.py`, the structure of the page in `template.py`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from speech2image.report import media
from speech2image.report.collect import Painting, Run
from speech2image.report.curves import NUM_COLOURS, Chart, draw_chart
from speech2image.report.journal import Curve
from speech2image.report.published import published_for
from speech2image.report.rows import Row, choose_rows, mark_colours
from speech2image.report.steps import draw_svg, steps_figure
from speech2image.report.tables import (
    Column,
    columns,
    duration,
    parameters,
    readable,
    train_seconds,
    train_step,
)

STAGE_TITLES = {"encoder": "Speech encoders", "codec": "Codecs", "generator": "Generators"}
STAGE_NOUNS = {"encoder": "speech encoder", "codec": "codec", "generator": "generator"}
MAX_EVENTS = 200
SOUND_BUDGET_S = 100.0
"""Seconds of sound a page carries: 16 utterances of 6 s; 32 kB a second, a third more as text."""
PICTURE_BUDGET = 700
"""Up to so many pictures small ones stay exact; beyond, all are lossy."""


def by_corpus(runs: Sequence[Run]) -> dict[str, list[Run]]:
    """Split `runs` by corpus, in order of first appearance; one page section each."""
    return {
        name: [run for run in runs if run.corpus == name] for name in dict.fromkeys(r.corpus for r in runs)
    }


def build_section(corpus: str, runs: Sequence[Run], num_utterances: int, num_all_runs: int) -> dict[str, Any]:
    """Return everything the page shows of one corpus.

    Args:
        corpus: its name.
        runs: its runs, in the order given by the reader.
        num_utterances: rows of "the same utterances".
        num_all_runs: runs on the whole page; more runs share the same room.
    """
    views = [_run_view(place, run) for place, run in enumerate(runs)]
    stages = [_stage(name, runs, views) for name in dict.fromkeys(run.kind for run in runs)]
    rows, notes = choose_rows(runs, num_utterances)
    return {
        "id": "corpus-" + (re.sub(r"[^a-z0-9]+", "-", corpus.lower()).strip("-") or "unnamed"),
        "corpus": corpus,
        "summary": _summary(runs, stages),
        "gaps": [(run.label, gap) for run in runs for gap in run.gaps],
        "stages": stages,
        "stages_with_charts": [stage for stage in stages if stage["charts"] or stage["rates"]],
        "published": published_for(corpus),
        "steps": [
            {"figure": figure, "svg": draw_svg(figure)} for run in runs if (figure := steps_figure(run))
        ],
        "rows": _rows(rows, runs, views, corpus),
        "is_stacked": sum(bool(run.paintings) for run in runs) > 2,
        "rows_note": " ".join(notes),
        "grids": _grids(runs, views, num_all_runs),
        "runs": views,
    }


def _run_view(place: int, run: Run) -> dict[str, Any]:
    step = train_step(run)
    built_of = " → ".join(part for part in (run.encoder, run.generator) if part)
    return {
        "label": run.label,
        "colour": f"c{place % NUM_COLOURS}",
        "built_of": built_of or run.stage,
        "steps": "–" if step is None else f"{step:,}",
        "time": duration(train_seconds(run)),
        "parameters": parameters(run.about.get("parameters")),
        "facts": _facts(run),
        "command": _text(run.about.get("command")),
        "config": run.config_text.strip(),
        "gaps": run.gaps,
        "events": [_event(event) for event in run.journal.events[-MAX_EVENTS:]],
        "evaluations": [(name, json.dumps(content, indent=2, ensure_ascii=False))
                        for name, content in run.metric_files.items()],
    }  # fmt: skip


def _facts(run: Run) -> list[tuple[str, str]]:
    about = run.about
    facts = [("run", run.run_id), ("stage", run.stage), ("corpus", run.corpus)]
    facts += [(name, _text(about.get(name))) for name in ("status", "created", "finished")]
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


def _stage(name: str, runs: Sequence[Run], views: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    members = [place for place, run in enumerate(runs) if run.kind == name]
    made = columns([runs[place] for place in members])
    charts = _charts([(place, runs[place]) for place in members])
    rates = [chart for chart in charts if chart.kind == "train" and "loss" not in chart.name.lower()]
    return {
        "name": name,
        "title": STAGE_TITLES.get(name, f"Runs of stage “{name}”"),
        "runs": [{**views[place], "place": position} for position, place in enumerate(members)],
        "columns": made,
        "charts": [chart for chart in charts if chart not in rates],
        "rates": rates,
    }


def _charts(runs: Sequence[tuple[int, Run]]) -> list[Chart]:
    found: dict[tuple[str, str], list[tuple[int, str, Curve]]] = {}
    for place, run in runs:
        for kind, curves in (("val", run.journal.val), ("train", run.journal.train)):
            for name, curve in curves.items():
                found.setdefault((kind, name), []).append((place, run.label, curve))
    order = sorted(found, key=lambda key: (key[0] != "val", key[1] not in ("loss", "loss_g"), key[1]))
    charts = [draw_chart(name, kind, found[kind, name]) for kind, name in order]
    return [chart for chart in charts if chart is not None]


def _summary(runs: Sequence[Run], stages: Sequence[Mapping[str, Any]]) -> str:
    parts = []
    for stage in stages:
        count = len(stage["runs"])
        noun = STAGE_NOUNS.get(stage["name"], f"“{stage['name']}” run")
        times = [train_seconds(run) for run in runs if run.kind == stage["name"]]
        total = sum(time for time in times if time is not None)
        spent = f", {duration(total)} of training in all" if total else ""
        parts.append(f"{count} {noun}{'' if count == 1 else 's'}{spent}.")
        for column in stage["columns"][:2]:
            parts.append(_best(column, stage["runs"]))
    return " ".join(parts)


def _best(column: Column, runs: Sequence[Mapping[str, Any]]) -> str:
    cells = [(cell, run) for cell, run in zip(column.cells, runs, strict=True) if cell is not None]
    cell, run = next(((cell, run) for cell, run in cells if cell.best), cells[0])
    word = "Best " if len(cells) > 1 else ""
    title = column.title if word else column.title[:1].upper() + column.title[1:]
    chance = f" ({cell.chance})" if cell.chance else ""
    return f"{word}{title}: {f'{cell.value} {cell.interval}'.strip()} by {run['label']}{chance}."


def _rows(
    rows: Sequence[Row], runs: Sequence[Run], views: Sequence[Mapping[str, Any]], corpus: str
) -> list[dict[str, Any]]:
    painters = [place for place, run in enumerate(runs) if run.paints]
    per_run = 4 if len(painters) <= 2 else 2 if len(painters) <= 6 else 1
    num_pictures = len(rows) * (1 + sum(min(per_run, _most(runs[place])) for place in painters))
    max_s = min(max(SOUND_BUDGET_S / max(len(rows), 1), 2.0), 8.0)
    exact = num_pictures <= PICTURE_BUDGET
    made = []
    for row in tqdm(rows, desc=f"rows of {corpus}", unit="utt", disable=None, leave=True):
        first = row.first
        cells = []
        for place in painters:
            shown = row.paintings[place][:per_run]
            pictures = [media.embed_picture(one.file, 288, exact) for one in shown]
            cells.append({"run": views[place], "pictures": pictures})
        everyone = [one for some in row.paintings for one in some]
        sound = _sound(everyone, max_s)
        cut = sound.total_s > sound.shown_s + 0.05
        made.append({
            "utterance": row.utterance,
            "caption": first.caption,
            "class_name": readable(first.class_name) or "no class",
            "pieces": mark_colours(first.caption),
            "sound": sound,
            "sound_end": f"{sound.shown_s:.1f} s" + (f" of {sound.total_s:.1f} s" if cut else ""),
            "real": _real(everyone, exact),
            "cells": cells,
        })  # fmt: skip
    return made


def _most(run: Run) -> int:
    return max((len(some) for some in run.paintings.values()), default=0)


def _sound(paintings: Sequence[Painting], max_s: float) -> media.Sound:
    path = next((one.wave for one in paintings if one.wave is not None), None)
    return (
        media.Sound(problem="its wav file is not there") if path is None else media.embed_sound(path, max_s)
    )


def _real(paintings: Sequence[Painting], exact: bool) -> media.Picture:
    path: Path | None = next((one.real for one in paintings if one.real is not None), None)
    return media.Picture(problem="no real picture") if path is None else media.embed_picture(path, 288, exact)


def _grids(
    runs: Sequence[Run], views: Sequence[Mapping[str, Any]], num_all_runs: int
) -> list[dict[str, Any]]:
    most = int(min(max(48 // max(num_all_runs, 1), 2), 12))
    made = []
    for run, view in zip(runs, views, strict=True):
        if not run.grids:
            continue
        places = np.unique(np.linspace(0, len(run.grids) - 1, min(most, len(run.grids))).round().astype(int))
        chosen = [
            (step, media.embed_picture(path, 560)) for step, path in (run.grids[place] for place in places)
        ]
        whole = [(step, one) for step, one in chosen if one.address]
        if whole:
            steps = [f"{step:,}" for step, _ in whole]
            made.append({"run": view, "steps": steps, "pictures": [one for _, one in whole]})
    return made
