"""Finished runs in Weights & Biases, and the workspace and the report that show them, as code.

Here: a run's journal, tables, media and costs replayed into the wandb run of the same id, and one plain-data
specification from which workspace and report are made.  What goes in is gathered by `report/publication.py`.  A second
upload adds nothing twice: history is keyed by step, all else lies in the summary, which is overwritten.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from speech2image.errors import DataError, MissingPackageError
from speech2image.training.loggers import WandbLogger

SECTIONS = ("Quality while training", "Scores", "The same utterances", "Training", "Costs")
#: Keys of `run.json` that say what a run cost.
COSTS = ("train_seconds", "train_cpu_seconds", "peak_memory_mb", "images_seen")
_WIDTH, _HEIGHT = 24, 12


@dataclass(frozen=True)
class Picture:
    """A picture of a table: a file, or `(H, W, 3)` uint8."""

    content: Path | np.ndarray
    caption: str = ""


@dataclass(frozen=True)
class Sound:
    """A recording of a table."""

    path: Path
    caption: str = ""


Cell = str | float | int | Picture | Sound | None


@dataclass(frozen=True)
class Sheet:
    """A table: names of its columns and its rows."""

    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]


@dataclass(frozen=True)
class Publication:
    """All of one run that wandb shows.

    Attributes:
        run_id: ours; also wandb's id, so that training and evaluation meet in one run.
        about: `group`, `job_type`, `tags` and `notes` of the run.
        config: resolved configuration, and under `protocols` those of its evaluations.
        history: step to scalars.
        grids: step to the sample grid painted at it.
        summary: scores `<protocol>/<split>/<metric>` and costs `cost/<what>`.
        sheets: tables by name.
        media: lists of pictures, or of recordings, by name.
    """

    run_id: str
    about: Mapping[str, Any]
    config: Mapping[str, Any]
    history: Mapping[int, Mapping[str, float]]
    grids: Mapping[int, Path] = field(default_factory=dict)
    summary: Mapping[str, float | str] = field(default_factory=dict)
    sheets: Mapping[str, Sheet] = field(default_factory=dict)
    media: Mapping[str, Sequence[Picture | Sound]] = field(default_factory=dict)


def publish_run(
    publication: Publication, folder: Path, mode: str, project: str, entity: str | None
) -> str | None:
    """Replay a run into wandb.

    Args:
        folder: where wandb's files go; its former content is replaced.
        mode: `offline` or `online`.
    Returns: folder of the offline run or address of the online one; None: wandb failed, which was warned of.
    """
    shutil.rmtree(folder, ignore_errors=True)
    with _data_folder(folder / "data"):
        logger = WandbLogger(
            mode, project, entity, publication.run_id, folder, dict(publication.config), publication.about
        )
        place = logger.place
        if logger.mode != mode:
            logger.close()
            return None
        for step in sorted({*publication.history, *publication.grids}):
            logger.log(step, dict(publication.history.get(step, {})))
            if step in publication.grids:
                logger.log_picture(step, "samples", publication.grids[step])
        logger.summarise(lambda: publication.summary)
        for name, sheet in publication.sheets.items():
            logger.summarise(lambda name=name, sheet=sheet: {name: _table(sheet)})  # type: ignore[misc]
        for name, items in publication.media.items():
            logger.summarise(lambda name=name, items=items: {name: _gallery(items)})  # type: ignore[misc]
        works = logger.place is not None
        logger.close()
    return place if works else None


@contextmanager
def _data_folder(folder: Path) -> Iterator[None]:
    """Keep the files behind tables beside the run; wandb's own place is in the home of the user."""
    before = os.environ.get("WANDB_DATA_DIR")
    os.environ["WANDB_DATA_DIR"] = str(folder.resolve())
    try:
        yield
    finally:
        os.environ.pop("WANDB_DATA_DIR")
        if before is not None:
            os.environ["WANDB_DATA_DIR"] = before


def _table(sheet: Sheet) -> Any:
    import wandb

    rows = [
        [_media(cell) if isinstance(cell, Picture | Sound) else cell for cell in row] for row in sheet.rows
    ]
    return wandb.Table(columns=list(sheet.columns), data=rows, allow_mixed_types=True)


