"""Blocks of the VQGAN encoder and decoder.

Here: residual block, spatial attention, and the two changes of resolution, with the tensor names of
the released files.  How they are stacked is in `autoencoder.py`; quantizers are in `quantizers.py`.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

NORM_EPS = 1e-6


def group_norm(channels: int, num_groups: int = 32) -> nn.GroupNorm:
    """Return the norm used everywhere: affine, eps 1e-6, at most one group a channel."""
    return nn.GroupNorm(min(num_groups, channels), channels, eps=NORM_EPS)


class ResnetBlock(nn.Module):
    """Norm, swish, 3x3 convolution, twice, plus the input.

    Args:
        in_channels: of the input.
        out_channels: of the output; where they differ the input goes through a 1x1 convolution.
        norm_groups: groups of the norms.
    Source:  taming `model.py` `ResnetBlock` without time embedding and dropout.
    """

    def __init__(self, in_channels: int, out_channels: int, norm_groups: int = 32) -> None:
        super().__init__()
        self.norm1 = group_norm(in_channels, norm_groups)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.norm2 = group_norm(out_channels, norm_groups)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.nin_shortcut = nn.Conv2d(in_channels, out_channels, 1) if in_channels != out_channels else None

    def forward(self, hidden: Tensor) -> Tensor:
        """Map `(B, C_in, H, W)` to `(B, C_out, H, W)`."""
        inner = self.conv1(F.silu(self.norm1(hidden)))
        inner = self.conv2(F.silu(self.norm2(inner)))
        return inner + (hidden if self.nin_shortcut is None else self.nin_shortcut(hidden))


class AttnBlock(nn.Module):
    """Single-head attention between all positions of a map, plus the input.

    Args:
        channels: of the map.
        norm_groups: groups of the norm.
    Source:  taming `model.py` `AttnBlock`; scale C^-0.5.
    """

    def __init__(self, channels: int, norm_groups: int = 32) -> None:
        super().__init__()
        self.norm = group_norm(channels, norm_groups)
        self.q = nn.Conv2d(channels, channels, 1)
        self.k = nn.Conv2d(channels, channels, 1)
        self.v = nn.Conv2d(channels, channels, 1)
        self.proj_out = nn.Conv2d(channels, channels, 1)

    def forward(self, hidden: Tensor) -> Tensor:
        """Map `(B, C, H, W)` to the same shape.  Cost: order (H W)^2 C."""
        normed = self.norm(hidden)
        query, key, value = (
            layer(normed).flatten(2).transpose(1, 2).unsqueeze(1) for layer in (self.q, self.k, self.v)
        )
        mixed = F.scaled_dot_product_attention(query, key, value).squeeze(1)
        return hidden + self.proj_out(mixed.transpose(1, 2).reshape(hidden.shape))


class Downsample(nn.Module):
    """Halve the resolution: one row and column of zeros right and bottom, 3x3 convolution, stride 2."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, hidden: Tensor) -> Tensor:
        """Map `(B, C, H, W)` to `(B, C, H/2, W/2)`."""
        return self.conv(F.pad(hidden, (0, 1, 0, 1)))


class Upsample(nn.Module):
    """Double the resolution: repeat every pixel, then a 3x3 convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, hidden: Tensor) -> Tensor:
        """Map `(B, C, H, W)` to `(B, C, 2H, 2W)`."""
        return self.conv(F.interpolate(hidden, scale_factor=2.0, mode="nearest"))


class Middle(nn.Module):
    """Residual block, attention, residual block, at the lowest resolution."""

    def __init__(self, channels: int, norm_groups: int = 32) -> None:
        super().__init__()
        self.block_1 = ResnetBlock(channels, channels, norm_groups)
        self.attn_1 = AttnBlock(channels, norm_groups)
        self.block_2 = ResnetBlock(channels, channels, norm_groups)

    def forward(self, hidden: Tensor) -> Tensor:
        """Map `(B, C, H, W)` to the same shape."""
        return self.block_2(self.attn_1(self.block_1(hidden)))
