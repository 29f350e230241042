"""Which sampler a request comes to, and how its results are named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from speech2image.errors import ConfigError
from speech2image.training.painting import chosen_sampler, sampler_label
from speech2image.training.runs import Run

OWN = {"name": "skipping", "steps": 25, "guidance_scale": 3.0, "top_r": 1.0, "top_k": 0, "legacy": False}
OPEN = {"guidance_scale": None, "top_r": None, "top_k": None}


def run_of(stage: str = "diffusion", **sampler: Any) -> Run:
    config = {"generator": {"num_steps": 100}, "loss": {"schedule": "released"}, "sampler": OWN | sampler}
    return Run(Path("runs/x"), {"stage": stage, "num_tokens": 16}, config)


def test_what_is_left_open_is_as_in_the_run() -> None:
    asked = {"name": "halton", "steps": 16, **OPEN, "curve": "arccos"}
    found = chosen_sampler(run_of(), asked)
    assert found == {
        "name": "halton", "steps": 16, "guidance_scale": 3.0, "top_r": 1.0, "top_k": 0, "curve": "arccos"
    }  # fmt: skip
    assert chosen_sampler(run_of(), asked | {"guidance_scale": 1.0})["guidance_scale"] == 1.0
    assert chosen_sampler(run_of(), {"name": "from_run", "steps": 9, **OPEN}) == OWN | {"steps": 9}
    ancestral = run_of(name="ancestral", steps=None, legacy=None, guidance_scale=None)
    assert chosen_sampler(ancestral)["steps"] == 100 and chosen_sampler(ancestral)["guidance_scale"] == 1.0


@pytest.mark.parametrize(
    ("asked", "label"),
    [
        ({"name": "from_run", "steps": None, **OPEN}, ""),
        ({"name": "skipping", "steps": 25, **OPEN, "legacy": False}, ""),
        ({"name": "from_run", "steps": 8, **OPEN}, "skipping-8"),
        ({"name": "halton", "steps": 16, **OPEN, "curve": "arccos"}, "halton-16"),
        ({"name": "halton", "steps": 16, **OPEN, "curve": "cosine"}, "halton-16-curve-cosine"),
        ({"name": "skipping", "steps": 25, **OPEN, "top_r": 0.86, "legacy": True}, "skipping-25-legacy-true-top_r-0.86"),
        ({"name": "skipping", "steps": 25, **OPEN, "guidance_scale": 1.0}, "skipping-25-guidance_scale-1"),
    ],
)  # fmt: skip
def test_labels_tell_settings_apart(asked: dict[str, Any], label: str) -> None:
    assert sampler_label(run_of(), asked) == label


def test_gans_have_no_sampler() -> None:
    assert sampler_label(run_of("gan"), {"name": "from_run", "steps": None, **OPEN}) == ""
    for asked in ({"name": "halton", "steps": 16}, {"name": "from_run", "steps": 4}):
        with pytest.raises(ConfigError, match="has no sampler"):
            sampler_label(run_of("gan"), asked)


def test_steps_the_schedule_does_not_have_are_refused() -> None:
    with pytest.raises(ConfigError, match="steps=101, but the schedule has 100"):
        sampler_label(run_of(), {"name": "halton", "steps": 101, **OPEN, "curve": "arccos"})
