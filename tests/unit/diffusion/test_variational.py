"""The training loss: a fixture, its written-out gradient, importance sampling, evaluation."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from speech2image.diffusion.posterior_kl import posterior_terms
from speech2image.diffusion.process import posterior, posterior_probs
from speech2image.diffusion.schedule import MaskReplaceSchedule
from speech2image.diffusion.variational import VariationalLoss
from speech2image.errors import ConfigError

X0 = torch.tensor([[0, 2, 4, 1], [3, 0, 2, 4]])
X_T = torch.tensor([[0, 5, 4, 2], [5, 0, 2, 3]])
T = torch.tensor([3, 0])


def logits() -> Tensor:
    b, k, position = torch.meshgrid(torch.arange(2), torch.arange(5), torch.arange(4), indexing="ij")
    return torch.sin(((b + 1) * (k + 1) * (position + 1)).float())


def fixture_loss(aux_weight: float = 5e-4, adaptive: bool = True) -> VariationalLoss:
    return VariationalLoss(MaskReplaceSchedule(5, 10), aux_weight, adaptive).train()


def textbook_kl(scores: Tensor, x0: Tensor, x_t: Tensor, t: Tensor, schedule: MaskReplaceSchedule) -> Tensor:
    """Sum the KL over every row of the dense posteriors, by autograd."""
    num_tokens = schedule.num_tokens
    model = posterior(scores.log_softmax(1), x_t, t, schedule)
    certain = F.one_hot(x0, num_tokens).transpose(1, 2).double().clamp_min(1e-30).log()
    true = posterior(certain, x_t, t, schedule)
    return (true.exp() * (true - model)).sum(1)


def test_fixture_divergence() -> None:
    kl, _ = posterior_terms(logits(), X0, X_T, T, MaskReplaceSchedule(5, 10))
    assert kl[0].tolist() == pytest.approx([0.0989007, 0.7406943, 0.1015986, 0.1244623], abs=2e-6)
    assert kl[1].tolist() == pytest.approx([0.9533873, 2.7005529, 1.7024479, 1.2942963], abs=2e-6)


@pytest.mark.parametrize(
    ("aux_weight", "adaptive", "per_sample", "scalar"),
    [
        (5e-4, True, [10.702295, 66.573349], 9.659455),
        (0.0, True, [10.656559, 66.506844], 9.645426),
        (5e-4, False, [10.683463, 66.540100], 9.652946),
    ],
)
def test_fixture_loss(aux_weight: float, adaptive: bool, per_sample: list[float], scalar: float) -> None:
    loss = fixture_loss(aux_weight, adaptive)
    terms = loss(logits(), X0, X_T, T, torch.tensor([0.1, 0.1]))
    assert terms["per_sample"].tolist() == pytest.approx(per_sample, abs=2e-5)
    assert float(terms["loss"]) == pytest.approx(scalar, abs=3e-6)


def test_fixture_history() -> None:
    loss = fixture_loss()
    loss.observe(T, loss(logits(), X0, X_T, T, torch.tensor([0.1, 0.1]))["kl"])
    assert float(loss.Lt_history[3]) == pytest.approx(0.1135623, abs=1e-6)
    assert float(loss.Lt_history[0]) == pytest.approx(4.4231601, abs=1e-5)
    assert loss.Lt_count.tolist() == [1, 0, 0, 1, 0, 0, 0, 0, 0, 0]


@pytest.mark.parametrize("kind", ["released", "paper"])
def test_gradient_equals_the_one_of_the_dense_form(kind: str) -> None:
    rng = torch.Generator().manual_seed(3)
    schedule = MaskReplaceSchedule(6, 12, kind)
    t = torch.tensor([0, 1, 5, 10, 11])
    x0 = torch.randint(6, (5, 8), generator=rng)
    x_t = torch.randint(7, (5, 8), generator=rng)
    x_t[:, ::2] = torch.where(torch.rand(5, 4, generator=rng) < 0.5, x0[:, ::2], 6)
    weight = torch.rand(5, 8, generator=rng, dtype=torch.float64)
    found, wanted = (
        torch.randn(5, 6, 8, generator=rng.manual_seed(4), dtype=torch.float64) for _ in range(2)
    )
    for scores in (found.requires_grad_(), wanted.requires_grad_()):
        assert torch.equal(scores, found)
    kl, nll = posterior_terms(found, x0, x_t, t, schedule)
    dense = textbook_kl(wanted, x0, x_t, t, schedule)
    dense_nll = -wanted.log_softmax(1).gather(1, x0[:, None])[:, 0]
    torch.testing.assert_close(kl, dense, atol=1e-9, rtol=1e-9)
    torch.testing.assert_close(nll, dense_nll)
    (kl * weight + nll * weight.flip(1)).sum().backward()
    (dense * weight + dense_nll * weight.flip(1)).sum().backward()
    torch.testing.assert_close(found.grad, wanted.grad, atol=1e-9, rtol=1e-7)


def test_gradient_follows_finite_differences() -> None:
    rng = torch.Generator().manual_seed(11)
    scores = torch.randn(2, 4, 3, generator=rng, dtype=torch.float64).requires_grad_()
    x0, x_t = torch.tensor([[0, 1, 3], [2, 2, 1]]), torch.tensor([[0, 4, 2], [4, 2, 0]])
    schedule = MaskReplaceSchedule(4, 8, "paper")

    def terms(values: Tensor) -> tuple[Tensor, Tensor]:
        return posterior_terms(values, x0, x_t, torch.tensor([5, 1]), schedule)

    assert torch.autograd.gradcheck(terms, (scores,))


def test_hopeless_scores_give_finite_numbers() -> None:
    scores = torch.zeros(1, 5, 4)
    scores[:, 0] = 500.0
    scores.requires_grad_()
    for step in (0, 5, 9):
        t = torch.tensor([step])
        terms = fixture_loss()(scores, X0[:1], X_T[:1], t, torch.tensor([0.1]))
        terms["loss"].backward()
        assert all(value.isfinite().all() for value in terms.values())
        assert scores.grad is not None and scores.grad.isfinite().all()


def test_half_precision_scores_are_judged_in_float32() -> None:
    scores = logits().bfloat16()
    low, high = scores.clone().requires_grad_(), scores.float().requires_grad_()
    losses = [fixture_loss()(each, X0, X_T, T, torch.tensor([0.1, 0.1]))["loss"] for each in (low, high)]
    assert torch.equal(*losses)
    for each in losses:
        each.backward()
    assert low.grad is not None and high.grad is not None and low.grad.dtype == torch.bfloat16
    torch.testing.assert_close(low.grad.float(), high.grad, rtol=8e-3, atol=1e-4)


def test_weights_of_masked_and_kept_positions() -> None:
    schedule = MaskReplaceSchedule(5, 10)
    t, step_prob = torch.tensor([3, 4]), torch.ones(2)
    kl, _ = posterior_terms(logits(), X0, X_T, t, schedule)
    for weights in ((1.0, 0.0), (0.0, 1.0), (0.5, 2.0)):
        loss = VariationalLoss(schedule, aux_weight=0.0, mask_weight=weights)
        expected = (kl * torch.where(X_T == 5, *weights)).sum(1)
        torch.testing.assert_close(loss(logits(), X0, X_T, t, step_prob)["per_sample"], expected)


def test_steps_are_uniform_until_each_was_seen_often_enough() -> None:
    loss = fixture_loss()
    loss.Lt_history.copy_(torch.arange(10.0) ** 2)
    loss.Lt_count.fill_(11)
    loss.Lt_count[7] = 10
    t, step_prob = loss.sample_steps(torch.tensor([0.0, 0.05, 0.15, 0.95, 0.999999]))
    assert t.tolist() == [0, 0, 1, 9, 9] and step_prob.tolist() == pytest.approx([0.1] * 5)
    loss.Lt_count[7] = 11
    probs = loss.step_probs()
    weight = torch.tensor([1.0, 1, 2, 3, 4, 5, 6, 7, 8, 9]) + 1e-4
    torch.testing.assert_close(probs, weight / weight.sum())
    uniform = torch.linspace(0, 1, 20001)[:-1]
    t, step_prob = loss.sample_steps(uniform)
    torch.testing.assert_close(torch.bincount(t, minlength=10) / 20000, probs, atol=2e-4, rtol=0)
    assert torch.equal(step_prob, probs[t])


def test_importance_sampling_leaves_the_expected_loss_as_it_is() -> None:
    """Sum over t of p(t) * loss(t) / p(t) must not depend on p."""
    loss, t = fixture_loss(), torch.arange(10)
    x0, x_t, scores = X0[:1].expand(10, -1), X_T[:1].expand(10, -1), logits()[:1].expand(10, -1, -1)
    loss.Lt_history.copy_(torch.rand(10, generator=torch.Generator().manual_seed(1)))
    totals = []
    for count in (0, 11):
        loss.Lt_count.fill_(count)
        probs = loss.step_probs()
        totals.append((probs * loss(scores, x0, x_t, t, probs)["per_sample"]).sum())
    torch.testing.assert_close(*totals)


def test_evaluation_remembers_nothing() -> None:
    loss = fixture_loss().eval()
    loss.observe(T, torch.tensor([3.0, 4.0]))
    assert not loss.Lt_history.any() and not loss.Lt_count.any()


def test_history_travels_in_the_checkpoint_under_its_released_names() -> None:
    assert list(fixture_loss().state_dict()) == ["Lt_history", "Lt_count"]


def test_steps_met_twice_in_a_batch_are_averaged() -> None:
    loss = fixture_loss()
    loss.Lt_history.fill_(2.0)
    loss.observe(torch.tensor([4, 4, 6]), torch.tensor([1.0, 3.0, 2.0]))
    assert loss.Lt_history[[4, 6, 5]].tolist() == pytest.approx([0.1 * 5 + 1.8, 0.4 + 1.8, 2.0])
    assert loss.Lt_count[[4, 6, 5]].tolist() == [2, 1, 0]


def test_true_posterior_sums_to_one_in_its_four_numbers() -> None:
    schedule, s = MaskReplaceSchedule(5, 10, "paper"), T - 1
    four = posterior_probs(X0, X_T, T, s, schedule)
    others = 5 - 1 - (four["seen"] > 0).double()
    total = four["start"] + four["seen"] + four["mask"] + others * four["other"]
    torch.testing.assert_close(total[0], torch.ones(4, dtype=torch.float64))


def test_negative_weights_are_refused() -> None:
    with pytest.raises(ConfigError, match="aux_weight"):
        VariationalLoss(MaskReplaceSchedule(5, 10), aux_weight=-1.0)
