"""Runs that differ only by their seed become one row: mean, standard deviation, t interval.

Here is who belongs together and what the group measured.  How it is written is in `tables.py`,
what differs between groups in `differences.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from speech2image.report.collect import Run
from speech2image.report.measures import Metric
from speech2image.report.settings import differing_settings
from speech2image.report.significance import t_interval


@dataclass(frozen=True, eq=False)
class Group:
    """The seeds of one method: runs of one experiment and configuration, often a single one.

    Attributes:
        label: its name; settings in which namesakes differ included.
        runs: its runs, in the order given.
        metrics: of the one run; of several seeds means with t intervals.
    """

    label: str
    runs: tuple[Run, ...]
    metrics: tuple[Metric, ...]

    @property
    def is_seeds(self) -> bool:
        """Whether several seeds stand behind it."""
        return len(self.runs) > 1

    def values(self, identity: tuple[str, str, str, str]) -> list[float]:
        """Return what each run measured of one metric, runs without it left out."""
        return [value for run in self.runs if (value := _value(run, identity)) is not None]


def group_runs(runs: Sequence[Run]) -> list[Group]:
    """Group runs of one stage and corpus by experiment and configuration without the seed.

    Runs of one seed (the same trained twice, or imported) and runs whose configuration is not known
    stay alone.
    """
    members: dict[object, list[Run]] = {}
    for run in runs:
        # The stage too: `kind` puts painters of both stages in one table.
        key: object = (run.corpus, run.stage, run.experiment, tuple(sorted(run.settings.items())))
        taken = [other.seed for other in members.get(key, [])]
        if not run.settings or run.seed is None or run.seed in taken:
            key = run.path
        members.setdefault(key, []).append(run)
    sets = list(members.values())
    return [Group(_label(some, sets), tuple(some), pooled(some)) for some in sets]


def _label(runs: Sequence[Run], sets: Sequence[Sequence[Run]]) -> str:
    if len(runs) == 1:
        return runs[0].label
    first = runs[0]
    namesakes = [other[0].settings for other in sets if other[0].experiment == first.experiment]
    return ", ".join([first.experiment, *differing_settings(first.settings, namesakes)])


def pooled(runs: Sequence[Run]) -> tuple[Metric, ...]:
    """Return the metrics of seeds: mean, standard deviation (n - 1) and 95 % t interval over the runs.

    A metric that only one of the seeds has stays as it was measured; a value that is no number is left out.
    """
    if len(runs) == 1:
        return runs[0].metrics
    found: dict[tuple[str, str, str, str], list[Metric]] = {}
    for run in runs:
        for metric in run.metrics:
            if metric.value is not None:
                found.setdefault(metric.identity, []).append(metric)
    return tuple(_pooled(some) for some in found.values())


def _pooled(metrics: Sequence[Metric]) -> Metric:
    first = metrics[0]
    if len(metrics) == 1:
        return first
    spread = t_interval([metric.value for metric in metrics if metric.value is not None])
    counts = {metric.count for metric in metrics}
    ends = (0.0, 1.0) if first.unit == "fraction" else (-float("inf"), float("inf"))
    return replace(
        first,
        value=spread.mean,
        low=min(max(spread.low, ends[0]), ends[1]),  # t knows nothing of the ends of a share
        high=min(max(spread.high, ends[0]), ends[1]),
        level=0.95,
        count=first.count if len(counts) == 1 else None,
        deviation=spread.deviation,
        num_seeds=spread.count,
    )


def _value(run: Run, identity: tuple[str, str, str, str]) -> float | None:
    return next((metric.value for metric in run.metrics if metric.identity == identity), None)
