"""What ranks compute together, so that any number of them trains as one: averages, gathered rows, batch norms.

Each rank's loss is a mean over its share of the batch; the mean over ranks is the loss of the whole batch.  Terms that
compare items of a batch with each other gather its rows first.  Who is which rank is in `ranks.py`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.distributed.tensor import DTensor

from speech2image.codecs.quantizers import EmaQuantizer
from speech2image.training.ranks import rank, world_size

BUCKET_BYTES = 32 * 2**20
"""Gradients travel in pieces of about this size."""


# ---- sums and averages ------------------------------------------------------------------------
def summed(value: Tensor) -> Tensor:
    """Return the sum of `value` over the ranks."""
    if world_size() == 1:
        return value
    total = value.detach().clone()
    dist.all_reduce(total)
    return total


def averaged(value: Tensor) -> Tensor:
    """Return the mean of `value` over the ranks."""
    return value if world_size() == 1 else summed(value) / world_size()


@torch.no_grad()
def average_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Replace each gradient by its mean over the ranks; call between the last backward pass and the step.

    Sharded parameters are left out: their gradients are averaged as they are made.

    Cost:    each gradient is copied and sent once, in buckets that travel while the next is filled.
    """
    if world_size() == 1:
        return
    sent = []
    for bucket in _buckets(parameters):
        flat = torch.cat([gradient.reshape(-1) for gradient in bucket])
        sent.append((bucket, flat, dist.all_reduce(flat, async_op=True)))
    for bucket, flat, work in sent:
        assert work is not None
        work.wait()
        parts = torch.split(flat.div_(world_size()), [gradient.numel() for gradient in bucket])
        torch._foreach_copy_(bucket, [part.view_as(g) for part, g in zip(parts, bucket, strict=True)])


def _buckets(parameters: Iterable[nn.Parameter]) -> list[list[Tensor]]:
    buckets: list[list[Tensor]] = []
    room, kind = 0, None
    for parameter in parameters:
        gradient = parameter.grad
        if gradient is None or isinstance(gradient, DTensor):
            continue
        if room <= 0 or (gradient.dtype, gradient.device) != kind:
            buckets.append([])
            room, kind = BUCKET_BYTES, (gradient.dtype, gradient.device)
        buckets[-1].append(gradient)
        room -= gradient.numel() * gradient.element_size()
    return buckets


@torch.no_grad()
def copy_from_first(tensors: Sequence[Tensor]) -> None:
    """Overwrite `tensors` by those of the first rank."""
    if world_size() > 1:
        for tensor in tensors:
            whole = tensor.detach().contiguous()
            dist.broadcast(whole, 0)
            if whole.data_ptr() != tensor.data_ptr():
                tensor.copy_(whole)


# ---- rows of the whole batch ------------------------------------------------------------------
class _Gather(torch.autograd.Function):
    """All ranks' rows, in order; a row's gradient is the sum over the ranks that used it."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        ctx.count = len(rows)
        parts = [torch.empty_like(rows, memory_format=torch.contiguous_format) for _ in range(world_size())]
        dist.all_gather(parts, rows.contiguous())
        return torch.cat(parts)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        total = gradient.contiguous().clone()
        dist.all_reduce(total)
        return total[rank() * ctx.count : (rank() + 1) * ctx.count]


def gather_rows(rows: Tensor) -> Tensor:
    """Return the rows of the whole batch, `(ranks * B, …)`, of this rank's `(B, …)`, with gradients.

    A loss of gathered rows is the same number on every rank; averaged gradients are those of that loss.
    """
    if world_size() == 1:
        return rows
    gathered: Tensor = _Gather.apply(rows)  # type: ignore[no-untyped-call]
    return gathered


# ---- batch norm -------------------------------------------------------------------------------
class _NormOverRanks(torch.autograd.Function):
    """Batch norm on the statistics of all ranks' items, which are equally many on each."""

    @staticmethod
    def forward(
        ctx: Any, items: Tensor, weight: Tensor, bias: Tensor, running: tuple[Tensor, Tensor], momentum: float,
        eps: float,
    ) -> Tensor:  # fmt: skip
        dims = [dim for dim in range(items.dim()) if dim != 1]
        own_var, own_mean = torch.var_mean(items.to(weight.dtype), dims, correction=0)
        own = torch.stack([own_mean, own_var])
        every = [torch.empty_like(own) for _ in range(world_size())]
        dist.all_gather(every, own)
        means, variances = torch.stack(every).unbind(1)
        mean = means.mean(0)
        variance = variances.mean(0) + (means - mean).square().mean(0)
        count = items.numel() // items.shape[1] * world_size()
        running[0].mul_(1 - momentum).add_(momentum * mean)
        running[1].mul_(1 - momentum).add_(momentum * count / max(count - 1, 1) * variance)
        ctx.save_for_backward(items, weight, mean, (variance + eps).rsqrt())
        ctx.count, ctx.dims = count, dims
        return torch.native_batch_norm(items, weight, bias, mean, variance, False, 0.0, eps)[0]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        items, weight, mean, invstd = ctx.saved_tensors
        shape = [1, -1, *[1] * (items.dim() - 2)]
        given = gradient.to(weight.dtype)
        unit = (items.to(weight.dtype) - mean.view(shape)) * invstd.view(shape)
        sums = torch.stack([given.sum(ctx.dims), (given * unit).sum(ctx.dims)])
        whole = sums.clone()
        dist.all_reduce(whole)
        shift, slope = (whole / ctx.count).unbind(0)
        to_items = (given - shift.view(shape) - unit * slope.view(shape)) * (weight * invstd).view(shape)
        return to_items.to(items.dtype), sums[1], sums[0], None, None, None


