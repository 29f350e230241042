"""Gathers what Weights & Biases is to show of a run folder: curves, grids, tables, recordings, costs.

Here run records become plain data; nothing is sent.  The upload and the dashboard are in `training/dashboards.py`.
"""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from speech2image.report.collect import Run
from speech2image.report.measures import Metric
from speech2image.report.media import embed_sound
from speech2image.report.rows import Row, choose_rows
from speech2image.safe.records import read_yaml
from speech2image.training.dashboards import Picture, Publication, Sheet, Sound, cost_summary

METRIC_COLUMNS = (
    "metric", "value", "low", "high", "level", "count", "protocol", "split", "unit", "chance", "better", "note",
)  # fmt: skip
UTTERANCE_COLUMNS = (
    "utterance", "caption", "class", "speech", "spectrogram", "real", "painted", "seed", "sample",
)  # fmt: skip
MAX_WAVE_S = 20.0


def gather(run: Run, num_utterances: int) -> Publication:
    """Return what is shown of a run.

    Args:
        run: read by `report.collect.read_runs`.
        num_utterances: at most so many utterances in table and galleries.
    """
    rows = choose_rows([run], num_utterances)[0]
    sheets = {"metrics": _metrics(run.metrics)} if run.metrics else {}
    media: dict[str, list[Picture | Sound]] = {}
    if rows:
        sheets["utterances"] = Sheet(UTTERANCE_COLUMNS, tuple(_utterance(row) for row in rows))
        firsts = [row.first for row in rows]
        media["speech"] = [Sound(one.wave, one.caption) for one in firsts if one.wave]
        media["painted"] = [Picture(one.file, one.caption) for one in firsts]
        media["real"] = [Picture(one.real, one.caption) for one in firsts if one.real]
    return Publication(
        run_id=run.run_id,
        about=_about(run),
        config=_config(run),
        history=_history(run),
        grids=dict(run.grids),
        summary={**_scores(run.metrics), **_costs(run)},
        sheets=sheets,
        media={name: items for name, items in media.items() if items},
    )


def _about(run: Run) -> dict[str, Any]:
    tags = [tag for tag in (run.corpus, run.stage, run.encoder, run.generator) if tag]
    return {
        "group": str(run.about.get("experiment") or run.run_id),
        "job_type": run.stage,
        "tags": [tag[:64] for tag in dict.fromkeys(tags)],
        "notes": f"speech2image {run.stage} of {run.corpus}; {run.about.get('machine', 'machine unknown')}",
    }


def _config(run: Run) -> dict[str, Any]:
    try:
        config = read_yaml(run.config_text)
    except ValueError:
        config = None
    protocols: dict[str, Any] = {}
    for content in run.metric_files.values():
        details = content.get("details")
        protocol = details.get("protocol") if isinstance(details, Mapping) else None
        protocols[str(content.get("protocol"))] = protocol or content.get("protocol")
    versions = run.about.get("versions")
    return {
        **(config if isinstance(config, dict) else {}),
        "protocols": protocols,
        "versions": dict(versions) if isinstance(versions, Mapping) else {},
        "corpus": run.corpus,
    }


def _history(run: Run) -> dict[int, dict[str, float]]:
    history: dict[int, dict[str, float]] = {}
    for name, curve in (*run.journal.train.items(), *run.journal.val.items()):
        for step, value in zip(curve.steps.tolist(), curve.values.tolist(), strict=True):
            if math.isfinite(value):
                history.setdefault(step, {})[name] = value
    return history


def _scores(metrics: tuple[Metric, ...]) -> dict[str, float]:
    return {
        f"{metric.protocol}/{metric.split}/{metric.name}": metric.value
        for metric in metrics
        if metric.value is not None
    }


def _costs(run: Run) -> dict[str, float]:
    costs = cost_summary(run.about)
    for content in run.metric_files.values():
        details = content.get("details")
        details = details if isinstance(details, Mapping) else {}
        sampling = details.get("sampling")
        seconds = sampling.get("seconds_per_image") if isinstance(sampling, Mapping) else None
        if details.get("is_default_sampler", True) and seconds:
            costs["cost/images_per_s"] = 1.0 / float(seconds)
    return costs


def _metrics(metrics: tuple[Metric, ...]) -> Sheet:
    rows = [
        (one.name, one.value, one.low, one.high, one.level, one.count, one.protocol, one.split, one.unit,
         one.chance, "higher" if one.higher_is_better else "lower", one.note)
        for one in metrics
    ]  # fmt: skip
    return Sheet(METRIC_COLUMNS, tuple(rows))


def _utterance(row: Row) -> tuple[Any, ...]:
    first = row.first
    return (
        first.utterance, first.caption, first.class_name, Sound(first.wave) if first.wave else None,
        _spectrogram(first.wave), Picture(first.real) if first.real else None, Picture(first.file),
        first.seed, first.sample,
    )  # fmt: skip


def _spectrogram(wave: Any) -> Picture | None:
    """Draw the recording as the page does; None where it cannot be read."""
    from PIL import Image

    if wave is None:
        return None
    address = embed_sound(wave, MAX_WAVE_S).spectrogram.address
    if not address:
        return None
    content = base64.b64decode(address.partition(",")[2])
    return Picture(np.asarray(Image.open(io.BytesIO(content)).convert("RGB")))
