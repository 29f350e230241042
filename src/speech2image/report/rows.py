"""Chooses the utterances all runs are shown on, and marks colour words in their captions.

Here is the choice only, deterministic and spread over classes, so that two reports of the same
runs show the same rows.  Turning rows into pictures and sound is in `media.py` and `page.py`.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass

from speech2image.report.collect import Painting, Run

COLOURS = {
    "red": "#d62828", "crimson": "#b5122f", "scarlet": "#d9231c", "orange": "#ef7d00", "rufous": "#a8401c",
    "yellow": "#e0b400", "golden": "#d9a400", "gold": "#d9a400", "green": "#2e9e44", "olive": "#7d7f28",
    "teal": "#0f8c8c", "turquoise": "#1fb5ad", "cyan": "#12a7c4", "blue": "#2a6fdb", "navy": "#23408e",
    "purple": "#8a3fc7", "violet": "#8f4fd6", "magenta": "#c9278f", "pink": "#e86aa6", "brown": "#8a5a2b",
    "tan": "#c2a06b", "beige": "#cbb88f", "buff": "#d1ac6b", "black": "#222222", "grey": "#8a8f98",
    "gray": "#8a8f98", "white": "#f4f4f0", "silver": "#b4bac2",
}  # fmt: skip
_WORDS = re.compile(
    r"\b(" + "|".join(sorted(COLOURS, key=len, reverse=True)) + r")(?:[dn]?ish)?\b", re.IGNORECASE
)


@dataclass(frozen=True)
class Row:
    """One utterance and what each run painted for it, in the order of the runs; () where nothing."""

    utterance: str
    paintings: tuple[tuple[Painting, ...], ...]

    @property
    def first(self) -> Painting:
        """The first painting of any run: carries caption, class, recording and real picture."""
        return next(some[0] for some in self.paintings if some)


def choose_rows(runs: Sequence[Run], num_utterances: int) -> tuple[list[Row], list[str]]:
    """Choose up to `num_utterances` utterances, those shared by most runs first, spread over classes.

    Args:    runs: runs of one corpus that paint; runs without pictures get empty cells.
    Returns: the rows in order of class and key, and in words what a reader must know of the choice.
    """
    painters = [run for run in runs if run.paintings]
    if not painters:
        return [], []
    keys = set().union(*(run.paintings for run in painters))
    shared = {key for key in keys if all(key in run.paintings for run in painters)}
    notes = []
    if len(painters) > 1 and not shared:
        notes.append("The runs have no utterance in common: each row shows the runs that painted it.")
    pool = shared or keys
    classes: dict[str, list[str]] = {}
    for key in sorted(pool, key=_address):
        first = next(run.paintings[key][0] for run in painters if key in run.paintings)
        classes.setdefault(first.class_name, []).append(key)
    chosen: list[tuple[str, str]] = []
    depth = 0
    names = sorted(classes, key=_address)
    while len(chosen) < min(num_utterances, len(pool)):
        chosen.extend((name, classes[name][depth]) for name in names if depth < len(classes[name]))
        depth += 1
    chosen = sorted(chosen[:num_utterances])
    rows = [Row(key, tuple(run.paintings.get(key, ()) for run in runs)) for _, key in chosen]
    return rows, notes


def mark_colours(caption: str) -> list[tuple[str, str]]:
    """Split `caption` into pieces with the colour each names, or "".

    >>> mark_colours("a red bird")
    [('a ', ''), ('red', '#d62828'), (' bird', '')]
    """
    pieces: list[tuple[str, str]] = []
    end = 0
    for match in _WORDS.finditer(caption):
        if match.start() > end:
            pieces.append((caption[end : match.start()], ""))
        pieces.append((match.group(0), COLOURS[match.group(1).lower()]))
        end = match.end()
    if end < len(caption):
        pieces.append((caption[end:], ""))
    return pieces


def _address(text: str) -> str:
    return hashlib.blake2b(text.encode("utf-8"), digest_size=8).hexdigest()
