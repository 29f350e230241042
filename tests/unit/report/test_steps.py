"""Quality against steps: which evaluations become points, how lines are named, and what is drawn."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from speech2image.report import write_report
from speech2image.report.collect import Run, read_runs
from speech2image.report.steps import StepsFigure, draw_png, draw_svg, steps_figure, steps_markdown


def add_sampling(run: Path, name: str, steps: int, value: float, calls: int = 0, **settings: Any) -> None:
    """Write what `evaluate run=… sampler=… sampler.steps=…` leaves."""
    content = json.loads((run / "metrics.json").read_text())
    for metric in content["metrics"]:
        if metric["name"] == "attribute_accuracy/mean":
            metric |= {"value": value, "low": value - 0.02, "high": value + 0.03}
    sampler = {"name": name, "steps": steps, "guidance_scale": 3.0, **settings}
    content["details"] |= {"is_default_sampler": False}
    content["details"]["sampling"] = {
        "sampler": sampler, "network_calls": calls or steps, "seconds_per_image": steps / 100, "device": "cpu",
        "threads": 2,
    }  # fmt: skip
    odd = "-".join(f"{key}-{value}" for key, value in settings.items())
    (run / f"metrics-{name}-{steps}-{odd}.json").write_text(json.dumps(content))


def figure_of(run: Path) -> StepsFigure | None:
    return steps_figure(read_runs([run])[0])


@pytest.fixture
def sampled(runs: list[Path]) -> Path:
    for steps, value in ((8, 0.5), (16, 0.6), (100, 0.65)):
        add_sampling(runs[1], "skipping", steps, value)
        add_sampling(runs[1], "halton", steps, value + 0.1, min(steps, 64), curve="arccos")
    return runs[1]


def test_samplings_are_points_and_never_numbers_of_the_run(sampled: Path) -> None:
    run: Run = read_runs([sampled])[0]
    figure = steps_figure(run)
    assert figure is not None and figure.lines == ("halton", "skipping")
    assert [(row.sampler, row.steps, row.calls, row.value, row.interval, row.time) for row in figure.rows][
        :3
    ] == [
        ("halton", "8", 8, "60.0 %", "[58.0, 63.0]", "0.08 s"),
        ("halton", "16", 16, "70.0 %", "[68.0, 73.0]", "0.16 s"),
        ("halton", "100", 64, "75.0 %", "[73.0, 78.0]", "1 s"),
    ]
    assert (
        "guidance scale 3.0" in figure.about
        and "cpu, 2 threads" in figure.about
        and "n = 480" in figure.about
    )
    before = [metric for metric in run.metrics if metric.name == "attribute_accuracy/mean"]
    assert len(before) == 1 and before[0].value == pytest.approx(0.78)


def test_one_evaluation_is_no_figure(runs: list[Path]) -> None:
    assert figure_of(runs[0]) is None and figure_of(runs[1]) is None
    add_sampling(runs[1], "halton", 8, 0.5)
    assert figure_of(runs[1]) is None


def test_settings_of_one_sampler_are_told_apart(runs: list[Path]) -> None:
    for weight in (1, 2):
        for steps in (4, 8):
            add_sampling(runs[1], "purity", steps, 0.5, weight=weight, rule=2)
    add_sampling(runs[1], "halton", 8, 0.5)
    figure = figure_of(runs[1])
    assert figure is not None and figure.lines == ("halton", "purity, weight 1", "purity, weight 2")


def test_the_svg_places_every_point_and_whisker(sampled: Path) -> None:
    figure = figure_of(sampled)
    assert figure is not None
    svg = draw_svg(figure)
    heights = [float(y) for y in re.findall(r'class="dot c0"[^>]*cy="([\d.]+)"', svg)]
    assert heights == sorted(heights, reverse=True) and len(heights) == 3, "better is higher"
    whiskers = re.findall(r'class="whisker c1" d="([^"]+)"', svg)
    assert len(whiskers) == 1 and whiskers[0].count("V") == 3
    places = [float(x) for x in re.findall(r'class="dot c1"[^>]*cx="([\d.]+)"', svg)]
    assert (places[1] - places[0]) / (places[2] - places[1]) == pytest.approx(1 / 2.644, abs=0.02), (
        "log scale"
    )
    assert "skipping 100 calls 65.0 %" in svg


def test_the_png_is_stable_and_stands_beside_the_report(sampled: Path, tmp_path: Path) -> None:
    figure = figure_of(sampled)
    assert figure is not None and draw_png(figure) == draw_png(figure)
    page = write_report([sampled], tmp_path / "page")
    png = page.parent / "quality_against_steps_birds_stackgan.png"
    assert png.read_bytes() == draw_png(figure)
    table = (page.parent / "table.md").read_text()
    assert steps_markdown([figure]) in table and f"]({png.name})" in table
    assert "| halton | 100 | 64 | 75.0 % [73.0, 78.0] | 1 s |" in table


def test_names_from_files_are_escaped(runs: list[Path]) -> None:
    for steps in (4, 8):
        add_sampling(runs[1], "<b>", steps, 0.5)
    page = write_report(runs[1:2], runs[1].parent / "page").read_text()
    assert "&lt;b&gt;" in page and "<b> 4 calls" not in page and "<b></" not in page
