"""Building blocks of the StackGAN family, in forms that cost less and compute the same.

Here: the gated up-sampling block, the residual block, the block that joins a condition to a map,
and their initialisation.  Two of them use exact shortcuts: nearest up-sampling followed by a 3x3
convolution is one transposed convolution, and a spatially constant condition has only nine
distinct responses to a padded 3x3 kernel.  Norms with activations are in `norms.py`, networks in
`stackgan.py` and `discriminators.py`.
"""

from __future__ import annotations

from functools import cache
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from speech2image.gan.norms import apply_layers, normalise_activate

LEAKY_SLOPE = 0.2
FEW_PIXELS = 256
"""Below this many small-map pixels in a batch, summing the taps costs more than it saves (measured)."""


def conv3x3(in_channels: int, out_channels: int) -> nn.Conv2d:
    """Return a 3x3 convolution that keeps the size and has no bias."""
    return nn.Conv2d(in_channels, out_channels, kernel_size=3, padding=1, bias=False)


def upsample_conv3x3(image_map: Tensor, weight: Tensor) -> Tensor:
    """Double the size by nearest neighbours and convolve 3x3, as one transposed convolution.

    Output pixel n of one axis sees the doubled map at n-1, n, n+1, which are only two pixels of the
    small map; taps that fall on the same pixel are summed once per step instead of once per pixel.

    Args:
        image_map: `(B, C, H, W)`.
        weight: `(C_out, C, 3, 3)` of the 3x3 convolution.
    Returns: `(B, C_out, 2H, 2W)`, equal to `conv2d(interpolate(image_map, scale_factor=2), weight, padding=1)`.
    Source:  StackGAN-v2 `upBlock`; the identity is derived here.
    Cost:    4 instead of 9 multiplications per output pixel and channel pair; the doubled map,
             four times the input, is never made or kept for the backward pass.  Batches with fewer than
             `FEW_PIXELS` pixels take the textbook way.
    """
    if image_map.shape[0] * image_map.shape[2] * image_map.shape[3] < FEW_PIXELS:
        return F.conv2d(F.interpolate(image_map, scale_factor=2.0, mode="nearest"), weight, padding=1)
    taps = weight.flatten(2) @ _tap_sums(weight.device, weight.dtype)
    return F.conv_transpose2d(
        image_map, taps.view(*taps.shape[:2], 4, 4).transpose(0, 1), stride=2, padding=1
    )


@cache
def _tap_sums(device: torch.device, dtype: torch.dtype) -> Tensor:
    """Return `(9, 16)`: which taps of the 3x3 kernel add up to which tap of the 4x4 one."""
    with torch.inference_mode(False):
        axis = torch.tensor([[0, 0, 1], [0, 1, 1], [1, 1, 0], [1, 0, 0]], dtype=dtype, device=device)
        return torch.kron(axis, axis).T.contiguous()


def conv3x3_with_condition(condition: Tensor, image_map: Tensor, weight: Tensor) -> Tensor:
    """Convolve 3x3 over a condition, repeated at every pixel, joined in front of a map.

    Args:
        condition: `(B, D)`.
        image_map: `(B, C, H, W)`.
        weight: `(C_out, D + C, 3, 3)`, the condition's channels first.
    Returns: `(B, C_out, H, W)`.
    Source:  StackGAN-v2 `jointConv`; differs: the part on the condition is computed on a 3x3 map and
             its middle row and column are repeated, which is exact because the condition is constant.
             Maps of 4x4 and less, where nothing is saved, are joined as published.
    """
    condition_dim = condition.shape[1]
    height, width = image_map.shape[2:]
    if height * width <= 16:
        tiled = condition[:, :, None, None].expand(-1, -1, height, width)
        return F.conv2d(torch.cat([tiled, image_map], dim=1), weight, padding=1)
    constant = condition[:, :, None, None].expand(-1, -1, 3, 3)
    small = F.conv2d(constant, weight[:, :condition_dim], padding=1)
    row = torch.cat([small[:, :, :1], small[:, :, 1:2].expand(-1, -1, height - 2, -1), small[:, :, 2:]], 2)
    full = torch.cat([row[..., :1], row[..., 1:2].expand(-1, -1, -1, width - 2), row[..., 2:]], 3)
    return F.conv2d(image_map, weight[:, condition_dim:], padding=1) + full


