"""Launchers of sweeps: who runs the jobs, one switch `hydra/launcher=basic|joblib|slurm`.

Each keeps the same records (`sweeps.py`), skips what is finished, tries again what failed, and hands Hydra's
sweeper a `Job` for each job as its return value.  Here are the common part and the jobs in this process; processes
beside it are in `workers.py`, the cluster in `slurm.py`, the end of a sweep in `collect.py`.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

from hydra.core.utils import JobReturn, JobStatus, run_job, setup_globals
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf, open_dict

from speech2image.app.plugins import register_plugin
from speech2image.app.slurm import check_here, submit
from speech2image.app.standings import GOING, standings, watch
from speech2image.app.sweeps import (
    Job,
    Sweep,
    is_alive,
    is_done,
    open_sweep,
    plain_word,
    read_job,
    run_recorded,
    write_job,
)
from speech2image.config.compose import to_plain
from speech2image.config.root import ROOT_FIELDS
from speech2image.config.schema_launcher import LAUNCHERS
from speech2image.config.validate import check_config, check_fields
from speech2image.errors import ConfigError, DataError

_LISTEN_S = 10.0
"""So long other processes wait until the first one has said why all end."""
#: Sweeps that launchers of this process have opened; `register` empties it.
_OPENED: dict[str, tuple[Sweep, bool]] = {}


def register() -> Callable[[], list[tuple[Sweep, bool]]]:
    """Make our launchers known to Hydra for one command.

    Returns: what tells, after the command, which sweeps were launched and whether each was left to itself.
    """
    from hydra.core.config_store import ConfigStore

    from speech2image.app.sweeper import GridSearch, OptunaSearch

    _OPENED.clear()
    basic, *_ = [register_plugin(one) for one in (BasicSweep, JoblibSweep, SlurmSweep, OptunaSearch)]
    # Hydra has one of these names, installed plugins may have the others: ours stand in their place.
    for group, name in (("launcher", "joblib.yaml"), ("sweeper", "optuna.yaml")):
        ConfigStore.instance().repo.get("hydra", {}).get(group, {}).pop(name, None)
    store = ConfigStore.instance().store
    store("basic", {"_target_": basic}, "hydra/launcher", provider="speech2image")
    grid = {"_target_": register_plugin(GridSearch), "max_batch_size": None, "params": None}
    store("basic", grid, "hydra/sweeper", provider="speech2image")
    return lambda: list(_OPENED.values())


class BasicSweep(Launcher):
    """Run one job after the other in this process."""

    kind = "basic"

    def __init__(self, **options: Any) -> None:
        self.options: dict[str, Any] = {}

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Take what Hydra has composed; check the options before anything is written.

        Raises: ConfigError: several ranks ask for one sweep; options that do not exist or are out of range, all of them.
        """
        _refuse_ranks()
        self.context, self.task_function, self.config = hydra_context, task_function, config
        self.verb = str(config.hydra.job.config_name)
        options = OmegaConf.to_container(config.hydra.launcher, resolve=True)
        assert isinstance(options, dict)
        self.options = {str(key): value for key, value in options.items() if key != "_target_"}
        problems = check_fields(self.options, LAUNCHERS[self.kind], "hydra.launcher")
        if problems:
            lines = "\n".join(f"  - {problem}" for problem in problems)
            raise ConfigError(
                f"hydra/launcher={self.kind}:\n{lines}",
                f"See every option with: speech2image {self.verb} --help",
            )

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Run or submit the jobs that are not finished; return one `Job` for each, finished or not.

        Raises: Preempted: a signal stopped the sweep; the same command continues.
        """
        setup_globals()
        assert isinstance(self.config, DictConfig)
        words = [*self.config.hydra.overrides.task, *self.config.hydra.overrides.hydra]
        paths, count = to_plain(self.config.paths), initial_job_idx + len(job_overrides)
        sweep = open_sweep(paths, self.verb, words, self.kind, count)
        _OPENED[sweep.id] = sweep, bool(self.options.get("detach"))
        jobs = [
            self._announce(sweep, initial_job_idx + place, [plain_word(word) for word in overrides])
            for place, overrides in enumerate(job_overrides)
        ]
        self._run(sweep, jobs)
        found = {job.number: job for job in sweep.jobs()}
        return [
            JobReturn(
                overrides=list(job.overrides), status=JobStatus.COMPLETED, _return_value=found[job.number]
            )
            for job in jobs
        ]

    def _announce(self, sweep: Sweep, number: int, overrides: Sequence[str]) -> Job:
        """Write the record of a job that is not there yet; return the job as it is."""
        old = read_job(sweep.record(number))
        if old is not None and old.overrides == tuple(overrides):
            return old
        job = Job(number, tuple(overrides))
        write_job(sweep.record(number), job)
        return job

    def _compose(self, job: Job) -> tuple[DictConfig, Job]:
        """Return a job's configuration, and the job with its digest."""
        config = self.context.config_loader.load_sweep_config(
            self.config, [_fixed(word) for word in job.overrides]
        )
        with open_dict(config):
            config.hydra.job.id = f"{self.verb}_{job.number}"
            config.hydra.job.num = job.number
        plain = to_plain(OmegaConf.masked_copy(config, [str(key) for key in config if key != "hydra"]))
        check_config(plain, ROOT_FIELDS[self.verb])
        kept = {key: value for key, value in plain.items() if key != "paths"}
        digest = hashlib.sha256(json.dumps(kept, sort_keys=True, default=str).encode()).hexdigest()[:16]
        return config, dataclasses.replace(job, digest=digest)

    def _run(self, sweep: Sweep, jobs: Sequence[Job]) -> None:
        for job in jobs:
            refuse_if_alive(job)
        for job in jobs:
            self._run_here(sweep, job)

    def _run_here(self, sweep: Sweep, job: Job) -> None:
        path = sweep.record(job.number)
        try:
            config, fresh = self._compose(job)
        except ConfigError as error:  # its own fault; the others still run
            print(f"speech2image: {error}", file=sys.stderr)
            write_job(path, dataclasses.replace(job, state="failed", message=str(error)))
            return
        if is_done(job, job.overrides, fresh.digest):
            print(f"job {job.number} is finished already: {job.run or job.words}")
            return
        write_job(path, dataclasses.replace(fresh, state="submitted", message="", run=None))
        saved, sys.argv = sys.argv, [f"speech2image {self.verb}", *job.overrides]
        try:
            returned = run_job(
                hydra_context=self.context,
                task_function=lambda asked: run_recorded(path, lambda: self.task_function(asked)),
                config=config,
                job_dir_key="hydra.sweep.dir",
                job_subdir_key="hydra.sweep.subdir",
            )
        finally:
            sys.argv = saved
        if returned.status == JobStatus.FAILED:
            raise returned._return_value


