"""KID, MMD, precision, recall, density, coverage and the splits of the inception score."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from torch_fidelity.metric_prc import prc_features_to_metric

from speech2image.errors import ProtocolError
from speech2image.metrics.inception_score import inception_score, negative_log_top_probability
from speech2image.metrics.kernel import kernel_distance, sliced_distance, squared_mmd
from speech2image.metrics.neighbours import f_score, neighbourhoods


def wave_sets() -> tuple[torch.Tensor, torch.Tensor]:
    x = np.sin(0.7 * np.arange(256.0)).reshape(64, 4)
    y = 1.2 * np.sin(0.3 * np.arange(192.0) + 1).reshape(48, 4) + 0.1
    return torch.from_numpy(x), torch.from_numpy(y)


def test_kernel_fixtures() -> None:
    x, y = wave_sets()
    assert squared_mmd(x[:48], y) == pytest.approx(0.5358177, abs=1e-7)
    found = kernel_distance(x, y, subsets=10, subset_size=32, seed=2020)
    assert found == pytest.approx((0.5691053, 0.2004652), abs=1e-7)
    assert kernel_distance(x[:48], y, subsets=2, subset_size=48)[0] == pytest.approx(0.5358177, abs=1e-7)


def test_gaussian_fixture_and_scale_of_cmmd() -> None:
    x, y = wave_sets()
    assert squared_mmd(x[:48], y, sigma=10) == pytest.approx(-0.000409175, abs=1e-9)
    assert 1000 * squared_mmd(x[:48], y, sigma=10, unbiased=False) == pytest.approx(0.613832, abs=1e-6)


def test_mmd_of_unequal_sets_against_its_definition() -> None:
    x, y = wave_sets()
    x = x[:20]
    kernels = {
        (a, b): (l @ r.T / 4 + 1) ** 3 for a, l in (("x", x), ("y", y)) for b, r in (("x", x), ("y", y))
    }
    within = [(k.sum() - k.trace()) / (len(k) * (len(k) - 1)) for k in (kernels["x", "x"], kernels["y", "y"])]
    expected = float(within[0] + within[1] - 2 * kernels["x", "y"].mean())
    assert squared_mmd(x, y) == pytest.approx(expected, rel=1e-12)
    assert squared_mmd(x, x, unbiased=False) == pytest.approx(0, abs=1e-12)
    assert squared_mmd(x + 1, y) != pytest.approx(squared_mmd(x, y), rel=0.01)


def test_sliced_distance_of_a_shift() -> None:
    rows = torch.from_numpy(np.random.default_rng(5).normal(size=(400, 8)))
    assert sliced_distance(rows, rows + 1) == pytest.approx(3 * 8, rel=0.05)
    assert sliced_distance(rows, rows) == 0
    with pytest.raises(ProtocolError, match="found 400 and 399"):
        sliced_distance(rows, rows[1:])


def test_kid_needs_a_subset_of_each_side() -> None:
    x, y = wave_sets()
    with pytest.raises(ProtocolError, match=r"subsets of 1000.*found 64 generated and 48 real"):
        kernel_distance(x, y)
    with pytest.raises(ProtocolError, match="at least two rows of one width"):
        squared_mmd(x, y[:1])


def test_precision_and_recall_are_torch_fidelitys() -> None:
    x, y = (side.float() for side in wave_sets())
    found = neighbourhoods(x, y)
    values = float(found.precision.mean()), float(found.recall.mean()), found.f_score
    assert values == (0.8125, 0.0, 0.0)
    rng = np.random.default_rng(0)
    fake, real = (
        torch.from_numpy(rng.normal(s, 1, (n, 6)).astype(np.float32)) for s, n in ((0.4, 90), (0, 70))
    )
    for k in (1, 3, 5):
        theirs = prc_features_to_metric(fake, real, prc_neighborhood=k, verbose=False)
        ours = neighbourhoods(fake, real, prc_k=k)
        assert float(ours.precision.mean()) == pytest.approx(theirs["precision"], abs=1e-7)
        assert float(ours.recall.mean()) == pytest.approx(theirs["recall"], abs=1e-7)
        assert ours.f_score == pytest.approx(theirs["f_score"], abs=1e-7)
        assert 0 < ours.f_score < 1


def test_density_and_coverage_against_their_definition() -> None:
    rng = np.random.default_rng(1)
    fake, real = rng.normal(0.5, 1, (40, 3)), rng.normal(0, 1, (30, 3))
    between = np.linalg.norm(real[:, None] - fake[None], axis=2)
    within = np.linalg.norm(real[:, None] - real[None], axis=2)
    radius = np.sort(within, axis=1)[:, 5]
    held = between <= radius[:, None]
    found = neighbourhoods(torch.from_numpy(fake), torch.from_numpy(real), prdc_k=5)
    assert found.density == pytest.approx(held.sum(axis=0) / 5)
    assert (found.coverage == held.any(axis=1)).all()
    assert 0 < found.coverage.mean() < 1


def test_blocks_do_not_change_neighbourhoods(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(2)
    fake, real = (torch.from_numpy(rng.normal(s, 1, (n, 4))) for s, n in ((0.7, 50), (0, 45)))
    whole = neighbourhoods(fake, real)
    monkeypatch.setattr("speech2image.metrics.neighbours._BLOCK_ROWS", 16)
    parts = neighbourhoods(fake, real)
    for name in ("precision", "recall", "density", "coverage"):
        assert (getattr(whole, name) == getattr(parts, name)).all(), name


def test_modes_dropped_and_outliers_are_told_apart() -> None:
    rng = np.random.default_rng(3)
    centres = np.array([[0, 0], [20, 0], [0, 20], [20, 20]])
    real = torch.from_numpy(centres[rng.integers(0, 4, 200)] + rng.normal(size=(200, 2)))
    one_mode = torch.from_numpy(rng.normal(size=(200, 2)))
    dropped = neighbourhoods(one_mode, real)
    assert dropped.precision.mean() > 0.8 and dropped.recall.mean() < 0.4 and dropped.coverage.mean() < 0.4
    far = neighbourhoods(real + 100, real)
    assert far.precision.mean() == far.density.mean() == far.coverage.mean() == 0
    same = neighbourhoods(real.clone(), real)
    assert same.precision.all() and same.recall.all() and same.coverage.all()


def test_neighbours_need_neighbours() -> None:
    with pytest.raises(ProtocolError, match="at least 6 images on each side, found 5 generated and 9 real"):
        neighbourhoods(torch.rand(5, 2), torch.rand(9, 2))
    assert f_score(0, 0) == 0 and f_score(1, 0.5) == pytest.approx(2 / 3)


def test_inception_score_fixtures_and_rules() -> None:
    logits = torch.from_numpy(3 * np.sin(0.9 * np.arange(200.0)).reshape(40, 5))
    plain = inception_score(logits, 4, shuffle_seed=None)
    assert plain == pytest.approx((2.0709617, 0.0280429), abs=1e-7)
    assert inception_score(logits, 4) == pytest.approx((1.9443954, 0.0598697), abs=1e-7)
    assert inception_score(logits, 4, shuffle_seed=7) != pytest.approx(inception_score(logits, 4), abs=1e-4)
    chances = torch.softmax(logits, dim=1)
    ends = [0, 13, 26, 40]  # floor(i 40 / 3)
    by_hand = []
    for left, right in pairwise(ends):
        part = chances[left:right]
        by_hand.append(float((part * (part / part.mean(dim=0)).log()).sum(dim=1).mean().exp()))
    assert inception_score(logits, 3, shuffle_seed=None)[0] == pytest.approx(np.mean(by_hand))
    dropped = inception_score(logits, 3, shuffle_seed=None, drop_rest=True)
    assert (
        dropped
        == inception_score(logits[:39], 3, shuffle_seed=None)
        != inception_score(logits, 3, shuffle_seed=None)
    )
    batched = inception_score(logits, 4, shuffle_seed=3, batch=16)
    order = np.random.RandomState(3).permutation(40)[:32]
    assert batched == inception_score(logits[order], 4, shuffle_seed=None)


def test_inception_score_bounds() -> None:
    assert inception_score(torch.zeros(20, 5), 2)[0] == pytest.approx(1)
    sure = 50.0 * torch.eye(5).repeat(8, 1)
    assert inception_score(sure, 2, shuffle_seed=None)[0] == pytest.approx(5)
    mean, deviation = negative_log_top_probability(torch.zeros(20, 5), 4)
    assert (mean, deviation) == pytest.approx((np.log(5), 0))
    with pytest.raises(ProtocolError, match="10 splits needs at least as many images, found 9"):
        inception_score(torch.zeros(9, 5))
    with pytest.raises(ProtocolError, match="found 0"):
        inception_score(torch.zeros(63, 5), batch=64)


def test_inception_score_of_a_sure_network_is_the_number_of_classes() -> None:
    """Logits so far apart that probabilities underflow: 0 log 0 counts nothing."""
    logits = 5000.0 * torch.eye(6).repeat(4, 1)
    mean, deviation = inception_score(logits[torch.randperm(24)], 1)
    assert (mean, deviation) == (pytest.approx(6.0), 0.0)
