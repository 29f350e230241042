"""Records of sweeps: which jobs there are, how far each is, and why one did not finish.

One folder a sweep, `runs/sweeps/<sweep id>/`, whatever runs its jobs.  Each file has one writer at a time:
`sweep.json` and `cluster.json` belong to the command that launches or collects, `job-<n>.json` to the launching
command until the job starts and to the job from then on.  Who runs jobs is in `launch.py` and `slurm.py`.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import re
import socket
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from speech2image.data.whole import write_whole
from speech2image.errors import DataError, Preempted, Speech2ImageError, nearest_names

#: What the record of a job may say.
STATES = ("submitted", "running", "finished", "pruned", "failed", "preempted")
#: States of a job that nobody tries again.
ENDED_WELL = ("finished", "pruned")
#: Words that say where jobs run or how many are asked for, not which jobs a sweep has.
_NOT_DEFINING = re.compile(
    r"hydra\.(?!sweeper\.(params|metric|direction|sampler|seed)\b)|hydra/launcher=|-m$|--multirun$"
)


@dataclass(frozen=True)
class Job:
    """One job of a sweep, as its record says.

    Args:
        number: place in the sweep, from 0.
        overrides: the words of its command.
        state: submitted, running, finished, pruned (by a search), failed or preempted (saved, continues by the same command).
        run: what it made, a folder; None: nothing yet.
        message: why it failed or stopped; of a running one, what is worth knowing.
        slurm_job: its number in SLURM, `12` or `12_3`.
        digest: hash of its composed configuration.
        host: machine and process it was seen in, told apart from later ones by the time of their start.
    """

    number: int
    overrides: tuple[str, ...]
    state: str = "submitted"
    run: Path | None = None
    message: str = ""
    slurm_job: str | None = None
    digest: str = ""
    host: str = ""
    pid: int | None = None
    born: str = ""
    started: str | None = None
    ended: str | None = None

    @property
    def words(self) -> str:
        """The overrides in one line."""
        return " ".join(self.overrides)


@dataclass(frozen=True)
class Sweep:
    """The folder of one sweep and what its `sweep.json` says.

    Args:
        folder: `runs/sweeps/<sweep id>`.
        verb: the verb of all jobs.
        words: the words of the command that defined it.
        launcher: basic, joblib or slurm: who ran jobs last.
        count: how many jobs.
        created: time of the first call.
        paths: the group `paths` of the command.
    """

    folder: Path
    verb: str
    words: tuple[str, ...]
    launcher: str
    count: int
    created: str
    paths: dict[str, Any]

    @property
    def id(self) -> str:
        """The name of the sweep."""
        return self.folder.name

    @property
    def runs(self) -> Path:
        """The folder of all runs."""
        return self.folder.parent.parent

    def record(self, number: int) -> Path:
        """Return the place of a job's record."""
        return self.folder / f"job-{number}.json"

    def jobs(self) -> list[Job]:
        """Return all jobs in their order, each with what the cluster was last heard to say of it."""
        heard, jobs = self.cluster(), []
        for path in self.folder.glob("job-*.json"):
            job = read_job(path)
            if job is not None:
                said = heard.get(str(job.number), {})
                jobs.append(dataclasses.replace(job, slurm_job=said.get("slurm_job") or job.slurm_job))
        return sorted(jobs, key=lambda job: job.number)

    def cluster(self) -> dict[str, dict[str, str]]:
        """Return by a job's number its number in SLURM (`slurm_job`) and, if it ended there, how (`ended`)."""
        found = _read(self.folder / "cluster.json")
        return found if isinstance(found, dict) else {}

    def note_cluster(self, news: Mapping[int, Mapping[str, str]]) -> None:
        """Write down what the cluster said of jobs; an entry replaces the older one of that job."""
        said = self.cluster() | {str(number): dict(entry) for number, entry in news.items()}
        write_whole(self.folder / "cluster.json", json.dumps(said, indent=1).encode())

    def write(self) -> None:
        """Write `sweep.json`."""
        about = dataclasses.asdict(self)
        del about["folder"]
        write_whole(self.folder / "sweep.json", json.dumps(about, indent=1).encode())


def sweep_id(verb: str, words: Iterable[str]) -> str:
    """Return the name of a sweep: `<verb>-<8 hex digits>`, a function of the command's words.

    Words that say who runs the jobs are left out: what was begun here goes on in SLURM.

    >>> sweep_id("train", ["seed=0,1"]) == sweep_id("train", ["-m", "++seed=0,1", "hydra/launcher=slurm"])
    True
    """
    kept = [plain_word(word) for word in words if not _NOT_DEFINING.match(word.lstrip("+"))]
    return f"{verb}-{hashlib.sha256(json.dumps([verb, *kept]).encode()).hexdigest()[:8]}"


def plain_word(word: str) -> str:
    """Return an override as a person types it: `++seed=1` and `seed=1` mean the same to this suite."""
    return word.removeprefix("++")


def open_sweep(paths: Mapping[str, Any], verb: str, words: Sequence[str], launcher: str, count: int) -> Sweep:
    """Make the folder of a sweep, or find the one of the same words; never loses jobs it already has."""
    folder = Path(str(paths["runs"])) / "sweeps" / sweep_id(verb, words)
    before = _read(folder / "sweep.json")
    created = time_now()
    if isinstance(before, dict):
        created, count = str(before.get("created", created)), max(count, int(before.get("count", 0)))
    kept = tuple(plain_word(word) for word in words if not word.startswith("hydra.mode="))
    sweep = Sweep(folder, verb, kept, launcher, count, created, dict(paths))
    sweep.write()
    return sweep


