"""Samplers that follow the reverse chain: every step, exact strides, and re-masking.

All samplers share one interface, `sample(predict, shape, draw)`, and differ in which tokens they settle when.
Those that reveal masked tokens in an order of their own are in `reveal.py`; both kinds are listed in
`samplers.py`.  Guidance and truncation belong to `predict`, see `predictor.py`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from speech2image.diffusion.process import draw_tokens, sample_posterior, start_tokens
from speech2image.diffusion.schedule import MaskReplaceSchedule
from speech2image.errors import ConfigError

#: `(tokens (B, L), t (B,)) -> log p(x_0 | x_t) (B, K, L)`
Predict = Callable[[Tensor, Tensor], Tensor]
#: `(stream name, shape) -> float tensor in [0, 1)` on the device of the model; equal names, equal numbers.
Draw = Callable[[str, tuple[int, ...]], Tensor]
#: `(calls done, calls in all) -> None`
Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class SampleResult:
    """What a sampler hands back.

    Attributes:
        tokens: `(B, L)` int64 in 0 .. K-1.
        strip: `(S, B, L)` int64 in 0 .. K, states on the way, evenly spaced, the last one `tokens`; None: not asked.
        calls: how often the network was called.
        guesses: `(S, B, L)` int64 in 0 .. K-1, what the network held likeliest when each of those states was made.
        frame_calls: the calls after which those states stood.
    """

    tokens: Tensor
    strip: Tensor | None
    calls: int
    guesses: Tensor | None = None
    frame_calls: tuple[int, ...] = ()


class Sampler(ABC):
    """Common part: the loop, progress, the strip of states on the way.

    Args:
        schedule: the chain the network was trained on.
        steps: steps of the loop, 1 .. T; None: T.
    Raises:  ConfigError: `steps` out of range.
    """

    def __init__(self, schedule: MaskReplaceSchedule, steps: int | None = None) -> None:
        steps = schedule.num_steps if steps is None else steps
        if not 1 <= steps <= schedule.num_steps:
            raise ConfigError(
                f"sampler: steps={steps}, but the schedule has {schedule.num_steps} steps",
                f"set sampler.steps to a number from 1 to {schedule.num_steps}",
            )
        self.schedule, self.steps = schedule, steps

    @torch.no_grad()
    def sample(
        self,
        predict: Predict,
        shape: tuple[int, int],
        draw: Draw,
        progress: Progress | None = None,
        strip_frames: int = 0,
    ) -> SampleResult:
        """Draw code grids.

        Args:    predict: log p(x_0 | x_t), a `Predictor`; shape: (B, L).
                 draw: source of uniform numbers; everything random comes from it.
                 progress: called after each call of the network; strip_frames: states to keep, 0 for none.
        """
        total = self.num_calls(shape[1])
        wanted = {round((frame + 1) * total / strip_frames) for frame in range(strip_frames)} | {total}
        frames: list[tuple[Tensor, Tensor, int]] = []
        guess: list[Tensor] = []

        def watched(tokens: Tensor, t: Tensor) -> Tensor:
            log_p = predict(tokens, t)
            guess[:] = [log_p.argmax(1)]
            return log_p

        tokens, calls = self.start(shape, draw), 0
        for state in self.states(watched if strip_frames else predict, tokens, draw):
            tokens = state
            calls += 1
            if strip_frames and calls in wanted:
                frames.append((tokens, guess[0], calls))
            if progress is not None:
                progress(calls, total)
        if not frames:
            return SampleResult(tokens, None, calls)
        strip, guesses, numbers = zip(*frames, strict=True)
        return SampleResult(tokens, torch.stack(strip), calls, torch.stack(guesses), numbers)

    def start(self, shape: tuple[int, int], draw: Draw) -> Tensor:
        """Give the tokens before the first call, `(B, L)`."""
        return start_tokens(self.schedule, draw("start", (*shape, 2)))

    def num_calls(self, length: int) -> int:
        """Return how often the network will be called for grids of `length` tokens."""
        return self.steps

    @abstractmethod
    def states(self, predict: Predict, tokens: Tensor, draw: Draw) -> Iterator[Tensor]:
        """Yield the tokens after each call of the network, `(B, L)`, the last ones without masks."""

    def times(self) -> list[int]:
        """Return the visited steps from T-1 down to -1, evenly spaced, `steps + 1` of them."""
        last = self.schedule.num_steps
        return [(last * (self.steps - i) + self.steps // 2) // self.steps - 1 for i in range(self.steps + 1)]


def step_tensor(t: int, tokens: Tensor) -> Tensor:
    """Give step `t` for every sample of `tokens`, `(B,)` int64 on its device, without a copy from the host."""
    return torch.full((tokens.shape[0],), t, dtype=torch.int64, device=tokens.device)


class SkippingSampler(Sampler):
    """Walk the chain in strides with the exact posterior p(x_s | x_t), s < t.

    Each step draws x_0 from the network and then x_s from q(x_s | x_t, x_0): the same distribution as drawing
    from the posterior, without writing it out.

    Args:
        schedule: the chain.
        steps: calls of the network; T // steps is the stride.
        legacy: walk as the released fast sampler does, which takes one-step transitions at strides: tokens come
            out of the mask late.  For comparisons only.
    Source:  VQ-Diffusion, section 4.3 (fast inference); posterior for strides from equations 5 and 8.  Differs:
        exact unless `legacy`; reference `sample_fast` is not.
    """

    def __init__(self, schedule: MaskReplaceSchedule, steps: int | None = None, legacy: bool = False) -> None:
        super().__init__(schedule, steps)
        stride = schedule.num_steps // self.steps
        self._legacy_pairs = legacy_pairs(schedule.num_steps, stride - 1) if legacy and stride > 1 else None

    def num_calls(self, length: int) -> int:
        """Return `steps`; one or more beyond it where `legacy` pairs do not divide the chain."""
        return self.steps if self._legacy_pairs is None else len(self._legacy_pairs)

    def _moves(self) -> list[tuple[int, int, int]]:
        """List what happens: the step the network is told, and the two ends of the transition."""
        if self._legacy_pairs is not None:
            return [(told, t, t - 1) for told, t in self._legacy_pairs]
        times = self.times()
        return [(t, t, s) for t, s in pairwise(times)]

    def states(self, predict: Predict, tokens: Tensor, draw: Draw) -> Iterator[Tensor]:
        """Yield x_s for each stride, see `Sampler.states`."""
        for told, t, s in self._moves():
            log_p = predict(tokens, step_tensor(told, tokens))
            tokens = self._move(log_p, tokens, (t, s), draw)
            yield tokens

    def _move(self, log_p: Tensor, tokens: Tensor, ends: tuple[int, int], draw: Draw) -> Tensor:
        t, s = (step_tensor(end, tokens) for end in ends)
        x0 = draw_tokens(log_p, draw(f"token/{ends[0]}", tuple(tokens.shape)))
        uniform = draw(f"step/{ends[0]}", (*tokens.shape, 2))
        return sample_posterior(x0, tokens, t, s, self.schedule, uniform)


class AncestralSampler(SkippingSampler):
    """Walk the chain step by step, T calls of the network.

    Source: VQ-Diffusion, algorithm 2; reference `sample`.
    """

    def __init__(self, schedule: MaskReplaceSchedule, steps: int | None = None) -> None:
        if steps not in (None, schedule.num_steps):
            raise ConfigError(
                f"sampler: ancestral takes all {schedule.num_steps} steps, but steps={steps}",
                "set sampler=skipping for fewer steps, or drop sampler.steps",
            )
        super().__init__(schedule)


def legacy_pairs(num_steps: int, skip: int) -> list[tuple[int, int]]:
    """List what the released fast sampler does: the step told to the network, the step its posterior uses.

    Args:    num_steps: T; skip: steps left out between two visits, 1 or more.
    Source:  reference `sample_fast`.
    """
    visited = list(range(num_steps - 1, -1, -1 - skip))
    visited += [0] if visited[-1] != 0 else []
    return [(t, t - skip if t > skip else t) for t in visited]


class RemaskingSampler(SkippingSampler):
    """Walk in strides, but put settled tokens back under the mask with a small probability.

    Later, better informed calls may then correct early tokens; every marginal q(x_s | x_0) of an all-mask chain
    stays as it is.

    Args:
        schedule: the chain; its replaced mass is neglected, use `released`.
        steps: calls of the network.
        rate: cap on the probability that a settled token is masked again in one step.
    Raises:  ConfigError: `rate` out of range, or a schedule that replaces tokens.
    Source:  Wang et al. 2025, Remasking Discrete Diffusion Models (arXiv 2503.00307), the capped schedule.
    """

    def __init__(self, schedule: MaskReplaceSchedule, steps: int | None = None, rate: float = 0.04) -> None:
        super().__init__(schedule, steps)
        if not 0.0 <= rate <= 1.0:
            raise ConfigError(
                f"sampler: rate={rate}, expected a probability",
                "set sampler.rate=0.04, or 0 to never re-mask",
            )
        if not schedule.starts_masked:
            raise ConfigError(
                f"sampler: remask works on schedules that only mask, this one is {schedule.kind!r}",
                "set sampler=skipping, or train with diffusion.schedule=released",
            )
        self.rate = rate

    def _move(self, log_p: Tensor, tokens: Tensor, ends: tuple[int, int], draw: Draw) -> Tensor:
        t, s = ends
        kept_t, kept_s = (1.0 - self.schedule.gamma_bar[end] for end in (t, s))
        # Never more than leaves the marginal at s reachable.
        again = (((1.0 - kept_s) / kept_t).clamp_max(self.rate)) if s >= 0 else torch.zeros_like(kept_s)
        reveal = (kept_s - (1.0 - again) * kept_t) / (1.0 - kept_t)
        x0 = draw_tokens(log_p, draw(f"token/{t}", tuple(tokens.shape)))
        which = draw(f"step/{t}", tuple(tokens.shape))
        masked = tokens == self.schedule.mask_index
        revealed = torch.where(which < reveal, x0, tokens)
        return torch.where(masked, revealed, tokens.masked_fill(which < again, self.schedule.mask_index))
