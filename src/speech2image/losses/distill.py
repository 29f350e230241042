"""Losses that pull speech features towards the features of an image network.

Here: the two terms Li et al. add to the joint embedding, with the released normalisations and the
usual ones.  Both treat the image side as a constant.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

from speech2image.errors import ConfigError


def normalised_l1(speech: Tensor, image: Tensor, per: str = "batch") -> Tensor:
    """Return the mean absolute difference of the two sides after scaling each to norm 1.

    Args:
        speech: `(B, D)` speech features.
        image: `(B, D)` image features; no gradient flows into them.
        per: `batch`: each matrix is divided by its Frobenius norm, as released, so that the value
            shrinks with the root of B; `sample`: each row by its own norm.

    Returns: scalar.
    Raises:  ConfigError: unknown `per`.
    Source:  Li et al. 2020, equation 2; reference `Audio_to_Image/train_audio_encoder.py:
             LossFunc`.  Differs: `sample`.
    """
    image = image.detach()
    if per == "batch":
        difference = speech / speech.norm() - image / image.norm()
    elif per == "sample":
        difference = functional.normalize(speech, dim=1) - functional.normalize(image, dim=1)
    else:
        raise ConfigError(f"normalised L1 per {per!r}", "Use batch (as released) or sample.")
    return difference.abs().mean()


def distillation(speech: Tensor, image: Tensor, temperature: float = 2.0, reduction: str = "mean") -> Tensor:
    """Return KL(image || speech) of the features read as distributions over dimensions.

    Args:
        speech: `(B, D)` speech features, not softened.
        image: `(B, D)` teacher features, softened by `temperature`; no gradient flows into them.
        temperature: divides the teacher's features.
        reduction: `mean`: over B * D elements, as released; `batchmean`: over B.

    Returns: scalar.
    Raises:  ConfigError: unknown reduction.
    Source:  Li et al. 2020, equation 3; reference `Audio_to_Image/train_audio_encoder.py:
             LossFunc`.  Differs: `batchmean` (1000 of one is 1000 / D of the other).
    """
    if reduction not in ("mean", "batchmean"):
        raise ConfigError(f"distillation reduction {reduction!r}", "Use mean (as released) or batchmean.")
    # In float64: the difference of logarithms cancels, and 1,000 times the loss would show its rounding.
    target = functional.log_softmax(image.detach().double() / temperature, dim=1)
    source = functional.log_softmax(speech.double(), dim=1)
    terms = target.exp() * (target - source)
    value = terms.mean() if reduction == "mean" else terms.sum() / len(terms)
    return value.to(speech.dtype)