def _fixed(word: str) -> str:
    """Return a plain override as Hydra takes it from `prepare_overrides`."""
    from speech2image.config.compose import prepare_overrides

    return prepare_overrides([word])[0]


def _refuse_ranks() -> None:
    """Raise where torchrun or srun has started several processes of this command.

    A job that fails may leave some of them inside an exchange with the others, where the next job would find them.
    """
    if not {"RANK", "SLURM_STEP_ID"} & os.environ.keys():
        return
    from speech2image.training.ranks import place_in  # and torch with it

    place = place_in(os.environ)
    if place is None:
        return
    if place.rank:  # whose end is the end of all, and who says nothing
        time.sleep(_LISTEN_S)
        raise SystemExit(2)
    count = place.world_size
    raise ConfigError(
        f"a sweep cannot share {count} processes of torchrun or srun between its jobs",
        "Let each job start its own: hydra/launcher=slurm hydra.launcher.tasks_per_node="
        f"{count}; without SLURM: for seed in 0 1 2; do torchrun --nproc-per-node {count} -m speech2image train … seed=$seed; done",
    )


def refuse_if_alive(job: Job) -> None:
    """Raise unless a job may be started in a process of this machine.

    Raises: DataError: another process is doing it.
    """
    if job.state == "running" and job.slurm_job is None and is_alive(job):
        raise DataError(
            f"job {job.number} ({job.words}) is running already, in process {job.pid} on {job.host}",
            "Wait for it, or stop that process and give the same command again.",
        )


class JoblibSweep(BasicSweep):
    """Run several jobs at a time on this machine."""

    kind = "joblib"

    def _run(self, sweep: Sweep, jobs: Sequence[Job]) -> None:
        from speech2image.app.workers import run_in_workers

        for job in jobs:
            refuse_if_alive(job)
        run_in_workers(sweep, self._unfinished(sweep, jobs), self.options["n_jobs"], self.options["threads"])

    def _unfinished(self, sweep: Sweep, jobs: Sequence[Job]) -> list[Job]:
        """Return the jobs to do with their records made new; a wrong configuration stops here, before any begins."""
        todo = []
        for job in jobs:
            _, fresh = self._compose(job)
            if is_done(job, job.overrides, fresh.digest):
                print(f"job {job.number} is finished already: {job.run or job.words}")
                continue
            todo.append(dataclasses.replace(fresh, state="submitted", message="", run=None, slurm_job=None))
        for job in todo:
            write_job(sweep.record(job.number), job)
        return todo


class SlurmSweep(JoblibSweep):
    """Submit the jobs to SLURM, and wait for them unless told to detach."""

    kind = "slurm"

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Take what Hydra has composed; check the options and that there is a SLURM before anything is written."""
        super().setup(hydra_context=hydra_context, task_function=task_function, config=config)
        check_here()

    def _run(self, sweep: Sweep, jobs: Sequence[Job]) -> None:
        going = {one.job.number for one in standings(sweep) if one.state in GOING and one.job.slurm_job}
        todo = self._unfinished(sweep, [job for job in jobs if job.number not in going])
        if going:
            print(f"{len(going)} jobs wait or run in SLURM already; they are left alone")
        if todo:
            sweep.note_cluster({job.number: {} for job in todo})
            try:
                ids = submit(sweep, todo, self.options)
            except ConfigError as error:
                for job in todo:
                    write_job(
                        sweep.record(job.number), dataclasses.replace(job, state="failed", message=str(error))
                    )
                raise
            sweep.note_cluster({number: {"slurm_job": slurm_job} for number, slurm_job in ids.items()})
            print(
                f"submitted {len(ids)} jobs to SLURM: {', '.join(sorted({one.split('_')[0] for one in ids.values()}))}"
            )
        collect = f"speech2image collect sweep={sweep.id}"
        if self.options["detach"]:
            print(f"sweep {sweep.id}\n  how far:  {collect}\n  report:   {collect} wait=true")
            return
        try:
            watch(sweep)
        except KeyboardInterrupt:
            cancel = " ".join(sorted({job.slurm_job.split("_")[0] for job in sweep.jobs() if job.slurm_job}))
            print(f"\nthe jobs go on; collect them: {collect} wait=true; or cancel them: scancel {cancel}")
            raise
