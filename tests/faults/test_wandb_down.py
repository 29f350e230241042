"""A broken wandb or network never touches training, and a later upload yields exactly one run with every step once.

Runs are forks of one program (`long_runs.py`); the server is `wandb_receiver.py` on 127.0.0.1, spoken to by wandb's own
client and its own `wandb sync`.
"""

from __future__ import annotations

import os
import runpy
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent
WandbRun: Any = runpy.run_path(str(HERE.parent / "smoke" / "wandb_records.py"))["WandbRun"]
STEPS, KILL_AT = 12, 9
WORDS = (f"trainer.max_steps={STEPS}", "trainer.log_every=1", "loss.disc_start=100")
SHORT = {"ANSWER_S": 2.0, "INIT_S": 4.0, "FINISH_S": 3.0, "DISK_S": 1.0}
KEY = {"WANDB_API_KEY": "a" * 40}


@pytest.fixture(scope="module")
def runs(long_runs: Any) -> Any:
    """The program that trains toys by forks, and a codec trained without wandb."""
    found = long_runs.train("codec", "none", *WORDS)
    assert found["codes"] == [0], long_runs.log()
    return long_runs


@pytest.fixture
def receiver(tmp_path: Path) -> Iterator[Any]:
    """A server of our own."""
    made = runpy.run_path(str(HERE / "wandb_receiver.py"))["Receiver"](tmp_path / "receiver")
    yield made
    made.close()


