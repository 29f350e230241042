"""Sweeps on a real SLURM: one job, a detached array, one job preempted, one cancelled, and what is said of them."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest
from clusters import SCRIPT, SMALL, TINY, Cluster, processes_of

from speech2image.app.sweeps import Job, Sweep, all_sweeps, find_sweep

STEPS = "trainer.max_steps=40"


def journal_steps(job: Job) -> int:
    """Return how many lines the journal of a job's run has; 0: none yet."""
    from speech2image.config.compose import compose
    from speech2image.config.runid import run_id

    config = compose("train", job.overrides)
    path = Path(config["paths"]["runs"]) / run_id(config["name"], config) / "journal.jsonl"
    return len(path.read_text().splitlines()) if path.is_file() else 0


def job_of(sweep: Sweep, seed: int) -> Job:
    return next(job for job in sweep.jobs() if f"seed={seed}" in job.overrides)


def disturb(cluster: Cluster, sweep: Sweep, seed: int, *command: str) -> None:
    """Let a job come some steps far, then do something to it."""
    cluster.wait(f"seed {seed} trains", lambda: journal_steps(job_of(sweep, seed)) > 8)
    assert job_of(sweep, seed).state == "running"
    cluster.slurm(*command, str(job_of(sweep, seed).slurm_job))


def same_files(one: Path, other: Path) -> list[str]:
    """Return which files of two runs are equal, byte for byte."""
    names = ("weights.safetensors", "journal.jsonl")
    return [name for name in names if (one / name).read_bytes() == (other / name).read_bytes()]


def check_end(cluster: Cluster, sweep: Sweep, said: str, preempted: int, cancelled: int) -> None:
    """All but the cancelled one finished, the preempted one went on as if nothing had been, the page names the other."""
    jobs = sweep.jobs()
    assert [job for job in jobs if job.state != "finished"] == [job_of(sweep, cancelled)]
    assert f"(seed={cancelled}): failed: cancelled by a user (scancel)" in said
    page = (cluster.runs / "reports" / sweep.id / "index.html").read_text()
    assert "did not finish" in page and f"(seed={cancelled})" in page and "cancelled by a user" in page
    finished = job_of(sweep, preempted)
    assert "Restarts=1" in cluster.slurm("scontrol", "show", "job", str(finished.slurm_job))
    twin = cluster.type("train", *TINY, STEPS, f"seed={preempted}", runs="twin")
    assert twin.returncode == 0, twin.stderr
    assert finished.run is not None
    assert same_files(finished.run, Path(twin.stdout.strip().splitlines()[-1])) == [
        "weights.safetensors",
        "journal.jsonl",
    ]


def test_a_single_job_goes_to_slurm_and_comes_back(cluster: Cluster) -> None:
    done = cluster.type("train", *TINY, "trainer.max_steps=2", "seed=50", *SMALL)
    assert done.returncode == 0, done.stderr
    run = Path(done.stdout.strip().splitlines()[-1])
    assert (run / "weights.safetensors").is_file()
    job = find_sweep("latest", cluster.runs).jobs()[0]
    assert job.state == "finished" and job.slurm_job is not None and job.host and job.pid != os.getpid()
    assert " hydra" not in json.loads((run / "run.json").read_text())["command"]
    batch = (cluster.runs / "sweeps").glob(f"*/slurm/{job.slurm_job}_submission.sh")
    assert "--time=15" in next(batch).read_text()
    again = cluster.type("train", *TINY, "trainer.max_steps=2", "seed=50", *SMALL)
    assert again.returncode == 0 and "is finished already" in again.stdout and "submitted" not in again.stdout


def test_a_detached_sweep_is_collected_with_one_job_preempted_and_one_cancelled(cluster: Cluster) -> None:
    words = ("train", "-m", *TINY, STEPS, "seed=0,1,2", *SMALL, "hydra.launcher.detach=true")
    sent = cluster.type(*words)
    assert sent.returncode == 0, sent.stderr
    sweep = find_sweep("latest", cluster.runs)
    assert f"speech2image collect sweep={sweep.id}" in sent.stdout
    again = cluster.type(*words)
    assert again.returncode == 0 and "3 jobs wait or run in SLURM already" in again.stdout, (
        again.stdout + again.stderr
    )
    assert {str(job.slurm_job).split("_")[0] for job in sweep.jobs()} == {
        str(sweep.jobs()[0].slurm_job).split("_")[0]
    }
    disturb(cluster, sweep, 0, "scontrol", "requeue")
    disturb(cluster, sweep, 1, "scancel")
    done = cluster.type("collect", f"sweep={sweep.id}", "wait=true")
    assert done.returncode == 2, done.stdout + done.stderr
    check_end(cluster, sweep, done.stderr, preempted=0, cancelled=1)


