"""Learning-rate factors are pure functions of the step."""

from __future__ import annotations

import pytest

from speech2image.training.schedules import make_schedule


@pytest.mark.parametrize("name", ["constant", "step", "cosine", "one_cycle", "linear"])
def test_factor_is_between_zero_and_one(name: str) -> None:
    factor = make_schedule(name, 100, decay_every=30, warmup_steps=5)
    assert all(0 <= factor(step) <= 1 for step in range(101))


def test_published_step_schedules() -> None:
    li = make_schedule("step", 138_000, decay_every=27_600, decay_factor=0.5)
    assert [li(step) for step in (0, 27_599, 27_600, 55_200)] == [1.0, 1.0, 0.5, 0.25]


def test_one_cycle_rises_then_falls_to_zero() -> None:
    factor = make_schedule("one_cycle", 100)
    assert factor(0) < factor(5) < factor(10) == pytest.approx(1.0)
    assert factor(100) == pytest.approx(0.0)


def test_warmup_comes_before_everything() -> None:
    assert make_schedule("constant", 100, warmup_steps=9)(4) == pytest.approx(0.5)


def test_speechclip_rises_and_falls_in_straight_lines() -> None:
    factor = make_schedule("linear", 50_000, decay_factor=1e-4, warmup_steps=5000)
    published = {0: 2e-8, 2499: 5e-5, 4999: 1e-4, 5000: 9.9997778e-5, 27_499: 5.0005e-5, 49_999: 1e-8}
    for step, lr in published.items():
        assert 1e-4 * factor(step) == pytest.approx(lr, rel=1e-7), step
    assert factor(60_000) == pytest.approx(1e-4), "it does not turn negative"
