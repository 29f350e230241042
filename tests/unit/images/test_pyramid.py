"""Box crops, the resize chain and pyramids, against the arithmetic of the spec, torchvision and PIL."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

from speech2image.errors import DataError
from speech2image.images.pyramid import centre_crop, crop_box, crop_flip, pyramid, resize_short


def _image(height: int, width: int, seed: int = 0) -> np.ndarray:
    coarse = np.random.default_rng(seed).integers(0, 255, (7, 9, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))


def test_crop_box_follows_the_published_arithmetic() -> None:
    image = np.arange(200 * 300, dtype=np.int64).reshape(200, 300)[..., None].repeat(3, -1)
    # (60, 27, 121, 93) as ints: r = int(0.75 * 121) = 90, centre = (int(241 / 2), int(147 / 2)) = (120, 73)
    found = crop_box(image, (60.9, 27.4, 121.8, 93.2))
    assert np.array_equal(found, image[0:163, 30:210])


def test_crop_box_is_clipped_at_every_side() -> None:
    image = _image(50, 60)
    assert np.array_equal(crop_box(image, (0, 0, 60, 50)), image)
    assert crop_box(image, (50, 40, 10, 10)).shape == (12, 12, 3)


def test_crop_box_outside_the_image_is_refused() -> None:
    with pytest.raises(DataError, match=r"outside its image of 60 x 50"):
        crop_box(_image(50, 60), (300, 10, 20, 20))


@pytest.mark.parametrize(("height", "width"), [(50, 73), (91, 64), (40, 40), (200, 301), (333, 97)])
def test_resize_short_equals_torchvision(height: int, width: int) -> None:
    image = _image(height, width)
    expected = np.asarray(v2.Resize(76)(Image.fromarray(image)))
    assert np.array_equal(resize_short(image, 76), expected)


def test_resize_short_leaves_the_right_size_alone() -> None:
    image = _image(76, 100)
    assert resize_short(image, 76) is image


def test_crop_flip_cuts_and_mirrors() -> None:
    image = _image(20, 30)
    assert np.array_equal(crop_flip(image, 8, 3, 5, False), image[3:11, 5:13])
    assert np.array_equal(crop_flip(image, 8, 3, 5, True), image[3:11, 5:13][:, ::-1])
    assert np.array_equal(centre_crop(image, 10), image[5:15, 10:20])


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_pyramid_equals_pil_within_one_grey_level(layout: torch.memory_format) -> None:
    images = np.stack([_image(128, 128, seed) for seed in range(3)])
    tensor = torch.from_numpy(images).permute(0, 3, 1, 2).contiguous(memory_format=layout)
    levels = pyramid(tensor, (32, 64, 128)).levels
    for side, level in zip((32, 64, 128), levels, strict=True):
        assert level.dtype == torch.float32
        assert level.shape == (3, 3, side, side)
        for image, found in zip(images, level, strict=True):
            expected = np.asarray(Image.fromarray(image).resize((side, side), Image.Resampling.BILINEAR))
            grey = (found.permute(1, 2, 0).numpy() + 1) * 127.5
            assert np.abs(grey - expected).max() <= 1.001
    assert torch.equal(levels[-1], tensor.float() / 127.5 - 1)


def test_pyramid_spans_minus_one_to_one() -> None:
    image = torch.zeros(1, 3, 8, 8, dtype=torch.uint8)
    image[..., 4:] = 255
    level = pyramid(image, (8,)).levels[0]
    assert level.min() == -1
    assert level.max() == 1
