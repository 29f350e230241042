"""What happens beside training: journal and wandb, progress, checkpoints, sample grids."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from torch import Tensor
from tqdm import tqdm

from speech2image.errors import DataError, Speech2ImageError
from speech2image.images.grid import contact_sheet, to_uint8, write_png
from speech2image.training import preemption, ranks
from speech2image.training.checkpoint import save_checkpoint
from speech2image.training.journal import Journal, say
from speech2image.training.loggers import WandbLogger
from speech2image.training.module import TrainingModule


class JournalWriter(pl.Callback):
    """Flush recorded scalars to journal and wandb every `every` steps; draw the progress bar.

    Args:
        journal: the run's journal.
        wandb: the run's wandb.
        every: steps between lines.
        max_steps: steps of the run, for the bar.
        progress: whether to draw a bar.
    """

    def __init__(
        self, journal: Journal, wandb: WandbLogger, every: int, max_steps: int, progress: bool
    ) -> None:
        self.journal, self.wandb = journal, wandb
        self.every, self.max_steps, self.progress = every, max_steps, progress
        self._bar: tqdm[Any] | None = None
        self._mark = (0.0, 0)
        self.last_validation: tuple[int, dict[str, float]] = (-1, {})

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Open the bar at the step the run continues from."""
        assert isinstance(module, TrainingModule)
        self._mark = (time.perf_counter(), module.images_seen)
        if self.progress:
            self._bar = tqdm(
                total=self.max_steps, initial=module.train_step, unit="step", desc="train",
                dynamic_ncols=True, mininterval=0.5 if sys.stderr.isatty() else 30.0,  # a log file wants few lines
               
            )  # fmt: skip

    def on_train_batch_end(
        self, trainer: pl.Trainer, module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Advance the bar; write a line when it is due."""
        assert isinstance(module, TrainingModule)
        if self._bar is not None:
            self._bar.update(1)
        if module.train_step % self.every == 0 or module.train_step == self.max_steps:
            self._write(module)

    def on_validation_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Write the validation metrics the module logged."""
        assert isinstance(module, TrainingModule)
        values = {
            name: float(value) for name, value in trainer.callback_metrics.items() if name.startswith("val_")
        }
        if values and not trainer.sanity_checking:
            self.write_validation(module.train_step, values)

    def write_validation(
        self, step: int, values: dict[str, float], clock: dict[str, float] | None = None
    ) -> None:
        """Write metrics of kind `val` to journal, wandb and bar; what the clock says goes to its own file."""
        self.last_validation = (step, values)
        self.journal.write(step, "val", **values)
        self.journal.write_clock(step, **(clock or {}))
        self.wandb.log(step, {**values, **(clock or {})})
        if self._bar is not None:
            shown = "  ".join(f"{name} {value:.3f}" for name, value in sorted(values.items()))
            self._bar.write(f"step {step}: {shown}")

    def write_event(self, step: int, **words: str) -> None:
        """Write what happened, and depends on clock or machine, in words to the journal's clock and the terminal."""
        self.journal.write_clock(step, event="note", **words)
        tqdm.write(f"step {step}: " + "; ".join(words.values()))

    def on_train_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Close the bar."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def on_exception(self, trainer: pl.Trainer, module: pl.LightningModule, exception: BaseException) -> None:
        """Close the bar, so that the message stands on its own line."""
        self.on_train_end(trainer, module)

    def _write(self, module: TrainingModule) -> None:
        values = module.flush_records()
        now, seen = time.perf_counter(), module.images_seen
        then, before = self._mark
        self._mark = (now, seen)
        values["lr"] = module.learning_rate()
        self.journal.write(module.train_step, "train", **{k: float(f"{v:.6g}") for k, v in values.items()})
        values["images_per_s"] = float(f"{(seen - before) / max(now - then, 1e-9):.6g}")
        self.journal.write_clock(module.train_step, images_per_s=values["images_per_s"])
        self.wandb.log(module.train_step, values)
        if self._bar is not None:
            losses = {name: f"{value:.3f}" for name, value in values.items() if name.startswith("loss")}
            self._bar.set_postfix(
                {**dict(list(losses.items())[:3]), "img/s": f"{values['images_per_s']:.0f}"}
            )


class CheckpointWriter(pl.Callback):
    """Save the run every `every` steps, at the end, and when a signal asks it to stop.

    It stands last among the callbacks and saves at the start of the next step, when grids, journal and validation
    of the last one are done, so that a continued run repeats nothing and leaves nothing out.  A save that fails is
    said once and tried again after 1, 2, 4, ... steps: a full disk costs no training.

    Args:
        folder: `checkpoints/` of the run.
        every: steps between saves.
        keep: checkpoints kept.
        run: id of the run.
        journal: its length goes into the checkpoint; None: there is none.
        save_first: save before the first step too: it took work to come there.
    """

    SLOW_SHARE, SLOW_S = 0.1, 5.0
    """Saving is called slow above this share of the session's time and this many seconds."""

    def __init__(
        self, folder: Path, every: int, keep: int, run: str = "", journal: Journal | None = None,
        save_first: bool = False,
    ) -> None:  # fmt: skip
        self.folder, self.every, self.keep, self.run, self.journal = folder, every, keep, run, journal
        self.save_first = save_first
        self.failure: Speech2ImageError | None = None
        self._saved, self._retry_at, self._wait = -1, -1, 1
        self._seconds, self._start, self._has_warned = 0.0, 0.0, False

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Remember where the session starts; take the signals back from Lightning, whose handlers stop at once."""
        assert isinstance(module, TrainingModule)
        preemption.active().claim()
        self._start = time.perf_counter()
        # A run that continues stands on what is saved; a new one has nothing.
        self._saved = module.train_step or -1

    def on_train_batch_start(
        self, trainer: pl.Trainer, module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Save the step before this one when it is due; stop where a signal asked for it."""
        assert isinstance(module, TrainingModule)
        step, owner = module.train_step, preemption.active()
        asked = ranks.on_any_rank(owner.asked, module.device)
        is_due = step % self.every == 0 and (step > 0 or self.save_first)
        if asked or is_due or step == self._retry_at:
            self._save(module)
        if asked:
            self._stop(owner, step)

    def on_train_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Save the last step."""
        assert isinstance(module, TrainingModule)
        self._save(module)

    def _stop(self, owner: preemption.Preemption, step: int) -> None:
        if self.failure is not None:
            raise type(self.failure)(
                f"stopped by a signal at step {step}: {self.failure.message}", self.failure.remedy
            )
        if self.journal is not None:
            self.journal.write_clock(step, event="preempted")
        owner.give_way(f"at step {step}, which is saved in {self.folder}")

    def _save(self, module: TrainingModule) -> None:
        if module.train_step == self._saved:
            return
        start, step = time.perf_counter(), module.train_step
        state = module.checkpoint_state()  # on all ranks: shards of weights are gathered
        failure = self._written(step, state) if ranks.is_first() else None
        if ranks.on_any_rank(failure is not None, module.device):
            self._retry_at, self._wait = step + self._wait, min(2 * self._wait, self.every)
        else:
            self._saved, self._retry_at, self._wait = step, -1, 1
        self._tell(failure, step)
        self._seconds += time.perf_counter() - start
        self._tell_slow()

    def _written(self, step: int, state: dict[str, Any]) -> Speech2ImageError | None:
        try:
            if self.journal is not None:
                state["journal_bytes"] = self.journal.position()
            save_checkpoint(self.folder, step, state, self.keep, self.run)
        except Speech2ImageError as error:
            return error
        return None

    def _tell(self, failure: Speech2ImageError | None, step: int) -> None:
        if failure is not None and self.failure is None:
            say(f"NOT SAVED: {failure.message}; training goes on and tries again every few steps. Free space, or make"
                " the folder writable.")  # fmt: skip
        if failure is None and self.failure is not None:
            say(f"saved again, at step {step}")
        self.failure = failure

    def _tell_slow(self) -> None:
        share = self._seconds / max(time.perf_counter() - self._start, 1e-9)
        if self._has_warned or share < self.SLOW_SHARE or self._seconds < self.SLOW_S:
            return
        self._has_warned = True
        calm = self.every * max(2, round(share / 0.02))
        say(f"saving to {self.folder} took {self._seconds:.1f} s, {100 * share:.0f} % of the time so far: the disk is"
            f" slow. Type: callbacks.checkpoint.every={calm}, or paths.runs=<folder on a faster disk>")  # fmt: skip


class SampleGrid(pl.Callback):
    """Paint the same held-out utterances with the same noise every `every` steps.

    Args:
        folder: where `step_*.png` go.
        told: what `paint` is told of held-out utterances: embeddings `(N, D)`, or a record with `to(device)`.
        paint: `(module, told) -> images (N, 3, H, H)` in [-1, 1], with fixed noise.
        real: `(N, H, W, 3)` uint8, shown in the first grid row pair for comparison.
        every: steps between grids; 0: never.
        wandb: gets the grids too.
    """

    def __init__(
        self,
        folder: Path,
        told: Any,
        paint: Callable[[pl.LightningModule, Any], Tensor],
        real: np.ndarray,
        every: int,
        wandb: WandbLogger,
    ) -> None:
        self.folder, self.told, self.paint = folder, told, paint
        self.real, self.every, self.wandb = real, every, wandb

    def on_train_batch_end(
        self, trainer: pl.Trainer, module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Paint when it is due."""
        assert isinstance(module, TrainingModule)
        if self.every and module.train_step % self.every == 0:
            self._draw(module)

    def on_train_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Paint the last step."""
        assert isinstance(module, TrainingModule)
        if self.every and module.train_step % self.every:
            self._draw(module)

    @torch.no_grad()
    def _draw(self, module: TrainingModule) -> None:
        images = to_uint8(self.paint(module, self.told.to(module.device)).float().cpu())
        if not ranks.is_first():  # it took part in painting, where weights lie in shards
            return
        columns = min(8, len(images))
        rows: list[np.ndarray] = []
        for start in range(0, len(images), columns):  # a row of real images above its painted ones
            rows += [*self.real[start : start + columns], *images[start : start + columns]]
        sheet = contact_sheet(rows, columns)
        try:
            write_png(self.folder / f"step_{module.train_step:08d}.png", sheet)
        except DataError as error:  # a picture less, but not a run less
            say(f"sample grid left out: {error.message}")
        self.wandb.log_image(module.train_step, "samples", sheet)
