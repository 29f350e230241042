"""The one interface between images and code numbers that the rest of the suite uses.

A `Codec` is a trained VQGAN, frozen and in evaluation mode for good, with a reduced code book where
it has one.  Its fingerprint names it in code stores, so that codes of another codec are refused.
Training is in `training/codec_module.py`.
"""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor, nn

from speech2image.codecs.code_map import CodeMap
from speech2image.codecs.vqgan import VqGan
from speech2image.errors import CheckpointError, DataError


class Codec(nn.Module):
    """Encode images to code numbers and decode them.

    Args:
        network: a trained VQGAN; it is frozen in place.
        code_map: reduced code book; None: all codes.
    Raises:  CheckpointError: the map is for another code book, or contradicts itself.
    Source:  VQ-Diffusion `taming_gumbel_vqvae.py`.  Differs: tokens are never random; images come as
        [-1, 1].
    """

    def __init__(self, network: VqGan, code_map: CodeMap | None = None) -> None:
        super().__init__()
        if code_map is not None and code_map.num_codes != network.num_codes:
            raise CheckpointError(
                f"the code map is for {code_map.num_codes} codes, the codec has {network.num_codes}",
                "Give the map of this codec: 974 of 16384 or 2887 of 8192.",
            )
        if code_map is not None:
            code_map.check()
        self.network, self.code_map = network, code_map
        self.requires_grad_(False)
        self.train(False)

    def train(self, mode: bool = True) -> Codec:
        """Stay in evaluation mode whatever the owner does."""
        return super().train(False)

    @property
    def num_tokens(self) -> int:
        """Size K of the alphabet of `encode`."""
        return self.network.num_codes if self.code_map is None else self.code_map.num_reduced

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of tokens of an image of `image_px`."""
        return self.network.grid

    @property
    def image_px(self) -> int:
        """Side of the images the codec was built for."""
        return self.network.image_px

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """Return tokens `(B, L)` int64, row by row, of images `(B, 3, H, W)` float in [-1, 1].

        Raises:  DataError: no colour images, or sides that are no multiple of the code size.
        """
        factor = self.network.factor
        if images.dim() != 4 or images.shape[1] != 3 or images.shape[2] % factor or images.shape[3] % factor:
            raise DataError(
                f"the codec takes images (B, 3, H, W) with sides that are multiples of {factor} px, found"
                f" {tuple(images.shape)}",
                f"Resize to {self.image_px} x {self.image_px} px.",
            )
        if not images.is_floating_point():
            raise DataError(
                f"the codec takes images in [-1, 1], found {images.dtype}", "Scale with images.pyramid first."
            )
        tokens = self.network.tokens(images)
        return tokens if self.code_map is None else self.code_map.reduce(tokens)

    @torch.no_grad()
    def decode(self, tokens: Tensor, grid: tuple[int, int] | None = None) -> Tensor:
        """Return images `(B, 3, H, W)` in [-1, 1] of tokens `(B, L)` laid out as `grid` (rows, columns).

        Raises:  DataError: tokens that do not fill the grid, or outside the alphabet (checked on the
            CPU only; on a device it would wait for it).
        """
        height, width = grid or self.grid
        if tokens.dim() != 2 or tokens.shape[1] != height * width:
            raise DataError(
                f"a grid of {height} x {width} takes tokens (B, {height * width}), found {tuple(tokens.shape)}",
                "Give the grid the tokens were made with.",
            )
        if tokens.device.type == "cpu" and tokens.numel():
            low, high = int(tokens.min()), int(tokens.max())
            if low < 0 or high >= self.num_tokens:
                raise DataError(
                    f"tokens from {low} to {high} for a codec of {self.num_tokens} codes",
                    "They belong to another codec, or still hold the mask.",
                )
        full = tokens if self.code_map is None else self.code_map.expand(tokens)
        return self.network.paint_tokens(full, (height, width)).clamp(-1.0, 1.0)

    def fingerprint(self) -> str:
        """Return 16 hex digits of the sha256 of all names, shapes and values.

        Two codecs with the same fingerprint give the same tokens; it does not depend on the device.
        """
        digest = hashlib.sha256(f"{self.image_px}|{self.network.factor}".encode())
        for name, value in sorted(self.state_dict().items()):
            digest.update(f"|{name}|{value.dtype}|{tuple(value.shape)}|".encode())
            digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
        return digest.hexdigest()[:16]
