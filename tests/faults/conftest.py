"""How many rounds a campaign of faults runs: a sample in `make test`, all of them in `make faults`."""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest


@pytest.fixture(scope="session")
def rounds() -> Callable[[int, int], int]:
    """Choose between the sample and the full count of rounds: `SPEECH2IMAGE_FAULTS=full` asks for all."""
    full_asked = os.environ.get("SPEECH2IMAGE_FAULTS") == "full"

    def choose(sample: int, full: int) -> int:
        return full if full_asked else sample

    return choose
