"""What a run cost: training time, processor time, memory, and how fast it paints.

Numbers come from `run.json` and from the sampling that `evaluate` recorded; each may be missing,
because older runs kept fewer of them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from speech2image.report.collect import Run
from speech2image.report.measures import number_of


@dataclass(frozen=True)
class Costs:
    """Costs of one run, or means over the seeds of a group; None: not recorded.

    Attributes:
        train_step: steps trained.
        train_seconds: by the clock.
        train_cpu_seconds: of processor time.
        peak_memory_mb: resident on a CPU, allocated on a GPU.
        seconds_per_image: of painting with the run's own sampler.
        machine: where painting was timed.
    """

    train_step: float | None = None
    train_seconds: float | None = None
    train_cpu_seconds: float | None = None
    peak_memory_mb: float | None = None
    seconds_per_image: float | None = None
    machine: str = ""

    @property
    def images_per_second(self) -> float | None:
        """Images painted in a second."""
        return 1.0 / self.seconds_per_image if self.seconds_per_image else None


def costs_of(run: Run) -> Costs:
    """Return the costs of a run."""
    own = [one for one in run.samplings if any(metric in run.metrics for metric in one.metrics)]
    painted = next((one for one in own if one.seconds_per_image), None)
    return Costs(
        train_step=_of(run, "train_step") or _last_step(run),
        train_seconds=_of(run, "train_seconds") or run.journal.seconds,
        train_cpu_seconds=_of(run, "train_cpu_seconds"),
        peak_memory_mb=_of(run, "peak_memory_mb"),
        seconds_per_image=painted.seconds_per_image if painted else None,
        machine=painted.machine if painted else "",
    )


def mean_costs(runs: Sequence[Run]) -> Costs:
    """Return the mean costs of the seeds of a group, each over the runs that recorded it."""
    every = [costs_of(run) for run in runs]
    means = {}
    for name in (field.name for field in dataclasses.fields(Costs) if field.name != "machine"):
        known = [value for one in every if (value := getattr(one, name)) is not None]
        means[name] = fmean(known) if known else None
    return Costs(**means, machine=", ".join(dict.fromkeys(one.machine for one in every if one.machine)))


def _of(run: Run, name: str) -> float | None:
    value = number_of(run.about.get(name))
    return value if value is not None and value > 0 else None


def _last_step(run: Run) -> float | None:
    lasts = [int(curve.steps[-1]) for curve in run.journal.train.values() if len(curve.steps)]
    return float(max(lasts)) if lasts else None
