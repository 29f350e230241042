"""Seconds of a bidirectional GRU over sequences of unequal length: packed by torch, and ours.

Forward and backward, on the CPU, at the small encoder's size and at the published one.  Rounds are
interleaved, the best round of each is printed.

Run: python tests/perf/bench_recurrent.py [--rounds 5]
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from speech2image.speech.recurrent import run_recurrent

SIZES = {"sen_small": (64, 112, 128, 128, 1), "published SEN": (16, 112, 128, 512, 2)}


def packed(rnn: nn.GRU, inputs: Tensor, steps: Tensor) -> Tensor:
    """Run torch's GRU over a packed batch."""
    states, _ = rnn(pack_padded_sequence(inputs, steps, batch_first=True, enforce_sorted=False))
    return pad_packed_sequence(states, batch_first=True)[0]


def seconds(
    run: Callable[[nn.GRU, Tensor, Tensor], Tensor], rnn: nn.GRU, inputs: Tensor, steps: Tensor
) -> float:
    """Time one forward and backward pass."""
    rnn.zero_grad(set_to_none=True)
    start = time.perf_counter()
    run(rnn, inputs, steps).square().sum().backward()  # type: ignore[no-untyped-call]
    return time.perf_counter() - start


def main() -> None:
    """Print one line a size."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    print(f"bidirectional GRU, forward and backward, {torch.get_num_threads()} threads")
    for name, (batch, length, channels, units, layers) in SIZES.items():
        torch.manual_seed(0)
        rnn = nn.GRU(channels, units, layers, batch_first=True, bidirectional=True)
        inputs = torch.randn(batch, length, channels, requires_grad=True)
        steps = torch.randint(length // 2, length + 1, (batch,))
        steps[0] = length
        best = {"packed": float("inf"), "ours": float("inf")}
        for _ in range(rounds + 1):  # the first round warms both up and can only be slower
            for form, run in (("packed", packed), ("ours", run_recurrent)):
                best[form] = min(best[form], seconds(run, rnn, inputs, steps))
        ratio = best["packed"] / best["ours"]
        print(
            f"{name:<14} packed {best['packed']:.3f} s   ours {best['ours']:.3f} s   {ratio:.2f} times as fast"
        )


if __name__ == "__main__":
    main()
