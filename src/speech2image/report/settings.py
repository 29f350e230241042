"""What defines a run besides its seed, read from its resolved configuration.

Here configurations become flat texts that can be compared: which runs are seeds of one experiment,
and in which settings namesakes of a sweep differ.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from speech2image.config.runid import defining_config
from speech2image.report.measures import number_of

MAX_NAMED = 3
_TAIL = re.compile(r"-[0-9a-f]{8}$")
_NOT_SETTINGS = ("seed", "name", "stage")


def seed_of(config: Mapping[str, Any]) -> int | None:
    """Return the seed of training, None where the configuration names none."""
    seed = number_of(config.get("seed"))
    return None if seed is None else int(seed)


def defining_settings(config: Mapping[str, Any]) -> dict[str, str]:
    """Return all settings but the seed and what changes nothing that is computed, dotted key to text.

    Runs that are named (the encoder or codec of a generator) count by their experiment: two generators
    on two seeds of one encoder are seeds of one method.

    >>> defining_settings({"seed": 1, "paths": {"runs": "r"}, "encoder": {"run": "runs/sen-0a1b2c3d"}})
    {'encoder.run': 'sen'}
    """
    found: dict[str, str] = {}

    def walk(node: Any, where: str) -> None:
        if isinstance(node, Mapping):
            for key, value in node.items():
                walk(value, f"{where}.{key}" if where else str(key))
        elif where.endswith(".run") and node:
            found[where] = _TAIL.sub("", Path(str(node)).name)
        else:
            found[where] = str(node)

    kept = {key: value for key, value in config.items() if key not in _NOT_SETTINGS}
    walk(defining_config(kept), "")
    return found


def differing_settings(own: Mapping[str, str], everyone: Sequence[Mapping[str, str]]) -> list[str]:
    """Return the settings of `own` in which `everyone` differ, as text, at most three.

    >>> differing_settings({"optim.lr": "1", "a": "0"}, [{"optim.lr": "1", "a": "0"}, {"optim.lr": "2", "a": "0"}])
    ['lr 1']
    """
    known = [settings for settings in everyone if settings]
    keys = [key for key in own if any(settings.get(key) != own[key] for settings in known)]
    return [f"{_short(key).replace('_', ' ')} {_value(own[key])}" for key in keys[:MAX_NAMED]]


def spoken_input(config: Mapping[str, Any], folder: Path) -> str:
    """Return what a run is told: `speech`, `text`, `class`, `nothing`, or `` where that is not known.

    Args:
        config: resolved configuration of the run.
        folder: of the run; its encoder's run is looked for beside it.
    """
    encoder, generator = config.get("encoder"), config.get("generator")
    if not isinstance(encoder, Mapping):
        return ""
    target = str(encoder.get("_target_") or "")
    if not target or target == "None":
        told = generator.get("conditioning") if isinstance(generator, Mapping) else None
        return "class" if told == "class" else "nothing"
    if target.startswith("speech2image.text."):
        return "text"
    if target.endswith(".FromRun"):
        told = folder.parent / Path(str(encoder.get("run"))).name / "config.yaml"
        return (
            "text"
            if told.is_file() and "speech2image.text." in told.read_text("utf-8", "replace")
            else "speech"
        )
    return "speech"


def _short(key: str) -> str:
    parts = key.split(".")
    return parts[-2] if parts[-1] == "_target_" and len(parts) > 1 else (
        f"{parts[-2]} {parts[-1]}" if parts[-1] in ("name", "run") and len(parts) > 1 else parts[-1]
    )  # fmt: skip


def _value(text: str) -> str:
    return "none" if text == "None" else text.rsplit(".", 1)[-1] if text.startswith("speech2image.") else text
