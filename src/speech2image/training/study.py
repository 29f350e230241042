"""The study of a search: one folder that the searching process and every one of its jobs can open.

`search.json` holds what was asked (metric, direction, sampler, pruner), `study.journal` every trial and every
reported value as JSON lines under Optuna's own lock, which also holds on shared disks.  Nothing here imports torch;
the callback that reports is in `pruning.py`, the search itself in `app/search.py`.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from speech2image.data.whole import write_whole
from speech2image.errors import ConfigError, DataError, MissingPackageError

SETTINGS, STUDY = "search.json", "study.journal"
STUDY_NAME = "search"
LOCK_GRACE_S = 15
"""A lock of the study whose owner was killed is broken after this long."""

SAMPLERS = ("tpe", "random", "grid")
PRUNERS = ("median", "asha", "hyperband", "none")


@dataclass(frozen=True)
class SearchSettings:
    """What a search looks for and how; written once, read by every job.

    Attributes:
        metric: `val_…` of the journal, or a metric of `metrics.json`.
        direction: minimize or maximize.
        sampler: one of `SAMPLERS`.
        pruner: one of `PRUNERS`.
        startup_trials: trials that run to their end before the pruner may stop others (median).
        warmup_steps: training steps before a trial may be stopped.
        seed: root of the sampler's draws.
    """

    metric: str = "val_loss"
    direction: str = "minimize"
    sampler: str = "tpe"
    pruner: str = "median"
    startup_trials: int = 5
    warmup_steps: int = 0
    seed: int = 0

    @property
    def is_reported(self) -> bool:
        """Return whether the metric is written while a run trains, so that a run can be stopped by it."""
        return self.metric.startswith("val_")

    def write(self, folder: Path) -> None:
        """Write `search.json` whole or not at all."""
        write_whole(folder / SETTINGS, (json.dumps(asdict(self), indent=1) + "\n").encode())


def read_settings(folder: Path) -> SearchSettings:
    """Read `search.json`.

    Raises:  DataError: there is none, or it is not readable.
    """
    try:
        return SearchSettings(**json.loads((folder / SETTINGS).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise DataError(
            f"{folder / SETTINGS}: not the settings of a search ({error})",
            "Give the command of the search again, or train without callbacks.search.",
        ) from None


def open_study(folder: Path, settings: SearchSettings) -> Any:
    """Open the study of a folder, making it if there is none; return an `optuna.Study`.

    Args:    folder: `runs/sweeps/<id>`; an absolute path is made of it, a stale lock is found no other way.
    Raises:  MissingPackageError: Optuna is not installed.
    """
    optuna = need_optuna()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    from optuna.storages.journal import JournalFileBackend, JournalFileSymlinkLock

    path = str((folder / STUDY).resolve())
    backend = JournalFileBackend(path, JournalFileSymlinkLock(path, grace_period=LOCK_GRACE_S))
    return optuna.create_study(
        study_name=STUDY_NAME, storage=optuna.storages.JournalStorage(backend), load_if_exists=True,
        direction=settings.direction, pruner=make_pruner(settings), sampler=make_sampler(settings, 0),
    )  # fmt: skip


def need_optuna() -> Any:
    """Return the module `optuna`.

    Raises:  MissingPackageError: it is not installed.
    """
    try:
        import optuna
    except ImportError:
        raise MissingPackageError("optuna", "search") from None
    return optuna


def mend_study(folder: Path) -> None:
    """Drop a last line that a full disk or a dead machine left half-written; nobody may write meanwhile."""
    path = folder / STUDY
    content = path.read_bytes() if path.is_file() else b""
    if content and not content.endswith(b"\n"):
        os.truncate(path, content.rfind(b"\n") + 1)


def make_sampler(settings: SearchSettings, num_asked: int) -> Any:
    """Return the sampler of the next trial.

    Its draws are a function of (seed, trials asked so far), so that a search that was killed and continued asks what
    an undisturbed one asks.

    Args:    num_asked: trials the study holds.
    """
    samplers = need_optuna().samplers
    text = f"{settings.seed}/{num_asked}".encode()
    seed = int.from_bytes(hashlib.sha256(text).digest()[:4], "little")
    if settings.sampler == "tpe":
        return samplers.TPESampler(seed=seed, n_startup_trials=settings.startup_trials, constant_liar=True)
    return samplers.RandomSampler(seed=seed)  # a grid's trials are enqueued


def make_pruner(settings: SearchSettings) -> Any:
    """Return the pruner that `settings` name.

    Raises:  ConfigError: no pruner of this name.
    """
    pruners = need_optuna().pruners
    if settings.pruner == "median":
        return pruners.MedianPruner(settings.startup_trials, settings.warmup_steps)
    if settings.pruner == "asha":
        return pruners.SuccessiveHalvingPruner(min_resource=max(1, settings.warmup_steps))
    if settings.pruner == "hyperband":
        return pruners.HyperbandPruner(min_resource=max(1, settings.warmup_steps))
    if settings.pruner == "none":
        return pruners.NopPruner()
    raise ConfigError(
        f"hydra.sweeper.pruner={settings.pruner}: there is no such pruner", f"Known: {', '.join(PRUNERS)}"
    )


class TrialReporter:
    """One trial as its job sees it.

    Args:
        folder: the search's folder.
        number: the trial's number.

    Raises:
        DataError: the folder is not of a search, or has no such trial.
        MissingPackageError: Optuna is not installed.
    """

    def __init__(self, folder: Path, number: int) -> None:
        self.settings = read_settings(folder)
        study = open_study(folder, self.settings)
        ids = {trial.number: trial._trial_id for trial in study.get_trials(deepcopy=False)}
        if number not in ids:
            raise DataError(
                f"{folder}: trial {number} is not in the study", "Give the command of the search again."
            )
        self._trial = need_optuna().trial.Trial(study, ids[number])

    def report(self, value: float, step: int) -> bool:
        """Tell the study the metric at a step; return whether the pruner would stop here.

        A step told before (the run was killed and continued) keeps its first value.
        """
        if step not in self._trial.storage.get_trial(self._trial._trial_id).intermediate_values:
            self._trial.report(value, step)
        return bool(self._trial.should_prune())
