"""Who this process is among the ranks of a run, how ranks start, and how they wait for each other.

Ranks are started by torchrun or srun, never by us; one process alone is rank 0 of 1.  Only the first rank writes
files and prints.  Shares of a batch are cut in `data/`; what ranks compute together is in `synchronised.py`.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import re
import signal
import socket
import sys
import threading
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from datetime import timedelta
from typing import Any, NamedTuple, NoReturn

import torch
import torch.distributed as dist
from lightning_fabric.plugins.environments.lightning import LightningEnvironment
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

from speech2image.data.order import Share
from speech2image.errors import ConfigError, Speech2ImageError, TrainingError

_PATIENCE_S = 5.0
"""So long a rank that fails listens whether another one says why."""
_LOOK_S = 0.02, 0.5
"""A waiting rank looks so often at first, and so often after a while."""
_LOST = (
    "closed by peer",
    "reset by peer",
    "Broken pipe",
    "imed out",
    "NCCL",
    "recvValue",
    "sendBytes",
    "failed to",
)


class Place(NamedTuple):
    """Where a launcher put this process.

    Attributes:
        rank: its number among all, from 0.
        world_size: how many there are.
        local_rank: its number on its machine.
    """

    rank: int
    world_size: int
    local_rank: int


class _Meeting:
    """Where the ranks of this process's group leave word for each other; None where it is alone.

    Every run of a process has its own `store`, so that what a failed one has said does not end the next.
    """

    place: Store | None = None
    store: Store | None = None
    runs = 0
    waits = 0


def place_in(env: Mapping[str, str]) -> Place | None:
    """Return who a launcher says this process is; None: it trains alone.

    Args:    env: the environment: `RANK`, `WORLD_SIZE`, `LOCAL_RANK` of torchrun, or what srun gives its tasks.  The
                 batch script of a SLURM job, which is no task, trains alone.
    """
    if "RANK" in env and "WORLD_SIZE" in env:
        place = Place(int(env["RANK"]), int(env["WORLD_SIZE"]), int(env.get("LOCAL_RANK", 0)))
    elif "SLURM_STEP_ID" in env and "SLURM_PROCID" in env:
        tasks = env.get("SLURM_STEP_NUM_TASKS", env.get("SLURM_NTASKS", "1"))
        place = Place(int(env["SLURM_PROCID"]), int(tasks), int(env.get("SLURM_LOCALID", 0)))
    else:
        return None
    return place if place.world_size > 1 else None


def first_host(nodes: str) -> str:
    """Return the first name of a SLURM node list.

    >>> first_host("gpu[07-09,12],login1"), first_host("node3")
    ('gpu07', 'node3')
    """
    found = re.match(r"([^,\[]+)(?:\[(\w+))?", nodes)
    return "localhost" if found is None else found[1] + (found[2] or "")


def meeting_point(env: Mapping[str, str]) -> dict[str, str]:
    """Return address and port where the ranks of an srun step meet, as torch.distributed names them.

    The port is a function of job and step, so that two steps on one node do not meet.
    """
    nodes = env.get("SLURM_STEP_NODELIST") or env.get("SLURM_JOB_NODELIST") or "localhost"
    job, step = int(env.get("SLURM_JOB_ID", 0)), int(env.get("SLURM_STEP_ID", 0))
    return {
        "MASTER_ADDR": env.get("MASTER_ADDR", first_host(nodes)),
        "MASTER_PORT": env.get("MASTER_PORT", str(20_000 + (31 * job + step) % 20_000)),
    }


# ---- start ------------------------------------------------------------------------------------
def start(config: Mapping[str, Any], place: Place | None = None, store: Store | None = None) -> None:
    """Join the other ranks, if a launcher started some; called again it only checks.

    Args:
        config: the whole configuration.
        place: who this process is; None: read from the environment.
        store: where ranks meet; None: the address of the environment.
    Raises:  ConfigError: not as many ranks as `trainer.devices` asks for, more ranks than GPUs, or a strategy this
        stage does not have; says what to type.
    """
    trainer = config["trainer"]
    place = place or place_in(os.environ)
    if place is None or _grouped():
        _check(config, place)
        return
    uses_gpu = trainer["accelerator"] != "cpu" and torch.cuda.is_available()
    timeout = timedelta(seconds=trainer["rank_timeout_s"])
    if store is None:
        os.environ.update(meeting_point(os.environ))
        url = f"env://?rank={place.rank}&world_size={place.world_size}"
        store = next(rendezvous(url, timeout=timeout))[0]
    _Meeting.place = store
    _next_run()
    try:
        _check(config, place)  # here all have come: the launcher ends none on its way
        if uses_gpu:
            torch.cuda.set_device(place.local_rank % torch.cuda.device_count())
            _check_own_gpu(store, place)
    except ConfigError:
        if place.rank:
            _be_silent()
            _let_others_speak()
        else:
            time.sleep(2 * _LOOK_S[1])  # the meeting place may be ours: let the others see the same
        raise
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if uses_gpu else "gloo", timeout=timeout, rank=place.rank,
        world_size=place.world_size, store=PrefixStore("torch", store),
    )  # fmt: skip
    atexit.register(leave)
    if place.rank:
        _be_silent()


def _be_silent() -> None:
    sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115  it lasts as long as the process


def leave() -> None:
    """Part from the other ranks."""
    if _grouped():
        dist.destroy_process_group()
    _Meeting.place = _Meeting.store = None


def _next_run() -> None:
    if _Meeting.place is not None:
        _Meeting.runs += 1
        _Meeting.store, _Meeting.waits = PrefixStore(f"run/{_Meeting.runs}", _Meeting.place), 0


def _check(config: Mapping[str, Any], place: Place | None) -> None:
    trainer, found = config["trainer"], place.world_size if place else 1
    wanted = trainer["devices"]
    if wanted is not None and wanted != found:
        raise ConfigError(
            f"trainer.devices={wanted}, but {found} process{'es were' if found > 1 else ' was'} started",
            f"Type: torchrun --nproc-per-node {wanted} -m speech2image train … (in a SLURM job: srun --ntasks {wanted}"
            " speech2image train …), or leave trainer.devices out."
            if wanted > 1
            else "Start it without torchrun or srun, or leave trainer.devices out.",
        )
    if trainer["strategy"] == "fsdp" and config["stage"] != "diffusion":
        raise ConfigError(
            f"trainer.strategy=fsdp shards the diffusion transformer, this run trains stage {config['stage']}",
            "Type: trainer.strategy=ddp",
        )


def _check_own_gpu(store: Store, place: Place) -> None:
    uuid = torch.cuda.get_device_properties(torch.cuda.current_device()).uuid
    _refuse_shared_gpus(store, place, f"{socket.gethostname()} {uuid}")


def _refuse_shared_gpus(store: Store, place: Place, own: str) -> None:
    """Raise on every rank where two say that they have the same GPU, `host uuid`."""
    store.set(f"gpu/{place.rank}", own)
    found = Counter(store.get(f"gpu/{other}").decode() for other in range(place.world_size))
    gpu, count = found.most_common(1)[0]
    if count > 1:
        raise ConfigError(
            f"{count} of {place.world_size} ranks would share one GPU of {gpu.split()[0]}",
            "Start at most as many ranks on a machine as it has GPUs, or type trainer.accelerator=cpu.",
        )


def engine_arguments(trainer: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments that tell `pl.Trainer` where to train: each rank on its own device, as if alone.

    Lightning neither finds nor starts ranks, nor takes the signals of SLURM: gradients are averaged by
    `synchronised.py`, in the training steps.
    """
    warnings.filterwarnings("ignore", "The `srun` command is available")
    on_gpu = trainer["accelerator"] != "cpu" and torch.cuda.is_available()
    devices: Any = [torch.cuda.current_device()] if on_gpu and world_size() > 1 else 1
    return {
        "accelerator": trainer["accelerator"],
        "devices": devices,
        "num_nodes": 1,
        "plugins": [LightningEnvironment()],
    }


