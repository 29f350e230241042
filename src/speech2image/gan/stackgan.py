"""The generator of StackGAN-v2: one to three stages, each twice the size of the one before.

Here: conditioning augmentation, the first stage that grows a map from a vector, the refining
stages, and the whole generator with the state keys of the released files.  Discriminators are in
`discriminators.py`, losses in `losses/`, training in `training/gan_module.py`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from speech2image.errors import ConfigError
from speech2image.gan.blocks import JointBlock, ResidualBlock, UpBlock, conv3x3, initialise

BASE_SIZES = (16, 32, 64)
MAX_STAGES = 3


@dataclass(frozen=True, slots=True)
class StackOutput:
    """What a stacked generator paints.

    Attributes:
        images: `(B, 3, H, H)` float32 in [-1, 1], smallest first.
        mu: `(B, C)` mean of the condition, which discriminators see.
        logvar: `(B, C)` its log variance.
    """

    images: tuple[Tensor, ...]
    mu: Tensor
    logvar: Tensor


class ConditionAugmentation(nn.Module):
    """Map a sentence to a Gaussian over conditions.

    Args:
        sentence_dim: width of the sentence vector.
        condition_dim: width of the condition.
    Source:  StackGAN-v2 `CA_NET`.
    """

    def __init__(self, sentence_dim: int, condition_dim: int) -> None:
        super().__init__()
        self.fc = nn.Linear(sentence_dim, 4 * condition_dim)

    def forward(self, sentence: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and log variance, `(B, C)` each, of `sentence` `(B, D)`."""
        mu, logvar = F.glu(self.fc(sentence), dim=1).chunk(2, dim=1)
        return mu, logvar


