"""Toy runs for the faults; how many rounds a campaign has says the fixture `rounds` in `tests/conftest.py`."""

from __future__ import annotations

import runpy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

Toys: Any = runpy.run_path(str(Path(__file__).with_name("toys.py")))["Toys"]


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
