"""The closed forms against enumeration: Bayes' rule over transition matrices in float64."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from speech2image.diffusion.posterior_kl import posterior_terms
from speech2image.diffusion.process import posterior, posterior_probs, transition_prob
from speech2image.diffusion.schedule import MaskReplaceSchedule, Transition
from speech2image.diffusion.truncate import top_k, top_r


@st.composite
def cases(draw: st.DrawFn) -> tuple[MaskReplaceSchedule, Tensor, Tensor, Tensor, int, int]:
    """A schedule, log p(x_0), true tokens, noised tokens, and two steps."""
    num_tokens, num_steps = draw(st.integers(2, 9)), draw(st.integers(2, 30))
    schedule = MaskReplaceSchedule(num_tokens, num_steps, draw(st.sampled_from(["released", "paper"])))
    t = draw(st.integers(0, num_steps - 1))
    s = draw(st.integers(-1, t - 1))
    rng = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    sharpness = draw(st.sampled_from([0.1, 1.0, 8.0]))
    scores = sharpness * torch.randn(1, num_tokens, 6, generator=rng, dtype=torch.float64)
    x0 = torch.randint(num_tokens, (1, 6), generator=rng)
    x_t = torch.randint(num_tokens + 1, (1, 6), generator=rng)
    x_t[0, 0], x_t[0, 1] = num_tokens, x0[0, 1]
    return schedule, scores.log_softmax(1), x0, x_t, t, s


def matrix(move: Transition, num_tokens: int) -> Tensor:
    alpha, beta, gamma = (float(value[0]) for value in move)
    result = torch.full((num_tokens + 1, num_tokens + 1), beta, dtype=torch.float64)
    result[:-1, :-1] += alpha * torch.eye(num_tokens, dtype=torch.float64)
    result[:-1, -1], result[-1, :-1], result[-1, -1] = gamma, 0.0, 1.0
    return result


def by_enumeration(schedule: MaskReplaceSchedule, x_t: Tensor, t: int, s: int) -> Tensor:
    """q(x_s | x_t, x_0) as a table `(L, K, K+1)`: rows x_0, columns x_s; strides by products of single steps."""
    size = schedule.num_tokens
    until = [torch.eye(size + 1, dtype=torch.float64)]
    for step in range(t + 1):
        until.append(until[-1] @ matrix(schedule.step(torch.tensor([step])), size))
    between = torch.eye(size + 1, dtype=torch.float64)
    for step in range(s + 1, t + 1):
        between = between @ matrix(schedule.step(torch.tensor([step])), size)
    likelihood = between[:, x_t[0]].T[:, None, :]
    joint = until[s + 1][None, :-1] * likelihood
    return joint / joint.sum(-1, keepdim=True)


@settings(deadline=None, max_examples=120)
@given(cases())
def test_posterior_is_bayes_rule(case: tuple[MaskReplaceSchedule, Tensor, Tensor, Tensor, int, int]) -> None:
    schedule, log_p, _, x_t, t, s = case
    table = by_enumeration(schedule, x_t, t, s)
    wanted = torch.einsum("lkj,kl->jl", table, log_p[0].exp())
    found = posterior(log_p.float(), x_t, torch.tensor([t]), schedule, torch.tensor([s]))[0].double()
    likely = wanted > 1e-20
    torch.testing.assert_close(found[likely], wanted[likely].log(), atol=2e-5, rtol=1e-5)
    assert (found[~likely] < -45).all()
    assert float((found.exp().sum(0) - 1).abs().max()) < 2e-6


@settings(deadline=None, max_examples=120)
@given(cases())
def test_four_numbers_hold_the_true_posterior(
    case: tuple[MaskReplaceSchedule, Tensor, Tensor, Tensor, int, int],
) -> None:
    schedule, _, x0, x_t, t, s = case
    table = by_enumeration(schedule, x_t, t, s)[torch.arange(6), x0[0]]
    four = posterior_probs(x0, x_t, torch.tensor([t]), torch.tensor([s]), schedule)
    for position in range(6):
        for token in range(schedule.num_tokens + 1):
            name = "other"
            name = "seen" if token == x_t[0, position] else name
            name = "start" if token == x0[0, position] else name
            name = "mask" if token == schedule.num_tokens else name
            value = float(four[name][0, position])
            assert abs(value - float(table[position, token])) <= 1e-7 * value + 1e-12


@settings(deadline=None, max_examples=120)
@given(cases())
def test_divergence_is_the_sum_over_all_rows_and_never_negative(
    case: tuple[MaskReplaceSchedule, Tensor, Tensor, Tensor, int, int],
) -> None:
    schedule, log_p, x0, x_t, t, _ = case
    table = by_enumeration(schedule, x_t, t, t - 1)
    true = table[torch.arange(6), x0[0]]
    model = torch.einsum("lkj,kl->lj", table, log_p[0].exp())
    wanted = (torch.xlogy(true, true) - torch.xlogy(true, model)).sum(1)
    kl, nll = posterior_terms(log_p, x0, x_t, torch.tensor([t]), schedule)
    torch.testing.assert_close(kl[0], wanted, atol=1e-6, rtol=1e-5)
    assert float(kl.min()) > -1e-9
    # Nothing a step later can be told better than x_0 itself.
    assert bool((kl[0] <= nll[0] + 1e-6).all())


@settings(deadline=None, max_examples=120)
@given(cases(), st.floats(0.05, 0.99), st.integers(1, 9))
def test_truncation_keeps_the_best_and_only_drops(
    case: tuple[MaskReplaceSchedule, Tensor, Tensor, Tensor, int, int], r: float, k: int
) -> None:
    log_p = case[1].float()
    for cut in (top_r(log_p, r), top_k(log_p, k)):
        kept = cut > -70
        assert torch.equal(cut[kept], log_p[kept])
        assert torch.equal(cut.amax(1), log_p.amax(1))
        dropped = log_p.masked_fill(kept, -torch.inf).amax(1)
        assert bool((dropped <= log_p.masked_fill(~kept, torch.inf).amin(1)).all())
    assert bool((top_r(log_p, r).exp().sum(1) >= r - 1e-5).all())


@settings(deadline=None, max_examples=120)
@given(cases())
def test_forward_probabilities_sum_to_one(
    case: tuple[MaskReplaceSchedule, Tensor, Tensor, Tensor, int, int],
) -> None:
    schedule, _, x0, _, t, s = case
    for move in (schedule.skip(torch.tensor([t]), torch.tensor([s])), schedule.marginal(torch.tensor([t]))):
        total = sum(
            transition_prob(torch.full_like(x0, token), x0, move, schedule.num_tokens)
            for token in range(schedule.num_tokens + 1)
        )
        assert isinstance(total, Tensor)
        torch.testing.assert_close(total, torch.ones_like(total))
