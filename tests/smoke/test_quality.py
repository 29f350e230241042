"""A run that watches its quality trains the same weights as one that does not, resumed or not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from speech2image.training.checkpoint import load_checkpoint


def clock(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "clock.jsonl").read_text().splitlines()]


def lines(run: Path, kind: str) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in (run / "journal.jsonl").read_text().splitlines()]
    return [line for line in found if line["kind"] == kind]


def measured(run: Path) -> list[tuple[int, float, float, float]]:
    keys = ("step", "val_fid", "val_kid", "val_attribute_accuracy")
    return [tuple(line[key] for key in keys) for line in lines(run, "val")]  # type: ignore[misc]


def same_weights(one: Path, other: Path) -> bool:
    first, second = load_file(one / "weights.safetensors"), load_file(other / "weights.safetensors")
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


@pytest.mark.parametrize(("experiment", "name"), [("GAN", "watched"), ("DIFFUSION", "watched_d")])
def test_watching_changes_no_weight_and_leaves_nothing_in_the_checkpoint(
    tiny_place: Any, experiment: str, name: str
) -> None:
    for runs, watch in ((f"{name}_on", tiny_place.WATCH), (f"{name}_off", ("callbacks.quality.every=0",))):
        tiny_place.new_runs(runs)
        assert tiny_place.train(runs, *getattr(tiny_place, experiment), *watch) == 0
    on, off = tiny_place.run(f"{name}_on", name), tiny_place.run(f"{name}_off", name)
    assert on.name == off.name, "watching is no part of a run's name"
    assert same_weights(on, off)
    assert [step for step, *_ in measured(on)] == [2, 4] and not measured(off)
    assert [line["step"] for line in clock(on) if line.get("val_quality_seconds", 0) > 0] == [2, 4]
    train = [[{k: v for k, v in line.items() if k.startswith(("step", "loss"))} for line in lines(run, "train")]
             for run in (on, off)]  # fmt: skip
    assert train[0] == train[1] and len(train[0]) == 4
    states = [load_checkpoint(newest(run / "checkpoints")) for run in (on, off)]
    assert states[0].keys() == states[1].keys()
    one, other = (state["module"] for state in states)
    assert one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def test_resumed_run_measures_the_same_numbers(tiny_place: Any) -> None:
    for runs in ("whole", "cut"):
        tiny_place.new_runs(runs)
        assert tiny_place.train(runs, *tiny_place.GAN, *tiny_place.WATCH) == 0
    cut = tiny_place.run("cut", "watched")
    for path in (newest(cut / "checkpoints"), cut / "weights.safetensors"):
        path.unlink()
    about = json.loads((cut / "run.json").read_text())
    (cut / "run.json").write_text(json.dumps({**about, "status": "running"}))
    assert tiny_place.train("cut", *tiny_place.GAN, *tiny_place.WATCH) == 0
    whole = tiny_place.run("whole", "watched")
    assert measured(cut) == measured(whole) and len(measured(cut)) == 2
    assert same_weights(cut, whole)


def test_a_measurement_beyond_the_budget_is_left_out_and_said_once(tiny_place: Any) -> None:
    tiny_place.new_runs("tight")
    assert (
        tiny_place.train("tight", *tiny_place.GAN, *tiny_place.WATCH[:2], "callbacks.quality.max_share=0")
        == 0
    )
    run = tiny_place.run("tight", "watched")
    said = [line["quality"] for line in clock(run) if "quality" in line]
    assert not measured(run) and len(said) == 1 and "max_share" in said[0]


def test_short_run_trains_no_probe(tiny_place: Any) -> None:
    tiny_place.new_runs("short")
    probe = Path(tiny_place.info("base", "seen")["data_folder"]) / "probe_32px.safetensors"
    kept = probe.rename(probe.with_suffix(".aside"))
    try:
        assert tiny_place.train("short", *tiny_place.GAN, "callbacks.quality.every=5") == 0
        assert not probe.exists()
    finally:
        kept.rename(probe)


def newest(checkpoints: Path) -> Path:
    return max(checkpoints.glob("*.ckpt"))
