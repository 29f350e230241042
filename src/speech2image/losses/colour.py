"""Colour consistency of images at neighbouring sizes.

Here: channel means and covariances of an image and the two distances StackGAN-v2 takes between
them.  Their weights belong to the trainer.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

COVARIANCE_FACTOR = 5.0
"""The covariance distance counts five times as much as the mean distance (StackGAN-v2, eq. 9)."""


def colour_statistics(images: Tensor) -> tuple[Tensor, Tensor]:
    """Return channel means `(B, C)` and covariances `(B, C, C)` over the pixels of each image.

    Args:
        images: `(B, C, H, W)`.
    Source:  StackGAN-v2, section 3.3; covariance divided by the number of pixels.
    """
    pixels = images.flatten(2)
    mean = pixels.mean(dim=2)
    centred = pixels - mean.unsqueeze(2)
    return mean, torch.bmm(centred, centred.transpose(1, 2)) / pixels.shape[2]


def colour_consistency(larger: Tensor, smaller: Tensor) -> tuple[Tensor, Tensor]:
    """Return the squared distances of colour means and colour covariances of two sizes.

    Args:
        larger: `(B, 3, H, W)`, receives the gradient.
        smaller: `(B, 3, h, w)`, a constant.
    Returns: two scalars: mean term, and covariance term (weigh it `COVARIANCE_FACTOR` times more).
    Source:  StackGAN-v2, eq. 9; the smaller image is detached as in the released code.
    """
    mean, covariance = colour_statistics(larger)
    target_mean, target_covariance = colour_statistics(smaller.detach())
    return F.mse_loss(mean, target_mean), F.mse_loss(covariance, target_covariance)
