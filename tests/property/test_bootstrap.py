"""Properties every interval has, whatever the data."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from speech2image.metrics.attributes import derangement
from speech2image.metrics.bootstrap import interval

NUMBERS = st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=40)


@settings(max_examples=60, deadline=None)
@given(NUMBERS, st.integers(0, 9), st.floats(0.5, 0.99))
def test_interval_holds_its_value_and_stays_in_the_data(values: list[float], seed: int, level: float) -> None:
    spread = interval(values, level=level, seed=seed, replicates=100)
    assert spread.low <= spread.value <= spread.high
    assert spread.count == len(values)
    slack = 1e-9 * (1 + max(map(abs, values)))
    if not set(values) <= {0.0} and not set(values) <= {1.0}:
        assert min(values) - slack <= spread.low
        assert spread.high <= max(values) + slack
    assert interval(values, level=level, seed=seed, replicates=100) == spread


@settings(max_examples=60, deadline=None)
@given(st.lists(st.booleans(), min_size=1, max_size=60), st.integers(0, 9))
def test_hits_stay_between_zero_and_one(hits: list[bool], seed: int) -> None:
    spread = interval(hits, seed=seed, replicates=200)
    assert 0 <= spread.low <= spread.value <= spread.high <= 1
    if len(hits) > 1:
        wide = interval(hits, seed=seed, replicates=200, level=0.99)
        assert wide.low <= spread.low and wide.high >= spread.high


@settings(max_examples=60, deadline=None)
@given(st.integers(2, 60), st.integers(0, 99))
def test_derangement_moves_everything(count: int, seed: int) -> None:
    order = derangement(count, seed)
    assert sorted(order) == list(range(count))
    assert (order != np.arange(count)).all()


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 5), min_size=2, max_size=60), st.integers(0, 99))
def test_derangement_crosses_groups_where_that_is_possible(groups: list[int], seed: int) -> None:
    labels = np.array(groups)
    largest = np.unique(labels, return_counts=True)[1].max()
    if largest > len(labels) / 2 or len(set(groups)) < 2:
        return
    order = derangement(len(labels), seed, labels)
    assert sorted(order) == list(range(len(labels)))
    assert (labels[order] != labels).all()
