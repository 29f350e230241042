"""Run recurrent layers over sequences of unequal length.

Here: one function shared by the speech encoders.  On a GPU it packs the sequences for cuDNN; on a
CPU it turns the backward direction round inside each sequence instead, because the gradient of a
packed sequence there clears the whole sequence once per step.  Both give the same numbers.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence


def run_recurrent(rnn: nn.LSTM | nn.GRU, inputs: Tensor, steps: Tensor) -> Tensor:
    """Return the states of `rnn` over the first `steps` of each sequence.

    Args:
        rnn: batch-first layers without dropout between them.
        inputs: `(B, N, C)` float32.
        steps: `(B,)` int64 on the CPU, from 1 to N.

    Returns: `(B, N, D)` float32, 0 beyond `steps`; D counts both directions.
    Cost:    on a CPU about half the time of a packed run, forward and backward together.
    """
    if inputs.device.type != "cpu":
        packed = pack_padded_sequence(inputs, steps, batch_first=True, enforce_sorted=False)
        return pad_packed_sequence(rnn(packed)[0], batch_first=True, total_length=inputs.shape[1])[0]
    places = torch.arange(inputs.shape[1])
    mask = places < steps[:, None]
    turned = torch.where(mask, steps[:, None] - 1 - places, places)[:, :, None]
    states = inputs.to(next(rnn.parameters()).dtype)
    for layer in range(rnn.num_layers):
        forward = _run_one(rnn, layer, "", states)
        if rnn.bidirectional:
            backward = _run_one(rnn, layer, "_reverse", _take(states, turned))
            forward = torch.cat([forward, _take(backward, turned)], dim=2)
        states = forward * mask[:, :, None]
    return states


def _take(states: Tensor, places: Tensor) -> Tensor:
    return states.gather(1, places.expand(-1, -1, states.shape[2]))


def _run_one(rnn: nn.LSTM | nn.GRU, layer: int, suffix: str, inputs: Tensor) -> Tensor:
    names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
    weights = [getattr(rnn, f"{name}_l{layer}{suffix}") for name in names]
    start = inputs.new_zeros(1, inputs.shape[0], rnn.hidden_size)
    settings = (weights, True, 1, 0.0, rnn.training, False, True)
    if isinstance(rnn, nn.LSTM):
        return torch.lstm(inputs, (start, start), *settings)[0]
    return torch.gru(inputs, start, *settings)[0]
