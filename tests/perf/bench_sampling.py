"""Seconds of a whole sampling loop of discrete diffusion beside its textbook form, cross-attention form.

The textbook form walks the chain on log one-hot tensors over the code book: the network of
`bench_diffusion_step.py` written out, the softmax in float64, the dense posterior of `bench_posterior.py`, one
Gumbel number a class; truncation sorts the code book.  Both have equal weights and take equally many steps;
their predictions must agree.  Rounds are interleaved in alternating order, medians are printed.

Run: python tests/perf/bench_sampling.py [--steps 10 --depth 4 --dim 512 --heads 16 --batch 1 --rounds 3 --threads 2]
"""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[2] / "src"))
from bench_diffusion_step import (
    GRID,
    NUM_TOKENS,
    interleaved,
    network,
    parse,
    textbook_draw,
    textbook_scores,
    unit_words,
)
from bench_posterior import Textbook

from speech2image.diffusion.predictor import Predictor
from speech2image.diffusion.samplers import AncestralSampler
from speech2image.diffusion.schedule import MaskReplaceSchedule
from speech2image.diffusion.transformer import DiffusionCondition, DiffusionTransformer


def textbook_truncation(log_p: Tensor, r: float) -> Tensor:
    """Keep a class if all better ones together have less than `r`."""
    ordered, order = log_p.sort(dim=1, descending=True)
    before = ordered.exp().cumsum(1) - ordered.exp()
    return log_p.masked_fill(~(before < r).gather(1, order.argsort(1)), -70.0)


class TextbookLoop:
    """The reverse chain, step by step, as the paper writes it."""

    def __init__(self, net: DiffusionTransformer, schedule: MaskReplaceSchedule, words: Tensor) -> None:
        self.net, self.textbook, self.words = net, Textbook(schedule), words

    def predict(self, tokens: Tensor, t: Tensor) -> Tensor:
        """Return log p(x_0 | x_t) `(B, K+1, L)`."""
        return self.textbook.predict_start(textbook_scores(self.net, tokens, t, self.words))

    @torch.no_grad()
    def __call__(self, top_r: float) -> Tensor:
        """Draw code grids `(B, L)`."""
        batch, length = len(self.words), GRID[0] * GRID[1]
        tokens = torch.full((batch, length), NUM_TOKENS)
        for step in reversed(range(self.textbook.schedule.num_steps)):
            t = torch.full((batch,), step)
            log_p = self.predict(tokens, t)
            log_p = textbook_truncation(log_p, top_r) if top_r < 1 else log_p
            tokens = textbook_draw(self.textbook.posterior(log_p, tokens, t))
        return tokens


def main() -> None:
    """Compare predictions, then the loops with and without truncation."""
    defaults = {"steps": 10, "depth": 4, "dim": 512, "heads": 16, "batch": 1, "rounds": 3, "threads": 2}
    options = parse(defaults, __doc__ or "")
    net = network(options, options.steps).eval()
    schedule = MaskReplaceSchedule(NUM_TOKENS, options.steps)
    words = unit_words(options.batch)
    condition, shape = DiffusionCondition(words=words), (options.batch, GRID[0] * GRID[1])
    textbook, sampler = TextbookLoop(net, schedule, words), AncestralSampler(schedule)

    def ours(top_r: float) -> Tensor:
        predict = Predictor(net, condition, top_r=top_r)
        return sampler.sample(predict, shape, lambda _, size: torch.rand(size)).tokens

    tokens, t = torch.randint(NUM_TOKENS + 1, shape), torch.full(shape[:1], options.steps // 2)
    with torch.no_grad():
        gap = (textbook.predict(tokens, t)[:, :-1] - Predictor(net, condition)(tokens, t)).abs().max()
    assert float(gap) < 1e-4, gap
    print(f"diffusion sampling loop, {vars(options)}, predictions differ by {float(gap):.1e}")
    for top_r in (1.0, 0.86):
        forms = {"textbook": partial(textbook, top_r), "ours": partial(ours, top_r)}
        medians, ratio = interleaved(forms, options.rounds)
        print(
            f"  top_r {top_r}: textbook {medians['textbook']:.3f} s, ours {medians['ours']:.3f} s, {ratio:.2f}x faster"
        )


if __name__ == "__main__":
    main()
