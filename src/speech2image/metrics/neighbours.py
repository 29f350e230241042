"""Precision, recall, density and coverage: who lies in whose neighbourhood, image by image.

Each measure is a mean over images, so its interval is that of a mean; the flags are returned for it.
Precision and recall are those of torch-fidelity, to the last digit; density and coverage are not in it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from speech2image.errors import ProtocolError

_BLOCK_ROWS = 2048


@dataclass(frozen=True)
class Neighbourhoods:
    """What each image says about the neighbourhoods of the other side.

    Attributes:
        precision: `(N,)` is the generated image within the ball of any real one.
        recall: `(M,)` is the real image within the ball of any generated one.
        density: `(N,)` real balls that hold the generated image, over k.
        coverage: `(M,)` does the ball of the real image hold a generated one.
    """

    precision: npt.NDArray[np.bool_]
    recall: npt.NDArray[np.bool_]
    density: npt.NDArray[np.float64]
    coverage: npt.NDArray[np.bool_]

    @property
    def f_score(self) -> float:
        """Harmonic mean of precision and recall, 0 where both are."""
        return f_score(float(self.precision.mean()), float(self.recall.mean()))


def f_score(precision: float, recall: float) -> float:
    """Return the harmonic mean as torch-fidelity guards it (denominator at least 1e-5)."""
    return 2 * precision * recall / max(1e-5, precision + recall)


def neighbourhoods(fake: Tensor, real: Tensor, prc_k: int = 3, prdc_k: int = 5) -> Neighbourhoods:
    """Find which images lie within the k-th-neighbour balls of the other side.

    Args:
        fake, real: `(N, F)` and `(M, F)` features.
        prc_k: neighbour whose distance is the radius for precision and recall (itself not counted).
        prdc_k: the same for density and coverage, of real balls only.

    Raises:  ProtocolError: a side has no k-th neighbour.
    Source:  Kynkäänniemi et al. 2019, eq. 1 to 3, as torch-fidelity 0.4.0 `metric_prc`; Naeem et al.
        2020, eq. 2 to 4 (`<` there, `<=` here: equal but for exact ties).
    Cost:    (N + M)^2 distances in blocks; memory linear in the number of images.
    """
    needed = max(prc_k, prdc_k) + 1
    if min(len(fake), len(real)) < needed:
        raise ProtocolError(
            f"neighbourhoods of {needed - 1} neighbours need at least {needed} images on each side, found"
            f" {len(fake)} generated and {len(real)} real",
            "Generate for the whole split.",
        )
    prc_radius, prdc_radius = _radii(real, prc_k, prdc_k)
    fake_radius = _radii(fake, prc_k)[0]
    recall = np.zeros(len(real), dtype=bool)
    covered = np.zeros(len(real), dtype=bool)
    precision, density = [], []
    for start in range(0, len(fake), _BLOCK_ROWS):
        rows = slice(start, start + _BLOCK_ROWS)
        gaps = torch.cdist(fake[rows], real)
        precision.append((gaps <= prc_radius).any(dim=1))
        held = gaps <= prdc_radius
        density.append(held.sum(dim=1).double() / prdc_k)
        covered |= held.any(dim=0).cpu().numpy()
        recall |= (gaps <= fake_radius[rows, None]).any(dim=0).cpu().numpy()
    return Neighbourhoods(
        torch.cat(precision).cpu().numpy(), recall, torch.cat(density).cpu().numpy(), covered
    )


def _radii(side: Tensor, *ks: int) -> list[Tensor]:
    """Return the distance of each row to its k-th neighbour, itself not counted, `(N,)` for each k."""
    found: list[list[Any]] = [[] for _ in ks]
    for start in range(0, len(side), _BLOCK_ROWS):
        nearest = (
            torch.cdist(side[start : start + _BLOCK_ROWS], side)
            .topk(max(ks) + 1, dim=1, largest=False)
            .values
        )
        for place, k in zip(found, ks, strict=True):
            place.append(nearest[:, k])
    return [torch.cat(place) for place in found]