def _gallery(items: Sequence[Picture | Sound]) -> list[Any]:
    return [found for item in items if (found := _media(item)) is not None]


def _media(cell: Picture | Sound) -> Any:
    """Return wandb's form of a picture or recording; None where the file is gone or damaged."""
    import wandb

    try:
        if isinstance(cell, Sound):
            import soundfile

            soundfile.info(str(cell.path))
            return wandb.Audio(str(cell.path), caption=cell.caption or None)
        content: Any = cell.content
        if isinstance(content, Path):
            from speech2image.images.read import read_image

            content = read_image(content)
        return wandb.Image(content, caption=cell.caption or None)
    except (OSError, RuntimeError, ValueError, DataError):
        return None


def cost_summary(info: Mapping[str, Any]) -> dict[str, float]:
    """Return what a run cost, from its `run.json`, as `cost/<what>`; parameters by part of the model."""
    costs = {f"cost/{key}": float(info[key]) for key in COSTS if isinstance(info.get(key), int | float)}
    parts = info.get("parameters")
    if isinstance(parts, Mapping):
        costs |= {f"cost/parameters/{part}": float(count) for part, count in parts.items()}
    return costs


# ---- what is looked at --------------------------------------------------------------------------
def dashboard(
    publications: Sequence[Publication], project: str, entity: str | None, title: str
) -> dict[str, Any]:
    """Return the specification of workspace and report for some runs, plain data.

    Returns: `project`, `entity`, `title`, `runs` (ids) and `sections`, each with `name` and `panels`; a panel has
        `kind` (line, bar, scatter, media, table), `title` and `keys`.  Only what some run has gets a panel.
    """
    scalars = sorted({key for one in publications for values in one.history.values() for key in values})
    summary = sorted({key for one in publications for key in one.summary})
    sheets = list(dict.fromkeys(name for one in publications for name in one.sheets))
    media = list(dict.fromkeys(name for one in publications for name in one.media))
    if any(one.grids for one in publications):
        media.insert(0, "samples")
    costs = [key for key in summary if key.startswith("cost/")]
    scores = [key for key in summary if not key.startswith("cost/")]
    quality = [key for key in scores if key.endswith(("/fid", "/attribute_accuracy/mean", "/recall@10"))]
    panels: list[list[dict[str, Any]]] = [
        [_panel("line", key, [key]) for key in scalars if key.startswith("val_")],
        [_panel("table", "Every number with its interval and protocol", [name]) for name in sheets[:1]]
        + [_panel("bar", family, keys) for family, keys in _families(scores).items()],
        [_panel("table", name, [name]) for name in sheets[1:]] + [_panel("media", key, [key]) for key in media],
        [_panel("line", key, [key]) for key in scalars if not key.startswith("val_")],
        [_panel("bar", family, keys) for family, keys in _families(costs).items()]
        + [_panel("scatter", f"{score} against {cost}", [cost, score])
           for score in quality for cost in costs if cost == "cost/train_seconds"],
    ]  # fmt: skip
    sections = [{"name": name, "panels": some} for name, some in zip(SECTIONS, panels, strict=True) if some]
    runs = [one.run_id for one in publications]
    return {"project": project, "entity": entity, "title": title, "runs": runs, "sections": sections}


def _families(keys: Sequence[str]) -> dict[str, list[str]]:
    """Return summary keys by what shares a panel: `p/test/recall@1` and `p/test/recall@5`, all of a cost's parts."""
    families: dict[str, list[str]] = {}
    for key in keys:
        depth = 2 if key.startswith("cost/") else 3
        families.setdefault("/".join(key.partition("@")[0].split("/")[:depth]), []).append(key)
    return families


def _panel(kind: str, title: str, keys: list[str]) -> dict[str, Any]:
    return {"kind": kind, "title": title, "keys": keys}


