"""Seeds as one row, differences in words, costs, LaTeX: what the tables say of several runs."""

from __future__ import annotations

import csv
import io
import json
import re
import shutil
import subprocess
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import yaml

from speech2image.report import write_report
from speech2image.report.collect import Run, read_runs
from speech2image.report.costs import costs_of
from speech2image.report.latex import escaped
from speech2image.report.significance import t_interval
from speech2image.report.stages import Stage, stages_of

ATTRIBUTES = ("body", "wing")


def _score(folder: Path, level: float, seed: int, num: int = 200) -> float:
    """Write items of `num` utterances and the accuracy they add up to; return it."""
    rng = np.random.default_rng(seed)
    items = [
        {"file": f"{place}.png", "utterance": f"u{place}", "image_key": f"i{place}", "class_id": place // 4, "sample": 0,
         "seed": 0, "hits": {name: bool(rng.random() < level) for name in ATTRIBUTES}, "rank": place % 90 + 1}
        for place in range(num)
    ]  # fmt: skip
    (folder / "items.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items))
    value = float(np.mean([item["hits"][name] for item in items for name in ATTRIBUTES]))  # type: ignore[index]
    content = json.loads((folder / "metrics.json").read_text())
    for metric in content["metrics"]:
        if metric["name"] == "attribute_accuracy/mean":
            metric.update(value=value, low=value - 0.04, high=value + 0.04)
    content["metrics"].append(
        {**content["metrics"][0], "name": "fid/real_halves", "value": 2.0, "low": 1.0, "high": 3.0}
    )
    (folder / "metrics.json").write_text(json.dumps(content))
    return value


def _change(folder: Path, about: dict | None = None, **config: object) -> None:
    settings = yaml.safe_load((folder / "config.yaml").read_text())
    (folder / "config.yaml").write_text(yaml.safe_dump({**settings, **config}, sort_keys=False))
    written = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps({**written, **(about or {})}))


@pytest.fixture
def study(make: ModuleType, corpus: list[dict[str, object]], tmp_path: Path) -> list[Path]:
    """Two methods of three seeds and one of a single run."""
    made = []
    for name, level in (("good", 0.85), ("bad", 0.5)):
        for seed in range(3):
            folder = make.write_run(
                tmp_path / f"{name}-0000000{seed}", corpus, name, seed=seed, steps=60, size_px=16
            )
            _score(folder, level + 0.01 * seed, seed + (100 if name == "bad" else 0))
            made.append(folder)
    alone = make.write_run(tmp_path / "alone-00000009", corpus, "alone", seed=7, steps=60, size_px=16)
    _score(alone, 0.5, 77)
    return [*made, alone]


def _stage(folders: list[Path]) -> Stage:
    (stage,) = stages_of("spoken_birds", read_runs(folders))
    return stage


def test_seeds_of_one_experiment_are_one_row(study: list[Path]) -> None:
    good, bad, alone = _stage(study).groups
    assert [len(group.runs) for group in (good, bad, alone)] == [3, 3, 1]
    assert [group.label for group in (good, bad, alone)] == ["good", "bad", "alone"]
    metric = next(one for one in good.metrics if one.name == "attribute_accuracy/mean")
    values = [
        json.loads((folder / "metrics.json").read_text())["metrics"][1]["value"] for folder in study[:3]
    ]
    spread = t_interval(values)
    assert (metric.value, metric.deviation, metric.low, metric.high) == (
        spread.mean, spread.deviation, spread.low, spread.high,
    )  # fmt: skip
    assert metric.num_seeds == 3 and metric.count == 480


def test_an_encoder_of_another_seed_is_the_same_method_another_setting_is_not(study: list[Path]) -> None:
    for place, folder in enumerate(study[:3]):
        _change(
            folder,
            encoder={"_target_": "a.FromRun", "run": f"runs/sen-0000000{place}"},
            paths={"runs": str(place)},
        )
    _change(study[5], optim={"lr": 0.1})
    _change(study[4], optim={"lr": 0.2})
    groups = _stage(study).groups
    assert [len(group.runs) for group in groups] == [3, 1, 1, 1, 1]
    assert {"bad, lr 0.1, seed 2", "bad, lr 0.2, seed 1"} < {group.label for group in groups}


def test_the_same_seed_twice_is_no_second_seed(study: list[Path]) -> None:
    _change(study[1], seed=0)
    assert [len(group.runs) for group in _stage(study).groups] == [2, 1, 3, 1]


def test_differences_are_said_in_words(study: list[Path]) -> None:
    comparison = next(one for one in _stage(study).comparisons if one.metric.startswith("attribute"))
    said = comparison.sentences
    assert len(said) == 3 and "Holm, 3 pairs" in said[0]
    pattern = r"good above bad by \d+\.\d points \[\d+\.\d, \d+\.\d\], p (<|=) 0\.0\d+ .*3 and 3 seeds"
    assert any(re.match(pattern, one) for one in said)
    assert any("good above alone" in one and "200 utterances of 50 classes" in one for one in said)
    assert any(one.startswith("No difference shown between") and "alone" in one for one in said)
    assert "Welch" in comparison.about and "permutation" in comparison.about


