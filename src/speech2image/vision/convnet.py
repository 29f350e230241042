"""A small convolutional trunk, trained from scratch.

Here: `ConvNet`, the one image network of the suite that needs no downloaded weights.  It carries
the image branch of small corpora (`branch.py`), the probes that score generated images, and an
offline teacher.  Published trunks are in `branch.py` and `teacher.py`.
"""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

from speech2image.errors import ConfigError

LAST_PX = 8


class _Down(nn.Module):
    """Halve the image, change the channels, then refine by a residual convolution."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.down = nn.Conv2d(in_channels, out_channels, 3, stride=2, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(out_channels)
        self.refine = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.refine_norm = nn.BatchNorm2d(out_channels)

    def forward(self, maps: Tensor) -> Tensor:
        maps = functional.relu(self.norm(self.down(maps)), inplace=True)
        return functional.relu(maps + self.refine_norm(self.refine(maps)), inplace=True)


class ConvNet(nn.Module):
    """Map images to pooled non-negative features.

    Args:
        width: channels after the first layer; later layers have up to four times as many.
        image_px: side of the images, 8 times a power of two, at least 16; others are resized.
        feature_dim: features F.

    Source: own design: a strided stem, then halvings with one residual convolution each down to
        8 x 8, a 1 x 1 convolution to F channels, mean over the map.
    Cost: width 32 at 64 pixels: 33 million multiply-adds an image, 0.3 million weights.
    """

    def __init__(self, width: int = 32, image_px: int = 64, feature_dim: int = 256) -> None:
        super().__init__()
        halvings = round(math.log2(max(image_px, 1) / LAST_PX))
        if halvings < 1 or LAST_PX << halvings != image_px or width < 1:
            raise ConfigError(
                f"a ConvNet of width {width} for {image_px} pixels cannot be built",
                "Use image_px 16, 32, 64, 128 or 256 and a positive width.",
            )
        self.width, self.image_px, self.feature_dim = width, image_px, feature_dim
        channels = [min(width << level, 4 * width) for level in range(halvings)]
        self.stem = nn.Conv2d(3, channels[0], 5, stride=2, padding=2, bias=False)
        self.stem_norm = nn.BatchNorm2d(channels[0])
        self.stages = nn.Sequential(*[_Down(before, after) for before, after in pairwise(channels)])
        self.head = nn.Conv2d(channels[-1], feature_dim, 1, bias=False)
        self.head_norm = nn.BatchNorm2d(feature_dim)
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(self, images: Tensor) -> Tensor:
        """Return `(B, F)` non-negative features of `images` `(B, 3, H, W)` in [-1, 1]."""
        images = resize_images(images, self.image_px).contiguous(memory_format=torch.channels_last)
        maps = functional.relu(self.stem_norm(self.stem(images)), inplace=True)
        maps = functional.relu(self.head_norm(self.head(self.stages(maps))), inplace=True)
        return maps.mean(dim=(2, 3))

    features = forward


def resize_images(images: Tensor, image_px: int, antialias: bool = True) -> Tensor:
    """Return `images` `(B, 3, H, W)` as `(B, 3, image_px, image_px)`, bilinear; unchanged if so."""
    if images.shape[-2:] == (image_px, image_px):
        return images
    return functional.interpolate(
        images, (image_px, image_px), mode="bilinear", align_corners=False, antialias=antialias
    )
