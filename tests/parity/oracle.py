"""Recorded values of released code, and the one way to compare with them.

An oracle is a pair of files in `oracles/`: a description with a tolerance for every output, and the arrays.  Weights
that it names without storing them are made in `fill.py`; what is compared is in the tests beside this file.
"""

from __future__ import annotations

import json
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fill import official_states
from torch import Tensor

FOLDER = Path(__file__).parent / "oracles"


class Oracle:
    """One oracle by name; its files are read when they are needed, `compared` gathers what was checked."""

    def __init__(self, name: str) -> None:
        self.json, self.npz = FOLDER / f"{name}.json", FOLDER / f"{name}.npz"
        self.compared: set[str] = set()

    @cached_property
    def spec(self) -> dict[str, Any]:
        """The description."""
        return json.loads(self.json.read_text())

    @property
    def tolerance(self) -> dict[str, dict[str, Any]]:
        """Bounds of every output."""
        return self.spec["tolerance"]

    @cached_property
    def arrays(self) -> dict[str, np.ndarray]:
        """All arrays by name."""
        with np.load(self.npz) as stored:
            return {key: stored[key] for key in stored.files}

    def tensor(self, key: str) -> Tensor:
        """Return a copy of one array."""
        return torch.from_numpy(self.arrays[key].copy())

    def states(self, calibrated: bool = False, prefix: str = "") -> dict[str, dict[str, Tensor]]:
        """Return the state dicts of all networks, see `fill.official_states`."""
        found = official_states(self.json, self.npz, calibrated, prefix)
        return {
            network: {key: torch.from_numpy(np.array(value)) for key, value in state.items()}
            for network, state in found.items()
        }

    def check(self, key: str, value: Tensor | np.ndarray | float, keep: Tensor | None = None) -> None:
        """Compare one output (or its entries `keep`) at both bounds of its file, or exactly where it says so.

        A single number may come in any shape; everything else in the recorded one.
        """
        found = value.detach().cpu().numpy() if isinstance(value, Tensor) else np.asarray(value)
        expected, bound = self.arrays[key], self.tolerance[key]
        found = found.reshape(expected.shape) if expected.size == found.size == 1 else found
        assert found.shape == expected.shape, f"{key}: shape {found.shape}, recorded {expected.shape}"
        self.compared.add(key)
        gap = np.abs(found.astype(np.float64) - expected.astype(np.float64))
        gap = gap if keep is None else gap[keep.numpy()]
        if bound.get("exact"):
            assert gap.max() == 0, f"{key}: {(gap > 0).sum()} differ"
            return
        assert gap.max() <= bound["suggested_atol"], f"{key}: {gap.max():.3g} > {bound['suggested_atol']}"
        rms = float(np.sqrt((gap**2).mean()))
        assert rms <= bound["suggested_rms"], f"{key}: rms {rms:.3g} > {bound['suggested_rms']}"
