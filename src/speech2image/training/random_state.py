"""The global random generators of torch, numpy and Python: seeded by the step, and as plain data for a checkpoint.

What the suite draws itself has an address (`data/order.py`) and needs none of them; dropout and what libraries draw
does.
"""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch


def seed_everything(rng: np.random.Generator) -> None:
    """Seed all global generators, those of every device too, from an addressed one."""
    torch.manual_seed(int(rng.integers(2**62)))
    np.random.seed(int(rng.integers(2**32)))
    random.seed(int(rng.integers(2**62)))


def random_state() -> dict[str, Any]:
    """Return the states of all global generators as tensors and numbers."""
    kind, keys, place, has_gauss, gauss = np.random.get_state(legacy=True)
    version, words, next_gauss = random.getstate()
    has_cuda = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if has_cuda else [],
        "numpy": {"kind": kind, "keys": torch.from_numpy(np.asarray(keys).astype(np.int64)), "place": int(place),
                  "has_gauss": int(has_gauss), "gauss": float(gauss)},
        "python": {"version": version, "words": torch.tensor(words), "gauss": next_gauss},
    }  # fmt: skip


def restore_random_state(state: dict[str, Any]) -> None:
    """Put all global generators into the states of `random_state`."""
    torch.set_rng_state(state["torch"])
    if state["cuda"] and len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["cuda"])
    kept = state["numpy"]
    keys = kept["keys"].numpy().astype(np.uint32)
    np.random.set_state((kept["kind"], keys, kept["place"], kept["has_gauss"], kept["gauss"]))
    words = tuple(state["python"]["words"].tolist())
    random.setstate((state["python"]["version"], words, state["python"]["gauss"]))
