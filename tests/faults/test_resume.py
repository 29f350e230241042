"""A killed run continues as if nothing had happened: weights, optimizers, averages, random state and journal.

The figure: kill -9 at random instants, a third of them in the middle of a save, then the same command again; all of
the final state is compared bit by bit with a run nobody disturbed.
"""

from __future__ import annotations

import json
import random
import signal
from collections.abc import Callable
from typing import Any

import pytest

KILL = signal.SIGKILL
SAVES = 3  # in the middle of a toy's run; one more at its end


def kill_and_resume(
    toys: Any, toy: str, runs: str, chance: random.Random, words: tuple[str, ...] = ()
) -> bool:
    """Kill a run once or twice at random instants, continue it to its end; return whether it was killed."""
    seconds, killed = toys.whole(toy)["cpu_s"], False
    for _ in range(chance.choice((1, 1, 2))):
        inside_save = chance.random() < 1 / 3
        when = {"after_saves": chance.randint(1, SAVES), "after_cpu_s": None}
        if not inside_save:
            when = {"after_saves": None, "after_cpu_s": chance.uniform(0.001, seconds)}
        code = toys.train(toy, runs, *words, signals=[KILL], **when)["code"]
        assert code in (0, -KILL), toys.log()
        killed |= code == -KILL
    assert toys.train(toy, runs, *words)["code"] == 0, toys.log()
    return killed


@pytest.mark.parametrize(
    ("toy", "sample", "full"),
    [("gan", 2, 50), ("diffusion", 2, 50), ("encoder", 1, 10), ("codec", 1, 10), ("speechclip", 1, 10)],
)
def test_a_run_killed_anywhere_ends_bitwise_the_same(
    toys: Any, rounds: Callable[[int, int], int], toy: str, sample: int, full: int
) -> None:
    chance, done, equal, tries = random.Random(f"kill {toy}"), 0, 0, 0
    while done < rounds(sample, full):
        tries += 1
        assert tries <= 3 * rounds(sample, full), "most runs ended before they were killed"
        runs = f"kill_{toy}_{tries}"
        if kill_and_resume(toys, toy, runs, chance):
            done += 1
            differences = toys.differences(toy, "whole", runs)
            assert differences == [], f"{runs}: {toys.log()}"
            equal += 1
        toys.forget(runs)
    print(f"{toy}: {equal} of {done} killed runs ended bitwise equal")


def test_loader_processes_change_nothing_killed_or_not(toys: Any) -> None:
    """One session without loader processes, killed; one with one, killed; and the rest with four."""
    toys.whole("gan")
    for workers, code in ((0, -KILL), (1, -KILL), (4, 0)):
        signals = [KILL] if code else []
        found = toys.train("gan", "workers", f"trainer.num_workers={workers}", signals=signals, after_saves=1)
        assert found["code"] == code, toys.log()
    assert toys.differences("gan", "whole", "workers") == []


def test_validation_and_journal_are_due_at_steps_of_the_run(toys: Any) -> None:
    toys.whole("encoder")
    lines = [
        json.loads(line) for line in (toys.run("encoder", "whole") / "journal.jsonl").read_text().splitlines()
    ]
    assert [(line["step"], line["kind"]) for line in lines] == [
        (0, "event"), (5, "train"), (7, "val"), (10, "train"), (12, "train"),
    ]  # fmt: skip
    assert not any("time" in name or "seconds" in name or "per_s" in name for line in lines for name in line)


def test_a_run_continued_from_its_last_step_only_writes_what_is_missing(toys: Any) -> None:
    toys.whole("diffusion")
    assert toys.train("diffusion", "late")["code"] == 0
    run = toys.run("diffusion", "late")
    (run / "weights.safetensors").unlink()
    about = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps({**about, "status": "running"}))
    assert toys.train("diffusion", "late")["code"] == 0, toys.log()
    assert toys.differences("diffusion", "whole", "late") == []
