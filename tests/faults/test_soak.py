"""Long runs and sweeps of one process stay as small and as quick at their end as at their start.

`SPEECH2IMAGE_FAULTS=full` soaks 20,000 steps; without it a sample whose statistics are looser and can still fail.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

LOG_EVERY = 25


def watched(every: int) -> tuple[str, ...]:
    """Everything that happens beside training, in the rhythm of its defaults where `every` is 500."""
    return (
        f"trainer.log_every={LOG_EVERY}", f"callbacks.checkpoint.every={every}", f"callbacks.quality.every={every}",
        f"callbacks.sample_grid.every={every // 2}", "logger=offline",
    )  # fmt: skip


@pytest.fixture(scope="module")
def runs(long_runs: Any) -> Any:
    """The program that trains toys by forks, with encoder, codec and probe."""
    long_runs.make_parts()
    return long_runs


def slope(steps: np.ndarray, values: np.ndarray) -> float:
    """Return the Theil-Sen slope a step: the median over all pairs of 24 medians of neighbours."""
    parts = np.array_split(np.arange(len(steps)), 24)
    points = [(float(np.mean(steps[part])), float(np.median(values[part]))) for part in parts]
    pairs = itertools.combinations(points, 2)
    return float(np.median([(two[1] - one[1]) / (two[0] - one[0]) for one, two in pairs]))


def ratio(milliseconds: np.ndarray) -> float:
    """Return the 99th percentile over the median."""
    return float(np.percentile(milliseconds, 99) / np.median(milliseconds))


@pytest.mark.parametrize("toy", ["gan", "diffusion"])
def test_long_run_neither_grows_nor_stalls(
    runs: Any, toy: str, rounds: Callable[[int, int], int], record_property: Callable[[str, object], None]
) -> None:
    num_steps = rounds(800, 20_000)
    every = 500 if num_steps > 5000 else 200
    found = runs.train(toy, f"soak_{toy}", f"trainer.max_steps={num_steps}", *watched(every), watch=True)
    assert found["codes"] == [0] and found["warnings"] == [], (found, runs.log())
    rows = np.array(json.loads((runs.root / "steps.json").read_text()))
    assert len(rows) == num_steps
    # The first two grids, saves and measurements fill the allocator: 5 to 7 MB, then up to 3.
    warm = rows[max(2 * every + 50, num_steps // 10) :]
    wall, cpu = np.diff(warm[:, 1]) * 1e3, np.diff(warm[:, 2]) * 1e3
    done = warm[1:, 0]
    saved = done % every == 1  # a step is saved at the start of the next
    plain = (done % LOG_EVERY != 0) & ~saved
    logged = (done % LOG_EVERY == 0) & (done % (every // 2) != 0)
    figures = {
        "steps": num_steps, "resident MB per 1,000 steps": 1000 * slope(warm[:, 0], warm[:, 3]),
        "private MB per 1,000 steps": 1000 * slope(warm[:, 0], warm[:, 4]),
        "files": sorted(set(warm[:, 5])), "threads": sorted(set(warm[:, 6])),
        "plain steps: median ms": float(np.median(cpu[plain])),
        "plain steps: p99 / median, processor": ratio(cpu[plain]),
        "plain steps: p99 / median, wall": ratio(wall[plain]),
        "all steps: p99 / median, processor": ratio(cpu), "all steps: p99 / median, wall": ratio(wall),
        "steps with a journal line: median ms": float(np.median(cpu[logged])),
        "steps with grid and quality: median ms": float(np.median(cpu[done % every == 0])),
        "steps with a checkpoint: median ms": float(np.median(cpu[saved])),
        "slowest plain step ms, processor": float(cpu[plain].max()),
    }  # fmt: skip
    print(toy, json.dumps(figures, indent=1))
    record_property(toy, json.dumps(figures))  # numbers of numpy do not pass between processes
    is_short = num_steps < 5000
    # the system may take pages of mapped files back at any time, which hides growth of what is resident
    assert max(figures["resident MB per 1,000 steps"], figures["private MB per 1,000 steps"]) < (
        10 if is_short else 1
    )
    assert len(figures["files"]) == 1, found["odd_files"]
    assert len(figures["threads"]) == 1
    assert figures["plain steps: p99 / median, processor"] <= (2.5 if is_short else 1.5)  # on an idle machine
    assert figures["steps with a journal line: median ms"] < 1.5 * figures["plain steps: median ms"]


def test_jobs_of_a_sweep_give_their_memory_back(
    runs: Any, record_property: Callable[[str, object], None]
) -> None:
    """Jobs of one process, each with batches of its own lengths, and its own corpus opened."""
    words = ("trainer.max_steps=6", "trainer.batch_size=16")
    jobs = [runs.words("encoder", "sweep", f"seed={seed}", *words) for seed in range(5)]
    jobs += [runs.words("gan", "sweep", f"seed={seed}", *words) for seed in range(5)]
    found = runs.ask(commands=jobs)
    assert found["codes"] == [0] * len(jobs), runs.log()
    memory, files, threads = np.array(found["memory"]).T
    record_property("MB, files, threads after each job", found["memory"])
    print("MB after each job", memory.round(1).tolist(), "files", files.tolist(), "threads", threads.tolist())
    for start in (1, 6):  # the first job of a kind fills caches that stay
        assert np.median(np.diff(memory[start : start + 4])) < 3 and np.ptp(files[start : start + 4]) == 0
    assert np.ptp(threads[1:]) == 0
