"""Kernel distances of feature sets: KID over subsets, MMD of whole sets (the scale of CMMD), and MIND.

KID of a table is torch-fidelity's; the squared MMD of whole sets is here because it needs no subsets
and takes sides of unequal size.  Features come from `features.py`.
"""

from __future__ import annotations

from typing import Any

import numpy.typing as npt
import torch
from torch import Tensor
from torch_fidelity.metric_kid import KEY_METRIC_KID_MEAN, KEY_METRIC_KID_STD, kid_features_to_metric

from speech2image.errors import ProtocolError

_BLOCK_ROWS = 1024


def kernel_distance(
    fake: Tensor,
    real: Tensor,
    *,
    subsets: int = 100,
    subset_size: int = 1000,
    seed: int = 2020,
    **kernel: Any,
) -> tuple[float, float]:
    """Return KID, the mean of the unbiased squared MMD over random subsets, and its deviation.

    Args:
        fake, real: `(N, F)` and `(M, F)` features.
        subsets: how many subsets are drawn.
        subset_size: images of each side in a subset.
        seed: seed of the subsets.
        kernel: torch-fidelity's `kid_kernel...` options; none: the polynomial (x.y / F + 1) ** 3.

    Raises:  ProtocolError: a side has fewer images than a subset.
    Source:  Binkowski et al. 2018; torch-fidelity 0.4.0 `metric_kid`.
    """
    if min(len(fake), len(real)) < max(subset_size, 2):
        raise ProtocolError(
            f"KID over subsets of {subset_size} needs as many images on each side, found {len(fake)}"
            f" generated and {len(real)} real",
            "Generate more images, or name a smaller kid_subset_size and say so.",
        )
    found = kid_features_to_metric(
        fake,
        real,
        kid_subsets=subsets,
        kid_subset_size=subset_size,
        rng_seed=seed,
        verbose=False,
        **kernel,
    )
    return found[KEY_METRIC_KID_MEAN], found[KEY_METRIC_KID_STD]


def sliced_distance(fake: Tensor, real: Tensor, *, directions: int = 1000, seed: int = 2020) -> float:
    """Return MIND, the mean squared gap of sorted projections on random directions, times 3 F.

    Args:
        fake, real: `(N, F)` features, equally many; the value depends on their type through the draw.
        directions: how many unit vectors are drawn, from a CPU generator.
        seed: seed of the draw.

    Raises:  ProtocolError: sides of other sizes.
    Source:  torch-fidelity 5e211a9 `metric_mind` (not in 0.4.0).  Differs: no subsampling of a larger side.
    """
    if fake.shape != real.shape or not len(fake):
        raise ProtocolError(
            f"MIND needs equally many images on each side, found {len(fake)} and {len(real)}",
            "Draw as many of the larger side.",
        )
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randn(directions, fake.shape[1], generator=generator, dtype=fake.dtype)
    axes = torch.nn.functional.normalize(drawn, dim=1).T
    left, right = ((side.cpu() @ axes).sort(dim=0).values for side in (fake, real))
    return 3 * fake.shape[1] * float(((left - right) ** 2).mean())


def squared_mmd(
    fake: Tensor | npt.NDArray[Any],
    real: Tensor | npt.NDArray[Any],
    *,
    sigma: float | None = None,
    unbiased: bool = True,
) -> float:
    """Return the squared maximum mean discrepancy of two whole sets, in float64.

    Args:
        fake, real: `(N, F)` and `(M, F)` features.
        sigma: width of a Gaussian kernel; None: KID's polynomial kernel (x.y / F + 1) ** 3.
        unbiased: leave out each row's kernel with itself.

    Source:  Gretton et al. 2012, eq. 3 and 5.  The scale of CMMD (Jayasumana et al. 2024) is 1000
        times the biased Gaussian value at sigma 10 on CLIP embeddings of unit length.
    Cost:    blocks of rows; memory linear in the number of images.
    """
    left, right = (torch.as_tensor(side).detach().cpu().double() for side in (fake, real))
    if min(len(left), len(right)) < 2 or left.shape[1] != right.shape[1]:
        raise ProtocolError(
            f"an MMD needs two sets of at least two rows of one width, found {tuple(left.shape)} and"
            f" {tuple(right.shape)}",
            "Generate more images.",
        )
    within = [_kernel_sum(side, side, sigma) for side in (left, right)]
    value = -2 * _kernel_sum(left, right, sigma) / (len(left) * len(right))
    for side, total in zip((left, right), within, strict=True):
        size = len(side)
        if unbiased:
            diagonal = (
                size if sigma is not None else float(((side**2).sum(dim=1) / side.shape[1] + 1).pow(3).sum())
            )
            value += (total - diagonal) / (size * (size - 1))
        else:
            value += total / size**2
    return value


def _kernel_sum(left: Tensor, right: Tensor, sigma: float | None) -> float:
    total = 0.0
    for start in range(0, len(left), _BLOCK_ROWS):
        rows = left[start : start + _BLOCK_ROWS]
        if sigma is None:
            block = (rows @ right.T / left.shape[1] + 1).pow(3)
        else:
            gaps = (rows**2).sum(dim=1)[:, None] + (right**2).sum(dim=1) - 2 * rows @ right.T
            block = torch.exp(-gaps.clamp(min=0) / (2 * sigma**2))
        total += float(block.sum())
    return total
