"""Train a module for some steps on batches that a function of the step makes: no data, no logs, no files."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader, Dataset

from speech2image.training.module import TrainingModule

Module = TypeVar("Module", bound=TrainingModule)
MakeBatch = Callable[[int], dict[str, Any]]


class _Steps(Dataset[dict[str, Any]]):
    def __init__(self, make_batch: MakeBatch, steps: range) -> None:
        self.make_batch, self.steps = make_batch, steps

    def __len__(self) -> int:
        return len(self.steps)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.make_batch(self.steps[index])


class _Data(pl.LightningDataModule):
    """Batches of the given steps; they are on the CPU already."""

    def __init__(self, make_batch: MakeBatch, steps: range) -> None:
        super().__init__()
        self.steps = _Steps(make_batch, steps)

    def train_dataloader(self) -> DataLoader[dict[str, Any]]:
        return DataLoader(self.steps, batch_size=None)

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        return batch


def fit_up_to(module: Module, steps: int, make_batch: MakeBatch) -> Module:
    """Train up to `train_step == steps` of the suite's counter, on the CPU."""
    trainer = pl.Trainer(
        max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(module, datamodule=_Data(make_batch, range(module.train_step, steps)))
    return module
