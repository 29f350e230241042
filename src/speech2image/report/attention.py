"""Where an encoder listens: weights over time, read from a run or given by the caller, drawn as a line.

A run may leave `attention.jsonl`, one line an utterance: `{"utterance", "weights", "hop_ms"}` and, where
the first weight is not at 0, `"start_ms"`.  Weights are computed in `app/attention.py`; encoders
without attention have none, and nothing is shown.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from speech2image.report.collect import Run
from speech2image.report.journal import read_json_lines
from speech2image.report.measures import number_of

HEIGHT, WIDTH = 100.0, 1000.0


@dataclass(frozen=True)
class Attention:
    """Weights of an utterance, one every `hop_ms`, the middle of the first at `start_ms`."""

    weights: tuple[float, ...]
    hop_ms: float
    start_ms: float = 0.0


Attend = Callable[[Path, Mapping[str, Path]], Mapping[str, Attention]]
"""Encoder's run folder and recordings by utterance to what could be computed of them."""


def encoder_folder(run: Run) -> Path | None:
    """Return the folder of the encoder a run listens with, None where it is not at hand."""
    if run.stage == "encoder":
        return run.path
    name = run.about.get("encoder_run")
    folder = run.path.parent / Path(str(name)).name if name else None
    return folder if folder is not None and (folder / "run.json").is_file() else None


def attention_of(
    folder: Path, waves: Mapping[str, Path], attend: Attend | None = None
) -> dict[str, Attention]:
    """Return the attention of an encoder over utterances, from its folder, else computed.

    Args:
        folder: of the encoder's run.
        waves: recordings by utterance.
        attend: computes what the folder lacks; None: nothing is computed.
    """
    found: dict[str, Attention] = {}
    path = folder / "attention.jsonl"
    if path.is_file():
        for line in read_json_lines(path)[0]:
            weights, hop_ms = line.get("weights"), number_of(line.get("hop_ms"))
            if line.get("utterance") not in waves or not isinstance(weights, list) or not hop_ms:
                continue
            numbers = [number_of(weight) for weight in weights]
            start_ms = number_of(line.get("start_ms")) or 0.0
            found[line["utterance"]] = Attention(tuple(one or 0.0 for one in numbers), hop_ms, start_ms)
    missing = {key: wave for key, wave in waves.items() if key not in found}
    if missing and attend is not None:
        found.update(attend(folder, missing))
    return found


def attention_path(attention: Attention, shown_s: float) -> str:
    """Return the outline of the weights in a box of 1000 x 100, time to the right, most weight on top.

    Args:    shown_s: seconds the box is wide.
    """
    if shown_s <= 0 or len(attention.weights) < 2 or max(attention.weights) <= 0:
        return ""
    top = max(attention.weights)
    points = [
        (
            WIDTH * (attention.start_ms + place * attention.hop_ms) / 1000.0 / shown_s,
            HEIGHT * (1.0 - weight / top),
        )
        for place, weight in enumerate(attention.weights)
    ]
    inside = [(x, y) for x, y in points if 0.0 <= x <= WIDTH]
    return _outline(inside) if len(inside) > 1 else ""


def _outline(points: Sequence[tuple[float, float]]) -> str:
    return "M" + "L".join(f"{x:.0f} {y:.0f}" for x, y in points)
