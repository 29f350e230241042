"""Records of sweeps: names, files, what is done again and what is not, and how far jobs are."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from speech2image.app.slurm import Heard
from speech2image.app.standings import counts, judge, standings, table
from speech2image.app.sweeps import (
    Job,
    Sweep,
    find_sweep,
    is_alive,
    is_done,
    open_sweep,
    read_job,
    run_recorded,
    sweep_id,
    this_process,
    write_job,
)
from speech2image.errors import DataError, Preempted

Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Command:
    """Run one command with its own folder of runs."""
    from speech2image.app.cli import main

    def call(*words: str) -> tuple[int, str, str]:
        capsys.readouterr()
        code = main([*words, f"paths.runs={tmp_path}/runs"])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


@pytest.fixture
def sweep(tmp_path: Path) -> Sweep:
    return open_sweep(
        {"runs": str(tmp_path / "runs")}, "train", ["experiment=sen_birds", "++seed=0,1"], "basic", 2
    )


def begin(sweep: Sweep, number: int = 0, **fields: object) -> Path:
    path = sweep.record(number)
    write_job(path, dataclasses.replace(Job(number, (f"seed={number}",), digest="d"), **fields))
    return path


def test_the_id_depends_on_the_jobs_and_not_on_who_runs_them() -> None:
    plain = sweep_id("train", ["experiment=sen_birds", "seed=0,1"])
    assert plain == sweep_id("train", ["-m", "++experiment=sen_birds", "++seed=0,1", "hydra/launcher=slurm",
                                       "++hydra.launcher.mem_gb=4", "hydra.mode=MULTIRUN"])  # fmt: skip
    assert plain != sweep_id("train", ["experiment=sen_birds", "seed=0,2"])
    assert plain != sweep_id("evaluate", ["experiment=sen_birds", "seed=0,1"])
    assert plain != sweep_id("train", ["experiment=sen_birds", "seed=0,1", "hydra.sweeper.params.x=1"])


def test_opening_again_keeps_the_time_of_the_first_call_and_the_jobs(sweep: Sweep, tmp_path: Path) -> None:
    begin(sweep, 0, state="finished")
    about = json.loads((sweep.folder / "sweep.json").read_text())
    (sweep.folder / "sweep.json").write_text(json.dumps(about | {"created": "2020-01-01T00:00:00Z"}))
    again = open_sweep(
        {"runs": str(tmp_path / "runs")},
        "train",
        ["experiment=sen_birds", "seed=0,1", "hydra/launcher=slurm"],
        "slurm",
        2,
    )
    assert (
        again.folder == sweep.folder and again.created == "2020-01-01T00:00:00Z" and again.launcher == "slurm"
    )
    assert [job.state for job in again.jobs()] == ["finished"]


def test_a_record_survives_moving_the_folder_of_runs(sweep: Sweep, tmp_path: Path) -> None:
    begin(sweep, state="finished", run=sweep.runs / "sen-1")
    assert json.loads(sweep.record(0).read_text())["run"] == "sen-1"
    sweep.runs.rename(tmp_path / "elsewhere")
    moved = read_job(tmp_path / "elsewhere" / "sweeps" / sweep.id / "job-0.json")
    assert moved is not None and moved.run is not None
    assert moved.run.resolve() == (tmp_path / "elsewhere" / "sen-1").resolve()


def test_done_means_same_words_same_configuration_and_the_run_still_there(sweep: Sweep) -> None:
    run = sweep.runs / "sen-1"
    run.mkdir(parents=True)
    (run / "run.json").write_text("{}")
    job = Job(0, ("seed=0",), "finished", run, digest="d")
    assert is_done(job, ["seed=0"], "d")
    assert not is_done(job, ["seed=1"], "d") and not is_done(job, ["seed=0"], "other")
    assert not is_done(dataclasses.replace(job, state="failed"), ["seed=0"], "d") and not is_done(
        None, [], ""
    )
    (run / "run.json").unlink()
    assert not is_done(job, ["seed=0"], "d")


def test_the_record_follows_a_job_to_each_of_its_ends(
    sweep: Sweep, capsys: pytest.CaptureFixture[str]
) -> None:
    seen: list[Job | None] = []
    path = begin(sweep)
    job = run_recorded(path, lambda: seen.append(read_job(path)) or sweep.runs / "sen-1")
    assert seen[0] is not None and seen[0].state == "running" and is_alive(seen[0])
    assert job == read_job(path) and job.state == "finished" and job.run == sweep.runs / "sen-1"

    def fail(error: BaseException) -> None:
        raise error

    assert (
        run_recorded(path, lambda: fail(DataError("no corpus", "Make it."))).message
        == "no corpus\n  Make it."
    )
    assert "no corpus" in capsys.readouterr().err
    assert run_recorded(path, lambda: fail(ZeroDivisionError("zero"))).message == "ZeroDivisionError: zero"
    assert "Traceback" in capsys.readouterr().err
    for error in (Preempted("saved at step 3", ""), KeyboardInterrupt(), SystemExit(255)):
        with pytest.raises(type(error)):
            run_recorded(path, lambda: fail(error))  # noqa: B023
        assert (read_job(path) or job).state == "preempted"


def test_only_the_first_rank_keeps_the_record(sweep: Sweep, monkeypatch: pytest.MonkeyPatch) -> None:
    path = begin(sweep)
    before = path.read_bytes()
    monkeypatch.setenv("SLURM_PROCID", "1")
    assert run_recorded(path, lambda: None).state == "finished"
    assert path.read_bytes() == before


def test_a_running_job_whose_process_is_gone_has_failed(sweep: Sweep) -> None:
    begin(sweep, 0, state="running", **this_process())
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    begin(sweep, 1, state="running", **(this_process() | {"pid": child.pid, "born": "1"}))
    begin(
        sweep, 2, state="running", **(this_process() | {"born": "1"})
    )  # the number was given to a later process
    assert [one.state for one in standings(sweep)] == ["running", "failed", "failed"]
    assert "killed" in standings(sweep)[1].reason


def test_a_cut_record_is_no_job(sweep: Sweep) -> None:
    path = begin(sweep)
    path.write_bytes(path.read_bytes()[:40])
    assert read_job(path) is None and sweep.jobs() == []


def test_sweeps_are_found_by_id_beginning_and_age(sweep: Sweep) -> None:
    other = open_sweep({"runs": str(sweep.runs)}, "evaluate", ["run=a,b"], "basic", 2)
    os.utime(sweep.folder / "sweep.json", (1, 1))
    assert find_sweep("latest", sweep.runs).id == other.id
    assert find_sweep(sweep.id[:-2], sweep.runs).id == sweep.id
    with pytest.raises(DataError, match=f"Did you mean {sweep.id}"):
        find_sweep(sweep.id.replace("train", "trian"), sweep.runs)
    with pytest.raises(DataError, match="there is no sweep"):
        find_sweep("latest", sweep.runs / "nowhere")


@pytest.mark.parametrize(
    ("record", "heard", "state", "words"),
    [
        ("submitted", Heard("waiting", "resources"), "waiting", "resources"),
        ("preempted", Heard("waiting", "soon"), "waiting", "preempted, to continue; soon"),
        ("running", Heard("running"), "running", ""),
        ("running", Heard("told", "cancelled by a user (scancel)"), "failed", "cancelled by a user"),
        ("preempted", Heard("told", "cancelled by a user (scancel)"), "failed", "cancelled by a user"),
        ("preempted", Heard("ended", "ended as FAILED"), "preempted", "stopped"),
        ("running", Heard("ended", "ended without a word"), "failed", "its last line: Killed"),
        ("running", None, "failed", "SLURM no longer knows it"),
        ("failed", Heard("ended"), "failed", "no memory"),
        ("finished", None, "finished", ""),
    ],
)
def test_what_slurm_says_is_told_in_words(
    sweep: Sweep, record: str, heard: Heard | None, state: str, words: str
) -> None:
    job = Job(0, (), record, message="no memory" if record == "failed" else "", slurm_job="7_0")
    (sweep.folder / "slurm").mkdir()
    (sweep.folder / "slurm" / "7_0_0_log.err").write_text("step 3\nKilled\n\n")
    found = judge(sweep, job, {}, {"7_0": heard} if heard else {})
    assert found.state == state and words in found.reason


def test_a_verdict_of_slurm_is_kept_when_slurm_has_forgotten(sweep: Sweep) -> None:
    job = Job(0, (), "running", slurm_job="7")
    found = judge(sweep, job, {"slurm_job": "7", "ended": "out of memory"}, {})
    assert (found.state, found.reason, found.is_news) == ("failed", "out of memory", False)


def test_the_table_shows_what_tells_jobs_apart(sweep: Sweep) -> None:
    for number, state in enumerate(("finished", "failed")):
        write_job(
            sweep.record(number),
            Job(number, ("experiment=sen_birds", f"seed={number}"), state, message="out of memory\nmore"),
        )
    found = standings(sweep)
    lines = table(sweep, found).splitlines()
    assert lines[0] == f"sweep {sweep.id}: 1 finished, 1 failed" and counts(found) == "1 finished, 1 failed"
    assert lines[3].split() == ["1", "failed", "–", "–", "seed=1", "out", "of", "memory"]
    assert "experiment" not in lines[3]


TINY = ("experiment=sen_birds", "validate_only=true")


def test_a_sweep_here_goes_on_past_a_failed_job_and_skips_finished_ones(command: Command) -> None:
    words = ("train", "-m", *TINY, "encoder.rnn_dim=16,-1,32")
    code, out, err = command(*words)
    assert code == 2 and "1 of 3 jobs" in err and "job 1 (encoder.rnn_dim=-1): failed" in err
    assert out.count("run name:") == 2
    code, out, err = command(*words)
    assert code == 2 and "run name:" not in out and out.count("is finished already") == 2
    code, out, _ = command("collect", "sweep=latest")
    assert code == 2 and "2 finished, 1 failed" in out
    code, out, _ = command("collect")
    assert code == 0 and "encoder.rnn_dim=16,-1,32" in out


def test_a_preempted_job_stops_the_sweep_and_the_same_command_continues(
    command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    from speech2image.app import train

    def stopped(config: dict[str, object]) -> None:
        raise Preempted("saved at step 3", "The same command continues.")

    with monkeypatch.context() as during:
        during.setattr(train, "run", stopped)
        code, _, err = command("train", "-m", *TINY, "seed=0,1")
    assert code == 75 and "saved at step 3" in err
    code, out, err = command("collect", "sweep=latest")
    assert "1 waiting, 1 preempted" in out
    code, out, err = command("train", "-m", *TINY, "seed=0,1")
    assert code == 0, err
    assert "2 finished" in command("collect", "sweep=latest")[1]


def test_an_edited_configuration_is_a_new_job(command: Command, tmp_path: Path) -> None:
    words = ("train", "-m", *TINY, "seed=0,1")
    assert command(*words)[0] == 0
    record = next((tmp_path / "runs" / "sweeps").glob("train-*/job-0.json"))
    job = read_job(record)
    assert job is not None
    write_job(record, dataclasses.replace(job, digest="of an older file"))
    code, out, _ = command(*words)
    assert code == 0 and out.count("run name:") == 1


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["hydra/launcher=slrum"], "did you mean: slurm?"),
        (["hydra/launcher=slurm", "hydra.launcher.partiton=a"], "did you mean hydra.launcher.partition?"),
        (["hydra/launcher=slurm", "hydra.launcher.time_min=0"], "expected at least 1 min"),
        (["hydra/launcher=joblib", "hydra.launcher.n_jobs=two"], "expected an integer"),
        (["hydra/launcher=slurm"], "one_node.sh start"),
    ],
)
def test_a_wrong_launcher_is_answered_before_anything_is_written(
    words: list[str], said: str, command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    for extra in (["-m", "seed=0,1"], []):
        code, _, err = command("train", *extra, *TINY, *words)
        assert code == 2 and said in err
    assert list(tmp_path.iterdir()) == []


SLURM = {
    "partition": None, "account": None, "qos": None, "constraint": None, "time_min": 60, "nodes": 1,
    "tasks_per_node": 1, "gpus_per_node": None, "cpus_per_task": 2, "mem_gb": None, "array_parallelism": 256,
    "detach": False, "signal_delay_s": 120, "max_requeues": 100, "setup": [], "extra": {},
}  # fmt: skip


def batch_file(tmp_path: Path, **options: object) -> str:
    """Return the batch file that submitit writes for options."""
    from submitit.slurm.slurm import _make_sbatch_string

    from speech2image.app.slurm import sbatch_parameters

    return _make_sbatch_string("python job", tmp_path, **sbatch_parameters("train-1", SLURM | options))


def test_the_defaults_of_the_launcher_are_those_of_its_file() -> None:
    from omegaconf import OmegaConf

    from speech2image.config.compose import conf_dir
    from speech2image.config.schema_launcher import LAUNCHERS

    for name in ("joblib", "slurm"):
        written = OmegaConf.to_container(OmegaConf.load(conf_dir() / "hydra" / "launcher" / f"{name}.yaml"))
        assert isinstance(written, dict) and str(written.pop("_target_")).startswith(
            "hydra_plugins.speech2image."
        )
        assert written == dataclasses.asdict(LAUNCHERS[name]())
    assert dataclasses.asdict(LAUNCHERS["slurm"]()) == SLURM


def test_options_become_lines_of_the_batch_file(tmp_path: Path) -> None:
    text = batch_file(tmp_path)
    for line in ("--requeue", "--time=60", "--signal=USR2@120", "--open-mode=append", "--cpus-per-task=2"):
        assert f"#SBATCH {line}\n" in text
    for absent in ("partition", "account", "gpus", "mem=", "kill-on-bad-exit"):
        assert absent not in text
    command = next(line for line in text.splitlines() if line.startswith("srun"))
    assert "--cpus-per-task=2" in command and "--open-mode=append" in command
    text = batch_file(
        tmp_path, partition="gpu", account="speech", qos="low", constraint="a100", gpus_per_node=4, tasks_per_node=4,
        nodes=2, mem_gb=1.5, setup=["module load cuda"], extra={"mail-type": "END", "exclude": "node7"},
    )  # fmt: skip
    for line in ("--partition=gpu", "--account=speech", "--qos=low", "--constraint=a100", "--gpus-per-node=4",
                 "--ntasks-per-node=4", "--nodes=2", "--mem=1536MB", "--mail-type=END", "--exclude=node7"):  # fmt: skip
        assert f"#SBATCH {line}\n" in text
    assert "\nmodule load cuda\n" in text and "--kill-on-bad-exit=1" in text


def test_only_the_first_rank_says_that_it_was_preempted(
    sweep: Sweep, monkeypatch: pytest.MonkeyPatch
) -> None:
    from speech2image.app import cli
    from speech2image.app.slurm import ClusterJob

    def stopped(verb: str, words: object) -> None:
        raise Preempted("saved", "")

    monkeypatch.setattr(cli, "perform", stopped)
    job = ClusterJob(str(begin(sweep)), "train", ("seed=0",))
    with pytest.raises(SystemExit) as left:
        job()
    assert left.value.code == 75 and (read_job(sweep.record(0)) or Job(0, ())).state == "preempted"
    monkeypatch.setenv("SLURM_PROCID", "1")
    job()  # srun would end the first rank, which may still save


def test_a_failed_job_tells_slurm_so(sweep: Sweep, monkeypatch: pytest.MonkeyPatch) -> None:
    from speech2image.app import cli
    from speech2image.app.slurm import ClusterJob

    def wrong(verb: str, words: object) -> None:
        raise DataError("no corpus", "")

    monkeypatch.setattr(cli, "perform", wrong)
    with pytest.raises(SystemExit) as left:
        ClusterJob(str(begin(sweep)), "train", ("seed=0",))()
    assert left.value.code == 2


@pytest.mark.parametrize(
    ("state", "meaning", "words"),
    [("PENDING", "waiting", "resources"), ("COMPLETING", "running", ""), ("CANCELLED by 1000", "told", "cancelled by a user"),
     ("OUT_OF_MEMORY", "told", "hydra.launcher.mem_gb"), ("TIMEOUT", "told", "time limit"), ("NODE_FAIL", "told", "node failed"),
     ("FAILED", "ended", "without a word"), ("", "ended", "UNKNOWN")],
)  # fmt: skip
def test_states_of_slurm_are_understood(state: str, meaning: str, words: str) -> None:
    from speech2image.app.slurm import read_state

    heard = read_state(state, "Resources")
    assert heard.state == meaning and words in heard.reason


def test_joblib_runs_jobs_beside_each_other_and_skips_finished_ones(command: Command, tmp_path: Path) -> None:
    words = (
        "train",
        "-m",
        *TINY,
        "encoder.rnn_dim=16,32",
        "hydra/launcher=joblib",
        "hydra.launcher.threads=1",
    )
    code, out, err = command(*words)
    assert code == 0, err
    jobs = find_sweep("latest", tmp_path / "runs").jobs()
    assert [job.state for job in jobs] == ["finished"] * 2 and os.getpid() not in {job.pid for job in jobs}
    for job in jobs:
        log = (
            tmp_path
            / "runs"
            / "sweeps"
            / find_sweep("latest", tmp_path / "runs").id
            / f"job-{job.number}.log"
        )
        assert "run name:" in log.read_text()
    code, out, _ = command(*words)
    assert code == 0 and out.count("is finished already") == 2
