"""Fixtures shared by the layers: a tiny corpus in a temporary folder, and the command line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

#: Overrides that make `spoken_birds` tiny.
TINY_BIRDS = (
    "data.make.num_train_species=6",
    "data.make.num_test_species=4",
    "data.make.images_per_species=3",
    "data.make.captions_per_image=2",
    "data.max_captions=1",
)


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for data, cache and runs shared by the tests of one session."""
    return tmp_path_factory.mktemp("workplace")


@pytest.fixture(scope="session")
def place(workplace: Path) -> tuple[str, ...]:
    """Overrides that put everything below `workplace`."""
    return tuple(f"paths.{name}={workplace / name}" for name in ("data", "cache", "runs", "weights"))


@pytest.fixture
def command(place: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Run one command of the suite in this process: exit code, output, messages."""
    from speech2image.app.cli import main

    def call(*words: str) -> tuple[int, str, str]:
        capsys.readouterr()
        code = main([*words, *place])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call
