"""The mask-and-replace process in closed form on indices: forward draws and reverse posteriors.

Every function works on tokens `(B, L)` and, where a network's answer enters, on one `(B, K, L)` tensor; nothing
is ever written as a one-hot over the code book.  Tokens are 0 .. K-1, the mask is K; steps are `(B,)`, s = -1 is
the clean image.  Chains built from these functions are in `samplers.py`, the training loss in `variational.py`.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from speech2image.diffusion.schedule import MaskReplaceSchedule, Transition

#: Log-probabilities are kept in [LOG_MIN, 0], as in the released code.
LOG_MIN = -70.0
#: What the released code writes for "impossible" before it takes logarithms.
IMPOSSIBLE = 1e-30


def start_log_probs(logits: Tensor) -> Tensor:
    """Turn a network's scores into log p(x_0 | x_t).

    Args:    logits: `(B, K, L)`, any float type.
    Returns: `(B, K, L)` float32 in [-70, 0].
    Source:  reference `predict_start`.  Differs: float32 instead of float64 inside the softmax (2e-7), no mask row.
    """
    return log_softmax(logits.float()).clamp_min(LOG_MIN)


def log_softmax(scores: Tensor) -> Tensor:
    """Normalise over the code book, `(B, K, L)`, laid out so that the tokens of a position are neighbours in memory."""
    return F.log_softmax(scores.transpose(1, 2), dim=-1).transpose(1, 2)


def transition_prob(x_to: Tensor, x_from: Tensor, move: Transition, mask_index: int) -> Tensor:
    """Give q(x_to | x_from) for each position.

    Args:    x_to, x_from: `(B, L)` int64, tokens or the mask K.
    Returns: `(B, L)` float64.
    Source:  VQ-Diffusion, equation 7: a mask stays, a token goes to the mask with gamma, to itself with
        alpha + beta, to each other token with beta.
    """
    alpha, beta, gamma = (value[:, None] for value in move)
    from_mask, to_mask = x_from == mask_index, x_to == mask_index
    token = torch.where(to_mask, gamma, beta + alpha * (x_to == x_from))
    return torch.where(from_mask, to_mask.to(token.dtype), token)


def sample_marginal(x0: Tensor, t: Tensor, schedule: MaskReplaceSchedule, uniform: Tensor) -> Tensor:
    """Draw x_t from q(x_t | x_0).

    Args:    x0: `(B, L)` int64 real tokens; t: `(B,)` int64 in -1 .. T-1.
             uniform: `(B, L, 2)` in [0, 1): which of kept, masked, replaced; replaced by which.
    Returns: `(B, L)` int64 in 0 .. K.
    Source:  VQ-Diffusion, equation 8.
    """
    alpha, _, gamma = (value[:, None] for value in schedule.marginal(t))
    other = pick_token(uniform[..., 1], schedule.num_tokens)
    which = uniform[..., 0]
    x_t = torch.where(which < alpha + gamma, schedule.mask_index, other)
    return torch.where(which < alpha, x0, x_t)


def pick_token(uniform: Tensor, num_tokens: int) -> Tensor:
    """Turn uniform numbers in [0, 1) into equally likely tokens 0 .. K-1."""
    return (uniform * num_tokens).long().clamp_max(num_tokens - 1)


def start_tokens(schedule: MaskReplaceSchedule, uniform: Tensor) -> Tensor:
    """Draw where every chain begins: all mask, or the mixture the `paper` schedule ends in.

    Args:    uniform: `(B, L, 2)` in [0, 1).
    Returns: `(B, L)` int64.
    """
    mask = torch.full_like(uniform[..., 0], schedule.mask_index, dtype=torch.int64)
    if schedule.starts_masked:
        return mask
    masked = uniform[..., 0] < schedule.gamma_bar[schedule.num_steps - 1]
    return torch.where(masked, mask, pick_token(uniform[..., 1], schedule.num_tokens))


def forward_log_probs(log_p: Tensor, move: Transition, leak: bool = False) -> Tensor:
    """Push a distribution over tokens and mask through one transition.

    Args:    log_p: `(B, K+1, L)` log-probabilities, the last row the mask.
             leak: as the released code, let a mask also turn into each token with probability beta.
    Returns: `(B, K+1, L)` log-probabilities in [-70, 0].
    Source:  reference `q_pred`, `q_pred_one_timestep`.
    """
    p = log_p.exp()
    alpha, beta, gamma = (value.to(p.dtype)[:, None, None] for value in move)
    tokens, mask = p[:, :-1], p[:, -1:]
    spread = beta if leak else beta * (1.0 - mask)
    moved = torch.cat([alpha * tokens + spread, gamma + (1.0 - gamma) * mask], dim=1)
    return moved.log().clamp(LOG_MIN, 0.0)


def observed_columns(
    x_t: Tensor, t: Tensor, s: Tensor, schedule: MaskReplaceSchedule, dtype: torch.dtype
) -> dict[str, Tensor]:
    """Give the per-position numbers of the posterior; with them each of its rows is a line, see `posterior`.

    Args:    x_t: `(B, L)` int64; t, s: `(B,)` int64, s < t.
             dtype: of the result; computed in float64.
    Returns: `(B, L)` tensors: `column` the observed token (0 where masked, int64) and `masked` (bool);
        `like`, `like_seen` = q(x_t | x_s = j); `gain`, `gain_seen` = like * abar_s / q(x_t | x_0 = j);
        `inverse`, `inverse_seen` = 1 / q(x_t | x_0 = j), each for any token j and for the observed one;
        `beta_s`, `gamma_s` `(B, 1)` of q(x_s | x_0); `like_mask` = q(x_t | x_s = mask).
    """
    step, all_steps, until_s = schedule.skip(t, s), schedule.marginal(t), schedule.marginal(s)
    masked = x_t == schedule.mask_index

    def likelihood(move: Transition, seen: bool) -> Tensor:
        token = move.beta + move.alpha if seen else move.beta
        return torch.where(masked, move.gamma[:, None], token[:, None])

    rows: dict[str, Tensor] = {"masked": masked, "column": x_t.masked_fill(masked, 0)}
    for name, seen in (("", False), ("_seen", True)):
        like, inverse = likelihood(step, seen), 1.0 / likelihood(all_steps, seen)
        rows |= {f"like{name}": like.to(dtype), f"inverse{name}": inverse.to(dtype)}
        rows[f"gain{name}"] = (like * until_s.alpha[:, None] * inverse).to(dtype)
    rows["beta_s"], rows["gamma_s"] = until_s.beta[:, None].to(dtype), until_s.gamma[:, None].to(dtype)
    rows["like_mask"] = torch.where(masked, 1.0, IMPOSSIBLE).to(dtype)
    return rows


def posterior(
    log_p: Tensor, x_t: Tensor, t: Tensor, schedule: MaskReplaceSchedule, s: Tensor | None = None
) -> Tensor:
    """Give log p(x_s | x_t) = log sum over x_0 of q(x_s | x_t, x_0) p(x_0 | x_t).

    With A_j = q(x_t | x_0 = j), S = sum over k of p_k / A_k, row j is
    q(x_t | x_s = j) * (abar_s p_j / A_j + bbar_s S) and the mask row q(x_t | x_s = mask) * gbar_s S.
    A_j takes two values only, one for the observed token and one for all others.

    Args:    log_p: `(B, K, L)` log p(x_0 | x_t), need not be normalised (truncation).
             x_t: `(B, L)` int64; t: `(B,)` int64; s: `(B,)` int64 below t, default t - 1; -1 is the clean image.
    Returns: `(B, K+1, L)` float32 in [-70, 0].
    Cost:    one buffer of the size of the result, where autograd does not watch.
    Source:  VQ-Diffusion, equations 5 and 11; reference `q_posterior`.  Differs: linear probabilities on indices
        instead of log one-hots; exact for any s < t.
    """
    rows = observed_columns(x_t, t, t - 1 if s is None else s, schedule, log_p.dtype)
    column = rows["column"][:, None]
    if torch.is_grad_enabled() and log_p.requires_grad:
        p, p_seen = _split(log_p.exp(), column, rows["masked"])
        base, seen, mask_row = _posterior_lines(p, p_seen, rows)
        tokens = (p * rows["gain"][:, None] + base[:, None]).scatter(1, column, seen[:, None])
        return torch.cat([tokens, mask_row[:, None]], dim=1).log().clamp(LOG_MIN, 0.0)
    with torch.no_grad():
        result = _room_with_mask_row(log_p)
        tokens = result[:, :-1]
        torch.exp(log_p, out=tokens)
        p, p_seen = _split(tokens, column, rows["masked"], in_place=True)
        base, seen, mask_row = _posterior_lines(p, p_seen, rows)
        p.mul_(rows["gain"][:, None]).add_(base[:, None]).scatter_(1, column, seen[:, None])
        result[:, -1] = mask_row
        return result.log_().clamp_(LOG_MIN, 0.0)


def _room_with_mask_row(log_p: Tensor) -> Tensor:
    """Make an empty `(B, K+1, L)` tensor with the memory order of `log_p` `(B, K, L)`."""
    batch, num_tokens, length = log_p.shape
    if log_p.stride(1) == 1:
        return log_p.new_empty(batch, length, num_tokens + 1).transpose(1, 2)
    return log_p.new_empty(batch, num_tokens + 1, length)


def _split(p: Tensor, column: Tensor, masked: Tensor, in_place: bool = False) -> tuple[Tensor, Tensor]:
    """Take the observed token's probability out of `p`, so that no sum has to be corrected by a difference."""
    p_seen = p.gather(1, column)
    rest = torch.where(masked[:, None], p_seen, 0.0)
    return (p.scatter_ if in_place else p.scatter)(1, column, rest), p_seen[:, 0]


