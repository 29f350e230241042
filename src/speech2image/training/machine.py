"""Measure what this machine can do: products, memory, starting operations, writing, and reducing among ranks.

Here: short timings that fill what `conf/hardware/this_machine.yaml` leaves open.  Each is the best of several, as
other programs can only make it slower.  What is done with them is in `cost_model.py`.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
from torch.nn import functional

from speech2image.training import ranks

_ROUNDS = 5
_WRITTEN = 32 * 2**20
_REDUCED = 8 * 2**20


def measure(
    folder: Path, device: torch.device, half: bool, clock: Callable[[], float] = time.perf_counter
) -> dict[str, float]:
    """Measure this machine as the group `hardware` says it, with all threads that torch has now.

    Args:
        folder: where checkpoints would be written.
        device: the CPU, or this process's GPU.
        half: products in bfloat16.
        clock: of the wall, or of the processor where other programs take turns (writing stays on the wall).

    Returns: `tflops` of products and convolutions, `memory_tb_s`, `memory_gb`, `op_us`, `write_gb_s`; among
        ranks also `link_gb_s` and `link_us`.
    """
    dtype = torch.bfloat16 if half else torch.float32
    timer = _Timer(device, clock)
    product, convolution = _product_flops(timer, dtype), _convolution_flops(timer, dtype)
    found = {
        "product_tflops": product / 1e12,
        "convolution_tflops": convolution / 1e12,
        "tflops": 2 / (1 / product + 1 / convolution) / 1e12,
        "memory_tb_s": _memory(timer) / 1e12,
        "memory_gb": _memory_bytes(device) / 1e9,
        "op_us": _op_s(timer) * 1e6,
        "write_gb_s": _write(folder) / 1e9,
    }
    return found | _links(_Timer(device, time.perf_counter))


@dataclass(frozen=True)
class _Timer:
    """Time work on one device."""

    device: torch.device
    clock: Callable[[], float]

    def best(self, work: Callable[[], object], times: int = 1) -> float:
        """Return the seconds of the fastest of several rounds."""
        best = float("inf")
        work()
        for _ in range(_ROUNDS):
            self._wait()
            start = self.clock()
            for _ in range(times):
                work()
            self._wait()
            best = min(best, (self.clock() - start) / times)
        return best

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def _product_flops(timer: _Timer, dtype: torch.dtype) -> float:
    device = timer.device
    side = 512 if device.type == "cpu" else 8192
    left, right = (torch.ones(side, side, device=device, dtype=dtype) for _ in range(2))
    return 2 * side**3 / timer.best(lambda: left @ right, 4)


def _convolution_flops(timer: _Timer, dtype: torch.dtype) -> float:
    device = timer.device
    batch, channels, side = (4, 64, 32) if device.type == "cpu" else (64, 256, 64)
    images = torch.ones(batch, channels, side, side, device=device, dtype=dtype)
    weight = torch.ones(channels, channels, 3, 3, device=device, dtype=dtype)
    flops = 2 * 9 * channels**2 * side**2 * batch
    return flops / timer.best(lambda: functional.conv2d(images, weight, padding=1), 4)


def _memory(timer: _Timer) -> float:
    device = timer.device
    count = 2**24 if device.type == "cpu" else 2**28
    values = torch.ones(count, device=device)
    return 8 * count / timer.best(lambda: values.mul_(1.0))


def _memory_bytes(device: torch.device) -> float:
    if device.type == "cuda":
        return float(torch.cuda.get_device_properties(device).total_memory)
    return float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))


def _op_s(timer: _Timer) -> float:
    values = torch.ones(8, device=timer.device, requires_grad=True)
    return timer.best(lambda: values * 1.0, 1000)


def _write(folder: Path) -> float:
    """Write, sync, read back and hash, as a checkpoint is."""
    folder.mkdir(parents=True, exist_ok=True)
    path, content = folder / f"speed-{os.getpid()}.part", os.urandom(_WRITTEN)

    def save() -> None:
        with path.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        with path.open("rb") as file:
            hashlib.file_digest(file, "sha256").hexdigest()

    try:
        return _WRITTEN / _Timer(torch.device("cpu"), time.perf_counter).best(save)
    finally:
        path.unlink(missing_ok=True)


def _links(timer: _Timer) -> dict[str, float]:
    """Return bandwidth and latency of a ring that all ranks reduce over; nothing for one rank."""
    world = ranks.world_size()
    if world == 1:
        return {}
    one, many = torch.ones(1, device=timer.device), torch.ones(_REDUCED // 4, device=timer.device)
    latency = timer.best(lambda: dist.all_reduce(one), 20) / (2 * (world - 1))
    seconds = timer.best(lambda: dist.all_reduce(many)) - latency * 2 * (world - 1)
    return {"link_gb_s": 2 * (world - 1) / world * _REDUCED / seconds / 1e9, "link_us": latency * 1e6}
