"""Reads run folders into records the report can lay side by side.

Here a folder becomes a `Run`: what was trained, what it measured, what it painted, and in words
what is missing or damaged.  Nothing is drawn and nothing is written here; curves come from
`journal.py`, the choice of shared utterances from `rows.py`.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from speech2image.errors import DataError
from speech2image.report.journal import Journal, read_journal, read_json_lines

#: Stages that paint images from speech.
PAINTERS = ("gan", "diffusion")


@dataclass(frozen=True)
class Metric:
    """One number of a run under its protocol; `low` and `high` bound it at `level`."""

    name: str
    value: float | None
    low: float | None
    high: float | None
    level: float | None
    count: int | None
    higher_is_better: bool
    unit: str
    chance: float | None
    note: str
    protocol: str
    split: str

    @property
    def identity(self) -> tuple[str, str, str, str]:
        """What two numbers must share to stand in one column: name, protocol, split, unit."""
        return (self.name, self.protocol, self.split, self.unit)


@dataclass(frozen=True)
class Sampling:
    """One evaluation of images that one sampler made.

    Attributes:
        sampler: its settings, `name` and `steps` among them.
        calls: how often the network was called for an image.
        seconds_per_image: of painting, None: not recorded.
        machine: where that was measured.
        metrics: what was measured on the images.
    """

    sampler: Mapping[str, Any]
    calls: int
    seconds_per_image: float | None
    machine: str
    metrics: tuple[Metric, ...]


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


@dataclass(frozen=True)
class Run:
    """One run folder; `gaps` says in words what is missing or damaged.

    `metrics` are those of the run's own sampler; `samplings` has every sampler that was tried, that one too.
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
        about = _read_object(folder / "run.json")
        abouts.append(about if isinstance(about, Mapping) else {})
        if isinstance(about, str):
            wrong.append(f"{folder}: {about if folder.is_dir() else 'is no folder'}")
    if wrong:
        raise DataError(
            f"{len(wrong)} of {len(unique)} folders are no run: " + "; ".join(wrong),
            "Give folders that `speech2image train` or `import` made; each holds a run.json.",
        )
    labels = _labels(unique, abouts)
    return [_read_run(*parts) for parts in zip(unique, abouts, labels, strict=True)]


def _read_run(folder: Path, about: Mapping[str, Any], label: str) -> Run:
    gaps: list[str] = []
    config_text = _read_text(folder / "config.yaml", gaps)
    stage = str(about.get("stage") or "unknown")
    encoder, generator = _parts(config_text, about)
    metrics, metric_files, samplings = _read_metrics(folder, gaps)
    grids = _read_grids(folder)
    paintings: dict[str, tuple[Painting, ...]] = {}
    if stage != "encoder":
        if stage != "codec":
            paintings = _read_paintings(folder, gaps)
        if not grids:
            gaps.append("no sample grids (samples/step_*.png): its progress over training is not shown")
    status = str(about.get("status") or "unknown")
    if status != "finished":
        gaps.append(f"status is “{status}”, not “finished”: numbers may be of an unfinished run")
    return Run(
        path=folder,
        run_id=str(about.get("run_id") or folder.name),
        label=label,
        stage=stage,
        corpus=str(about.get("corpus") or "unknown corpus"),
        about=about,
        encoder=encoder,
        generator=generator,
        config_text=config_text,
        journal=_read_journal(folder, gaps),
        metrics=metrics,
        metric_files=metric_files,
        paintings=paintings,
        grids=grids,
        gaps=tuple(gaps),
        samplings=samplings,
    )


def _labels(folders: Sequence[Path], abouts: Sequence[Mapping[str, Any]]) -> list[str]:
    names = [str(about.get("experiment") or about.get("run_id") or folder.name)
             for folder, about in zip(folders, abouts, strict=True)]  # fmt: skip
    tails = [str(about.get("run_id") or folder.name).rsplit("-", 1)[-1][:8]
             for folder, about in zip(folders, abouts, strict=True)]  # fmt: skip
    times = Counter(names)
    labels = [name if times[name] == 1 else f"{name} {tail}" for name, tail in zip(names, tails, strict=True)]
    times = Counter(labels)
    return [label if times[label] == 1 else f"{label} ({folder.parent.name}/{folder.name})"
            for label, folder in zip(labels, folders, strict=True)]  # fmt: skip


def _parts(config_text: str, about: Mapping[str, Any]) -> tuple[str, str]:
    import yaml

    try:
        config = yaml.safe_load(config_text)
    except yaml.YAMLError:
        config = None
    config = config if isinstance(config, dict) else {}

    def name(group: str) -> str:
        value = config.get(group) or about.get(group)
        if isinstance(value, dict):
            target = str(value.get("_target_") or "").rsplit(".", 1)[-1]
            trained = value.get("run") if target == "FromRun" else None  # a generator's encoder, by its run
            value = Path(str(trained)).name if trained else value.get("name") or target
        return str(value) if value and isinstance(value, str) else ""

    return name("encoder"), name("generator")


