"""The masked contrastive loss against loops, its limits and its temperature."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from speech2image.errors import ConfigError
from speech2image.losses.contrastive import MaskedContrastiveLoss, contrastive_loss

DRAW = torch.Generator().manual_seed(3)
FIRST, SECOND = functional.normalize(torch.randn(2, 6, 5, generator=DRAW), dim=2)
IDS = torch.tensor([4, 1, 4, 2, 2, 4])


def by_loops(scores: Tensor, ids: list[int], decoupled: bool) -> float:
    total = 0.0
    for table in (scores.double(), scores.double().T):
        for i in range(len(ids)):
            inside = [j for j in range(len(ids)) if ids[j] != ids[i] or (j == i and not decoupled)]
            total += math.log(sum(math.exp(table[i, j]) for j in inside)) - float(table[i, i])
    return total / (2 * len(ids))


@pytest.mark.parametrize("decoupled", [False, True])
def test_loss_equals_the_loops(decoupled: bool) -> None:
    found = contrastive_loss(FIRST, SECOND, IDS, 7.0, decoupled=decoupled)
    assert found.item() == pytest.approx(by_loops(7 * FIRST @ SECOND.T, IDS.tolist(), decoupled), abs=1e-5)


def test_duplicates_of_one_image_are_no_rivals() -> None:
    changed = SECOND.clone()
    changed[2] = FIRST[0]  # a perfect score of item 0 with another caption of its own image
    alone = torch.tensor([0, 2])
    pair = contrastive_loss(FIRST[alone], changed[alone], IDS[alone], 10.0)
    assert pair.item() == pytest.approx(0, abs=1e-6)  # nobody left to compete with
    assert contrastive_loss(FIRST[alone], changed[alone], None, 10.0).item() > 0.5
    assert (
        contrastive_loss(FIRST, SECOND, IDS, 10.0).item() < contrastive_loss(FIRST, SECOND, None, 10.0).item()
    )


def test_large_scales_do_not_overflow() -> None:
    assert torch.isfinite(contrastive_loss(FIRST, SECOND, IDS, 1e4))
    half = contrastive_loss(FIRST.half(), SECOND.half(), IDS, 100.0)
    assert half.dtype == torch.float32
    assert half.item() == pytest.approx(contrastive_loss(FIRST, SECOND, IDS, 100.0).item(), rel=5e-3)


def test_temperature_is_learned_up_to_its_limit() -> None:
    loss = MaskedContrastiveLoss(0.07, trainable=True)
    assert list(loss.state_dict()) == ["temperature"]
    assert torch.as_tensor(loss.scale).item() == pytest.approx(1 / 0.07, rel=1e-6)
    assert loss.temperature is not None
    loss.temperature.data.fill_(6.0)
    assert torch.as_tensor(loss.scale).item() == pytest.approx(100.0, rel=1e-5)
    released = MaskedContrastiveLoss(0.07, trainable=True, max_scale=math.inf)
    released.load_state_dict(loss.state_dict())
    assert torch.as_tensor(released.scale).item() == pytest.approx(math.exp(6), rel=1e-5)


def test_fixed_temperature_has_no_state() -> None:
    loss = MaskedContrastiveLoss(0.2)
    assert not loss.state_dict() and loss.scale == 5.0
    assert loss(FIRST, SECOND).item() == contrastive_loss(FIRST, SECOND, None, 5.0).item()


def test_what_makes_no_sense_is_refused() -> None:
    with pytest.raises(ConfigError, match="sideways"):
        contrastive_loss(FIRST, SECOND, direction="sideways")
    with pytest.raises(ConfigError, match="positive"):
        MaskedContrastiveLoss(0.0)
