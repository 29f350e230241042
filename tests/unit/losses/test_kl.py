"""The divergence against torch's distributions."""

from __future__ import annotations

import pytest
import torch
from torch.distributions import Normal, kl_divergence

from speech2image.losses.kl import kl_to_standard_normal


def test_kl_equals_the_distribution_library() -> None:
    seed = torch.Generator().manual_seed(0)
    mu = torch.randn(4, 7, generator=seed, dtype=torch.float64)
    logvar = torch.randn(4, 7, generator=seed, dtype=torch.float64)
    expected = kl_divergence(Normal(mu, torch.exp(0.5 * logvar)), Normal(0.0, 1.0)).mean()
    assert float(kl_to_standard_normal(mu, logvar)) == pytest.approx(float(expected), rel=1e-12)


def test_kl_of_the_standard_normal_is_zero() -> None:
    assert float(kl_to_standard_normal(torch.zeros(2, 3), torch.zeros(2, 3))) == 0.0
