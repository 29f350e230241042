"""Numbers as text, the columns of a table, Markdown and CSV."""

from __future__ import annotations

import csv
import io
import json
import math
from pathlib import Path

import pytest

from speech2image.report.collect import Run, read_runs
from speech2image.report.exports import comma_separated, markdown
from speech2image.report.published import SOURCES, TABLES, published_for
from speech2image.report.stages import Stage, stages_of
from speech2image.report.tables import columns, duration, number, parameters


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [(0.0, "", "0"), (0.83456, "", "0.8346"), (25.428, "", "25.43"), (1e-5, "", "1.00e-05"), (99.0, "%", "99 %"),
     (1.0, "fraction", "100.0 %"), (0.0051, "fraction", "0.51 %"), (-3.25, "", "-3.250"), (None, "", "not a number")],
)  # fmt: skip
def test_number_reads_as_a_person_writes_it(value: float | None, unit: str, text: str) -> None:
    assert number(value, unit) == text


def test_durations_and_parameter_counts() -> None:
    assert [duration(value) for value in (0.5, 99, 3600, None)] == ["0.5 s", "99 s", "1 h 0 min", "–"]
    assert parameters({"generator": 25_630_000, "probe": 999}) == "generator 25.6 M, probe 999"
    strange: list[float] = [math.nan, math.inf, -math.inf, 10**310]
    assert [parameters(value) for value in strange] == ["–"] * 4
    assert parameters(None) == "–"
    assert parameters({"network": 1_400_000, "loss": 0}) == "network 1.4 M", "what has none is left out"


def _generators(runs: list[Path]) -> list[Run]:
    return [run for run in read_runs(runs) if run.stage == "gan"]


def _stages(runs: list[Run]) -> list[Stage]:
    return stages_of("spoken_birds", runs)


def test_best_respects_the_direction_and_controls_are_never_best(runs: list[Path]) -> None:
    made = {column.name: column for column in columns(_generators(runs))}
    assert next(iter(made)) == "attribute_accuracy/mean"
    for name in ("fid", "attribute_accuracy/mean", "kid"):
        assert [bool(cell and cell.best) for cell in made[name].cells] == [True, False], name
    assert not any(cell and cell.best for cell in made["shuffled_speech/mean"].cells)
    assert made["fid"].arrow == "↓" and made["shuffled_speech/mean"].arrow == ""


def test_overlapping_intervals_are_marked(runs: list[Path]) -> None:
    content = json.loads((runs[1] / "metrics.json").read_text())
    content["metrics"] = [dict(content["metrics"][0], value=21.0, low=20.0, high=22.0)]
    (runs[1] / "metrics.json").write_text(json.dumps(content))
    content["metrics"] = [dict(content["metrics"][0], value=21.5, low=20.9, high=22.4)]
    (runs[2] / "metrics.json").write_text(json.dumps(content))
    first, second = columns(_generators(runs))[0].cells
    assert first and first.best and not first.tied
    assert second and second.tied and not second.best


def test_different_protocols_never_share_a_column(runs: list[Path]) -> None:
    content = json.loads((runs[2] / "metrics.json").read_text())
    (runs[2] / "metrics.json").write_text(json.dumps({**content, "protocol": "clean"}))
    for column in columns(_generators(runs)):
        assert sum(cell is not None for cell in column.cells) == 1
        assert not any(cell and cell.best for cell in column.cells)


def test_markdown_keeps_published_numbers_apart(runs: list[Path]) -> None:
    found = _generators(runs)
    text = markdown("T", {"cub200": _stages(found)}, {"cub200": published_for("cub200")})
    own, published = text.split("Published numbers, CUB-200")
    assert "9.76" in published and "9.76" not in own
    assert "birds_stackgan" in own and "birds_stackgan" not in published
    assert "±" in own and "(2 seeds, n = 480, chance 12.5 %)" in own
    blocks = [block for block in text.split("\n\n") if block.startswith("|")]
    assert len(blocks) == 3, "own numbers, bounds and controls, published numbers"
    assert all(len({line.count("|") for line in block.splitlines()}) == 1 for block in blocks)
    assert "shuffled speech" in blocks[1] and "shuffled speech" not in blocks[0]


def test_csv_holds_every_number_in_full(runs: list[Path]) -> None:
    lines = list(csv.DictReader(io.StringIO(comma_separated(_stages(read_runs(runs))))))
    for folder in runs:
        for metric in json.loads((folder / "metrics.json").read_text())["metrics"]:
            line = next(
                one for one in lines if one["folder"] == folder.name and one["metric"] == metric["name"]
            )
            assert [float(line[end]) for end in ("value", "low", "high")] == [
                metric["value"], metric["low"], metric["high"],
            ]  # fmt: skip


def test_csv_text_is_no_formula(runs: list[Path]) -> None:
    about = json.loads((runs[0] / "run.json").read_text())
    (runs[0] / "run.json").write_text(json.dumps({**about, "experiment": "=1+1"}))
    line = next(csv.DictReader(io.StringIO(comma_separated(_stages(read_runs(runs[:1]))))))
    assert line["label"] == "'=1+1"


def test_published_tables_are_as_printed() -> None:
    cub = published_for("cub200")
    assert cub is not None and published_for("spoken_birds") is None
    rows = {(row.method, row.input, row.source): row.values for row in cub.rows}
    assert rows["S2IGAN", "speech", "sta"] == {"FID ↓": "14.50", "IS ↑": "4.29 ± 0.04", "mAP ↑": "9.04"}
    assert rows["Speak the Art (STA)", "speech", "sta"]["FID ↓"] == "9.76"
    assert all(
        row.source in SOURCES and set(row.values) <= set(table.metrics)
        for table in TABLES
        for row in table.rows
    )
