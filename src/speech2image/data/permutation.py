"""A shuffle of any number of items that is never written out: place in, item out.

A Feistel network over the bits of a number is a permutation whatever its round function, and numbers beyond the last
item walk on along their cycle until they are back inside.  `order.py` takes it for corpora so large that a written
permutation would fill memory; smaller ones keep the order they always had.
"""

from __future__ import annotations

import hashlib

import numpy as np
import numpy.typing as npt

_ROUNDS = 6


def scattered(places: npt.NDArray[np.int64], n: int, seed: int, epoch: int) -> npt.NDArray[np.int64]:
    """Give the items at some places of one epoch's order of the numbers 0 to n - 1.

    Args:    places: any shape, each from 0 to n - 1.
             n: items; seed: of the run; epoch: each has its own order.
    Returns: items of the same shape; over all places each item comes once.
    Source:  Luby and Rackoff, SIAM J. Comput. 17(2), 1988; cycle walking: Black and Rogaway, CT-RSA 2002.  Rounds
        mix as SplitMix64 does (Steele, Lea and Flood, OOPSLA 2014).
    Cost:    nothing is kept; fewer than four walks of six rounds for a place on average.

    >>> sorted(scattered(np.arange(10), 10, seed=0, epoch=3).tolist())
    [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]
    """
    half = max(1, -(-(n - 1).bit_length() // 2))
    keys = _keys(seed, epoch)
    items = _feistel(places.astype(np.uint64), half, keys)
    outside = items >= n
    while outside.any():
        items[outside] = _feistel(items[outside], half, keys)
        outside = items >= n
    return items.astype(np.int64)


def _keys(seed: int, epoch: int) -> list[np.uint64]:
    """Return a key for each round, a function of seed and epoch."""
    digest = hashlib.blake2b(f"{seed}\0order\0{epoch}".encode(), digest_size=8 * _ROUNDS).digest()
    return [np.uint64(int.from_bytes(digest[8 * r : 8 * r + 8], "little")) for r in range(_ROUNDS)]


def _feistel(numbers: npt.NDArray[np.uint64], half: int, keys: list[np.uint64]) -> npt.NDArray[np.uint64]:
    """Permute the numbers below 4 ** half."""
    shift, mask = np.uint64(half), np.uint64((1 << half) - 1)
    left, right = numbers >> shift, numbers & mask
    for key in keys:
        left, right = right, left ^ (_mixed(right ^ key) & mask)
    return (left << shift) | right


def _mixed(values: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    values = values + np.uint64(0x9E3779B97F4A7C15)
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
