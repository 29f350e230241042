"""Jobs on a SLURM cluster: submitting them through submitit, and asking how they are.

submitit writes the batch file, ships the job and requeues one that comes to its time limit.  Its own results and
states are not used: they need the accounting database, end at the first failed job and cannot be read later by
another command.  Records of jobs are in `sweeps.py`.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from speech2image.app.sweeps import Job, Sweep, is_first_process, run_recorded
from speech2image.errors import ConfigError, Preempted

_WAITING = {
    "PENDING", "CONFIGURING", "REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD", "RESV_DEL_HOLD", "SPECIAL_EXIT", "SUSPENDED",
}  # fmt: skip
_RUNNING = {"RUNNING", "COMPLETING", "RESIZING", "SIGNALING", "STAGE_OUT", "STOPPED"}
_ENDED = {
    "CANCELLED": "cancelled by a user (scancel)",
    "OUT_OF_MEMORY": "out of memory; give more: hydra.launcher.mem_gb=<GB>",
    "TIMEOUT": "time limit reached; the same command continues it",
    "NODE_FAIL": "its node failed; the same command continues it",
    "BOOT_FAIL": "its node did not start",
    "DEADLINE": "ended at its deadline",
    "PREEMPTED": "preempted and not requeued; the same command continues it",
}


@dataclass(frozen=True)
class Heard:
    """What SLURM says of a job: waiting, running, told (ended, reason known) or ended (without a reason)."""

    state: str
    reason: str = ""


def check_here() -> None:
    """Raise unless jobs can be submitted from this machine.

    Raises: ConfigError: there is no `sbatch`.
    """
    if shutil.which("sbatch") is None or shutil.which("srun") is None:
        raise ConfigError(
            "hydra/launcher=slurm: the commands sbatch and srun are not on this machine",
            "Type it on a login node of the cluster; for a SLURM of one node at home: tests/slurm/one_node.sh start",
        )


@dataclass
class ClusterJob:
    """What submitit runs on a node: one command of the suite, in the job's process, with its record kept."""

    record: str
    verb: str
    words: tuple[str, ...]

    def __call__(self) -> None:
        """Run the job; leave with 75 when it was preempted and saved, with 2 when it failed."""
        from speech2image.app.cli import perform

        try:
            job = run_recorded(Path(self.record), lambda: perform(self.verb, self.words))
        except Preempted:
            if is_first_process():  # srun ends all ranks when one fails: only the first may say so
                raise SystemExit(Preempted.exit_code) from None
            return
        if job.state == "failed":
            raise SystemExit(2)

    def checkpoint(self) -> Any:
        """Tell submitit what to run after a requeue: the same, which finds its own checkpoint."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


def sbatch_parameters(name: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the parameters of submitit for checked options of `hydra/launcher=slurm`."""
    # Since 22.05 srun takes the cores from nobody else; a requeued job writes on in its log.
    srun = [f"--cpus-per-task={options['cpus_per_task']}", "--open-mode=append"]
    if options["nodes"] * options["tasks_per_node"] > 1:
        srun.append("--kill-on-bad-exit=1")  # ranks that wait for a dead one would wait for ever
    asked = {
        "job_name": name,
        "time": options["time_min"],
        "nodes": options["nodes"],
        "ntasks_per_node": options["tasks_per_node"],
        "cpus_per_task": options["cpus_per_task"],
        "gpus_per_node": options["gpus_per_node"],
        "mem": None if options["mem_gb"] is None else f"{round(options['mem_gb'] * 1024)}MB",
        "signal_delay_s": options["signal_delay_s"],
        "array_parallelism": options["array_parallelism"],
        "setup": ["export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$SLURM_CPUS_PER_TASK}", *options["setup"]],
        "srun_args": srun,
        "additional_parameters": {"requeue": True, **options["extra"]},
    }
    asked |= {key: options[key] for key in ("partition", "account", "qos", "constraint")}
    return {key: value for key, value in asked.items() if value is not None}