@contextlib.contextmanager
def together(config: Mapping[str, Any]) -> Iterator[None]:
    """Do what is inside with all ranks; where one fails, all end, and one message is printed.

    Raises:  ConfigError: see `start`.
        TrainingError: another rank is gone without a word.
        SystemExit: another rank has failed and says why.
    """
    start(config)
    _next_run()
    try:
        yield
    except Exception as error:
        if world_size() > 1:
            sys.stderr = sys.__stderr__
            _end(error)
        raise


def _end(error: Exception) -> NoReturn:
    """Tell the others, and raise what this rank has to say."""
    try:
        others = [other for other in range(world_size()) if other != rank()]
        known = isinstance(error, Speech2ImageError)
        is_lost = isinstance(error, RuntimeError) and any(word in str(error) for word in _LOST)
        if is_lost and _failed(others):
            _let_others_speak()
            raise SystemExit(2)
        if not is_lost:
            _tell_failure()
            if is_first():
                time.sleep(2 * _LOOK_S[1])  # under srun the meeting place is its own: let the others hear
            if known and not is_first() and _failed([0]):
                _let_others_speak()
                raise SystemExit(error.exit_code)  # type: ignore[attr-defined]
    except (dist.DistError, RuntimeError):
        is_lost = True  # the store is gone, and the first rank with it
    if is_lost:
        raise TrainingError(
            f"rank {rank()} of {world_size()}: another rank has ended or does not answer ({_line(error)})",
            "Look at its messages above; the same command continues from the last checkpoint.",
        ) from error
    if known and not is_first():
        error.message = f"rank {rank()} of {world_size()}: {error.message}"  # type: ignore[attr-defined]
        error.args = (f"rank {rank()} of {world_size()}: {error}",)
    raise error


