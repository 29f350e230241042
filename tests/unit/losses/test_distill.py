"""Distillation losses against loops, and where their gradients go."""

from __future__ import annotations

import pytest
import torch

from speech2image.errors import ConfigError
from speech2image.losses.distill import distillation, normalised_l1

DRAW = torch.Generator().manual_seed(1)
SPEECH, IMAGE = torch.randn(2, 5, 7, generator=DRAW, dtype=torch.float64)


def test_distillation_equals_the_divergence() -> None:
    target, source = (IMAGE / 3).softmax(1), SPEECH.softmax(1)
    divergence = (target * (target / source).log()).sum()
    assert distillation(SPEECH, IMAGE, 3.0).item() == pytest.approx(divergence.item() / 35, rel=1e-12)
    assert distillation(SPEECH, IMAGE, 3.0, "batchmean").item() == pytest.approx(
        divergence.item() / 5, rel=1e-12
    )
    assert abs(distillation(IMAGE / 3, IMAGE, 3.0).item()) < 1e-15


def test_distillation_survives_extreme_features() -> None:
    assert torch.isfinite(distillation(torch.tensor([[0.0, 900.0]]), torch.tensor([[900.0, 0.0]])))


def test_distillation_of_features_that_nearly_agree_is_not_rounded_away() -> None:
    rng = torch.Generator().manual_seed(2)
    image = torch.randn(8, 1024, generator=rng)
    speech = (image / 2 + 1e-3 * torch.randn(8, 1024, generator=rng)).requires_grad_()
    value = distillation(speech, image)
    exact = distillation(speech.detach().double(), image.double())
    assert value.dtype == torch.float32 and 0 < float(exact) < 1e-9
    assert float(value) == pytest.approx(float(exact), rel=1e-6)
    value.backward()
    assert speech.grad is not None and speech.grad.dtype == torch.float32 and bool(speech.grad.any())


@pytest.mark.parametrize("per", ["batch", "sample"])
def test_normalised_l1_ignores_scale(per: str) -> None:
    assert normalised_l1(SPEECH * 5, IMAGE, per).item() == pytest.approx(
        normalised_l1(SPEECH, IMAGE, per).item()
    )
    assert normalised_l1(IMAGE * 2, IMAGE, per).item() == pytest.approx(0, abs=1e-15)


def test_normalised_l1_divides_rows_or_the_batch() -> None:
    rows = [(s / s.norm() - i / i.norm()).abs().mean() for s, i in zip(SPEECH, IMAGE, strict=True)]
    assert normalised_l1(SPEECH, IMAGE, "sample").item() == pytest.approx(float(sum(rows)) / 5, rel=1e-12)
    whole = (SPEECH / SPEECH.square().sum().sqrt() - IMAGE / IMAGE.square().sum().sqrt()).abs().mean()
    assert normalised_l1(SPEECH, IMAGE).item() == pytest.approx(whole.item(), rel=1e-12)


def test_no_gradient_reaches_the_teacher() -> None:
    speech, image = SPEECH.clone().requires_grad_(), IMAGE.clone().requires_grad_()
    (distillation(speech, image) + normalised_l1(speech, image)).backward()
    assert image.grad is None
    assert speech.grad is not None and speech.grad.abs().sum() > 0


def test_unknown_options_are_refused() -> None:
    with pytest.raises(ConfigError, match="median"):
        normalised_l1(SPEECH, IMAGE, "median")
    with pytest.raises(ConfigError, match="sum"):
        distillation(SPEECH, IMAGE, reduction="sum")
