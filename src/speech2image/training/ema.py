"""The moving average of a generator's weights.

Here: one frozen copy that follows a live network, updated by a few multi-tensor operations once a
training step.  The live weights are only overwritten by `copy_to_live`, which the trainer calls for
the published "look-ahead" preset and never otherwise.
"""

from __future__ import annotations

import copy
from typing import Literal

import torch
from torch import Tensor, nn


class ExponentialMovingAverage(nn.Module):
    """Keep `module` = decay * `module` + (1 - decay) * live, in float32.

    It is a module so that it moves between devices, and lies in checkpoints, with its owner; the live
    network is not one of its children.

    Args:
        live: the network that trains.
        decay: weight of the past, 0 to 1.
        buffers: `copy` takes the live batch-norm statistics (the released form), `average` averages
            them like parameters.
        warmup: use min(decay, (1 + n) / (10 + n)) at update n, for short runs.
    Source:  StackGAN-v2 `trainer.py`; warm-up as in TensorFlow's `ExponentialMovingAverage`.
    """

    num_updates: Tensor

    def __init__(
        self,
        live: nn.Module,
        decay: float = 0.999,
        buffers: Literal["copy", "average"] = "copy",
        warmup: bool = False,
    ) -> None:
        super().__init__()
        self.decay, self.buffers_mode, self.warmup = decay, buffers, warmup
        self._live = [live]
        self.module = copy.deepcopy(live).float().requires_grad_(False)
        self.register_buffer("num_updates", torch.zeros((), dtype=torch.int64))
        self._updates: int | None = None
        self.train(False)

    def train(self, mode: bool = True) -> ExponentialMovingAverage:
        """Stay in evaluation mode whatever the owner does."""
        return super().train(False)

    def current_decay(self) -> float:
        """Return the decay of the next update."""
        if self._updates is None:
            self._updates = int(self.num_updates)
        if not self.warmup:
            return self.decay
        return min(self.decay, (1 + self._updates) / (10 + self._updates))

    @torch.no_grad()
    def update(self) -> None:
        """Take the live weights in; call once a training step."""
        live = self._live[0]
        share = 1.0 - self.current_decay()
        average: list[Tensor] = list(self.module.parameters())
        source: list[Tensor] = list(live.parameters())
        for old, new in zip(self.module.buffers(), live.buffers(), strict=True):
            if self.buffers_mode == "average" and old.is_floating_point():
                average.append(old)
                source.append(new)
            else:
                old.copy_(new)
        torch._foreach_lerp_(average, [tensor.float() for tensor in source], share)
        assert self._updates is not None
        self._updates += 1
        self.num_updates.fill_(self._updates)

    @torch.no_grad()
    def copy_to_live(self) -> None:
        """Overwrite the live parameters by the average (buffers stay), the published preset."""
        torch._foreach_copy_(list(self._live[0].parameters()), list(self.module.parameters()))

    def _load_from_state_dict(self, *args: object, **kwargs: object) -> None:
        self._updates = None
        super()._load_from_state_dict(*args, **kwargs)
