"""KL(q(x_s | x_t, x_0) || p(x_s | x_t)) straight from a network's scores, with its gradient.

The true posterior has four different values a position, so the sum over the code book needs one pass over the
model's probabilities; the gradient is written out, so that only the scores themselves are kept for it.
How the terms make the training loss is in `variational.py`.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from speech2image.diffusion.process import LOG_MIN, observed_columns, posterior_probs
from speech2image.diffusion.schedule import MaskReplaceSchedule

#: Names of the per-position tensors the two passes share, in the order they are stored.
_ROWS = ("like", "like_seen", "gain", "gain_seen", "inverse", "inverse_seen", "beta_s")


def posterior_terms(
    logits: Tensor, x0: Tensor, x_t: Tensor, t: Tensor, schedule: MaskReplaceSchedule
) -> tuple[Tensor, Tensor]:
    """Compare the model's reverse step with the true one, for each position.

    Args:    logits: `(B, K, L)` scores for x_0, any float type; computed in float32, or float64 if given.
             x0: `(B, L)` int64 real tokens; x_t: `(B, L)` int64; t: `(B,)` int64 in 0 .. T-1.
    Returns: KL(q(x_{t-1} | x_t, x_0) || p(x_{t-1} | x_t)) and -log p(x_0 | x_t), `(B, L)` each.  At t = 0
        the two are the same number.
    Cost:    keeps `logits` for the backward pass, and needs two more tensors of that size inside it.
    Source:  VQ-Diffusion, equations 9 to 11.  Differs: from scores, not from clamped log-probabilities.
    """
    s = t - 1
    wanted = torch.float64 if logits.dtype == torch.float64 else torch.float32
    rows = observed_columns(x_t, t, s, schedule, wanted)
    true = posterior_probs(x0, x_t, t, s, schedule)
    shared = [rows[name].expand(x0.shape) for name in _ROWS]
    weights = [true[name].to(wanted) for name in ("start", "seen", "mask", "other")]
    cross, nll = _CrossEntropy.apply(  # type: ignore[no-untyped-call]
        logits, (x0, rows["column"], rows["masked"]), shared, weights, rows["gamma_s"]
    )
    return cross + _negative_entropy(true, schedule.num_tokens).to(wanted), nll


def _negative_entropy(true: dict[str, Tensor], num_tokens: int) -> Tensor:
    """Sum q log q over the code book and the mask, `(B, L)` float64."""
    others = num_tokens - 1 - (true["seen"] > 0).to(torch.float64)
    single = sum(torch.xlogy(true[name], true[name]) for name in ("start", "seen", "mask"))
    return single + others * torch.xlogy(true["other"], true["other"])


class _CrossEntropy(torch.autograd.Function):
    """-(sum over x_s of q(x_s | x_t, x_0) log p(x_s | x_t)) and -log p(x_0), from scores."""

    @staticmethod
    def forward(
        ctx: Any,
        logits: Tensor,
        indices: tuple[Tensor, Tensor, Tensor],
        shared: list[Tensor],
        weights: list[Tensor],
        gamma_s: Tensor,
    ) -> tuple[Tensor, Tensor]:
        x0, column, masked = indices
        start, seen, mask, other = weights
        scores = logits.to(start.dtype)
        log_norm = scores.logsumexp(1)
        p = scores.sub(log_norm[:, None]).exp_()
        evidence = _evidence(p, column, masked, shared)
        log_model = _model_rows(p, column, shared, evidence).log_()
        first = log_model.gather(1, x0[:, None])[:, 0]
        observed = log_model.gather(1, column[:, None])[:, 0]
        total = other * log_model.sum(1) + (start - other) * first
        total = total + torch.where(seen > 0, (seen - other) * observed, 0.0)
        total = total + torch.where(mask > 0, mask * (gamma_s * evidence).log(), 0.0)
        nll = log_norm - scores.gather(1, x0[:, None])[:, 0]
        ctx.save_for_backward(logits, log_norm, evidence, x0, column, masked, *shared, *weights)
        return -total, nll

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, cross_gradient: Tensor, nll_gradient: Tensor) -> tuple[Tensor | None, ...]:
        logits, log_norm, evidence, x0, column, masked, *rest = ctx.saved_tensors
        shared, (start, seen, mask, other) = rest[: len(_ROWS)], rest[len(_ROWS) :]
        like, like_seen, gain, gain_seen, inverse, inverse_seen, beta_s = shared
        p = logits.to(start.dtype).sub(log_norm[:, None]).exp_()
        # ratio = q(x_s = j | x_t, x_0) / p(x_s = j | x_t)
        ratio = _model_rows(p, column, shared, evidence).reciprocal_()
        index, index_0 = column[:, None], x0[:, None]
        is_first = column == x0
        at_seen = ratio.gather(1, index)[:, 0]
        at_first = ratio.gather(1, index_0)[:, 0] * start
        at_seen = at_seen * torch.where(is_first, start, torch.where(masked, other, seen))
        ratio.mul_(other[:, None])
        ratio.scatter_(1, index, at_seen[:, None]).scatter_(1, index_0, at_first[:, None])
        # d total / d evidence: what every row owes to bbar_s S, and the mask row to gbar_s S.
        spread = like * ratio.sum(1) + torch.where(masked, 0.0, (like_seen - like) * at_seen)
        spread = beta_s * spread + mask / evidence
        blame = ratio.mul_(gain[:, None]).add_((spread * inverse)[:, None])
        blame_seen = at_seen * gain_seen + spread * inverse_seen
        blame.scatter_(1, index, blame_seen[:, None])
        # blame_j p_j is the posterior share of x_0 = j; it sums to one, like p itself.
        blame.neg_().add_(1.0).mul_(cross_gradient[:, None]).add_(nll_gradient[:, None]).mul_(p)
        blame.scatter_add_(1, index_0, -nll_gradient[:, None])
        return blame.to(logits.dtype), None, None, None, None


def _evidence(p: Tensor, column: Tensor, masked: Tensor, shared: list[Tensor]) -> Tensor:
    """Return S = sum over k of p(x_0 = k) / q(x_t | x_0 = k), `(B, L)`; `p` comes back unchanged."""
    inverse, inverse_seen = shared[4], shared[5]
    p_seen = p.gather(1, column[:, None])
    rest = p.scatter_(1, column[:, None], torch.zeros_like(p_seen)).sum(1)
    p.scatter_(1, column[:, None], p_seen)
    return rest * inverse + p_seen[:, 0] * torch.where(masked, inverse, inverse_seen)


def _model_rows(p: Tensor, column: Tensor, shared: list[Tensor], evidence: Tensor) -> Tensor:
    """Return p(x_s = j | x_t) for every token j, `(B, K, L)`."""
    like, like_seen, gain, gain_seen, _, _, beta_s = shared
    spread = beta_s * evidence
    seen = gain_seen * p.gather(1, column[:, None])[:, 0] + like_seen * spread
    # At t = 0 nothing is spread; the floor of exp(-70) stands for an impossible token, as in the released code.
    base, seen = (value.clamp_min(math.exp(LOG_MIN)) for value in (like * spread, seen))
    rows = (p * gain[:, None]).add_(base[:, None])
    return rows.scatter_(1, column[:, None], seen[:, None])
