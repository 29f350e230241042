"""Stop a run that a search has given up: a callback that reports a metric and asks.

Here is only what runs beside training; the study is in `study.py`.  A stopped run ends at a step boundary like a
finished one: its last checkpoint is kept and its `run.json` says `pruned`.
"""

from __future__ import annotations

import math
import warnings
from pathlib import Path
from typing import Any

import pytorch_lightning as pl

from speech2image.training import ranks
from speech2image.training.callbacks import JournalWriter
from speech2image.training.module import TrainingModule
from speech2image.training.study import TrialReporter


class Pruning(pl.Callback):
    """Report a `val_…` metric to the study each time it is written and end training when the study says so.

    Args:
        reporter: the trial.
        journal_writer: where validation metrics pass.
    """

    def __init__(self, reporter: TrialReporter, journal_writer: JournalWriter) -> None:
        self.reporter, self.journal_writer = reporter, journal_writer
        self.metric = reporter.settings.metric
        self.pruned_at: int | None = None
        self._reported = -1

    def on_validation_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Report what the validation loop measured."""
        self._ask(trainer, module)

    def on_train_batch_end(
        self, trainer: pl.Trainer, module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Report what another callback measured beside training."""
        self._ask(trainer, module)

    def _ask(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Every rank asks at every step; only the first one reports, and not on what was reported."""
        assert isinstance(module, TrainingModule)
        if ranks.on_any_rank(ranks.is_first() and self._is_hopeless(), module.device):
            self.pruned_at = module.train_step
            trainer.should_stop = True

    def _is_hopeless(self) -> bool:
        step, values = self.journal_writer.last_validation
        value = values.get(self.metric, math.nan)
        if step == self._reported or not math.isfinite(value):
            return False
        self._reported = step
        try:
            return self.reporter.report(value, step)
        except OSError as error:  # the study's disk; the search reads the run's own journal at its end
            warnings.warn(f"the search was not told step {step}: {error}", stacklevel=2)
            return False


def pruning_of(config: dict[str, Any], journal_writer: JournalWriter) -> Pruning | None:
    """Return the callback of a job of a search; None: the run belongs to none, or its metric comes later.

    Args:    config: the run's configuration; `callbacks.search` says which study and trial.
    Raises:  DataError: the folder is not of a search.  MissingPackageError: Optuna is not installed.
    """
    search = config["callbacks"].get("search") or {}
    if not search.get("folder") or search.get("trial") is None:
        return None
    reporter = TrialReporter(Path(search["folder"]), int(search["trial"]))
    if not reporter.settings.is_reported or reporter.settings.pruner == "none":
        return None
    return Pruning(reporter, journal_writer)