def make_workspace(spec: Mapping[str, Any]) -> Any:
    """Return the `wandb_workspaces` workspace of a specification; nothing is sent."""
    workspaces, _ = _packages()
    sections = [
        workspaces.Section(name=section["name"], panels=_panels(section["panels"]), is_open=place < 3)
        for place, section in enumerate(spec["sections"])
    ]
    return workspaces.Workspace(
        entity=spec["entity"], project=spec["project"], name=spec["title"], sections=sections,
        runset_settings=workspaces.RunsetSettings(filters=_only(spec["runs"])),
    )  # fmt: skip


def make_report(spec: Mapping[str, Any]) -> Any:
    """Return the `wandb_workspaces` report of a specification; nothing is sent."""
    _, reports = _packages()
    blocks: list[Any] = [reports.TableOfContents()]
    for section in spec["sections"]:
        runset = reports.Runset(entity=spec["entity"], project=spec["project"], filters=_only(spec["runs"]))
        grid = reports.PanelGrid(runsets=[runset], panels=_panels(section["panels"]))
        blocks += [reports.H2(section["name"]), grid]
    return reports.Report(
        entity=spec["entity"], project=spec["project"], title=spec["title"][:128], blocks=blocks, width="fluid",
        description=f"{len(spec['runs'])} runs of speech2image; every number stands under a named protocol.",
    )  # fmt: skip


def push_dashboard(spec: Mapping[str, Any], known: Mapping[str, str]) -> dict[str, str]:
    """Save workspace and report online; those of an earlier push are overwritten.

    Args:    known: `workspace` and `report`, addresses of an earlier push; may be empty.
    Returns: the addresses.
    Raises:  MissingPackageError: `wandb-workspaces`; and whatever wandb raises without network or login.
    """
    import wandb

    workspaces, reports = _packages()
    spec = {**spec, "entity": spec["entity"] or wandb.Api().default_entity}
    workspace, report = make_workspace(spec), make_report(spec)
    if "workspace" in known:
        old = workspaces.Workspace.from_url(known["workspace"])
        old.name, old.sections = workspace.name, workspace.sections
        old.runset_settings, workspace = workspace.runset_settings, old
    if "report" in known:
        old = reports.Report.from_url(known["report"])
        old.title, old.blocks, report = report.title, report.blocks, old
    workspace.save()
    report.save()
    return {"workspace": str(workspace.url), "report": str(report.url)}


def read_known(path: Path) -> dict[str, str]:
    """Return the addresses that an earlier push left in the specification at `path`."""
    try:
        known = json.loads(path.read_text())["urls"]
    except (OSError, ValueError, KeyError, TypeError):
        return {}
    return {key: str(value) for key, value in known.items() if key in ("workspace", "report")}


def _only(runs: Sequence[str]) -> str:
    return f"Metric('ID') in {list(runs)!r}"


def _panels(panels: Sequence[Mapping[str, Any]]) -> list[Any]:
    _, reports = _packages()
    made, place = [], 0
    for panel in panels:
        title, keys, kind = panel["title"], panel["keys"], panel["kind"]
        wide = kind in ("table", "media")
        width = _WIDTH if wide else _WIDTH // 3
        column = 0 if wide else place % 3 * width
        layout = reports.Layout(x=column, y=place // 3 * _HEIGHT, w=width, h=_HEIGHT)
        place = (place // 3 + 1) * 3 if wide else place + 1
        if kind == "line":
            made.append(reports.LinePlot(title=title, x="Step", y=keys, layout=layout))
        elif kind == "bar":
            made.append(reports.BarPlot(title=title, metrics=keys, layout=layout))
        elif kind == "scatter":
            axes = {axis: reports.SummaryMetric(key) for axis, key in zip("xy", keys, strict=True)}
            made.append(reports.ScatterPlot(title=title, layout=layout, **axes))
        elif kind == "media":
            made.append(reports.MediaBrowser(title=title, media_keys=keys, layout=layout))
        else:
            made.append(reports.WeavePanelSummaryTable(table_name=keys[0], layout=layout))
    return made


def _packages() -> tuple[Any, Any]:
    try:
        import wandb_workspaces.reports.v2 as reports
        from wandb_workspaces import workspaces
    except ImportError:
        raise MissingPackageError("wandb-workspaces", "dashboards") from None
    return workspaces, reports
