"""What the records of a run folder may say: checked when they are read, because runs come from others too.

`runs.py` opens folders and builds what they name; the configuration itself is checked by `config/validate.py`.
"""

from __future__ import annotations

from typing import Any

MAX_INFO_BYTES = 16 * 1024**2
#: Numbers in `run.json` that say how large something is, and how large it may be.
_SIZES = {
    "train_step": 10**12, "sentence_dim": 65_536, "words_dim": 65_536, "embedding_dim": 65_536, "num_tokens": 10**6,
    "num_reduced": 10**6, "num_classes": 10**6,
}  # fmt: skip


def record_problems(info: Any, config: Any) -> list[str]:
    """Return in words what in the records of a run is of a form that no run of this suite has."""
    if not isinstance(info, dict) or not isinstance(config, dict) or "stage" not in info:
        return ["not the records of a run"]
    problems = [
        f"{key} in run.json is {str(info[key])[:80]!r}, expected a text"
        for key in (
            "run_id",
            "stage",
            "experiment",
            "corpus",
            "status",
            "created",
            "encoder_run",
            "codec_run",
        )
        if not isinstance(info.get(key), str | None)
    ]
    problems += [
        f"{key} in run.json is {str(info[key])[:80]}, expected a whole number of at most {high:,}"
        for key, high in _SIZES.items()
        if info.get(key) is not None and not (type(info[key]) is int and 0 <= info[key] <= high)
    ]
    grid = info.get("grid")
    if grid is not None and not (
        isinstance(grid, list)
        and len(grid) == 2
        and all(type(side) is int and 0 < side <= 512 for side in grid)
    ):
        problems.append(f"grid in run.json is {str(grid)[:80]}, expected two numbers")
    return problems
