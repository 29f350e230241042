"""Colour statistics against numpy, and who receives the gradient."""

from __future__ import annotations

import numpy as np
import torch

from speech2image.losses.colour import colour_consistency, colour_statistics


def test_statistics_equal_numpy() -> None:
    images = torch.randn(3, 3, 5, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    mean, covariance = colour_statistics(images)
    for k, image in enumerate(images.numpy().reshape(3, 3, -1)):
        np.testing.assert_allclose(mean[k], image.mean(1), atol=1e-12)
        np.testing.assert_allclose(covariance[k], np.cov(image, bias=True), atol=1e-12)


def test_only_the_larger_image_receives_a_gradient() -> None:
    larger = torch.randn(2, 3, 8, 8, requires_grad=True)
    smaller = torch.randn(2, 3, 4, 4, requires_grad=True)
    mean_term, covariance_term = colour_consistency(larger, smaller)
    (mean_term + covariance_term).backward()
    assert larger.grad is not None and bool(larger.grad.any())
    assert smaller.grad is None


def test_shuffled_pixels_change_nothing() -> None:
    image = torch.rand(1, 3, 4, 4)
    shuffled = image.flatten(2)[:, :, torch.randperm(16)].view(1, 3, 4, 4)
    assert all(float(term) < 1e-10 for term in colour_consistency(shuffled, image))
