"""Images on their way to a feature network: files or arrays in, uint8 tensors of one size out.

Reads the folder that `generate` wrote and refuses what does not belong there, because a stray or
misaligned file changes a score in silence.  Decoding is `images/read.py`; no score is here.
"""

from __future__ import annotations

import io
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from torch.utils.data import Dataset

from speech2image.errors import DataError, ProtocolError
from speech2image.images.pyramid import centre_crop, resize_short
from speech2image.images.read import FORMATS, MAX_IMAGE_BYTES, read_image
from speech2image.safe.records import read_json, read_limited

Source = Sequence[Path] | Sequence[npt.NDArray[np.uint8]] | npt.NDArray[np.uint8]
_IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".webp", ".gif", ".tif", ".tiff"}
_OWN_FILES = {"contact_sheet.png", "strip.png"}


class ImageSet(Dataset[Tensor]):
    """Images of one size: files or `(H, W, 3)` uint8 arrays, read when asked for.

    Args:
        images: paths, arrays, or one array `(N, H, W, 3)`.
        image_px: side every image is brought to; images that have that size are left alone.
        prepare: `crop`, shorter side resized and the centre cut; `squash`, both sides resized and the
            aspect ignored.
        resample: PIL filter of the resize (each antialiases).

    Raises:  DataError: an image is empty, damaged or none; the message names it.
    """

    def __init__(
        self,
        images: Source,
        image_px: int,
        prepare: Literal["crop", "squash"] = "crop",
        resample: Literal["bilinear", "bicubic", "lanczos"] = "bilinear",
    ) -> None:
        self.images, self.image_px = images, image_px
        self.prepare, self.resample = prepare, Image.Resampling[resample.upper()]

    def __len__(self) -> int:
        return len(self.images)

    @property
    def preparation(self) -> str:
        """What is done to every image, in one word for cache keys."""
        return f"{self.prepare}{self.image_px}-{self.resample.name.lower()}"

    def __getitem__(self, index: int) -> Tensor:
        """Return image `index`, `(3, S, S)` uint8."""
        item = self.images[index]
        image = read_image(item) if isinstance(item, (str, Path)) else np.asarray(item)
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
            raise DataError(f"image {index} has shape {image.shape} and type {image.dtype}", "")
        square = self._square(image)
        return torch.from_numpy(square.transpose(2, 0, 1).copy())

    def _square(self, image: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
        side = self.image_px
        if image.shape[:2] == (side, side):
            return image
        if self.prepare == "squash":
            return np.asarray(Image.fromarray(image).resize((side, side), self.resample))
        if self.resample is Image.Resampling.BILINEAR:
            return to_square(image, side)
        height, width = image.shape[:2]
        size = (max(side, side * width // height), max(side, side * height // width))
        return centre_crop(np.asarray(Image.fromarray(image).resize(size, self.resample)), side)

    def array(self) -> npt.NDArray[np.uint8]:
        """Return all images, `(N, 3, S, S)` uint8 in memory."""
        return np.stack([self[index].numpy() for index in range(len(self))])


def to_square(image: npt.NDArray[np.uint8], image_px: int) -> npt.NDArray[np.uint8]:
    """Return the centre square of `(H, W, 3)` with its shorter side resized to `image_px`."""
    if image.shape[:2] == (image_px, image_px):
        return image
    return centre_crop(resize_short(image, image_px), image_px)


@dataclass(frozen=True)
class GeneratedSet:
    """The images that one `generate` left in a folder.

    Attributes:
        files: image files, in the order of the manifest.
        records: their manifest lines.
    """

    files: tuple[Path, ...]
    records: tuple[dict[str, Any], ...]

    def column(self, name: str) -> list[Any]:
        """Return field `name` of every record; None where it is missing."""
        return [record.get(name) for record in self.records]


def read_generated(folder: Path, known_utterances: Collection[str] | None = None) -> GeneratedSet:
    """Read a folder of generated images with its `manifest.jsonl`.

    Args:
        folder: holds the images, `manifest.jsonl`, perhaps `contact_sheet.png`.
        known_utterances: keys of the utterances of the split; None: not checked.

    Raises:  DataError: no folder or manifest, a damaged line, a listed file that is missing, an
        image that no line lists, an utterance the corpus does not know, or a file that is no image;
        each is counted and the first ones are named.
    """
    manifest = folder / "manifest.jsonl"
    if not manifest.is_file():
        raise DataError(
            f"{folder} holds no generated images: there is no manifest.jsonl in it",
            "Run: speech2image generate run=<run folder>, then evaluate that run.",
        )
    records = _read_lines(manifest)
    files = tuple(folder / record["file"] for record in records)
    listed = {file.resolve() for file in files}
    found = {
        path.resolve()
        for path in folder.rglob("*")
        if path.suffix.lower() in _IMAGE_SUFFIXES and path.name not in _OWN_FILES
    }
    _refuse("listed in the manifest but missing", [str(f) for f in files if not f.is_file()], folder)
    _refuse("match no utterance of the manifest", sorted(map(str, found - listed)), folder)
    _refuse(
        "are listed twice",
        sorted({str(f) for f in files if files.count(f) > 1}) if len(listed) < len(files) else [],
        folder,
    )
    if known_utterances is not None:
        known = set(known_utterances)
        strangers = [
            f"{r['file']} ({r.get('utterance')})" for r in records if r.get("utterance") not in known
        ]
        _refuse("belong to utterances that the corpus does not have", strangers, folder)
    _refuse("are not images", [str(f) for f in files if not _looks_like_image(f)], folder)
    return GeneratedSet(files, tuple(records))


def common_size(images: Source) -> int:
    """Return the side of square images that all have one size.

    Raises:  ProtocolError: sizes differ or are not square; the message counts them.
    """
    sizes: dict[tuple[int, ...], int] = {}
    for item in images:
        shape = _size(item) if isinstance(item, (str, Path)) else np.asarray(item).shape[:2]
        sizes[shape] = sizes.get(shape, 0) + 1
    if len(sizes) != 1 or len(set(next(iter(sizes)))) != 1:
        found = ", ".join(f"{count} of {h}x{w}" for (h, w), count in sorted(sizes.items())) or "none"
        raise ProtocolError(
            f"generated images must be square and of one size, found {found}",
            "Score the final stage of one generator at a time.",
        )
    return next(iter(sizes))[0]


def _size(path: Path | str) -> tuple[int, int]:
    try:
        with Image.open(path) as image:
            return image.height, image.width
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError):
        read_image(path)  # says what is wrong with it
        raise


def _looks_like_image(path: Path) -> bool:
    try:
        content = io.BytesIO(
            read_limited(path, MAX_IMAGE_BYTES)
        )  # a file takes room for any length a chunk claims
        with Image.open(content, formats=FORMATS) as image:
            image.load()
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError):
        return False
    return True


def _read_lines(manifest: Path) -> list[dict[str, Any]]:
    records = []
    for number, line in enumerate(manifest.read_text(encoding="utf-8").splitlines(), start=1):
        if not line.strip():
            continue
        try:
            record = read_json(line)
            record["file"] = str(record["file"])
        except (ValueError, TypeError, KeyError) as problem:
            raise DataError(
                f"line {number} of {manifest} is damaged: {line[:80]!r}",
                "Run generate again.",
            ) from problem
        records.append(record)
    if not records:
        raise DataError(f"{manifest} lists no image", "Run generate again.")
    return records


def _refuse(what: str, names: Sequence[str], folder: Path) -> None:
    if names:
        first = ", ".join(names[:3])
        raise DataError(
            f"{len(names)} file(s) in {folder} {what}: {first}{', ...' if len(names) > 3 else ''}",
            "Move them away or run generate again into an empty folder.",
        )
