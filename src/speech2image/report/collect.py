"""Reads run folders into records the report can lay side by side.

Here a folder becomes a `Run`: what was trained, what it measured, what it painted, and in words
what is missing or damaged.  Nothing is drawn and nothing is written here; curves come from
`journal.py`, the choice of shared utterances from `rows.py`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from speech2image.errors import DataError
from speech2image.report.items import Item, read_items
from speech2image.report.journal import Journal, read_journal, read_json_lines
from speech2image.report.measures import Metric, Sampling, number_of, read_metrics, read_object
from speech2image.report.protocols import told_apart
from speech2image.report.settings import defining_settings, differing_settings, seed_of, spoken_input
from speech2image.safe.records import MAX_YAML_BYTES, read_limited, read_yaml

#: Stages that paint images from speech.
PAINTERS = ("gan", "diffusion")


@dataclass(frozen=True)
class Painting:
    """One generated picture and where it came from; paths are resolved, None: not there."""

    file: Path
    utterance: str
    caption: str
    class_name: str
    real: Path | None
    wave: Path | None
    seed: int
    sample: int


@dataclass(frozen=True, eq=False)
class Run:
    """One run folder; `gaps` says in words what is missing or damaged.

    Attributes:
        experiment: what it was trained as.
        seed: of its training; None: its configuration names none.
        settings: what defines it besides its seed, dotted key to text; empty: not known.
        input: what it is told: `speech`, `text`, `class`, `nothing`, or `` where that is not known.
        metrics: those of the run's own sampler.
        samplings: every sampler that was tried, that one too.
        items: for each metrics file the images it was measured on, one by one, where kept.
    """

    path: Path
    run_id: str
    label: str
    stage: str
    corpus: str
    about: Mapping[str, Any]
    encoder: str
    generator: str
    config_text: str
    journal: Journal
    metrics: tuple[Metric, ...]
    metric_files: Mapping[str, Mapping[str, Any]]
    paintings: Mapping[str, tuple[Painting, ...]]
    grids: tuple[tuple[int, Path], ...]
    gaps: tuple[str, ...] = field(default=())
    samplings: tuple[Sampling, ...] = field(default=())
    experiment: str = ""
    seed: int | None = None
    settings: Mapping[str, str] = field(default_factory=dict)
    input: str = ""
    items: Mapping[str, tuple[Item, ...]] = field(default_factory=dict)

    @property
    def kind(self) -> str:
        """Which table the run stands in: its stage, but all that paint from speech share one."""
        return "generator" if self.stage in PAINTERS else self.stage

    @property
    def paints(self) -> bool:
        """Whether images for utterances are expected of it."""
        return self.stage not in ("encoder", "codec")


def read_runs(folders: Sequence[Path]) -> list[Run]:
    """Read every folder of `folders`, each once, in the given order, with labels made unique.

    Args:    folders: run folders of any stage; those that are not known are shown as they are.
    Raises:  DataError: no folder given, or folders that are no run, all of them in one message.
    """
    unique = list(dict.fromkeys(Path(folder).expanduser().resolve() for folder in folders))
    if not unique:
        raise DataError("no run to report: the list of run folders is empty", "Give runs=[DIR,...].")
    abouts: list[Mapping[str, Any]] = []
    wrong: list[str] = []
    for folder in unique:
        about = read_object(folder / "run.json")
        abouts.append(about if isinstance(about, Mapping) else {})
        if isinstance(about, str):
            wrong.append(f"{folder}: {about if folder.is_dir() else 'is no folder'}")
    if wrong:
        raise DataError(
            f"{len(wrong)} of {len(unique)} folders are no run: " + "; ".join(wrong),
            "Give folders that `speech2image train` or `import` made; each holds a run.json.",
        )
    runs = [_read_run(folder, about) for folder, about in zip(unique, abouts, strict=True)]
    labels = _labels(runs)
    runs = [replace(run, label=label) for run, label in zip(runs, labels, strict=True)]
    renamed = told_apart([(run.metrics, run.samplings, run.metric_files) for run in runs])
    return [replace(run, metrics=metrics, samplings=samplings)
            for run, (metrics, samplings) in zip(runs, renamed, strict=True)]  # fmt: skip


def _read_run(folder: Path, about: Mapping[str, Any]) -> Run:
    gaps: list[str] = []
    run_id = str(about.get("run_id") or folder.name)
    config_text = _read_text(folder / "config.yaml", gaps)
    config = _parsed(config_text)
    stage = str(about.get("stage") or "unknown")
    metrics, metric_files, samplings = read_metrics(folder, run_id, gaps)
    items = read_items(folder, metric_files, gaps)
    grids = _read_grids(folder)
    paintings: dict[str, tuple[Painting, ...]] = {}
    if stage != "encoder":
        if stage != "codec":
            paintings = _read_paintings(folder, run_id, gaps)
        if not grids:
            gaps.append("no sample grids (samples/step_*.png): its progress over training is not shown")
    status = str(about.get("status") or "unknown")
    if status != "finished":
        gaps.append(f"status is “{status}”, not “finished”: numbers may be of an unfinished run")
    return Run(
        path=folder,
        run_id=run_id,
        label="",
        stage=stage,
        corpus=str(about.get("corpus") or "unknown corpus"),
        about=about,
        encoder=_part(config, about, "encoder"),
        generator=_part(config, about, "generator"),
        config_text=config_text,
        journal=_read_journal(folder, gaps),
        metrics=metrics,
        metric_files=metric_files,
        paintings=paintings,
        grids=grids,
        gaps=tuple(gaps),
        samplings=samplings,
        experiment=str(about.get("experiment") or run_id),
        seed=seed_of(config),
        settings=defining_settings(config),
        input=spoken_input(config, folder) if stage != "codec" else "",
        items=items,
    )


def _labels(runs: Sequence[Run]) -> list[str]:
    """Name runs by experiment; namesakes also by the settings and the seed that tell them apart."""
    times = Counter(run.experiment for run in runs)
    labels = []
    for run in runs:
        namesakes = [other for other in runs if other.experiment == run.experiment]
        parts = differing_settings(run.settings, [other.settings for other in namesakes])
        if run.seed is not None and len({other.seed for other in namesakes}) > 1:
            parts.append(f"seed {run.seed}")
        labels.append(", ".join([run.experiment, *parts]) if times[run.experiment] > 1 else run.experiment)
    times = Counter(labels)
    labels = [label if times[label] == 1 else f"{label} {run.run_id.rsplit('-', 1)[-1][:8]}"
              for label, run in zip(labels, runs, strict=True)]  # fmt: skip
    times = Counter(labels)
    return [label if times[label] == 1 else f"{label} ({run.path.parent.name}/{run.path.name})"
            for label, run in zip(labels, runs, strict=True)]  # fmt: skip


def _parsed(config_text: str) -> Mapping[str, Any]:
    try:
        config = read_yaml(config_text)
    except ValueError:
        config = None
    return config if isinstance(config, dict) else {}


def _part(config: Mapping[str, Any], about: Mapping[str, Any], group: str) -> str:
    value = config.get(group) or about.get(group)
    if isinstance(value, dict):
        target = str(value.get("_target_") or "").rsplit(".", 1)[-1]
        trained = value.get("run") if target == "FromRun" else None  # a generator's encoder, by its run
        value = Path(str(trained)).name if trained else value.get("name") or target
    return str(value) if value and isinstance(value, str) else ""


def _read_text(path: Path, gaps: list[str]) -> str:
    try:
        return read_limited(path, MAX_YAML_BYTES).decode("utf-8", errors="replace")
    except (OSError, ValueError) as error:
        gaps.append(f"{path.name} cannot be read: {getattr(error, 'strerror', None) or error}")
        return ""


def _read_journal(folder: Path, gaps: list[str]) -> Journal:
    try:
        journal = read_journal(folder / "journal.jsonl")
    except OSError:
        gaps.append("no journal (journal.jsonl): no curves")
        return Journal()
    except ValueError as error:
        gaps.append(f"the journal is not used: {error}")
        return Journal()
    if journal.num_damaged:
        plural = "s" if journal.num_damaged > 1 else ""
        gaps.append(f"{journal.num_damaged} journal line{plural} cut or damaged, left out of the curves")
    if not journal.num_lines:
        gaps.append("the journal is empty: no curves")
    return journal


def _read_grids(folder: Path) -> tuple[tuple[int, Path], ...]:
    grids = []
    for path in folder.glob("samples/step_*.png"):
        digits = path.stem.removeprefix("step_")
        if digits.isdigit():
            grids.append((int(digits), path))
    return tuple(sorted(grids))


def _read_paintings(folder: Path, run_id: str, gaps: list[str]) -> dict[str, tuple[Painting, ...]]:
    manifests = sorted(folder.glob("generated/*/manifest.jsonl"), key=lambda path: path.parent.name != "test")
    if not manifests:
        gaps.append(f"no generated pictures (generated/test); type `speech2image generate run={run_id}`")
        return {}
    home = manifests[0].parent
    if home.name != "test":
        gaps.append(f"no pictures of the test split; those of “{home.name}” are shown")
    lines, num_damaged = read_json_lines(manifests[0])
    paintings: dict[str, list[Painting]] = {}
    num_lost = 0
    for line in lines:
        file = _resolve(line.get("file"), home, folder)
        if file is None or not line.get("utterance"):
            num_lost += 1
            continue
        painting = Painting(
            file=file,
            utterance=str(line["utterance"]),
            caption=str(line.get("caption") or ""),
            class_name=str(line.get("class_name") or ""),
            real=_resolve(line.get("image_file"), home, folder),
            wave=_resolve(line.get("wave"), home, folder),
            seed=int(number_of(line.get("seed")) or 0),
            sample=int(number_of(line.get("sample")) or 0),
        )
        paintings.setdefault(painting.utterance, []).append(painting)
    if num_damaged or num_lost:
        gaps.append(
            f"generated/{home.name}: {num_damaged} damaged manifest lines, {num_lost} pictures missing"
        )
    ordered = {key: sorted(some, key=lambda one: (one.seed, one.sample)) for key, some in paintings.items()}
    return {key: tuple(some) for key, some in ordered.items()}


def _resolve(name: Any, *homes: Path) -> Path | None:
    """Return the file `name` names, absolute or below one of `homes`, or None."""
    if not isinstance(name, str) or not name:
        return None
    for path in (Path(name), *(home / name for home in homes)):
        try:
            if path.is_absolute() and path.is_file():
                return path
        except (OSError, ValueError):  # a name that no disk can have
            return None
    return None
