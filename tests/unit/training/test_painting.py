"""Which sampler a request comes to, and how its results are named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from speech2image.diffusion.transformer import DiffusionCondition
from speech2image.errors import ConfigError
from speech2image.speech.discriminant import Discriminant
from speech2image.training.painting import (
    Painted,
    Painter,
    ProjectingPainter,
    Told,
    chosen_sampler,
    sampler_label,
)
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
    for asked in (
        {"name": "halton", "steps": 16},
        {"name": "halton", "steps": None},
        {"name": "from_run", "steps": 4},
    ):
        with pytest.raises(ConfigError, match="has no sampler"):
            sampler_label(run_of("gan"), asked)


def test_steps_the_schedule_does_not_have_are_refused() -> None:
    with pytest.raises(ConfigError, match="steps=101, but the schedule has 100"):
        sampler_label(run_of(), {"name": "halton", "steps": 101, **OPEN, "curve": "arccos"})


class _Listener(Painter):
    """A painter that remembers what it is told."""

    def __call__(self, told: Told, addresses: Any, progress: Any = None) -> Painted:
        self.heard, self.strip = told, self.strip_frames
        self.addresses, self.progress = addresses, progress
        return Painted(torch.zeros(len(addresses), 3, 4, 4), calls=7)


def test_projecting_painter_tells_directions_and_passes_on_all_else() -> None:
    discriminant, listener = Discriminant(6, 2), _Listener()
    generator = torch.Generator().manual_seed(0)
    discriminant.mean.copy_(torch.randn(6, generator=generator))
    discriminant.directions.copy_(torch.randn(6, 2, generator=generator))
    listener.strip_frames = 3
    painter = ProjectingPainter(discriminant, listener)
    assert painter.strip_frames == 3
    painter.strip_frames = 5  # asked for later
    sentences, words = torch.randn(2, 6, generator=generator), torch.randn(2, 4, 3, generator=generator)
    addresses, progress = [("a", 0), ("b", 1)], lambda *_: None
    assert painter(sentences, addresses, progress).calls == 7
    assert torch.equal(listener.heard, discriminant(sentences)) and listener.strip == 5
    assert listener.addresses is addresses and listener.progress is progress
    listener.progress = None
    assert painter(DiffusionCondition(sentence=sentences, words=words), addresses, progress).calls == 7
    assert torch.equal(listener.heard.sentence, discriminant(sentences)) and listener.heard.words is words
    assert listener.addresses is addresses and listener.progress is progress
