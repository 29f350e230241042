"""The Fréchet distance of two sets of features, from moments or from the features themselves.

Trace of the root of a product of covariances = nuclear norm of the product of their factors, so no
matrix root is taken and singular covariances (fewer images than dimensions) are no special case.
Moments are gathered in `statistics.py`; which images and which network is not decided here.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from scipy.linalg import eigh, lapack
from torch import Tensor

from speech2image.errors import ProtocolError

Array = npt.NDArray[np.float64]
_ACCURACY = 1e-8


@dataclass(frozen=True)
class Distance:
    """A Fréchet distance with what each image contributes to its sampling error.

    Attributes:
        value: the squared distance, the number that is called FID.
        left: `(N,)` influence of each row of the left set, mean 0.
        right: `(M,)` influence of each row of the right set, mean 0.
    """

    value: float
    left: Array
    right: Array

    def deviation(
        self, left_groups: npt.ArrayLike | None = None, right_groups: npt.ArrayLike | None = None
    ) -> float:
        """Return the standard error of `value`; rows of one group count as drawn together.

        Source:  infinitesimal jackknife, Efron 1982, chapter 6.
        """
        variance = 0.0
        for influence, groups in ((self.left, left_groups), (self.right, right_groups)):
            sums = influence
            if groups is not None:
                labels = np.unique(np.asarray(groups), return_inverse=True)[1].reshape(-1)
                sums = np.bincount(labels, influence).astype(np.float64)
            variance += float((sums**2).sum()) / len(influence) ** 2
        return math.sqrt(variance)


def frechet_distance(left: npt.ArrayLike | Tensor, right: npt.ArrayLike | Tensor) -> float:
    """Return the Fréchet distance of two feature sets, `(N, F)` and `(M, F)`, in float64.

    Raises:  ProtocolError: fewer than two rows, other widths, or values that are not finite.
    Source:  Heusel et al. 2017, eq. 6; covariances with N - 1.
    Cost:    products and one symmetric eigenproblem of order F, or, where a side has at most F rows,
        one singular value decomposition of order min(N, M, F).
    """
    rows_left, rows_right = _checked(left, right)
    if min(len(rows_left), len(rows_right)) > rows_left.shape[1]:
        return moments_distance(*_moments(rows_left), *_moments(rows_right))
    shift, left_scaled, right_scaled = _centred(rows_left, rows_right)
    nuclear = torch.linalg.svdvals(_triangle(left_scaled) @ _triangle(right_scaled).T).sum()
    return float(shift @ shift + (left_scaled**2).sum() + (right_scaled**2).sum() - 2 * nuclear)


def frechet_influences(left: npt.ArrayLike | Tensor, right: npt.ArrayLike | Tensor) -> Distance:
    """Return the Fréchet distance with the influence of every image on it.

    With M the product of the centred sets and M = U S V^T, the nuclear norm changes with the weight of
    row i by half of (U S U^T)_ii, so one decomposition gives value and sampling error together.

    Args:    left, right: `(N, F)` and `(M, F)` features.
    Raises:  ProtocolError: as `frechet_distance`.
    Source:  derivative of the nuclear norm; checked against repeated draws in the tests, where a
        bootstrap is two to four times too wide once a side has fewer rows than dimensions.
    Cost:    one singular value decomposition with vectors of order min(N, M, F), a QR of a tall side.
    """
    rows_left, rows_right = _checked(left, right)
    shift, left_scaled, right_scaled = _centred(rows_left, rows_right)
    (left_small, left_basis), (right_small, right_basis) = map(_reduced, (left_scaled, right_scaled))
    u, s, vt = torch.linalg.svd(left_small @ right_small.T, full_matrices=False)
    value = float(shift @ shift + (left_scaled**2).sum() + (right_scaled**2).sum() - 2 * s.sum())
    influences = []
    for scaled, basis, vectors, sign in (
        (left_scaled, left_basis, u, 1),
        (right_scaled, right_basis, vt.T, -1),
    ):
        freedom = len(scaled) - 1
        coordinates = vectors if basis is None else basis @ vectors
        spread = freedom * ((scaled**2).sum(dim=1) - (coordinates**2) @ s)
        along = 2 * sign * math.sqrt(freedom) * (scaled @ shift)
        influence = along + spread
        influences.append((influence - influence.mean()).numpy())
    return Distance(value, *influences)


def moments_distance(
    mean_left: npt.ArrayLike | Tensor,
    covariance_left: npt.ArrayLike | Tensor,
    mean_right: npt.ArrayLike | Tensor,
    covariance_right: npt.ArrayLike | Tensor,
) -> float:
    """Return the Fréchet distance of two Gaussians from means `(F,)` and covariances `(F, F)`."""
    mean_a, cov_a, mean_b, cov_b = map(_double, (mean_left, covariance_left, mean_right, covariance_right))
    if mean_a.shape != mean_b.shape or cov_a.shape != cov_b.shape or cov_a.shape != (len(mean_a),) * 2:
        raise ProtocolError(
            f"means of {tuple(mean_a.shape)} and {tuple(mean_b.shape)} with covariances of"
            f" {tuple(cov_a.shape)} and {tuple(cov_b.shape)} do not belong together",
            "Take both sides from one feature network.",
        )
    shift = mean_a - mean_b
    return float(shift @ shift + cov_a.trace() + cov_b.trace() - 2 * trace_of_root(cov_a, cov_b))


def trace_of_root(left: npt.ArrayLike | Tensor, right: npt.ArrayLike | Tensor) -> float:
    """Return the trace of the root of the product of two covariances, `(F, F)` each.

    With the Cholesky factor L of the left one: the roots of the eigenvalues of L^T (right) L, where
    rounding of the eigenvalues cannot move their sum by 1e-8.  Otherwise the singular values of the product of both
    eigen-factors, which keeps eigenvalues that are zero up to rounding from entering by their root.

    Source:  Heusel et al. 2017, eq. 6, whose reference takes a Schur root of the product.
    Cost:    F^3 / 3 for L, F^3 for the product, 4/3 F^3 for the values; three decompositions where singular.
    """
    cov_a, cov_b = _double(left), _double(right)
    factor, failed = lapack.dpotrf(cov_a.numpy(), lower=1, clean=0)
    if not failed:
        product, _ = lapack.dsygst(cov_b.numpy(), factor, itype=2, lower=1)
        values = eigh(product, eigvals_only=True, driver="evd", overwrite_a=True, check_finite=False)
        if values[0] > 0:
            roots = np.sqrt(values)
            error = np.finfo(np.float64).eps * values[-1] * (0.5 / roots).sum()
            if error < _ACCURACY * roots.sum():
                return float(roots.sum())
    return float(torch.linalg.svdvals(_eigen_factor(cov_a).T @ _eigen_factor(cov_b)).sum())


def _eigen_factor(covariance: Tensor) -> Tensor:
    values, vectors = torch.linalg.eigh(covariance)
    kept = values > values[-1].clamp(min=0) * len(values) * torch.finfo(torch.float64).eps
    return vectors[:, kept] * values[kept].sqrt()


def _double(values: npt.ArrayLike | Tensor) -> Tensor:
    return (
        torch.as_tensor(np.asarray(values) if not isinstance(values, Tensor) else values)
        .detach()
        .cpu()
        .double()
    )


def _checked(left: Any, right: Any) -> tuple[Tensor, Tensor]:
    rows = _double(left), _double(right)
    shapes = [tuple(side.shape) for side in rows]
    if any(len(shape) != 2 or shape[0] < 2 for shape in shapes) or shapes[0][1] != shapes[1][1]:
        raise ProtocolError(
            f"a Fréchet distance needs two sets of at least two rows of one width, found {shapes[0]} and"
            f" {shapes[1]}",
            "Generate more images, and take both sides from one feature network.",
        )
    if not all(bool(side.isfinite().all()) for side in rows):
        raise ProtocolError(
            "features hold values that are not finite", "Check the images and the network's weights."
        )
    return rows


def _moments(rows: Tensor) -> tuple[Tensor, Tensor]:
    mean = rows.mean(dim=0)
    centred = rows - mean
    return mean, centred.T @ centred / (len(rows) - 1)


def _centred(left: Tensor, right: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the difference of means, and both sides so scaled that their Gram matrix is the covariance."""
    means = left.mean(dim=0), right.mean(dim=0)
    scaled = [
        (side - mean) / math.sqrt(len(side) - 1) for side, mean in zip((left, right), means, strict=True)
    ]
    return means[0] - means[1], scaled[0], scaled[1]


def _triangle(matrix: Tensor) -> Tensor:
    """Return the smaller matrix of equal Gram matrix: the R factor of a tall one."""
    if len(matrix) <= matrix.shape[1]:
        return matrix
    return torch.linalg.qr(matrix, mode="r").R


def _reduced(matrix: Tensor) -> tuple[Tensor, Tensor | None]:
    """Return (C, Q) with matrix = Q C and C small; Q is None for the identity."""
    if len(matrix) <= matrix.shape[1]:
        return matrix, None
    q, r = torch.linalg.qr(matrix)
    return r, q
