"""Every file in conf/ composes, validates and builds; every experiment trains two steps."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from speech2image.config.compose import choices

EXPERIMENTS = choices("experiment")


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_experiment_composes_validates_and_builds(experiment: str, command: Callable[..., tuple[int, str, str]]) -> None:
    code, out, err = command("train", f"experiment={experiment}", "validate_only=true")
    assert code == 0, err
    assert "parameters" in out and f"run name: {experiment}-" in out


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_experiment_file_is_short_and_explained(experiment: str) -> None:
    from speech2image.config.compose import conf_dir

    lines = (conf_dir() / "experiment" / f"{experiment}.yaml").read_text().splitlines()
    assert len(lines) <= 30
    assert lines[1].startswith("# "), "the second line says what it is"