def _read_text(path: Path, gaps: list[str]) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        gaps.append(f"{path.name} cannot be read: {error.strerror or error}")
        return ""


def _read_object(path: Path) -> Mapping[str, Any] | str:
    """Return the JSON object in `path`, or in words why there is none."""
    if not path.is_file():
        return f"has no {path.name}"
    try:
        value = json.loads(path.read_bytes())
    except OSError as error:
        return f"its {path.name} cannot be read: {error.strerror or error}"
    except ValueError as error:
        return f"its {path.name} is damaged: {error}"
    return value if isinstance(value, dict) else f"its {path.name} holds no JSON object"


def _read_journal(folder: Path, gaps: list[str]) -> Journal:
    try:
        journal = read_journal(folder / "journal.jsonl")
    except OSError:
        gaps.append("no journal (journal.jsonl): no curves")
        return Journal()
    if journal.num_damaged:
        plural = "s" if journal.num_damaged > 1 else ""
        gaps.append(f"{journal.num_damaged} journal line{plural} cut or damaged, left out of the curves")
    if not journal.num_lines:
        gaps.append("the journal is empty: no curves")
    return journal


def _read_metrics(
    folder: Path, gaps: list[str]
) -> tuple[tuple[Metric, ...], dict[str, Mapping[str, Any]], tuple[Sampling, ...]]:
    metrics: list[Metric] = []
    files: dict[str, Mapping[str, Any]] = {}
    samplings: list[Sampling] = []
    for path in sorted(folder.glob("metrics*.json")):
        content = _read_object(path)
        if isinstance(content, str):
            gaps.append(f"{path.name} is not used: {content}")
            continue
        files[path.name] = content
        entries, own = content.get("metrics"), []
        for entry in entries if isinstance(entries, list) else []:
            if isinstance(entry, dict) and entry.get("name"):
                own.append(_metric(entry, content))
            else:
                gaps.append(f"{path.name} has an entry without a name, left out")
        details = content.get("details")
        details = details if isinstance(details, Mapping) else {}
        samplings += _sampling(details.get("sampling"), tuple(own))
        if details.get("is_default_sampler", True):
            metrics += own
    if not files and not any("metrics" in gap for gap in gaps):
        gaps.append("no metrics.json: not evaluated, run `speech2image evaluate run=<folder>`")
    return tuple(metrics), files, tuple(samplings)


def _sampling(about: Any, metrics: tuple[Metric, ...]) -> list[Sampling]:
    """Return the sampler of one evaluation, where it names one."""
    sampler = about.get("sampler") if isinstance(about, Mapping) else None
    calls = _number(about.get("network_calls")) if isinstance(about, Mapping) else None
    if not isinstance(sampler, Mapping) or calls is None:
        return []
    threads = _number(about.get("threads"))
    machine = str(about.get("device") or "")
    machine += f", {threads:g} thread{'' if threads == 1 else 's'}" if machine == "cpu" and threads else ""
    return [Sampling(sampler, int(calls), _number(about.get("seconds_per_image")), machine, metrics)]


def _metric(entry: Mapping[str, Any], content: Mapping[str, Any]) -> Metric:
    count = _number(entry.get("count"))
    return Metric(
        name=str(entry["name"]),
        value=_number(entry.get("value")),
        low=_number(entry.get("low")),
        high=_number(entry.get("high")),
        level=_number(entry.get("level")),
        count=None if count is None else int(count),
        higher_is_better=bool(entry.get("higher_is_better", True)),
        unit=str(entry.get("unit") or ""),
        chance=_number(entry.get("chance")),
        note=str(entry.get("note") or ""),
        protocol=_name(entry.get("protocol") or content.get("protocol")),
        split=_name(entry.get("split") or content.get("split")),
    )


def _name(value: Any) -> str:
    return str(value.get("name") or "unnamed") if isinstance(value, Mapping) else str(value or "unnamed")


def _number(value: Any) -> float | None:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if number and abs(value) < float("inf") else None


def _read_grids(folder: Path) -> tuple[tuple[int, Path], ...]:
    grids = []
    for path in folder.glob("samples/step_*.png"):
        digits = path.stem.removeprefix("step_")
        if digits.isdigit():
            grids.append((int(digits), path))
    return tuple(sorted(grids))


def _read_paintings(folder: Path, gaps: list[str]) -> dict[str, tuple[Painting, ...]]:
    manifests = sorted(folder.glob("generated/*/manifest.jsonl"), key=lambda path: path.parent.name != "test")
    if not manifests:
        gaps.append("no generated pictures (generated/test): run `speech2image generate run=<folder>`")
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
            seed=int(_number(line.get("seed")) or 0),
            sample=int(_number(line.get("sample")) or 0),
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
        if path.is_absolute() and path.is_file():
            return path
    return None