def _posterior_lines(p: Tensor, p_seen: Tensor, rows: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """Return the constant of all rows, the observed row and the mask row, `(B, L)` each."""
    evidence = p.sum(1) * rows["inverse"]
    evidence = evidence + (p_seen * rows["inverse_seen"]).masked_fill(rows["masked"], 0.0)
    spread = rows["beta_s"] * evidence
    seen = rows["gain_seen"] * p_seen + rows["like_seen"] * spread
    # Where nothing is observed, `like_seen` equals `like`, and so column 0 gets its ordinary value back.
    mask_row = rows["like_mask"] * (rows["gamma_s"] * evidence + IMPOSSIBLE)
    return rows["like"] * spread, seen, mask_row


def posterior_probs(
    x0: Tensor, x_t: Tensor, t: Tensor, s: Tensor, schedule: MaskReplaceSchedule
) -> dict[str, Tensor]:
    """Give q(x_s | x_t, x_0): at most four different numbers a position.

    Args:    x0: `(B, L)` int64 real tokens; x_t: `(B, L)` int64; t, s: `(B,)` int64, s < t.
    Returns: `(B, L)` float64 each: probability of `start` (token x0), `seen` (token x_t; 0 where x_t is the mask
        or x0 itself), `mask`, and `other`, each single remaining token.
    Source:  VQ-Diffusion, equation 5, by Bayes' rule.
    """
    mask = schedule.mask_index
    step, until_s = schedule.skip(t, s), schedule.marginal(s)
    evidence = transition_prob(x_t, x0, schedule.marginal(t), mask)
    masked = x_t == mask

    def bayes(x_s: Tensor) -> Tensor:
        return transition_prob(x_t, x_s, step, mask) * transition_prob(x_s, x0, until_s, mask) / evidence

    like_other = torch.where(masked, step.gamma[:, None], step.beta[:, None])
    return {
        "start": bayes(x0),
        "seen": bayes(x_t).masked_fill(masked | (x_t == x0), 0.0),
        "mask": bayes(torch.full_like(x_t, mask)),
        "other": like_other * until_s.beta[:, None] / evidence,
    }


def true_posterior(
    x0: Tensor, x_t: Tensor, t: Tensor, schedule: MaskReplaceSchedule, s: Tensor | None = None
) -> Tensor:
    """Give log q(x_s | x_t, x_0) written out, for looking at; `posterior_probs` has the same in four numbers.

    Args:    x0, x_t: `(B, L)` int64; t: `(B,)` int64; s: `(B,)` int64 below t, default t - 1.
    Returns: `(B, K+1, L)` float32 in [-70, 0].
    """
    certain = torch.full(
        (x0.shape[0], schedule.num_tokens, x0.shape[1]), math.log(IMPOSSIBLE), device=x0.device
    )
    return posterior(certain.scatter_(1, x0[:, None], 0.0), x_t, t, schedule, s)


def sample_posterior(
    x0: Tensor, x_t: Tensor, t: Tensor, s: Tensor, schedule: MaskReplaceSchedule, uniform: Tensor
) -> Tensor:
    """Draw x_s from q(x_s | x_t, x_0); with x0 drawn from p(x_0 | x_t) this is a draw from `posterior`.

    Args:    x0: `(B, L)` int64 real tokens; x_t: `(B, L)` int64; t, s: `(B,)` int64, s < t.
             uniform: `(B, L, 2)` in [0, 1).
    Returns: `(B, L)` int64 in 0 .. K.
    """
    probs = posterior_probs(x0, x_t, t, s, schedule)
    # Every token has at least the mass `other`; what x0 and x_t have beyond it comes on top.
    start = probs["start"] - probs["other"]
    seen = (probs["seen"] - probs["other"]).clamp_min(0.0)
    which = uniform[..., 0]
    x_s = pick_token(uniform[..., 1], schedule.num_tokens)
    x_s = torch.where(which < start + seen + probs["mask"], schedule.mask_index, x_s)
    x_s = torch.where(which < start + seen, x_t, x_s)
    return torch.where(which < start, x0, x_s)


def draw_tokens(log_p: Tensor, uniform: Tensor) -> Tensor:
    """Draw one token a position by inverting the distribution function.

    Args:    log_p: `(B, C, L)` log-probabilities, need not be normalised; uniform: `(B, L)` in [0, 1).
    Returns: `(B, L)` int64.
    Cost:    one exponential of `log_p` and one copy of it; no sum longer than the root of C.
    """
    # Two short searches instead of one long running sum: first a block of classes, then a class inside it.
    width = math.isqrt(log_p.shape[1] - 1) + 1
    padded = F.pad(log_p.transpose(1, 2).exp(), (0, -log_p.shape[1] % width))
    blocks = torch.unflatten(padded, 2, (-1, width))
    reach = blocks.sum(3).cumsum(2)
    # 1 - u lies in (0, 1]: neither end can land on a class that was truncated to -70.
    target = (1.0 - uniform).to(reach.dtype)[..., None] * reach[..., -1:]
    block = (reach < target).sum(2, keepdim=True)
    before = F.pad(reach, (1, 0)).gather(2, block)
    share = ((target - before) / (reach.gather(2, block) - before)).clamp_max(1.0)
    inside = blocks.gather(2, block[..., None].expand(-1, -1, -1, width))[:, :, 0].cumsum(2)
    place: Tensor = (inside < share * inside[..., -1:]).sum(2)
    return block[..., 0] * width + place


def gumbel(uniform: Tensor) -> Tensor:
    """Turn uniform numbers in [0, 1) into standard Gumbel ones, with the released code's guards.

    The arg-max of log-probabilities plus such numbers, one for each class, is a draw from them.
    """
    return -(-(uniform + IMPOSSIBLE).log() + IMPOSSIBLE).log()
