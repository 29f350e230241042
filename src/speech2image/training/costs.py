"""What training a run costs: wall time, processor time and the most memory it held; and giving that memory back."""

from __future__ import annotations

import ctypes
import gc
import resource
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


@contextmanager
def memory_given_back() -> Iterator[None]:
    """Give what happens inside back to the system afterwards, so that the jobs of a sweep in one process do not pile up.

    Models, trainers and their callbacks refer to each other in circles, and glibc keeps what is freed between two
    blocks still in use, which batches of unequal length leave everywhere: about 100 MB a job of a bird encoder.
    What is there before, mostly modules, is taken out of the collector's rounds: they cost 0.25 s each otherwise,
    also in the middle of training.
    """
    gc.freeze()
    try:
        yield
    finally:
        gc.collect()
        try:
            ctypes.CDLL(None).malloc_trim(0)
        except (AttributeError, OSError):
            pass  # not glibc


@contextmanager
def costs_added(info: dict[str, Any]) -> Iterator[None]:
    """Add what happens inside to `train_seconds` and `train_cpu_seconds` (all threads) of a run's records."""
    start, cpu_start = time.perf_counter(), time.process_time()
    try:
        yield
    finally:
        info["train_seconds"] = round(info["train_seconds"] + time.perf_counter() - start, 2)
        info["train_cpu_seconds"] = round(info["train_cpu_seconds"] + time.process_time() - cpu_start, 2)


def forget_peak_memory() -> None:
    """Start a new measurement, so that the jobs of a sweep in one process do not inherit peaks."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    try:
        _CLEAR.write_text("5")  # Linux: resets VmHWM
    except OSError:
        pass  # another system: the peak of the whole process is reported


def peak_memory_mb() -> float:
    """Return the most memory held since `forget_peak_memory`, in MB: allocated on the GPU, else resident."""
    if torch.cuda.is_available():
        return round(torch.cuda.max_memory_allocated() / 1e6, 1)
    try:
        line = next(line for line in _STATUS.read_text().splitlines() if line.startswith("VmHWM"))
        return round(int(line.split()[1]) * 1024 / 1e6, 1)
    except (OSError, StopIteration, ValueError):
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return round(peak / 1e6 if sys.platform == "darwin" else peak * 1024 / 1e6, 1)
