"""The same utterances down the page: sound, spectrogram, attention, and what each run painted.

Here pictures and seconds share the room of one page.  Which utterances are shown is chosen in
`rows.py`; encoding is in `media.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from speech2image.report import media
from speech2image.report.attention import Attend, Attention, attention_of, attention_path, encoder_folder
from speech2image.report.collect import Painting, Run
from speech2image.report.rows import Row, choose_rows, mark_colours
from speech2image.report.tables import readable

SOUND_BUDGET_S = 700.0
"""Seconds of sound a page carries; 3 kB a second as MP3, a third more as text."""
MAX_SOUND_S = 15.0
PICTURE_BUDGET = 10_500_000
"""Bytes of pictures of utterances a page carries, before they become text."""
EXACT_PICTURES = 700
"""Up to so many pictures small ones stay exact; beyond, all are lossy."""
BYTES_PER_PX = 0.28
SIZES_PX = (288, 224, 192, 160, 128, 112, 96, 80, 64)
MAX_LINES = 3
"""Encoders whose attention is drawn over one spectrogram."""


@dataclass(frozen=True)
class Showcase:
    """How many utterances are shown, and how attention is computed where a run did not leave it."""

    num_utterances: int
    attend: Attend | None = None


@dataclass(frozen=True)
class Room:
    """A section's share of the page's room, and how many runs the page has."""

    share: float
    num_runs: int

    @property
    def curve_points(self) -> int:
        """Points of a curve: pages of many runs draw fewer."""
        return max(40, min(240, 2400 // max(self.num_runs, 1)))

    def picture_px(self, num_pictures: int) -> int:
        """Return the longest side at which `num_pictures` pictures fit."""
        most = PICTURE_BUDGET * self.share / max(num_pictures, 1)
        return next((px for px in SIZES_PX if BYTES_PER_PX * px * px <= most), SIZES_PX[-1])


def build_rows(
    views: Mapping[Run, Mapping[str, Any]], shown: Showcase, room: Room, corpus: str
) -> tuple[list[dict[str, Any]], list[str]]:
    """Return the rows of one corpus as the template shows them, and notes on their choice.

    Args:
        views: runs of one corpus and how each of them is named on the page.
        shown: see there.
        room: what the section may take of the page.
        corpus: named in the progress bar.
    """
    runs = list(views)
    rows, notes = choose_rows(runs, shown.num_utterances)
    painters = [place for place, run in enumerate(runs) if run.paints]
    per_run = 4 if len(painters) <= 2 else 2 if len(painters) <= 6 else 1
    num_pictures = len(rows) * (1 + sum(min(per_run, _most(runs[place])) for place in painters))
    exact, px = num_pictures <= EXACT_PICTURES, room.picture_px(num_pictures)
    max_s = min(max(SOUND_BUDGET_S * room.share / max(len(rows), 1), 2.0), MAX_SOUND_S)
    listeners = _listeners(runs, rows, shown)
    made = []
    for row in tqdm(rows, desc=f"rows of {corpus}", unit="utt", disable=None, leave=True):
        first = row.first
        cells = []
        for place in painters:
            chosen = row.paintings[place][:per_run]
            pictures = [media.embed_picture(one.file, px, exact, 84 if px > 128 else 78) for one in chosen]
            cells.append({"run": views[runs[place]], "pictures": pictures})
        everyone = [one for some in row.paintings for one in some]
        sound = _sound(everyone, max_s)
        cut = sound.total_s > sound.shown_s + 0.05
        made.append({
            "utterance": row.utterance,
            "caption": first.caption,
            "class_name": readable(first.class_name) or "no class",
            "pieces": mark_colours(first.caption),
            "sound": sound,
            "sound_end": f"{sound.shown_s:.1f} s" + (f" of {sound.total_s:.1f} s" if cut else ""),
            "attention": _attention(listeners, row.utterance, sound.shown_s),
            "real": _real(everyone, px, exact),
            "cells": cells,
        })  # fmt: skip
    return made, notes


def _most(run: Run) -> int:
    return max((len(some) for some in run.paintings.values()), default=0)


def _sound(paintings: Sequence[Painting], max_s: float) -> media.Sound:
    path = _wave(paintings)
    return (
        media.Sound(problem="its wav file is not there") if path is None else media.embed_sound(path, max_s)
    )


def _wave(paintings: Sequence[Painting]) -> Path | None:
    return next((one.wave for one in paintings if one.wave is not None), None)


def _real(paintings: Sequence[Painting], px: int, exact: bool) -> media.Picture:
    path: Path | None = next((one.real for one in paintings if one.real is not None), None)
    return media.Picture(problem="no real picture") if path is None else media.embed_picture(path, px, exact)


def _listeners(
    runs: Sequence[Run], rows: Sequence[Row], shown: Showcase
) -> list[tuple[str, Mapping[str, Attention]]]:
    """Return the name and the attention of up to three encoders the runs listen with."""
    waves = {}
    for row in rows:
        path = _wave([one for some in row.paintings for one in some])
        if path is not None:
            waves[row.utterance] = path
    folders = dict.fromkeys(folder for run in runs if (folder := encoder_folder(run)) is not None)
    found: list[tuple[str, Mapping[str, Attention]]] = []
    for folder in folders:
        if len(found) < MAX_LINES and waves and (own := attention_of(folder, waves, shown.attend)):
            found.append((folder.name, own))
    return found


def _attention(
    listeners: Sequence[tuple[str, Mapping[str, Attention]]], utterance: str, shown_s: float
) -> list[dict[str, str]]:
    lines = []
    for place, (name, own) in enumerate(listeners):
        path = attention_path(own[utterance], shown_s) if utterance in own else ""
        if path:
            lines.append({"name": name, "path": path, "line": f"a{place}"})
    return lines
