"""Decode image files to RGB, whatever their mode, and refuse what is damaged or dangerous."""

from __future__ import annotations

import io
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

# Pillow would load these when the first image is opened, and two threads that do so at once see half of them.
from PIL import (  # noqa: F401
    BmpImagePlugin,
    GifImagePlugin,
    Image,
    ImageOps,
    JpegImagePlugin,
    PngImagePlugin,
    PpmImagePlugin,
    TiffImagePlugin,
    UnidentifiedImageError,
    WebPImagePlugin,
)

from speech2image.errors import DataError

MAX_IMAGE_BYTES = 100_000_000
"""Largest image file."""
MAX_IMAGE_PX = 40_000_000
"""Most pixels of an image; with every conversion they take less than 1 GB."""
MAX_ASPECT = 32
"""Longest side over shortest: resizing a strip of 1 x 60,000 px to a short side of 304 would take 17 GB."""
#: Others are not tried: some start programs (EPS), most are never met, and each is a parser to attack.
FORMATS = ("JPEG", "PNG", "GIF", "BMP", "WEBP", "TIFF", "PPM")

_REMEDY = "Replace the file, or go on without it: data.on_error=skip"
# Sizes are compared below, before anything is decoded; one message is enough.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)


def read_image(path: str | Path, max_px: int = MAX_IMAGE_PX) -> npt.NDArray[np.uint8]:
    """Read one image as RGB.

    Grey, palette and CMYK images are converted, transparency is laid over white, and the EXIF
    orientation is applied.

    Args:
        path: image file of one of `FORMATS`.
        max_px: most pixels an image may have; more is taken for a decompression bomb.

    Returns: `(H, W, 3)` uint8.
    Raises:  DataError: missing, empty, not an image, truncated, too large, or a strip.
    """
    path = Path(path)
    content = io.BytesIO(_read_file(path))  # a file would take the room for any length that a chunk claims
    try:
        with Image.open(content, formats=FORMATS) as image:
            _check_size(path, image.size, max_px)
            image.load()
            ImageOps.exif_transpose(image, in_place=True)
            return np.asarray(_to_rgb(image))
    except DataError:
        raise
    except Exception as error:  # noqa: BLE001  decoders fail in many ways
        raise DataError(f"{path}: the image cannot be decoded ({_reason(error)})", _REMEDY) from None


def _read_file(path: Path) -> bytes:
    try:
        if not path.is_file():
            raise DataError(f"{path}: there is no such image", _REMEDY)
        size = path.stat().st_size
        if size > MAX_IMAGE_BYTES:
            raise DataError(
                f"{path}: an image of {size:,} bytes, more than the {MAX_IMAGE_BYTES:,} that are accepted",
                _REMEDY,
            )
        content = path.read_bytes()
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        raise DataError(f"{path}: the image cannot be read ({error})", _REMEDY) from None
    if not content:
        raise DataError(f"{path}: the image file is empty (0 bytes)", _REMEDY)
    return content


def _check_size(path: Path, size: tuple[int, int], max_px: int) -> None:
    width, height = size
    if width * height > max_px:
        raise DataError(
            f"{path}: {width} x {height} px, more than the {max_px:,} px that are accepted "
            "(a decompression bomb?)",
            _REMEDY,
        )
    if max(size) > MAX_ASPECT * min(size):
        raise DataError(
            f"{path}: {width} x {height} px, one side more than {MAX_ASPECT} times the other", _REMEDY
        )


def _reason(error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):
        return f"it is none of {', '.join(FORMATS)}"
    return (str(error) or type(error).__name__)[:200]


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        layer = image if image.mode == "RGBA" else image.convert("RGBA")
        white = Image.new("RGB", layer.size, (255, 255, 255))
        white.paste(layer, mask=layer)  # as alpha_composite, in a seventh of the time
        return white
    if image.mode.startswith(("I", "F")):  # 16-bit grey: keep the upper eight bits
        image = Image.fromarray(_upper_bits(np.asarray(image)))
    return image.convert("RGB")


def _upper_bits(values: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    """Scale grey values of 16 bits, or of 8 in a wider type, to 8 bits."""
    highest = values.max()
    high = 65535.0 if highest > 255 else 255.0
    if values.dtype.kind in "iu" and values.min() >= 0 and highest <= 65535:
        table = np.arange(65536) / high * 255
        return table.clip(0, 255).astype(np.uint8)[values]
    scaled = np.array(values, dtype=np.float64)
    np.nan_to_num(scaled, copy=False)
    scaled /= high
    scaled *= 255
    return scaled.clip(0, 255, out=scaled).astype(np.uint8)
