"""Differentiable augmentation: what discriminators see is shifted, so that small corpora last longer.

Here: random translation, the same operation on real and on painted images, through which gradients
pass.  Colours are left alone: they are what the speech is about.  Training applies it in
`training/gan_module.py`.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def translate(images: Tensor, offsets: Tensor) -> Tensor:
    """Shift each image by whole pixels; what comes in from outside is 0.

    Args:
        images: `(B, 3, H, W)`.
        offsets: `(B, 2)` int64, rows and columns, positive: up and to the left.
    Returns: `(B, 3, H, W)`.
    Source:  Zhao et al. 2020, Differentiable Augmentation for Data-Efficient GAN Training, `translation`.
    """
    height, width = images.shape[-2:]
    padded = functional.pad(images, (1, 1, 1, 1)).permute(0, 2, 3, 1)
    rows = (torch.arange(height, device=images.device) + 1 + offsets[:, :1]).clamp(0, height + 1)
    columns = (torch.arange(width, device=images.device) + 1 + offsets[:, 1:]).clamp(0, width + 1)
    items = torch.arange(len(images), device=images.device)[:, None, None]
    return padded[items, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2).contiguous()
