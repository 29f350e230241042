"""The shuffle that is not written out: each item once, evenly, the same everywhere."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from speech2image.data import order
from speech2image.data.permutation import scattered


@settings(max_examples=60, deadline=None)
@given(n=st.integers(1, 3000), seed=st.integers(0, 2**40), epoch=st.integers(0, 1000))
def test_each_item_comes_once(n: int, seed: int, epoch: int) -> None:
    assert np.array_equal(np.sort(scattered(np.arange(n), n, seed, epoch)), np.arange(n))


def test_items_do_not_depend_on_how_places_are_asked() -> None:
    whole = scattered(np.arange(1000), 1000, 7, 2)
    assert np.array_equal(scattered(np.array([999, 3, 3, 0]), 1000, 7, 2), whole[[999, 3, 3, 0]])
    assert not np.array_equal(whole, scattered(np.arange(1000), 1000, 8, 2))
    assert not np.array_equal(whole, scattered(np.arange(1000), 1000, 7, 3))


def test_order_is_the_same_on_every_machine() -> None:
    assert scattered(np.arange(5), 100_000_000, 0, 0).tolist() == GOLDEN


GOLDEN = [30333894, 73238014, 6498671, 65567623, 71353748]


@pytest.mark.parametrize("n", [1000, 4096])
def test_items_fall_evenly_on_places(n: int) -> None:
    """Chi-square over 16 x 16 cells of (place, item), 400 epochs: within five deviations of its mean."""
    counts = np.zeros((16, 16))
    places = np.arange(n)
    for epoch in range(400):
        np.add.at(counts, (places * 16 // n, scattered(places, n, 1, epoch) * 16 // n), 1)
    # rows and columns are nearly fixed by being a permutation: 15 x 15 free cells, each a little less than Poisson
    expected = 400 * np.outer(np.bincount(places * 16 // n), np.bincount(places * 16 // n)) / n
    chi = ((counts - expected) ** 2 / expected).sum()
    assert abs(chi - 225) < 5 * np.sqrt(2 * 225)


def test_neighbours_are_torn_apart() -> None:
    n = 50_000
    items = scattered(np.arange(n), n, 3, 0)
    assert abs(np.corrcoef(items[:-1], items[1:])[0, 1]) < 0.02
    assert (np.abs(np.diff(items)) == 1).mean() < 3 * 2 / n + 1e-3


def test_large_corpora_take_it_and_small_ones_keep_their_order(monkeypatch: pytest.MonkeyPatch) -> None:
    small = np.concatenate([order.batch_indices(100, 10, 5, step) for step in range(10, 20)])
    assert np.array_equal(small, order.epoch_permutation(100, 5, 1))  # the second epoch, as it always was
    monkeypatch.setattr(order, "WRITTEN_UP_TO", 99)
    large = np.concatenate([order.batch_indices(100, 10, 5, step) for step in range(10, 20)])
    assert np.array_equal(np.sort(large), np.arange(100)) and not np.array_equal(large, small)


def test_batch_of_a_hundred_million_is_made_at_once() -> None:
    before = order.epoch_permutation.cache_info().currsize
    batch = order.batch_indices(100_000_000, 4096, 0, 12_345)
    assert len(np.unique(batch)) == 4096 and batch.min() >= 0 and batch.max() < 100_000_000
    assert order.epoch_permutation.cache_info().currsize == before