def test_paired_difference_is_that_of_the_table(study: list[Path]) -> None:
    folders = [study[0], study[6]]
    runs = read_runs(folders)
    values = [next(m.value for m in run.metrics if m.name == "attribute_accuracy/mean") for run in runs]
    (comparison,) = (one for one in _stage(folders).comparisons if one.metric.startswith("attribute"))
    assert values[0] is not None and values[1] is not None
    assert comparison.pairs[0].difference.value == pytest.approx(values[0] - values[1])


def test_items_of_another_evaluation_are_not_used(study: list[Path]) -> None:
    lines = (study[6] / "items.jsonl").read_text().splitlines()
    (study[6] / "items.jsonl").write_text("\n".join(lines[:50]).replace("true", "false") + "\n{cut")
    folders = [study[0], study[6]]
    assert _stage(folders).comparisons == ()
    assert any("items.jsonl: 1 damaged" in gap for run in read_runs(folders) for gap in run.gaps)


def test_bounds_stand_apart_and_never_win(study: list[Path]) -> None:
    stage = _stage(study)
    assert {"fid/real_halves", "shuffled_speech/mean"} == {column.name for column in stage.controls}
    assert not any(cell and (cell.best or cell.tied) for column in stage.controls for cell in column.cells)
    assert not {column.name for column in stage.contenders} & {column.name for column in stage.controls}


def test_a_protocol_changed_by_hand_is_another_column(study: list[Path]) -> None:
    for folder, legacy in ((study[0], True), (study[6], False)):
        content = json.loads((folder / "metrics.json").read_text())
        content["details"] = {"protocol": {"name": "spoken_birds", "legacy": legacy, "title": folder.name}}
        (folder / "metrics.json").write_text(json.dumps(content))
    stage = _stage([study[0], study[6]])
    assert {column.protocol for column in stage.contenders} == {
        "spoken_birds (legacy true)", "spoken_birds (legacy false)",
    }  # fmt: skip
    assert all(sum(cell is not None for cell in column.cells) == 1 for column in stage.contenders)


def test_a_network_trained_again_is_another_column(study: list[Path]) -> None:
    for folder, mark in ((study[0], "aaaaaaaa"), (study[6], "bbbbbbbb")):
        content = json.loads((folder / "metrics.json").read_text())
        for metric in content["metrics"]:
            metric["details"] = {"weight_hash": mark} if metric["name"] == "kid" else {}
        (folder / "metrics.json").write_text(json.dumps(content))
    protocols = {
        column.protocol for column in _stage([study[0], study[6]]).contenders if column.name == "kid"
    }
    assert protocols == {"spoken_birds (network aaaaaa)", "spoken_birds (network bbbbbb)"}


def _with_costs(folders: list[Path]) -> None:
    for place, folder in enumerate(folders):
        _change(folder, {"train_cpu_seconds": 100.0 + 50 * place, "peak_memory_mb": 900 + place})
        content = json.loads((folder / "metrics.json").read_text())
        content["details"] = {"sampling": {"seconds_per_image": 0.01 * (place + 1), "network_calls": 1, "device": "cpu",
                                           "threads": 1, "sampler": {"name": "once"}}}  # fmt: skip
        (folder / "metrics.json").write_text(json.dumps(content))


def test_costs_are_in_every_table(study: list[Path], tmp_path: Path) -> None:
    _with_costs(study)
    costs = costs_of(read_runs(study[:1])[0])
    assert (costs.train_cpu_seconds, costs.peak_memory_mb, costs.images_per_second) == (100.0, 900.0, 100.0)
    page = write_report(study, tmp_path / "report")
    text = page.read_text()
    assert "901 MB" in text and "processor time of training" in text and "time to paint an image" in text
    assert (
        "901 MB" in (page.parent / "table.md").read_text()
        and "901 MB" in (page.parent / "table.tex").read_text()
    )
    rows = list(csv.DictReader(io.StringIO((page.parent / "table.csv").read_text())))
    seeds = [
        row for row in rows if row["row"] == "seeds" and row["metric"] == "fid" and row["label"] == "good"
    ]
    assert len(seeds) == 1 and float(seeds[0]["train_cpu_seconds"]) == 150.0 and seeds[0]["num_seeds"] == "3"


def test_without_processor_time_of_all_the_clock_is_used_and_said(study: list[Path], tmp_path: Path) -> None:
    _with_costs(study[:3])
    text = write_report(study, tmp_path / "report").read_text()
    assert "training time by the clock" in text and "Some runs recorded no processor time" in text


# ---- LaTeX ------------------------------------------------------------------------------------
def _latex(study: list[Path], tmp_path: Path) -> str:
    _change(study[6], {"experiment": "a_b & 50% {x} \\input $n^2$ #é ↑ 鳥", "corpus": "spoken_birds"})
    return (write_report(study, tmp_path / "report").parent / "table.tex").read_text()


