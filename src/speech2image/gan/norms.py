"""Batch norm with its activation, in one differentiable step that keeps half the memory.

Here: norm and gate (or leaky ReLU) as one function that keeps only its input and computes the
normalised map again in the backward pass, and statistics per kind of image for batches that mix
real, mismatched and generated images.  Blocks that use them are in `blocks.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

_Norm = Callable[[Tensor, Tensor, Tensor, tuple[Tensor, Tensor]], Tensor]


class _NormActivate(torch.autograd.Function):
    """Batch norm on batch statistics, then GLU over channels (`slope` None) or leaky ReLU."""

    @staticmethod
    def forward(
        ctx: Any,
        image_map: Tensor,
        weight: Tensor,
        bias: Tensor,
        running: tuple[Tensor, Tensor],
        settings: tuple[float, float, float | None],
    ) -> Tensor:
        momentum, eps, slope = settings
        normed, mean, invstd = torch.native_batch_norm(image_map, weight, bias, *running, True, momentum, eps)
        ctx.save_for_backward(image_map, weight, bias, mean, invstd)
        ctx.eps, ctx.slope = eps, slope
        return F.glu(normed, dim=1) if slope is None else F.leaky_relu_(normed, slope)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        image_map, weight, bias, mean, invstd = ctx.saved_tensors
        variance = invstd.square().reciprocal() - ctx.eps
        normed = torch.native_batch_norm(image_map, weight, bias, mean, variance, False, 0.0, ctx.eps)[0]
        if ctx.slope is None:
            inner = torch.ops.aten.glu_backward(gradient, normed, 1)
        else:
            inner = torch.ops.aten.leaky_relu_backward(gradient, normed, ctx.slope, False)
        del normed
        needed = list(ctx.needs_input_grad[:3])
        gradients = torch.ops.aten.native_batch_norm_backward(
            inner, image_map, weight, None, None, mean, invstd, True, ctx.eps, needed
        )
        return (*(g if need else None for g, need in zip(gradients, needed, strict=True)), None, None)


def normalise_activate(
    image_map: Tensor, norm: nn.BatchNorm2d, activation: nn.GLU | nn.LeakyReLU, num_kinds: int = 1
) -> Tensor:
    """Apply a batch norm and its activation.

    Args:
        image_map: `(B, C, H, W)`.
        norm: its running statistics are updated in training mode.  One with a method `over_ranks` normalises by
            the items of other processes too, in its own way.
        activation: GLU halves the channels.
        num_kinds: in training mode, images k, k + num_kinds, k + 2 num_kinds ... share statistics, as if
            each kind had its own forward pass; running statistics take the kinds in order.
    Returns: `(B, C, H, W)`, or `(B, C/2, H, W)` behind a GLU.
    Cost:    keeps `image_map` for the backward pass, where two separate layers keep twice as much.
    """
    over_ranks: _Norm | None = getattr(norm, "over_ranks", None)
    if not norm.training or (num_kinds == 1 and (over_ranks is not None or not torch.is_grad_enabled())):
        return activation(norm(image_map))
    slope = activation.negative_slope if isinstance(activation, nn.LeakyReLU) else None
    assert norm.running_mean is not None and norm.running_var is not None
    assert norm.num_batches_tracked is not None and norm.momentum is not None
    norm.num_batches_tracked += num_kinds
    settings = (norm.momentum, norm.eps, slope)
    if num_kinds == 1:
        running = (norm.running_mean, norm.running_var)
        return _NormActivate.apply(image_map, norm.weight, norm.bias, running, settings)  # type: ignore[no-untyped-call]
    kinds = image_map.contiguous().view(-1, num_kinds * image_map.shape[1], *image_map.shape[2:])
    running = (norm.running_mean.repeat(num_kinds), norm.running_var.repeat(num_kinds))
    weight, bias = norm.weight.repeat(num_kinds), norm.bias.repeat(num_kinds)
    if over_ranks is not None:
        result = activation(over_ranks(kinds, weight, bias, running))
    else:
        result = _NormActivate.apply(kinds, weight, bias, running, settings)  # type: ignore[no-untyped-call]
    for total, updated in zip((norm.running_mean, norm.running_var), running, strict=True):
        _fold_kinds(total, updated.view(num_kinds, -1), norm.momentum)
    return result.view_as(image_map)


def _fold_kinds(total: Tensor, updated: Tensor, momentum: float) -> None:
    """Turn one update of each kind from the same start into updates one after the other."""
    start = total.clone()
    for row in updated:
        total.mul_(1.0 - momentum).add_(row - (1.0 - momentum) * start)


def apply_layers(layers: nn.Sequential, image_map: Tensor, num_kinds: int = 1) -> Tensor:
    """Run a sequence of layers, each norm together with the activation behind it.

    Args:
        layers: convolutions, batch norms, GLUs, leaky ReLUs; a norm without activation only with one kind.
        image_map: `(B, C, H, W)`.
        num_kinds: as in `normalise_activate`.
    """
    pending: nn.BatchNorm2d | None = None
    for layer in layers:
        if isinstance(layer, nn.BatchNorm2d):
            pending = layer
        elif pending is not None:
            image_map = normalise_activate(image_map, pending, layer, num_kinds)  # type: ignore[arg-type]
            pending = None
        else:
            image_map = layer(image_map)
    if pending is not None:
        assert num_kinds == 1
        image_map = pending(image_map)
    return image_map
