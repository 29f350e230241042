"""Orders and ranks behind the retrieval measures, and the released scripts' ways to count them.

Here: plain numbers for each query, without protocol and without interval; `retrieval.py` makes metrics
of them.  What a released script does wrong stands here as a function of its own (`released_gallery`,
`whole_batches`), so that a protocol can ask for it by name.  Ties are broken by the lowest gallery row.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Matrix = Tensor | npt.NDArray[Any]
Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
_BLOCK_SCORES = 4_000_000


def cosine_scores(queries: Matrix, gallery: Matrix) -> Tensor:
    """Return cosine similarities `(Q, G)` float64 of rows of `(Q, D)` and `(G, D)`.

    Source:  S2IGAN `Recall_evaluate.py`: 1e-10 is added to each entry, then rows are normalised.
    """
    left, right = (torch.as_tensor(x).detach().cpu().double() + 1e-10 for x in (queries, gallery))
    return torch.nn.functional.normalize(left) @ torch.nn.functional.normalize(right).T


def ranked(queries: Matrix, gallery: Matrix, depth: int | None = None) -> Ints:
    """Return the `depth` nearest gallery rows of each query, nearest first, `(Q, depth)`.

    Args:
        queries: `(Q, D)`.
        gallery: `(G, D)`; compared by cosine.
        depth: None: the whole gallery.

    Source:  stable descending sort; the released scripts leave the order of ties open.
    Cost:    Q times G similarities, in blocks.
    """
    step = max(1, _BLOCK_SCORES // len(gallery))
    parts = []
    for start in range(0, len(queries), step):
        scores = cosine_scores(queries[start : start + step], gallery)
        parts.append(scores.sort(dim=1, descending=True, stable=True).indices[:, :depth].numpy())
    return np.concatenate(parts)


def ranked_hits(
    queries: Matrix,
    gallery: Matrix,
    query_ids: npt.ArrayLike,
    gallery_ids: npt.ArrayLike,
    depth: int | None = None,
) -> npt.NDArray[np.bool_]:
    """Return which of the `depth` nearest gallery rows have the id of their query, `(Q, depth)`."""
    order = ranked(queries, gallery, depth)
    hits: npt.NDArray[np.bool_] = np.asarray(gallery_ids)[order] == np.asarray(query_ids)[:, None]
    return hits


def first_hit_ranks(hits: npt.NDArray[np.bool_]) -> Ints:
    """Return the rank of the first hit of each query, `(Q,)`, from 1; 0 where there is none.

    >>> first_hit_ranks(np.array([[False, True], [False, False]])).tolist()
    [2, 0]
    """
    ranks: Ints = np.where(hits.any(axis=1), hits.argmax(axis=1) + 1, 0)
    return ranks


def average_precisions(hits: npt.NDArray[np.bool_]) -> Floats:
    """Return the average precision of each query over all its hits, `(Q,)`; 0 where there is none.

    Source:  S2IGAN `mAP_evaluate.py`: mean over the hits j of (j + 1) / (rank + 1), from 0.
    """
    found = hits.cumsum(axis=1) / np.arange(1, hits.shape[1] + 1)
    values: Floats = (found * hits).sum(axis=1) / np.maximum(hits.sum(axis=1), 1)
    return values


def precisions_at(hits: npt.NDArray[np.bool_], k: int) -> Floats:
    """Return the share of hits among the first k of each query, `(Q,)`.

    Source:  S2IGAN `mAP_evaluate.py`, which prints it as R@k.
    """
    values: Floats = hits[:, :k].mean(axis=1)
    return values


def recalls(hits: npt.NDArray[np.bool_], ks: Sequence[int]) -> Floats:
    """Return the share of queries with a hit among the first k, for each k, `(len(ks),)`."""
    return np.array([hits[:, :k].any(axis=1).mean() for k in ks])


def speech_image_recalls(
    images: Matrix, speech: Matrix, image_ids: npt.ArrayLike, speech_ids: npt.ArrayLike,
    ks: Sequence[int] = (1, 5, 10),
) -> tuple[Floats, Floats]:  # fmt: skip
    """Return recalls with speech as query and with images as query, `(len(ks),)` each.

    Source:  S2IGAN `steps/pre_util.py: retrieval_evaluation_all` (A_* and I_*).  Its `calc_recalls` is
        this for paired rows with the two names exchanged.
    """
    by_speech = ranked_hits(speech, images, speech_ids, image_ids)
    by_image = ranked_hits(images, speech, image_ids, speech_ids)
    return recalls(by_speech, ks), recalls(by_image, ks)


def median_rank(hits: npt.NDArray[np.bool_]) -> int:
    """Return the lower median of the ranks of the first hits, from 0.

    Source:  S2IGAN `steps/pre_util.py: retrieval_evaluation_all`.
    """
    ranks = np.sort(first_hit_ranks(hits) - 1)
    return int(ranks[(len(ranks) - 1) // 2])


# ---- as released ------------------------------------------------------------------------------
def whole_batches(count: int, batch_size: int) -> int:
    """Return how many of `count` items a loader keeps that drops its last incomplete batch.

    >>> whole_batches(995, 7), whole_batches(29_330, 7), whole_batches(5, 0)
    (994, 29330, 5)
    """
    return count if batch_size < 1 else count // batch_size * batch_size


def released_gallery(num_images: int, per_image: int, length: int = 5, divisor: int = 10) -> Ints:
    """Return the rows of an image-major gallery that Speak the Art's recall script looks at.

    The script takes its data set to hold `length` generated images of each real one, but reads item i
    as image i // `divisor`, caption i % `divisor`: with ten captions only the first half of the images
    is in the gallery, so that recall cannot reach much more than one half.

    Args:
        num_images: real images.
        per_image: generated images of each of them.
        length: images of each that the script counts.
        divisor: images of each that its index assumes.

    Returns: rows `(num_images * length,)` where they exist; all rows where the rule does not fit
        (`per_image` other than `divisor`: Flickr8k, whose branch of the script is right).
    Source:  Speak the Art `Recall_evaluate.py` (CUB).

    >>> released_gallery(4, 10)[[0, -1]].tolist(), len(released_gallery(4, 5))
    ([0, 19], 20)
    """
    if per_image != divisor:
        return np.arange(num_images * per_image)
    item = np.arange(num_images * length)
    return item // divisor * per_image + item % divisor
