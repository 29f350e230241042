"""The one DataModule of the suite: batches addressed by step, pyramids made on the device."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from speech2image.images.pyramid import pyramid
from speech2image.training.preemption import outlive_signals
from speech2image.types import SpeechBatch


class SpeechImageData(pl.LightningDataModule):
    """Serve whole batches by step number; resuming starts at any step, workers change nothing.

    Args:
        train: dataset whose item number is the step and whose item is a whole batch.
        val: the same for validation, its length the number of batches; None: no validation.
        start_step: first step still to train.
        max_steps: steps of the whole run.
        sizes: image sizes of the pyramid a generator paints, smallest first; () for encoders.
        num_workers: loader processes.
    """

    def __init__(
        self,
        train: Dataset[dict[str, Any]],
        val: Dataset[dict[str, Any]] | None,
        start_step: int,
        max_steps: int,
        sizes: Sequence[int] = (),
        num_workers: int = 0,
    ) -> None:
        super().__init__()
        self.train, self.val = train, val
        self.steps = range(start_step, max_steps)
        self.sizes = tuple(sizes)
        self.num_workers = num_workers

    def train_dataloader(self) -> DataLoader[dict[str, Any]]:
        """Return the remaining steps, in order."""
        return DataLoader(
            self.train, batch_size=None, sampler=self.steps, num_workers=self.num_workers,
            pin_memory=torch.cuda.is_available(), persistent_workers=self.num_workers > 0,
            worker_init_fn=outlive_signals,
        )  # fmt: skip

    def val_dataloader(self) -> DataLoader[dict[str, Any]] | list[Any]:
        """Return the validation batches, in order; an empty list where there are none."""
        if self.val is None:
            return []
        return DataLoader(self.val, batch_size=None, sampler=range(len(self.val)))  # type: ignore[arg-type]

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """Move tensors and speech batches; frozen records need our own hand."""
        return {key: _move(value, device) for key, value in batch.items()}

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Turn uint8 images into float ones on the device: pyramids for generators."""
        for key in ("real", "wrong"):
            if key in batch:
                batch[key] = pyramid(batch[key], self.sizes)
        if "image" in batch:
            image = batch["image"]
            batch["image"] = pyramid(image, (image.shape[-1],)).levels[0]
        return batch


def _move(value: Any, device: torch.device) -> Any:
    if isinstance(value, (Tensor, SpeechBatch)):
        return value.to(device)
    return value
