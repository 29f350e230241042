"""Commands typed beside a real SLURM of one node, and what its jobs are made of."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

SCRIPT = Path(__file__).parent / "one_node.sh"
#: Overrides of a corpus and an encoder small enough for a job of some seconds.
TINY = (
    "experiment=sen_birds", "data.make.num_train_species=6", "data.make.num_test_species=4",
    "data.make.images_per_species=3", "data.make.captions_per_image=2", "data.max_captions=1", "encoder.rnn_dim=16",
    "vision.embed_dim=32", "vision.width=8", "vision.pretrain_steps=5", "logger=none", "trainer.batch_size=8", "trainer.log_every=1", "trainer.val_every=1000",
    "callbacks.checkpoint.every=5", "callbacks.sample_grid.every=1000", "trainer.deterministic=true",
    "trainer.accelerator=cpu",
)  # fmt: skip
#: One core and a quarter of an hour for each job.
SMALL = ("hydra/launcher=slurm", "hydra.launcher.cpus_per_task=1", "hydra.launcher.time_min=15")


@dataclass
class Cluster:
    """A running SLURM, and commands of the suite typed beside it."""

    folder: Path
    env: dict[str, str] = field(default_factory=dict)

    @property
    def runs(self) -> Path:
        """Where runs of jobs go."""
        return self.folder / "runs"

    def paths(self, runs: str = "runs") -> list[str]:
        """Return overrides that put everything into the folder."""
        return [f"paths.{name}={self.folder / name}" for name in ("data", "cache", "weights")] + [
            f"paths.runs={self.folder / runs}"
        ]

    def type(self, *words: str, runs: str = "runs") -> subprocess.CompletedProcess[str]:
        """Type a command of the suite and wait for it."""
        command = [sys.executable, "-m", "speech2image", *words, *self.paths(runs)]
        return subprocess.run(
            command, env=self.env, capture_output=True, text=True, timeout=900, check=False, cwd=self.folder
        )

    def start(self, *words: str) -> subprocess.Popen[str]:
        """Type a command of the suite and go on."""
        command = [sys.executable, "-m", "speech2image", *words, *self.paths()]
        return subprocess.Popen(
            command,
            env=self.env,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=self.folder,
        )

    def slurm(self, *words: str) -> str:
        """Type a command of SLURM; return what it says."""
        return subprocess.run(
            words, env=self.env, capture_output=True, text=True, timeout=60, check=True
        ).stdout

    def wait(self, what: str, happened: Callable[[], object], timeout_s: float = 240) -> None:
        """Wait until something has happened."""
        until = time.monotonic() + timeout_s
        while not happened():
            assert time.monotonic() < until, (
                f"waited {timeout_s:.0f} s in vain: {what}\n{self.slurm('squeue', '-r')}"
            )
            time.sleep(0.1)


def missing() -> str:
    """Return why there can be no SLURM here; "": there can."""
    path = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"
    absent = [
        name
        for name in ("munged", "slurmctld", "slurmd", "sbatch", "srun")
        if not shutil.which(name, path=path)
    ]
    return (
        f"no SLURM on this machine ({', '.join(absent)}): apt-get install slurm-wlm munge" if absent else ""
    )


def processes_of(conf: str) -> list[str]:
    """Return the processes that a SLURM with this configuration has left."""
    left = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            told = (process / "cmdline").read_text() + (process / "environ").read_text(errors="replace")
        except OSError:
            continue
        is_ours = Path(conf).parent.as_posix() in told and "SLURM_JOB_ID=" in told
        if is_ours or f"{Path(conf).parent}/munge" in told or f"-f\0{conf}" in told:
            left.append(told.replace("\0", " ")[:300])
    return left
