"""Forward draws and reverse posteriors: a fixture, frequencies of draws, limits."""

from __future__ import annotations

import pytest
import torch
from scipy.stats import chi2
from torch import Tensor

from speech2image.diffusion.process import (
    draw_tokens,
    forward_log_probs,
    gumbel,
    pick_token,
    posterior,
    posterior_probs,
    sample_marginal,
    sample_posterior,
    start_log_probs,
    start_tokens,
    transition_prob,
    true_posterior,
)
from speech2image.diffusion.schedule import MaskReplaceSchedule

X0 = torch.tensor([[0, 2, 4, 1], [3, 0, 2, 4]])
X_T = torch.tensor([[0, 5, 4, 2], [5, 0, 2, 3]])
T = torch.tensor([3, 0])


def fixture_logits() -> Tensor:
    b, k, position = torch.meshgrid(torch.arange(2), torch.arange(5), torch.arange(4), indexing="ij")
    return torch.sin(((b + 1) * (k + 1) * (position + 1)).float())


def fits(counts: Tensor, probs: Tensor) -> bool:
    """Chi-square at the level of one in ten thousand; cells that expect fewer than five are joined."""
    expected = probs.double() * counts.sum()
    small = expected < 5
    cells = [(counts[i].item(), expected[i].item()) for i in range(len(probs)) if not small[i]]
    if small.any() and expected[small].sum() > 1e-6:
        cells.append((counts[small].sum().item(), expected[small].sum().item()))
    elif counts[small].sum() > 0:
        return False
    statistic = sum((found - wanted) ** 2 / wanted for found, wanted in cells)
    return bool(chi2.sf(statistic, max(1, len(cells) - 1)) > 1e-4)


def test_fixture_posterior_of_the_model() -> None:
    schedule = MaskReplaceSchedule(5, 10)
    log_p = start_log_probs(fixture_logits())
    assert log_p[0, :, 0].tolist() == pytest.approx(
        [-1.0763904, -1.0085640, -1.7767414, -2.6746638, -2.8767858], abs=1e-6
    )
    model = posterior(log_p, X_T, T, schedule)
    rows = {
        0: [-0.0989008, -2.9544849, -3.7226620, -4.6205826, -4.8227062, -55.5734],
        1: [-2.1320882, -3.7981853, -3.3207994, -2.0520277, -3.5854044, -0.4054515],
        3: [-4.6464720, -2.9003153, -0.1402931, -4.1775732, -2.9767275, -55.2441],
    }
    for position, row in rows.items():
        assert model[0, :, position].tolist() == pytest.approx(row, abs=1e-4)
    true = true_posterior(X0, X_T, T, schedule)[0, :, 3].tolist()
    assert true == pytest.approx(
        [-17.1195488, -1.9459219, -0.1541491, -17.1195488, -17.1195488, -55.1567], abs=1e-4
    )


def test_fixture_marginal() -> None:
    schedule = MaskReplaceSchedule(5, 10)
    kept, other, mask = schedule.marginal(torch.tensor([3]))
    assert float((kept + other).log()) == pytest.approx(-0.4054703, abs=1e-6)
    assert float(other.log()) == pytest.approx(-15.4249487, abs=1e-6)
    assert float(mask.log()) == pytest.approx(-1.0986043, abs=1e-6)


def test_closed_form_of_the_true_posterior_is_its_dense_one() -> None:
    schedule = MaskReplaceSchedule(5, 10, "paper")
    x_t, t, s = torch.tensor([[0, 5, 1, 3]]), torch.tensor([6]), torch.tensor([2])
    x0 = torch.tensor([[0, 2, 4, 1]])
    four, dense = posterior_probs(x0, x_t, t, s, schedule), true_posterior(x0, x_t, t, schedule, s).exp()
    assert dense[0, 0, 0] == pytest.approx(float(four["start"][0, 0]), rel=1e-5) and four["seen"][0, 0] == 0
    assert dense[0, 5, 1] == pytest.approx(float(four["mask"][0, 1]), rel=1e-5)
    assert dense[0, 1, 2] == pytest.approx(float(four["seen"][0, 2]), rel=1e-5)
    assert dense[0, 0, 3] == pytest.approx(float(four["other"][0, 3]), rel=1e-5)
    assert four["mask"][0, 0] == 0, "a token that is there was never a mask"


@pytest.mark.parametrize("kind", ["released", "paper"])
def test_first_step_returns_the_prediction(kind: str) -> None:
    schedule, t = MaskReplaceSchedule(5, 10, kind), torch.tensor([0, 0])
    log_p = start_log_probs(fixture_logits())
    torch.testing.assert_close(posterior(log_p, X_T, t, schedule)[:, :-1], log_p, atol=1e-5, rtol=0)


def test_masked_share_after_a_stride_is_the_ratio_of_the_schedule() -> None:
    schedule = MaskReplaceSchedule(5, 100)
    x_t, log_p = torch.full((1, 4), 5), start_log_probs(fixture_logits())[:1]
    for t, s in ((99, 89), (50, 48), (20, 16)):
        result = posterior(log_p, x_t, torch.tensor([t]), schedule, torch.tensor([s]))[0, -1].exp()
        share = float(schedule.gamma_bar[s] / schedule.gamma_bar[t])
        assert result.tolist() == pytest.approx([share] * 4, rel=1e-5)


