"""Batches by position: a partition of every epoch, reached directly from any step."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from speech2image.data.order import addressed_rng, batch_indices, epoch_permutation

seeds = st.integers(-(2**63), 2**63)


@settings(deadline=None)
@given(st.integers(1, 200), st.data(), seeds, st.integers(0, 5))
def test_every_epoch_is_made_of_different_items(n: int, data: st.DataObject, seed: int, epoch: int) -> None:
    batch_size = data.draw(st.integers(1, n))
    steps = n // batch_size
    rows = np.concatenate(
        [batch_indices(n, batch_size, seed, epoch * steps + place) for place in range(steps)]
    )
    assert len(rows) == steps * batch_size == len(set(rows.tolist()))
    assert set(rows.tolist()) <= set(range(n))
    assert sorted(epoch_permutation(n, seed, epoch).tolist()) == list(range(n))


@settings(deadline=None)
@given(st.integers(1, 100), st.integers(1, 10), seeds, st.integers(0, 10**9))
def test_any_step_is_reached_without_the_ones_before(n: int, batch_size: int, seed: int, step: int) -> None:
    batch_size = min(batch_size, n)
    once = batch_indices(n, batch_size, seed, step).copy()
    epoch_permutation.cache_clear()
    assert np.array_equal(once, batch_indices(n, batch_size, seed, step))


@settings(deadline=None)
@given(seeds, st.text(max_size=10), st.integers(0, 2**63), st.integers(1, 50))
def test_draws_depend_on_the_address_only(seed: int, stream: str, step: int, count: int) -> None:
    whole = addressed_rng(seed, stream, step).integers(0, 2**62, count)
    assert np.array_equal(whole, addressed_rng(seed, stream, step).integers(0, 2**62, count))
    assert not np.array_equal(
        np.append(whole, 0), np.append(addressed_rng(seed, stream, step + 1).integers(0, 2**62, count), 0)
    )
