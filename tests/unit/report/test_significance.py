"""Tests of differences against known values, written down from scipy 1.17 where a table has none."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from speech2image.report.significance import (
    EXACT_UNITS,
    holm,
    paired,
    t_interval,
    welch,
)


def test_interval_of_seeds() -> None:
    spread = t_interval([1.0, 2.0, 3.0])
    assert (spread.mean, spread.deviation, spread.count) == (2.0, 1.0, 3)
    assert [spread.low, spread.high] == pytest.approx([2 - 4.3026527 / 3**0.5, 2 + 4.3026527 / 3**0.5])
    assert t_interval([0.1, 0.1, 0.1]).deviation == 0.0, "no rounding is left of equal values"


def test_interval_of_seeds_covers_the_truth_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    spreads = [t_interval(list(rng.normal(5.0, 2.0, 3))) for _ in range(2000)]
    assert np.mean([spread.low < 5.0 < spread.high for spread in spreads]) == pytest.approx(0.95, abs=0.015)


def test_welch_is_that_of_scipy() -> None:
    found = welch([1.0, 2.0, 4.0, 3.3], [2.2, 3.1, 5.9])
    assert [found.value, found.p] == pytest.approx([-1.1583333333, 0.4311584287])
    assert [found.low, found.high] == pytest.approx([-5.0279993990, 2.7113327324])
    same = welch([0.3, 0.3], [0.3, 0.3])
    assert (same.value, same.p) == (0.0, 1.0)
    assert welch([0.3, 0.3], [0.4, 0.4]).p == 0.0


def test_few_pairs_are_flipped_in_every_way() -> None:
    gains = np.array([0.3, -0.1, 0.7, 0.2, 0.9, 0.4])
    sums = [abs(np.dot(signs, gains)) for signs in product((1, -1), repeat=6)]
    found = paired(gains)
    assert found.p == pytest.approx(np.mean([one >= gains.sum() - 1e-12 for one in sums]))
    assert found.value == pytest.approx(gains.mean()) and (found.count, found.units) == (6, 6)


def test_many_pairs_agree_with_the_normal_limit() -> None:
    gains = np.random.default_rng(0).normal(0.1, 1.0, 480)
    assert len(gains) > EXACT_UNITS
    found = paired(gains)
    half = 1.96 * gains.std(ddof=1) / 480**0.5
    assert [found.low, found.high] == pytest.approx([gains.mean() - half, gains.mean() + half], abs=0.01)
    assert found.p == pytest.approx(0.1018, abs=0.02)  # scipy.stats.ttest_1samp
    assert paired(gains) == found, "the same numbers give the same answer"


def test_null_is_rejected_as_often_as_it_says() -> None:
    rng = np.random.default_rng(1)
    p = [paired(rng.normal(0.0, 1.0, 10)).p for _ in range(300)]
    assert np.mean([one <= 0.05 for one in p]) == pytest.approx(0.05, abs=0.035)


def test_items_of_a_group_move_together() -> None:
    gains = np.repeat(np.random.default_rng(2).normal(0.2, 1.0, 12), 40)
    alone, together = paired(gains), paired(gains, groups=np.repeat(np.arange(12), 40))
    assert (alone.units, together.units, together.count) == (480, 12, 480)
    assert together.p > 10 * alone.p and together.high - together.low > 3 * (alone.high - alone.low)
    assert together.value == pytest.approx(alone.value)


def test_columns_weigh_the_same_whatever_their_counts() -> None:
    gains = np.array([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0], [1.0, -1.0]])
    weights = np.array([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0], [1.0, 1.0]])
    assert paired(gains, weights).value == pytest.approx(0.0)


def test_holm_steps_down() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, 0.9]) == [1.0, 1.0] and holm([]) == []
