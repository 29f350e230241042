"""Encoder and decoder of a VQGAN: pyramids of residual blocks with attention low down.

Here: the two networks on either side of the quantizer, with released tensor names.  A space-to-depth
stem (`patch_px`) makes a codec for tiny corpora cheap; released codecs have none.  The whole codec is
in `vqgan.py`, blocks are in `blocks.py`.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from speech2image.codecs.blocks import AttnBlock, Downsample, Middle, ResnetBlock, Upsample, group_norm
from speech2image.errors import ConfigError


@dataclass(frozen=True)
class Layout:
    """Sizes shared by encoder and decoder.

    Attributes:
        image_px: side of the images the levels are counted from.
        channels: width of the first level.
        channel_mult: width of each level over `channels`, highest resolution first.
        num_res_blocks: residual blocks a level (one more in the decoder).
        attn_px: sides of the maps that get attention after each residual block.
        latent_dim: channels between encoder or decoder and the 1x1 convolutions of the quantizer.
        patch_px: side of the square of pixels folded into channels before the first level.
        norm_groups: groups of every norm.
    """

    image_px: int
    channels: int
    channel_mult: tuple[int, ...]
    num_res_blocks: int
    attn_px: tuple[int, ...]
    latent_dim: int
    patch_px: int = 1
    norm_groups: int = 32

    def __post_init__(self) -> None:
        if self.image_px % self.factor:
            raise ConfigError(
                f"images of {self.image_px} px do not divide into codes of {self.factor} x {self.factor} px",
                f"Set image_px to a multiple of {self.factor}, or change channel_mult or patch_px.",
            )
        wrong = [width for width in self.widths if width > self.norm_groups and width % self.norm_groups]
        if wrong:
            raise ConfigError(
                f"widths {wrong} (channels x channel_mult) are no multiples of {self.norm_groups} norm groups",
                "Choose channels as a multiple of norm_groups, or fewer norm_groups.",
            )

    @property
    def factor(self) -> int:
        """Pixels a code stands for, along one side."""
        return self.patch_px * 2 ** (len(self.channel_mult) - 1)

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of each level, highest resolution first."""
        return tuple(self.channels * mult for mult in self.channel_mult)

    def has_attention(self, level: int) -> bool:
        """Return whether a level has attention after its residual blocks."""
        return self.image_px // (self.patch_px * 2**level) in self.attn_px


class Level(nn.Module):
    """One resolution: residual blocks, each with its attention, then maybe a change of resolution."""

    def __init__(
        self, in_channels: int, channels: int, num_blocks: int, has_attention: bool, norm_groups: int
    ) -> None:
        super().__init__()
        widths = [in_channels, *[channels] * num_blocks]
        self.block = nn.ModuleList(
            ResnetBlock(before, after, norm_groups) for before, after in itertools.pairwise(widths)
        )
        self.attn = nn.ModuleList(AttnBlock(channels, norm_groups) for _ in range(num_blocks * has_attention))

    def forward(self, hidden: Tensor) -> Tensor:
        """Map `(B, C_in, H, W)` to `(B, C, H, W)`, or half or double the side behind a resampler."""
        for place, block in enumerate(self.block):
            hidden = block(hidden)
            if self.attn:
                hidden = self.attn[place](hidden)
        for name in ("downsample", "upsample"):
            if name in self._modules:
                hidden = self.get_submodule(name)(hidden)
        return hidden


class Encoder(nn.Module):
    """Images `(B, 3, H, W)` to latents `(B, latent_dim, H/f, W/f)`, f the `factor` of the layout.

    Source:  taming `model.py` `Encoder` (double_z false).
    """

    def __init__(self, layout: Layout) -> None:
        super().__init__()
        self.patch_px = layout.patch_px
        self.conv_in = nn.Conv2d(3 * layout.patch_px**2, layout.channels, 3, padding=1)
        levels: list[Level] = []
        before, widths = layout.channels, layout.widths
        for number, width in enumerate(widths):
            level = Level(
                before, width, layout.num_res_blocks, layout.has_attention(number), layout.norm_groups
            )
            if number < len(widths) - 1:
                level.downsample = Downsample(width)
            levels.append(level)
            before = width
        self.down = nn.ModuleList(levels)
        self.mid = Middle(before, layout.norm_groups)
        self.norm_out = group_norm(before, layout.norm_groups)
        self.conv_out = nn.Conv2d(before, layout.latent_dim, 3, padding=1)

    def forward(self, images: Tensor) -> Tensor:
        """Return `(B, latent_dim, H/f, W/f)`."""
        hidden = self.conv_in(F.pixel_unshuffle(images, self.patch_px) if self.patch_px > 1 else images)
        for level in self.down:
            hidden = level(hidden)
        return self.conv_out(F.silu(self.norm_out(self.mid(hidden))))


class Decoder(nn.Module):
    """Latents `(B, latent_dim, H/f, W/f)` to images `(B, 3, H, W)`, not clamped.

    `up[i]` is the level of the i-th resolution counted from the highest; they run from last to first.

    Source:  taming `model.py` `Decoder`.
    """

    def __init__(self, layout: Layout) -> None:
        super().__init__()
        self.patch_px = layout.patch_px
        before = layout.widths[-1]
        self.conv_in = nn.Conv2d(layout.latent_dim, before, 3, padding=1)
        self.mid = Middle(before, layout.norm_groups)
        levels: list[Level] = []
        for number, width in reversed(list(enumerate(layout.widths))):
            level = Level(
                before, width, layout.num_res_blocks + 1, layout.has_attention(number), layout.norm_groups
            )
            if number > 0:
                level.upsample = Upsample(width)
            levels.insert(0, level)
            before = width
        self.up = nn.ModuleList(levels)
        self.norm_out = group_norm(before, layout.norm_groups)
        self.conv_out = nn.Conv2d(before, 3 * layout.patch_px**2, 3, padding=1)

    def forward(self, latents: Tensor) -> Tensor:
        """Return `(B, 3, H, W)`, about [-1, 1]."""
        hidden = self.mid(self.conv_in(latents))
        for level in reversed(self.up):
            hidden = level(hidden)
        images = self.conv_out(F.silu(self.norm_out(hidden)))
        return F.pixel_shuffle(images, self.patch_px) if self.patch_px > 1 else images


def make_layout(
    image_px: int, channels: int, channel_mult: Sequence[int], num_res_blocks: int, attn_px: Sequence[int],
    latent_dim: int, patch_px: int, norm_groups: int,
) -> Layout:  # fmt: skip
    """Return a layout from configuration values, sequences of any kind.

    Raises:  ConfigError: the image does not divide into codes, or widths into norm groups.
    """
    mults, sides = tuple(int(mult) for mult in channel_mult), tuple(int(side) for side in attn_px)
    return Layout(image_px, channels, mults, num_res_blocks, sides, latent_dim, patch_px, norm_groups)
