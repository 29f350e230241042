"""`speech2image plan`: tables, files, every experiment, and mistakes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from speech2image.app.plan import make_plan, tables
from speech2image.config.compose import choices, compose

Command = Callable[..., tuple[int, str, str]]


def plan(command: Command, tmp_path: Path, *words: str) -> tuple[str, dict]:  # type: ignore[type-arg]
    code, out, err = command("plan", f"out={tmp_path}/plan", *words)
    assert code == 0, err
    assert out.splitlines()[-1] == f"{tmp_path}/plan"
    return out, json.loads((tmp_path / "plan" / "plan.json").read_text())


def test_plan_of_a_published_size_shows_both_ways_to_grow(command: Command, tmp_path: Path) -> None:
    out, made = plan(command, tmp_path, "experiment=s2ivq_d_cub", "gpus=[1,8,64]")
    assert (tmp_path / "plan" / "plan.png").read_bytes()[:4] == b"\x89PNG"
    assert "493.1 M trained" in out and "64 GPUs: the batch cannot be shared" in out
    same, share = made["rows"]["same batch"], made["rows"]["same share"]
    assert [row["gpus"] for row in same] == [1, 8] and [row["gpus"] for row in share] == [1, 8, 64]
    assert same[0] == share[0] and same[0]["efficiency"] == 1.0
    assert same[1]["batch"] == 32 and same[1]["steps"] == made["steps"]
    assert share[2]["batch"] == 32 * 64 and share[2]["steps"] == -(-made["steps"] // 64)
    assert [row["efficiency"] for row in share] == sorted((row["efficiency"] for row in share), reverse=True)
    for row in (*same, *share):
        assert row["images_per_s"] == pytest.approx(row["batch"] / row["step_s"])
        assert row["step_s"] == pytest.approx(sum(row["parts_s"].values()))
        assert row["gpu_hours"] == pytest.approx(row["gpus"] * row["hours"])
        # a slower wire, storage or host can only make it longer than the arithmetic
        assert row["step_s"] > made["step"]["flops"] / 32 * row["images_per_gpu"] / 989e12


def test_slower_network_costs_more_and_fsdp_holds_less(command: Command, tmp_path: Path) -> None:
    words = ("experiment=s2ivq_d_cub", "gpus=[64]")
    _, fast = plan(command, tmp_path, *words)
    _, slow = plan(command, tmp_path, *words, "hardware.network_gb_s=1.25")
    step = [made["rows"]["same share"][0]["step_s"] for made in (fast, slow)]
    assert step[1] > 5 * step[0] and slow["rows"]["same share"][0]["limit"] == "gradients"


def test_corpus_beyond_memory_waits_for_storage(command: Command, tmp_path: Path) -> None:
    words = ("experiment=stackgan_v2_cub", "gpus=[256]", "trainer.num_workers=8")
    _, small = plan(command, tmp_path, *words)
    _, large = plan(command, tmp_path, *words, "corpus_images=20000000")
    assert small["rows"]["same share"][0]["parts_s"]["data"] == 0.0
    assert large["rows"]["same share"][0]["limit"] == "data"


def test_plan_measures_this_machine(command: Command, tmp_path: Path) -> None:
    out, made = plan(command, tmp_path, "experiment=stackgan_v2_digits", "hardware=this_machine", "gpus=[1]")
    assert 0 < made["measured"]["tflops"] < 100 and made["measured"]["memory_tb_s"] > 0
    assert made["machine"]["flops"] == made["measured"]["tflops"] * 1e12
    assert "on this_machine" in out
    assert not list(tmp_path.rglob("*.part"))


@pytest.mark.parametrize(
    "experiment", [name for name in choices("experiment") if "_of_" not in name and "digits" not in name]
)
def test_every_experiment_can_be_planned(experiment: str) -> None:
    made = make_plan(compose("plan", [f"experiment={experiment}", "gpus=[1]"]))
    assert tables(made)
    assert made["step"]["flops"] > 0 and made["step"]["trained"] > 0 and made["experiment"] == experiment


@pytest.mark.parametrize("gpus", ["[]", "[0]", "[1.5]"])
def test_numbers_of_gpus_are_checked(gpus: str, command: Command, tmp_path: Path) -> None:
    code, _, err = command("plan", f"gpus={gpus}", f"out={tmp_path}/plan")
    assert code == 2 and "gpus=[1,8,64,256]" in err
    assert not (tmp_path / "plan").exists()
