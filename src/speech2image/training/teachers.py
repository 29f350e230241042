"""What teaches speech encoders and needs a corpus: networks fitted to its classes, published features.

Torchvision teachers are in `vision/teacher.py`; this file holds what must see training images or
files aligned with them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import Dataset
from tqdm import trange

from speech2image.data.corpus import Corpus
from speech2image.data.embeddings import read_teacher_features
from speech2image.data.order import WHOLE, Share, addressed_rng
from speech2image.errors import DataError
from speech2image.images.pyramid import pyramid
from speech2image.vision.convnet import ConvNet


class ClassTeacher(nn.Module):
    """A small network trained on the classes of the training images, then frozen.

    Stands where the paper has BVLC GoogLeNet trained on ImageNet, when no weights are at hand.

    Args:
        feature_dim: size F of the pooled, non-negative features.
        width: channels of the first convolution.
        image_px: side of the images.
        train_steps: steps of `fit`.
    """

    def __init__(
        self, feature_dim: int = 256, width: int = 32, image_px: int = 64, train_steps: int = 400
    ) -> None:
        super().__init__()
        self.trunk = ConvNet(width=width, image_px=image_px, feature_dim=feature_dim)
        self.feature_dim, self.image_px, self.train_steps = feature_dim, image_px, train_steps

    def features(self, images: Tensor) -> Tensor:
        """Map images `(B, 3, H, W)` in [-1, 1] to pooled features `(B, F)`."""
        if images.shape[-1] != self.image_px:
            size = (self.image_px, self.image_px)
            images = F.interpolate(images, size=size, mode="bilinear", antialias=True)
        return self.trunk(images)

    def forward(self, images: Tensor) -> Tensor:
        """Return `features(images)`."""
        return self.features(images)

    def fit(self, batches: Dataset[dict[str, Any]], num_classes: int, device: torch.device) -> float:
        """Train trunk and a linear classifier on `ClassBatches`, then freeze; return `fit_on_classes`' share."""
        head = nn.Linear(self.feature_dim, num_classes).to(device)
        self.to(device)
        networks = nn.ModuleList([self, head])
        right = fit_on_classes(
            lambda images: head(self.features(images)), networks, batches, self.train_steps, device,
            desc="teacher", peak_lr=2e-3, weight_decay=0.0, label_smoothing=0.1,
        )  # fmt: skip
        self.eval().requires_grad_(False)
        return right


def fit_on_classes(
    logits_of: Callable[[Tensor], Tensor],
    networks: nn.Module,
    batches: Dataset[dict[str, Any]],
    num_steps: int,
    device: torch.device,
    desc: str = "image branch",
    peak_lr: float = 4e-3,
    weight_decay: float = 1e-4,
    label_smoothing: float = 0.0,
) -> float:
    """Train an image network on the classes of its images alone, by a one-cycle AdamW.

    Args:
        logits_of: images `(B, 3, S, S)` in [-1, 1] to logits `(B, classes)`.
        networks: everything that `logits_of` trains.
        batches: `ClassBatches`, by step.
        num_steps: steps.
        device: where the networks are.
        desc: name of the progress bar.
        peak_lr: highest learning rate.
        weight_decay: decoupled.
        label_smoothing: of the cross entropy.
    Returns: share of right classes over the last fifty training batches.
    """
    networks.train()
    optimizer = torch.optim.AdamW(networks.parameters(), lr=peak_lr, weight_decay=weight_decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, peak_lr, total_steps=num_steps)
    right: deque[Tensor] = deque(maxlen=50)
    bar = trange(num_steps, desc=desc, unit="step", mininterval=1.0, disable=None)
    for step in bar:
        batch = batches[step]
        image = batch["image"].to(device)
        label = batch["class_id"].to(device)
        logits = logits_of(pyramid(image, (image.shape[-1],)).levels[0])
        loss = F.cross_entropy(logits, label, label_smoothing=label_smoothing)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
        right.append((logits.detach().argmax(1) == label).float().mean())
        if step % 50 == 49:
            accuracy = float(torch.stack(list(right)).mean())
            bar.set_postfix(loss=f"{float(loss.detach()):.2f}", accuracy=f"{accuracy:.3f}")
    return float(torch.stack(list(right)).mean())


class FeatureFile:
    """Teacher features in the published layout, `(images, views, F)`, in the order of the split.

    Args:
        train: pickle of the training images' features.
        test: pickle of the test images' features.
    """

    def __init__(self, train: str | None = None, test: str | None = None) -> None:
        self.files = {"train": train, "test": test}

    def read(self, corpus: Corpus, split: str) -> np.ndarray:
        """Return `(N, V, F)` float32 for the N images of `split`.

        Raises:
            DataError: no file is named, or its rows do not match the split.
        """
        path = self.files.get(split)
        if path is None:
            raise DataError(
                f"vision.{split}: no feature file is named", f"Type: vision.{split}=<pickle of (N, 10, F)>"
            )
        features = read_teacher_features(path)
        count = len(corpus.records(split))
        if len(features) != count:
            raise DataError(f"{path}: {len(features)} images, but the {split} split has {count}")
        return features


class WithTeacher(Dataset[dict[str, Any]]):
    """Batches of an encoder with one random teacher view an image (`teacher`, `(B, F)`)."""

    def __init__(self, batches: Dataset[dict[str, Any]], features: np.ndarray, seed: int) -> None:
        self.batches, self.features, self.seed = batches, features, seed

    def __len__(self) -> int:
        return len(self.batches)  # type: ignore[arg-type]

    def __getitem__(self, step: int) -> dict[str, Any]:
        batch = self.batches[step]
        rows = batch["image_index"].numpy()
        share: Share = getattr(self.batches, "share", WHOLE)
        rng = addressed_rng(self.seed, "teacher_view", step)
        views = rng.integers(0, self.features.shape[1], share.of * len(rows))[
            share.rows(share.of * len(rows))
        ]
        return {**batch, "teacher": torch.from_numpy(self.features[rows, views])}
