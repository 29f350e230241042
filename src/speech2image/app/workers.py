"""Jobs of a sweep in processes beside this one, several at a time, through joblib.

A worker runs many jobs, so that torch is imported once in each.  What a job prints goes into `job-<n>.log` beside its
record.  The records themselves are in `sweeps.py`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from speech2image.app.sweeps import ENDED_WELL, Job, Sweep, is_alive, read_job, run_recorded, write_job
from speech2image.errors import Preempted

_PATIENCE_S = 60.0


def run_in_workers(sweep: Sweep, jobs: Sequence[Job], num_workers: int, threads: int | None) -> None:
    """Run jobs, `num_workers` at a time; one that fails or is killed does not stop the others.

    Raises: Preempted: SIGTERM came here or to a job: the others were told, and have saved.
    """
    from joblib import Parallel, delayed, parallel_config
    from joblib.externals.loky.process_executor import TerminatedWorkerError

    todo = list(jobs)
    with _stopped_by_term(), parallel_config("loky", inner_max_num_threads=threads):
        while todo:
            pool = Parallel(n_jobs=num_workers, return_as="generator_unordered", pre_dispatch=num_workers)
            work = (
                delayed(_run_apart)(str(sweep.record(job.number)), sweep.verb, job.overrides) for job in todo
            )
            try:
                for done in pool(work):
                    _tell(done)
                    if done.state == "preempted":
                        raise Preempted(
                            f"job {done.number} was stopped: {done.message}", "The same command continues."
                        )
                return
            except TerminatedWorkerError:
                todo = _after_death(sweep, todo)
            except BaseException:
                _stop(sweep, todo)
                raise


def _run_apart(record: str, verb: str, words: Sequence[str]) -> Job:
    """Run one job in a worker; its output goes into its log."""
    from speech2image.app.cli import perform

    path = Path(record)
    with _output_in(path.with_suffix(".log")):
        try:
            return run_recorded(path, lambda: perform(verb, words))
        except (Preempted, KeyboardInterrupt, SystemExit):
            stopped = read_job(path)
            assert stopped is not None
            return stopped


@contextlib.contextmanager
def _output_in(log: Path) -> Iterator[None]:
    sys.stdout.flush()
    sys.stderr.flush()
    kept = os.dup(1), os.dup(2)
    with open(log, "ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    try:
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        for place, old in enumerate(kept, start=1):
            os.dup2(old, place)
            os.close(old)


@contextlib.contextmanager
def _stopped_by_term() -> Iterator[None]:
    def stop(number: int, frame: FrameType | None) -> None:
        raise Preempted("the sweep was stopped by SIGTERM", "The same command continues it.")

    before: Any = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _tell(job: Job) -> None:
    what = str(job.run or "") if job.state in ENDED_WELL else job.message.split("\n")[0]
    print(f"job {job.number} {job.state}: {what or job.words}", flush=True)


def _after_death(sweep: Sweep, jobs: Sequence[Job]) -> list[Job]:
    """Note the jobs whose process was killed; return those that have not begun."""
    rest = []
    for job in jobs:
        seen = read_job(sweep.record(job.number)) or job
        if seen.state == "running":
            _wait_for_end(seen)
            message = "its process was killed (out of memory?)"
            seen = dataclasses.replace(seen, state="failed", message=message)
            write_job(sweep.record(job.number), seen)
            _tell(seen)
        elif seen.state == "submitted":
            rest.append(job)
    return rest


def _stop(sweep: Sweep, jobs: Sequence[Job]) -> None:
    """Tell the running jobs to save and stop, wait for them, then end the workers."""
    from joblib.externals.loky import get_reusable_executor

    running = [
        seen for job in jobs if (seen := read_job(sweep.record(job.number))) and seen.state == "running"
    ]
    for job in running:
        if job.pid is not None and is_alive(job):
            with contextlib.suppress(ProcessLookupError):
                os.kill(job.pid, signal.SIGTERM)
    until = time.monotonic() + _PATIENCE_S
    for job in running:
        while (read_job(sweep.record(job.number)) or job).state == "running" and is_alive(job):
            if time.monotonic() > until:
                break
            time.sleep(0.1)
    get_reusable_executor().shutdown(wait=False, kill_workers=True)


def _wait_for_end(job: Job) -> None:
    until = time.monotonic() + _PATIENCE_S
    while is_alive(job) and time.monotonic() < until:
        time.sleep(0.1)
