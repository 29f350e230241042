"""Run recurrent layers over sequences of unequal length.

Here: one function shared by the speech encoders.  On a GPU it packs the sequences for cuDNN.  On a
CPU it turns the backward direction round inside each sequence instead, because the gradient of a
packed sequence there clears the whole sequence once per step, and sweeps a GRU through time with
both directions in one product and the weights' gradient as one product at the end.  All give the
same numbers.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence


def run_recurrent(rnn: nn.LSTM | nn.GRU, inputs: Tensor, steps: Tensor) -> Tensor:
    """Return the states of `rnn` over the first `steps` of each sequence.

    Args:
        rnn: batch-first layers without dropout between them.
        inputs: `(B, N, C)` float32.
        steps: `(B,)` int64 on the CPU, from 1 to N.

    Returns: `(B, N, D)` float32, 0 beyond `steps`; D counts both directions.
    Cost:    on a CPU, forward and backward together: half the time of a packed run; GRUs of 128 units
             take half of that again, GRUs of 512 the same.
    """
    if inputs.is_meta:  # shapes only: there is nothing to pack by
        return rnn(inputs)[0]
    if inputs.device.type != "cpu":
        packed = pack_padded_sequence(inputs, steps, batch_first=True, enforce_sorted=False)
        return pad_packed_sequence(rnn(packed)[0], batch_first=True, total_length=inputs.shape[1])[0]
    places = torch.arange(inputs.shape[1])
    mask = places < steps[:, None]
    turned = torch.where(mask, steps[:, None] - 1 - places, places)[:, :, None]
    states = inputs.to(next(rnn.parameters()).dtype)
    run_layer = _gru_layer if isinstance(rnn, nn.GRU) else _lstm_layer
    for layer in range(rnn.num_layers):
        sides = [states, _take(states, turned)] if rnn.bidirectional else [states]
        results = run_layer(rnn, layer, sides)
        if rnn.bidirectional:
            results[1] = _take(results[1], turned)
        states = torch.cat(results, dim=2) * mask[:, :, None]
    return states


def _take(states: Tensor, places: Tensor) -> Tensor:
    return states.gather(1, places.expand(-1, -1, states.shape[2]))


def _weights(rnn: nn.Module, layer: int, direction: int) -> list[Tensor]:
    suffix = "_reverse" if direction else ""
    names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
    return [getattr(rnn, f"{name}_l{layer}{suffix}") for name in names]


def _lstm_layer(rnn: nn.Module, layer: int, sides: list[Tensor]) -> list[Tensor]:
    assert isinstance(rnn, nn.LSTM)
    start = sides[0].new_zeros(1, sides[0].shape[0], rnn.hidden_size)
    settings = (True, 1, 0.0, rnn.training, False, True)
    return [
        torch.lstm(side, (start, start), _weights(rnn, layer, direction), *settings)[0]
        for direction, side in enumerate(sides)
    ]


def _gru_layer(rnn: nn.Module, layer: int, sides: list[Tensor]) -> list[Tensor]:
    """Return the states `(B, N, H)` of each direction from its inputs `(B, N, C)`."""
    assert isinstance(rnn, nn.GRU)
    gates, hidden, biases = [], [], []
    for direction, side in enumerate(sides):
        weight_ih, weight_hh, bias_ih, bias_hh = _weights(rnn, layer, direction)
        # torch keeps reset, update, candidate; the sweep wants the candidate in front of the inputs' part
        order = torch.arange(3 * rnn.hidden_size).roll(rnn.hidden_size)
        gates.append(functional.linear(side.transpose(0, 1), weight_ih[order], bias_ih[order]))
        hidden.append(weight_hh.T)
        biases.append(bias_hh[None])
    swept = _GruSweep.apply(torch.stack(gates), torch.stack(hidden), torch.stack(biases))  # type: ignore[no-untyped-call]
    return [states.transpose(0, 1) for states in swept.unbind(0)]


class _GruSweep(torch.autograd.Function):
    """Step a GRU through time for all K directions at once, from zero.

    r, z = sigmoid(gates_rz + h W_rz + b_rz),  n = tanh(gates_n + r (h W_n + b_n)),  h' = (1 - z) n + z h.

    Inputs: `gates` `(K, N, B, 3H)`, the inputs' part with its bias, order n, r, z; `weight` `(K, H, 3H)`
    and `bias` `(K, 1, 3H)`, order r, z, n.  Result: `(K, N, B, H)`.
    """

    @staticmethod
    def forward(ctx: Any, gates: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        directions, steps, batch, width = gates.shape
        h = width // 3
        states = gates.new_empty(directions, steps + 1, batch, h)
        states[:, 0] = 0
        reset_update = gates.new_empty(directions, steps, batch, 2 * h)
        candidate, recalled = (gates.new_empty(directions, steps, batch, h) for _ in range(2))
        product = gates.new_empty(directions, batch, width)
        for t in range(steps):
            torch.baddbmm(bias, states[:, t], weight, out=product)
            rz = torch.add(gates[:, t, :, h:], product[..., : 2 * h], out=reset_update[:, t]).sigmoid_()
            recalled[:, t] = product[..., 2 * h :]
            n = torch.addcmul(gates[:, t, :, :h], rz[..., :h], recalled[:, t], out=candidate[:, t]).tanh_()
            torch.lerp(n, states[:, t], rz[..., h:], out=states[:, t + 1])
        ctx.save_for_backward(reset_update, candidate, recalled, states, weight)
        return states[:, 1:]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        reset_update, candidate, recalled, states, weight = ctx.saved_tensors
        (grad,) = grads
        directions, steps, batch, h = candidate.shape
        back = weight.transpose(1, 2).contiguous()
        # gradients before the nonlinearities, order n, r, z and r n: inputs see the first three parts,
        # the state the last three
        inner = candidate.new_empty(directions, steps, batch, 4 * h)
        ahead = torch.zeros_like(states[:, 0])
        for t in reversed(range(steps)):
            r, z = reset_update[:, t].split(h, dim=-1)
            n, before = candidate[:, t], states[:, t]
            d_n, d_r, d_z, d_recalled = inner[:, t].split(h, dim=-1)
            total = grad[:, t] + ahead
            held = total * z
            opened = total - held  # total (1 - z)
            torch.mul(opened, 1 - n * n, out=d_n)
            torch.mul(d_n, r, out=d_recalled)
            torch.mul(d_recalled * recalled[:, t], 1 - r, out=d_r)
            torch.mul((before - n) * z, opened, out=d_z)
            ahead = torch.baddbmm(held, inner[:, t, :, h:], back)
        to_state = inner[..., h:]
        d_weight = torch.bmm(states[:, :-1].flatten(1, 2).transpose(1, 2), to_state.flatten(1, 2))
        return inner[..., : 3 * h], d_weight, to_state.sum(dim=(1, 2))[:, None]