class UpBlock(nn.Sequential):
    """Double the size: nearest up-sampling, 3x3 convolution, batch norm, gate.

    Indices and parameter names are those of the released files: 1 is the convolution, 2 the norm.

    Args:
        in_channels: channels of the input `(B, C, H, W)`.
        out_channels: channels of the output `(B, C_out, 2H, 2W)`.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(
            nn.Upsample(scale_factor=2, mode="nearest"),
            conv3x3(in_channels, 2 * out_channels),
            nn.BatchNorm2d(2 * out_channels),
            nn.GLU(dim=1),
        )

    def forward(self, image_map: Tensor) -> Tensor:
        """Return `(B, C_out, 2H, 2W)`."""
        conv, norm, gate = cast(nn.Conv2d, self[1]), cast(nn.BatchNorm2d, self[2]), cast(nn.GLU, self[3])
        return normalise_activate(upsample_conv3x3(image_map, conv.weight), norm, gate)


class JointBlock(nn.Sequential):
    """Join a condition to a map: 3x3 convolution over both, batch norm, activation.

    Args:
        condition_dim: width of the condition.
        in_channels: channels of the map.
        out_channels: channels of the output.
        gated: gate (generator; the convolution is twice as wide) or leaky ReLU (discriminator).
    """

    def __init__(self, condition_dim: int, in_channels: int, out_channels: int, gated: bool) -> None:
        wide = 2 * out_channels if gated else out_channels
        super().__init__(
            conv3x3(condition_dim + in_channels, wide),
            nn.BatchNorm2d(wide),
            nn.GLU(dim=1) if gated else nn.LeakyReLU(LEAKY_SLOPE, inplace=True),
        )

    def forward(self, condition: Tensor, image_map: Tensor, num_kinds: int = 1) -> Tensor:  # type: ignore[override]
        """Return `(B, C_out, H, W)` of `condition` `(B, D)` and `image_map` `(B, C, H, W)`.

        `num_kinds` as in `normalise_activate`.
        """
        conv, norm = cast(nn.Conv2d, self[0]), cast(nn.BatchNorm2d, self[1])
        joined = conv3x3_with_condition(condition, image_map, conv.weight)
        return normalise_activate(joined, norm, cast(nn.GLU | nn.LeakyReLU, self[2]), num_kinds)


class ResidualBlock(nn.Module):
    """Add a gated two-convolution path to its input; nothing follows the sum.

    Args:
        channels: channels of input and output.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.block = nn.Sequential(
            conv3x3(channels, 2 * channels),
            nn.BatchNorm2d(2 * channels),
            nn.GLU(dim=1),
            conv3x3(channels, channels),
            nn.BatchNorm2d(channels),
        )

    def forward(self, image_map: Tensor) -> Tensor:
        """Return `(B, C, H, W)` of the same shape as `image_map`."""
        return apply_layers(self.block, image_map) + image_map


def down_block(in_channels: int, out_channels: int) -> nn.Sequential:
    """Return the block that halves the size: 4x4 stride-2 convolution, batch norm, leaky ReLU."""
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, 4, 2, 1, bias=False),
        nn.BatchNorm2d(out_channels),
        nn.LeakyReLU(LEAKY_SLOPE, inplace=True),
    )


def same_block(in_channels: int, out_channels: int) -> nn.Sequential:
    """Return the block that keeps the size: 3x3 convolution, batch norm, leaky ReLU."""
    return nn.Sequential(
        conv3x3(in_channels, out_channels),
        nn.BatchNorm2d(out_channels),
        nn.LeakyReLU(LEAKY_SLOPE, inplace=True),
    )


def initialise(network: nn.Module) -> None:
    """Fill weights as the released code does: orthogonal, norms N(1, 0.02), biases 0.

    Args:
        network: changed in place; draws from torch's global generator.
    Source:  StackGAN-v2 `trainer.py`. Differs: convolution biases keep the framework's default there
             and here.
    """
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.orthogonal_(module.weight)
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            nn.init.normal_(module.weight, 1.0, 0.02)
            nn.init.zeros_(module.bias)
