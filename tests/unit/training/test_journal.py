"""The journal is append-only, and a resumed run drops what a killed one wrote too much."""

from __future__ import annotations

import json
import resource
from pathlib import Path

import pytest

from speech2image.errors import DataError
from speech2image.training.journal import Journal


def lines(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_clock_and_machine_stay_out_of_the_journal(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal.jsonl")
    journal.write(5, "train", loss=0.5)
    journal.write_clock(5, images_per_s=3.0)
    journal.close()
    assert lines(journal.path) == [{"step": 5, "kind": "train", "loss": 0.5}]
    assert lines(tmp_path / "clock.jsonl")[0] | {"time": 0} == {"step": 5, "time": 0, "images_per_s": 3.0}


def test_resume_drops_what_came_after_the_checkpoint_and_cut_lines(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    first = Journal(path)
    for step in (10, 20):
        first.write(step, "train", loss=1.0)
    kept = first.position()
    first.write(20, "val", loss=1.0)
    first.close()
    for file in (path, tmp_path / "clock.jsonl"):
        with file.open("a") as torn:
            torn.write('{"step": 40, "kind": "tr')
    second = Journal(path, kept)
    second.write(20, "val", loss=2.0)
    second.write_clock(20)
    second.close()
    assert [(line["step"], line["loss"]) for line in lines(path)] == [(10, 1.0), (20, 1.0), (20, 2.0)]
    assert [line["step"] for line in lines(tmp_path / "clock.jsonl")] == [20]


def test_a_journal_shorter_than_the_checkpoint_says_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "journal.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n{"st')
    Journal(path, 400).close()
    assert [line["step"] for line in lines(path)] == [1, 2]
    assert "journal.jsonl is shorter than at the checkpoint" in capsys.readouterr().err


def test_full_disk_keeps_lines_until_there_is_space(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "journal.jsonl"
    journal = Journal(path)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (50, limits[1]))
        for step in range(4):
            journal.write(step, "train", loss=1.0)
        with pytest.raises(
            DataError, match=r"journal.jsonl cannot be written \(File too large\): 3 lines wait"
        ):
            journal.position()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.stat().st_size == 50
    journal.write(4, "train", loss=1.0)
    assert journal.position() == path.stat().st_size
    journal.close()
    assert [line["step"] for line in lines(path)] == [0, 1, 2, 3, 4]
    assert capsys.readouterr().err.count("cannot be written") == 1


def test_other_ranks_write_nothing(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal.jsonl", writes=False)
    journal.write(1, "train", loss=1.0)
    assert journal.position() == 0
    journal.close()
    assert not list(tmp_path.iterdir())
