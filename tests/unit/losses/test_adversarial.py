"""Adversarial terms against binary cross-entropy on probabilities, in float64."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from speech2image.losses.adversarial import binary_loss, discriminator_term, generator_term

COND = torch.tensor([-2.0, 0.3, 1.7], dtype=torch.float64)
UNCOND = torch.tensor([0.5, -1.0, 4.0], dtype=torch.float64)


def _on_probabilities(logits: torch.Tensor, target: float) -> float:
    return float(F.binary_cross_entropy(torch.sigmoid(logits), torch.full_like(logits, target)))


@pytest.mark.parametrize(("kind", "cond", "uncond"), [("real", 1, 1), ("wrong", 0, 1), ("fake", 0, 0)])
def test_each_kind_has_its_targets(kind: str, cond: int, uncond: int) -> None:
    expected = _on_probabilities(COND, cond) + 0.7 * _on_probabilities(UNCOND, uncond)
    found = discriminator_term(kind, COND, UNCOND, uncond_weight=0.7)  # type: ignore[arg-type]
    assert float(found) == pytest.approx(expected, rel=1e-12)


def test_without_unconditional_part_wrong_and_fake_count_half() -> None:
    terms = [float(discriminator_term(k, COND, UNCOND, 0.0)) for k in ("real", "wrong", "fake")]  # type: ignore[arg-type]
    assert terms == pytest.approx(
        [_on_probabilities(COND, 1), 0.5 * _on_probabilities(COND, 0), 0.5 * _on_probabilities(COND, 0)]
    )
    assert float(generator_term(COND, UNCOND, 0.0)) == pytest.approx(_on_probabilities(COND, 1))


def test_generator_wants_both_real() -> None:
    expected = _on_probabilities(COND, 1) + _on_probabilities(UNCOND, 1)
    assert float(generator_term(COND, UNCOND)) == pytest.approx(expected, rel=1e-12)


def test_extreme_logits_stay_finite_with_gradient() -> None:
    logits = torch.tensor([-300.0, 300.0], requires_grad=True)
    loss = binary_loss(logits, True)
    loss.backward()
    assert float(loss) == pytest.approx(150.0)
    assert logits.grad is not None and logits.grad.tolist() == pytest.approx([-0.5, 0.0])
