"""Run folders: what is read, what is missing and how it is said."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from speech2image.errors import DataError
from speech2image.report.collect import read_runs


def test_whole_runs_have_no_gaps(runs: list[Path]) -> None:
    encoder, one, two = read_runs(runs)
    assert encoder.gaps == one.gaps == two.gaps == ()
    assert (encoder.stage, one.stage) == ("encoder", "gan")
    assert (one.encoder, one.generator, encoder.generator) == ("CnnRnn", "StackGenerator", "")
    assert len(one.paintings) == 8 and all(len(some) == 2 for some in one.paintings.values())
    assert [step for step, _ in one.grids] == sorted(step for step, _ in one.grids) and len(one.grids) == 6
    assert {metric.name for metric in encoder.metrics} == {"recall@10", "recall@1"}
    assert encoder.metrics[0].protocol == "spoken_birds" and encoder.metrics[0].split == "test"


def test_equal_experiments_get_labels_that_differ(runs: list[Path]) -> None:
    assert [run.label for run in read_runs(runs)] == [
        "birds_encoder", "birds_stackgan, seed 1", "birds_stackgan, seed 2",
    ]  # fmt: skip


def test_a_folder_given_twice_is_one_run(runs: list[Path]) -> None:
    assert len(read_runs([runs[0], runs[0] / ".." / runs[0].name])) == 1


def test_every_folder_that_is_no_run_is_named_in_one_error(runs: list[Path], tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (runs[2] / "run.json").write_text('{"run_id": ')
    with pytest.raises(DataError) as caught:
        read_runs([runs[0], tmp_path / "empty", tmp_path / "nowhere", runs[2]])
    message = caught.value.message
    assert "3 of 4 folders are no run" in message
    assert "empty: has no run.json" in message and "nowhere: is no folder" in message
    assert "gan-22222222: its run.json is damaged" in message and caught.value.remedy


def test_no_folder_at_all_is_an_error() -> None:
    with pytest.raises(DataError, match="empty"):
        read_runs([])


def test_missing_parts_are_named(runs: list[Path]) -> None:
    folder = runs[1]
    for name in ("samples", "generated"):
        shutil.rmtree(folder / name)
    for name in ("metrics.json", "journal.jsonl", "config.yaml"):
        (folder / name).unlink()
    (run,) = read_runs([folder])
    said = " | ".join(run.gaps)
    for words in ("samples/step_*.png", "generated/test", "metrics.json", "journal.jsonl", "config.yaml"):
        assert words in said
    assert run.metrics == () and run.paintings == {} and run.grids == ()


def test_damaged_parts_are_named_and_the_rest_is_kept(runs: list[Path]) -> None:
    folder = runs[1]
    (folder / "metrics.json").write_text("{")
    manifest = folder / "generated" / "test" / "manifest.jsonl"
    manifest.write_text(manifest.read_text() + '{"file": "gone.png", "utterance": "u"}\n{"cut')
    with (folder / "journal.jsonl").open("a") as stream:
        stream.write('{"step": 9')
    about = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps({**about, "status": "running"}))
    (run,) = read_runs([folder])
    said = " | ".join(run.gaps)
    assert "metrics.json is damaged" in said and "1 damaged manifest lines, 1 pictures missing" in said
    assert "1 journal line cut" in said and "“running”" in said
    assert len(run.paintings) == 8 and run.journal.num_damaged == 1


def test_another_split_is_shown_and_said(runs: list[Path]) -> None:
    (runs[1] / "generated" / "test").rename(runs[1] / "generated" / "val")
    (run,) = read_runs([runs[1]])
    assert len(run.paintings) == 8 and any("“val”" in gap for gap in run.gaps)
