"""Linear discriminant analysis of sentence embeddings, as speaker recognition uses it on its embeddings.

A speech encoder spreads what distinguishes classes unevenly: "red" somewhere in the caption moves an embedding
much further than "red" of the body against "red" of the belly, and voices move it too.  The projection keeps the
directions in which classes differ most compared with the utterances of one class, and gives each the same
variance, so that a generator hears all of them.  Where embeddings come from is in `training/conditions.py`.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional

from speech2image.errors import DataError


class Discriminant(nn.Module):
    """Project sentences on their most discriminant directions, to unit vectors.

    Args:
        sentence_dim: D, size of the embeddings.
        num_directions: k, size of the projection.
    Source:  Fisher 1936 and Rao 1948; in speech with unit length: Snyder et al., "X-vectors", 2018, section 3.
        Differs: each direction has the same variance over the training utterances, not within their classes.
    """

    mean: Tensor
    directions: Tensor

    def __init__(self, sentence_dim: int, num_directions: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(sentence_dim))
        self.register_buffer("directions", torch.zeros(sentence_dim, num_directions))

    def forward(self, sentence: Tensor) -> Tensor:
        """Return unit projections `(B, k)` of sentences `(B, D)`."""
        return functional.normalize((sentence - self.mean) @ self.directions, dim=1)

    @classmethod
    def fit(
        cls, sentences: npt.NDArray[np.float32], class_ids: npt.NDArray[np.int64], most_directions: int
    ) -> Discriminant:
        """Fit on training utterances.

        Args:
            sentences: `(U, D)`.
            class_ids: `(U,)`, class of each.
            most_directions: k; fewer where embeddings or classes have fewer (classes - 1).
        Raises:  DataError: there is one class only, or a number that is none.
        Source:  generalised eigenvectors of the scatter between classes and the scatter within, the latter as
            Ledoit and Wolf, 2004, estimate it from few utterances.
        """
        from scipy.linalg import eigh
        from sklearn.covariance import ledoit_wolf

        _, label, count = np.unique(class_ids, return_inverse=True, return_counts=True)
        num_directions = min(most_directions, sentences.shape[1], len(count) - 1)
        if num_directions < 1:
            raise DataError(
                "encoder.lda_dim: all training utterances are of one class, which leaves nothing to tell apart",
                "Type: encoder.lda_dim=null",
            )
        bad = np.flatnonzero(~np.isfinite(sentences).all(1))
        if len(bad):
            raise DataError(
                f"{len(bad)} of {len(sentences)} embeddings hold values that are not finite, first row {bad[0]}",
                "Make them again: delete `embeddings` in the encoder's run folder; train the encoder again if they stay.",
            )
        mean = sentences.mean(0, dtype=np.float64)
        centred = sentences - mean
        class_means = np.zeros((len(count), sentences.shape[1]))
        np.add.at(class_means, label, centred)
        class_means /= count[:, None]
        within, _ = ledoit_wolf(centred - class_means[label], assume_centered=True)
        between = (class_means.T * count) @ class_means / len(sentences)
        directions = eigh(between, within)[1][:, ::-1][:, :num_directions]
        directions = directions / (centred @ directions).std(0)
        fitted = cls(sentences.shape[1], num_directions)
        fitted.mean.copy_(torch.from_numpy(mean))
        fitted.directions.copy_(torch.from_numpy(directions.copy()))
        return fitted
