"""Play the scenarios of `worker.py` once: alone and with two ranks, side by side, in processes of their own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

WORKER = Path(__file__).with_name("worker.py")
SCENARIOS = {
    1: "trainers,gradients,first_half,second_half",
    2: "trainers,gradients,first_half,second_half,sharded",
}


class Played:
    """What the scenarios wrote.

    Args:    folder: of the results.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def of(self, scenario: str, ranks: int, rank: int = 0) -> dict[str, Any]:
        """Return the results of one rank."""
        path = self.folder / f"{scenario}-{rank}-of-{ranks}.pt"
        found: dict[str, Any] = torch.load(path, weights_only=True)
        return found


@pytest.fixture(scope="session")
def played(tmp_path_factory: pytest.TempPathFactory) -> Played:
    """Start one process alone and two together; each waits for what it needs of the others."""
    folder = tmp_path_factory.mktemp("ranks")
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    started = []
    for ranks, scenarios in SCENARIOS.items():
        for rank in range(ranks):
            words = [sys.executable, str(WORKER), scenarios, str(rank), str(ranks), str(folder)]
            log = (folder / f"log-{rank}-of-{ranks}.txt").open("w")
            started.append((subprocess.Popen(words, env=env, stdout=log, stderr=log), Path(log.name)))
    try:
        for process, log_path in started:
            assert process.wait(timeout=400) == 0, log_path.read_text()[-3000:]
    finally:
        for process, _ in started:
            process.kill()
    return Played(folder)
