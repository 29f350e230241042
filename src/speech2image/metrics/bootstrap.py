"""Confidence intervals by resampling, with grouped data resampled by group.

Here: the percentile bootstrap of means and of ratios of sums, addressed by a seed.  Not here: any
metric.  Every number of `metrics/` gets its interval from this file or, for KID and the inception
score, from the subsets and splits that define them (`scores.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from speech2image.errors import ProtocolError

_CHUNK_ENTRIES = 4_000_000


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean with its confidence interval.

    Attributes:
        value: the mean of the data.
        low: lower end at `level`.
        high: upper end at `level`.
        level: confidence level, e.g. 0.95.
        count: number of values (not of groups).
    """

    value: float
    low: float
    high: float
    level: float
    count: int


def resampling_counts(
    num_items: int, replicates: int, seed: int, groups: npt.ArrayLike | None = None
) -> Iterator[npt.NDArray[np.float64]]:
    """Yield `(R, num_items)` blocks: how often each replicate holds each item.

    Args:
        num_items: number of items.
        replicates: number of replicates over all blocks.
        seed: seed of the draws.
        groups: `(num_items,)` labels; items of one group are drawn together.  None: one by one.
    """
    rng = np.random.default_rng(seed)
    labels = np.arange(num_items) if groups is None else np.unique(np.asarray(groups), return_inverse=True)[1]
    labels = labels.reshape(-1)
    num_groups = int(labels.max()) + 1
    block = max(1, min(replicates, _CHUNK_ENTRIES // max(num_items, 1)))
    done = 0
    while done < replicates:
        size = min(block, replicates - done)
        draws = rng.integers(0, num_groups, (size, num_groups))
        draws += np.arange(size)[:, None] * num_groups
        counts = np.bincount(draws.ravel(), minlength=size * num_groups).reshape(size, num_groups)
        yield counts[:, labels].astype(np.float64)
        done += size


def replicate_statistic(
    statistic: Callable[[npt.NDArray[np.float64]], npt.NDArray[np.float64]],
    num_items: int,
    *,
    replicates: int = 2000,
    seed: int = 0,
    groups: npt.ArrayLike | None = None,
) -> npt.NDArray[np.float64]:
    """Return a statistic on every bootstrap replicate, `(replicates,)`.

    Args:
        statistic: maps counts `(R, num_items)` to values `(R,)`; NaN where it is undefined.
        num_items: number of items.
        replicates: number of replicates.
        seed: seed of the draws.
        groups: as in `resampling_counts`.
    """
    blocks = resampling_counts(num_items, replicates, seed, groups)
    return np.concatenate([statistic(counts) for counts in blocks])


def percentile_ends(
    replicates: npt.NDArray[np.float64], value: float, level: float = 0.95
) -> tuple[float, float]:
    """Return the percentile interval of `replicates`, widened where needed to hold `value`."""
    finite = replicates[np.isfinite(replicates)]
    if not len(finite):
        return value, value
    low, high = np.quantile(finite, [(1 - level) / 2, (1 + level) / 2])
    return min(float(low), value), max(float(high), value)


def interval(
    values: npt.ArrayLike,
    level: float = 0.95,
    seed: int = 0,
    groups: npt.ArrayLike | None = None,
    replicates: int = 2000,
) -> Interval:
    """Return the mean of `values` with its bootstrap interval.

    Args:
        values: `(N,)` numbers or hits (bool or 0/1).
        level: confidence level.
        seed: seed of the resampling.
        groups: `(N,)` labels of what was drawn together (images of a species, captions of an
            image); groups are then resampled whole.  None: every value on its own.
        replicates: number of resamples.

    Returns: the interval.  Where all N hits are 0 or all are 1 the bootstrap has no spread, so the
        exact binomial bound of that many independent groups is given instead.

    Raises:  ProtocolError: no value, a NaN, or labels of another length.
    Source:  Efron and Tibshirani 1993, chapter 13; the exact bound is Clopper and Pearson 1934.

    >>> interval([1, 1, 1, 1]).low < 0.5
    True
    """
    numbers = np.asarray(values, dtype=np.float64).reshape(-1)
    if not len(numbers) or not np.isfinite(numbers).all():
        raise ProtocolError(
            f"an interval needs at least one finite value, found {len(numbers)} values with"
            f" {int((~np.isfinite(numbers)).sum())} that are not finite",
            "Check that generation and evaluation ran over the whole split.",
        )
    if groups is not None and len(np.asarray(groups)) != len(numbers):
        raise ProtocolError(f"{len(numbers)} values but {len(np.asarray(groups))} group labels", "")
    value = float(numbers.mean())
    if value in (0.0, 1.0) and np.all(numbers == value):
        independent = len(numbers) if groups is None else len(np.unique(np.asarray(groups)))
        bound = ((1 - level) / 2) ** (1 / independent)
        low, high = (bound, 1.0) if value == 1.0 else (0.0, 1.0 - bound)
        return Interval(value, low, high, level, len(numbers))

    def mean(counts: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        means: npt.NDArray[np.float64] = (counts @ numbers) / counts.sum(axis=1)
        return means

    draws = replicate_statistic(mean, len(numbers), replicates=replicates, seed=seed, groups=groups)
    return Interval(value, *percentile_ends(draws, value, level), level, len(numbers))
