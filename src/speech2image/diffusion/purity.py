"""The purity-prior sampler of Improved VQ-Diffusion, and the token counts its authors released.

Each step reveals a planned number of masked positions, at random or the purest first, and the last step draws
every position once more.  Other revealing samplers are in `reveal.py`.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from speech2image.diffusion.chain import Draw, Predict, step_tensor
from speech2image.diffusion.process import draw_tokens
from speech2image.diffusion.reveal import RevealingSampler, choose_positions, purity, reveal, sharpen
from speech2image.diffusion.schedule import MaskReplaceSchedule
from speech2image.errors import ConfigError

#: Tokens of the grid the released counts were made for.
RELEASED_LENGTH = 1024


def released_counts(num_steps: int, per_call: int = RELEASED_LENGTH) -> list[int] | None:
    """Give the released number of tokens to reveal at each step, by step; entry 0 is left to the last draw.

    Args:    num_steps: 100, 50, 25 or 10; per_call: tokens revealed by one call of the network.
    Returns: `num_steps` counts; None for other numbers of steps.
    Source:  reference `n_sample`.
    """
    if num_steps == 100:
        first, last = (10, [11, 11]) if per_call > 10 else (6, [11, 15])
        return [1, first] + [11, 10, 10] * 32 + last
    return {
        50: [10] + [21, 20] * 24 + [30],
        25: [21] + [41] * 23 + [60],
        10: [69] + [102] * 8 + [139],
    }.get(num_steps)


def position_weights(log_p: Tensor, masked: Tensor, rule: int) -> Tensor:
    """Weigh the masked positions for the draw of those to reveal.

    Args:    log_p: `(B, K, L)`; masked: `(B, L)` bool; rule: 1 all alike, 2 by purity.
    Returns: `(B, L)`, 0 where nothing is masked.
    Source:  Improved VQ-Diffusion (arXiv 2205.16007), section 3.2.
    """
    return purity(log_p) * masked if rule == 2 else masked.to(log_p.dtype)


class PuritySampler(RevealingSampler):
    """Reveal a fixed number of tokens a step: high-quality inference (rule 1) or purity prior (rule 2).

    Args:
        schedule: the chain.
        steps: visited steps, 1 .. T; the last one draws all positions from p(x_0).
        rule: 1: positions at random; 2: pure positions first.
        weight: rule 2 only: sharpen pure positions, see `sharpen`; 0 does not.
        per_call: most tokens revealed by one call; a step with more to reveal calls again.
    Raises:  ConfigError: rule, weight or per_call out of range.
    Source:  Improved VQ-Diffusion, section 3.2; reference `p_sample` with `prior_rule`, `prior_weight`,
        `prior_ps`.  Differs: counts are scaled to the grid, where the released ones hold for 1024 tokens only.
    """

    def __init__(
        self,
        schedule: MaskReplaceSchedule,
        steps: int | None = None,
        rule: int = 2,
        weight: float = 0.0,
        per_call: int = RELEASED_LENGTH,
    ) -> None:
        super().__init__(schedule, steps)
        if rule not in (1, 2) or weight < 0 or per_call < 1:
            raise ConfigError(
                f"sampler: rule={rule}, weight={weight}, per_call={per_call}; expected 1 or 2, 0 or more, 1 or more",
                "set sampler.rule=2 sampler.weight=1 sampler.per_call=1024",
            )
        self.rule, self.weight, self.per_call = rule, weight, per_call

    def counts(self, length: int) -> list[int]:
        """Return how many tokens each visited step but the last reveals, in the order of the visits."""
        table = released_counts(self.steps, self.per_call) or [1] * self.steps
        # Entry 0 of the table of 100 is a dummy: the others already make up the grid.
        rest = max(0, RELEASED_LENGTH - sum(table[1:])) if self.steps in (100, 50, 25, 10) else table[0]
        total, done, counts = rest + sum(table[1:]), 0, []
        for count in reversed(table[1:]):
            before, done = done, done + count
            counts.append(
                (2 * length * done + total) // (2 * total) - (2 * length * before + total) // (2 * total)
            )
        return counts

    def calls(self, count: int) -> list[int]:
        """Split what a step reveals into calls of the network; a single token left over joins the last."""
        parts: list[int] = []
        while count > 0:
            part = min(count, self.per_call)
            part += count - part == 1
            parts.append(part)
            count -= part
        return parts

    def plan(self, length: int) -> list[int]:
        """Return how many positions each call but the last reveals, and 0 for the last, which draws all."""
        return [part for count in self.counts(length) for part in self.calls(count)] + [0]

    def states(self, predict: Predict, tokens: Tensor, draw: Draw) -> Iterator[Tensor]:
        """Yield the tokens after each call, see `Sampler.states`."""
        shape = (tokens.shape[0], tokens.shape[1])
        times = self.times()
        call = 0
        for t, count in zip(times, self.counts(shape[1]), strict=False):
            for part in self.calls(count):
                log_p = predict(tokens, step_tensor(t, tokens))
                weights = position_weights(log_p, tokens == self.schedule.mask_index, self.rule)
                if self.rule == 2:
                    log_p = sharpen(log_p, purity(log_p), self.weight)
                drawn = draw_tokens(log_p, draw(f"token/{call}", shape))
                chosen = choose_positions(weights, part, draw(f"choice/{call}", shape))
                tokens = reveal(tokens, drawn, chosen)
                call += 1
                yield tokens
        log_p = predict(tokens, step_tensor(times[-2], tokens))
        yield draw_tokens(log_p, draw(f"token/{call}", shape))
