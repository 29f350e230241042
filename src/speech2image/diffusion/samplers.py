"""Every sampler by name, with one place that builds them.

The interface and the chain samplers are in `chain.py`, the revealing ones in `reveal.py` and `purity.py`.
"""

from __future__ import annotations

import inspect
from typing import Any

from speech2image.diffusion.chain import (
    AncestralSampler,
    Draw,
    Predict,
    Progress,
    RemaskingSampler,
    Sampler,
    SampleResult,
    SkippingSampler,
)
from speech2image.diffusion.purity import PuritySampler
from speech2image.diffusion.reveal import ConfidenceSampler, HaltonSampler
from speech2image.diffusion.schedule import MaskReplaceSchedule
from speech2image.errors import ConfigError, nearest_names

__all__ = ["SAMPLERS", "Draw", "Predict", "Progress", "SampleResult", "Sampler", "make_sampler"]

SAMPLERS: dict[str, type[Sampler]] = {
    "ancestral": AncestralSampler,
    "skipping": SkippingSampler,
    "remask": RemaskingSampler,
    "purity": PuritySampler,
    "confidence": ConfidenceSampler,
    "halton": HaltonSampler,
}


def make_sampler(name: str, schedule: MaskReplaceSchedule, **options: Any) -> Sampler:
    """Build a sampler.

    Args:    name: a key of `SAMPLERS`; schedule: the chain the network was trained on.
             options: arguments of its class, e.g. `steps`.
    Raises:  ConfigError: unknown name or option, or an option out of range.
    """
    if name not in SAMPLERS:
        likely = nearest_names(name, SAMPLERS) or list(SAMPLERS)
        raise ConfigError(
            f"sampler {name!r} is unknown, expected one of {', '.join(SAMPLERS)}", f"set sampler={likely[0]}"
        )
    known = [option for option in inspect.signature(SAMPLERS[name]).parameters if option != "schedule"]
    strange = sorted(set(options) - set(known))
    if strange:
        raise ConfigError(
            f"sampler {name}: unknown option {', '.join(strange)}, expected some of {', '.join(known)}",
            f"drop sampler.{strange[0]}, or choose another sampler",
        )
    return SAMPLERS[name](schedule, **options)
