"""Intervals: coverage, grouping and the exact bound at the ends."""

from __future__ import annotations

import numpy as np
import pytest

from speech2image.errors import ProtocolError
from speech2image.metrics.bootstrap import interval, resampling_counts


def test_interval_covers_the_mean_as_often_as_it_says() -> None:
    rng = np.random.default_rng(1)
    covered = 0
    for trial in range(200):
        spread = interval(rng.normal(2.0, 1.0, 60), seed=trial, replicates=500)
        covered += spread.low <= 2.0 <= spread.high
    assert 0.88 <= covered / 200 <= 0.99


def test_groups_widen_the_interval_as_theory_says() -> None:
    rng = np.random.default_rng(2)
    centres = rng.normal(0, 1, 40)
    values, groups = np.repeat(centres, 10), np.repeat(np.arange(40), 10)
    alone, grouped = interval(values), interval(values, groups=groups)
    ratio = (grouped.high - grouped.low) / (alone.high - alone.low)
    assert ratio == pytest.approx(np.sqrt(10), rel=0.2)
    expected = 2 * 1.96 * centres.std() / np.sqrt(40)
    assert grouped.high - grouped.low == pytest.approx(expected, rel=0.15)


def test_all_hits_get_the_exact_binomial_bound() -> None:
    spread = interval(np.ones(100))
    assert (spread.value, spread.high) == (1.0, 1.0)
    assert spread.low == pytest.approx(0.025 ** (1 / 100))
    spread = interval(np.zeros(100), groups=np.repeat(np.arange(5), 20))
    assert spread.high == pytest.approx(1 - 0.025 ** (1 / 5))


def test_counts_sum_to_the_number_of_groups_drawn() -> None:
    groups = np.array(["a", "b", "b", "c", "c", "c"])
    counts = np.concatenate(list(resampling_counts(6, 50, 3, groups)))
    assert counts.shape == (50, 6)
    assert (counts[:, 1] == counts[:, 2]).all() and (counts[:, 3] == counts[:, 5]).all()
    assert (counts[:, 0] + counts[:, 1] + counts[:, 3] == 3).all()


@pytest.mark.parametrize("values", [[], [1.0, float("nan")]])
def test_no_data_is_refused(values: list[float]) -> None:
    with pytest.raises(ProtocolError, match="at least one finite value"):
        interval(values)


def test_group_labels_of_another_length_are_refused() -> None:
    with pytest.raises(ProtocolError, match="3 values but 2 group labels"):
        interval([1, 0, 1], groups=[1, 2])
