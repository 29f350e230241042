"""The discriminators of StackGAN-v2: is the image real, and does it fit the condition?

Here: one network for each image size, 16 to 256 pixels, with the state keys of the released files
for 64, 128 and 256.  They return logits, never probabilities; losses on logits are in
`losses/adversarial.py`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from speech2image.errors import ConfigError
from speech2image.gan.blocks import LEAKY_SLOPE, JointBlock, down_block, initialise, same_block
from speech2image.gan.norms import apply_layers

IMAGE_SIZES = (16, 32, 64, 128, 256)


class StackDiscriminator(nn.Module):
    """Judge images of one size, with and without the condition.

    Every size is brought to a code of `(B, 8*df_dim, 4, 4)`.

    Args:
        image_px: 16, 32, 64, 128 or 256.
        df_dim: base width.
        condition_dim: width of the condition.
    Raises:  ConfigError: `image_px` is another size.
    Source:  StackGAN-v2 `D_NET64`, `D_NET128`, `D_NET256`, same state keys. Differs: logits instead of
             probabilities; 16 and 32 pixels exist (the trunk starts at 4 and 2 times `df_dim`).
    """

    def __init__(self, image_px: int, df_dim: int = 64, condition_dim: int = 128) -> None:
        super().__init__()
        if image_px not in IMAGE_SIZES:
            raise ConfigError(
                f"a discriminator for {image_px} pixels does not exist, expected one of {IMAGE_SIZES}",
                "Choose base_px and num_stages of the generator so that its images have these sizes.",
            )
        self.image_px, self.condition_dim = image_px, condition_dim
        code_dim = 8 * df_dim
        self.img_code_s16 = _trunk(image_px, df_dim)
        if image_px >= 128:
            self.img_code_s32 = down_block(code_dim, 2 * code_dim)
        if image_px == 128:
            self.img_code_s32_1 = same_block(2 * code_dim, code_dim)
        if image_px == 256:
            self.img_code_s64 = down_block(2 * code_dim, 4 * code_dim)
            self.img_code_s64_1 = same_block(4 * code_dim, 2 * code_dim)
            self.img_code_s64_2 = same_block(2 * code_dim, code_dim)
        self.logits = nn.Sequential(nn.Conv2d(code_dim, 1, kernel_size=4, stride=4))
        self.jointConv = JointBlock(condition_dim, code_dim, code_dim, gated=False)
        self.uncond_logits = nn.Sequential(nn.Conv2d(code_dim, 1, kernel_size=4, stride=4))
        initialise(self)

    def code(self, image: Tensor, num_kinds: int = 1) -> Tensor:
        """Return the code `(B, 8*df_dim, 4, 4)` of `image` `(B, 3, H, H)`, before the condition joins.

        `num_kinds` as in `gan.norms.normalise_activate`.
        """
        code = apply_layers(self.img_code_s16, image, num_kinds)
        for name in ("img_code_s32", "img_code_s32_1", "img_code_s64", "img_code_s64_1", "img_code_s64_2"):
            if hasattr(self, name):
                code = apply_layers(getattr(self, name), code, num_kinds)
        return code

    def judge(self, code: Tensor, mu: Tensor, num_kinds: int = 1) -> tuple[Tensor, Tensor]:
        """Return conditional and unconditional logits, `(B,)` each.

        Args:
            code: `(B, 8*df_dim, 4, 4)` of `code`.
            mu: `(B, C)`, mean of the condition (never the draw).
            num_kinds: as in `gan.norms.normalise_activate`.
        """
        joined = self.jointConv(mu, code, num_kinds)
        return _whole_map_logits(self.logits[0], joined), _whole_map_logits(self.uncond_logits[0], code)

    def judge_kinds(self, images: Sequence[Tensor], mu: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Judge several kinds of image in one pass, each normalised by its own statistics.

        Args:
            images: one `(B, 3, H, H)` a kind.
            mu: `(B, C)`, shared by the kinds.
        Returns: conditional and unconditional logits of each kind, as from separate calls in order.
        Cost:    every weight is read once instead of once a kind.
        """
        num_kinds = len(images)
        mixed = torch.stack(list(images), dim=1).flatten(0, 1)
        code = self.code(mixed, num_kinds)
        cond, uncond = self.judge(code, mu.repeat_interleave(num_kinds, dim=0), num_kinds)
        return list(
            zip(cond.view(-1, num_kinds).unbind(1), uncond.view(-1, num_kinds).unbind(1), strict=True)
        )

    def forward(self, image: Tensor, mu: Tensor) -> tuple[Tensor, Tensor]:
        """Return conditional and unconditional logits, `(B,)` each, of `image` `(B, 3, H, H)`."""
        return self.judge(self.code(image), mu)


def _whole_map_logits(layer: nn.Module, code: Tensor) -> Tensor:
    """Apply a convolution that covers the whole 4x4 map, as the inner product it is."""
    assert isinstance(layer, nn.Conv2d)
    return F.linear(code.flatten(1), layer.weight.flatten(1), layer.bias).squeeze(1)


def _trunk(image_px: int, df_dim: int) -> nn.Sequential:
    """Return the stride-2 convolutions to 4x4 (64 pixels and less) or a sixteenth (more)."""
    num_halvings = min(image_px.bit_length() - 3, 4)
    channels = 8 * df_dim // 2 ** (num_halvings - 1)
    layers: list[nn.Module] = [
        nn.Conv2d(3, channels, 4, 2, 1, bias=False),
        nn.LeakyReLU(LEAKY_SLOPE, inplace=True),
    ]
    for _ in range(num_halvings - 1):
        layers += list(down_block(channels, 2 * channels))
        channels *= 2
    return nn.Sequential(*layers)
