"""Journals: cut lines, resumed runs, NaN, smoothing."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np

from speech2image.report.journal import Curve, read_journal, smooth, thin


def _write(path: Path, *lines: dict[str, object], tail: str = "") -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines) + tail)
    return path


def test_cut_line_is_counted_and_the_rest_is_read(tmp_path: Path) -> None:
    path = _write(
        tmp_path / "journal.jsonl",
        {"step": 1, "time": 100.0, "kind": "train", "loss": 2.0},
        {"step": 2, "time": 104.0, "kind": "train", "loss": 1.0},
        {"step": 2, "time": 105.0, "kind": "val", "val_recall@10": 0.5},
        {"step": 2, "time": 105.0, "kind": "event", "event": "checkpoint"},
        tail='{"step": 3, "ti',
    )
    journal = read_journal(path)
    assert (journal.num_lines, journal.num_damaged, journal.seconds) == (4, 1, 5.0)
    assert journal.train["loss"].values.tolist() == [2.0, 1.0]
    assert journal.val["val_recall@10"].steps.tolist() == [2]
    assert [event["event"] for event in journal.events] == ["checkpoint"]


def test_resumed_run_counts_its_later_lines(tmp_path: Path) -> None:
    lines = [{"step": step, "kind": "train", "loss": loss} for step, loss in ((1, 9.0), (2, 8.0), (3, 7.0))]
    again = [{"step": step, "kind": "train", "loss": loss} for step, loss in ((2, 0.8), (3, 0.7))]
    journal = read_journal(_write(tmp_path / "journal.jsonl", *lines, *again))
    assert journal.train["loss"].values.tolist() == [9.0, 0.8, 0.7]
    assert journal.num_repeated == 2


def test_clock_lies_beside_and_forgets_what_a_killed_session_did_too_much(tmp_path: Path) -> None:
    path = _write(
        tmp_path / "journal.jsonl",
        {"step": 2, "kind": "train", "loss": 2.0},
        {"step": 4, "kind": "train", "loss": 1.0},
        {"step": 4, "kind": "val", "val_fid": 9.0},
    )
    _write(
        tmp_path / "clock.jsonl",
        {"step": 0, "time": 100.0, "event": "start"},
        {"step": 2, "time": 110.0, "images_per_s": 5.0},
        {"step": 4, "time": 900.0, "images_per_s": 1.0},
        {"step": 2, "time": 5000.0, "event": "start"},
        {"step": 4, "time": 5020.0, "images_per_s": 6.0},
        {"step": 4, "time": 5021.0, "val_quality_seconds": 0.5},
        {"step": 4, "time": 5022.0, "event": "note", "quality": "spaced out"},
        {"step": 4, "time": 5023.0, "event": "end"},
    )
    journal = read_journal(path)
    assert journal.train["images_per_s"].values.tolist() == [5.0, 6.0]
    assert journal.val["val_quality_seconds"].steps.tolist() == [4]
    assert journal.elapsed == {0: 0.0, 2: 10.0, 4: 33.0} and journal.seconds == 33.0
    assert [event["event"] for event in journal.events] == ["note"]
    assert (journal.num_lines, journal.num_damaged, journal.num_repeated) == (3, 0, 0)


def test_bytes_that_are_no_text_are_a_damaged_line(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    path.write_bytes(b'\xff\xfe\x00\n[1]\n"x"\n{"no_step": 1}\n{"step": 1, "loss": 3}\n')
    journal = read_journal(path)
    assert (journal.num_lines, journal.num_damaged) == (1, 4)
    assert journal.train["loss"].values.tolist() == [3.0]


def test_diverged_loss_is_a_gap_in_the_curve(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    path.write_text('{"step": 1, "loss": 1.0}\n{"step": 2, "loss": NaN}\n{"step": 3, "loss": Infinity}\n')
    values = read_journal(path).train["loss"].values
    assert values[0] == 1.0 and np.isnan(values[1:]).all()


def test_smooth_is_the_debiased_exponential_average() -> None:
    values = np.random.default_rng(0).normal(size=50)
    decay = 1 - 2 / 8
    weights = [decay ** np.arange(n, -1, -1) for n in range(50)]
    expected = [np.average(values[: n + 1], weights=weights[n]) for n in range(50)]
    np.testing.assert_allclose(smooth(values, span=7.0), expected, rtol=1e-12)
    holed = smooth(np.array([1.0, math.nan, 3.0]), span=3.0)
    assert np.isnan(holed[1]) and holed[2] > 1.0


def test_thin_keeps_the_mean_and_the_last_step() -> None:
    curve = Curve(np.arange(1000), np.arange(1000, dtype=np.float64))
    small = thin(curve, 100)
    assert len(small.steps) == 100 and small.steps[-1] == 999
    assert small.values.mean() == curve.values.mean()
    assert thin(curve, 1000) is curve


def test_times_that_are_no_times_are_left_out(tmp_path: Path) -> None:
    times = ["100.0", "1e308", "Infinity", "NaN", "-1e308", "104.0"]
    lines = [
        f'{{"step": {step}, "time": {time}, "cpu_seconds": {time}, "loss": 1}}'
        for step, time in enumerate(times)
    ]
    path = tmp_path / "journal.jsonl"
    path.write_text("\n".join(lines))
    for name in ("journal.jsonl", "clock.jsonl"):
        (tmp_path / name).write_text("\n".join(lines))
        journal = read_journal(path)
        assert journal.seconds == 4.0 and journal.elapsed == {0: 0.0, 5: 4.0}
        assert journal.processor == {0: 100.0, 5: 104.0}
