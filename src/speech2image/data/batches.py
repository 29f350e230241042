"""Whole batches addressed by step number, assembled from the memory maps of a prepared corpus.

Item `n` of a training dataset is the whole batch of step `n`: which images, captions, crops and
mismatched images are functions of (seed, stream, step), so a run resumes at any step and the number
of loader processes changes nothing.  All is drawn for the whole batch; of several ranks each reads its
share only.  Images stay uint8; floats and pyramids are made on the device,
see `images/pyramid.py`.  Crops are cut in `pixels.py`.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import Dataset

from speech2image.data.corpus import Corpus
from speech2image.data.embeddings import Embeddings
from speech2image.data.order import WHOLE, Share, addressed_rng, batch_indices
from speech2image.data.pixels import CropTable
from speech2image.errors import ConfigError, DataError
from speech2image.types import SpeechBatch

__all__ = ["ClassBatches", "EncoderBatches", "GanBatches", "ImageBatches", "SpeechBatches"]

Indices = npt.NDArray[np.int64]


class CaptionTable:
    """Utterances each image of a split may draw: places in a flat list, grouped by image."""

    def __init__(self, corpus: Corpus, split: str, admitted: npt.NDArray[np.bool_] | None = None) -> None:
        utterances, num_images = corpus.utterances(split), len(corpus.records(split))
        if not utterances:
            spoken = {name: len(corpus.utterances(name)) for name in ("train", "val", "test")}
            raise DataError(
                f"{corpus.folder}: the {split} split has no recorded utterance (found: {spoken})",
                "Choose another split, or let prepare speak the captions: data.speak=espeak",
            )
        image_of: Indices = np.array([image for image, _ in utterances], np.int64)
        self.image_of = image_of
        kept = np.ones(len(utterances), np.bool_) if admitted is None else admitted
        has_admitted = np.bincount(image_of[kept], minlength=num_images) > 0
        flat = np.flatnonzero(kept | ~has_admitted[image_of])  # an image without admitted ones keeps all
        self.flat: Indices = flat[np.argsort(image_of[flat], kind="stable")]
        self.counts: Indices = np.bincount(image_of[flat], minlength=num_images)
        self.starts: Indices = np.cumsum(self.counts) - self.counts
        self.images: Indices = np.flatnonzero(self.counts)

    def draw(self, images: Indices, rng: np.random.Generator) -> Indices:
        """Draw one utterance for each image, `(B,)`."""
        return self.flat[self.starts[images] + rng.integers(0, self.counts[images])]

    def batch(self, size: int, seed: int, step: int, stream: str) -> tuple[Indices, Indices]:
        """Return the images of a training step and an utterance of each, `(size,)` each.

        Args:    size: at most as many as there are images with an utterance.
                 seed: of the run; step: number of the batch since the start of training.
                 stream: whose draws these are; captions are drawn from `<stream>/caption`.
        """
        images = self.images[batch_indices(len(self.images), size, seed, step)]
        return images, self.draw(images, addressed_rng(seed, f"{stream}/caption", step))


class _MelTable:
    """Padded batches of features from the memory map."""

    def __init__(self, corpus: Corpus, split: str, pad_value: float, pad_frames: int | None) -> None:
        self.store, self.rows = corpus.mel, corpus.mel_rows(split)
        self.pad_value, self.pad_frames = pad_value, pad_frames
        self.frames: Indices = self.store.shapes[self.rows, 0] if len(self.rows) else self.rows
        if pad_frames is not None:
            self.frames = np.minimum(self.frames, pad_frames)

    def batch(self, utterances: Indices, own: slice = slice(None)) -> SpeechBatch:
        """Stack features of the `own` rows to `(B, T, M)`, padded to `pad_frames` (None: to the longest of all)."""
        num_frames = int(self.frames[utterances].max()) if self.pad_frames is None else self.pad_frames
        utterances = utterances[own]
        lengths = self.frames[utterances]
        mel_dim = int(self.store.shapes[self.rows[utterances[0]], 1])
        features = np.full((len(utterances), num_frames, mel_dim), self.pad_value, self.store.dtype)
        for place, (utterance, length) in enumerate(zip(utterances, lengths, strict=True)):
            features[place, :length] = self.store[self.rows[utterance]][:length]
        return SpeechBatch(torch.from_numpy(features), torch.from_numpy(lengths))


class EncoderBatches(Dataset[dict[str, Any]]):
    """Batches for speech encoders: an image, one of its utterances and its class.

    Item: `speech` SpeechBatch, `image` `(B, 3, S, S)` uint8, and `(B,)` int64 `class_id`, `image_index`
    (place in `corpus.records(split)`) and `utterance_index` (place in `corpus.utterances(split)`).

    Args:
        corpus: prepared corpus.
        split: `train`, `val` or `test`; images without a recording are left out.
        batch_size: images in a batch B; at most as many as the split has.
        seed: root of all draws.
        image_px: side S of the crops.
        pad_value: value of padding frames.
        pad_frames: length every batch is padded to; None: its longest utterance.
        min_frames: utterances shorter than this are drawn only where an image has no other.
        augment: True: epochs in random order (a short last batch is dropped), random crops, mirror
            images; False: the order of the split with its short last batch, central crops.  Captions
            are drawn in both cases.
        pool_batches: training batches that are drawn together and dealt by length, so that less of a
            batch is padding; 1: each is drawn alone.
        pairs: training epochs over all (utterance, image) pairs, so that an image may come twice in a
            batch; False: over images, with one of its utterances each.
        share: part of every batch that is served; B is its size then.

    Raises:
        DataError: the split has no recording.  ConfigError: a batch cannot be shared equally.
    """

    def __init__(
        self, corpus: Corpus, split: str, batch_size: int, seed: int, image_px: int, pad_value: float,
        pad_frames: int | None, min_frames: int = 0, augment: bool = True, pool_batches: int = 1,
        pairs: bool = False, share: Share = WHOLE,
    ) -> None:  # fmt: skip
        self.pool_batches, self.share = pool_batches, share
        self.mel = _MelTable(corpus, split, pad_value, pad_frames)
        self.captions = CaptionTable(corpus, split, self.mel.frames >= min_frames)
        self.crops = CropTable(corpus, split, image_px)
        self.class_ids = corpus.class_ids(split)
        self.seed, self.augment, self.pairs = seed, augment, pairs and augment
        self.num_items = len(self.captions.flat if self.pairs else self.captions.images)
        self.batch_size = min(batch_size, self.num_items)
        share.rows(self.batch_size)

    def __len__(self) -> int:
        """Return the batches of one epoch; training goes on beyond it with higher step numbers."""
        if self.augment:
            return self.num_items // self.batch_size
        return math.ceil(self.num_items / self.batch_size)

    def __getitem__(self, step: int) -> dict[str, Any]:
        if self.augment:
            images, utterances = self._pooled(step)
            own = self.share.rows(len(images))
            pixels = self.crops.random(images, addressed_rng(self.seed, "encoder/crop", step), own)
        else:
            images = self.captions.images[_sequential(step, self.batch_size, len(self))]
            own = self.share.rows(len(images))
            pixels = self.crops.centre(images[own])
            utterances = self.captions.draw(images, addressed_rng(self.seed, "encoder/caption", step))
        return {
            "speech": self.mel.batch(utterances, own),
            "image": pixels,
            "class_id": torch.from_numpy(self.class_ids[images[own]]),
            "image_index": torch.from_numpy(images[own]),
            "utterance_index": torch.from_numpy(utterances[own]),
        }

    def _pooled(self, step: int) -> tuple[Indices, Indices]:
        """Return images and utterances of a training batch, `(B,)` each, dealt from its pool by length."""
        place = step % self.pool_batches
        steps = range(step - place, step - place + self.pool_batches)
        parts = [self._drawn(n) for n in steps]
        images, utterances = (np.concatenate(side) for side in zip(*parts, strict=True))
        if self.pool_batches > 1:
            by_length = np.argsort(self.mel.frames[utterances], kind="stable")
            dealt = addressed_rng(self.seed, "encoder/pool", steps.start).permutation(self.pool_batches)
            chosen = np.split(by_length, self.pool_batches)[dealt[place]]
            return images[chosen], utterances[chosen]
        return images, utterances

    def _drawn(self, step: int) -> tuple[Indices, Indices]:
        """Return images and utterances of a training step before batches are dealt by length."""
        if self.pairs:
            utterances = self.captions.flat[batch_indices(self.num_items, self.batch_size, self.seed, step)]
            return self.captions.image_of[utterances], utterances
        return self.captions.batch(self.batch_size, self.seed, step, "encoder")


class ClassBatches(Dataset[dict[str, Any]]):
    """Training images and their classes, without speech: random epochs, random crops, mirror images.

    Item: `image` `(B, 3, S, S)` uint8, `class_id` `(B,)` int64.

    Args:
        corpus: prepared corpus.
        split: `train`, `val` or `test`.
        batch_size: images in a batch B; at most as many as the split has.
        seed: root of all draws.
        image_px: side S of the crops.
        share: part of every batch that is served; B is its size then.
    """

    def __init__(
        self, corpus: Corpus, split: str, batch_size: int, seed: int, image_px: int, share: Share = WHOLE
    ) -> None:
        self.crops = CropTable(corpus, split, image_px)
        self.class_ids = corpus.class_ids(split)
        self.seed, self.batch_size, self.share = seed, min(batch_size, len(self.class_ids)), share
        share.rows(self.batch_size)

    def __len__(self) -> int:
        """Return the batches of one epoch; training goes on beyond it with higher step numbers."""
        return len(self.class_ids) // self.batch_size

    def __getitem__(self, step: int) -> dict[str, Any]:
        images = batch_indices(len(self.class_ids), self.batch_size, self.seed, step)
        own = self.share.rows(len(images))
        return {
            "image": self.crops.random(images, addressed_rng(self.seed, "classes/crop", step), own),
            "class_id": torch.from_numpy(self.class_ids[images[own]]),
        }


class GanBatches(Dataset[dict[str, Any]]):
    """Batches for generators: the sentence of an utterance, its photograph and a mismatched one.

    Item: `real`, `wrong` `(B, 3, S, S)` uint8, `sentence` `(B, D)` float32, and `(B,)` int64
    `class_id`, `image_index`, `wrong_index` (places in `corpus.records(split)`) and `utterance_index`
    (place in `corpus.utterances(split)`).

    Args:
        corpus: prepared corpus.
        split: `train`, `val` or `test`; images without a recording serve as mismatches only.
        embeddings: the array `sentence` `(N, D)` with a row for each utterance of the split.
        batch_size: images in a batch B; at most as many as the split has.
        seed: root of all draws.
        image_px: side S of the crops.
        wrong: mismatched images are uniform over the images of other classes (`other_class`; of other
            images where all share one class), or over all other images (`other_image`).
        share: part of every batch that is served; B is its size then.

    Raises:
        ConfigError: unknown `wrong`.
        DataError: an utterance of the split has no embedding, or the split has one image only.
    Source: StackGAN-v2, `datasets.py: TextDataset`.  Differs: a mismatch never shares the class (there
        one redraw may fail), as in the fork of Li et al.
    """

    def __init__(
        self, corpus: Corpus, split: str, embeddings: Embeddings, batch_size: int, seed: int, image_px: int,
        wrong: str = "other_class", share: Share = WHOLE,
    ) -> None:  # fmt: skip
        self.captions = CaptionTable(corpus, split)
        self.crops = CropTable(corpus, split, image_px)
        self.class_ids = corpus.class_ids(split)
        self.mismatch = _Mismatch(self.class_ids, wrong)
        self.sentences = sentence_rows(corpus, split, embeddings)
        self.seed, self.batch_size = seed, min(batch_size, len(self.captions.images))
        self.share = share
        share.rows(self.batch_size)

    def __len__(self) -> int:
        """Return the batches of one epoch; training goes on beyond it with higher step numbers."""
        return len(self.captions.images) // self.batch_size

    def __getitem__(self, step: int) -> dict[str, Any]:
        images, utterances = self.captions.batch(self.batch_size, self.seed, step, "gan")
        wrong = self.mismatch.draw(images, addressed_rng(self.seed, "gan/wrong", step))
        own = self.share.rows(len(images))
        return {
            "sentence": torch.from_numpy(self.sentences[utterances[own]]),
            "real": self.crops.random(images, addressed_rng(self.seed, "gan/crop_real", step), own),
            "wrong": self.crops.random(wrong, addressed_rng(self.seed, "gan/crop_wrong", step), own),
            "class_id": torch.from_numpy(self.class_ids[images[own]]),
            "image_index": torch.from_numpy(images[own]),
            "wrong_index": torch.from_numpy(wrong[own]),
            "utterance_index": torch.from_numpy(utterances[own]),
        }


def sentence_rows(corpus: Corpus, split: str, embeddings: Embeddings) -> npt.NDArray[np.float32]:
    """Return the sentence of each utterance of a split in its order, `(U, D)`.

    Raises:  DataError: an utterance has no embedding.
    """
    row_of = {key: row for row, key in enumerate(embeddings.keys)}
    keys = [utterance.key for _, utterance in corpus.utterances(split)]
    missing = [key for key in keys if key not in row_of]
    if missing:
        raise DataError(
            f"{len(missing)} of {len(keys)} utterances of the {split} split have no embedding, first {missing[0]}",
            "Make them again: speech2image embed run=<encoder run>",
        )
    return np.ascontiguousarray(embeddings.arrays["sentence"][[row_of[key] for key in keys]], np.float32)


class _Mismatch:
    """Draw another image for each: images sorted by class, the own class jumped over."""

    def __init__(self, class_ids: Indices, wrong: str) -> None:
        if wrong not in ("other_class", "other_image"):
            raise ConfigError(f"wrong={wrong!r} is unknown", "Choose other_class or other_image.")
        if len(class_ids) < 2:
            raise DataError(
                "mismatched images need a second image, the split has one", "Choose a larger split."
            )
        one_class = len(np.unique(class_ids)) == 1
        groups = np.arange(len(class_ids)) if wrong == "other_image" or one_class else class_ids
        dense = np.unique(groups, return_inverse=True)[1]
        sizes = np.bincount(dense)
        self.order: Indices = np.argsort(dense, kind="stable")
        self.first: Indices = (np.cumsum(sizes) - sizes)[dense]
        self.size: Indices = sizes[dense]

    def draw(self, images: Indices, rng: np.random.Generator) -> Indices:
        """Draw one other image for each of `images`, `(B,)`."""
        place = rng.integers(0, len(self.order) - self.size[images])
        return self.order[np.where(place >= self.first[images], place + self.size[images], place)]


def _sequential(step: int, batch_size: int, num_batches: int) -> slice:
    if not 0 <= step < num_batches:
        raise IndexError(f"batch {step} of {num_batches}")
    return slice(step * batch_size, (step + 1) * batch_size)


class SpeechBatches(Dataset[dict[str, Any]]):
    """All utterances of a split in their order, not augmented; the last batch may be short.

    Item: `speech` SpeechBatch, `keys` list of utterance keys, `utterance_index` `(B,)` int64.
    """

    def __init__(
        self, corpus: Corpus, split: str, batch_size: int, pad_value: float, pad_frames: int | None
    ) -> None:
        self.mel, self.batch_size = _MelTable(corpus, split, pad_value, pad_frames), batch_size
        self.keys = [utterance.key for _, utterance in corpus.utterances(split)]

    def __len__(self) -> int:
        """Return the number of batches."""
        return math.ceil(len(self.keys) / self.batch_size)

    def __getitem__(self, step: int) -> dict[str, Any]:
        places = np.arange(len(self.keys))[_sequential(step, self.batch_size, len(self))]
        return {
            "speech": self.mel.batch(places),
            "keys": [self.keys[place] for place in places],
            "utterance_index": torch.from_numpy(places),
        }


class ImageBatches(Dataset[dict[str, Any]]):
    """All images of a split in their order, central crops; the last batch may be short.

    Item: `image` `(B, 3, S, S)` uint8, `class_id` and `image_index` `(B,)` int64.
    """

    def __init__(self, corpus: Corpus, split: str, batch_size: int, image_px: int) -> None:
        self.crops, self.batch_size = CropTable(corpus, split, image_px), batch_size
        self.class_ids = corpus.class_ids(split)

    def __len__(self) -> int:
        """Return the number of batches."""
        return math.ceil(len(self.class_ids) / self.batch_size)

    def __getitem__(self, step: int) -> dict[str, Any]:
        images = np.arange(len(self.class_ids))[_sequential(step, self.batch_size, len(self))]
        return {
            "image": self.crops.centre(images),
            "class_id": torch.from_numpy(self.class_ids[images]),
            "image_index": torch.from_numpy(images),
        }
