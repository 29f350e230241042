"""The journal is append-only, and a resumed run drops what a killed one wrote too much."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from speech2image.errors import DataError
from speech2image.training.loggers import Journal


def lines(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_lines_are_keyed_by_step(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal.jsonl")
    journal.write(5, "train", loss=0.5)
    journal.close()
    assert lines(journal.path)[0] | {"time": 0} == {"step": 5, "time": 0, "kind": "train", "loss": 0.5}


def test_resume_drops_later_steps_and_cut_lines(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    first = Journal(path)
    for step in (10, 20, 30):
        first.write(step, "train", loss=1.0)
    first.close()
    with path.open("a") as file:
        file.write('{"step": 40, "kind": "tr')
    second = Journal(path, resume_step=20)
    second.write(30, "train", loss=2.0)
    second.close()
    assert [(line["step"], line["loss"]) for line in lines(path)] == [(10, 1.0), (20, 1.0), (30, 2.0)]


def test_full_disk_is_one_clear_error(tmp_path: Path) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("this system has no /dev/full to write to")
    path = tmp_path / "journal.jsonl"
    path.symlink_to("/dev/full")
    with pytest.raises(DataError, match="step 3 cannot be written"):
        Journal(path).write(3, "train", loss=1.0)
