"""Kullback-Leibler divergence of a diagonal Gaussian, as the GANs here regularise conditions."""

from __future__ import annotations

import torch
from torch import Tensor


def kl_to_standard_normal(mu: Tensor, logvar: Tensor) -> Tensor:
    """Return the divergence of N(mu, exp(logvar)) from N(0, 1), averaged over batch and dimensions.

    Args:
        mu: `(B, D)` mean.
        logvar: `(B, D)` log variance.
    Returns: scalar, -1/2 mean(1 + logvar - mu^2 - exp(logvar)).
    Source:  StackGAN (Zhang et al. 2017), eq. 2; averaged, not summed, as in the released code.
    """
    return -0.5 * torch.mean(1.0 + logvar - mu.square() - logvar.exp())