def all_sweeps(runs: Path) -> list[Sweep]:
    """Return the sweeps below a folder of runs, newest use last."""
    found = sorted((runs / "sweeps").glob("*/sweep.json"), key=lambda path: path.stat().st_mtime)
    return [sweep for path in found if (sweep := _sweep(path)) is not None]


def find_sweep(name: str, runs: Path) -> Sweep:
    """Return the sweep of an id, of the beginning of one, or the one used last (`latest`).

    Raises: DataError: none of that name.
    """
    known = all_sweeps(runs)
    if name == "latest" and known:
        return known[-1]
    matching = [sweep for sweep in known if sweep.id == name] or [
        sweep for sweep in known if sweep.id.startswith(name)
    ]
    if len(matching) == 1:
        return matching[0]
    names = [sweep.id for sweep in known]
    if not names:
        raise DataError(
            f"there is no sweep below {runs / 'sweeps'}", "Start one: speech2image train -m seed=0,1"
        )
    near = nearest_names(name, names, 1)
    hint = f"Did you mean {near[0]}? " if near else ""
    what = "is the beginning of several" if matching else "no such sweep"
    raise DataError(f"sweep={name}: {what}; found: {', '.join(names[-8:])}", f"{hint}Or type: sweep=latest")


def read_job(path: Path) -> Job | None:
    """Return what a record says; None: it is not there or was cut."""
    found = _read(path)
    if not isinstance(found, dict) or "number" not in found:
        return None
    known = {item.name for item in dataclasses.fields(Job)}
    found = {key: value for key, value in found.items() if key in known}
    found["overrides"] = tuple(found.get("overrides", ()))
    if found.get("run"):  # below the folder of runs: moves with it
        found["run"] = path.parent.parent.parent / found["run"]
    return Job(**found)


def write_job(path: Path, job: Job) -> None:
    """Write the record of a job, whole or not at all."""
    about = dataclasses.asdict(job)
    if job.run is not None:
        about["run"] = os.path.relpath(job.run, path.parent.parent.parent)
    write_whole(path, json.dumps(about, indent=1).encode())


def is_done(job: Job | None, overrides: Sequence[str], digest: str) -> bool:
    """Return whether a job with these words and this configuration has finished, and its run is still there."""
    if (
        job is None
        or job.state not in ENDED_WELL
        or job.overrides != tuple(overrides)
        or job.digest != digest
    ):
        return False
    return job.run is None or (job.run / "run.json").is_file()


def run_recorded(path: Path, perform: Callable[[], Any]) -> Job:
    """Do a job in this process and keep its record; only the first rank of several writes.

    Args:
        path: its record, made by the launching command.
        perform: does the work and returns the folder it made, if it made one.
    Returns: the job, finished or failed; an error of its own has been printed.
    Raises:
        Preempted, KeyboardInterrupt, SystemExit: it was stopped on the way, which the record says.
    """
    job = read_job(path)
    assert job is not None, f"{path} was not written before its job started"
    keep = write_job if is_first_process() else _keep_nothing
    job = dataclasses.replace(
        job, state="running", message="", started=time_now(), ended=None, **this_process()
    )
    keep(path, job)
    state, message, made = "failed", "", None
    try:
        made = perform()
        state = "pruned" if isinstance(made, Path) and _is_pruned(made) else "finished"
    except Preempted as error:
        state, message = "preempted", error.message
        raise
    except Speech2ImageError as error:
        message = str(error)
        print(f"speech2image: {error}", file=sys.stderr, flush=True)
    except KeyboardInterrupt:
        state, message = "preempted", "interrupted"
        raise
    except SystemExit as error:
        state, message = (
            "preempted",
            f"stopped on a signal of the cluster (exit {error.code}), to be requeued",
        )
        raise
    except Exception as error:  # noqa: BLE001 - a bug, or no memory: the other jobs go on
        message = f"{type(error).__name__}: {error}"
        traceback.print_exc()
    finally:
        run = Path(made) if isinstance(made, str | os.PathLike) else None
        job = dataclasses.replace(job, state=state, message=message, run=run, ended=time_now())
        keep(path, job)
    return job


def _is_pruned(run: Path) -> bool:
    about = _read(run / "run.json")
    return isinstance(about, dict) and about.get("status") == "pruned"


def _keep_nothing(path: Path, job: Job) -> None:
    """Write no record: this process is not the first rank."""


def is_first_process() -> bool:
    """Return whether this process is the first rank that srun or torchrun started, or the only one."""
    return os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0")) == "0"


def this_process() -> dict[str, Any]:
    """Return what tells this process from all others, and its number in SLURM."""
    number = os.environ.get("SLURM_JOB_ID")
    if "SLURM_ARRAY_TASK_ID" in os.environ:
        number = f"{os.environ['SLURM_ARRAY_JOB_ID']}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    pid = os.getpid()
    return {"host": socket.gethostname(), "pid": pid, "born": _born(pid), "slurm_job": number}


def is_alive(job: Job) -> bool:
    """Return whether the process of a running job still runs; one on another machine is believed to."""
    if job.pid is None:
        return False
    if job.host != socket.gethostname():
        return True
    if job.born:
        return _born(job.pid) == job.born
    try:
        os.kill(job.pid, 0)
    except OSError:
        return False
    return True


def _born(pid: int) -> str:
    """Return when a process started, in ticks since boot; "" where that cannot be told."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[19]
    except (OSError, IndexError):
        return ""


def time_now() -> str:
    """Return the time as records write it, UTC."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def _sweep(path: Path) -> Sweep | None:
    found = _read(path)
    try:
        return Sweep(folder=path.parent, **{**found, "words": tuple(found["words"])})
    except (TypeError, KeyError):
        return None


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return None
