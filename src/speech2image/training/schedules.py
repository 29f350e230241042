"""Learning-rate factors as pure functions of the step."""

from __future__ import annotations

import math
from collections.abc import Callable


def make_schedule(
    name: str,
    max_steps: int,
    decay_every: int | None = None,
    decay_factor: float = 0.5,
    warmup_steps: int = 0,
) -> Callable[[int], float]:
    """Return the factor by which the learning rate is multiplied, as a function of the step.

    Args:
        name: `constant`; `step`: times `decay_factor` every `decay_every` steps; `cosine`: to zero
            over `max_steps`; `one_cycle`: linear rise over a tenth of the run, then cosine to zero;
            `linear`: SpeechCLIP's rise to the full rate, then a straight line to `decay_factor` of it.
        max_steps: length of the run.
        decay_every: steps between decays.
        decay_factor: factor of one decay; `linear`: factor of the last step and all beyond it.
        warmup_steps: linear rise at the start, for every name.

    >>> [round(make_schedule("step", 10, 4, 0.5)(s), 3) for s in (0, 3, 4, 8)]
    [1.0, 1.0, 0.5, 0.25]
    >>> [round(make_schedule("linear", 10, decay_factor=0.1, warmup_steps=4)(s), 3) for s in (0, 3, 6, 9, 12)]
    [0.25, 1.0, 0.55, 0.1, 0.1]
    """
    rise = max(1, max_steps // 10) if name == "one_cycle" else warmup_steps

    def factor(step: int) -> float:
        if name == "linear":
            falling = (step + 1 - rise) / max(1, max_steps - rise)
            return min((step + 1) / max(1, rise), max(decay_factor, 1 - (1 - decay_factor) * falling), 1.0)
        if step < rise:
            return (step + 1) / (rise + 1)
        if name == "step":
            return float(decay_factor ** (step // (decay_every or max_steps)))
        if name in ("cosine", "one_cycle"):
            share = min(1.0, (step - rise) / max(1, max_steps - rise))
            return 0.5 * (1 + math.cos(math.pi * share))
        return 1.0

    return factor
