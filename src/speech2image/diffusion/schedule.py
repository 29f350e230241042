"""The mask-and-replace schedule: how fast tokens are kept, replaced and masked.

Here are the probabilities of q(x_t | x_s) for any two steps, in float64.  What is done with them on
tokens is in `process.py`.  Two published forms exist and differ: `released` and `paper`.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from speech2image.errors import ConfigError

KINDS = ("released", "paper")


class Transition(NamedTuple):
    """The three numbers of one mask-and-replace transition, `(B,)` float64 each.

    A real token stays with probability `alpha + beta`, turns into each other one with `beta`, into
    the mask with `gamma`; a mask stays a mask.  `alpha + K beta + gamma = 1`.
    """

    alpha: Tensor
    beta: Tensor
    gamma: Tensor


class MaskReplaceSchedule(nn.Module):
    """Give q(x_t | x_s) for steps t > s; s = -1 is the clean image.

    Args:
        num_tokens: K, real tokens; the mask is index K.
        num_steps: T; step t = 0 is the first noising step.
        kind: `released`: kept mass 0.99999 to 0.000009, masked mass 0.000009 to 0.99999, both linear in t,
            which leaves a replaced mass of 1e-6 at every step.  `paper`: masked mass rises to 0.9 and
            replaced mass to 0.1, nothing is kept at the last step.
    Raises:  ConfigError: fewer than two tokens or steps, or an unknown kind.
    Source:  VQ-Diffusion (arXiv 2111.14822), section 4.2, equations 7 and 8; reference `alpha_schedule`.
        Differs: strides are exact, see `skip`; tables are not part of the state dict, they follow from
        the arguments.  A cast of the model leaves them in float64.
    """

    alpha_bar: Tensor
    beta_bar: Tensor
    gamma_bar: Tensor

    def __init__(self, num_tokens: int, num_steps: int = 100, kind: str = "released") -> None:
        super().__init__()
        if num_tokens < 2 or num_steps < 2:
            raise ConfigError(
                f"schedule: num_tokens={num_tokens} and num_steps={num_steps}, expected at least 2 of each",
                "set diffusion.num_steps=100 and use a codec with two codes or more",
            )
        if kind not in KINDS:
            raise ConfigError(
                f"schedule: kind {kind!r} is unknown, expected one of {', '.join(KINDS)}",
                "set diffusion.schedule=released",
            )
        self.num_tokens, self.num_steps, self.kind = num_tokens, num_steps, kind
        kept, masked = _cumulative(num_steps, kind)
        replaced = (1.0 - kept - masked) / num_tokens
        # The last entry stands for step -1, the clean image, so that index -1 reads it.
        one, zero = torch.ones(1, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
        self.register_buffer("alpha_bar", torch.cat([kept, one]), persistent=False)
        self.register_buffer("beta_bar", torch.cat([replaced, zero]), persistent=False)
        self.register_buffer("gamma_bar", torch.cat([masked, zero]), persistent=False)
        self._masked: list[float] = masked.tolist()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> MaskReplaceSchedule:
        before = dict(self._buffers)
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name, table in before.items():
            moved = self._buffers[name]
            if table is not None and moved is not None and moved.dtype != table.dtype:
                self._buffers[name] = table.to(moved.device)
        return self

    @property
    def mask_index(self) -> int:
        """The token that stands for "masked": K."""
        return self.num_tokens

    @property
    def starts_masked(self) -> bool:
        """Whether the last step is all mask, to one token in a thousand."""
        return self._masked[-1] > 0.999

    def marginal(self, t: Tensor) -> Transition:
        """Give q(x_t | x_0).

        Args:    t: `(B,)` int64 in -1 .. T-1; -1 is the identity.
        """
        return Transition(self.alpha_bar[t], self.beta_bar[t], self.gamma_bar[t])

    def step(self, t: Tensor) -> Transition:
        """Give q(x_t | x_{t-1}), `t` `(B,)` int64 in 0 .. T-1."""
        return self.skip(t, t - 1)

    def skip(self, t: Tensor, s: Tensor) -> Transition:
        """Give q(x_t | x_s): alpha = abar_t / abar_s, 1 - gamma = (1 - gbar_t) / (1 - gbar_s).

        Args:    t: `(B,)` int64 in 0 .. T-1; s: `(B,)` int64 in -1 .. t-1.
        Source:  follows from q(x_t | x_0) = sum over x_s; the released fast sampler uses `step(s)` instead.
        """
        kept, masked = self.alpha_bar[s], self.gamma_bar[s]
        gamma = (self.gamma_bar[t] - masked) / (1.0 - masked)
        alpha = self.alpha_bar[t] / kept
        # 1 - alpha written as a quotient: the difference of the two losses is tiny against both.
        beta = ((kept - self.alpha_bar[t]) / kept - gamma).clamp_min(0.0) / self.num_tokens
        return Transition(alpha, beta, gamma)

    def step_at(self, masked_fraction: float) -> int:
        """Return the first step whose expected share of masks reaches `masked_fraction`, at most T-1."""
        return min(bisect_left(self._masked, masked_fraction), self.num_steps - 1)

    def released_logs(self) -> dict[str, Tensor]:
        """Compute the eight log tables that released checkpoints carry.

        Returns: `log_at log_bt log_ct log_1_min_ct` `(T,)` and `log_cumprod_at log_cumprod_bt
            log_cumprod_ct log_1_min_cumprod_ct` `(T+1,)` float32; the last entries stand for step -1.
        """
        one_step = self.step(torch.arange(self.num_steps, device=self.alpha_bar.device))
        tables: dict[str, Tensor] = {}
        cumulative = Transition(self.alpha_bar, self.beta_bar, self.gamma_bar)
        for prefix, (alpha, beta, gamma) in (("", one_step), ("cumprod_", cumulative)):
            tables |= {f"log_{prefix}at": alpha.log(), f"log_{prefix}bt": beta.log()}
            tables |= {f"log_{prefix}ct": gamma.log(), f"log_1_min_{prefix}ct": (1.0 - gamma + 1e-40).log()}
        return {name: table.float() for name, table in tables.items()}


def _cumulative(num_steps: int, kind: str) -> tuple[Tensor, Tensor]:
    """Return the kept and the masked mass after each step, `(T,)` float64 each."""
    if kind == "released":
        kept = torch.linspace(0.99999, 0.000009, num_steps, dtype=torch.float64)
        return kept, torch.linspace(0.000009, 0.99999, num_steps, dtype=torch.float64)
    time = torch.arange(1, num_steps + 1, dtype=torch.float64) / num_steps
    return 1.0 - time, 0.9 * time
