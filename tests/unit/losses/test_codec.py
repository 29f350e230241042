"""Terms of codec training against their formulas, and the perceptual distance written out."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.models import vgg16

from speech2image.losses.codec import (
    adaptive_weight,
    discriminator_loss,
    generator_loss,
    reconstruction_loss,
)
from speech2image.losses.perceptual import Lpips, rename_vgg

REAL = torch.tensor([[-0.5, 0.4], [1.5, 3.0]])
FAKE = torch.tensor([[-2.0, -0.2], [0.3, 1.0]])


def test_hinge_loss_is_half_the_mean_of_both_sides() -> None:
    expected = 0.5 * ((1.5 + 0.6 + 0.0 + 0.0) / 4 + (0.0 + 0.8 + 1.3 + 2.0) / 4)
    assert float(discriminator_loss(REAL, FAKE)) == pytest.approx(expected)


def test_vanilla_loss_is_half_the_cross_entropy_of_both_sides() -> None:
    real = F.binary_cross_entropy_with_logits(REAL, torch.ones_like(REAL))
    fake = F.binary_cross_entropy_with_logits(FAKE, torch.zeros_like(FAKE))
    assert float(discriminator_loss(REAL, FAKE, "vanilla")) == pytest.approx(float(real + fake) / 2)


def test_generator_wants_high_logits() -> None:
    assert float(generator_loss(FAKE)) == pytest.approx(0.225)


def test_reconstruction_adds_the_weighted_distance_to_every_element() -> None:
    images, painted = torch.rand(3, 3, 4, 4), torch.rand(3, 3, 4, 4)
    distances = torch.rand(3, 1, 1, 1)
    broadcast = ((images - painted).abs() + 0.7 * distances).mean()
    assert float(reconstruction_loss(images, painted, distances, 0.7)) == pytest.approx(float(broadcast))
    squared = F.mse_loss(images, painted)
    assert float(reconstruction_loss(images, painted, pixel="l2")) == pytest.approx(float(squared))


def test_adaptive_weight_balances_the_gradients_within_bounds() -> None:
    one, other = torch.randn(3, 8, 3, 3), torch.randn(3, 8, 3, 3)
    weight = adaptive_weight(one, other)
    assert float((weight * other).norm()) == pytest.approx(float(one.norm()), rel=1e-4)
    assert float(adaptive_weight(one, torch.zeros(1))) == pytest.approx(1e4)
    assert float(adaptive_weight(torch.zeros(1), other)) == 0.0
    assert float(adaptive_weight(torch.tensor([2.0]), torch.tensor([0.0003]))) == pytest.approx(5e3)


@pytest.fixture(scope="module")
def lpips() -> Lpips:
    torch.manual_seed(4)
    network = Lpips()
    for name, parameter in network.named_parameters():
        if name.startswith("lin"):
            parameter.data.abs_()
    return network


def written_out(network: Lpips, one: Tensor, other: Tensor) -> Tensor:
    """LPIPS with torchvision's VGG16, layer by layer."""
    trunk = vgg16(weights=None).features.eval()
    ours = {name.split(".", 2)[2]: value for name, value in network.state_dict().items() if name[:3] == "net"}
    trunk.load_state_dict(ours)
    shift, scale = torch.tensor([-0.030, -0.088, -0.188]), torch.tensor([0.458, 0.448, 0.450])
    pair = [(image - shift.view(3, 1, 1)) / scale.view(3, 1, 1) for image in (one, other)]
    total, tap = torch.zeros(len(one)), 0
    for place, layer in enumerate(trunk):
        pair = [layer(image) for image in pair]
        if place in (3, 8, 15, 22, 29):
            first, second = (image / (image.norm(dim=1, keepdim=True) + 1e-10) for image in pair)
            weights = network.get_parameter(f"lin{tap}.model.1.weight").view(1, -1, 1, 1)
            total = total + (weights * (first - second) ** 2).sum(dim=1).mean(dim=(1, 2))
            tap += 1
    return total


def test_distance_is_the_written_out_one(lpips: Lpips) -> None:
    one, other = torch.rand(2, 3, 32, 32) * 2 - 1, torch.rand(2, 3, 32, 32) * 2 - 1
    found = lpips(one, other)
    assert found.shape == (2, 1, 1, 1)
    assert torch.allclose(found.flatten(), written_out(lpips, one, other), rtol=1e-4, atol=1e-7)
    assert float(found.min()) > 0 and torch.equal(lpips(one, one), torch.zeros(2, 1, 1, 1))


def test_names_of_torchvision_become_ours(lpips: Lpips) -> None:
    names = vgg16(weights=None).state_dict()
    assert set(rename_vgg(names)) == {name for name in lpips.state_dict() if name.startswith("net.")}


def test_dropout_never_acts_unless_the_legacy_form_is_asked_for(lpips: Lpips) -> None:
    one, other = torch.rand(2, 1, 3, 32, 32)
    owner = torch.nn.ModuleList([lpips]).train()
    assert torch.equal(owner[0](one, other), owner[0](one, other))
    legacy = Lpips(legacy_dropout=True)
    legacy.load_state_dict(lpips.state_dict())
    owner = torch.nn.ModuleList([legacy]).train()
    assert not torch.equal(owner[0](one, other), owner[0](one, other))
    assert torch.equal(legacy.eval()(one, other), lpips(one, other))


def test_gradients_reach_the_images_and_not_the_weights(lpips: Lpips) -> None:
    one, other = torch.rand(1, 3, 32, 32), torch.rand(1, 3, 32, 32, requires_grad=True)
    torch.autograd.backward(lpips(one, other).sum())
    assert other.grad is not None and float(other.grad.abs().sum()) > 0
    assert all(parameter.grad is None for parameter in lpips.parameters())
