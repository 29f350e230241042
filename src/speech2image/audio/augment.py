"""Augmentation of acoustic features on the device, from addressed randomness.

Here: SpecAugment over whole padded batches, without a loop over the batch.  Draws come from a
numpy generator the caller addresses, so a resumed run repeats them.  Recipes that leave all
counts at 0 are untouched.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def spec_augment(
    features: Tensor,
    lengths: Tensor,
    rng: np.random.Generator,
    num_time_masks: int = 0,
    max_time_frames: int = 0,
    num_freq_masks: int = 0,
    max_freq_bands: int = 0,
    fill: float = 0.0,
    share: tuple[int, int] = (0, 1),
) -> Tensor:
    """Blank random stretches of time and random mel bands of each utterance.

    Args:
        features: `(B, T, M)` float32, padded at the end; not changed.
        lengths: `(B,)` int64, valid frames; stretches of time lie inside them.
        rng: source of the draws.
        num_time_masks: stretches per utterance.
        max_time_frames: longest stretch, and never more than half of the utterance; widths are
            uniform from 0.
        num_freq_masks: groups of bands per utterance.
        max_freq_bands: widest group.
        fill: value of what is blanked.
        share: `(number, of)`: these rows are that one of so many equal parts of the batch that is drawn for.

    Returns: `(B, T, M)` float32, a copy; padding as it was.
    Source:  Park et al. 2019, SpecAugment, section 2, without warping.  Differs: the half of the
             utterance as limit.
    """
    batch, frames, bands = features.shape
    valid = lengths.to(features.device)[:, None]
    blank = torch.zeros(batch, frames, bands, dtype=torch.bool, device=features.device)
    if num_time_masks and max_time_frames:
        widest = torch.minimum(valid // 2, torch.full_like(valid, max_time_frames))
        hit = _stretches(rng, num_time_masks, valid, widest, frames, share)
        blank |= hit[:, :, None]
    if num_freq_masks and max_freq_bands:
        total = torch.full_like(valid, bands)
        hit = _stretches(rng, num_freq_masks, total, total.clamp_max(max_freq_bands), bands, share)
        blank |= hit[:, None, :]
    inside = torch.arange(frames, device=features.device) < valid
    return features.masked_fill(blank & inside[:, :, None], fill)


def _stretches(
    rng: np.random.Generator, count: int, extent: Tensor, widest: Tensor, size: int, share: tuple[int, int]
) -> Tensor:
    """Return `(B, size)` bool, True inside any of `count` stretches of each row."""
    (number, of), batch = share, extent.shape[0]
    draws = rng.random((2, of * batch, count), dtype=np.float32)[:, number * batch : (number + 1) * batch]
    share_width, share_start = torch.from_numpy(draws).to(extent.device)
    width = (share_width * (widest + 1)).floor()
    start = (share_start * (extent - width + 1)).floor()
    place = torch.arange(size, device=extent.device)[None, None, :]
    hit = (place >= start[:, :, None]) & (place < (start + width)[:, :, None])
    return hit.any(dim=1)