@pytest.fixture
def silent_port() -> Iterator[int]:
    """A port that takes connections and never answers, of a process of its own: tests have no sockets."""
    code = (
        "import socket, time\ns = socket.create_server(('127.0.0.1', 0), backlog=500)\n"
        "print(s.getsockname()[1], flush=True)\ntime.sleep(3600)"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    yield int(process.stdout.readline())
    process.kill()
    process.wait()


def results(folder: Path) -> tuple[bytes, bytes]:
    """What a run is trained for: its weights and its journal."""
    return (folder / "weights.safetensors").read_bytes(), (folder / "journal.jsonl").read_bytes()


SAMPLE = ("silent server", "not logged in", "service killed", "disk full", "server falls silent")
ALL = (*SAMPLE, "no network", "no such server", "wandb.log raises")
FAULTS = ALL if os.environ.get("SPEECH2IMAGE_FAULTS") == "full" else SAMPLE


@pytest.mark.parametrize("fault", FAULTS)
def test_fault_of_wandb_leaves_training_as_it_is(
    fault: str, runs: Any, receiver: Any, silent_port: int, rounds: Callable[[int, int], int],
    record_property: Callable[[str, object], None],
) -> None:  # fmt: skip
    mode, env, hurt = "online", dict(KEY), None
    if fault == "no network":
        env["WANDB_BASE_URL"] = "http://127.0.0.1:9"  # refused at once, as by a host without a route
    elif fault == "no such server":
        env["WANDB_BASE_URL"] = "http://wandb.invalid"
    elif fault == "silent server":
        env["WANDB_BASE_URL"] = f"http://127.0.0.1:{silent_port}"
    elif fault == "not logged in":
        env = {"WANDB_BASE_URL": receiver.env["WANDB_BASE_URL"], "HOME": str(runs.root)}
    elif fault == "server falls silent":
        env, hurt = receiver.env, {"what": "freeze", "step": 5, "pid": receiver.pid}
    else:
        what = {"wandb.log raises": "raise", "service killed": "kill", "disk full": "limit"}[fault]
        mode, hurt = "offline", {"what": what, "step": 5, "size": 2048}
    is_full = rounds(0, 1) == 1
    name = fault.replace(" ", "_")
    found = runs.train(
        "codec", name, *WORDS, f"logger={mode}", env=env, hurt=hurt, limits={} if is_full else SHORT
    )
    assert found["codes"] == [0], (found, runs.log())
    folder = runs.run("codec", name)
    assert results(folder) == results(runs.run("codec", "none"))
    assert len(found["warnings"]) == 1, found["warnings"]
    assert f"later type: speech2image report runs=[{folder}] logger=online" in found["warnings"][0]
    spent = found["wandb_seconds"]
    record_property(fault, found)
    print(f"\n{fault}: {({key: round(value, 2) for key, value in spent.items()})} of {found['seconds']:.1f} s; "
          f"{found['warnings'][0].split('. Training')[0]}")  # fmt: skip
    assert spent["__init__"] < 25
    assert spent["close"] < 45
    offline = list(folder.glob("wandb/offline-run-*"))
    if mode == "online" and hurt is None:
        assert steps_of(WandbRun(offline[0])) == list(range(1, STEPS + 1)), "offline instead"


def steps_of(found: Any) -> list[int]:
    """Steps of an offline run's history, as they come."""
    return [row["_step"] for row in found.history]


def sync(receiver: Any, *folders: Path) -> None:
    """Give wandb's own `wandb sync`."""
    words = [sys.executable, "-m", "wandb", "sync", "--yes", "--include-synced", *map(str, folders)]
    env = {**os.environ, **receiver.env}
    done = subprocess.run(words, env=env, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def one_run_every_step_once(receiver: Any, folder: Path) -> None:
    """Check what a server holds of a run trained to its end."""
    assert list(receiver.state()["runs"]) == [folder.name]
    rows = receiver.history(folder.name)
    assert [row["_step"] for row in rows] == list(range(1, STEPS + 1))
    assert all(any(key.startswith("loss") for key in row) for row in rows)


def test_killed_and_continued_offline_run_syncs_as_one(runs: Any, receiver: Any) -> None:
    killed = runs.train("codec", "offline", *WORDS, "logger=offline", kill_at=KILL_AT)
    assert killed["codes"] == "ended with -9"
    folder = runs.run("codec", "offline")
    first = {path.name for path in folder.glob("wandb/offline-run-*")}
    assert runs.train("codec", "offline", *WORDS, "logger=offline")["codes"] == [0], runs.log()
    assert results(folder) == results(runs.run("codec", "none"))
    left = list(folder.glob("wandb/offline-run-*"))
    assert len(left) == 1 and left[0].name not in first, (
        "the first session's steps are told again, and it is gone"
    )
    found = WandbRun(left[0])
    assert found.run.run_id == folder.name and steps_of(found) == list(range(1, STEPS + 1))
    assert [row["_step"] for row in found.history if "samples/path" in row] == [4, 8, 12]
    for _ in range(2):
        sync(receiver, folder / "wandb")
        one_run_every_step_once(receiver, folder)


def test_report_uploads_an_offline_run_once_however_often(runs: Any, receiver: Any) -> None:
    folder = runs.run("codec", "none")
    for logger in ("online", "online", "offline"):
        words = [
            "report",
            f"runs=[{folder}]",
            f"logger={logger}",
            f"out={runs.root}/page",
            *runs.paths("none"),
        ]
        found = runs.ask(commands=[words], env=receiver.env)
        assert found["codes"] == [0] and found["warnings"] == [], (found, runs.log())
        one_run_every_step_once(receiver, folder)
    sync(receiver, folder / "published" / "wandb")
    one_run_every_step_once(receiver, folder)


def test_killed_and_continued_online_run_is_one_without_gap(runs: Any, receiver: Any) -> None:
    killed = runs.train("codec", "online", *WORDS, "logger=online", kill_at=KILL_AT, env=receiver.env)
    assert killed["codes"] == "ended with -9"
    again = runs.train("codec", "online", *WORDS, "logger=online", env=receiver.env)
    assert again["codes"] == [0] and again["warnings"] == [], (again, runs.log())
    folder = runs.run("codec", "online")
    assert results(folder) == results(runs.run("codec", "none"))
    one_run_every_step_once(receiver, folder)
