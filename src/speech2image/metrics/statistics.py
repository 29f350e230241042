"""Mean and covariance of features as they stream by, without keeping them.

The running sums are float64 and stay on the device of the features; two streams merge exactly, so
ranks and halves can be scored together.  What the moments are for is in `frechet.py`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from speech2image.errors import ProtocolError


class Moments:
    """Count, mean and scatter of rows seen so far.

    Attributes:
        count: rows seen.
        mean: `(F,)` float64.
        scatter: `(F, F)` float64, the sum of outer products of deviations from the mean.

    Source:  Chan, Golub and LeVeque 1983, eq. 2.1; stable where sums of squares cancel.
    Cost:    2 B F^2 floating operations a batch, 8 F^2 bytes; nothing is copied off the device.
    """

    def __init__(self, dim: int, device: torch.device | str = "cpu") -> None:
        self.count = 0
        self.mean = torch.zeros(dim, dtype=torch.float64, device=device)
        self.scatter = torch.zeros(dim, dim, dtype=torch.float64, device=device)

    def update(self, features: Tensor) -> None:
        """Take in a batch of features, `(B, F)`."""
        if not len(features):
            return
        rows = features.detach().double()
        batch = Moments.__new__(Moments)
        batch.count, batch.mean = len(rows), rows.mean(dim=0)
        centred = rows - batch.mean
        batch.scatter = centred.T @ centred
        self.merge(batch)

    def merge(self, other: Moments) -> None:
        """Take in the rows of another stream of the same width."""
        if other.mean.shape != self.mean.shape:
            raise ProtocolError(
                f"moments of {len(other.mean)} dimensions cannot join those of {len(self.mean)}",
                "Take all features from one network.",
            )
        total = self.count + other.count
        if not total:
            return
        shift = other.mean.to(self.mean.device) - self.mean
        self.scatter += other.scatter.to(self.mean.device)
        self.scatter.addr_(shift, shift, alpha=self.count * other.count / total)
        self.mean += shift * (other.count / total)
        self.count = total

    def covariance(self) -> Tensor:
        """Return the unbiased covariance, `(F, F)` float64.

        Raises:  ProtocolError: fewer than two rows.
        """
        if self.count < 2:
            raise ProtocolError(
                f"a covariance needs at least two images, found {self.count}", "Generate for the whole split."
            )
        return self.scatter / (self.count - 1)
