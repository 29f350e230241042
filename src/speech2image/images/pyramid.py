"""From a photograph to what a generator learns: box crop, resize chain, random crop, pyramid."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from speech2image.errors import DataError
from speech2image.images.read import MAX_ASPECT
from speech2image.types import ImagePyramid

Pixels = npt.NDArray[np.uint8]


def crop_box(image: Pixels, box: Sequence[float], factor: float = 0.75) -> Pixels:
    """Crop the square of half-side `factor` times the longer box side around the box centre.

    Args:
        image: `(H, W, 3)` uint8.
        box: `(x, y, width, height)` in pixels.
        factor: half-side over the longer side of the box.

    Returns: the crop, clipped to the image.
    Raises:  DataError: nothing of the crop lies inside the image.
    Source:  StackGAN-v2 `datasets.py: get_imgs`.
    """
    if not all(abs(value) < 1e6 for value in box):  # also where one is no number
        raise _outside(image, box)
    x, y, width, height = (int(value) for value in box)
    radius = int(max(width, height) * factor)
    centre_x, centre_y = int((2 * x + width) / 2), int((2 * y + height) / 2)
    rows, columns = image.shape[:2]
    top, bottom = max(0, centre_y - radius), min(rows, centre_y + radius)
    left, right = max(0, centre_x - radius), min(columns, centre_x + radius)
    if top >= bottom or left >= right:
        raise _outside(image, box)
    return image[top:bottom, left:right]


def _outside(image: Pixels, box: Sequence[float]) -> DataError:
    return DataError(
        f"the bounding box {tuple(box)} lies outside its image of {image.shape[1]} x {image.shape[0]} px",
        "Correct the line in bounding_boxes.txt, or go on without the image: data.on_error=skip",
    )


def resize_short(image: Pixels, short_px: int) -> Pixels:
    """Resize so that the shorter side is `short_px`, PIL bilinear (antialiased).

    Raises:  DataError: one side is more than `MAX_ASPECT` times the other; the result would have no bounds.
    """
    height, width = image.shape[:2]
    if max(height, width) > MAX_ASPECT * min(height, width):
        raise DataError(
            f"a strip of {width} x {height} px, one side more than {MAX_ASPECT} times the other",
            "Correct its bounding box, or go on without the image: data.on_error=skip",
        )
    if min(height, width) == short_px:
        return image
    if width <= height:
        size = (short_px, int(short_px * height / width))
    else:
        size = (int(short_px * width / height), short_px)
    return np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BILINEAR))


def crop_flip(image: Pixels, side_px: int, top: int, left: int, flip: bool) -> Pixels:
    """Cut the square of `side_px` at (`top`, `left`) and mirror it where `flip` says so."""
    crop = image[top : top + side_px, left : left + side_px]
    return crop[:, ::-1] if flip else crop


def centre_crop(image: Pixels, side_px: int) -> Pixels:
    """Cut the central square of `side_px`."""
    height, width = image.shape[:2]
    return crop_flip(image, side_px, (height - side_px) // 2, (width - side_px) // 2, False)


def pyramid(images: Tensor, sizes: Sequence[int]) -> ImagePyramid:
    """Resize a batch to each size, antialiased bilinear from the largest, and scale to [-1, 1].

    Args:
        images: `(B, 3, S, S)` uint8.
        sizes: sides, smallest first; the last is usually S.

    Returns: float32 levels on the device of `images`.
    Source:  StackGAN-v2 `datasets.py`: PIL bilinear from the same crop, then (x - 0.5) / 0.5.
    """
    levels = []
    for size in sizes:
        level = images
        if size != images.shape[-1]:
            if images.is_cuda:
                level = F.interpolate(
                    images.float(), size=(size, size), mode="bilinear", antialias=True
                ).round_()
            else:
                level = F.interpolate(images, size=(size, size), mode="bilinear", antialias=True)
        levels.append(level.to(torch.float32).div_(127.5).sub_(1.0))
    return ImagePyramid(tuple(levels))
