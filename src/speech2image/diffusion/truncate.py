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
    Cost:    three histograms of the code book, on a CPU half the time of the sort they stand for; on a GPU the
             order of their sums, and so the last bit of the mass, may change from call to call.
    Source:  VQ-Diffusion, section 4.3 (truncation sampling); reference sampling type `top{r}r`.
    """
    if r >= 1.0:
        return log_p
    p = log_p.float().exp()
    return log_p.masked_fill(p < _smallest_kept(p.transpose(1, 2), r)[:, None], LOG_MIN)


def _smallest_kept(p: Tensor, r: float) -> Tensor:
    """Return the smallest number above which less than `r` of `p` lies, `(B, L)` for `(B, L, K)` in [0, 1].

    Floats above 0 are ordered like their bits read as integers, so the search is exact: it settles ten of the
    thirty bits at a time, by the mass in each of 1024 intervals, and below and above all of them.
    """
    bits = p.view(torch.int32)
    found = torch.zeros_like(bits[..., :1])
    for shift in (20, 10, 0):
        interval = ((bits >> shift) - (found << 10)).clamp_(-1, 1024).add_(1).long()
        mass = p.new_zeros(*p.shape[:-1], 1026).scatter_add_(-1, interval, p)
        beyond = mass.flip(-1).cumsum(-1).flip(-1)[..., 2:]
        found = (found << 10) + (beyond >= r).sum(-1, keepdim=True, dtype=torch.int32)
    return found[..., 0].view(torch.float32)


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
