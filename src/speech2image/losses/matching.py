"""Losses that bring speech and images of one meaning together, and in-batch accuracy.

Here: the structured joint embedding of Li et al. and the masked cross entropy of S2IGAN, as plain
functions of two `(B, D)` matrices whose rows belong together.  Distillation is in `distill.py`,
recall over whole galleries in `metrics/retrieval.py`.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from speech2image.errors import ConfigError

DIRECTIONS = ("column", "row", "both")


def joint_embedding_loss(
    image: Tensor,
    speech: Tensor,
    class_ids: Tensor,
    diff_weight: float = 1.0,
    same_weight: float = 0.1,
    direction: str = "column",
) -> Tensor:
    """Penalise pairs that score above the matching pair, with margin 1 between classes.

    Args:
        image: `(B, D)` image features, any scale.
        speech: `(B, D)` speech features; row i belongs to row i of `image`.
        class_ids: `(B,)` int64.
        diff_weight: weight of pairs of different classes, margin 1.
        same_weight: weight of pairs of the same class, margin 0.
        direction: which matching pair a score of image i and speech j is held against: `column`:
            speech j's, as released; `row`: image i's, as in Reed et al. 2016; `both`: their mean.

    Returns: scalar, the sum over all pairs divided by B * B.
    Raises:  ConfigError: unknown direction.
    Source:  Li et al. 2020, equation 1; reference `Audio_to_Image/jel.py`.  Differs: `row`, `both`.
    """
    if direction not in DIRECTIONS:
        raise ConfigError(
            f"joint embedding direction is {direction!r}", f"Use one of: {', '.join(DIRECTIONS)}."
        )
    scores = image @ speech.T
    same = class_ids[:, None] == class_ids[None, :]
    weight = torch.full_like(scores, diff_weight).masked_fill(same, same_weight)
    margin = (~same).to(scores.dtype)
    matching = scores.diagonal()
    terms = []
    if direction in ("column", "both"):
        terms.append((weight * functional.relu(scores - matching[None, :] + margin)).mean())
    if direction in ("row", "both"):
        terms.append((weight * functional.relu(scores - matching[:, None] + margin)).mean())
    return torch.stack(terms).mean()


def matching_scores(
    image: Tensor, speech: Tensor, class_ids: Tensor | None = None, gamma: float = 10.0
) -> Tensor:
    """Return `(B, B)` scores, gamma times cosine, image i against speech j.

    Args:
        image: `(B, D)`, any scale.
        speech: `(B, D)`, any scale.
        class_ids: `(B,)` int64: other rows of the same class get minus infinity; None: none do.
        gamma: inverse temperature.
    """
    scores = gamma * functional.normalize(image, dim=1) @ functional.normalize(speech, dim=1).T
    if class_ids is None:
        return scores
    same = class_ids[:, None] == class_ids[None, :]
    others = same & ~torch.eye(len(same), dtype=torch.bool, device=same.device)
    return scores.masked_fill(others, -torch.inf)


def matching_loss(
    image: Tensor, speech: Tensor, class_ids: Tensor | None = None, gamma: float = 10.0
) -> tuple[Tensor, Tensor]:
    """Ask each image for its speech and each speech for its image among the batch.

    Args:
        image: `(B, D)`, any scale.
        speech: `(B, D)`; row i belongs to row i of `image`.
        class_ids: `(B,)` int64: other rows of the same class are left out; None: all compete.
        gamma: factor on the cosine.

    Returns: cross entropies, image to speech and speech to image, scalars.
    Source:  S2IGAN, equations 3 to 6; reference `steps/pre_util.py: batch_loss`.  Differs: any
             batch size.
    """
    scores = matching_scores(image, speech, class_ids, gamma)
    target = torch.arange(len(scores), device=scores.device)
    return functional.cross_entropy(scores, target), functional.cross_entropy(scores.T, target)


def prototype_loss(image: Tensor, prototypes: Tensor, class_ids: Tensor, gamma: float = 10.0) -> Tensor:
    """Ask each image for its class among the mean speech embeddings of all classes.

    Args:
        image: `(B, D)`, any scale.
        prototypes: `(classes, D)`, mean speech embedding of each class, any scale.
        class_ids: `(B,)` int64.
        gamma: factor on the cosine.

    Returns: cross entropy, scalar.
    Source:  ours: `matching_loss` whose rivals are all classes of the training split instead of those
             that happen to be in the batch, so that species that differ in one part compete.
    """
    scores = matching_scores(image, prototypes, None, gamma)
    return functional.cross_entropy(scores, class_ids)


def distinctive_loss(image_logits: Tensor, speech_logits: Tensor, class_ids: Tensor) -> tuple[Tensor, Tensor]:
    """Ask both embeddings for the class, through logits of one shared classifier.

    Args:
        image_logits: `(B, classes)` of the image embeddings.
        speech_logits: `(B, classes)` of the speech embeddings.
        class_ids: `(B,)` int64.

    Returns: cross entropies of images and of speech, scalars.
    Source:  S2IGAN, equation 7; reference `steps/pre_traintest.py`.  Differs: none.
    """
    image_term = functional.cross_entropy(image_logits, class_ids)
    return image_term, functional.cross_entropy(speech_logits, class_ids)


def retrieval_accuracy(queries: Tensor, gallery: Tensor, class_ids: Tensor | None = None) -> Tensor:
    """Return the share of queries whose best-scoring item of the batch is right.

    Args:
        queries: `(B, D)`; scores are raw dot products: normalise first for cosines.
        gallery: `(B, D)`; row i belongs to row i of `queries`.
        class_ids: `(B,)`: an item of the same class is right; None: only the own item is.

    Returns: scalar in [0, 1], on the device.
    Source:  Li et al. log it with images as queries and no classes.
    """
    best = (queries @ gallery.T).argmax(dim=1)
    if class_ids is None:
        return (best == torch.arange(len(best), device=best.device)).float().mean()
    return (class_ids[best] == class_ids).float().mean()
