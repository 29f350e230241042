"""`evaluate` on a tiny run: bounds below the contenders, one line an image, seeds, judges, partial folders."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

Command = Callable[..., tuple[int, str, str]]
ITEM = {"file", "utterance", "image_key", "class_id", "sample", "seed", "hits", "rank", "nearest_train"}


@pytest.fixture
def run(painted_run: dict[str, Path], tmp_path: Path) -> Path:
    """A copy of the GAN's run with its images."""
    return Path(shutil.copytree(painted_run["eval_gan"], tmp_path / "runs" / painted_run["eval_gan"].name))


def read(out: str) -> dict[str, object]:
    return json.loads(Path(out.strip().splitlines()[-1]).read_text())


def values(found: dict) -> dict[str, float]:
    return {metric["name"]: metric["value"] for metric in found["metrics"]}


def test_bounds_stand_below_the_contenders_and_every_image_has_a_line(command: Command, run: Path) -> None:
    code, out, err = command("evaluate", f"run={run}")
    assert code == 0, err
    above, below = out.split("bounds and controls")
    assert all(
        name in above for name in ("fid ", "recall@10", "map", "attribute_accuracy/mean", "r_precision/own")
    )
    for name in ("fid/real_halves", "kid/same_count", "fid/noise", "fid/nearest_train", "recall/shuffled@10",
                 "copies/share", "copies/real_test", "copies/planted", "shuffled_speech/mean"):  # fmt: skip
        assert name in below and name not in above, name
    found = read(out)
    for metric in found["metrics"]:
        assert metric["low"] <= metric["value"] <= metric["high"], metric["name"]
    assert found["details"]["utterances_scored"] == found["details"]["utterances_of_split"] == 24
    assert found["details"]["judge_conditioned_the_generator"] is True
    items = [json.loads(line) for line in (run / "items.jsonl").read_text().splitlines()]
    assert len(items) == 24 and all(set(item) == ITEM for item in items)
    assert all(1 <= item["rank"] <= 24 and item["nearest_train"]["distance"] >= 0 for item in items)
    said = [hit for item in items for hit in item["hits"].values()]
    named = [item["hits"]["body"] for item in items if "body" in item["hits"]]
    assert set(said) <= {True, False} and np.mean(named) == pytest.approx(
        values(found)["attribute_accuracy/body"]
    )
    recall = np.mean([item["rank"] <= 10 for item in items])
    assert recall == pytest.approx(values(found)["recall/generated_to_real@10"])


def test_bounds_can_be_switched_off(command: Command, run: Path) -> None:
    code, out, err = command("evaluate", f"run={run}", "bounds=false", "judge=null")
    assert code == 0, err
    names = set(values(read(out)))
    assert {"fid", "recall@1"} <= names
    assert not any("real_halves" in name or "copies" in name or "r_precision" in name for name in names)
    first = json.loads((run / "items.jsonl").read_text().splitlines()[0])
    assert first["nearest_train"] is None and first["rank"] is not None


def test_each_seed_is_painted_and_scored_in_its_own_folder(command: Command, run: Path) -> None:
    code, out, err = command("evaluate", f"run={run}", "seeds=[0,1]", "bounds=false")
    assert code == 0, err
    assert {"test", "test-seed0", "test-seed1"} == {path.name for path in (run / "generated").iterdir()}
    found = read(out)
    fid = next(metric for metric in found["metrics"] if metric["name"] == "fid")
    each = fid["details"]["seed_values"]
    assert fid["details"]["seeds"] == [0, 1] and len(set(each)) == 2
    assert (
        fid["value"] == pytest.approx(np.mean(each)) and fid["low"] <= min(each) <= max(each) <= fid["high"]
    )
    assert fid["details"]["seed_deviation"] == pytest.approx(np.std(each, ddof=1))
    assert [part["generated"] for part in found["details"]["seeds"]] == [24, 24]
    items = [json.loads(line) for line in (run / "items.jsonl").read_text().splitlines()]
    assert [item["seed"] for item in items] == [0] * 24 + [1] * 24
    single = [command("evaluate", f"run={run}", f"seeds=[{seed}]", "bounds=false")[1] for seed in (0, 1)]
    assert [values(read(single[1]))["fid"]] == pytest.approx(each[1:])


def test_an_encoder_that_did_not_condition_the_generator_may_judge(
    command: Command, painted_run: dict[str, Path], run: Path, tmp_path: Path
) -> None:
    judge = Path(shutil.copytree(painted_run["eval_sen"], tmp_path / "judge-1"))
    info = json.loads((judge / "run.json").read_text())
    (judge / "run.json").write_text(json.dumps(info | {"run_id": "judge-1"}))
    code, out, err = command("evaluate", f"run={run}", f"judge={judge}")
    assert code == 0, err
    found = read(out)
    assert {"r_precision", "r_precision/shuffled", "recall/speech@10"} <= set(values(found))
    assert not any("own_encoder" in name for name in values(found))
    assert found["details"]["judge"] == "judge-1"


def test_a_folder_that_holds_a_part_of_the_split_says_so(command: Command, run: Path) -> None:
    code, _, err = command("generate", f"run={run}", "max_utterances=20")
    assert code == 0, err
    code, out, err = command("evaluate", f"run={run}", "bounds=false")
    assert code == 0, err
    line = next(line for line in out.splitlines() if line.startswith("scored "))
    assert line.startswith("scored 20 of 24 utterances") and f"speech2image generate run={run}" in line
    details = read(out)["details"]
    assert (details["utterances_scored"], details["utterances_of_split"]) == (20, 24)


def test_a_generator_without_images_paints_them_first(command: Command, run: Path) -> None:
    shutil.rmtree(run / "generated")
    code, out, err = command("evaluate", f"run={run}", "bounds=false")
    assert code == 0, err
    assert "scored " not in out and read(out)["details"]["generated"] == 24


def test_help_explains_every_key(command: Command) -> None:
    code, out, _ = command("evaluate", "--help")
    assert code == 0
    for key in ("seeds", "bounds", "judge", "classifier", "clip_weights", "protocol.legacy", "sta_cub"):
        assert key in out
