"""Adversarial losses of StackGAN-v2 on logits, conditional and unconditional.

Here: the targets of the three kinds of image a discriminator sees, one term for each kind (so that
each can have its own forward and backward pass), and the generator's term.  Values equal binary
cross-entropy on probabilities; logits keep them finite at any precision.
"""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F
from torch import Tensor

ImageKind = Literal["real", "wrong", "fake"]

TARGETS: dict[ImageKind, tuple[bool, bool]] = {
    "real": (True, True),
    "wrong": (False, True),
    "fake": (False, False),
}
"""Conditional and unconditional target of each kind; a wrong image is a real photograph."""


def binary_loss(logits: Tensor, target: bool) -> Tensor:
    """Return the mean binary cross-entropy of `logits` `(B,)` against one target for all.

    Source:  cross-entropy of sigmoid(x) is softplus(-x) for target 1 and softplus(x) for target 0.
    """
    return F.softplus(-logits if target else logits).mean()


def discriminator_term(
    kind: ImageKind, cond_logits: Tensor, uncond_logits: Tensor, uncond_weight: float = 1.0
) -> Tensor:
    """Return the share of the discriminator loss that images of one kind contribute.

    Args:
        kind: `real` (matching), `wrong` (real, of another caption) or `fake`.
        cond_logits: `(B,)`.
        uncond_logits: `(B,)`.
        uncond_weight: weight of the unconditional part; 0 selects the purely conditional form, in
            which wrong and fake count one half each.
    Returns: scalar; the discriminator loss is the sum over the three kinds.
    Source:  StackGAN-v2 `trainer.py`, `train_Dnet`.
    """
    cond_target, uncond_target = TARGETS[kind]
    cond = binary_loss(cond_logits, cond_target)
    if uncond_weight == 0:
        return cond if kind == "real" else 0.5 * cond
    return cond + uncond_weight * binary_loss(uncond_logits, uncond_target)


def generator_term(cond_logits: Tensor, uncond_logits: Tensor, uncond_weight: float = 1.0) -> Tensor:
    """Return the generator's adversarial loss at one size: both logits towards real.

    Args:
        cond_logits: `(B,)` of fakes.
        uncond_logits: `(B,)` of fakes.
        uncond_weight: weight of the unconditional part.
    Source:  StackGAN-v2 `trainer.py`, `train_Gnet`.
    """
    cond = binary_loss(cond_logits, True)
    return cond + uncond_weight * binary_loss(uncond_logits, True) if uncond_weight else cond
