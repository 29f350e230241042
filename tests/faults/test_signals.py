"""SIGTERM, SIGUSR1 and SIGUSR2 at random moments: saved within two seconds, exit code 75, continued bit by bit."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from speech2image.errors import DataError, Preempted
from speech2image.training import preemption
from speech2image.training.preemption import Preemption, StopNow, slurm_job

KINDS = {
    "SIGTERM": [signal.SIGTERM],
    "SIGUSR1": [signal.SIGUSR1],
    "SIGUSR2": [signal.SIGUSR2],
    "SIGTERM twice": [signal.SIGTERM, signal.SIGTERM],
    "SIGUSR1, then SIGTERM": [signal.SIGUSR1, signal.SIGTERM],
}
LIMIT_S = 2.0


@pytest.mark.parametrize("toy", ["gan", "diffusion"])
def test_signal_at_a_random_moment_saves_and_the_run_continues(
    toys: Any, rounds: Callable[[int, int], int], toy: str
) -> None:
    whole, chance, done, tries, latencies = toys.whole(toy), random.Random(f"signal {toy}"), 0, 0, []
    training = whole["cpu_s"] - whole["cpu_before_s"]
    wanted, kinds = rounds(2, 50), list(KINDS.values())
    while done < wanted:
        tries += 1
        assert tries <= 3 * wanted, "most runs ended before the signal"
        runs, number = f"signal_{toy}_{tries}", kinds[tries % len(kinds)]
        found = toys.train(toy, runs, after_cpu_s=-chance.uniform(0.001, 0.8 * training), signals=number)
        if "latency_s" not in found or found["code"] == 0:  # it came when all was done
            toys.forget(runs)
            continue
        done += 1
        assert found["code"] == 75, toys.log()
        assert found["latency_cpu_s"] <= LIMIT_S  # what a machine without other work takes
        latencies.append(found["latency_s"])
        if list((toys.root / runs).glob("*/run.json")):  # else it came before the first step: nothing is left
            saved_where_stopped(toys.run(toy, runs))
        assert toys.train(toy, runs)["code"] == 0, toys.log()
        assert toys.differences(toy, "whole", runs) == [], toys.log()
        toys.forget(runs)
    latencies.sort()
    print(f"{toy}: {done} signals, saved and gone after {latencies[len(latencies) // 2]:.2f} s (median), "
          f"{latencies[-1]:.2f} s (longest)")  # fmt: skip
    assert latencies[-1] <= LIMIT_S


def saved_where_stopped(run: Path) -> None:
    """The newest checkpoint is of the very step at which the run says it stopped."""
    lines = [json.loads(line) for line in (run / "clock.jsonl").read_text().splitlines()]
    stops = [line["step"] for line in lines if line.get("event") == "preempted"]
    saved = sorted(int(path.stem.removeprefix("step_")) for path in run.glob("checkpoints/*.ckpt"))
    assert stops == saved[-1:] or (stops == [] and saved[-1] == 12)  # it came after the last step was saved
    assert not list(run.rglob("*.part"))


def test_signal_in_the_middle_of_a_save_breaks_nothing(toys: Any) -> None:
    toys.whole("gan")
    many = [signal.SIGTERM, signal.SIGUSR1, signal.SIGTERM, signal.SIGUSR2]
    found = toys.train("gan", "signal_in_save", after_saves=2, signals=many)
    assert found["code"] == 75, toys.log()
    saved_where_stopped(toys.run("gan", "signal_in_save"))
    assert toys.train("gan", "signal_in_save")["code"] == 0, toys.log()
    assert toys.differences("gan", "whole", "signal_in_save") == []


def test_loader_processes_that_get_the_signal_too_do_not_break_the_save(toys: Any) -> None:
    """SLURM signals every process of a job step; a loader that dies would take its trainer with it."""
    toys.whole("gan")
    words = ("trainer.num_workers=2", "trainer.max_steps=12")
    found = toys.train("gan", "signal_all", *words, after_saves=1, signals=[signal.SIGTERM], to_all=True)
    assert found["code"] == 75, toys.log()
    saved_where_stopped(toys.run("gan", "signal_all"))
    assert toys.train("gan", "signal_all", *words)["code"] == 0, toys.log()
    assert toys.differences("gan", "whole", "signal_all") == []


def test_signal_before_the_first_step_ends_promptly_and_leaves_nothing_half_written(toys: Any) -> None:
    """A teacher is fitted for hours before the first step; there is nothing of it to save."""
    words = ("vision.pretrain_steps=1000000",)
    found = toys.train("encoder", "signal_early", *words, after_cpu_s=-0.3, signals=[signal.SIGTERM])
    assert found["code"] == 75 and found["latency_cpu_s"] <= LIMIT_S, toys.log()
    assert not list((toys.root / "signal_early").glob("*/*")), (
        "a run refused before its first step leaves no folder"
    )


@pytest.fixture
def _listens_to_ctrl_c() -> Iterator[None]:
    """A job in the background of a shell has Ctrl-C ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_ctrl_c_saves_and_a_second_one_ends_at_once(toys: Any, _listens_to_ctrl_c: None) -> None:
    toys.whole("gan")
    found = toys.train("gan", "ctrl_c", after_saves=1, signals=[signal.SIGINT])
    assert found["code"] == 130 and "Ctrl-C at step" in toys.log(), toys.log()
    saved_where_stopped(toys.run("gan", "ctrl_c"))
    assert toys.train("gan", "ctrl_c")["code"] == 0, toys.log()
    assert toys.differences("gan", "whole", "ctrl_c") == []
    with pytest.raises(KeyboardInterrupt), Preemption() as owner:
        owner.start_training()
        os.kill(os.getpid(), signal.SIGINT)
        assert owner.asked
        os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


