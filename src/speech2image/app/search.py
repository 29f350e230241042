"""A search: ask the study for points of a space, let jobs train them, tell the study what came of each.

`Search` knows nothing of Hydra and of who runs the jobs: `sweeper.py` is that side of it.  The space is in
`search_space.py`, what the jobs share with the search in `training/study.py`, what is shown at its end in
`report/search.py`.
"""

from __future__ import annotations

import fcntl
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from speech2image.app.search_space import Space, Value
from speech2image.errors import ConfigError, nearest_names
from speech2image.report.search import TrialRow
from speech2image.training.study import SearchSettings, make_sampler, mend_study, need_optuna, open_study

LARGER_IS_BETTER = ("accuracy", "recall", "precision", "psnr", "inception_score", "clip_score", "map")
SMALLER_IS_BETTER = ("loss", "fid", "kid", "l1", "lpips")


@dataclass(frozen=True)
class Trial:
    """A point of the space that a job is to train.

    Attributes:
        number: of the trial and of its job.
        words: the overrides of its job.
    """

    number: int
    words: tuple[str, ...]


@dataclass(frozen=True)
class Outcome:
    """What came of a job.

    Attributes:
        state: finished, pruned, failed, or left (stopped on the way: the same command continues it).
        value: the metric, of a finished one.
        message: why there is no value.
        run: name of the run it made.
    """

    state: str
    value: float | None = None
    message: str = ""
    run: str = ""


Launch = Callable[[Sequence[Trial]], Sequence[Outcome]]


class Search:
    """The search of one folder.

    Args:
        folder: `runs/sweeps/<id>`; a study that is there is continued.
        space: what is varied.
        settings: what is looked for.
        num_trials: trials the study shall hold at the end; of a grid at most its points.
        num_parallel: trials given to `launch` at once.
        retry_failed: give the failed trials of earlier calls another try.

    Raises:
        MissingPackageError: Optuna is not installed.
    """

    def __init__(
        self, folder: Path, space: Space, settings: SearchSettings, num_trials: int, num_parallel: int = 1,
        retry_failed: bool = False,
    ) -> None:  # fmt: skip
        need_optuna()
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.space, self.settings = folder, space, settings
        self.num_trials, self.num_parallel, self.retry_failed = num_trials, num_parallel, retry_failed
        self.study: Any = None

    def run(self, launch: Launch) -> bool:
        """Launch batch after batch until the study holds `num_trials`; return whether it came to that.

        Trials that a killed search left open come first, with their numbers: their runs continue.

        Args:    launch: trains trials, side by side if it can, and says what came of each, in their order.
        Raises:  ConfigError: this search is running already.
        """
        with _alone(self.folder):
            mend_study(self.folder)
            self.settings.write(self.folder)
            self.study = open_study(self.folder, self.settings)
            self._enqueue()
            left_open = [trial.number for trial in self._trials("RUNNING")]
            while batch := self._next_batch(left_open):
                outcomes = _launch_once(launch, batch)
                for trial, outcome in zip(batch, outcomes, strict=True):
                    self._tell(trial.number, outcome)
                if any(outcome.state == "left" for outcome in outcomes):
                    return False
        return True

    def rows(self) -> list[TrialRow]:
        """Return what is known of every trial, by number; `best` marks the best finished one."""
        done = [trial for trial in self._trials("COMPLETE") if trial.value is not None]
        sign = 1 if self.settings.direction == "minimize" else -1
        best = min(done, key=lambda trial: (sign * trial.value, trial.number), default=None)
        keys = [dimension.key for dimension in self.space.dimensions]
        states = {"COMPLETE": "finished", "PRUNED": "pruned", "FAIL": "failed"}
        return [
            TrialRow(
                number=trial.number,
                state=states.get(trial.state.name, "open"),
                value=trial.value if trial.state.name == "COMPLETE" else None,
                steps=tuple(sorted(trial.intermediate_values.items())),
                point={key: _shown(trial.params[key]) for key in keys if key in trial.params},
                run=trial.user_attrs.get("run", ""),
                message=trial.user_attrs.get("message", ""),
                is_best=trial is best,
            )
            for trial in self.study.get_trials(deepcopy=False)
        ]

    def _trials(self, *states: str) -> list[Any]:
        known = need_optuna().trial.TrialState
        return list(self.study.get_trials(deepcopy=False, states=tuple(known[state] for state in states)))

    def _enqueue(self) -> None:
        """Put before what the sampler thinks of: the points of a grid, and failed trials if asked to."""
        if self.settings.sampler == "grid":
            grid = self.space.grid()
            self.num_trials = min(self.num_trials, len(grid))
            for point in grid[: self.num_trials]:
                self.study.enqueue_trial(point, skip_if_exists=True)
        if self.retry_failed:
            retried = {trial.user_attrs.get("retry_of") for trial in self.study.get_trials(deepcopy=False)}
            for trial in self._trials("FAIL"):
                if trial.number not in retried:
                    self.study.enqueue_trial(trial.params, user_attrs={"retry_of": trial.number})

    def _next_batch(self, left_open: list[int]) -> list[Trial]:
        batch = [self._trial(number) for number in left_open[: self.num_parallel]]
        del left_open[: self.num_parallel]
        while len(batch) < self.num_parallel and (number := self._ask()) is not None:
            batch.append(self._trial(number))
        return batch

    def _ask(self) -> int | None:
        """Open the next trial; None: the study holds as many as it shall."""
        trials = self.study.get_trials(deepcopy=False)
        asked = [trial for trial in trials if trial.state.name != "WAITING"]
        waiting = len(trials) - len(asked)
        retries = sum("retry_of" in trial.user_attrs for trial in trials)
        is_retry = any("retry_of" in trial.user_attrs for trial in trials if trial.state.name == "WAITING")
        if len(asked) - retries >= self.num_trials and not (waiting and is_retry):
            return None
        self.study.sampler = make_sampler(self.settings, len(asked))
        distributions = {dimension.key: dimension.distribution() for dimension in self.space.dimensions}
        return int(self.study.ask(distributions).number)

    def _trial(self, number: int) -> Trial:
        point: Mapping[str, Value] = self.study.get_trials(deepcopy=False)[number].params
        return Trial(number, self.space.words(point))

    def _tell(self, number: int, outcome: Outcome) -> None:
        if outcome.state == "left":
            return
        trial_id = self.study.get_trials(deepcopy=False)[number]._trial_id
        for key, text in (("run", outcome.run), ("message", outcome.message)):
            if text:
                self.study._storage.set_trial_user_attr(trial_id, key, text)
        states = need_optuna().trial.TrialState
        if outcome.state == "finished" and outcome.value is not None and math.isfinite(outcome.value):
            self.study.tell(number, outcome.value)
        else:
            self.study.tell(number, state=states.PRUNED if outcome.state == "pruned" else states.FAIL)


