"""Name a run by what defines it, never by the clock.

The name is the experiment's plus eight hex digits of a hash over the resolved configuration
without paths, loggers, callbacks, workers and hardware: a requeued job finds its own folder.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

#: Keys that change where or how fast a run happens, not what it computes.
NOT_DEFINING = (
    "paths", "logger", "callbacks", "debug", "protocol", "sampler", "evaluate", "validate_only", "experiment_name",
    "trainer.num_workers", "trainer.accelerator", "trainer.log_every", "data.root", "data.on_error",
    "audio.weights_path", "trainer.devices", "trainer.strategy", "trainer.rank_timeout_s",
)  # fmt: skip


def defining_config(config: dict[str, Any]) -> dict[str, Any]:
    """Return the part of a resolved configuration that defines the run."""
    return _drop(config, "")


def run_id(name: str, config: dict[str, Any]) -> str:
    """Return `<name>-<8 hex digits>`.

    >>> run_id("demo", {"seed": 1, "paths": {"runs": "a"}}) == run_id("demo", {"seed": 1})
    True
    >>> run_id("demo", {"seed": 1}) == run_id("demo", {"seed": 2})
    False
    """
    text = json.dumps(defining_config(config), sort_keys=True, separators=(",", ":"))
    return f"{name}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def _drop(node: Any, path: str) -> Any:
    if not isinstance(node, dict):
        return node
    kept = {}
    for key, value in node.items():
        where = f"{path}.{key}" if path else str(key)
        if where == "data.make.recordings":  # people or espeak-ng; not where the files lie
            kept[key] = value is not None
        elif where == "trainer.sync_batch_norm":  # as it should be, the number of ranks changes nothing
            kept |= {} if value else {key: value}
        elif where not in NOT_DEFINING:
            kept[key] = _drop(value, where)
    return kept
