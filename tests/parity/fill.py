"""Weights of the parity oracles, computed from a formula instead of stored.

An oracle names each tensor of a published network with its shape, type and kind; this file turns
that list into values.  Tensor number i counts the floating tensors of the list from 0 and j its
elements in row-major order; every kind is a simple function of sin(0.7 j + 1.3 i), rounded to
float32.  Networks and comparisons are in the tests beside it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]
StateSpec = Sequence[tuple[str, Sequence[int], str, str]]

_UNFILLED = ("kept", "integer")
_STATISTICS = ("running_mean", "running_var")
_ONE, _TENTH, _HALF = np.float32(1.0), np.float32(0.1), np.float32(0.5)


def _scaled_by_fan_in(wave: Array) -> Array:
    fan_in = math.prod(wave.shape[1:])
    return wave * np.float32(1.0 / math.sqrt(fan_in))


_RULES: dict[str, Callable[[Array], Array]] = {
    "weight": _scaled_by_fan_in,
    "table": lambda wave: _HALF * wave,
    "norm_scale": lambda wave: _ONE + _TENTH * wave,
    "bias": lambda wave: _TENTH * wave,
    "running_mean": lambda wave: _TENTH * wave,
    "running_var": lambda wave: _ONE + _HALF * np.abs(wave),
}


def fill(state_spec: StateSpec, kept: Mapping[str, Array] | None = None) -> dict[str, Array]:
    """Return the values of one network.

    Args:
        state_spec: `(key, shape, dtype, kind)` of every tensor, in state-dict order.
        kept: values of the tensors the rule leaves alone; those not given are left out.

    Returns: key to array, in the order of `state_spec`.
    Raises:  KeyError: a kind the rule does not know.
    """
    kept = kept or {}
    values: dict[str, Array] = {}
    number = 0
    for key, shape, dtype, kind in state_spec:
        if kind in _UNFILLED:
            if key in kept:
                values[key] = np.asarray(kept[key], dtype=dtype).reshape(shape)
        else:
            steps = np.arange(math.prod(shape), dtype=np.float64)
            wave = np.sin(0.7 * steps + 1.3 * number).astype(np.float32).reshape(shape)
            values[key] = _RULES[kind](wave).astype(dtype)
        number += "float" in dtype
    return values


def _calibrate(values: dict[str, Array], state_spec: StateSpec, statistics: Array) -> None:
    names = [key for key, _, _, kind in state_spec if kind in _STATISTICS]
    ends = np.cumsum([values[name].size for name in names])
    if ends[-1] != statistics.size:
        raise ValueError(f"{statistics.size} calibrated statistics for {ends[-1]} places")
    for name, part in zip(names, np.split(statistics, ends[:-1]), strict=True):
        values[name] = part.astype(values[name].dtype).reshape(values[name].shape)


def official_states(
    json_path: Path | str, npz_path: Path | str, calibrated: bool = False, prefix: str = ""
) -> dict[str, dict[str, Array]]:
    """Return the complete state dicts of all networks of an oracle, counters as zeros.

    Args:
        json_path: the oracle's description, its `state` a mapping from network to list.
        npz_path: the oracle's arrays.
        calibrated: replace the running statistics of a network by `<network>_cal` where stored.
        prefix: put before every key, `module.` for files of a data-parallel wrapper.

    Returns: network to (key to array), in state-dict order.
    """
    specs: dict[str, StateSpec] = json.loads(Path(json_path).read_text())["state"]
    states: dict[str, dict[str, Array]] = {}
    with np.load(npz_path) as stored:
        for network, spec in specs.items():
            counters = {key: np.zeros(shape, dtype) for key, shape, dtype, kind in spec if kind == "integer"}
            values = fill(spec, counters)
            if calibrated and f"{network}_cal" in stored.files:
                _calibrate(values, spec, stored[f"{network}_cal"])
            states[network] = {prefix + key: value for key, value in values.items()}
    return states
