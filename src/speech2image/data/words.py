"""Words of utterances: one vector a time step or token, memory-mapped and padded to batches.

Stores are written by `training/conditions.py`; sentences and other rows of one length are in `embeddings.py`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from speech2image.data.corpus import Corpus
from speech2image.data.embeddings import Embeddings
from speech2image.errors import DataError


class WordTable:
    """Words of each utterance of a split, by its place in the split.

    Args:
        corpus: prepared corpus.
        split: its split.
        embeddings: with `words` of every utterance of the split.

    Attributes:
        dim: width D of a word.
        longest: most words of an utterance; every batch is padded to it, so that shapes never change.

    Raises:  DataError: words were not kept, or those of an utterance are missing.
    """

    def __init__(self, corpus: Corpus, split: str, embeddings: Embeddings) -> None:
        if embeddings.words is None:
            raise DataError(
                f"the embeddings of the {split} split hold sentences only, this network reads words",
                "Take an encoder: encoder=from_run or encoder=clip_text.",
            )
        self.store = embeddings.words
        keys = [utterance.key for _, utterance in corpus.utterances(split)]
        self.rows = np.array([self.store.index(key) for key in keys], np.int64)
        lengths = self.store.shapes[self.rows, 0]
        self.dim, self.longest = int(self.store.shapes[self.rows[0], 1]), int(lengths.max())
        self.is_even = bool((lengths == self.longest).all())

    def batch(self, utterances: npt.NDArray[np.int64]) -> tuple[Tensor, Tensor | None]:
        """Return words `(B, longest, D)` float16 and their mask; None where all utterances are as long."""
        words, mask = pad_words([self.store[row] for row in self.rows[utterances]], self.longest)
        return words, None if self.is_even else mask


def pad_words(words: Sequence[npt.NDArray[np.float16]], longest: int) -> tuple[Tensor, Tensor]:
    """Return words `(N, D)` of each utterance as `(B, longest, D)` and `(B, longest)` bool, True at words."""
    padded = np.zeros((len(words), longest, words[0].shape[1]), words[0].dtype)
    mask = np.zeros((len(words), longest), np.bool_)
    for place, own in enumerate(words):
        padded[place, : len(own)], mask[place, : len(own)] = own, True
    return torch.from_numpy(padded), torch.from_numpy(mask)
