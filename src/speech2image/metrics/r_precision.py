"""R-precision: is a generated image nearer to its own utterance than to 99 mismatched ones?

Embeddings come from the caller, and with them the one question that matters: an encoder that
conditioned the generator makes the number circular, so give one that did not.  Retrieval in whole
galleries is in `retrieval.py`.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from speech2image.errors import ProtocolError
from speech2image.metrics.bootstrap import interval
from speech2image.metrics.protocol import Metric, Protocol, measured
from speech2image.metrics.ranking import Matrix

Ints = npt.NDArray[np.int64]


def mismatched_rows(rows: npt.ArrayLike, groups: npt.ArrayLike, distractors: int = 99, seed: int = 0) -> Ints:
    """Draw for each image the utterances that are wrong for it, `(N, K)` rows without repetition.

    Args:
        rows: `(N,)` row of the right utterance of each image.
        groups: `(M,)` what each utterance belongs to (class, or image); a wrong one is of another group.
        distractors: how many; fewer where some image has fewer wrong utterances, then K of all.
        seed: seed of the draw, which for each image depends on nothing else.

    Raises:  ProtocolError: an image for which every utterance is right.
    """
    rows, labels = np.asarray(rows), np.asarray(groups)
    counts = dict(zip(*np.unique(labels, return_counts=True), strict=True))
    fewest = min(len(labels) - int(counts[label]) for label in labels[rows])
    if fewest < 1:
        raise ProtocolError(
            f"R-precision needs mismatched utterances, but all {len(labels)} belong to one group",
            "Score images of more than one class.",
        )
    distractors = min(distractors, fewest)
    drawn = np.empty((len(rows), distractors), dtype=np.int64)
    for index, row in enumerate(rows):
        rng = np.random.default_rng((seed, index))
        wanted = min(len(labels), 2 * distractors + 8)
        found = rng.choice(len(labels), wanted, replace=False)
        found = found[labels[found] != labels[row]]
        if len(found) < distractors:  # large groups
            found = rng.permutation(np.flatnonzero(labels != labels[row]))
        drawn[index] = found[:distractors]
    return drawn


def r_hits(
    images: Matrix, utterances: Matrix, rows: npt.ArrayLike, mismatched: Ints
) -> npt.NDArray[np.float64]:
    """Return for each image whether its own utterance is the nearest, `(N,)`; ties share the hit.

    Args:
        images: `(N, D)` image embeddings.
        utterances: `(M, D)` utterance embeddings of the same space, compared by cosine.
        rows: `(N,)` row of the right utterance.
        mismatched: `(N, K)` rows of the wrong ones.

    Source:  AttnGAN, section 4.1; arithmetic of DM-GAN.  Differs: an utterance equal to the right
        one in the space of the encoder takes half of the hit, so that an encoder that says the same
        of everything comes out at chance, not at 100 %.
    """
    seen, heard = (
        torch.nn.functional.normalize(torch.as_tensor(x).detach().cpu().double())
        for x in (images, utterances)
    )
    right = (seen * heard[torch.as_tensor(np.asarray(rows))]).sum(dim=1).numpy()
    hits = np.empty(len(seen))
    step = max(1, 4_000_000 // (mismatched.shape[1] * seen.shape[1]))
    for start in range(0, len(seen), step):
        part = slice(start, start + step)
        wrong = torch.einsum("nd,nkd->nk", seen[part], heard[torch.from_numpy(mismatched[part])]).numpy()
        equal = np.isclose(wrong, right[part, None], rtol=0, atol=1e-12)
        nearer = (wrong > right[part, None]) & ~equal
        hits[part] = ~nearer.any(axis=1) / (1 + equal.sum(axis=1))
    return hits


def r_precision(
    images: Matrix,
    utterances: Matrix,
    rows: npt.ArrayLike,
    groups: npt.ArrayLike,
    *,
    protocol: Protocol | None,
    name: str = "r_precision",
    seed: int = 0,
) -> Metric:
    """Measure how often an image is nearest to its own utterance among 99 mismatched ones.

    Args:
        images: `(N, D)` image embeddings.
        utterances: `(M, D)` embeddings of all utterances of the split.
        rows: `(N,)` row of the utterance each image was painted for.
        groups: `(M,)` class of each utterance, or its image where every image is its own class.
        protocol: protocol of the number.
        name: `r_precision`, or with the name of a control behind it.
        seed: seed of the draws and of the bootstrap.

    Returns: the metric; mean and standard deviation over ten folds are in its details, chance is one
        in (distractors + 1).
    Raises:  ProtocolError: as in `mismatched_rows`.
    """
    rows, labels = np.asarray(rows), np.asarray(groups)
    mismatched = mismatched_rows(rows, labels, seed=seed)
    hits = r_hits(images, utterances, rows, mismatched)
    spread = interval(hits, seed=seed, groups=labels[rows])
    folds = np.array([fold.mean() for fold in np.array_split(hits, min(10, len(hits)))])
    distractors = mismatched.shape[1]
    fewer = "" if distractors == 99 else f"; a small gallery: {distractors} instead of 99"
    return measured(
        protocol,
        name,
        spread,
        count=len(hits),
        unit="fraction",
        chance=1 / (distractors + 1),
        note=f"own utterance against {distractors} of other classes{fewer}",
        distractors=distractors,
        utterances=len(labels),
        folds=len(folds),
        fold_mean=float(folds.mean()),
        fold_deviation=float(folds.std()),
    )
