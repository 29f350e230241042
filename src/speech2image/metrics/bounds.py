"""What the best and the worst images would score: bounds and controls beside every table.

Real halves against each other (nothing can be expected to score better at that count), the generated
images at the same count, noise, and copies of the nearest training images.  All work on features;
networks and images are the caller's business.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from speech2image.errors import ProtocolError
from speech2image.metrics.bootstrap import percentile_ends, resampling_counts
from speech2image.metrics.frechet import frechet_distance
from speech2image.metrics.kernel import squared_mmd
from speech2image.metrics.protocol import Metric, Protocol, measured

Array = npt.NDArray[np.float64]
SPLITS = 20
"""Random halves behind the value and interval of a bound."""
BOUNDS = frozenset({"real_halves", "same_count", "noise", "nearest_train", "shuffled", "text", "held_out"})
"""What stands behind the family in the name of a bound or control; see also `is_bound`."""
_CONTROLS = ("copies/", "shuffled_speech/", "probe_accuracy/", "fid_bound", "kid_bound")


def is_bound(name: str) -> bool:
    """Return whether a metric is a bound or control, which is shown below the contenders.

    >>> is_bound("recall/shuffled@50"), is_bound("recall@50"), is_bound("copies/share")
    (True, False, True)
    """
    return name.split("@")[0].partition("/")[2] in BOUNDS or name.startswith(_CONTROLS)


def half_bounds(
    real: Tensor, generated: Tensor, *, protocol: Protocol | None, groups: npt.ArrayLike | None = None,
    seed: int = 0,
) -> dict[str, Metric]:  # fmt: skip
    """Measure FID and KID of halves of the real images against each other, and of generated images at that count.

    Args:
        real: `(N, F)` features of real images.
        generated: `(M, F)` features of generated images.
        protocol: protocol of the numbers.
        groups: `(N,)` class of each real image.  Halves then share no class, which is what a fair split
            of unseen classes looks like only in part: None (the default of the verb) splits images.
        seed: seed of the halves.

    Returns: `fid/real_halves`, `kid/real_halves`, `fid/same_count`, `kid/same_count`; intervals are the
        range of 95 % of the splits, not an error of the mean.
    Raises:  ProtocolError: fewer than four real or two generated images.
    """
    count = min(len(real) // 2, len(generated))
    if count < 2:
        raise ProtocolError(
            f"real halves need at least 4 real images and 2 generated ones, found {len(real)} and {len(generated)}",
            "Generate for the whole split.",
        )
    rng = np.random.default_rng(seed)
    sides = np.asarray(real, dtype=np.float64), np.asarray(generated, dtype=np.float64)
    found: dict[str, list[float]] = {}
    labels = np.arange(len(real)) if groups is None else np.asarray(groups)
    for _ in range(SPLITS):
        order = _grouped_order(labels, rng)
        left, right = sides[0][order[:count]], sides[0][order[count : 2 * count]]
        drawn = sides[1][rng.permutation(len(generated))[:count]]
        for name, other in (("real_halves", left), ("same_count", drawn)):
            found.setdefault(f"fid/{name}", []).append(frechet_distance(other, right))
            found.setdefault(f"kid/{name}", []).append(squared_mmd(other, right))
    notes = {
        "real_halves": f"lower bound: {count} real images against {count} others",
        "same_count": f"generated images at the count of the lower bound, {count} against {count}",
    }
    return {
        name: _record(
            protocol, name, float(np.mean(values)), np.array(values), count, notes[name.split("/")[1]]
        )
        for name, values in found.items()
    }


def _grouped_order(labels: npt.NDArray[np.generic], rng: np.random.Generator) -> npt.NDArray[np.int64]:
    names, dense = np.unique(labels, return_inverse=True)
    rank = rng.permutation(len(names))[dense.reshape(-1)]
    order: npt.NDArray[np.int64] = np.argsort(rank, kind="stable")
    return order


def set_bounds(
    stand_in: Tensor, real: Tensor, what: str, note: str, *, protocol: Protocol | None, seed: int = 0,
) -> dict[str, Metric]:  # fmt: skip
    """Measure FID and KID of images that stand in for generated ones: noise, copies of training images.

    Args:
        stand_in: `(M, F)` their features.
        real: `(N, F)` features of real images.
        what: name of the bound, behind `fid/` and `kid/`.
        note: one sentence for the reader.
        protocol: protocol of the numbers.
        seed: seed of the resampling.
    """
    left, right = (np.asarray(side, dtype=np.float64) for side in (stand_in, real))
    result = {}
    for family, distance in (("fid", frechet_distance), ("kid", squared_mmd)):
        value = distance(left, right)
        draws = _resampled(distance, left, right, seed)
        # resampled sets are nearer to singular, which shifts FID: keep the spread, drop the shift
        result[f"{family}/{what}"] = _record(
            protocol,
            f"{family}/{what}",
            value,
            draws - draws.mean() + value,
            len(left),
            note,
            real=len(right),
        )
    return result


def _resampled(distance: Callable[[Array, Array], float], left: Array, right: Array, seed: int) -> Array:
    blocks = [
        np.concatenate(list(resampling_counts(len(side), SPLITS, seed + place))).astype(np.int64)
        for place, side in enumerate((left, right))
    ]
    return np.array(
        [distance(left.repeat(a, axis=0), right.repeat(b, axis=0)) for a, b in zip(*blocks, strict=True)]
    )


def noise_images(count: int, image_px: int, seed: int = 0) -> npt.NDArray[np.uint8]:
    """Return uniform noise, `(count, S, S, 3)` uint8."""
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (count, image_px, image_px, 3), dtype=np.uint8)


def _record(
    protocol: Protocol | None, name: str, value: float, draws: Array, count: int, note: str, **details: Any
) -> Metric:
    low, high = percentile_ends(draws, value)
    return measured(
        protocol, name, value, low=max(0.0, low) if name.startswith("fid") else low, high=high, count=count,
        note=note, draws=len(draws), **details,
    )  # fmt: skip
