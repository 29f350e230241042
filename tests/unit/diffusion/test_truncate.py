"""Truncation, guidance and the predictor that applies them."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from speech2image.diffusion.predictor import Predictor, join_conditions
from speech2image.diffusion.truncate import guide, top_k, top_r
from speech2image.errors import ConfigError

PROBS = torch.tensor([0.5, 0.3, 0.1, 0.06, 0.04])


@dataclass(frozen=True)
class Label:
    sentence: Tensor
    words: Tensor | None = None


def network(tokens: Tensor, t: Tensor, condition: Label) -> Tensor:
    """Score four tokens by the condition, the step and what stands at the position."""
    ramp = torch.arange(4.0)[None, :, None] * condition.sentence[:, :1, None]
    return torch.sin(ramp + 0.1 * t[:, None, None] + tokens[:, None])


@pytest.mark.parametrize(("r", "kept"), [(0.85, 3), (0.3, 1), (0.45, 1), (1.0, 5), (0.95, 4)])
def test_top_r_keeps_the_token_that_crosses_the_share(r: float, kept: int) -> None:
    order = torch.tensor([3, 0, 4, 1, 2])
    cut = top_r(PROBS[order].log()[None, :, None], r)[0, :, 0]
    assert (cut > -70).sum() == kept
    assert set((cut > -70).nonzero()[:, 0].tolist()) == {int((order == i).nonzero()) for i in range(kept)}
    assert torch.equal(cut[cut > -70], PROBS[order].log()[cut > -70]), "not renormalised"


def test_top_k_keeps_exactly_k() -> None:
    cut = top_k(PROBS.log()[None, :, None].repeat(1, 1, 2), 2)
    assert (cut > -70).sum(1).tolist() == [[2, 2]] and torch.equal(cut[0, :2, 0], PROBS[:2].log())
    assert torch.equal(top_k(PROBS.log()[None, :, None], 9)[0, :, 0], PROBS.log())


def test_guidance_of_scale_zero_and_one_are_the_two_branches() -> None:
    cond, uncond = PROBS.log()[None, :, None], PROBS.flip(0).log()[None, :, None]
    assert guide(cond, uncond, 1.0) is cond
    torch.testing.assert_close(guide(cond, uncond, 0.0), uncond)
    twice = (PROBS**2 / PROBS.flip(0)).log().log_softmax(0)
    torch.testing.assert_close(guide(cond, uncond, 2.0)[0, :, 0], twice)


def test_one_joint_call_equals_two_calls() -> None:
    tokens, t = torch.tensor([[0, 4, 2], [3, 1, 4]]), torch.tensor([5, 5])
    condition, null = Label(torch.tensor([[1.0], [2.0]])), Label(torch.zeros(2, 1))
    sizes = []

    def counting(tokens: Tensor, t: Tensor, condition: Label) -> Tensor:
        sizes.append(len(tokens))
        return network(tokens, t, condition)

    joint = Predictor(counting, condition, null, guidance_scale=3.0)(tokens, t)
    ragged = Predictor(counting, Label(condition.sentence, torch.ones(2, 1)), null, guidance_scale=3.0)(
        tokens, t
    )
    assert sizes == [4, 2, 2]
    torch.testing.assert_close(joint, ragged)
    alone = (network(tokens, t, each).log_softmax(1) for each in (condition, null))
    torch.testing.assert_close(joint, guide(*alone, 3.0))


def test_predictions_may_change_between_calls() -> None:
    tokens, t = torch.tensor([[0, 4, 2]]), torch.tensor([5])
    condition = Label(torch.ones(1, 1))
    plain = Predictor(network, condition)(tokens, t)
    cut = Predictor(network, condition, top_k=1)(tokens, t)
    assert (cut > -70).sum() == 3 and (Predictor(network, condition)(tokens, t) == plain).all()
    assert (Predictor(network, condition, top_r=0.6)(tokens, t) > -70).sum() < 12


def test_records_of_different_form_are_not_joined() -> None:
    label = Label(torch.zeros(2, 1))
    assert join_conditions(label, None) is None
    assert join_conditions(label, Label(torch.zeros(2, 3))) is None
    joined = join_conditions(label, Label(torch.ones(2, 1)))
    assert joined.words is None and joined.sentence.flatten().tolist() == [0, 0, 1, 1]


def test_guidance_without_null_condition_is_refused() -> None:
    with pytest.raises(ConfigError, match="guidance_scale=3.0"):
        Predictor(network, Label(torch.ones(1, 1)), guidance_scale=3.0)


@pytest.mark.parametrize("options", [{"top_r": 0.0}, {"top_k": -1}])
def test_truncation_out_of_range_is_refused(options: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match="top_r"):
        Predictor(network, Label(torch.ones(1, 1)), **options)
