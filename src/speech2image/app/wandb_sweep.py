"""A search as a wandb sweep: a YAML file for `wandb sweep FILE`, whose agents call the same command.

Only text is made here, without wandb.  An agent passes a point as `key=value` words, which are the words of this
command line.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from speech2image.app.search_space import Dimension, Space
from speech2image.data.whole import write_whole
from speech2image.errors import ConfigError
from speech2image.training.study import SearchSettings

METHODS = {"tpe": "bayes", "random": "random", "grid": "grid"}
MOST_VALUES = 16
"""Integers on a logarithm, which wandb draws as floats: so many of them, by name."""


def sweep_config(
    space: Space, settings: SearchSettings, num_trials: int, config: Mapping[str, Any]
) -> dict[str, Any]:
    """Return a sweep as wandb takes it.

    Args:
        space: what is varied.
        settings: metric, direction, sampler; any pruner becomes wandb's hyperband.
        num_trials: runs of the sweep over all agents.
        config: the groups `logger` and `trainer` of the command.
    Raises:  ConfigError: a metric that training does not log, or a grid over an interval of floats.
    """
    if not settings.is_reported:
        raise ConfigError(
            f"hydra.sweeper.export: wandb is told what training logs, not {settings.metric} of metrics.json",
            "Type hydra.sweeper.metric=val_…",
        )
    if settings.sampler == "grid":
        space.grid()
    fixed = [word.removeprefix("++") for word in space.fixed]
    if not any(word.startswith(("logger=", "logger.wandb.mode=")) for word in fixed):
        fixed.append("logger=online")  # an agent's run must reach the sweep
    wandb = config["logger"]["wandb"]
    found: dict[str, Any] = {
        "program": "speech2image",
        "command": ["${env}", "${program}", "train", *fixed, "${args_no_hyphens}"],
        "method": METHODS[settings.sampler],
        "metric": {"name": settings.metric, "goal": settings.direction},
        "run_cap": num_trials,
        "project": wandb["project"],
        "parameters": {dimension.key: _parameter(dimension) for dimension in space.dimensions},
    }
    if wandb.get("entity"):
        found["entity"] = wandb["entity"]
    if settings.pruner != "none":  # counts lines with the metric, not steps
        warmup = settings.warmup_steps // max(1, int(config["trainer"]["val_every"]))
        found["early_terminate"] = {"type": "hyperband", "min_iter": max(1, warmup), "eta": 3}
    return found


def _parameter(dimension: Dimension) -> dict[str, Any]:
    values = dimension.values()
    if dimension.choices:
        return {"values": [_plain(choice) for choice in dimension.choices]}
    if dimension.is_int and dimension.is_log:
        return {"values": _spread(int(dimension.low), int(dimension.high))}
    if dimension.is_int and dimension.step is None:
        return {"distribution": "int_uniform", "min": int(dimension.low), "max": int(dimension.high)}
    if values is not None:
        return {"values": values}
    name = "log_uniform_values" if dimension.is_log else "uniform"
    return {"distribution": name, "min": float(dimension.low), "max": float(dimension.high)}


def _plain(word: str) -> str | int | float:
    """Return a number as one; all else stays a word: wandb would write null as None and true as True."""
    for kind in (int, float):
        try:
            return kind(word)
        except ValueError:
            continue
    return word


def _spread(low: int, high: int) -> list[int]:
    if high - low < MOST_VALUES:
        return list(range(low, high + 1))
    ratio = (high / low) ** (1 / (MOST_VALUES - 1))
    return sorted({round(low * ratio**place) for place in range(MOST_VALUES)})


def write_sweep(
    path: Path, space: Space, settings: SearchSettings, num_trials: int, config: Mapping[str, Any]
) -> str:
    """Write the sweep of a search into a file; return what to type next."""
    import yaml

    found = sweep_config(space, settings, num_trials, config)
    write_whole(path, yaml.safe_dump(found, sort_keys=False).encode())
    return f"{path}\nstart it with: wandb sweep {path}, then on any machine: wandb agent <id it prints>"
