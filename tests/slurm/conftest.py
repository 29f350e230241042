"""A real SLURM of one node for the tests of this folder, and a place that its jobs and the tests share."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from clusters import SCRIPT, Cluster, missing, processes_of


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Start a SLURM of one node with a corpus prepared beside it; stop it at the end, with nothing left."""
    if reason := missing():
        pytest.skip(reason)
    folder = tmp_path_factory.mktemp("cluster")
    source = Path(__file__).parents[2] / "src"
    env = {key: value for key, value in os.environ.items() if not key.startswith(("SLURM_", "SBATCH_"))}
    env |= {
        "SPEECH2IMAGE_SLURM": str(folder / "slurm"), "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join([str(source), *filter(None, [env.get("PYTHONPATH")])]),
    }  # fmt: skip
    started = subprocess.run(
        [str(SCRIPT), "start"], env=env, capture_output=True, text=True, timeout=120, check=False
    )
    assert started.returncode == 0, started.stderr
    env["SLURM_CONF"] = started.stdout.strip().removeprefix("export SLURM_CONF=")
    here = Cluster(folder, env)
    try:
        yield here
    finally:
        stopped = subprocess.run(
            [str(SCRIPT), "stop"], env=env, capture_output=True, text=True, timeout=120, check=False
        )
    assert stopped.returncode == 0 and not (folder / "slurm").exists(), stopped.stderr
    assert processes_of(env["SLURM_CONF"]) == []
