"""Matching losses against loops in double precision, and their limits."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from speech2image.errors import ConfigError
from speech2image.losses.matching import (
    distinctive_loss,
    joint_embedding_loss,
    matching_loss,
    matching_scores,
    retrieval_accuracy,
)


@pytest.fixture
def pair() -> tuple[Tensor, Tensor, Tensor]:
    draw = torch.Generator().manual_seed(0)
    image, speech = torch.randn(2, 6, 5, generator=draw, dtype=torch.float64)
    return image, speech, torch.tensor([0, 1, 0, 2, 1, 3])


@pytest.mark.parametrize("direction", ["column", "row", "both"])
def test_joint_embedding_equals_its_sum(pair: tuple[Tensor, Tensor, Tensor], direction: str) -> None:
    image, speech, ids = pair
    totals = {"column": 0.0, "row": 0.0}
    for i in range(6):
        for j in range(6):
            score = float(image[i] @ speech[j])
            same = bool(ids[i] == ids[j])
            for name, own in (("column", j), ("row", i)):
                excess = score - float(image[own] @ speech[own])
                totals[name] += 0.3 * max(0.0, excess) if same else 0.7 * max(0.0, excess + 1)
    expected = totals.get(direction, sum(totals.values()) / 2) / 36
    found = joint_embedding_loss(image, speech, ids, 0.7, 0.3, direction)
    assert found.item() == pytest.approx(expected, rel=1e-12)


def test_joint_embedding_refuses_other_directions(pair: tuple[Tensor, Tensor, Tensor]) -> None:
    with pytest.raises(ConfigError, match="diagonal"):
        joint_embedding_loss(*pair, direction="diagonal")


@pytest.mark.parametrize("masked", [True, False])
def test_matching_equals_its_sum(pair: tuple[Tensor, Tensor, Tensor], masked: bool) -> None:
    image, speech, ids = pair
    cosine = torch.nn.functional.cosine_similarity(image[:, None], speech[None], dim=2)
    expected = [0.0, 0.0]
    for i in range(6):
        rivals = [j for j in range(6) if j == i or not masked or ids[i] != ids[j]]
        expected[0] -= math.log(math.exp(4 * cosine[i, i]) / sum(math.exp(4 * cosine[i, j]) for j in rivals))
        expected[1] -= math.log(math.exp(4 * cosine[i, i]) / sum(math.exp(4 * cosine[j, i]) for j in rivals))
    found = matching_loss(image, speech, ids if masked else None, gamma=4.0)
    assert [value.item() for value in found] == pytest.approx([value / 6 for value in expected], rel=1e-12)


def test_matching_ignores_scale_and_survives_a_batch_of_one(pair: tuple[Tensor, Tensor, Tensor]) -> None:
    image, speech, ids = pair
    assert torch.allclose(matching_scores(image * 9, speech / 7), matching_scores(image, speech))
    assert [value.item() for value in matching_loss(image[:1], speech[:1], ids[:1])] == [0.0, 0.0]
    assert joint_embedding_loss(image[:1], speech[:1], ids[:1]).item() == 0.0


def test_gradients_are_finite_where_all_are_of_one_class(pair: tuple[Tensor, Tensor, Tensor]) -> None:
    image, speech = pair[0].requires_grad_(), pair[1]
    sum(matching_loss(image, speech, torch.zeros(6))).backward()  # type: ignore[union-attr]
    assert image.grad is not None and (image.grad == 0).all()


def test_distinctive_loss_is_the_log_of_the_right_class() -> None:
    logits = torch.tensor([[0.0, math.log(3.0)], [0.0, 0.0]])
    image, speech = distinctive_loss(logits, logits.flip(1), torch.tensor([1, 0]))
    assert image.item() == pytest.approx((math.log(4 / 3) + math.log(2)) / 2, rel=1e-6)
    assert speech.item() == pytest.approx((math.log(4) + math.log(2)) / 2, rel=1e-6)


def test_retrieval_accuracy_counts_own_items_or_classes() -> None:
    queries = torch.tensor([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0]])
    gallery = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 2.0]])
    assert retrieval_accuracy(queries, gallery).item() == pytest.approx(2 / 3)
    assert retrieval_accuracy(queries, gallery, torch.tensor([0, 0, 1])).item() == 1.0
