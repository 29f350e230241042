"""The class-aware term against a loop over pairs."""

from __future__ import annotations

import pytest
import torch

from speech2image.losses.class_aware import class_aware_loss


@pytest.mark.parametrize("class_ids", [[0, 1, 0, 1, 2], [3, 3, 3, 3, 3], [0, 0, 1, 2, 3]])
def test_term_equals_a_loop_over_pairs(class_ids: list[int]) -> None:
    features = torch.randn(5, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    everything, same = [], []
    for i in range(5):
        for j in range(5):
            dot = float(features[i] @ features[j])
            everything.append(dot)
            if i != j and class_ids[i] == class_ids[j]:
                same.append(dot)
    expected = max(0.0, sum(everything) / 25 - sum(same) / len(same)) / 6
    assert float(class_aware_loss(features, torch.tensor(class_ids))) == pytest.approx(expected, abs=1e-12)


def test_no_repeated_class_gives_zero_and_no_gradient() -> None:
    features = torch.randn(3, 4, requires_grad=True)
    loss = class_aware_loss(features, torch.tensor([0, 1, 2]))
    loss.backward()
    assert float(loss) == 0.0
    assert features.grad is not None and not features.grad.any()
