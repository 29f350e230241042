"""The training loss: variational bound with importance-sampled steps and an auxiliary term.

The loss itself is a function of what it is given; the history that importance sampling needs is changed by
`observe` only, so that a trainer can first gather steps and terms from all devices.  The terms of one position
are in `posterior_kl.py`.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from speech2image.diffusion.posterior_kl import posterior_terms
from speech2image.diffusion.schedule import MaskReplaceSchedule
from speech2image.errors import ConfigError


class VariationalLoss(nn.Module):
    """Train a network to predict x_0 by the variational bound of the chain.

    Args:
        schedule: the chain.
        aux_weight: weight of the auxiliary -log p(x_0 | x_t): 5e-4 for text, 1e-3 for classes and speech.
        adaptive: multiply it by 2 - t/T (sic: the released code gives late steps less).
        mask_weight: weight of positions that are masked in x_t, and of the others, for t > 0.
    Raises:  ConfigError: a negative weight.
    Source:  VQ-Diffusion, section 4.2, equation 12; reference `_train_loss`, `sample_time`.  Differs: steps
        drawn twice in a batch are averaged in the history instead of overwriting each other; the
        history stands still in evaluation.
    """

    Lt_history: Tensor
    Lt_count: Tensor

    def __init__(
        self,
        schedule: MaskReplaceSchedule,
        aux_weight: float = 5e-4,
        adaptive: bool = True,
        mask_weight: tuple[float, float] = (1.0, 1.0),
    ) -> None:
        super().__init__()
        if min(aux_weight, *mask_weight) < 0:
            raise ConfigError(
                f"loss: aux_weight={aux_weight} and mask_weight={mask_weight}, expected none below 0",
                "set loss.aux_weight=0.0005 loss.mask_weight=[1,1]",
            )
        self.schedule = schedule
        self.aux_weight, self.adaptive, self.mask_weight = aux_weight, adaptive, mask_weight
        self.register_buffer("Lt_history", torch.zeros(schedule.num_steps))
        self.register_buffer("Lt_count", torch.zeros(schedule.num_steps))

    def step_probs(self) -> Tensor:
        """Give the distribution steps are drawn from, `(T,)` float32.

        Uniform until every step was seen more than ten times, then in proportion to the root of the mean
        square of its term; step 0 counts like step 1.
        """
        weight = (self.Lt_history + 1e-10).sqrt() + 1e-4
        weight = torch.cat([weight[1:2], weight[1:]])
        importance = weight / weight.sum()
        uniform = torch.full_like(weight, 1.0 / len(weight))
        return torch.where((self.Lt_count > 10).all(), importance, uniform)

    def sample_steps(self, uniform: Tensor) -> tuple[Tensor, Tensor]:
        """Draw a step for each sample.

        Args:    uniform: `(B,)` in [0, 1).
        Returns: t `(B,)` int64 in 0 .. T-1, and the probability with which it was drawn `(B,)` float32.
        """
        probs = self.step_probs()
        reach = probs.double().cumsum(0)
        t = torch.searchsorted(reach, uniform.double() * reach[-1], right=True).clamp_max(len(probs) - 1)
        return t, probs[t]

    def forward(
        self, logits: Tensor, x0: Tensor, x_t: Tensor, t: Tensor, step_prob: Tensor
    ) -> dict[str, Tensor]:
        """Compute the loss of a batch.

        Args:    logits: `(B, K, L)`, the network's scores for x_0 given `x_t` and `t`.
                 x0: `(B, L)` int64 real tokens; x_t: `(B, L)` int64, drawn from q(x_t | x_0).
                 t: `(B,)` int64; step_prob: `(B,)`, both from `sample_steps`.
        Returns: `loss`: scalar, the sum of `per_sample` over samples and positions counted.
                 `per_sample`: `(B,)` bound and auxiliary term, over the step's probability.
                 `kl`: `(B,)` what `observe` takes: the KL, or -log p(x_0) at t = 0, summed over positions.
                 `auxiliary`: `(B,)` weighted -log p(x_0 | x_t) without the factor `aux_weight`.
                 `nats_per_token`: scalar, mean of -log p(x_0 | x_t), for the log.
        """
        kl, nll = posterior_terms(logits, x0, x_t, t, self.schedule)
        masked = x_t == self.schedule.mask_index
        weight = torch.where(masked, self.mask_weight[0], self.mask_weight[1])
        decoder = nll.sum(1)
        main = torch.where(t == 0, decoder, (kl * weight).sum(1))
        auxiliary = torch.where(t == 0, decoder, (nll * weight).sum(1))
        factor = 2.0 - t / self.schedule.num_steps if self.adaptive else torch.ones_like(step_prob)
        per_sample = (main + self.aux_weight * factor * auxiliary) / step_prob
        return {
            "loss": per_sample.sum() / x0.numel(),
            "per_sample": per_sample,
            "kl": main.detach(),
            "auxiliary": auxiliary.detach(),
            "nats_per_token": nll.detach().mean(),
        }

    @torch.no_grad()
    def observe(self, t: Tensor, kl: Tensor) -> None:
        """Remember how large the terms of a batch were; does nothing in evaluation mode.

        Args:    t: `(B,)` int64; kl: `(B,)`, from all devices where there are several.
        Source:  reference `_train_loss`: history <- 0.1 kl^2 + 0.9 history, count <- count + 1.
        """
        if not self.training:
            return
        hits = torch.zeros_like(self.Lt_count).index_add_(
            0, t, torch.ones_like(kl, dtype=self.Lt_count.dtype)
        )
        total = torch.zeros_like(self.Lt_history).index_add_(0, t, kl.to(self.Lt_history.dtype) ** 2)
        fresh = 0.1 * total / hits.clamp_min(1.0) + 0.9 * self.Lt_history
        self.Lt_history.copy_(torch.where(hits > 0, fresh, self.Lt_history))
        self.Lt_count += hits
