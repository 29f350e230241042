"""Who starts ranks and who a process is; what is said when that does not fit; ranks that fail or die."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.distributed import HashStore

from speech2image.errors import ConfigError
from speech2image.training import module as training_module
from speech2image.training import ranks
from speech2image.training.module import TrainingModule
from speech2image.training.ranks import Place, first_host, meeting_point, place_in, start

WORKER = Path(__file__).with_name("worker.py")
TRAINER: dict[str, Any] = {"devices": None, "strategy": "ddp", "accelerator": "cpu", "rank_timeout_s": 60}


# ---- who a process is -------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("env", "place"),
    [
        ({}, None),
        ({"RANK": "3", "WORLD_SIZE": "8", "LOCAL_RANK": "1"}, Place(3, 8, 1)),
        ({"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}, None),
        ({"SLURM_STEP_ID": "0", "SLURM_PROCID": "5", "SLURM_STEP_NUM_TASKS": "8", "SLURM_LOCALID": "1"}, Place(5, 8, 1)),
        ({"SLURM_STEP_ID": "0", "SLURM_PROCID": "0", "SLURM_NTASKS": "1"}, None),
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "4", "SLURM_JOB_ID": "7"}, None),  # the batch script itself
        ({"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "SLURM_STEP_ID": "0", "SLURM_PROCID": "0",
          "SLURM_STEP_NUM_TASKS": "1"}, Place(1, 2, 1)),  # torchrun inside srun
    ],
)  # fmt: skip
def test_place_is_read_from_the_launcher(env: dict[str, str], place: Place | None) -> None:
    assert place_in(env) == place


@pytest.mark.parametrize(
    ("nodes", "first"),
    [("localhost", "localhost"), ("node3,node4", "node3"), ("gpu[07-09,12],x1", "gpu07"), ("a-b[1,3]", "a-b1"), ("", "localhost")],
)  # fmt: skip
def test_first_host_of_a_node_list(nodes: str, first: str) -> None:
    assert first_host(nodes) == first


def test_steps_of_slurm_meet_at_their_first_node_on_their_own_port() -> None:
    env = {"SLURM_STEP_NODELIST": "n[2-3]", "SLURM_JOB_ID": "41", "SLURM_STEP_ID": "0"}
    point = meeting_point(env)
    assert point["MASTER_ADDR"] == "n2" and 20_000 <= int(point["MASTER_PORT"]) < 40_000
    assert meeting_point({**env, "SLURM_STEP_ID": "1"})["MASTER_PORT"] != point["MASTER_PORT"]
    assert meeting_point({"MASTER_ADDR": "h", "MASTER_PORT": "7"}) == {"MASTER_ADDR": "h", "MASTER_PORT": "7"}


@pytest.mark.parametrize(
    ("changes", "place", "words"),
    [
        ({"devices": 2}, None, "Type: torchrun --nproc-per-node 2 -m speech2image train"),
        ({"devices": 4}, Place(0, 2, 0), "srun --ntasks 4 speech2image train"),
        ({"devices": 1}, Place(0, 2, 0), "Start it without torchrun or srun"),
        ({"strategy": "fsdp"}, None, "Type: trainer.strategy=ddp"),
    ],
)
def test_what_does_not_fit_is_answered_with_what_to_type(
    changes: dict[str, Any], place: Place | None, words: str
) -> None:
    try:
        with pytest.raises(ConfigError) as caught:
            start({"stage": "gan", "trainer": TRAINER | changes}, place, HashStore())
    finally:
        ranks.leave()
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("gpus", "refused"),
    [(("a 1", "a 2", "b 1", "b 2"), False), (("a 1", "a 2", "b 2", "b 2"), True), (("a 1", "a 1", "b 1", "b 2"), True)],
)  # fmt: skip
def test_ranks_that_would_share_a_gpu_are_refused_on_every_rank(gpus: tuple[str, ...], refused: bool) -> None:
    """Also where the first rank, which says it, has one of its own."""
    store, said = HashStore(), []
    for rank, gpu in enumerate(gpus):
        store.set(f"gpu/{rank}", gpu)
    for rank, gpu in enumerate(gpus):
        try:
            ranks._refuse_shared_gpus(store, Place(rank, len(gpus), rank % 2), gpu)
        except ConfigError as error:
            said.append(error.message)
    shared = max(gpus, key=gpus.count)[0]
    assert said == ([f"2 of 4 ranks would share one GPU of {shared}"] * 4 if refused else [])


def test_one_process_alone_is_the_first_and_waits_for_nobody() -> None:
    start({"stage": "gan", "trainer": TRAINER})
    assert (ranks.rank(), ranks.world_size(), ranks.is_first(), ranks.share()) == (0, 1, True, (0, 1))
    ranks.wait_for_all()
    ranks.check_agreement(step=3)
    with ranks.in_turn():
        pass
    assert ranks.on_any_rank(True) and not ranks.on_any_rank(False)


# ---- draws ------------------------------------------------------------------------------------
@pytest.mark.parametrize("shape", [(4, 3), (6, 5, 2), (2,), (1, 7)])
def test_draws_of_all_ranks_are_those_of_one(shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    module = TrainingModule(seed=11)
    module.train_step = 9
    whole = (3 * shape[0], *shape[1:])
    expected = module.normal("noise", *whole), module.uniform("steps", *whole)
    shared = module.uniform_for_all("codes", 5)
    parts: tuple[list[torch.Tensor], ...] = ([], [])
    for rank in range(3):
        monkeypatch.setattr(training_module, "share", lambda rank=rank: ranks.Share(rank, 3))
        parts[0].append(module.normal("noise", *shape))
        parts[1].append(module.uniform("steps", *shape))
        assert torch.equal(module.uniform_for_all("codes", 5), shared)
    assert all(torch.equal(torch.cat(part), value) for part, value in zip(parts, expected, strict=True))
    assert np.array_equal(expected[1].numpy(), module.rng("steps").random(whole, dtype=np.float32))


# ---- failures ---------------------------------------------------------------------------------
def _play(scenario: str, folder: Path, of: int = 2) -> list[subprocess.Popen[str]]:
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    return [
        subprocess.Popen(
            [sys.executable, str(WORKER), scenario, str(rank), str(of), str(folder)], env=env, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )
        for rank in range(of)
    ]  # fmt: skip


def test_failures_end_all_ranks_with_one_message(tmp_path: Path) -> None:
    """A preparing first rank, a training second rank, both at once; told by the exit code 2 and one message."""
    started = _play("failures", tmp_path)
    said = [process.communicate(timeout=200) for process in started]
    assert [process.returncode for process in started] == [0, 0], said
    found = [torch.load(tmp_path / f"failures-{rank}-of-2.pt", weights_only=True) for rank in (0, 1)]
    assert found[0]["first"] == "DataError: the corpus is gone" and found[1]["first"] == "SystemExit: 2"
    assert (
        found[0]["second"] == "SystemExit: 2" and found[1]["second"] == "DataError: rank 1 of 2: no such wave"
    )
    assert found[0]["both"] == "DataError: the same everywhere" and found[1]["both"] == "SystemExit: 2"
    assert found[1]["differ"] == "SystemExit: 2"
    assert "do not agree on step: rank 0: 0, rank 1: 1" in found[0]["differ"]
    for task, speaker in {"first": 0, "second": 1, "both": 0, "differ": 0}.items():
        lead = found[1 - speaker][f"{task}_at"] - found[speaker][f"{task}_at"]
        assert lead > 0.5, f"{task}: the launcher would end the rank that knows why before it has said it"


def test_a_killed_rank_ends_the_others_soon(tmp_path: Path) -> None:
    started = _play("endless", tmp_path)
    try:
        end = time.monotonic() + 200
        while not all((tmp_path / f"trains-{rank}").exists() for rank in (0, 1)):
            assert time.monotonic() < end
            time.sleep(0.05)
        started[1].send_signal(signal.SIGKILL)
        killed = time.monotonic()
        _, said = started[0].communicate(timeout=60)
        assert time.monotonic() - killed < 30
        assert started[0].returncode == 2, said
        assert "another rank has ended or does not answer" in said and "Traceback" not in said
        assert "the same command continues" in said
    finally:
        for process in started:
            process.kill()


# ---- the command ------------------------------------------------------------------------------
def test_torchrun_trains_what_one_process_trains(tmp_path: Path) -> None:
    """The same command by torchrun: the same lines in the journal, one set of files, one voice."""
    words = [
        "train", "experiment=codec_birds", "codec.channels=8", "codec.num_codes=16", "codec.disc_layers=1",
        "codec.disc_width=4", "loss.disc_weight=0.5", "data.make.num_train_species=8", "data.make.num_test_species=4",
        "data.make.images_per_species=3", "data.make.captions_per_image=1", "data.max_captions=1", "debug=two_steps",
        *(f"paths.{name}={tmp_path / name}" for name in ("data", "cache", "weights")),
    ]  # fmt: skip
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    launchers = {"one": [], "two": ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]}
    folders = {}
    for runs, launcher in launchers.items():
        command = [sys.executable, *launcher, "-m", "speech2image", *words, f"paths.runs={tmp_path / runs}"]
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=400, check=False)
        assert done.returncode == 0, done.stderr
        folders[runs] = Path(done.stdout.strip().splitlines()[-1])
        assert done.stdout.count(str(folders[runs])) == 1, "only the first rank prints"
    one, two = (
        [json.loads(line) for line in (folder / "journal.jsonl").read_text().splitlines()]
        for folder in folders.values()
    )
    assert [line["kind"] for line in one] == [line["kind"] for line in two] and len(one) == 4
    for alone, together in zip(one, two, strict=True):
        assert alone == {
            key: value if isinstance(value, str) else pytest.approx(value, rel=1e-4, abs=1e-6)
            for key, value in together.items()
        }
    names = [sorted(path.name for path in folder.rglob("*")) for folder in folders.values()]
    assert names[0] == names[1]
    for launcher in ([], launchers["two"]):  # torchrun ends all as soon as one has ended: the message is out
        refused = subprocess.run(
            [sys.executable, *launcher, "-m", "speech2image", *words, "trainer.devices=4", f"paths.runs={tmp_path / 'none'}"],
            env=env, capture_output=True, text=True, timeout=200, check=False,
        )  # fmt: skip
        assert refused.returncode == (1 if launcher else 2)  # torchrun has an exit code of its own
        assert refused.stderr.count("torchrun --nproc-per-node 4") == 1
    assert not (tmp_path / "none").exists()
    sweep = subprocess.run(
        [sys.executable, *launchers["two"], "-m", "speech2image", words[0], "-m", *words[1:], "seed=0,1",
         f"paths.runs={tmp_path / 'sweep'}"],
        env=env, capture_output=True, text=True, timeout=400, check=False,
    )  # fmt: skip
    assert sweep.stderr.count("a sweep cannot share 2 processes of torchrun or srun between its jobs") == 1
    assert "hydra.launcher.tasks_per_node=2" in sweep.stderr and not (tmp_path / "sweep").exists()
