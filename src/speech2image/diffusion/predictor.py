"""From a network to log p(x_0 | x_t): conditioning, guidance and truncation in one callable.

Samplers know nothing of conditions; they call a `Predictor`.  The mathematics of guidance and truncation is in
`truncate.py`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from speech2image.diffusion.process import start_log_probs
from speech2image.diffusion.truncate import guide, top_k, top_r
from speech2image.errors import ConfigError

#: `(tokens (B, L), t (B,), condition) -> scores (B, K, L)`
Network = Callable[[Tensor, Tensor, Any], Tensor]


class Predictor:
    """Predict x_0 under a condition; holds no state that a call changes.

    Args:
        network: called as `network(tokens, t, condition)`, returns scores `(B, K, L)`.
        condition: a dataclass of tensors with leading B, or None.
        null_condition: the same for "no condition"; needed when guiding.
        guidance_scale: 1 is plain; above 1 follows the condition more closely, at twice the cost.
        top_r: share of the mass kept, 1 keeps all.  Published: 0.86 plain, 1 with guidance.
        top_k: number of tokens kept, 0 keeps all.
    Raises:  ConfigError: guidance without a null condition, or truncation out of range.
    Source:  VQ-Diffusion, section 4.3; Improved VQ-Diffusion, section 3.1; reference order: guidance first.
    """

    def __init__(
        self,
        network: Network,
        condition: Any = None,
        null_condition: Any = None,
        guidance_scale: float = 1.0,
        top_r: float = 1.0,
        top_k: int = 0,
    ) -> None:
        self.is_guided = abs(guidance_scale - 1.0) >= 1e-3
        if self.is_guided and null_condition is None:
            raise ConfigError(
                f"sampler: guidance_scale={guidance_scale}, but this model was not trained with a null condition",
                "set sampler.guidance_scale=1, or train with loss.condition_dropout above 0",
            )
        if not 0.0 < top_r or top_k < 0:
            raise ConfigError(
                f"sampler: top_r={top_r} and top_k={top_k}, expected top_r above 0 and top_k at least 0",
                "set sampler.top_r=0.86, or 1 to keep every token",
            )
        self.network, self.guidance_scale = network, guidance_scale
        self.top_r, self.top_k = top_r, top_k
        self.condition, self.null_condition = condition, null_condition
        self._both = join_conditions(condition, null_condition) if self.is_guided else None

    @torch.no_grad()
    def __call__(self, tokens: Tensor, t: Tensor) -> Tensor:
        """Give log p(x_0 | x_t = tokens), `(B, K, L)` float32 in [-70, 0]; not normalised where truncated."""
        log_p = self._guided(tokens, t) if self.is_guided else self._scores(tokens, t, self.condition)
        log_p = top_r(log_p, self.top_r)
        return top_k(log_p, self.top_k) if self.top_k else log_p

    def _scores(self, tokens: Tensor, t: Tensor, condition: Any) -> Tensor:
        return start_log_probs(self.network(tokens, t, condition))

    def _guided(self, tokens: Tensor, t: Tensor) -> Tensor:
        if self._both is not None:
            both = self._scores(torch.cat([tokens, tokens]), torch.cat([t, t]), self._both)
            log_cond, log_uncond = both.chunk(2)
        else:
            log_cond = self._scores(tokens, t, self.condition)
            log_uncond = self._scores(tokens, t, self.null_condition)
        return guide(log_cond, log_uncond, self.guidance_scale)


def join_conditions(first: Any, second: Any) -> Any:
    """Stack two condition records so that one call of the network serves both.

    Returns: a record of the same class with 2B samples; None where a field is set in one of them only, or its
        shape differs: then two calls are needed.
    """
    if type(first) is not type(second) or not dataclasses.is_dataclass(first):
        return None
    joined: dict[str, Tensor | None] = {}
    for field in dataclasses.fields(first):
        one, other = getattr(first, field.name), getattr(second, field.name)
        if one is None and other is None:
            joined[field.name] = None
        elif one is None or other is None or one.shape[1:] != other.shape[1:]:
            return None
        else:
            joined[field.name] = torch.cat([one, other])
    return dataclasses.replace(first, **joined)  # type: ignore[type-var]