def test_latex_is_escaped_and_whole(study: list[Path], tmp_path: Path) -> None:
    text = _latex(study, tmp_path)
    assert text.isascii()
    assert r"a\_b \& 50\% \{x\} \textbackslash{}input \$n\textasciicircum{}2\$ \#e $\uparrow$ ?" in text
    assert text.count(r"\begin{tabular}") == text.count(r"\end{tabular}") == 2
    for body, layout in re.findall(r"\\begin\{tabular\}\{(\w+)\}\n(.*?)\\end\{tabular\}", text, re.DOTALL):
        rows = [line for line in layout.splitlines() if line.endswith(r"\\")]
        assert rows and all(len(re.findall(r"(?<!\\)&", row)) == len(body) - 1 for row in rows)
    assert r"\textbf{" in text.split("Bounds")[0] and r"\textbf{" not in text.split("Bounds")[1]
    assert r"{\scriptsize " in text and escaped("x\ty") == "x y"


def test_latex_compiles(study: list[Path], tmp_path: Path) -> None:
    program = shutil.which("pdflatex")
    if program is None:
        pytest.skip("no pdflatex on this machine: apt-get install texlive-latex-recommended")
    _latex(study, tmp_path)
    head = r"\documentclass{article}\usepackage{booktabs}\begin{document}\input{table.tex}\end{document}"
    (tmp_path / "report" / "main.tex").write_text(head)
    done = subprocess.run(
        [program, "-interaction=nonstopmode", "-halt-on-error", "main.tex"],
        cwd=tmp_path / "report", capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:]
    assert (tmp_path / "report" / "main.pdf").stat().st_size > 10_000


# ---- attention and time -----------------------------------------------------------------------
def test_attention_of_the_encoder_is_drawn_where_there_is_some(study: list[Path], tmp_path: Path) -> None:
    folder = study[0]
    keys = [
        json.loads(line)["utterance"]
        for line in (folder / "generated/test/manifest.jsonl").read_text().splitlines()
    ]
    assert 'class="attention"' not in write_report([folder], tmp_path / "none").read_text()
    encoder = tmp_path / "enc-0a1b2c3d"
    encoder.mkdir()
    (encoder / "run.json").write_text("{}")
    lines = [
        {"utterance": key, "weights": [0.1, 0.5, 0.2, 0.2], "hop_ms": 500.0} for key in dict.fromkeys(keys)
    ]
    (encoder / "attention.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines[:5]))
    _change(folder, {"encoder_run": encoder.name})
    text = write_report([folder], tmp_path / "some").read_text()
    assert text.count('class="attention"') == 5 and "attention of enc-0a1b2c3d" in text
    # 0.5 of at most 0.5 stands at the top, 0.1 at four fifths below it.
    assert re.search(r'class="a0" d="M0 80L\d+ 0L', text)


def test_quality_in_training_is_drawn_over_time(study: list[Path], tmp_path: Path) -> None:
    _with_costs(study)
    text = write_report(study, tmp_path / "report").read_text()
    assert "During training, over processor time" in text and re.search(r"over time in (s|min): ", text)


def test_runs_of_several_corpora_never_share_a_table(study: list[Path], tmp_path: Path) -> None:
    _change(study[6], {"corpus": "cub200"})
    page = write_report(study, tmp_path / "report")
    birds, _ = page.read_text().split('<section id="corpus-cub200"')
    assert "not comparable" in birds and ">alone<" not in birds.split("<main")[1]
    assert "not comparable" in (page.parent / "table.md").read_text()
    runs: list[Run] = read_runs(study)
    assert {run.corpus for run in runs} == {"spoken_birds", "cub200"}


def test_interval_of_a_share_ends_where_shares_end(study: list[Path]) -> None:
    for folder, value in zip(study[:3], (1.0, 0.99, 0.9), strict=True):
        content = json.loads((folder / "metrics.json").read_text())
        next(one for one in content["metrics"] if one["name"] == "attribute_accuracy/mean")["value"] = value
        (folder / "metrics.json").write_text(json.dumps(content))
    metric = next(one for one in _stage(study).groups[0].metrics if one.name == "attribute_accuracy/mean")
    assert t_interval([1.0, 0.99, 0.9]).high > 1 and metric.high == 1.0 and 0 < metric.low < 0.9


def test_a_gan_paints_in_one_call_without_a_sampler(study: list[Path]) -> None:
    content = json.loads((study[0] / "metrics.json").read_text())
    content.setdefault("details", {})["sampling"] = {
        "seconds_per_image": 0.004, "network_calls": 1, "sampler": None, "device": "cpu", "threads": 1,
    }  # fmt: skip
    (study[0] / "metrics.json").write_text(json.dumps(content))
    (run,) = read_runs(study[:1])
    costs = costs_of(run)
    assert costs.images_per_second == pytest.approx(250) and costs.machine == "cpu, 1 thread"
