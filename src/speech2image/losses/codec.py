"""Loss terms of VQGAN training: reconstruction, adversarial terms and their adaptive weight.

Here: plain functions on images, logits and gradients.  The perceptual distance is in `perceptual.py`,
the quantizer's own loss in `codecs/quantizers.py`, their sum in `training/codec_module.py`.
"""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F
from torch import Tensor

DiscriminatorForm = Literal["hinge", "vanilla"]
_EPS = 1e-4
_MAX_WEIGHT = 1e4


def reconstruction_loss(
    images: Tensor,
    painted: Tensor,
    distances: Tensor | None = None,
    perceptual_weight: float = 1.0,
    pixel: Literal["l1", "l2"] = "l1",
) -> Tensor:
    """Return the mean over all elements of |x - x'| + weight * LPIPS(x, x').

    Args:
        images: `(B, 3, H, W)`.
        painted: `(B, 3, H, W)`.
        distances: `(B, 1, 1, 1)` perceptual distances; None: without.
        perceptual_weight: their weight.
        pixel: `l1` as published, or `l2`.
    Source:  taming `vqperceptual.py`, `nll_loss`.
    """
    gap = images - painted
    pixels = gap.abs().mean() if pixel == "l1" else gap.square().mean()
    return pixels if distances is None else pixels + perceptual_weight * distances.mean()


def discriminator_loss(real_logits: Tensor, fake_logits: Tensor, form: DiscriminatorForm = "hinge") -> Tensor:
    """Return the discriminator's loss on logits of any shape.

    Hinge: 1/2 [mean relu(1 - D(x)) + mean relu(1 + D(x'))]; vanilla: softplus(-D(x)), softplus(D(x')).

    Source:  taming `vqperceptual.py`, `hinge_d_loss`, `vanilla_d_loss`.
    """
    if form == "hinge":
        return 0.5 * (F.relu(1.0 - real_logits).mean() + F.relu(1.0 + fake_logits).mean())
    return 0.5 * (F.softplus(-real_logits).mean() + F.softplus(fake_logits).mean())


def generator_loss(fake_logits: Tensor) -> Tensor:
    """Return -mean D(x'), the generator's adversarial term in both forms."""
    return -fake_logits.mean()


def adaptive_weight(reconstruction_gradient: Tensor, adversarial_gradient: Tensor) -> Tensor:
    """Return the weight at which the adversarial term moves the last layer as much as the rest.

    Args:
        reconstruction_gradient: gradient of the reconstruction loss for the last convolution.
        adversarial_gradient: gradient of the generator's adversarial term for it.
    Returns: |first| / (|second| + 1e-4) within [0, 1e4], detached.
    Source:  Esser et al. 2021, equation 7; taming `vqperceptual.py`, `calculate_adaptive_weight`.
    """
    ratio = reconstruction_gradient.norm() / (adversarial_gradient.norm() + _EPS)
    return ratio.clamp(0.0, _MAX_WEIGHT).detach()