def test_a_job_whose_node_fails_goes_on_when_the_node_is_back(cluster: Cluster) -> None:
    """SLURM ends the job with SIGKILL and puts it back into the queue; a live node reports back within a second."""
    sent = cluster.type("train", *TINY, STEPS, "seed=70", *SMALL, "hydra.launcher.detach=true")
    assert sent.returncode == 0, sent.stderr
    sweep = find_sweep("latest", cluster.runs)
    node = cluster.slurm("sinfo", "--noheader", "--format=%n").strip()
    cluster.wait("it trains", lambda: journal_steps(job_of(sweep, 70)) > 8)
    cluster.slurm("scontrol", "update", f"nodename={node}", "state=down", "reason=test")
    done = cluster.type("collect", f"sweep={sweep.id}", "wait=true")
    assert done.returncode == 0, done.stdout + done.stderr
    job = job_of(sweep, 70)
    assert "Restarts=1" in cluster.slurm("scontrol", "show", "job", str(job.slurm_job))
    twin = cluster.type("train", *TINY, STEPS, "seed=70", runs="twin")
    assert twin.returncode == 0 and job.run is not None, twin.stderr
    assert len(same_files(job.run, Path(twin.stdout.strip().splitlines()[-1]))) == 2


def test_a_search_asks_slurm_for_its_trials(cluster: Cluster) -> None:
    pytest.importorskip("optuna", reason="the extra 'search' is not installed")
    words = (
        "train", "-m", *TINY, "trainer.max_steps=6", "trainer.val_every=2", "seed=80", *SMALL, "hydra/sweeper=optuna",
        "hydra.sweeper.n_jobs=2", "hydra.sweeper.startup_trials=1", "optim.lr=tag(log,interval(1e-4,1e-2))",
    )  # fmt: skip
    first = cluster.type(*words, "hydra.sweeper.n_trials=2")
    assert first.returncode == 0, first.stderr
    more = cluster.type(*words, "hydra.sweeper.n_trials=3")
    assert more.returncode == 0 and "search of 3 trials" in more.stdout, more.stdout + more.stderr
    sweep = find_sweep("latest", cluster.runs)
    jobs = sweep.jobs()
    assert len(jobs) == 3 and all(job.state in ("finished", "pruned") and job.slurm_job for job in jobs)
    rates = [word for job in jobs for word in job.overrides if word.startswith("optim.lr=")]
    assert len(set(rates)) == 3 and (sweep.folder / "history.png").is_file()


def test_a_refused_sweep_says_what_slurm_said(cluster: Cluster) -> None:
    done = cluster.type("train", *TINY, "seed=60", *SMALL, "hydra.launcher.partition=nowhere")
    assert done.returncode == 2 and "invalid partition" in done.stderr and "sinfo -s" in done.stderr


@pytest.mark.timeout(1800)
def test_sixteen_jobs_with_one_preempted_and_one_cancelled(cluster: Cluster) -> None:
    if os.environ.get("SPEECH2IMAGE_FAULTS") != "full":
        pytest.skip("the whole figure takes minutes: SPEECH2IMAGE_FAULTS=full")
    seeds = ",".join(str(seed) for seed in range(100, 116))
    command = cluster.start("train", "-m", *TINY, STEPS, f"seed={seeds}", *SMALL)
    cluster.wait("the array is there", lambda: find_latest(cluster, 16))
    sweep = find_sweep("latest", cluster.runs)
    disturb(cluster, sweep, 101, "scontrol", "requeue")
    disturb(cluster, sweep, 103, "scancel")
    said, _ = command.communicate(timeout=1500)
    assert command.returncode == 2, said
    assert "15 finished, 1 failed" in said
    check_end(cluster, sweep, said, preempted=101, cancelled=103)


def find_latest(cluster: Cluster, count: int) -> bool:
    """Whether the sweep used last has so many jobs, all with their numbers in SLURM."""
    known = all_sweeps(cluster.runs)
    return bool(known) and sum("slurm_job" in said for said in known[-1].cluster().values()) == count


def test_a_crash_leaves_nothing_that_hinders_the_next_start(tmp_path: Path, cluster: Cluster) -> None:
    env = cluster.env | {"SPEECH2IMAGE_SLURM": str(tmp_path / "slurm")}
    del env["SLURM_CONF"]

    def call(word: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(SCRIPT), word], env=env, capture_output=True, text=True, timeout=120, check=False
        )

    assert call("status").returncode == 1
    assert call("start").returncode == 0
    conf = tmp_path / "slurm" / "slurm.conf"
    inside = env | {"SLURM_CONF": str(conf)}
    subprocess.run(
        ["sbatch", "-o", "/dev/null", "--wrap", "sleep 600"], env=inside, check=True, capture_output=True
    )
    cluster.wait("the job runs", lambda: any("sleep 600" in told for told in processes_of(str(conf))))
    for name in ("slurmctld", "slurmd", "munged"):
        os.kill(int((tmp_path / "slurm" / f"{name}.pid").read_text()), 9)
    again = call("start")
    assert again.returncode == 0, again.stderr
    assert not any("sleep 600" in told for told in processes_of(str(conf)))
    assert call("stop").returncode == 0 and not (tmp_path / "slurm").exists()
    assert processes_of(str(conf)) == []
