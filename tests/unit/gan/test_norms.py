"""Norm with activation equals the two layers; kinds equal separate passes."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from speech2image.gan.norms import apply_layers, normalise_activate


def _norm(channels: int) -> nn.BatchNorm2d:
    norm = nn.BatchNorm2d(channels).double()
    with torch.no_grad():
        norm.weight.copy_(torch.linspace(0.5, 1.5, channels))
        norm.bias.copy_(torch.linspace(-0.3, 0.3, channels))
        norm.running_mean.copy_(torch.linspace(-1, 1, channels))  # type: ignore[union-attr]
    return norm


def _maps(count: int, channels: int = 4) -> list[Tensor]:
    seed = torch.Generator().manual_seed(3)
    return [
        torch.randn(5, channels, 3, 2, generator=seed, dtype=torch.float64) * (k + 1) + k
        for k in range(count)
    ]


def _check_state(ours: nn.BatchNorm2d, expected: nn.BatchNorm2d) -> None:
    for (name, mine), theirs in zip(ours.state_dict().items(), expected.state_dict().values(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-12, atol=1e-12, msg=name)
    for mine, theirs in zip(ours.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("activation", [nn.GLU(dim=1), nn.LeakyReLU(0.2)])
def test_norm_with_activation_equals_the_two_layers(activation: nn.GLU | nn.LeakyReLU) -> None:
    ours, expected = _norm(4), _norm(4)
    mine = _maps(1)[0].requires_grad_()
    theirs = mine.detach().clone().requires_grad_()
    found, wanted = normalise_activate(mine, ours, activation), activation(expected(theirs))
    torch.testing.assert_close(found, wanted)
    weights = torch.cos(torch.arange(wanted.numel(), dtype=torch.float64)).view_as(wanted)
    (found * weights).sum().backward()
    (wanted * weights).sum().backward()
    torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-10, atol=1e-10)
    _check_state(ours, expected)


@pytest.mark.parametrize("count", [2, 3])
def test_kinds_equal_separate_passes_in_order(count: int) -> None:
    ours, expected, activation = _norm(4), _norm(4), nn.LeakyReLU(0.2)
    maps = _maps(count)
    wanted = [activation(expected(one)) for one in maps]
    mixed = torch.stack(maps, dim=1).flatten(0, 1)
    found = normalise_activate(mixed, ours, activation, num_kinds=count).unflatten(0, (-1, count)).unbind(1)
    for mine, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(mine, theirs)
    sum(one.square().sum() * (k + 1) for k, one in enumerate(found)).backward()  # type: ignore[union-attr]
    sum(one.square().sum() * (k + 1) for k, one in enumerate(wanted)).backward()  # type: ignore[union-attr]
    _check_state(ours, expected)


def test_evaluation_uses_running_statistics_and_leaves_them() -> None:
    norm = _norm(4).eval()
    before = copy.deepcopy(norm.state_dict())
    image_map = _maps(1)[0]
    found = normalise_activate(image_map, norm, nn.GLU(dim=1), num_kinds=1)
    torch.testing.assert_close(found, nn.functional.glu(norm(image_map), 1))
    assert all(torch.equal(before[name], value) for name, value in norm.state_dict().items())


def test_second_derivatives_are_refused() -> None:
    norm, image_map = _norm(4), _maps(1)[0].requires_grad_()
    value = normalise_activate(image_map, norm, nn.LeakyReLU(0.2)).square().sum()
    (gradient,) = torch.autograd.grad(value, image_map, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


def test_apply_layers_equals_the_sequence() -> None:
    layers = nn.Sequential(
        nn.Conv2d(4, 6, 3, padding=1), nn.LeakyReLU(0.2), nn.Conv2d(6, 4, 1), nn.BatchNorm2d(4),
        nn.GLU(dim=1), nn.Conv2d(2, 4, 1), nn.BatchNorm2d(4),
    ).double()  # fmt: skip
    same = copy.deepcopy(layers)
    torch.testing.assert_close(apply_layers(layers, _maps(1)[0]), same(_maps(1)[0]))
    for mine, theirs in zip(layers.buffers(), same.buffers(), strict=True):
        torch.testing.assert_close(mine, theirs)
