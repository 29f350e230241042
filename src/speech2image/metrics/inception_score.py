"""The inception score of logits, with the splitting rules of the released scripts.

The arithmetic of a split is torch-fidelity's; here is which images a split holds.  Published tables
give the deviation over splits, which is not an error of the mean.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import torch
from torch import Tensor
from torch_fidelity.metric_isc import KEY_METRIC_ISC_MEAN, KEY_METRIC_ISC_STD, isc_features_to_metric

from speech2image.errors import ProtocolError

_SMALLEST_LOG_PROB = -600.0


def inception_score(
    logits: Tensor,
    splits: int = 10,
    *,
    shuffle_seed: int | None = 2020,
    drop_rest: bool = False,
    batch: int = 0,
) -> tuple[float, float]:
    """Return the mean and the population deviation of the inception score over splits.

    Args:
        logits: `(N, classes)`, in the order of the images.
        splits: number of splits S.
        shuffle_seed: seed of the order; None: as they come (captions of an image then share a split).
        drop_rest: splits of N // S images, the remainder dropped (S2IGAN, Speak the Art); otherwise
            split i holds rows floor(i N / S) to floor((i + 1) N / S) (torch-fidelity, StackGAN).
        batch: images beyond a multiple of it are dropped first (StackGAN's TensorFlow script: 64).

    Raises:  ProtocolError: fewer images than splits.
    Source:  Salimans et al. 2016; torch-fidelity 0.4.0 `metric_isc`, S2IGAN `inception_score.py`,
        StackGAN-inception-model `inception_score.py`.
    """
    if shuffle_seed is not None:
        logits = logits[np.random.RandomState(shuffle_seed).permutation(len(logits))]
    if batch:
        logits = logits[: len(logits) - len(logits) % batch]
    if drop_rest:
        logits = logits[: len(logits) // splits * splits]
    if len(logits) < max(splits, 1) or splits < 1:
        raise ProtocolError(
            f"an inception score of {splits} splits needs at least as many images, found {len(logits)}"
            " (after the protocol's rule for incomplete batches)",
            "Generate for the whole split: speech2image generate run=<run folder>.",
        )
    log_probs = torch.log_softmax(logits.detach().cpu().double(), dim=1)
    log_probs = log_probs.clamp(min=_SMALLEST_LOG_PROB)  # 0 log 0 is 0 in the limit, but not in arithmetic
    found = isc_features_to_metric(log_probs, splits, shuffle=False)
    return found[KEY_METRIC_ISC_MEAN], found[KEY_METRIC_ISC_STD]


def negative_log_top_probability(logits: Tensor, splits: int = 10) -> tuple[float, float]:
    """Return the mean and deviation over splits of -log of the largest class probability.

    Source:  StackGAN-v2 `trainer.py: negative_log_posterior_probability`, printed beside its score.
    """
    worst = -torch.log_softmax(logits.detach().cpu().double(), dim=1).amax(dim=1)
    ends = [index * len(worst) // splits for index in range(splits + 1)]
    means = [float(worst[left:right].mean()) for left, right in pairwise(ends)]
    return float(np.mean(means)), float(np.std(means))
