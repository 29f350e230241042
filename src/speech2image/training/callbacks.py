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

from speech2image.images.grid import contact_sheet, to_uint8, write_png
from speech2image.training import ranks
from speech2image.training.checkpoint import save_checkpoint
from speech2image.training.loggers import Journal, WandbLogger
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

    def write_validation(self, step: int, values: dict[str, float]) -> None:
        """Write metrics of kind `val` to journal, wandb and bar."""
        self.last_validation = (step, values)
        self.journal.write(step, "val", **values)
        self.wandb.log(step, values)
        if self._bar is not None:
            shown = "  ".join(f"{name} {value:.3f}" for name, value in sorted(values.items()))
            self._bar.write(f"step {step}: {shown}")

    def write_event(self, step: int, **words: str) -> None:
        """Write what happened, in words, to journal and terminal."""
        self.journal.write(step, "event", **words)
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
        values["images_per_s"] = (seen - before) / max(now - then, 1e-9)
        values["lr"] = module.learning_rate()
        self.journal.write(module.train_step, "train", **{k: float(f"{v:.6g}") for k, v in values.items()})
        self.wandb.log(module.train_step, values)
        if self._bar is not None:
            losses = {name: f"{value:.3f}" for name, value in values.items() if name.startswith("loss")}
            self._bar.set_postfix(
                {**dict(list(losses.items())[:3]), "img/s": f"{values['images_per_s']:.0f}"}
            )


class CheckpointWriter(pl.Callback):
    """Save the run every `every` steps, at the end, and when it is interrupted between steps."""

    def __init__(self, folder: Path, every: int, keep: int) -> None:
        self.folder, self.every, self.keep = folder, every, keep
        self._saved = -1

    def on_train_batch_end(
        self, trainer: pl.Trainer, module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save when it is due."""
        assert isinstance(module, TrainingModule)
        if module.train_step % self.every == 0:
            self._save(module)

    def on_train_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Save the last step."""
        assert isinstance(module, TrainingModule)
        self._save(module)

    def _save(self, module: TrainingModule) -> None:
        if module.train_step != self._saved:
            state = module.checkpoint_state()  # all ranks: shards are gathered
            if ranks.is_first():
                save_checkpoint(self.folder, module.train_step, state, self.keep)
            self._saved = module.train_step


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
        write_png(self.folder / f"step_{module.train_step:08d}.png", sheet)
        self.wandb.log_image(module.train_step, "samples", sheet)
