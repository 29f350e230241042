"""Decode image files to RGB, whatever their mode, and refuse what is damaged or dangerous."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError

from speech2image.errors import DataError

_REMEDY = "Replace the file, or go on without it: data.on_error=skip"
#: What Pillow raises for damaged files, depending on the format and the place of the damage.
_DAMAGE = (
    Image.DecompressionBombError, UnidentifiedImageError, OSError, SyntaxError, ValueError, EOFError,
    IndexError, KeyError, TypeError, MemoryError, struct.error,
)  # fmt: skip


def read_image(path: str | Path, max_px: int = 64_000_000) -> npt.NDArray[np.uint8]:
    """Read one image as RGB.

    Grey, palette and CMYK images are converted, transparency is laid over white, and the EXIF
    orientation is applied.

    Args:
        path: image file.
        max_px: most pixels an image may have; more is taken for a decompression bomb.

    Returns: `(H, W, 3)` uint8.
    Raises:  DataError: missing, empty, not an image, truncated, or too large.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(f"{path}: there is no such image", _REMEDY)
    if path.stat().st_size == 0:
        raise DataError(f"{path}: the image file is empty (0 bytes)", _REMEDY)
    try:
        with Image.open(path) as image:
            width, height = image.size
            if width * height > max_px:
                raise DataError(
                    f"{path}: {width} x {height} px, more than the {max_px:,} px that are accepted "
                    "(a decompression bomb?)",
                    _REMEDY,
                )
            image.load()
            upright = ImageOps.exif_transpose(image)
    except _DAMAGE as error:
        raise DataError(f"{path}: the image cannot be decoded ({error})", _REMEDY) from None
    return np.asarray(_to_rgb(upright))


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        layer = image.convert("RGBA")
        white = Image.new("RGBA", layer.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, layer).convert("RGB")
    if image.mode.startswith(("I", "F")):  # 16-bit grey: keep the upper eight bits
        values = np.asarray(image, dtype=np.float64)
        high = 65535.0 if values.max() > 255 else 255.0
        image = Image.fromarray((values / high * 255).clip(0, 255).astype(np.uint8))
    return image.convert("RGB")