def test_very_sure_predictions_keep_their_digits() -> None:
    """The rest of a prediction of 1 - 1e-9 must not be lost in a difference; float64 is the judge."""
    schedule = MaskReplaceSchedule(6, 100)
    scores = torch.tensor([[[0.0], [-21.0], [-22.0], [-24.0], [-23.0], [-30.0]]])
    log_p, x_t, t = scores.double().log_softmax(1), torch.tensor([[0]]), torch.tensor([40])
    torch.testing.assert_close(
        posterior(log_p.float(), x_t, t, schedule),
        posterior(log_p, x_t, t, schedule).float(),
        atol=5e-6,
        rtol=0,
    )


def test_predictions_in_half_precision_are_lifted() -> None:
    log_p = start_log_probs(fixture_logits().bfloat16())
    assert log_p.dtype == torch.float32
    assert float(log_p.exp().sum(1).sub(1).abs().max()) < 1e-6


@pytest.mark.parametrize("kind", ["released", "paper"])
def test_marginal_draws_follow_the_marginal(kind: str) -> None:
    schedule, count = MaskReplaceSchedule(4, 10, kind), 40000
    rng = torch.Generator().manual_seed(5)
    for t in (0, 4, 9):
        step = torch.tensor([t])
        x_t = sample_marginal(
            torch.ones(1, count, dtype=torch.int64), step, schedule, torch.rand(1, count, 2, generator=rng)
        )
        states = torch.arange(5)[None]
        probs = transition_prob(states, torch.ones_like(states), schedule.marginal(step), 4)[0]
        assert fits(torch.bincount(x_t[0], minlength=5), probs), t


@pytest.mark.parametrize(("x0", "x_t"), [(1, 1), (1, 2), (1, 4)])
def test_posterior_draws_follow_the_posterior(x0: int, x_t: int) -> None:
    schedule, count = MaskReplaceSchedule(4, 10, "paper"), 40000
    t, s = torch.tensor([8]), torch.tensor([3])
    start, seen = (torch.full((1, count), value) for value in (x0, x_t))
    uniform = torch.rand(1, count, 2, generator=torch.Generator().manual_seed(6))
    x_s = sample_posterior(start, seen, t, s, schedule, uniform)
    probs = true_posterior(start[:, :1], seen[:, :1], t, schedule, s).exp()[0, :, 0]
    assert fits(torch.bincount(x_s[0], minlength=5), probs)


def test_token_draws_follow_their_distribution_and_skip_what_was_cut() -> None:
    probs = torch.tensor([0.0, 0.05, 0.5, 0.0, 0.3, 0.15, 0.0])
    log_p = probs.log().clamp_min(-70.0)[None, :, None].expand(1, -1, 40000)
    uniform = torch.rand(1, 40000, generator=torch.Generator().manual_seed(7))
    uniform[0, :3] = torch.tensor([0.0, 1.0 - 2.0**-24, 2.0**-24])
    tokens = draw_tokens(log_p, uniform)
    assert fits(torch.bincount(tokens[0], minlength=7), probs)
    assert fits(torch.bincount(draw_tokens(log_p - 3.0, uniform)[0], minlength=7), probs), "any scale"


def test_gumbel_noise_draws_the_same_distribution() -> None:
    log_p = torch.tensor([0.2, 0.5, 0.3]).log()[None, :, None].expand(1, -1, 20000)
    noise = gumbel(torch.rand(1, 3, 20000, generator=torch.Generator().manual_seed(8)))
    assert fits(torch.bincount((log_p + noise).argmax(1)[0]), torch.tensor([0.2, 0.5, 0.3]))


def test_chains_start_where_their_schedule_ends() -> None:
    uniform = torch.rand(2, 20000, 2, generator=torch.Generator().manual_seed(9))
    assert (start_tokens(MaskReplaceSchedule(4), uniform) == 4).all()
    mixed = start_tokens(MaskReplaceSchedule(4, kind="paper"), uniform).flatten()
    assert fits(torch.bincount(mixed, minlength=5), torch.tensor([0.025, 0.025, 0.025, 0.025, 0.9]))


def test_uniform_numbers_reach_every_token_and_no_further() -> None:
    edge = torch.tensor([0.0, 1.0 - 2.0**-24, 0.5])
    assert pick_token(edge, 16384).tolist() == [0, 16383, 8192]


def test_masks_stay_masks_going_forward() -> None:
    schedule = MaskReplaceSchedule(3, 10)
    log_p = torch.tensor([1e-30, 1e-30, 1e-30, 1.0]).log()[None, :, None]
    move = schedule.step(torch.tensor([5]))
    assert forward_log_probs(log_p, move).exp()[0, :, 0].tolist() == pytest.approx([0, 0, 0, 1], abs=1e-29)
    leaked = forward_log_probs(log_p, move, leak=True)[0, 0, 0]
    assert float(leaked) == pytest.approx(float(move.beta.log()), abs=1e-5)
