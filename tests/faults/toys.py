"""Toy runs of every trainer, trained again and again by forks of one process that has imported torch once.

Run as a program it is that process: it reads jobs, JSON lines, from its input and answers each with a line.  A round
then costs a second or two instead of ten.  A fork is a process of its own: killing it is killing a run.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

TINY = (
    "data.make.num_train_species=6", "data.make.num_test_species=3", "data.make.images_per_species=3",
    "data.make.captions_per_image=2", "data.max_captions=1", "callbacks.progress=false", "logger=none",
    "trainer.accelerator=cpu", "trainer.deterministic=true", "trainer.batch_size=4", "trainer.max_steps=12",
    "trainer.log_every=5", "trainer.val_every=7", "callbacks.checkpoint.every=3", "callbacks.sample_grid.every=5",
    "callbacks.sample_grid.num_utterances=4", "callbacks.quality.every=6", "callbacks.quality.num_images=8",
)  # fmt: skip
TOYS: dict[str, tuple[str, ...]] = {
    "encoder": ("experiment=sen_birds", "name=encoder", "vision.pretrain_steps=4", "vision.width=8"),
    "speechclip": ("experiment=speechclip_birds", "name=speechclip"),  # has dropout
    "codec": ("experiment=codec_birds", "name=codec", "codec.channels=8", "codec.num_codes=16",
              "codec.disc_width=4", "loss.disc_weight=0.8", "loss.disc_start=5"),
    "gan": ("experiment=stackgan_v2_birds", "name=gan", "encoder.run={base}/encoder", "generator.gf_dim=4",
            "generator.df_dim=4", "generator.condition_dim=8", "generator.noise_dim=8"),
    "diffusion": ("experiment=s2ivq_d_birds", "name=diffusion", "encoder.run={base}/encoder",
                  "codec.run={base}/codec", "generator.depth=2", "generator.dim=32", "generator.heads=2",
                  "codec.num_views=2", "callbacks.quality.sampler_steps=2"),
}  # fmt: skip


class Toys:
    """The program below, started once, and the folders it trains in.

    Args:
        root: everything lies below it.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        root.mkdir(parents=True, exist_ok=True)
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
        self._log = (root / "toys.log").open("w")
        self._process = subprocess.Popen(
            [sys.executable, str(Path(__file__).resolve()), str(root)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log, text=True, env=environment,
        )  # fmt: skip
        for name in ("encoder", "codec"):  # what the generators stand on
            assert self.train(name, "base")["code"] == 0, self.log()
            (root / "base" / name).symlink_to(self.run(name, "base").name)
        folder = json.loads((self.run("encoder", "base") / "run.json").read_text())["data_folder"]
        self.ask(do="probe", folder=folder)
        self._whole: dict[str, dict[str, float]] = {}

    def train(self, toy: str, runs: str, *words: str, **options: Any) -> dict[str, Any]:
        """Train a toy in the folder of runs; return exit code, seconds and what was done to it (see `_train`)."""
        return self.ask(do="train", toy=toy, runs=runs, words=words, **options)

    def whole(self, toy: str) -> dict[str, float]:
        """Train a toy without disturbance in the folder `whole`, once; return the answer of a second time."""
        if toy not in self._whole:
            assert self.train(toy, "whole")["code"] == 0, self.log()
            self._whole[toy] = self.train(toy, "again")  # the first filled caches
            assert self.differences(toy, "whole", "again") == [], "the toy is not repeatable"
        return self._whole[toy]

    def forget(self, runs: str) -> None:
        """Delete a folder of runs."""
        shutil.rmtree(self.root / runs)

    def differences(self, toy: str, one: str, other: str) -> list[str]:
        """Return where two finished runs of a toy differ: final state, weights, journal, sample grids."""
        found: list[str] = self.ask(do="compare", toy=toy, one=one, other=other)["differences"]
        return found

    def run(self, toy: str, runs: str) -> Path:
        """Return a run folder."""
        return next((self.root / runs).glob(f"{toy}-????????"))

    def ask(self, **job: Any) -> dict[str, Any]:
        """Send one job and wait for its answer."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps(job) + "\n")
        self._process.stdin.flush()
        answer: dict[str, Any] = json.loads(self._process.stdout.readline() or '{"code": "the program died"}')
        return answer

    def log(self) -> str:
        """Return what the last runs printed."""
        return (self.root / "toys.log").read_text()[-4000:]

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
    signal.signal(
        signal.SIGINT, signal.default_int_handler
    )  # ignored where tests run in the background of a shell
    _import_everything()
    for line in sys.stdin:
        job = json.loads(line)
        answer = {"train": _train, "compare": _compare, "probe": _train_probe}[job.pop("do")](root, **job)
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


def _import_everything() -> None:
    import importlib
    import pkgutil

    import torch

    import speech2image.training
    from speech2image.app import train  # noqa: F401

    torch.set_num_threads(1)
    for module in pkgutil.iter_modules(speech2image.training.__path__):
        importlib.import_module(f"speech2image.training.{module.name}")


def words_of(root: Path, toy: str, runs: str) -> list[str]:
    """Return the command that trains a toy."""
    paths = [f"paths.{name}={root / name}" for name in ("data", "cache", "weights")]
    own = [word.format(base=root / "base") for word in TOYS[toy]]
    return ["train", *own, *TINY, *paths, f"paths.runs={root / runs}"]


def _train(
    root: Path, toy: str, runs: str, words: list[str], after_cpu_s: float | None = None,
    after_saves: int | None = None, signals: Sequence[int] = (), max_file_bytes: int | None = None,
    to_all: bool = False,
) -> dict[str, Any]:  # fmt: skip
    """Train in a fork.

    Args:
        after_cpu_s: seconds of processor time, from the start of the run, at which `signals` are sent; the clock
            would say something else on a busy machine.  Negative: counted from the first line of `clock.jsonl`.
        after_saves: or the number of the save of this session in the middle of which they are sent.
        signals: sent one right after the other.
        max_file_bytes: no file may grow beyond it, as on a full disk.
        to_all: to the loader processes of the run too, and first.
    Returns: exit `code`, `cpu_s` of the whole run and `cpu_before_s` of it before the first line of the clock; and,
        where signals were sent, `latency_s` on the clock and `latency_cpu_s`.
    """
    child = os.fork()
    if child == 0:
        _be_a_run([*words_of(root, toy, runs), *words], max_file_bytes)
    saves, was_saving, sent, folder = 0, False, None, None
    cpu = before = at_signal = 0.0
    while True:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            break
        cpu = _cpu_seconds(child) or cpu
        if folder is None:
            folder = next((path.parent for path in (root / runs).glob("*/clock.jsonl")), None)
            before = cpu
        if folder is not None and after_saves is not None and sent is None:
            is_saving = _is_saving(folder / "checkpoints")
            saves, was_saving = saves + (is_saving and not was_saving), is_saving
        if sent is None and signals and _is_time(cpu, before, folder, after_cpu_s, saves, after_saves):
            sent, at_signal = time.perf_counter(), cpu
            for number in signals:
                for target in (*(_children(child) if to_all else ()), child):
                    os.kill(target, number)
        time.sleep(0.0002 if after_saves is not None and sent is None and folder is not None else 0.003)
    answer = {"code": os.waitstatus_to_exitcode(status), "cpu_s": cpu}
    if sent is not None:
        answer |= {"latency_s": time.perf_counter() - sent, "latency_cpu_s": cpu - at_signal}
    return answer | {"cpu_before_s": before}


def _is_time(
    cpu: float,
    before: float,
    folder: Path | None,
    after_cpu_s: float | None,
    saves: int,
    after_saves: int | None,
) -> bool:
    if after_saves is not None:
        return saves >= after_saves
    if after_cpu_s is None:
        return False
    return cpu >= after_cpu_s if after_cpu_s > 0 else folder is not None and cpu - before >= -after_cpu_s


def _cpu_seconds(process: int) -> float:
    """Return the processor time of a process in seconds, to a millisecond or so."""
    try:
        return int(Path(f"/proc/{process}/schedstat").read_text().split()[0]) / 1e9
    except (OSError, ValueError, IndexError):
        return 0.0


def _children(process: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{process}/task/{process}/children").read_text().split()]


def _is_saving(checkpoints: Path) -> bool:
    try:
        return any(name.endswith(".part") for name in os.listdir(checkpoints))
    except OSError:
        return False


def _be_a_run(words: list[str], max_file_bytes: int | None) -> None:
    import resource

    from speech2image.app.cli import main

    code = 1
    try:
        if max_file_bytes is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (max_file_bytes, resource.RLIM_INFINITY))
        code = main(words)
    except BaseException:  # noqa: BLE001  the traceback is what a test wants to see
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _compare(root: Path, toy: str, one: str, other: str) -> dict[str, Any]:
    from speech2image.hub.weights import read_weights
    from speech2image.training.checkpoint import load_newest

    folders = [next((root / runs).glob(f"{toy}-????????")) for runs in (one, other)]
    journals = [folder.joinpath("journal.jsonl").read_bytes() for folder in folders]
    found = [] if journals[0] == journals[1] else ["journal.jsonl"]
    weights = [read_weights(folder / "weights.safetensors")[0] for folder in folders]
    found += _unequal(weights[0], weights[1], "weights")
    grids = [{path.name: path.read_bytes() for path in folder.glob("samples/*")} for folder in folders]
    if grids[0] != grids[1]:
        found.append("samples")
    states = [load_newest(folder / "checkpoints")[0] for folder in folders]
    found += _unequal(states[0], states[1], "state")
    leftovers = [str(path) for path in folders[1].rglob("*.part")]
    return {"differences": found + leftovers}


def _train_probe(root: Path, folder: str) -> dict[str, Any]:
    """Make the probe of the corpus, three steps long, so that no toy trains it."""
    from speech2image.data.corpus import Corpus
    from speech2image.metrics.probe import train_probe
    from speech2image.training.probes import probe_labels, real_images

    if (child := os.fork()) == 0:
        corpus = Corpus(Path(folder))
        labels, classes = probe_labels(corpus, "train", ("body", "wing", "crown", "belly"))
        probe = train_probe(real_images(corpus, "train", 32, 32), labels, classes, max_steps=3)
        probe.save(Path(folder) / "probe_32px.safetensors")
        os._exit(0)
    return {"code": os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])}


def _unequal(one: Any, other: Any, where: str) -> list[str]:
    import torch

    if type(one) is not type(other):
        return [where]
    if isinstance(one, dict):
        if one.keys() != other.keys():
            return [where]
        return [line for key in one for line in _unequal(one[key], other[key], f"{where}.{key}")]
    if isinstance(one, list | tuple):
        if len(one) != len(other):
            return [where]
        return [line for place, (a, b) in enumerate(zip(one, other, strict=True))
                for line in _unequal(a, b, f"{where}[{place}]")]  # fmt: skip
    if isinstance(one, torch.Tensor):
        same = one.dtype == other.dtype and one.shape == other.shape
        bits = [tensor.reshape(-1).view(torch.uint8) for tensor in (one, other)]
        return [] if same and torch.equal(*bits) else [where]
    return [] if one == other else [where]


if __name__ == "__main__":
    serve(Path(sys.argv[1]))
