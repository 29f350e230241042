"""LPIPS: distance between two images in the features of VGG16.

Here: the network and its arithmetic, with the tensor names of released VQGAN files.  Its weights are
a local file that `training/codec_module.py` reads; nothing is downloaded, and inference never needs
them.  Other terms of codec training are in `codec.py`.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

#: VGG16 features: number and channels of each convolution, by slice; a slice ends behind a ReLU.
_SLICES: tuple[tuple[tuple[int, int, int], ...], ...] = (
    ((0, 3, 64), (2, 64, 64)),
    ((5, 64, 128), (7, 128, 128)),
    ((10, 128, 256), (12, 256, 256), (14, 256, 256)),
    ((17, 256, 512), (19, 512, 512), (21, 512, 512)),
    ((24, 512, 512), (26, 512, 512), (28, 512, 512)),
)
_EPS = 1e-10


class Lpips(nn.Module):
    """Perceptual distance of image pairs, frozen.

    Args:
        legacy_dropout: let the dropout in front of the linear layers act in training mode, as the
            released training did by accident; else the network is in evaluation mode for good.
    Source:  Zhang et al. 2018, equation 1; taming `lpips.py`.  Differs: `legacy_dropout` is off.
    """

    def __init__(self, legacy_dropout: bool = False) -> None:
        super().__init__()
        self.legacy_dropout = legacy_dropout
        self.scaling_layer = _Scaling()
        self.net = _Vgg16()
        for number, convolutions in enumerate(_SLICES):
            self.add_module(f"lin{number}", _Linear(convolutions[-1][2]))
        self.requires_grad_(False)
        self.train(False)

    def train(self, mode: bool = True) -> Lpips:
        """Stay in evaluation mode unless `legacy_dropout` is set."""
        return super().train(mode and self.legacy_dropout)

    def forward(self, images: Tensor, others: Tensor) -> Tensor:
        """Return distances `(B, 1, 1, 1)` of images `(B, 3, H, W)` in [-1, 1]; gradients reach both."""
        features = self.net(self.scaling_layer(images))
        others_features = self.net(self.scaling_layer(others))
        total = images.new_zeros(len(images), 1, 1, 1)
        for number, (one, other) in enumerate(zip(features, others_features, strict=True)):
            gap = (_unit(one) - _unit(other)).square()
            total = total + self.get_submodule(f"lin{number}")(gap).mean(dim=(2, 3), keepdim=True)
        return total


class _Scaling(nn.Module):
    """From [-1, 1] to the ImageNet mean and deviation VGG was trained with."""

    shift: Tensor
    scale: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("shift", torch.tensor([-0.030, -0.088, -0.188]).view(1, 3, 1, 1))
        self.register_buffer("scale", torch.tensor([0.458, 0.448, 0.450]).view(1, 3, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        return (images - self.shift) / self.scale


class _Vgg16(nn.Module):
    """The convolutions of VGG16, cut behind relu1_2, 2_2, 3_3, 4_3 and 5_3."""

    def __init__(self) -> None:
        super().__init__()
        for number, convolutions in enumerate(_SLICES, start=1):
            part = nn.Sequential()
            if number > 1:
                part.add_module(str(convolutions[0][0] - 1), nn.MaxPool2d(2))
            for place, before, after in convolutions:
                part.add_module(str(place), nn.Conv2d(before, after, 3, padding=1))
                part.add_module(str(place + 1), nn.ReLU())
            self.add_module(f"slice{number}", part)

    def forward(self, images: Tensor) -> list[Tensor]:
        found = []
        for part in self.children():
            images = part(images)
            found.append(images)
        return found


class _Linear(nn.Module):
    """One non-negative weight a channel (dropout acts in the legacy mode only)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.model = nn.Sequential(nn.Dropout(), nn.Conv2d(channels, 1, 1, bias=False))

    def forward(self, gap: Tensor) -> Tensor:
        return cast(Tensor, self.model(gap))


def _unit(features: Tensor) -> Tensor:
    return features / (features.square().sum(dim=1, keepdim=True).sqrt() + _EPS)


def rename_vgg(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the convolutions of torchvision's `vgg16` under the names of `Lpips`.

    Args:
        state: names such as `features.0.weight`; the classifier is left out.
    """
    slice_of = {
        place: number for number, convolutions in enumerate(_SLICES, start=1) for place, *_ in convolutions
    }
    renamed = {}
    for name, value in state.items():
        parts = name.split(".")
        if parts[0] == "features" and int(parts[1]) in slice_of:
            renamed[f"net.slice{slice_of[int(parts[1])]}.{parts[1]}.{parts[2]}"] = value
    return renamed