class FirstStage(nn.Module):
    """Grow a map from condition and noise: a gated linear layer to 4x4, then up-sampling blocks.

    Args:
        condition_dim: width of the condition.
        noise_dim: width of the noise.
        gf_dim: channels of the result.
        base_px: size of the result, 16, 32 or 64.
    """

    def __init__(self, condition_dim: int, noise_dim: int, gf_dim: int, base_px: int) -> None:
        super().__init__()
        self.num_blocks = base_px.bit_length() - 3
        self.start_channels = gf_dim * 2**self.num_blocks
        width = self.start_channels * 16 * 2
        self.fc = nn.Sequential(
            nn.Linear(condition_dim + noise_dim, width, bias=False), nn.BatchNorm1d(width), nn.GLU(dim=1)
        )
        channels = self.start_channels
        for index in range(1, self.num_blocks + 1):
            self.add_module(f"upsample{index}", UpBlock(channels, channels // 2))
            channels //= 2

    def forward(self, condition: Tensor, noise: Tensor) -> Tensor:
        """Return `(B, gf_dim, base_px, base_px)` of `condition` `(B, C)` and `noise` `(B, Z)`."""
        start = self.fc(torch.cat([condition, noise], dim=1))
        image_map = start.view(-1, self.start_channels, 4, 4)
        for index in range(1, self.num_blocks + 1):
            image_map = self.get_submodule(f"upsample{index}")(image_map)
        return image_map


class NextStage(nn.Module):
    """Refine a map with the condition and double its size.

    Args:
        condition_dim: width of the condition.
        channels: channels of the incoming map; half of them leave.
        num_residual: residual blocks between joining and up-sampling.
    """

    def __init__(self, condition_dim: int, channels: int, num_residual: int) -> None:
        super().__init__()
        self.jointConv = JointBlock(condition_dim, channels, channels, gated=True)
        self.residual = nn.Sequential(*(ResidualBlock(channels) for _ in range(num_residual)))
        self.upsample = UpBlock(channels, channels // 2)

    def forward(self, condition: Tensor, image_map: Tensor) -> Tensor:
        """Return `(B, C/2, 2H, 2W)` of `condition` `(B, D)` and `image_map` `(B, C, H, W)`."""
        return self.upsample(self.residual(self.jointConv(condition, image_map)))


class ImageHead(nn.Module):
    """Read an image off a map: 3x3 convolution and tanh."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.img = nn.Sequential(conv3x3(channels, 3), nn.Tanh())

    def forward(self, image_map: Tensor) -> Tensor:
        """Return `(B, 3, H, W)` in [-1, 1]."""
        return self.img(image_map)


class StackGenerator(nn.Module):
    """The StackGAN-v2 generator, sentence and noise to images at one to three sizes.

    Args:
        sentence_dim: width of the sentence vector.
        condition_dim: width of the augmented condition.
        noise_dim: width of the noise.
        gf_dim: channels of the first stage's map; each further stage halves them.
        num_stages: 1 to 3; stage k paints images of `base_px * 2**(k-1)`.
        num_residual: residual blocks of each further stage.
        base_px: size of the first image, 16, 32 or 64 (published: 64).
        sentence_scale: factor on the sentence (published: 1).  A unit vector of width D has entries of
            about 1/sqrt(D), far below the draw of the condition; sqrt(D) lets short runs hear it at once.
    Raises:  ConfigError: a size outside these ranges.
    Source:  StackGAN-v2 `code/model.py` `G_NET`, same state keys. Differs: the draw of the condition is
             an argument; 16 and 32 pixel first stages exist.
    """

    def __init__(
        self,
        sentence_dim: int = 1024,
        condition_dim: int = 128,
        noise_dim: int = 100,
        gf_dim: int = 64,
        num_stages: int = 3,
        num_residual: int = 2,
        base_px: int = 64,
        sentence_scale: float = 1.0,
    ) -> None:
        super().__init__()
        self.sentence_scale = sentence_scale
        _check_sizes(gf_dim, num_stages, base_px)
        self.sentence_dim, self.condition_dim, self.noise_dim = sentence_dim, condition_dim, noise_dim
        self.image_sizes = tuple(base_px * 2**stage for stage in range(num_stages))
        self.ca_net = ConditionAugmentation(sentence_dim, condition_dim)
        self.h_net1 = FirstStage(condition_dim, noise_dim, gf_dim, base_px)
        self.img_net1 = ImageHead(gf_dim)
        channels = gf_dim
        for stage in range(2, num_stages + 1):
            self.add_module(f"h_net{stage}", NextStage(condition_dim, channels, num_residual))
            channels //= 2
            self.add_module(f"img_net{stage}", ImageHead(channels))
        initialise(self)

    def forward(self, sentence: Tensor, noise: Tensor, eps: Tensor | None = None) -> StackOutput:
        """Paint a batch.

        Args:
            sentence: `(B, D)` float32.
            noise: `(B, Z)` float32, standard normal.
            eps: `(B, C)` standard normal draw of the condition; None: the condition is its mean.
        Returns: the images of every stage, and mean and log variance of the condition.
        """
        mu, logvar = self.ca_net(sentence * self.sentence_scale)
        condition = mu if eps is None else mu + torch.exp(0.5 * logvar) * eps
        image_map = self.h_net1(condition, noise)
        images = [self.img_net1(image_map)]
        for stage in range(2, len(self.image_sizes) + 1):
            image_map = self.get_submodule(f"h_net{stage}")(condition, image_map)
            images.append(self.get_submodule(f"img_net{stage}")(image_map))
        return StackOutput(tuple(images), mu, logvar)

    @torch.inference_mode()
    def generate(self, sentence: Tensor, noise: Tensor, eps: Tensor | None = None) -> tuple[Tensor, ...]:
        """Paint a batch without gradients; arguments as `forward`.

        Returns: images `(B, 3, H, H)` in [-1, 1], smallest first. Set `eval()` before, unless batch
            statistics are wanted.
        """
        return self(sentence, noise, eps).images


def _check_sizes(gf_dim: int, num_stages: int, base_px: int) -> None:
    if base_px not in BASE_SIZES:
        raise ConfigError(f"generator.base_px is {base_px}, expected one of {BASE_SIZES}", "Set base_px=64.")
    if not 1 <= num_stages <= MAX_STAGES:
        raise ConfigError(
            f"generator.num_stages is {num_stages}, expected 1 to {MAX_STAGES}", "Set num_stages=3."
        )
    divisor = 2 ** (num_stages - 1)
    if gf_dim < 1 or gf_dim % divisor:
        raise ConfigError(
            f"generator.gf_dim is {gf_dim}, expected a positive multiple of {divisor} for {num_stages} stages",
            f"Set gf_dim={max(1, round(gf_dim / divisor)) * divisor}.",
        )
