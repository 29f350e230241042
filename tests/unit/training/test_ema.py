"""The moving average: arithmetic, buffers, warm-up, checkpoints, and that live weights are left alone."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from speech2image.training.ema import ExponentialMovingAverage


def _live() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)).train()


def _move(live: nn.Module) -> None:
    with torch.no_grad():
        for parameter in live.parameters():
            parameter.add_(1.0)
    live(torch.randn(5, 3) * 3)


def test_average_follows_the_formula_and_leaves_live_alone() -> None:
    live = _live()
    average = ExponentialMovingAverage(live, decay=0.9)
    expected = [p.detach().double().clone() for p in live.parameters()]
    for _ in range(3):
        _move(live)
        before = [p.detach().clone() for p in live.parameters()]
        average.update()
        assert all(torch.equal(a, b) for a, b in zip(before, live.parameters(), strict=True))
        expected = [
            0.9 * e + 0.1 * p.detach().double() for e, p in zip(expected, live.parameters(), strict=True)
        ]
    for mine, theirs in zip(average.module.parameters(), expected, strict=True):
        torch.testing.assert_close(mine.double(), theirs, rtol=1e-6, atol=1e-6)
        assert not mine.requires_grad


@pytest.mark.parametrize("mode", ["copy", "average"])
def test_buffers_are_copied_or_averaged(mode: str) -> None:
    live = _live()
    average = ExponentialMovingAverage(live, decay=0.5, buffers=mode)  # type: ignore[arg-type]
    _move(live)
    average.update()
    share = 1.0 if mode == "copy" else 0.5
    torch.testing.assert_close(average.module[1].running_mean, share * live[1].running_mean)  # type: ignore[index]
    assert int(average.module[1].num_batches_tracked) == 1  # type: ignore[index]


def test_warmup_starts_fast_and_ends_at_the_decay() -> None:
    average = ExponentialMovingAverage(_live(), decay=0.5, warmup=True)
    decays = []
    for _ in range(10):
        decays.append(average.current_decay())
        average.update()
    assert decays[0] == pytest.approx(0.1) and decays[1] == pytest.approx(2 / 11)
    assert decays[-1] == 0.5 and decays == sorted(decays)


def test_average_stays_in_evaluation_mode_and_keeps_the_live_network_out() -> None:
    owner = nn.Module()
    owner.live = _live()
    owner.ema = ExponentialMovingAverage(owner.live)
    owner.train()
    assert not owner.ema.module.training and owner.live.training
    assert {name.split(".")[1] for name in owner.state_dict() if name.startswith("ema")} == {
        "module",
        "num_updates",
    }


def test_state_returns_with_its_count() -> None:
    live = _live()
    average = ExponentialMovingAverage(live, warmup=True)
    _move(live)
    for _ in range(4):
        average.update()
    restored = ExponentialMovingAverage(_live(), warmup=True)
    restored.current_decay()
    restored.load_state_dict(average.state_dict())
    assert restored.current_decay() == average.current_decay() == pytest.approx(5 / 14)
    assert all(torch.equal(a, b) for a, b in zip(restored.parameters(), average.parameters(), strict=True))


def test_copy_to_live_overwrites_parameters_only() -> None:
    live = _live()
    average = ExponentialMovingAverage(live, decay=0.9)
    _move(live)
    average.update()
    _move(live)
    statistics = live[1].running_mean.clone()
    average.copy_to_live()
    assert all(torch.equal(a, b) for a, b in zip(live.parameters(), average.module.parameters(), strict=True))
    assert torch.equal(live[1].running_mean, statistics)
