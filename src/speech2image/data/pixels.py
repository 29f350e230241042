"""Square crops of the cached images of a split, whole batches at a time.

Rows are copied straight from the memory map into the batch, which is channels-last in memory;
mirroring is torch's vectorised flip.  Which crops are taken is decided by the caller's generator,
see `batches.py`.
"""

from __future__ import annotations

import sys

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from speech2image.data.corpus import Corpus
from speech2image.errors import ConfigError

Indices = npt.NDArray[np.int64]
Pixels = npt.NDArray[np.uint8]


class Recycled:
    """Hand out arrays, and hand them out again once nobody holds them any more.

    A batch of 256-pixel images is megabytes that the system would zero page by page for every step,
    which costs more than filling it.  An array is free when only this pool refers to it: a tensor made
    by `torch.from_numpy` holds its array for as long as any view of it lives.

    Args:
        limit: arrays kept.
    """

    def __init__(self, limit: int = 8) -> None:
        self.kept: list[Pixels] = []
        self.limit = limit

    def take(self, shape: tuple[int, ...]) -> Pixels:
        """Return an array of `shape` uint8 with any content."""
        for place in range(len(self.kept)):
            # Two references are the list's own and the argument's.
            if self.kept[place].shape == shape and sys.getrefcount(self.kept[place]) == 2:
                return self.kept[place]
        fresh: Pixels = np.empty(shape, np.uint8)
        self.kept = [*self.kept[1 - self.limit :], fresh]
        return fresh


class CropTable:
    """Crop batches of one split.

    Args:
        corpus: prepared corpus.
        split: its split.
        image_px: side S of the crops, at most the side the corpus was prepared for.

    Raises: ConfigError: the corpus was prepared for smaller images.
    """

    def __init__(self, corpus: Corpus, split: str, image_px: int) -> None:
        if image_px > corpus.image_px:
            raise ConfigError(
                f"image_px={image_px}, but {corpus.folder} was prepared for {corpus.image_px} px",
                f"Prepare it again with data.image_px={image_px}, or choose {corpus.image_px} or less.",
            )
        self.store, self.rows, self.image_px = corpus.images, corpus.image_rows(split), image_px
        sides = self.store.shapes[self.rows, :2] if len(self.rows) else np.zeros((0, 2), np.int64)
        self.slack: Indices = sides - image_px
        self.mirror_prob = 0.5 if corpus.manifest.meta.get("mirror", True) else 0.0
        self._recycled = Recycled()

    def random(self, images: Indices, rng: np.random.Generator, own: slice = slice(None)) -> Tensor:
        """Cut a uniform random crop of each image and mirror it with probability 1/2.

        A corpus whose images mean something else mirrored (digits) says `mirror: false` in its manifest.

        Args:    images: places in the split, of the whole batch: crops are drawn for all of it.
                 own: which of them are cut, B of them.
        Returns: `(B, 3, S, S)` uint8, channels-last in memory.
        Source:  StackGAN-v2, `datasets.py`: RandomCrop, then RandomHorizontalFlip.
        """
        corners = rng.integers(0, self.slack[images] + 1)
        mirrored = rng.random(len(images)) < self.mirror_prob
        return self._cut(images[own], corners[own], mirrored[own])

    def centre(self, images: Indices) -> Tensor:
        """Cut the central crop of each image, `(B, 3, S, S)` uint8, channels-last in memory."""
        return self._cut(images, self.slack[images] // 2, np.zeros(len(images), np.bool_))

    def _cut(self, images: Indices, corners: Indices, mirrored: npt.NDArray[np.bool_]) -> Tensor:
        side = self.image_px
        pixels = self._recycled.take((len(images), side, side, 3))
        batch = torch.from_numpy(pixels).permute(0, 3, 1, 2)
        rows = self.rows[images].tolist()
        for place, (row, (top, left)) in enumerate(zip(rows, corners.tolist(), strict=True)):
            pixels[place] = self.store[row][top : top + side, left : left + side]
            if mirrored[place]:
                batch[place : place + 1] = batch[place : place + 1].flip(-1)
        return batch
