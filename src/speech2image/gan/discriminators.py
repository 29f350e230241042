"""The discriminators of StackGAN-v2: is the image real, and does it fit the condition?

Here: one network for each image size, 16 to 256 pixels, with the state keys of the released files
for 64, 128 and 256.  They return logits, never probabilities; losses on logits are in
`losses/adversarial.py`.
"""

from __future__ import annotations

from torch import Tensor, nn

from speech2image.errors import ConfigError
from speech2image.gan.blocks import LEAKY_SLOPE, JointBlock, down_block, initialise, same_block

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

    def code(self, image: Tensor) -> Tensor:
        """Return the code `(B, 8*df_dim, 4, 4)` of `image` `(B, 3, H, H)`, before the condition joins."""
        code = self.img_code_s16(image)
        for name in ("img_code_s32", "img_code_s32_1", "img_code_s64", "img_code_s64_1", "img_code_s64_2"):
            if hasattr(self, name):
                code = self.get_submodule(name)(code)
        return code

    def judge(self, code: Tensor, mu: Tensor) -> tuple[Tensor, Tensor]:
        """Return conditional and unconditional logits, `(B,)` each.

        Args:
            code: `(B, 8*df_dim, 4, 4)` of `code`.
            mu: `(B, C)`, mean of the condition (never the draw).
        """
        cond_logits = self.logits(self.jointConv(mu, code))
        return cond_logits.flatten(), self.uncond_logits(code).flatten()

    def forward(self, image: Tensor, mu: Tensor) -> tuple[Tensor, Tensor]:
        """Return conditional and unconditional logits, `(B,)` each, of `image` `(B, 3, H, H)`."""
        return self.judge(self.code(image), mu)


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
