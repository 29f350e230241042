"""Who this process is among the ranks of a run, and what all ranks agree on.

Ranks are started by srun or torchrun, never by us; one process alone is rank 0 of 1.  Only the first rank writes
files.  Shares of a batch are cut in `data/`.
"""

from __future__ import annotations

import torch
import torch.distributed as dist


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


def wait_for_all() -> None:
    """Return when every rank has come here."""
    if _grouped():
        dist.barrier()


def on_any_rank(flag: bool, device: torch.device | str = "cpu") -> bool:
    """Return whether `flag` holds on any rank; every rank must ask at the same step, and all hear the same."""
    if world_size() == 1:
        return flag
    told = torch.tensor([int(flag)], device=device)
    dist.all_reduce(told, dist.ReduceOp.MAX)
    return bool(told.item())