# ---- the owner --------------------------------------------------------------------------------
def test_signal_that_other_code_turns_into_an_error_of_its_own_is_still_a_stop() -> None:
    """Code in C that a StopNow reaches may raise a TypeError instead; no file is to blame for it."""
    with pytest.raises(Preempted, match="before the first step"), Preemption():
        try:
            os.kill(os.getpid(), signal.SIGTERM)
        except preemption.StopNow:
            raise DataError("x.safetensors is damaged") from None


def test_handlers_only_set_a_flag_and_are_given_back() -> None:
    before = [signal.getsignal(number) for number in preemption.SIGNALS]
    with pytest.raises(Preempted, match="stopped by SIGTERM at step 3") as caught, Preemption() as owner:
        assert preemption.active() is owner
        owner.start_training()
        os.kill(os.getpid(), signal.SIGTERM)
        assert owner.asked
        owner.give_way("at step 3")
    assert caught.value.exit_code == 75 and preemption.active() is not owner
    assert [signal.getsignal(number) for number in preemption.SIGNALS] == before


def test_no_reader_takes_a_signal_for_damage() -> None:
    with pytest.raises(Preempted, match="before the first step"), Preemption():
        try:
            os.kill(os.getpid(), signal.SIGUSR1)
        except Exception:  # noqa: BLE001  as a reader of damaged files does
            pytest.fail("the signal was swallowed")


def test_a_sweep_stops_when_the_signal_came_at_the_end_of_a_run() -> None:
    with pytest.raises(Preempted, match="after the run was finished"), Preemption() as owner:
        owner.start_training()
        os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.parametrize(("number", "calls"), [(signal.SIGUSR2, 1), (signal.SIGTERM, 0)])
def test_handler_of_submitit_is_called_after_the_save(number: signal.Signals, calls: int) -> None:
    heard: list[int] = []
    before = signal.signal(number, lambda got, _: heard.append(got))
    try:
        with pytest.raises(Preempted), Preemption() as owner:
            owner.start_training()
            os.kill(os.getpid(), number)
            assert heard == [], "not before the save"
            owner.give_way("at step 1")
        assert len(heard) == calls
    finally:
        signal.signal(number, before)


@pytest.mark.parametrize(
    ("environment", "job"),
    [
        ({}, None),
        ({"SLURM_JOB_ID": "7"}, "7"),
        ({"SLURM_JOB_ID": "9", "SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": "2"}, "7_2"),
    ],
)
def test_job_is_named_as_scontrol_wants_it(
    environment: dict[str, str], job: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("SLURM_JOB_ID", "SLURM_ARRAY_JOB_ID", "SLURM_ARRAY_TASK_ID"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert slurm_job() == job


@pytest.mark.parametrize(("number", "asks"), [(signal.SIGUSR1, True), (signal.SIGTERM, False)])
def test_time_limit_asks_slurm_for_another_turn_and_a_cancel_does_not(
    number: signal.Signals, asks: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = tmp_path / "asked"
    (tmp_path / "scontrol").write_text(f'#!/bin/sh\necho "$@" > {asked}\n')
    (tmp_path / "scontrol").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("SLURM_JOB_ID", "41")
    monkeypatch.delenv("SLURM_ARRAY_JOB_ID", raising=False)
    with pytest.raises(Preempted), Preemption() as owner:
        owner.start_training()
        os.kill(os.getpid(), number)
        owner.give_way("at step 1")
    assert asked.exists() == asks
    assert not asks or asked.read_text() == "requeue 41\n"


def test_stop_before_training_is_no_exception_of_ours() -> None:
    assert not issubclass(StopNow, Exception)
    code = (
        "import signal, speech2image.training.preemption as p; print(signal.getsignal(signal.SIGTERM).name)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "SIG_DFL\n", "importing owns nothing"
