"""The shortcuts of the blocks equal their textbook forms, values and gradients, in float64."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from speech2image.gan.blocks import FEW_PIXELS, conv3x3_with_condition, initialise, upsample_conv3x3


def _draw(*shape: int) -> Tensor:
    seed = torch.Generator().manual_seed(sum(shape))
    return torch.randn(shape, generator=seed, dtype=torch.float64).requires_grad_()


def _same(ours: Callable[..., Tensor], textbook: Callable[..., Tensor], *inputs: Tensor) -> None:
    results = []
    for function in (ours, textbook):
        value = function(*inputs)
        weights = torch.cos(torch.arange(value.numel(), dtype=torch.float64)).view_as(value)
        results.append((value, *torch.autograd.grad((value * weights).sum(), inputs)))
    for mine, expected in zip(*results, strict=True):
        torch.testing.assert_close(mine, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(("batch", "height", "width"), [(2, 3, 5), (1, 16, 17), (8, 16, 16), (300, 1, 1)])
def test_upsample_conv_equals_textbook(batch: int, height: int, width: int) -> None:
    def textbook(image_map: Tensor, weight: Tensor) -> Tensor:
        return F.conv2d(F.interpolate(image_map, scale_factor=2.0), weight, padding=1)

    _same(upsample_conv3x3, textbook, _draw(batch, 3, height, width), _draw(4, 3, 3, 3))


def test_upsample_conv_cases_lie_on_both_sides_of_the_switch() -> None:
    assert 2 * 3 * 5 < FEW_PIXELS <= 1 * 16 * 17


@pytest.mark.parametrize(("height", "width"), [(1, 1), (4, 4), (2, 9), (5, 4), (16, 16)])
def test_conv_with_condition_equals_textbook(height: int, width: int) -> None:
    def textbook(condition: Tensor, image_map: Tensor, weight: Tensor) -> Tensor:
        tiled = condition[:, :, None, None].expand(-1, -1, height, width)
        return F.conv2d(torch.cat([tiled, image_map], 1), weight, padding=1)

    _same(conv3x3_with_condition, textbook, _draw(2, 3), _draw(2, 5, height, width), _draw(4, 8, 3, 3))


def test_initialise_is_orthogonal_with_norms_near_one() -> None:
    network = nn.Sequential(nn.Conv2d(4, 6, 3, bias=False), nn.BatchNorm2d(6), nn.Flatten(), nn.Linear(24, 5))
    initialise(network)
    for layer in (network[0], network[3]):
        rows = layer.weight.detach().flatten(1)
        torch.testing.assert_close(rows @ rows.T, torch.eye(len(rows)), rtol=0, atol=1e-5)
    assert not network[3].bias.any() and not network[1].bias.any()
    assert 0 < float((network[1].weight.detach() - 1).abs().max()) < 0.12