def _launch_once(launch: Launch, batch: Sequence[Trial]) -> list[Outcome]:
    """Launch trials; equal points have one run between them, so it is trained once and told to each."""
    first: dict[tuple[str, ...], Trial] = {}
    for trial in batch:
        first.setdefault(trial.words, trial)
    outcomes = dict(zip(first, launch(list(first.values())), strict=True))
    return [outcomes[trial.words] for trial in batch]


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    with (folder / "search.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise ConfigError(
                f"{folder}: this search is running already, in another process",
                "Wait for it, or stop it first; hydra.sweeper.n_jobs=<n> runs trials side by side.",
            ) from None
        yield


def _shown(value: Value) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)


# ---- what a run says of itself ----------------------------------------------------------------
def direction_of(metric: str, asked: str) -> str:
    """Return minimize or maximize.

    Args:    asked: either of them, or auto: by the metric's name.
    Raises:  ConfigError: another word, or a name that does not tell.

    >>> direction_of("val_recall_at_1", "auto"), direction_of("val_fid", "auto")
    ('maximize', 'minimize')
    """
    if asked in ("minimize", "maximize"):
        return asked
    if asked != "auto":
        raise ConfigError(
            f"hydra.sweeper.direction={asked}: expected minimize, maximize or auto", "Type one of them."
        )
    if any(part in metric for part in LARGER_IS_BETTER):
        return "maximize"
    if any(part in metric for part in SMALLER_IS_BETTER):
        return "minimize"
    raise ConfigError(
        f"hydra.sweeper.metric={metric}: whether more is better cannot be told by its name",
        "Type: hydra.sweeper.direction=minimize, or maximize.",
    )


def outcome_of(run: Path, settings: SearchSettings) -> Outcome:
    """Return what a run that ended says of the metric: its last value, as its weights are the last ones."""
    from speech2image.report.journal import read_journal

    try:
        status = json.loads((run / "run.json").read_text())["status"]
        if settings.is_reported:
            values = {
                name: curve.values[-1] for name, curve in read_journal(run / "journal.jsonl").val.items()
            }
        else:
            found = json.loads((run / "metrics.json").read_text())["metrics"]
            values = {metric["name"]: metric["value"] for metric in found}
    except (OSError, ValueError, KeyError) as error:
        return Outcome("failed", message=f"{run}: not readable: {error}", run=run.name)
    if status == "pruned":
        return Outcome("pruned", run=run.name)
    if status != "finished":
        return Outcome("failed", message=f"{run}: the run is {status}", run=run.name)
    value = values.get(settings.metric)
    if value is None or not math.isfinite(value):
        near = ", ".join(nearest_names(settings.metric, values) or sorted(values)) or "none"
        said = f"is {value}" if value is not None else f"was never written; there is: {near}"
        return Outcome("failed", message=f"{run}: {settings.metric} {said}", run=run.name)
    return Outcome("finished", float(value), run=run.name)
