"""Change a predicted distribution before drawing from it: truncation and guidance.

Pure functions on log p(x_0 | x_t) `(B, K, L)`.  They are applied by `predictor.py`, guidance first.
"""

from __future__ import annotations

import torch
from torch import Tensor

from speech2image.diffusion.process import LOG_MIN, log_softmax


def top_r(log_p: Tensor, r: float) -> Tensor:
    """Keep a token if all better ones together have less than `r`; the best is always kept.

    Args:    log_p: `(B, K, L)`; r: share of the mass to keep, in (0, 1]; 1 or more changes nothing.
    Returns: `(B, K, L)`, dropped tokens at -70, not renormalised.
    Cost:    thirty-one sums over the code book, on a CPU half the time of the sort they stand for.
    Source:  VQ-Diffusion, section 4.3 (truncation sampling); reference sampling type `top{r}r`.
    """
    if r >= 1.0:
        return log_p
    # Find the smallest threshold above which less than r lies, by halving; floats above 0 are ordered like their
    # bits read as integers, so the search is exact.
    p = log_p.float().exp()
    high = p.amax(1, keepdim=True).view(torch.int32)
    low = torch.zeros_like(high)
    for _ in range(31):
        middle = low + (high - low) // 2
        enough = torch.where(p > middle.view(torch.float32), p, 0.0).sum(1, keepdim=True) < r
        low, high = torch.where(enough, low, middle + 1), torch.where(enough, middle, high)
    return log_p.masked_fill(p < high.view(torch.float32), LOG_MIN)


def top_k(log_p: Tensor, k: int) -> Tensor:
    """Keep the `k` best tokens of each position.

    Args:    log_p: `(B, K, L)`; k: at least 1; K or more changes nothing.
    Returns: `(B, K, L)`, dropped tokens at -70, not renormalised.
    Source:  reference sampling type `top{k}p`.
    """
    if k >= log_p.shape[1]:
        return log_p
    values, order = log_p.topk(k, dim=1)
    return torch.full_like(log_p, LOG_MIN).scatter(1, order, values)


def guide(log_cond: Tensor, log_uncond: Tensor, scale: float) -> Tensor:
    """Extrapolate from the unconditional to the conditional prediction (classifier-free guidance).

    Args:    log_cond, log_uncond: `(B, K, L)` log p(x_0 | x_t); scale: 1 returns `log_cond` itself.
    Returns: `(B, K, L)` in [-70, 0], normalised.
    Source:  Improved VQ-Diffusion (arXiv 2205.16007), equation 7: log p_u + scale (log p_c - log p_u).
    """
    if abs(scale - 1.0) < 1e-3:
        return log_cond
    return log_softmax(torch.lerp(log_uncond, log_cond, scale)).clamp_min(LOG_MIN)
