"""Reads what a run measured: `metrics*.json`, with protocol, interval and count of every number.

Here are numbers only.  The rest of a run folder is read in `collect.py`; how numbers look is in
`tables.py`, which of them are compared in `differences.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from speech2image.safe.records import read_json, read_limited


@dataclass(frozen=True)
class Metric:
    """One number of a run under its protocol; `low` and `high` bound it at `level`.

    Of several seeds `value` is their mean, `deviation` their standard deviation, `low` and `high` the t
    interval of the mean, and `num_seeds` says how many.  `file` is the metrics file it stands in,
    `network` the hash of the feature network it was measured with, where there was one.
    """

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
    file: str = ""
    network: str = ""
    deviation: float | None = None
    num_seeds: int = 1

    @property
    def identity(self) -> tuple[str, str, str, str]:
        """What two numbers must share to stand in one column: name, protocol, split, unit."""
        return (self.name, self.protocol, self.split, self.unit)


@dataclass(frozen=True)
class Sampling:
    """One evaluation of images that one sampler made.

    Attributes:
        sampler: its settings, `name` and `steps` among them; empty: a GAN, which paints in one call.
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


def read_object(path: Path) -> Mapping[str, Any] | str:
    """Return the JSON object in `path`, or in words why there is none."""
    if not path.is_file():
        return f"has no {path.name}"
    try:
        value = read_json(read_limited(path))
    except OSError as error:
        return f"its {path.name} cannot be read: {error.strerror or error}"
    except ValueError as error:
        return f"its {path.name} is damaged: {error}"
    return value if isinstance(value, dict) else f"its {path.name} holds no JSON object"


def read_metrics(
    folder: Path, run_id: str, gaps: list[str]
) -> tuple[tuple[Metric, ...], dict[str, Mapping[str, Any]], tuple[Sampling, ...]]:
    """Return the numbers of a run by its own sampler, its metric files, and every sampler tried.

    Args:
        folder: of the run.
        run_id: named in what to type where numbers are missing.
        gaps: gets in words what is missing or damaged.
    """
    metrics: list[Metric] = []
    files: dict[str, Mapping[str, Any]] = {}
    samplings: list[Sampling] = []
    for path in sorted(folder.glob("metrics*.json")):
        content = read_object(path)
        if isinstance(content, str):
            gaps.append(f"{path.name} is not used: {content}")
            continue
        files[path.name] = content
        entries, own = content.get("metrics"), []
        for entry in entries if isinstance(entries, list) else []:
            if isinstance(entry, dict) and entry.get("name"):
                own.append(_metric(entry, content, path.name))
            else:
                gaps.append(f"{path.name} has an entry without a name, left out")
        details = content.get("details")
        details = details if isinstance(details, Mapping) else {}
        samplings += _sampling(details.get("sampling"), tuple(own))
        if details.get("is_default_sampler", True):
            metrics += own
    if not files and not any("metrics" in gap for gap in gaps):
        gaps.append(f"no metrics.json: not evaluated; type `speech2image evaluate run={run_id}`")
    return tuple(metrics), files, tuple(samplings)


def _sampling(about: Any, metrics: tuple[Metric, ...]) -> list[Sampling]:
    """Return how the images of one evaluation were painted, where that was recorded."""
    calls = number_of(about.get("network_calls")) if isinstance(about, Mapping) else None
    if calls is None:
        return []
    sampler = about.get("sampler") or {}  # a GAN has none
    threads = number_of(about.get("threads"))
    machine = str(about.get("device") or "")
    machine += f", {threads:g} thread{'' if threads == 1 else 's'}" if machine == "cpu" and threads else ""
    return [Sampling(sampler, int(calls), number_of(about.get("seconds_per_image")), machine, metrics)]


def _metric(entry: Mapping[str, Any], content: Mapping[str, Any], file: str) -> Metric:
    count = number_of(entry.get("count"))
    details = entry.get("details")
    network = str(details.get("weight_hash") or "") if isinstance(details, Mapping) else ""
    return Metric(
        name=str(entry["name"]),
        value=number_of(entry.get("value")),
        low=number_of(entry.get("low")),
        high=number_of(entry.get("high")),
        level=number_of(entry.get("level")),
        count=None if count is None else int(count),
        higher_is_better=bool(entry.get("higher_is_better", True)),
        unit=str(entry.get("unit") or ""),
        chance=number_of(entry.get("chance")),
        note=str(entry.get("note") or ""),
        protocol=_name(entry.get("protocol") or content.get("protocol")),
        split=_name(entry.get("split") or content.get("split")),
        file=file,
        network=network,
    )


def _name(value: Any) -> str:
    return str(value.get("name") or "unnamed") if isinstance(value, Mapping) else str(value or "unnamed")


def number_of(value: Any) -> float | None:
    """Return `value` as a float where it is a finite number, else None."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if number and abs(value) < 1e300 else None
