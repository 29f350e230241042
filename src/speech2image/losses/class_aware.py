"""The class-aware term of Li et al.'s fork: codes of one class shall lie closer than others."""

from __future__ import annotations

import torch
from torch import Tensor


def class_aware_loss(features: Tensor, class_ids: Tensor) -> Tensor:
    """Return how much less similar items of one class are than items at large.

    Args:
        features: `(B, F)`, one code an image.
        class_ids: `(B,)` int64.
    Returns: scalar >= 0: max(0, mean of all dot products - mean over same-class pairs without the
        diagonal) / F; 0 when no class appears twice.
    Source:  Li et al. 2020, released fork of StackGAN-v2 `trainer.py`. Differs: weighed by the caller,
             where the fork uses its coefficient only as a switch.
    """
    similarity = features @ features.T
    same = class_ids[:, None] == class_ids[None, :]
    same = same & ~torch.eye(len(class_ids), dtype=torch.bool, device=same.device)
    num_pairs = same.sum()
    same_mean = (similarity * same).sum() / num_pairs.clamp(min=1)
    gap = torch.relu(similarity.mean() - same_mean) / features.shape[1]
    return torch.where(num_pairs > 0, gap, torch.zeros_like(gap))
