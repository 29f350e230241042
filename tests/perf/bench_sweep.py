"""What a sweep costs beside its jobs: `python tests/perf/bench_sweep.py [jobs]`.

Prints a JSON line for each way of running the same toy jobs of two steps: user CPU of the whole command, of the import
of torch, of the jobs' own training (`app.train.train`: corpus, networks, steps, checkpoint), and what is left, per
job.  `start` lines split what a job costs in a process of its own, as joblib and SLURM start it.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
import textwrap
from pathlib import Path

TINY = (
    "experiment=sen_birds", "data.make.num_train_species=8", "data.make.num_test_species=6",
    "data.make.images_per_species=4", "data.make.captions_per_image=2", "data.max_captions=1", "logger=none",
    "vision.pretrain_steps=0", "callbacks.progress=false", "trainer.max_steps=2", "trainer.batch_size=8",
    "trainer.val_every=2", "callbacks.sample_grid.every=0",
)  # fmt: skip
CHILD = """
    import json, resource, sys
    from pathlib import Path

    def user():
        return resource.getrusage(resource.RUSAGE_SELF).ru_utime

    spent = {}
    before = user()
    import torch
    spent["torch"] = user() - before
    torch.set_num_threads(1)
    from speech2image.app import train
    inner, spent["jobs"], spent["count"] = train.train, 0.0, 0

    def counted(config):
        before = user()
        try:
            return inner(config)
        finally:
            spent["jobs"] += user() - before
            spent["count"] += 1

    train.train = counted
    from speech2image.app.cli import main
    code = main(sys.argv[2:])
    spent["total"] = user()
    Path(sys.argv[1]).write_text(json.dumps({**spent, "code": code}))
"""


def user_cpu(command: list[str]) -> float:
    """Run a command; return its user CPU, with that of its children."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before


def measure(name: str, words: list[str], root: Path, num_jobs: int) -> float:
    """Run one command whose jobs are all in its process; print its line, return the rest per job."""
    out = root / "spent.json"
    command = [sys.executable, "-c", textwrap.dedent(CHILD), str(out), "train", *words]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    spent = json.loads(out.read_text())
    assert spent["code"] == 0 and spent["count"] == num_jobs, spent
    rest = spent["total"] - spent["torch"] - spent["jobs"]
    line = {key: round(spent[key], 3) for key in ("total", "torch", "jobs")}
    print(json.dumps({"sweep": name, **line, "rest": round(rest, 3), "rest_per_job": round(rest / num_jobs, 3)}),
          flush=True)  # fmt: skip
    return rest / num_jobs


def main(num_jobs: int) -> None:
    """Measure all ways."""
    os.environ["OMP_NUM_THREADS"] = "1"
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        paths = [f"paths.{name}={root / name}" for name in ("data", "cache", "runs", "weights")]
        words = [*TINY, *paths]
        python = [sys.executable, "-m", "speech2image", "train"]
        user_cpu([*python, *words, "seed=1000"])  # the corpus is there from here on
        seeds = ",".join(str(seed) for seed in range(num_jobs))
        measure("one job, no sweep", [*words, "seed=2000"], root, 1)
        measure("in one process", ["-m", *words, f"seed={seeds}"], root, num_jobs)
        beside = user_cpu([*python, "-m", *words, f"seed={seeds}", "name=beside", "hydra/launcher=joblib"])
        print(json.dumps({"sweep": "two workers beside", "total": round(beside, 3)}), flush=True)
        found = {
            "import torch": user_cpu([sys.executable, "-c", "import torch"]),
            "import of all that a job uses": user_cpu(
                [
                    sys.executable,
                    "-c",
                    "import speech2image.app.cli, speech2image.app.train, speech2image.training.fit",
                ]
            ),
            "one job": user_cpu([*python, *words, "seed=3000"]),
            "one job finished before": user_cpu([*python, *words, "seed=3000"]),
        }
        print(json.dumps({"start": {key: round(value, 3) for key, value in found.items()}}))


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 16)