class _OverRanks:
    """A batch norm whose batch is all ranks' items; in evaluation it is the plain one."""

    def forward(self, items: Tensor) -> Tensor:
        """Normalise `(B, C, …)`."""
        norm = cast(nn.BatchNorm2d, self)
        if not norm.training:
            return nn.functional.batch_norm(
                items, norm.running_mean, norm.running_var, norm.weight, norm.bias, False, 0.0, norm.eps
            )
        assert norm.num_batches_tracked is not None
        assert norm.running_mean is not None and norm.running_var is not None
        norm.num_batches_tracked += 1
        return self.over_ranks(items, norm.weight, norm.bias, (norm.running_mean, norm.running_var))

    def over_ranks(
        self, items: Tensor, weight: Tensor, bias: Tensor, running: tuple[Tensor, Tensor]
    ) -> Tensor:
        """Normalise `(B, C, …)` with these parameters and move these running statistics."""
        norm = cast(nn.BatchNorm2d, self)
        assert norm.momentum is not None
        normed: Tensor = _NormOverRanks.apply(items, weight, bias, running, norm.momentum, norm.eps)  # type: ignore[no-untyped-call]
        return normed


class BatchNorm1dOverRanks(_OverRanks, nn.BatchNorm1d):
    """`nn.BatchNorm1d` over the items of all ranks; same parameters, same names."""


class BatchNorm2dOverRanks(_OverRanks, nn.BatchNorm2d):
    """`nn.BatchNorm2d` over the items of all ranks; same parameters, same names."""


_NORMS: dict[type[nn.Module], type[nn.Module]] = {
    nn.BatchNorm1d: BatchNorm1dOverRanks,
    nn.BatchNorm2d: BatchNorm2dOverRanks,
}


def synchronise_norms(module: nn.Module) -> int:
    """Let every batch norm below `module` see the whole batch; return how many there are.

    Layers stay the objects they are, with their parameters, buffers and names; only their class changes.
    """
    found = [part for part in module.modules() if type(part) in _NORMS]
    for part in found:
        part.__class__ = _NORMS[type(part)]
    return len(found)


def synchronise_codebooks(module: nn.Module) -> None:
    """Let every averaged code book below `module` count and revive with the latents of all ranks."""
    for part in module.modules():
        if isinstance(part, EmaQuantizer):
            part.sum_over_ranks, part.gather_over_ranks = summed, gather_rows


def synchronise(module: nn.Module, norms: bool, device: torch.device) -> None:
    """Make ready for training with all ranks: the first rank's weights everywhere, shared statistics.

    Args:
        module: to be trained, checkpoint loaded; it is moved to `device`.
        norms: whether batch norms see the batches of all ranks.
        device: where this rank trains.
    """
    if world_size() == 1:
        return
    module.to(device)
    copy_from_first([*module.parameters(), *module.buffers()])
    synchronise_codebooks(module)
    if norms:
        synchronise_norms(module)
