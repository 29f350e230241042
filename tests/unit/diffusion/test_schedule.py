"""The mask-and-replace schedule: published numbers, strides, the second form, bad arguments."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from speech2image.diffusion.schedule import MaskReplaceSchedule, Transition
from speech2image.errors import ConfigError

#: t: (at, bt, ct), (att, btt, ctt) of the released schedule for K = 974, T = 100.
RELEASED = {
    0: ((0.99999, 1.026694e-09, 9e-06), (0.99999, 1.026694e-09, 9e-06)),
    1: ((0.98989908, 1.0370647e-11, 0.010100909), (0.98988918, 1.026694e-09, 0.010109818)),
    2: ((0.98979601, 1.0583371e-11, 0.010203979), (0.97978836, 1.026694e-09, 0.020210636)),
    50: ((0.98000036, 4.0656327e-11, 0.019999604), (0.49494909, 1.026694e-09, 0.50504991)),
    98: ((0.50022266, 2.5387278e-08, 0.49975262), (0.010109818, 1.026694e-09, 0.98988918)),
    99: ((0.00089022372, 1.0145371e-07, 0.99901096), (9e-06, 1.026694e-09, 0.99999)),
}


def matrix(move: Transition, num_tokens: int) -> Tensor:
    """Write one transition as a matrix, rows from, columns to; the mask is the last state."""
    alpha, beta, gamma = (float(value[0]) for value in move)
    result = torch.full((num_tokens + 1, num_tokens + 1), beta, dtype=torch.float64)
    result[:-1, :-1] += alpha * torch.eye(num_tokens, dtype=torch.float64)
    result[:-1, -1], result[-1, :-1], result[-1, -1] = gamma, 0.0, 1.0
    return result


@pytest.mark.parametrize("t", RELEASED)
def test_released_schedule_gives_the_published_numbers(t: int) -> None:
    schedule, step = MaskReplaceSchedule(974), torch.tensor([t])
    one_step, cumulative = RELEASED[t]
    assert [float(value) for value in schedule.step(step)] == pytest.approx(one_step, rel=1e-7)
    assert [float(value) for value in schedule.marginal(step)] == pytest.approx(cumulative, rel=1e-7)


@pytest.mark.parametrize(
    ("num_tokens", "beta_50", "beta_bar"),
    [(2887, 1.3716405e-11, 3.4638033e-10), (1024, None, 9.765625e-10), (4096, None, 2.4414062e-10)],
)
def test_other_code_books_share_the_replaced_mass(
    num_tokens: int, beta_50: float | None, beta_bar: float
) -> None:
    schedule = MaskReplaceSchedule(num_tokens)
    assert schedule.beta_bar[:-1].tolist() == pytest.approx([beta_bar] * 100, rel=1e-7)
    if beta_50 is not None:
        assert float(schedule.step(torch.tensor([50])).beta) == pytest.approx(beta_50, rel=1e-6)


def test_step_minus_one_is_the_clean_image() -> None:
    clean = MaskReplaceSchedule(7, 20).marginal(torch.tensor([-1]))
    assert [float(value) for value in clean] == [1.0, 0.0, 0.0]


def test_log_tables_of_checkpoints() -> None:
    tables = MaskReplaceSchedule(974).released_logs()
    found = [float(tables["log_cumprod_ct"][t]) for t in (0, 1, 50, 98, 99)]
    assert found == pytest.approx([-11.618286, -4.594248, -0.683098, -0.010162, -1.0000e-05], abs=2e-6)
    assert float(tables["log_1_min_ct"][99]) == pytest.approx(-6.918776, abs=2e-6)
    assert float(tables["log_at"][99]) == pytest.approx(-7.024038, abs=2e-6)


@pytest.mark.parametrize("kind", ["released", "paper"])
@pytest.mark.parametrize(("t", "s"), [(0, -1), (5, 4), (9, 2), (9, -1), (6, 0)])
def test_strides_compose_to_the_marginal(kind: str, t: int, s: int) -> None:
    schedule = MaskReplaceSchedule(5, 10, kind)
    far, near = torch.tensor([t]), torch.tensor([s])
    skipped = matrix(schedule.skip(far, near), 5)
    torch.testing.assert_close(
        matrix(schedule.marginal(near), 5) @ skipped, matrix(schedule.marginal(far), 5)
    )
    walked = torch.eye(6, dtype=torch.float64)
    for step in range(s + 1, t + 1):
        walked = walked @ matrix(schedule.step(torch.tensor([step])), 5)
    torch.testing.assert_close(walked, skipped)
    torch.testing.assert_close(skipped.sum(1), torch.ones(6, dtype=torch.float64))


def test_paper_schedule_ends_as_the_paper_says() -> None:
    schedule = MaskReplaceSchedule(8, 100, "paper")
    kept, replaced, masked = (float(value) for value in schedule.marginal(torch.tensor([99])))
    assert kept == 0.0 and masked == pytest.approx(0.9) and 8 * replaced == pytest.approx(0.1)
    assert not schedule.starts_masked and MaskReplaceSchedule(8).starts_masked


def test_casting_a_model_leaves_the_tables_alone() -> None:
    model = nn.Sequential(MaskReplaceSchedule(8), nn.Linear(2, 2)).bfloat16()
    schedule = model[0]
    assert isinstance(schedule, MaskReplaceSchedule)
    assert schedule.beta_bar.dtype == torch.float64 and model[1].weight.dtype == torch.bfloat16
    assert torch.equal(schedule.beta_bar, MaskReplaceSchedule(8).beta_bar)
    assert not schedule.state_dict()
    assert schedule.to("meta").alpha_bar.device.type == "meta"


def test_step_at_finds_the_share_of_masks() -> None:
    schedule = MaskReplaceSchedule(8, 100)
    assert schedule.step_at(1.0) == 99 and schedule.step_at(0.0) == 0
    assert [schedule.step_at(float(schedule.gamma_bar[t])) for t in (0, 3, 50)] == [0, 3, 50]


@pytest.mark.parametrize("arguments", [(1, 100), (8, 1), (8, 0), (8, 100, "cosine")])
def test_impossible_schedules_are_refused(arguments: tuple[int, int]) -> None:
    with pytest.raises(ConfigError, match="schedule"):
        MaskReplaceSchedule(*arguments)
