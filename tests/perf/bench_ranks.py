"""One rank beside two ranks on this machine: time of a step, images a second, and what is spent in communication.

Three ways take turns in the same two processes: `alone` (one rank, whole batch, the other one sleeps), `apart` (both
ranks, half a batch each, nothing sent) and `together` (the same with gradients, batch norms and rows of the batch shared
as in training).  `together` against `apart` is what communication costs, `alone` against `together` what two ranks
bring.  Wall clock and processor time; medians over rounds.  What the model of cost says stands beside, from rates
measured in the same processes.

Run: OMP_NUM_THREADS=1 torchrun --nproc-per-node 2 tests/perf/bench_ranks.py [--rounds 7] [--out FILE]
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

sys.path.insert(0, str(Path(__file__).parents[2] / "src"))
from speech2image.app.plan import machine_of, work_of
from speech2image.config.compose import compose
from speech2image.training import cost_model, ranks
from speech2image.training.machine import measure
from speech2image.training.step_counts import step_parts
from speech2image.training.synchronised import average_gradients, synchronise

TOYS = ("stackgan_v2_birds", "s2ivq_d_birds", "sen_birds")
WAYS = ("alone", "apart", "together")
FRAMES = 300


class Sent:
    """Seconds, bytes and calls of the collectives of this process, by wrapping torch's."""

    def __init__(self) -> None:
        self.wall = self.cpu = self.num_bytes = 0.0
        self.calls, self.inner = 0, {name: getattr(dist, name) for name in ("all_reduce", "all_gather")}
        for name, inner in self.inner.items():
            setattr(dist, name, self.timed(inner))

    def timed(self, inner: Callable[..., Any]) -> Callable[..., Any]:
        def call(*values: Any, **options: Any) -> Any:
            start, own = time.perf_counter(), time.process_time()
            work = inner(*values, **{**options, "async_op": True})
            work.wait()
            self.wall += time.perf_counter() - start
            self.cpu += time.process_time() - own
            self.calls += 1
            tensors = values[0] if isinstance(values[0], list) else [values[0]]
            self.num_bytes += sum(value.numel() * value.element_size() for value in tensors)
            return work if options.get("async_op") else None

        return call

    def take(self) -> dict[str, float]:
        """Return what was counted, and start anew."""
        found = {"wall_s": self.wall, "cpu_s": self.cpu, "bytes": self.num_bytes, "calls": self.calls}
        self.wall = self.cpu = self.num_bytes = 0.0
        self.calls = 0
        return found


def one_step(config: dict[str, Any], images: int, is_shared: bool) -> Callable[[], None]:
    """Return a training step of `images`; with `is_shared` all ranks take it together."""
    device = torch.device("cpu")
    module, forward, backward = step_parts(config, images, FRAMES, device)
    if is_shared:
        synchronise(module, True, device)
    optimizers = module.configure_optimizers()
    optimizers = optimizers if isinstance(optimizers, list) else [optimizers]

    def step() -> None:
        backward(forward())
        for optimizer in optimizers:
            if is_shared:
                average_gradients([value for group in optimizer.param_groups for value in group["params"]])
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    return step


def timed(step: Callable[[], None]) -> tuple[float, float]:
    """Return wall and processor seconds of one step."""
    start, own = time.perf_counter(), time.process_time()
    step()
    return time.perf_counter() - start, time.process_time() - own