def _let_others_speak() -> None:
    """Wait until the rank that knows why has listened and said it: launchers end all ranks when one has ended."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # what the launcher sends when it has; our end is near
    time.sleep(_PATIENCE_S + 2 * _LOOK_S[1])


def _line(error: Exception) -> str:
    return str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__


def _tell_failure() -> None:
    if _Meeting.store is not None:
        _Meeting.store.set(f"failed/{rank()}", "")
        _Meeting.store.set("failed", "")


def _failed(ranks: list[int]) -> bool:
    """Return whether one of `ranks` says, within a moment, that it has failed."""
    store, end = _Meeting.store, time.monotonic() + _PATIENCE_S
    while store is not None and time.monotonic() < end:
        if any(store.check([f"failed/{other}"]) for other in ranks):
            return True
        time.sleep(_LOOK_S[0])
    return False


# ---- facts ------------------------------------------------------------------------------------
def _grouped() -> bool:
    return dist.is_available() and dist.is_initialized()


def rank() -> int:
    """Return the number of this process among the ranks of the run, from 0."""
    return dist.get_rank() if _grouped() else 0


def world_size() -> int:
    """Return how many ranks train together."""
    return dist.get_world_size() if _grouped() else 1


def is_first() -> bool:
    """Return whether this process writes the files of the run."""
    return rank() == 0


def share() -> Share:
    """Return which part of every batch this rank keeps."""
    return Share(rank(), world_size())


# ---- waiting and agreeing -----------------------------------------------------------------------
def wait_for_all() -> None:
    """Return when every rank has come here, however long that takes; end where another rank fails.

    Raises:  SystemExit: another rank has failed and says why.
    """
    if world_size() == 1:
        return
    if _Meeting.store is None:  # a group that `start` did not make
        dist.barrier()
        return
    _Meeting.waits += 1
    key, pause = f"wait/{_Meeting.waits}", _LOOK_S[0]
    if _Meeting.store.add(f"{key}/come", 1) == world_size():
        _Meeting.store.set(f"{key}/all", "")
    while not _Meeting.store.check([f"{key}/all"]):
        if _Meeting.store.check(["failed"]):
            _let_others_speak()
            raise SystemExit(2)
        time.sleep(pause)
        pause = min(1.2 * pause, _LOOK_S[1])


@contextlib.contextmanager
def in_turn() -> Iterator[None]:
    """Let the first rank do what is inside, which makes and keeps files, before the others, which find them."""
    if not is_first():
        wait_for_all()
    yield
    if is_first():
        wait_for_all()


def by_first(work: Callable[[], None]) -> None:
    """Let the first rank do something alone while the others wait."""
    if is_first():
        work()
    wait_for_all()


def first_says(flag: bool, device: torch.device | str = "cpu") -> bool:
    """Return the first rank's `flag` on every rank."""
    return on_any_rank(flag and is_first(), device)


def on_any_rank(flag: bool, device: torch.device | str = "cpu") -> bool:
    """Return whether `flag` holds on any rank; every rank must ask at the same step, and all hear the same."""
    if world_size() == 1:
        return flag
    told = torch.tensor([int(flag)], device=device)
    dist.all_reduce(told, dist.ReduceOp.MAX)
    return bool(told.item())


def check_agreement(**facts: int | str) -> None:
    """Refuse to train where ranks differ in what must be one.

    Raises:  TrainingError: names the fact and what each rank has, on every rank.
    """
    if world_size() == 1:
        return
    told: list[Any] = [None] * world_size()
    dist.all_gather_object(told, facts)
    for name in facts:
        found = [other[name] for other in told]
        if len(set(found)) > 1:
            raise TrainingError(
                f"the ranks do not agree on {name}: "
                + ", ".join(f"rank {r}: {v}" for r, v in enumerate(found)),
                "Every rank must see the same files: put paths.runs and paths.cache on a shared disk.",
            )
