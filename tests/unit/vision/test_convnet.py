"""The small trunk: shapes, sizes, batches of one."""

from __future__ import annotations

import pytest
import torch

from speech2image.errors import ConfigError
from speech2image.vision.convnet import ConvNet, resize_images


@pytest.mark.parametrize("image_px", [16, 32, 64, 128])
def test_features_are_non_negative_at_every_size(image_px: int) -> None:
    network = ConvNet(width=8, image_px=image_px, feature_dim=24)
    features = network(torch.rand(3, 3, image_px, image_px) * 2 - 1)
    assert features.shape == (3, 24)
    assert (features >= 0).all() and features.sum() > 0


def test_other_sizes_are_resized_and_pass_gradients() -> None:
    network = ConvNet(width=8).eval()
    images = (torch.rand(1, 3, 100, 100) * 2 - 1).requires_grad_()
    network.features(images).sum().backward()
    assert images.grad is not None and images.grad.abs().sum() > 0
    same = torch.rand(1, 3, 64, 64)
    assert resize_images(same, 64) is same


def test_a_batch_of_one_trains() -> None:
    network = ConvNet(width=8).train()
    network(torch.rand(1, 3, 64, 64)).sum().backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in network.parameters())


@pytest.mark.parametrize("image_px", [0, 8, 48, 63, 100])
def test_sizes_that_do_not_halve_are_refused(image_px: int) -> None:
    with pytest.raises(ConfigError, match=str(image_px)):
        ConvNet(image_px=image_px)