def submit(sweep: Sweep, jobs: Sequence[Job], options: Mapping[str, Any]) -> dict[int, str]:
    """Submit jobs as one array, a single one by itself; return their numbers in SLURM by their own.

    Raises: ConfigError: SLURM refused them; its words.
    """
    from submitit import SlurmExecutor
    from submitit.core.utils import FailedJobError, FailedSubmissionError

    folder = sweep.folder.resolve()
    executor = SlurmExecutor(folder=folder / "slurm", max_num_timeout=options["max_requeues"])
    executor.update_parameters(**sbatch_parameters(sweep.id, options))
    work = [ClusterJob(str(folder / f"job-{job.number}.json"), sweep.verb, job.overrides) for job in jobs]
    try:
        with _outside_of_jobs():
            sent = executor.submit_array(work)
    except (FailedJobError, FailedSubmissionError, OSError) as error:
        said = [line for line in str(error).splitlines() if "sbatch:" in line] or str(error).splitlines()[-2:]
        raise ConfigError(
            "SLURM refused the jobs: " + " ".join(line.strip() for line in said),
            "See what there is with: sinfo -s; then choose hydra.launcher.partition, account, time_min or mem_gb.",
        ) from None
    return {job.number: str(one.job_id) for job, one in zip(jobs, sent, strict=True)}


@contextlib.contextmanager
def _outside_of_jobs() -> Iterator[None]:
    """Hide the job that this command is typed in: what it submits is no part of it."""
    from submitit.helpers import clean_env

    if "SLURM_JOB_ID" not in os.environ:
        yield
        return
    conf = os.environ.get("SLURM_CONF")
    with clean_env():
        os.environ.update({"SLURM_CONF": conf} if conf else {})
        yield


def ask(ids: Sequence[str]) -> dict[str, Heard] | None:
    """Ask SLURM how jobs are; None: it does not answer.  Jobs that it has forgotten are left out."""
    lines = _answer("squeue", "-h", "-r", "-t", "all", "-u", str(os.getuid()), "-o", "%i|%T|%r")
    if lines is None:
        return None
    heard = {
        number: read_state(state, reason) for number, state, reason in _cut(lines, 3) if number in set(ids)
    }
    missing = sorted({number.split("_")[0] for number in set(ids) - set(heard)})
    if missing:
        told = _answer("sacct", "-n", "-P", "-X", "-o", "JobID,State", "-j", ",".join(missing)) or []
        for number, state in _cut(told, 2):
            if number in ids and number not in heard:
                heard[number] = read_state(state, "")
    return heard


def read_state(state: str, reason: str) -> Heard:
    """Return what a state of squeue or sacct means.

    >>> read_state("CANCELLED by 1000", "").reason
    'cancelled by a user (scancel)'
    """
    name = state.split()[0] if state else "UNKNOWN"
    if name in _WAITING:
        return Heard("waiting", "" if reason == "None" else _readable(reason))
    if name in _RUNNING:
        return Heard("running")
    if name in _ENDED:
        return Heard("told", _ENDED[name])
    return Heard("ended", "ended without a word" if name in ("COMPLETED", "FAILED") else f"ended as {name}")


def last_words(folder: Path, slurm_job: str) -> str:
    """Return the last line a job wrote into its log, and where the log is, to end a sentence with."""
    log = folder / "slurm" / f"{slurm_job}_0_log.err"
    try:
        lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    except OSError:
        return ""
    return f"; its last line: {lines[-1].strip()[:160]} ({log})" if lines else f"; its log is empty ({log})"


def _readable(reason: str) -> str:
    words = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", reason.strip("()")).lower()
    return "waits before it starts again" if words == "begin time" else words


def _answer(*command: str) -> list[str] | None:
    try:
        done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.splitlines() if done.returncode == 0 else None


def _cut(lines: Sequence[str], count: int) -> list[list[str]]:
    return [parts for line in lines if len(parts := [part.strip() for part in line.split("|")]) == count]
