"""Samplers that reveal masked tokens in an order of their own; what is revealed stays.

They start from a grid of masks and settle a planned number of positions at each call of the network: the purest
(`purity`), the most confident (`confidence`), or evenly spread ones (`halton`).  The interface is in `chain.py`.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Iterator
from functools import lru_cache

import torch
from torch import Tensor

from speech2image.diffusion.chain import Draw, Predict, Sampler, step_tensor
from speech2image.diffusion.process import LOG_MIN, draw_tokens, gumbel
from speech2image.diffusion.schedule import MaskReplaceSchedule
from speech2image.errors import ConfigError

#: Share of positions still masked when a share r of the steps is done.
CURVES: dict[str, Callable[[float], float]] = {
    "cosine": lambda r: math.cos(0.5 * math.pi * r),
    "linear": lambda r: 1.0 - r,
    "arccos": lambda r: 2.0 / math.pi * math.acos(r),
}


def reveal(tokens: Tensor, drawn: Tensor, positions: Tensor) -> Tensor:
    """Put drawn tokens at the chosen positions.

    Args:    tokens, drawn: `(B, L)` int64; positions: `(B, n)` int64.
    Returns: `(B, L)` int64.
    """
    return tokens.scatter(1, positions, drawn.gather(1, positions))


def choose_positions(weights: Tensor, count: int, uniform: Tensor) -> Tensor:
    """Draw positions without replacement, in proportion to their weights (Gumbel top-k).

    Args:    weights: `(B, L)` not below 0, at least `count` above 0 in each row; uniform: `(B, L)` in [0, 1).
    Returns: `(B, count)` int64, all different in a row.
    """
    return (weights.log() + gumbel(uniform)).topk(count, dim=1).indices


def purity(log_p: Tensor) -> Tensor:
    """Give the largest probability of each position, relative to the best position of its grid.

    Args:    log_p: `(B, K, L)`.
    Returns: `(B, L)` in (0, 1].
    Source:  Improved VQ-Diffusion (arXiv 2205.16007), section 3.2.
    """
    best = log_p.amax(1).exp()
    return best / best.amax(1, keepdim=True)


def sharpen(log_p: Tensor, score: Tensor, weight: float) -> Tensor:
    """Sharpen pure positions: p to the power 1 + weight * score, normalised.

    Args:    log_p: `(B, K, L)`; score: `(B, L)`; weight: 0 leaves `log_p` as it is.
    Returns: `(B, K, L)` in [-70, 0].
    Source:  Improved VQ-Diffusion, section 3.2; reference `purity_prior`.
    """
    if weight == 0:
        return log_p
    return ((1.0 + weight * score[:, None]) * log_p).log_softmax(1).clamp_min(LOG_MIN)


class RevealingSampler(Sampler):
    """Common part: a plan of how many positions each call reveals."""

    def start(self, shape: tuple[int, int], draw: Draw) -> Tensor:
        """Give a grid of masks, whatever the schedule ends in."""
        return torch.full_like(draw("start", shape), self.schedule.mask_index, dtype=torch.int64)

    @abstractmethod
    def plan(self, length: int) -> list[int]:
        """Return how many of `length` positions each call of the network reveals."""

    def num_calls(self, length: int) -> int:
        """Return how often the network will be called for grids of `length` tokens."""
        return len(self.plan(length))


class CurveSampler(RevealingSampler):
    """Common part of the samplers that follow a curve of masked positions.

    Args:
        schedule: the chain; the network is told the step at which as many tokens are masked as still are.
        steps: calls of the network at most; never more than there are positions.
        curve: `cosine`, `linear` or `arccos`.
    Raises:  ConfigError: unknown curve.
    """

    def __init__(self, schedule: MaskReplaceSchedule, steps: int | None, curve: str) -> None:
        super().__init__(schedule, steps)
        if curve not in CURVES:
            raise ConfigError(
                f"sampler: curve {curve!r} is unknown, expected one of {', '.join(CURVES)}",
                "set sampler.curve=cosine",
            )
        self.curve = curve

    def plan(self, length: int) -> list[int]:
        """Return how many positions each call reveals, see `RevealingSampler.plan`."""
        steps = min(self.steps, length)
        left, counts = length, []
        for step in range(1, steps + 1):
            # As many as the curve says, at least one, and at least one left for each later call.
            after = min(int(CURVES[self.curve](step / steps) * length + 1e-9), left - 1)
            after = max(after, steps - step)
            counts.append(left - after)
            left = after
        return counts

    def states(self, predict: Predict, tokens: Tensor, draw: Draw) -> Iterator[Tensor]:
        """Yield the tokens after each call, see `Sampler.states`."""
        shape = (tokens.shape[0], tokens.shape[1])
        plan = self.plan(shape[1])
        left = shape[1]
        for call, count in enumerate(plan):
            log_p = predict(tokens, step_tensor(self.schedule.step_at(left / shape[1]), tokens))
            drawn = draw_tokens(log_p, draw(f"token/{call}", shape))
            score = self.score(log_p, drawn, (call, len(plan)), draw)
            masked = tokens == self.schedule.mask_index
            positions = score.masked_fill(~masked, -torch.inf).topk(count, dim=1).indices
            tokens = reveal(tokens, drawn, positions)
            left -= count
            yield tokens

    @abstractmethod
    def score(self, log_p: Tensor, drawn: Tensor, call: tuple[int, int], draw: Draw) -> Tensor:
        """Rate positions `(B, L)`, high ones are revealed first; `call`: number of the call, calls in all."""


class ConfidenceSampler(CurveSampler):
    """Reveal the tokens the network is surest of (parallel decoding); not exact, in few steps often better.

    Args:
        schedule: the chain.
        steps: calls of the network; None: 16.
        curve: share of masks over time.
        choice_temperature: Gumbel noise on the confidence, falling linearly to 0; keeps samples diverse.
    Raises:  ConfigError: negative temperature.
    Source:  Chang et al. 2022, MaskGIT (arXiv 2202.04200), section 3.2.
    """

    def __init__(
        self,
        schedule: MaskReplaceSchedule,
        steps: int | None = None,
        curve: str = "cosine",
        choice_temperature: float = 4.5,
    ) -> None:
        super().__init__(schedule, min(16, schedule.num_steps) if steps is None else steps, curve)
        if choice_temperature < 0:
            raise ConfigError(
                f"sampler: choice_temperature={choice_temperature}, expected 0 or more",
                "set sampler.choice_temperature=4.5",
            )
        self.choice_temperature = choice_temperature

    def score(self, log_p: Tensor, drawn: Tensor, call: tuple[int, int], draw: Draw) -> Tensor:
        """Rate positions by the log-probability of what was drawn there, with noise that fades."""
        confidence = log_p.gather(1, drawn[:, None])[:, 0]
        temperature = self.choice_temperature * (1.0 - (call[0] + 1) / call[1])
        return confidence + temperature * gumbel(draw(f"choice/{call[0]}", tuple(drawn.shape)))


class HaltonSampler(CurveSampler):
    """Reveal positions in a low-discrepancy order, evenly spread over the image; exact with one a call.

    Args:
        schedule: the chain.
        steps: calls of the network; None: 16.
        curve: share of masks over time.
        grid: (H, W) of the code grid; None: square.
    Source:  Besnier et al. 2025, Halton Scheduler for Masked Generative Image Transformer (arXiv 2503.17076).
    """

    def __init__(
        self,
        schedule: MaskReplaceSchedule,
        steps: int | None = None,
        curve: str = "arccos",
        grid: tuple[int, int] | None = None,
    ) -> None:
        super().__init__(schedule, min(16, schedule.num_steps) if steps is None else steps, curve)
        self.grid = grid

    def score(self, log_p: Tensor, drawn: Tensor, call: tuple[int, int], draw: Draw) -> Tensor:
        """Rate positions by their place in the sequence."""
        side = math.isqrt(drawn.shape[1])
        height, width = self.grid or (side, side)
        if height * width != drawn.shape[1]:
            raise ConfigError(
                f"sampler: halton was given the grid {height} x {width} for {drawn.shape[1]} tokens",
                "set sampler.grid to the height and width of the codec's grid",
            )
        return -halton_rank(height, width).to(log_p).expand(drawn.shape)


@lru_cache(maxsize=8)
def halton_rank(height: int, width: int) -> Tensor:
    """Rank the cells of a grid by when the Halton sequence in bases 2 and 3 first falls into them.

    Returns: `(H * W,)` int64, a permutation, row-major cells.
    """
    ranks = [-1] * (height * width)
    found, index = 0, 1
    while found < len(ranks):
        row, column = int(radical_inverse(index, 2) * height), int(radical_inverse(index, 3) * width)
        cell = row * width + column
        if ranks[cell] < 0:
            ranks[cell], found = found, found + 1
        index += 1
    return torch.tensor(ranks)


def radical_inverse(index: int, base: int) -> float:
    """Mirror the digits of `index` at the point: 6 = 110 in base 2 becomes 0.011 = 0.375.

    >>> radical_inverse(6, 2)
    0.375
    """
    value, scale = 0.0, 1.0
    while index:
        index, digit = divmod(index, base)
        scale /= base
        value += digit * scale
    return value
