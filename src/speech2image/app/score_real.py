"""The real side of an evaluation: which real images, and how they reach a square, as a protocol says."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from speech2image.data.corpus import Corpus
from speech2image.errors import DataError
from speech2image.images.pyramid import centre_crop, crop_box
from speech2image.images.read import read_image
from speech2image.metrics.protocol import Protocol
from speech2image.types import ImageRecord

Pixels = npt.NDArray[np.uint8]
OFFICIAL = ("cub200", "flickr8k")
"""Corpora whose original photographs are at hand; embedded ones have only their drawings."""
_FILTERS = {
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}


class PreparedImages(Sequence[Pixels]):
    """Image files, each brought to a square when it is asked for, `(S, S, 3)` uint8.

    Args:
        items: file and bounding box (None: not cut) of each image.
        side: side S; None: `protocol.prepare` names it.
        protocol: says how.
    """

    def __init__(
        self, items: Sequence[tuple[Path, Sequence[float] | None]], side: int, protocol: Protocol
    ) -> None:
        self.items, self.side, self.protocol = items, side, protocol

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: Any) -> Any:
        """Return image `index`."""
        path, box = self.items[index]
        return prepare_square(read_image(path), self.side, self.protocol, box)


def prepare_square(
    image: Pixels, side: int, protocol: Protocol, box: Sequence[float] | None = None
) -> Pixels:
    """Bring one image `(H, W, 3)` to a square, `(S, S, 3)` uint8.

    Args:
        image: as decoded.
        side: side S.
        protocol: `squash256` ignores the aspect; else the shorter side is resized and the centre cut.
        box: bounding box, cut first (0.75 of the longer side around its centre).
    """
    if box is not None:
        image = crop_box(image, box)
    resample = _FILTERS[protocol.real_resize]
    if protocol.prepare == "squash256":
        return np.asarray(Image.fromarray(image).resize((side, side), resample))
    height, width = image.shape[:2]
    if min(height, width) != side:
        size = (side, int(side * height / width)) if width <= height else (int(side * width / height), side)
        image = np.asarray(Image.fromarray(image).resize(size, resample))
    return centre_crop(image, side)


def side_of(protocol: Protocol, generated_px: int) -> int:
    """Return the side both kinds of images are brought to before the network resizes them."""
    return generated_px if protocol.prepare == "crop" else 256


def from_originals(corpus: Corpus, protocol: Protocol) -> bool:
    """Return whether real images are read from the original files.

    The probe of a corpus was trained on its prepared images and is shown those.
    """
    return corpus.manifest.corpus in OFFICIAL and protocol.network != "probe"


@dataclass(frozen=True)
class RealSet:
    """Real images of an evaluation.

    Attributes:
        images: squares `(S, S, 3)` uint8.
        records: what each shows, in the same order.
        how: one sentence for `details`.
    """

    images: Sequence[Pixels]
    records: tuple[ImageRecord, ...]
    how: str


def real_set(corpus: Corpus, protocol: Protocol, split: str, generated_px: int) -> RealSet:
    """Return the real images of a split, each once, prepared as the protocol says."""
    records = tuple(corpus.records(split))
    if not records:
        raise DataError(f"split={split}: {corpus.manifest.corpus} has no image in it", "Type: split=test")
    if not from_originals(corpus, protocol):
        arrays = prepared_arrays(corpus, split, min(generated_px, corpus.image_px))
        return RealSet(arrays, records, "as prepared for training, centre crops")  # type: ignore[arg-type]
    side = side_of(protocol, generated_px)
    items = [
        (corpus.manifest.image_path(record), record.box if protocol.box_crop else None) for record in records
    ]
    crop = "bounding box 0.75, " if protocol.box_crop and records[0].box is not None else "full frame, "
    ways = {"squash256": "squashed to", "crop": "shorter side and centre crop to"}
    way = ways.get(protocol.prepare, "shorter side and centre crop to")
    how = f"original files, {crop}{way} {side} px, {protocol.real_resize} antialiased"
    return RealSet(PreparedImages(items, side, protocol), records, how)


def real_side(
    corpus: Corpus, protocol: Protocol, split: str, generated_px: int, keys: Sequence[str]
) -> RealSet:
    """Return the real images that generated ones are compared with.

    Args:
        corpus: prepared corpus.
        protocol: says which and how prepared.
        split: its split.
        generated_px: side of the generated images.
        keys: image key of each generated image (`per_caption` repeats its real image).
    """
    if protocol.real_images == "all":
        parts = [
            real_set(corpus, protocol, name, generated_px)
            for name in ("train", "val", "test")
            if corpus.records(name)
        ]
        records = tuple(record for part in parts for record in part.records)
        whole = RealSet(_joined(parts), records, f"all splits, {parts[0].how}")
    else:
        whole = real_set(corpus, protocol, split, generated_px)
    if protocol.real_images == "per_caption":
        row_of = {record.key: row for row, record in enumerate(whole.records)}
        return _chosen(whole, [row_of[key] for key in keys], f"one for each generated image, {whole.how}")
    return whole


class _Rows(Sequence[Any]):
    """Chosen places of other sequences, read when asked for."""

    def __init__(self, places: Sequence[tuple[Sequence[Any], int]]) -> None:
        self.places = places

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: Any) -> Any:
        source, row = self.places[index]
        return source[row]


def first_rows(source: Sequence[Any], count: int) -> Sequence[Any]:
    """Return the first `count` items of a sequence, read when asked for."""
    return source if count == len(source) else _Rows([(source, row) for row in range(count)])


def _joined(parts: Sequence[RealSet]) -> Sequence[Pixels]:
    return _Rows([(part.images, row) for part in parts for row in range(len(part.records))])


def _chosen(whole: RealSet, rows: Sequence[int], how: str) -> RealSet:
    images = _Rows([(whole.images, row) for row in rows])
    return RealSet(images, tuple(whole.records[row] for row in rows), how)


def prepared_arrays(corpus: Corpus, split: str, image_px: int) -> Pixels:
    """Return the prepared images of a split, centre crops, `(N, S, S, 3)` uint8."""
    from speech2image.data.batches import ImageBatches

    batches = ImageBatches(corpus, split, 64, image_px)
    parts = [batches[step]["image"].permute(0, 2, 3, 1).numpy() for step in range(len(batches))]
    return np.concatenate(parts) if parts else np.zeros((0, image_px, image_px, 3), np.uint8)
