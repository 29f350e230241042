"""The choice of shared utterances and the marking of colour words."""

from __future__ import annotations

import json
from pathlib import Path

from speech2image.report.collect import read_runs
from speech2image.report.rows import choose_rows, mark_colours


def test_rows_are_shared_spread_and_always_the_same(runs: list[Path]) -> None:
    found = read_runs(runs)
    rows, notes = choose_rows(found, 4)
    assert len(rows) == 4 and notes == []
    assert len({row.first.class_name for row in rows}) == 4, "one row a species while there are species left"
    assert all(row.paintings[0] == () and row.paintings[1] and row.paintings[2] for row in rows)
    assert [row.utterance for row in choose_rows(read_runs(runs[::-1]), 4)[0]] == [
        row.utterance for row in rows
    ]
    assert len(choose_rows(found, 100)[0]) == 8 and choose_rows(found, 0)[0] == []


def test_only_shared_utterances_are_rows(runs: list[Path]) -> None:
    manifest = runs[2] / "generated" / "test" / "manifest.jsonl"
    lines = [json.loads(line) for line in manifest.read_text().splitlines()]
    manifest.write_text("".join(json.dumps(line) + "\n" for line in lines[:4]))
    rows, _ = choose_rows(read_runs(runs), 16)
    assert {row.utterance for row in rows} == {line["utterance"] for line in lines[:4]}


def test_runs_without_a_shared_utterance_say_so(runs: list[Path]) -> None:
    manifest = runs[2] / "generated" / "test" / "manifest.jsonl"
    lines = [json.loads(line) for line in manifest.read_text().splitlines()]
    renamed = [{**line, "utterance": "other/" + line["utterance"]} for line in lines]
    manifest.write_text("".join(json.dumps(line) + "\n" for line in renamed))
    rows, notes = choose_rows(read_runs(runs), 16)
    assert len(rows) == 16 and "no utterance in common" in notes[0]


def test_colour_words_are_marked_whole_words_only() -> None:
    caption = "A Reddish bird, colored blue-grey and tan; standing"
    pieces = mark_colours(caption)
    assert "".join(text for text, _ in pieces) == caption
    assert [text for text, colour in pieces if colour] == ["Reddish", "blue", "grey", "tan"]
    assert mark_colours("") == []
