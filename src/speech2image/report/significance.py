"""Is one method better than another?  Paired tests, Welch's t test and Holm's correction.

Arrays only, no run folders: arrays in, a `Difference` out.  What is paired with what, and the
sentence a reader gets, is in `differences.py`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.special import stdtr, stdtrit

NUM_FLIPS = 9_999
NUM_REPLICATES = 2_000
EXACT_UNITS = 13
_AT_A_TIME = 2_000_000


@dataclass(frozen=True)
class Difference:
    """A difference of two means: its value, interval and p value.

    Attributes:
        value: first minus second.
        low: lower end of the interval at `level`.
        high: upper end.
        level: confidence level.
        p: two-sided p value of "no difference".
        count: what was paired, or the seeds of both sides.
        units: independent units behind it (classes, where items of a class go together).
    """

    value: float
    low: float
    high: float
    level: float
    p: float
    count: int
    units: int


@dataclass(frozen=True)
class Spread:
    """Mean of a few seeds, their standard deviation (n - 1) and a t interval of the mean."""

    mean: float
    deviation: float
    low: float
    high: float
    count: int


# ---- seeds ------------------------------------------------------------------------------------
def t_interval(values: Sequence[float], level: float = 0.95) -> Spread:
    """Return the mean of independent runs with its t interval, n - 1 degrees of freedom.

    Args:    values: one number a seed, at least two.

    >>> spread = t_interval([1.0, 2.0, 3.0])
    >>> spread.mean, spread.deviation, round(spread.low, 3), round(spread.high, 3)
    (2.0, 1.0, -0.484, 4.484)
    """
    array = np.asarray(values, dtype=np.float64)
    mean = float(array.mean())
    deviation = 0.0 if np.ptp(array) == 0 else float(array.std(ddof=1))  # equal values leave no rounding
    half = float(stdtrit(len(array) - 1, 0.5 + level / 2.0)) * deviation / math.sqrt(len(array))
    return Spread(mean, deviation, mean - half, mean + half, len(array))


def welch(first: Sequence[float], second: Sequence[float], level: float = 0.95) -> Difference:
    """Compare the means of two sets of seeds without assuming equal spread.

    Args:
        first: one number a seed, at least two.
        second: the same of the other method.
    Source: Welch 1947; degrees of freedom after Satterthwaite.
    """
    a, b = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    value = float(a.mean() - b.mean())
    parts = np.array([0.0 if np.ptp(one) == 0 else one.var(ddof=1) / len(one) for one in (a, b)])
    count = len(a) + len(b)
    error = math.sqrt(float(parts.sum()))
    if error == 0.0:
        value = value if a[0] != b[0] else 0.0
        return Difference(value, value, value, level, 1.0 if value == 0 else 0.0, count, count)
    df = float(parts.sum() ** 2 / (parts**2 / np.array([len(a) - 1, len(b) - 1])).sum())
    half = float(stdtrit(df, 0.5 + level / 2.0)) * error
    p = 2.0 * float(stdtr(df, -abs(value) / error))
    return Difference(value, value - half, value + half, level, p, count, count)


# ---- pairs ------------------------------------------------------------------------------------
def paired(
    gains: npt.ArrayLike,
    weights: npt.ArrayLike | None = None,
    groups: npt.ArrayLike | None = None,
    level: float = 0.95,
    seed: int = 2020,
) -> Difference:
    """Test paired differences: sign flips for the p value, a bootstrap for the interval.

    The difference is the mean over the columns of (sum of gains) / (sum of weights): with one column
    and no weights the plain mean; with one column an attribute the mean of accuracies per attribute.

    Args:
        gains: `(N,)` or `(N, A)`, first minus second of each item; 0 where an item does not count.
        weights: the same shape, 1 where an item counts; None: all do.
        groups: `(N,)` labels of items that go together: flipped and resampled as one.
        level: of the percentile interval.
        seed: of flips and replicates.
    Returns: value, interval and p = (1 + flips at least as far from 0) / (1 + flips); all 2^units flips
        up to 13 units, 9,999 drawn ones beyond.
    Source: Fisher's permutation test for matched pairs; Efron and Tibshirani 1993, chapters 13 and 15.
    """
    top = np.asarray(gains, dtype=np.float64)
    top = top[:, None] if top.ndim == 1 else top
    bottom = np.ones_like(top) if weights is None else np.asarray(weights, dtype=np.float64)
    bottom = bottom.reshape(top.shape)
    count = len(top)
    if groups is not None:
        _, place = np.unique(np.asarray(groups), return_inverse=True)
        top, bottom = _gathered(top, place.reshape(-1)), _gathered(bottom, place.reshape(-1))
    totals = bottom.sum(axis=0)
    shares = (top / totals).mean(axis=1)
    value = float(shares.sum())
    rng = np.random.default_rng(seed)
    p = _flip_p(shares, rng)
    replicates = _in_parts(NUM_REPLICATES, len(top), lambda part: _resampled(top, bottom, part, rng))
    tail = 50.0 * (1.0 - level)
    low, high = np.percentile(replicates, [tail, 100.0 - tail])
    return Difference(value, float(low), float(high), level, p, count, len(top))


def _gathered(rows: npt.NDArray[np.float64], place: npt.NDArray[np.intp]) -> npt.NDArray[np.float64]:
    result = np.zeros((int(place.max()) + 1, rows.shape[1]))
    np.add.at(result, place, rows)
    return result


def _flip_p(shares: npt.NDArray[np.float64], rng: np.random.Generator) -> float:
    far = abs(float(shares.sum())) - 1e-12 * max(float(np.abs(shares).sum()), 1e-300)
    units = len(shares)
    if units <= EXACT_UNITS:
        signs = 1.0 - 2.0 * ((np.arange(2**units)[:, None] >> np.arange(units)) & 1)
        return float((np.abs(signs @ shares) >= far).mean())

    def flipped(part: int) -> npt.NDArray[np.float64]:
        bits = np.unpackbits(rng.integers(0, 256, (part, -(-units // 8)), np.uint8), axis=1)[:, :units]
        return np.asarray(shares.sum() - 2.0 * (bits @ shares))

    sums = _in_parts(NUM_FLIPS, units, flipped)
    return float((1 + (np.abs(sums) >= far).sum()) / (1 + NUM_FLIPS))


def _resampled(
    top: npt.NDArray[np.float64], bottom: npt.NDArray[np.float64], part: int, rng: np.random.Generator
) -> npt.NDArray[np.float64]:
    times = rng.multinomial(len(top), np.full(len(top), 1.0 / len(top)), size=part)
    below = times @ bottom
    ratios = np.divide(times @ top, below, out=np.zeros_like(below), where=below > 0)
    return np.asarray(ratios.mean(axis=1))


def _in_parts(
    total: int, width: int, draw: Callable[[int], npt.NDArray[np.float64]]
) -> npt.NDArray[np.float64]:
    """Draw `total` results in parts of bounded memory."""
    part = max(1, _AT_A_TIME // max(width, 1))
    return np.concatenate([draw(min(part, total - start)) for start in range(0, total, part)])


# ---- many tests -------------------------------------------------------------------------------
def holm(p_values: Sequence[float]) -> list[float]:
    """Return p values corrected for their number, in the given order.

    Source: Holm 1979, step down: the smallest times m, the next times m - 1, never decreasing.

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    corrected, highest = [0.0] * len(p_values), 0.0
    for rank, place in enumerate(np.argsort(np.asarray(p_values), kind="stable")):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[place]))
        corrected[int(place)] = highest
    return corrected
