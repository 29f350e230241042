"""Toy runs by forks of one process that has imported torch once, watched and hurt from inside; their memory, files, time.

Run as a program it reads jobs, JSON lines, from its input and answers each with a line.  A job is a list of commands
that one fork gives one after the other, as the jobs of an in-process sweep.  `toys.py` kills runs from outside.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

CORPUS = (
    "data.make.num_train_species=8", "data.make.num_test_species=6", "data.make.images_per_species=4",
    "data.make.captions_per_image=2", "data.max_captions=1",
)  # fmt: skip
TINY = (
    *CORPUS, "callbacks.progress=false", "trainer.accelerator=cpu", "trainer.deterministic=true", "logger=none",
    "trainer.batch_size=4", "trainer.max_steps=4", "trainer.log_every=2", "trainer.val_every=1000",
    "callbacks.checkpoint.every=4", "callbacks.sample_grid.every=4", "callbacks.sample_grid.num_utterances=4",
    "callbacks.quality.every=0", "callbacks.quality.num_images=8", "callbacks.quality.max_share=1",
    "callbacks.quality.sampler_steps=4",
)  # fmt: skip
TOYS = {
    "encoder": ("experiment=sen_birds", "name=encoder", "vision.pretrain_steps=4", "vision.width=8"),
    "codec": ("experiment=codec_birds", "name=codec", "codec.channels=8", "codec.num_codes=16", "codec.disc_width=4"),
    "gan": ("experiment=stackgan_v2_birds", "name=gan", "encoder.run={base}/encoder", "generator.gf_dim=4",
            "generator.df_dim=4", "generator.condition_dim=8", "generator.noise_dim=8"),
    "diffusion": ("experiment=s2ivq_d_birds", "name=diffusion", "encoder.run={base}/encoder",
                  "codec.run={base}/codec", "generator.depth=1", "generator.dim=32", "generator.heads=2",
                  "codec.num_views=2"),
}  # fmt: skip


class LongRuns:
    """The program below, started once, and the folders it trains in.

    Args:
        root: everything lies below it.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        root.mkdir(parents=True, exist_ok=True)
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
        environment |= {"WANDB_CONFIG_DIR": str(root / "wandb"), "WANDB_CACHE_DIR": str(root / "wandb")}
        environment.pop("WANDB_API_KEY", None)
        self._log = (root / "runs.log").open("w")
        self._process = subprocess.Popen(
            [sys.executable, str(Path(__file__).resolve()), str(root)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log, text=True, env=environment,
        )  # fmt: skip

    def make_parts(self) -> None:
        """Train encoder, codec and probe, which the generators stand on, once."""
        if (self.root / "base" / "codec").is_symlink():
            return
        assert self.train("encoder", "base")["codes"] == [0], self.log()
        assert self.train("codec", "base")["codes"] == [0], self.log()
        for name in ("encoder", "codec"):
            (self.root / "base" / name).symlink_to(self.run(name, "base").name)
        assert self.ask(commands=[["probe"]])["codes"] == [0], self.log()

    def words(self, toy: str, runs: str, *words: str) -> list[str]:
        """Return the command that trains a toy in the folder `runs`."""
        own = [word.format(base=self.root / "base") for word in TOYS[toy]]
        return ["train", *own, *TINY, *self.paths(runs), *words]

    def paths(self, runs: str) -> list[str]:
        """Return the words that put everything below `root` and runs into the folder `runs`."""
        paths = [f"paths.{name}={self.root / name}" for name in ("data", "cache", "weights")]
        return [*paths, f"paths.runs={self.root / runs}"]

    def train(self, toy: str, runs: str, *words: str, **options: Any) -> dict[str, Any]:
        """Train a toy; see `_fork` for the options and what is found."""
        return self.ask(commands=[self.words(toy, runs, *words)], **options)

    def run(self, toy: str, runs: str) -> Path:
        """Return a run folder."""
        return next((self.root / runs).glob(f"{toy}-????????"))

    def ask(self, **job: Any) -> dict[str, Any]:
        """Send one job and wait for its answer."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps(job) + "\n")
        self._process.stdin.flush()
        answer: dict[str, Any] = json.loads(
            self._process.stdout.readline() or '{"codes": "the program died"}'
        )
        return answer

    def log(self) -> str:
        """Return what the last runs printed."""
        return (self.root / "runs.log").read_text()[-4000:]

    def close(self) -> None:
        """End the program."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(timeout=60)
        self._log.close()


# ---- the program ------------------------------------------------------------------------------
def serve(root: Path) -> None:
    """Answer jobs until the input ends."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # runs print into the log
    _import_everything()
    for line in sys.stdin:
        answers.write(json.dumps(_fork(root, **json.loads(line))) + "\n")
        answers.flush()


def _import_everything() -> None:
    import importlib
    import pkgutil

    import torch

    import speech2image.training
    from speech2image.app import report, train  # noqa: F401

    torch.set_num_threads(1)
    for module in pkgutil.iter_modules(speech2image.training.__path__):
        importlib.import_module(f"speech2image.training.{module.name}")


def _fork(
    root: Path, commands: list[list[str]], env: dict[str, str] | None = None, hurt: dict[str, Any] | None = None,
    limits: dict[str, float] | None = None, watch: bool = False, kill_at: int | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Give commands in a fork; return their exit codes and what was seen, or that it was killed.

    Args:
        env: environment variables.
        hurt: `step` after which `what` is done to wandb (see `_hurt`), perhaps to `pid`.
        limits: other limits of `WandbLogger`, in seconds.
        watch: note time, memory, files and threads at each step, into `steps.json`.
        kill_at: SIGKILL comes from inside after this step.
    """
    place = root / "answer.json"
    place.unlink(missing_ok=True)
    start, child = time.perf_counter(), os.fork()
    if child == 0:
        code = 1
        try:
            os.environ.update(env or {})
            place.write_text(json.dumps(_commands(root, commands, hurt, limits or {}, watch, kill_at)))
            code = 0
        except BaseException:  # noqa: BLE001  the traceback is what a test wants to see
            import traceback

            traceback.print_exc()
        finally:
            import atexit

            atexit._run_exitfuncs()  # wandb waits there for its service
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    found = json.loads(place.read_text()) if place.is_file() else {"codes": f"ended with {status}"}
    return {**found, "seconds": time.perf_counter() - start}


def _commands(
    root: Path, commands: list[list[str]], hurt: dict[str, Any] | None, limits: dict[str, float], watch: bool,
    kill_at: int | None,
) -> dict[str, Any]:  # fmt: skip
    import warnings

    import wandb  # noqa: F401  here: forks of one import would share its folder in /tmp

    from speech2image.app.cli import main
    from speech2image.training.loggers import WandbLogger

    for name, limit in limits.items():
        setattr(WandbLogger, name, limit)
    rows: list[list[float]] = []
    odd: dict[str, list[str]] = {}
    _add_callback(rows if watch else None, odd, hurt, kill_at)
    spent = _clocked(WandbLogger)
    codes, memory = [], []
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        for words in commands:
            codes.append(_make_probe(root) if words == ["probe"] else main(words))
            memory.append(_seen())
    if watch:
        (root / "steps.json").write_text(json.dumps(rows))
    texts = [str(one.message) for one in said if "wandb" in str(one.message)]
    return {"codes": codes, "memory": memory, "warnings": texts, "wandb_seconds": spent, "odd_files": odd}


def _seen() -> list[float]:
    """Return private memory in MB (maps of files are shared with the system's cache), open files, threads."""
    import re

    text = Path("/proc/self/status").read_text()
    private = re.search(r"RssAnon:\s+(\d+)", text)
    assert private is not None
    return [
        int(private[1]) * 1024 / 1e6,
        len(os.listdir("/proc/self/fd")),
        len(os.listdir("/proc/self/task")),
    ]


def _open_files() -> list[str]:
    found = []
    for name in os.listdir("/proc/self/fd"):
        try:
            found.append(os.readlink(f"/proc/self/fd/{name}"))
        except OSError:
            found.append("closed since")
    return sorted(found)


def _clocked(owner: Any) -> dict[str, float]:
    """Measure how long wandb holds training up: at the start, at most in one call, and at the end."""
    spent = {"__init__": 0.0, "_call": 0.0, "close": 0.0}

    def clocked(name: str) -> Any:
        inner = getattr(owner, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            start = time.perf_counter()
            try:
                return inner(*args, **kwargs)
            finally:
                spent[name] = max(spent[name], time.perf_counter() - start)

        return call

    for name in spent:
        setattr(owner, name, clocked(name))
    return spent


def _add_callback(
    rows: list[list[float]] | None, odd: dict[str, list[str]], hurt: dict[str, Any] | None, kill_at: int | None
) -> None:  # fmt: skip
    import pytorch_lightning as pl

    from speech2image.training.fit import Session

    class Watch(pl.Callback):
        def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, batch_idx: int) -> None:
            if rows is not None:
                pages = int(Path("/proc/self/statm").read_text().split()[1])
                resident = pages * os.sysconf("SC_PAGE_SIZE") / 1e6
                times = (time.perf_counter(), time.process_time())
                rows.append([module.train_step, *times, resident, *_seen()])
                if rows[-1][5] != rows[max(len(rows) - 2, 0)][5] and len(odd) < 20:
                    odd[str(module.train_step)] = _open_files()
            if hurt is not None and module.train_step == hurt["step"]:
                _hurt(**hurt)
            if kill_at is not None and module.train_step == kill_at:
                os.kill(os.getpid(), 9)

    inner = Session.fit

    def fit(self: Any, module: Any, data: Any, callbacks: list[Any]) -> None:
        inner(self, module, data, [Watch(), *callbacks])

    Session.fit = fit  # type: ignore[method-assign]


def _hurt(what: str, step: int, pid: int | None = None, size: int = 0) -> None:
    import resource
    import signal

    import wandb

    if what == "raise":

        def refuse(*args: object, **kwargs: object) -> None:
            raise RuntimeError("no room on the server")

        wandb.Run.log = refuse  # type: ignore[method-assign, assignment]
    elif what == "freeze":
        assert pid is not None
        os.kill(pid, signal.SIGSTOP)
    else:
        found = [one for one in _children() if "wandb-core" in Path(f"/proc/{one}/cmdline").read_text()]
        assert found, "wandb runs its service as a child"
        for one in found:
            if what == "kill":
                os.kill(one, signal.SIGKILL)
            else:  # no file of its may grow: what a full disk says, but to wandb alone
                resource.prlimit(one, resource.RLIMIT_FSIZE, (size, size))
        time.sleep(0.3)


def _children() -> list[int]:
    tasks = Path("/proc/self/task").glob("*/children")
    return [int(word) for task in tasks for word in task.read_text().split()]


def _make_probe(root: Path) -> int:
    """Give the corpus a probe that has seen it for three steps only."""
    from speech2image.data.corpus import Corpus
    from speech2image.metrics.probe import train_probe
    from speech2image.training.probes import probe_labels, real_images

    folder = Path(json.loads((root / "base" / "encoder" / "run.json").read_text())["data_folder"])
    corpus = Corpus(folder)
    labels, classes = probe_labels(corpus, "train", ("body", "wing", "crown", "belly"))
    train_probe(real_images(corpus, "train", 32, 32), labels, classes, max_steps=3).save(
        folder / "probe_32px.safetensors"
    )
    return 0


if __name__ == "__main__":
    serve(Path(sys.argv[1]))
