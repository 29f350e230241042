"""VQGAN: images to a grid of code numbers and back, with the tensor names of released files.

Here: encoder, 1x1 convolution, quantizer, 1x1 convolution, decoder, as one network that trains.  What
the rest of the suite uses is `codec.py`, frozen and deterministic.  Losses are in `losses/codec.py`,
the discriminator is in `discriminator.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn

from speech2image.codecs.autoencoder import Decoder, Encoder, make_layout
from speech2image.codecs.quantizers import (
    EmaQuantizer,
    GumbelQuantizer,
    Quantized,
    Quantizer,
    VectorQuantizer,
)
from speech2image.errors import ConfigError

QuantizerKind = Literal["vector", "gumbel", "ema"]


@dataclass(frozen=True, slots=True)
class Reconstruction:
    """What a training pass gives.

    Attributes:
        images: `(B, 3, H, W)`, not clamped.
        tokens: `(B, L)` int64.
        loss: scalar of the quantizer.
        latents: `(B, code_dim, H/f, W/f)` before quantization.
    """

    images: Tensor
    tokens: Tensor
    loss: Tensor
    latents: Tensor


class VqGan(nn.Module):
    """An image autoencoder with a code book in the middle.

    Args:
        image_px: side of the images.
        channels: width of the highest resolution.
        channel_mult: width of each level over `channels`; each level but the last halves the side.
        num_res_blocks: residual blocks a level.
        attn_px: sides of the maps with attention (the middle always has it).
        latent_dim: channels that leave the encoder.
        code_dim: width of a code.
        num_codes: size K of the code book.
        quantizer: `vector` (nearest code), `gumbel`, or `ema` (nearest, averaged code book).
        commitment: beta of the `vector` form.
        legacy: `vector`: beta on the code-book term, as released models were trained.
        kl_weight: weight of the divergence of the `gumbel` form.
        decay: weight of the past in the averages of the `ema` form.
        patch_px: fold squares of so many pixels into channels first; 1 in released codecs.
        norm_groups: groups of every norm.
    Raises:  ConfigError: sizes that do not divide, or an unknown quantizer.
    Source:  Esser et al. 2021; taming `vqgan.py` `VQModel`, `GumbelVQ`; VQ-Diffusion `patch_vqgan.py`.
        Differs: `patch_px`.
    """

    def __init__(
        self,
        image_px: int = 256,
        channels: int = 128,
        channel_mult: Sequence[int] = (1, 1, 2, 2, 4),
        num_res_blocks: int = 2,
        attn_px: Sequence[int] = (16,),
        latent_dim: int = 256,
        code_dim: int = 256,
        num_codes: int = 16384,
        quantizer: QuantizerKind = "vector",
        commitment: float = 0.25,
        legacy: bool = False,
        kl_weight: float = 1e-8,
        decay: float = 0.99,
        patch_px: int = 1,
        norm_groups: int = 32,
    ) -> None:
        super().__init__()
        layout = make_layout(
            image_px, channels, channel_mult, num_res_blocks, attn_px, latent_dim, patch_px, norm_groups
        )
        self.image_px, self.factor = image_px, layout.factor
        self.encoder, self.decoder = Encoder(layout), Decoder(layout)
        self.quantize = _make_quantizer(quantizer, num_codes, code_dim, commitment, legacy, kl_weight, decay)
        self.quant_conv = nn.Conv2d(latent_dim, code_dim, 1)
        self.post_quant_conv = nn.Conv2d(code_dim, latent_dim, 1)

    @property
    def num_codes(self) -> int:
        """Size K of the code book."""
        return self.quantize.num_codes

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of codes of an image of `image_px`."""
        return self.image_px // self.factor, self.image_px // self.factor

    @property
    def last_weight(self) -> Tensor:
        """The weight the adaptive loss weight looks at: the last convolution of the decoder."""
        return self.decoder.conv_out.weight

    def latents(self, images: Tensor) -> Tensor:
        """Return what is quantized, `(B, code_dim, H/f, W/f)`, of images `(B, 3, H, W)` in [-1, 1]."""
        return self.quant_conv(self.encoder(images))

    def tokens(self, images: Tensor) -> Tensor:
        """Return code numbers `(B, L)` int64 of images; never random."""
        return self.quantize.tokens(self.latents(images))

    def paint(self, vectors: Tensor) -> Tensor:
        """Return images `(B, 3, H, W)`, not clamped, of code vectors `(B, code_dim, H/f, W/f)`."""
        return self.decoder(self.post_quant_conv(vectors))

    def paint_tokens(self, tokens: Tensor, grid: tuple[int, int] | None = None) -> Tensor:
        """Return images `(B, 3, H, W)`, not clamped, of code numbers `(B, L)` laid out as `grid`."""
        height, width = grid or self.grid
        return self.paint(self.quantize.vectors(tokens, height, width))

    def forward(self, images: Tensor, gumbel: Tensor | None = None) -> Reconstruction:
        """Encode, quantize and paint again, for training.

        Args:
            images: `(B, 3, H, W)` in [-1, 1].
            gumbel: `(B, K, H/f, W/f)` Gumbel noise for the `gumbel` form; None: no noise.
        """
        latents = self.latents(images)
        coded: Quantized = self.quantize(latents, gumbel)
        return Reconstruction(self.paint(coded.vectors).float(), coded.tokens, coded.loss, latents)


def _make_quantizer(
    kind: str, num_codes: int, code_dim: int, commitment: float, legacy: bool, kl_weight: float, decay: float
) -> Quantizer:
    if kind == "vector":
        return VectorQuantizer(num_codes, code_dim, commitment, legacy)
    if kind == "gumbel":
        return GumbelQuantizer(num_codes, code_dim, kl_weight)
    if kind == "ema":
        return EmaQuantizer(num_codes, code_dim, decay)
    raise ConfigError(f"there is no quantizer {kind!r}", "Choose vector, gumbel or ema.")
