"""How many rounds a campaign of faults runs (a sample in `make test`, all in `make faults`), and toy runs."""

from __future__ import annotations

import os
import runpy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

Toys: Any = runpy.run_path(str(Path(__file__).with_name("toys.py")))["Toys"]


@pytest.fixture(scope="session")
def rounds() -> Callable[[int, int], int]:
    """Choose between the sample and the full count of rounds: `SPEECH2IMAGE_FAULTS=full` asks for all."""
    full_asked = os.environ.get("SPEECH2IMAGE_FAULTS") == "full"

    def choose(sample: int, full: int) -> int:
        return full if full_asked else sample

    return choose


@pytest.fixture(scope="session")
def toys(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Toys]:
    """Toy runs of every trainer in forks of one process."""
    made = Toys(tmp_path_factory.mktemp("toys"))
    yield made
    made.close()


@pytest.fixture(scope="session")
def long_runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """The program of `long_runs.py`, which trains toys by forks and watches them."""
    made = runpy.run_path(str(Path(__file__).with_name("long_runs.py")))["LongRuns"](
        tmp_path_factory.mktemp("long_runs")
    )
    yield made
    made.close()
