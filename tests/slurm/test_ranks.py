"""Ranks that a real srun starts: one run, one voice, the losses of one process."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest
from clusters import Cluster

CODEC = (
    "train", "experiment=codec_birds", "codec.channels=8", "codec.num_codes=16", "codec.disc_layers=1",
    "codec.disc_width=4", "loss.disc_weight=0.5", "data.make.num_train_species=8", "data.make.num_test_species=4",
    "data.make.images_per_species=3", "data.make.captions_per_image=1", "data.max_captions=1", "debug=two_steps",
    "data.root=birds_of_the_ranks",
)  # fmt: skip


def two_ranks(cluster: Cluster, *words: str) -> subprocess.CompletedProcess[str]:
    command = [
        "srun",
        "--nodes=1",
        "--ntasks=2",
        "--overcommit",
        "--kill-on-bad-exit=1",
        sys.executable,
        "-m",
        "speech2image",
        *CODEC,
        *words,
    ]
    return subprocess.run(
        [*command, *cluster.paths("srun")], env=cluster.env, capture_output=True, text=True, timeout=400,
        check=False, cwd=cluster.folder,
    )  # fmt: skip


def losses(cluster: Cluster, runs: str) -> list[dict[str, Any]]:
    (journal,) = (cluster.folder / runs).glob("codec_birds-*/journal.jsonl")
    lines = [json.loads(line) for line in journal.read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "kind"} for line in lines]


def test_two_tasks_of_srun_train_one_run(cluster: Cluster) -> None:
    assert cluster.type(*CODEC, runs="alone").returncode == 0
    done = two_ranks(cluster)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.strip().splitlines()
    assert lines and len(set(lines)) == len(lines), "only the first rank prints"
    alone, together = losses(cluster, "alone"), losses(cluster, "srun")
    assert len(alone) == 4
    for one, two in zip(alone, together, strict=True):
        assert one == {key: pytest.approx(value, rel=1e-4, abs=1e-6) for key, value in two.items()}


def test_tasks_that_are_too_few_are_told_what_to_type_once(cluster: Cluster) -> None:
    done = two_ranks(cluster, "trainer.devices=4")
    assert done.returncode == 2
    assert done.stderr.count("trainer.devices=4, but 2 processes were started") == 1
    assert "srun --ntasks 4 speech2image train" in done.stderr