def bench(name: str, rounds: int, sent: Sent) -> dict[str, Any]:
    """Time the three ways in turns; every rank returns its own times."""
    config = compose("plan", [f"experiment={name}", "hardware=this_machine"])
    batch = config["trainer"]["batch_size"]
    steps = {"together": one_step(config, batch // 2, True)}
    with _no_ranks():
        steps |= {"apart": one_step(config, batch // 2, False), "alone": one_step(config, batch, False)}
    found: dict[str, Any] = {"batch": batch, **{way: {"wall_s": [], "cpu_s": []} for way in WAYS}, "sent": []}
    for number in range(rounds + 1):
        for way in WAYS if number % 2 else WAYS[::-1]:
            dist.barrier()
            if way == "alone" and ranks.rank():
                continue
            step = steps[way]
            sent.take()
            if way == "together":
                wall, cpu = timed(step)
            else:
                with _no_ranks():
                    wall, cpu = timed(step)
            if number:  # the first round warms up
                found[way]["wall_s"].append(wall)
                found[way]["cpu_s"].append(cpu)
                if way == "together":
                    found["sent"].append(sent.take())
    return found


class _no_ranks:
    """Let losses, draws and averages believe that this process trains alone."""

    def __enter__(self) -> None:
        self.asked = {"world_size": ranks.world_size, "rank": ranks.rank}
        self._swap(self.asked, _ALONE)

    def __exit__(self, *_: object) -> None:
        self._swap(_ALONE, self.asked)

    def _swap(self, old: dict[str, Callable[[], int]], new: dict[str, Callable[[], int]]) -> None:
        for module in [module for name, module in sys.modules.items() if name.startswith("speech2image.")]:
            for name, function in old.items():
                if getattr(module, name, None) is function:
                    setattr(module, name, new[name])


_ALONE: dict[str, Callable[[], int]] = {"world_size": lambda: 1, "rank": lambda: 0}


def predicted(name: str, folder: Path) -> dict[str, float]:
    """Return what the model says, all ranks asking together: one rank with all, two with half."""
    config = compose("plan", [f"experiment={name}", "hardware=this_machine"])
    batch = config["trainer"]["batch_size"]
    found = measure(folder, torch.device("cpu"), half=False, clock=time.process_time)
    hardware = dict(config["hardware"])
    keys = ("memory_gb", "memory_tb_s", "op_us", "write_gb_s", "link_gb_s", "link_us")
    hardware |= {"fp32_tflops": found["tflops"], **{key: found[key] for key in keys}}
    machine = machine_of({**config, "hardware": hardware})[0]
    whole, half = (work_of({**config, "utterance_s": FRAMES / 100}, size)[0] for size in (batch, batch // 2))
    alone = sum(cost_model.kernels_s(whole, machine)) + cost_model.update_s(whole, machine)
    apart = sum(cost_model.kernels_s(half, machine)) + cost_model.update_s(half, machine)
    sending = cost_model.gradients_s(half, machine, 2) + cost_model.norms_s(half, machine, 2)
    return {"alone_s": alone, "apart_s": apart, "sending_s": sending, "together_s": apart + sending, **found}


def main() -> None:
    """Print a table on the first rank; write all rounds."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    dist.init_process_group("gloo")
    made: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        told = {name: predicted(name, Path(folder)) for name in TOYS}
    sent = Sent()
    for name in TOYS:
        made[name] = {**bench(name, options.rounds, sent), "predicted": told[name]}
    if ranks.is_first():
        for name, entry in made.items():
            print("\n".join(_lines(name, entry)))
        if options.out:
            options.out.write_text(json.dumps(made, indent=1) + "\n")
    dist.barrier()
    dist.destroy_process_group()


def _lines(name: str, entry: dict[str, Any]) -> list[str]:
    lines = [f"{name}, batch {entry['batch']}, {len(entry['together']['wall_s'])} rounds"]
    told = entry["predicted"]
    for way in WAYS:
        wall, cpu = (statistics.median(entry[way][key]) for key in ("wall_s", "cpu_s"))
        rate = entry["batch"] / wall
        lines.append(
            f"  {way:<9}{1000 * wall:7.0f} ms wall ({1000 * min(entry[way]['wall_s']):.0f} .. "
            f"{1000 * max(entry[way]['wall_s']):.0f}){1000 * cpu:7.0f} ms processor{rate:7.0f} images/s"
            f"   model {1000 * told[f'{way}_s']:.0f} ms"
        )
    share = {key: statistics.median(one[key] for one in entry["sent"]) for key in entry["sent"][0]}
    wall, cpu = (statistics.median(entry["together"][key]) for key in ("wall_s", "cpu_s"))
    lines.append(
        f"  sending  {1000 * share['wall_s']:7.0f} ms wall ({100 * share['wall_s'] / wall:.0f} %)"
        f"{1000 * share['cpu_s']:7.1f} ms processor ({100 * share['cpu_s'] / cpu:.0f} %), "
        f"{share['calls']:.0f} calls, {share['bytes'] / 1e6:.1f} MB   model {1000 * told['sending_s']:.1f} ms"
    )
    return lines


if __name__ == "__main__":
    main()
