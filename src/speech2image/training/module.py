"""The frame every trainer of the suite stands in.

Here: our own counters, addressed randomness, learning-rate schedules as functions of the step,
scalar records that stay on the device, and the state a checkpoint holds.  Not here: any loss or
model.  `encoder_module.py` and `gan_module.py` fill the frame; `checkpoint.py` writes the state.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from speech2image.data.order import addressed_rng
from speech2image.errors import TrainingError
from speech2image.hub.weights import fill_module
from speech2image.training.random_state import random_state, restore_random_state, seed_everything
from speech2image.training.ranks import on_any_rank, rank, share, world_size
from speech2image.training.sharded import cut_like_parameters, own_part, whole_state
from speech2image.training.synchronised import averaged

_UNIFORMS_PER_BLOCK = 8
"""Float32 draws that one count of Philox holds: four words of 64 bits."""

_AFTER_NAN = (
    "The last checkpoint is from before that.  Try a lower optim.lr, a longer optim.warmup_steps, or"
    " trainer.precision=32-true."
)


class TrainingModule(pl.LightningModule):
    """Count steps, draw addressed randomness, record scalars and own the checkpoint state.

    Lightning's `global_step` counts optimizer steps; `train_step` counts batches seen by the model,
    whatever the number of optimizers, and is what schedules, EMA, journals and checkpoints use.

    Args:
        seed: root of every random draw of the run.
        schedule: learning-rate factor as a function of `train_step`; None: constant 1.
    """

    def __init__(self, seed: int = 0, schedule: Callable[[int], float] | None = None) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.seed = seed
        self.train_step = 0
        self.images_seen = 0
        self.schedule = schedule or (lambda step: 1.0)
        self._base_lrs: list[list[float]] | None = None
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, int] = {}
        self._pending_optimizers: list[dict[str, Any]] | None = None
        self._pending_random: dict[str, Any] | None = None

    # ---- randomness --------------------------------------------------------------------------
    def rng(self, stream: str) -> np.random.Generator:
        """Return the generator of `stream` at this step: a function of (seed, stream, step)."""
        return addressed_rng(self.seed, stream, self.train_step)

    def normal(self, stream: str, *shape: int) -> Tensor:
        """Draw standard normal float32 for the whole batch; return this rank's rows, on the device of the module.

        Args:    stream: whose draws; shape: of this rank's rows, the first size counts items.
        """
        own, (size, *rest) = share(), shape
        draws = self.rng(stream).standard_normal((own.of * size, *rest), dtype=np.float32)
        return torch.from_numpy(draws[own.rows(len(draws))]).to(self.device, non_blocking=True)

    def uniform(self, stream: str, *shape: int) -> Tensor:
        """Draw uniform float32 in [0, 1) for the whole batch; return this rank's rows, see `normal`.

        Cost:    that of this rank's rows: those before are skipped.
        """
        rng, count = self.rng(stream), math.prod(shape)
        blocks, rest = divmod(share().number * count, _UNIFORMS_PER_BLOCK)
        rng.bit_generator.advance(blocks)  # type: ignore[attr-defined]
        draws = rng.random(rest + count, dtype=np.float32)[rest:].reshape(shape)
        return torch.from_numpy(draws).to(self.device, non_blocking=True)

    def uniform_for_all(self, stream: str, *shape: int) -> Tensor:
        """Draw uniform float32 in [0, 1) of `shape`, the same on every rank, on the device of the module."""
        draws = self.rng(stream).random(shape, dtype=np.float32)
        return torch.from_numpy(draws).to(self.device, non_blocking=True)

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Seed the global generators, so that dropout depends on the step and not on what was drawn before it."""
        seed_everything(self.rng(f"global/{rank()}" if rank() else "global"))

    # ---- scalars -----------------------------------------------------------------------------
    def record(self, **scalars: Tensor | float) -> None:
        """Add scalars to their running sums on the device; nothing is synchronised here."""
        for name, value in scalars.items():
            tensor = value.detach() if isinstance(value, Tensor) else torch.tensor(float(value))
            tensor = tensor.float()
            self._sums[name] = self._sums[name] + tensor if name in self._sums else tensor
            self._counts[name] = self._counts.get(name, 0) + 1

    def flush_records(self) -> dict[str, float]:
        """Return the mean of each scalar since the last flush and start anew (one sync)."""
        self._sums = self._averaged_sums()
        self.check_finite()
        means = {name: float(total) / self._counts[name] for name, total in self._sums.items()}
        self._sums, self._counts = {}, {}
        return means

    def _averaged_sums(self) -> dict[str, Tensor]:
        """Return the running sums, averaged over the ranks; every rank asks at the same step."""
        if world_size() == 1 or not self._sums:
            return self._sums
        names = list(self._sums)
        means = averaged(torch.stack([self._sums[name].to(self.device) for name in names]))
        return dict(zip(names, means.unbind(), strict=True))

    def check_finite(self) -> None:
        """Stop where a loss is no number on any rank; asked before a checkpoint is written and before a flush.

        Raises:  TrainingError: names the terms.
        """
        sums = self._averaged_sums()
        watched = {key: total for key, total in sums.items() if key.startswith(("loss", "grad_norm"))}
        if not watched or bool(torch.stack([total.isfinite().all() for total in watched.values()]).all()):
            return
        bad = [f"{name} is {float(total)}" for name, total in watched.items() if not total.isfinite().all()]
        raise TrainingError(
            f"training stopped at or before step {self.train_step}: {', '.join(bad)}",
            _AFTER_NAN,
        )

    def _check_weights(self) -> None:
        """Stop where an update since the last loss left a weight that is no number."""
        trained = {name: own_part(value) for name, value in self.named_parameters() if value.requires_grad}
        finite = not trained or bool(torch.stack([v.isfinite().all() for v in trained.values()]).all())
        if not on_any_rank(not finite, self.device):
            return
        bad = [name for name, value in trained.items() if not value.isfinite().all()]
        raise TrainingError(
            f"training stopped at or before step {self.train_step}: {len(bad)} of {len(trained)} weights are no"
            f" numbers, first {', '.join(bad[:3])}",
            _AFTER_NAN,
        )

    # ---- steps -------------------------------------------------------------------------------
    def on_train_start(self) -> None:
        """Hand restored optimizer states over and remember the base learning rates."""
        optimizers = self._raw_optimizers()
        if self._base_lrs is None:
            self._base_lrs = [[group["lr"] for group in opt.param_groups] for opt in optimizers]
        if self._pending_optimizers is not None:
            for opt, state in zip(optimizers, self._pending_optimizers, strict=True):
                opt.load_state_dict(cut_like_parameters(state, opt))
            self._pending_optimizers = None
        if self._pending_random is not None:
            restore_random_state(self._pending_random)
            self._pending_random = None
        self._sums = {name: total.to(self.device) for name, total in self._sums.items()}
        self._apply_schedule()

    def finish_step(self, batch_size: int) -> None:
        """Count one batch of `batch_size` images a rank and set the learning rates of the next step."""
        self.train_step += 1
        self.images_seen += batch_size * world_size()
        self._apply_schedule()

    def _apply_schedule(self) -> None:
        factor = self.schedule(self.train_step)
        assert self._base_lrs is not None
        for opt, lrs in zip(self._raw_optimizers(), self._base_lrs, strict=True):
            for group, lr in zip(opt.param_groups, lrs, strict=True):
                group["lr"] = lr * factor

    def learning_rate(self) -> float:
        """Return the current learning rate of the first optimizer."""
        return float(self._raw_optimizers()[0].param_groups[0]["lr"])

    def _raw_optimizers(self) -> list[torch.optim.Optimizer]:
        found = self.optimizers(use_pl_optimizer=False)
        return list(found) if isinstance(found, list) else [found]

    # ---- checkpoint --------------------------------------------------------------------------
    def frozen_prefixes(self) -> tuple[str, ...]:
        """Return the prefixes of state keys that every session fills from another file."""
        return ()

    def checkpoint_state(self) -> dict[str, Any]:
        """Return everything a resumed run needs: trained weights, optimizers, counters, sums since the last flush.

        The position in the data is `train_step`, and so is that of every random stream.

        All ranks ask together; what the first gets is whole.

        Raises:  TrainingError: a loss since the last flush or a weight is no number; such a state is not worth
            keeping.
        """
        self.check_finite()
        self._check_weights()
        frozen = self.frozen_prefixes()
        return {
            "train_step": self.train_step,
            "images_seen": self.images_seen,
            "module": whole_state({k: v for k, v in self.state_dict().items() if not k.startswith(frozen)}),
            "optimizers": whole_state([opt.state_dict() for opt in self._raw_optimizers()]),
            "pending": self.pending_records(),
            "random": random_state(),
        }

    def load_checkpoint_state(self, state: dict[str, Any]) -> None:
        """Take over a state of `checkpoint_state`; optimizers are filled when training starts.

        What is frozen stays as it was built.

        Raises:  CheckpointError: the state of another model; names what is missing, unknown or of another shape.
        """
        frozen = self.frozen_prefixes()
        own = {k: v for k, v in self.state_dict().items() if k.startswith(frozen)}
        fill_module(self, {**state["module"], **own}, f"the checkpoint of step {state['train_step']}")
        self.train_step = int(state["train_step"])
        self.images_seen = int(state["images_seen"])
        self._pending_optimizers = list(state["optimizers"])
        self._pending_random = state["random"]
        self.restore_records(state["pending"])

    def pending_records(self) -> dict[str, Any]:
        """Return what was recorded since the last flush, the mean of all ranks; they ask together."""
        return {"sums": dict(self._averaged_sums()), "counts": dict(self._counts)}

    def restore_records(self, pending: dict[str, Any]) -> None:
        """Take over what `pending_records` returned."""
        self._sums, self._counts = dict(pending["sums"]), dict(pending["counts"])

    def sharded_networks(self) -> list[nn.Module]:
        """Return what `trainer.strategy=fsdp` cuts into shards; `ranks.start` refuses it where there is nothing."""
        return []

    def inference_module(self) -> nn.Module:
        """Return the network that `embed` or `generate` use: the module itself unless overridden."""
        return self
