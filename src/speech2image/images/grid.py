"""Contact sheets and PNG files."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw
from torch import Tensor

from speech2image.errors import DataError

Pixels = npt.NDArray[np.uint8]
_GAP = 2


def to_uint8(images: Tensor) -> Pixels:
    """Turn `(B, 3, H, W)` in [-1, 1] into `(B, H, W, 3)` uint8, rounded to nearest."""
    scaled = images.detach().clamp(-1, 1).add(1).mul(127.5).round()
    return scaled.permute(0, 2, 3, 1).cpu().numpy().astype(np.uint8)


def contact_sheet(
    images: Sequence[Pixels], columns: int, labels: Sequence[str] | None = None, cell_px: int | None = None
) -> Pixels:
    """Lay images of one size out in rows.

    Args:
        images: `(H, W, 3)` uint8 each.
        columns: images a row.
        labels: one short text an image, written below it.
        cell_px: side of a cell; None: the size of the images.

    Returns: one image, `(H', W', 3)` uint8, white between the cells.
    """
    height, width = (cell_px, cell_px) if cell_px else images[0].shape[:2]
    text_px = 14 if labels else 0
    rows = -(-len(images) // columns)
    size = (columns * (width + _GAP) + _GAP, rows * (height + text_px + _GAP) + _GAP)
    sheet = Image.new("RGB", size, "white")
    pen = ImageDraw.Draw(sheet)
    for index, pixels in enumerate(images):
        left = _GAP + (index % columns) * (width + _GAP)
        top = _GAP + (index // columns) * (height + text_px + _GAP)
        tile = Image.fromarray(np.ascontiguousarray(pixels))
        if tile.size != (width, height):
            tile = tile.resize((width, height), Image.Resampling.NEAREST)
        sheet.paste(tile, (left, top))
        if labels:
            pen.text((left, top + height), labels[index][: max(1, width // 6)], fill="black")
    return np.asarray(sheet)


def write_png(path: Path, image: Pixels) -> None:
    """Write one PNG whole or not at all; folders are made.

    Raises:  DataError: the folder cannot be written or the disk is full.
    """
    temporary = path.with_name(path.name + ".part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.ascontiguousarray(image)).save(temporary, format="PNG")
        os.replace(temporary, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise DataError(
            f"{path} cannot be written: {error.strerror or error}", "Free space or choose another folder."
        ) from None
