"""Training of a discrete diffusion model: noise a code grid, predict the clean one, weigh by the bound.

Here: one step of VQ-Diffusion with its draws, the null condition, clipping and the moving average.  Schedule
and loss are in `diffusion/`, networks in `diffusion/transformer.py`, code grids in `codes.py`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from speech2image.diffusion.process import sample_marginal
from speech2image.diffusion.transformer import DiffusionCondition, DiffusionTransformer
from speech2image.diffusion.variational import VariationalLoss
from speech2image.errors import ConfigError
from speech2image.training.ema import ExponentialMovingAverage
from speech2image.training.module import TrainingModule
from speech2image.training.sharded import whole
from speech2image.training.synchronised import average_gradients, gather_rows

_TOLD = ("sentence", "words", "mask", "class_id")


class DiffusionModule(TrainingModule):
    """Train a transformer to denoise code grids.

    Batches are dicts: `tokens` `(B, L)` int64 and, as the network reads them, `sentence` `(B, D)`, `words`
    `(B, N, Dw)` with `mask` `(B, N)`, and `class_id` `(B,)`.

    Args:
        network: trained in place.
        loss: the variational bound with the schedule; its history is part of the state.
        sentence_scale: factor on the sentence; None: the root of its size, for unit vectors.
        lr: learning rate.
        betas: AdamW coefficients.
        weight_decay: decoupled, on all parameters.
        clip_norm: largest norm of the gradient; None: no limit.
        condition_dropout: share of items that are told nothing; needs a network with a null condition.
        ema_decay: weight of the past in the average of the network.
        ema_warmup: let a short run average faster at the start.
        seed: root of the noise.
        schedule: learning-rate factor of the step.
    Raises:  ConfigError: condition dropout for a network without a null condition.
    Source:  VQ-Diffusion, section 5.1; Improved VQ-Diffusion, section 3.1 (condition dropout); S2IVQ-D, section 4;
        reference `solver.py`: AdamW (0.9, 0.96), weight decay 0.045, clip 0.5.  Differs: the average is
        updated every step.
    """

    def __init__(
        self,
        network: DiffusionTransformer,
        loss: VariationalLoss,
        sentence_scale: float | None = None,
        lr: float = 4.5e-4,
        betas: Sequence[float] = (0.9, 0.96),
        weight_decay: float = 4.5e-2,
        clip_norm: float | None = 0.5,
        condition_dropout: float = 0.0,
        ema_decay: float = 0.99,
        ema_warmup: bool = False,
        seed: int = 0,
        schedule: Callable[[int], float] | None = None,
    ) -> None:
        super().__init__(seed=seed, schedule=schedule)
        if condition_dropout and not network.has_null:
            raise ConfigError(
                f"condition_dropout is {condition_dropout}, but a '{network.conditioning}' network"
                f" with null={network.null} has no null condition",
                "Set loss.condition_dropout=0, or generator.null=learned.",
            )
        self.network, self.loss = network, loss
        self.sentence_scale = sentence_scale
        self.lr, self.betas, self.weight_decay = lr, (float(betas[0]), float(betas[1])), weight_decay
        self.clip_norm, self.condition_dropout = clip_norm, condition_dropout
        self.ema = ExponentialMovingAverage(network, ema_decay, warmup=ema_warmup)

    def configure_optimizers(self) -> Optimizer:
        """Return one AdamW over all parameters."""
        return torch.optim.AdamW(
            self.network.parameters(),
            lr=self.lr,
            betas=self.betas,
            weight_decay=self.weight_decay,
            fused=True,
        )

    def training_step(self, batch: dict[str, Any], batch_idx: int = 0) -> None:
        """Train on one batch: draw steps and noise, predict, bound, clip, average, count."""
        tokens: Tensor = batch["tokens"]
        size, length = tokens.shape
        t, step_prob = self.loss.sample_steps(self.uniform("diffusion/step", size))
        noised = sample_marginal(
            tokens, t, self.loss.schedule, self.uniform("diffusion/noise", size, length, 2)
        )
        told = DiffusionCondition(**{part: batch[part] for part in _TOLD if part in batch})
        condition = scaled_condition(told, self.sentence_scale, self._nulls(size))
        logits = self.network(noised, t, condition)
        with torch.autocast(self.device.type, enabled=False):  # the bound is computed in full precision
            terms = self.loss(logits.float(), tokens, noised, t, step_prob)
        torch.autograd.backward(terms["loss"])
        self.loss.observe(gather_rows(t), gather_rows(terms["kl"]))
        average_gradients(self.network.parameters())
        norm = whole(nn.utils.clip_grad_norm_(self.network.parameters(), self.clip_norm or float("inf")))
        optimizer = self.optimizers()
        assert not isinstance(optimizer, list)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        self.ema.update()
        self.record(
            loss=terms["loss"], loss_kl=terms["kl"].mean() / length, grad_norm=norm,
            loss_auxiliary=terms["auxiliary"].mean() / length, nats_per_token=terms["nats_per_token"],
        )  # fmt: skip
        self.finish_step(size)

    def _nulls(self, size: int) -> Tensor | None:
        if not self.condition_dropout:
            return None
        return self.uniform("diffusion/null", size) < self.condition_dropout

    def sharded_networks(self) -> list[nn.Module]:
        """Return the network and its average."""
        return [self.network, self.ema.module]

    def inference_module(self) -> nn.Module:
        """Return the averaged network."""
        return self.ema.module


def scaled_condition(
    told: DiffusionCondition | Tensor, scale: float | None = None, is_null: Tensor | None = None
) -> DiffusionCondition:
    """Return what the transformer is told, sentences brought to the size it takes.

    Args:
        told: a record, or sentences `(B, D)` alone; unit vectors for encoders trained here.
        scale: factor on sentences; None: the root of D, so that each number is about one.
        is_null: `(B,)` bool, items that are told nothing.
    """
    told = DiffusionCondition(sentence=told) if isinstance(told, Tensor) else told
    sentence = told.sentence
    if sentence is not None:
        sentence = sentence * (sentence.shape[-1] ** 0.5 if scale is None else scale)
    return dataclasses.replace(told, sentence=sentence, is_null=is_null)
