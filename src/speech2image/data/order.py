"""Addressed randomness: every draw and every order is a function of seed, stream name and step.

Here are the random generators that data, training and sampling share, and the positional sampler built on them.
Nothing here reads a file or keeps state, so resuming at step n costs nothing and worker counts change nothing.
What a step draws is drawn for the whole batch; a rank then keeps its `Share`, so rank counts change nothing either.
Read `batches.py` for how whole batches are drawn from it.
"""

from __future__ import annotations

import hashlib
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from speech2image.data.permutation import scattered
from speech2image.errors import ConfigError, DataError

__all__ = ["WHOLE", "Share", "addressed_rng", "batch_indices", "epoch_permutation", "steps_per_epoch"]

WRITTEN_UP_TO = 2**24
"""Items whose order is written out, 8 bytes each in every process; larger corpora compute theirs place by place."""


class Share(NamedTuple):
    """Which of the equal, contiguous parts of every batch a rank keeps.

    Attributes:
        number: of the part, from 0: the rank.
        of: how many parts there are: the ranks that train together.

    >>> Share(1, 4).rows(8)
    slice(2, 4, None)
    """

    number: int = 0
    of: int = 1

    def rows(self, batch_size: int) -> slice:
        """Return which rows of a whole batch are kept.

        Raises:  ConfigError: the batch cannot be shared equally.
        """
        if batch_size % self.of:
            fewer, more = batch_size // self.of * self.of, (batch_size // self.of + 1) * self.of
            raise ConfigError(
                f"a batch of {batch_size} cannot be shared equally by {self.of} ranks",
                f"Type: trainer.batch_size={more}" + (f" (or {fewer})" if fewer else ""),
            )
        size = batch_size // self.of
        return slice(self.number * size, (self.number + 1) * size)


WHOLE = Share()
"""The share of a process that trains alone."""


def addressed_rng(seed: int, stream: str, step: int) -> np.random.Generator:
    """Make the random generator that lives at one address.

    Args:    seed: run seed, any integer.
             stream: what the numbers are for, e.g. `"gan/crop"`; streams are independent of each other.
             step: which batch (or epoch, or item) of the stream, >= 0; steps never overlap.
    Returns: a fresh `numpy.random.Generator` over Philox; equal addresses give equal numbers on every machine.
    Raises:  DataError: `step` is negative.

    >>> a = addressed_rng(7, "flip", 3).integers(0, 100, 4)
    >>> b = addressed_rng(7, "flip", 3).integers(0, 100, 4)
    >>> bool((a == b).all())
    True
    """
    if step < 0:
        raise DataError(f"random stream {stream!r}: step {step} is negative", "count steps from 0")
    # The step sits in the second 64-bit word of the counter: 2**64 blocks lie between one step and the next.
    counter = np.array([0, step, 0, 0], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=_stream_key(int(seed), stream), counter=counter))


@lru_cache(maxsize=1024)
def _stream_key(seed: int, stream: str) -> int:
    digest = hashlib.blake2b(f"{seed}\0{stream}".encode(), digest_size=16).digest()
    return int.from_bytes(digest, "little")


@lru_cache(maxsize=4)
def epoch_permutation(n: int, seed: int, epoch: int) -> np.ndarray:
    """Shuffle the numbers 0 to n - 1 for one epoch.

    Returns: `(n,)` int64, read-only because it is remembered between calls.
    """
    order = addressed_rng(seed, "order", epoch).permutation(n).astype(np.int64)
    order.flags.writeable = False
    return order


def steps_per_epoch(n: int, batch_size: int) -> int:
    """Count the whole batches in `n` items; the rest of an epoch is dropped.

    Raises: DataError: there are fewer items than one batch, or the batch is empty.
    """
    if batch_size < 1:
        raise DataError(
            f"batch size is {batch_size}, a batch holds at least one item", "set batch_size=1 or more"
        )
    if n < batch_size:
        raise DataError(
            f"the split holds {n} items, a batch of {batch_size} cannot be filled",
            f"set batch_size={max(n, 1)} or less, or choose a larger split",
        )
    return n // batch_size


def batch_indices(n: int, batch_size: int, seed: int, step: int) -> np.ndarray:
    """Give the item numbers of one batch: each epoch is shuffled anew and its short last batch dropped.

    Args:    n: items in the split; batch_size: items in a batch, at most `n`.
             seed: run seed; step: batch number since the start of training.
    Returns: `(batch_size,)` int64, all different.
    Raises:  DataError: `batch_size` is below 1 or above `n`.
    Cost:    one permutation of `n` per epoch, above `WRITTEN_UP_TO` items none; any step is reached directly.
    """
    epoch, place = divmod(step, steps_per_epoch(n, batch_size))
    if n > WRITTEN_UP_TO:
        return scattered(np.arange(place * batch_size, (place + 1) * batch_size), n, seed, epoch)
    return epoch_permutation(n, seed, epoch)[place * batch_size : (place + 1) * batch_size]
