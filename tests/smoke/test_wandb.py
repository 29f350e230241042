"""What reaches wandb, read back from its own files: training, scores, tables, sounds, costs, and the dashboard."""

from __future__ import annotations

import json
import math
import runpy
import shutil
from pathlib import Path
from typing import Any

import pytest

WandbRun: Any = runpy.run_path(str(Path(__file__).with_name("wandb_records.py")))["WandbRun"]
NOT_OURS = ("_step", "_timestamp", "_runtime", "kind", "step", "time")


def journal_rows(run: Path) -> dict[int, dict[str, float]]:
    """What journal and clock say of each step, training and validation together."""
    rows: dict[int, dict[str, float]] = {}
    texts = [
        text for name in ("journal", "clock") for text in (run / f"{name}.jsonl").read_text().splitlines()
    ]
    for text in texts:
        line = json.loads(text)
        if line.get("kind") != "event" and "event" not in line:
            scalars = {key: value for key, value in line.items() if key not in NOT_OURS}
            rows.setdefault(line["step"], {}).update(scalars)
    return rows


def history_rows(found: Any) -> dict[int, dict[str, Any]]:
    """Scalars of each step that wandb holds, without its own keys and without pictures."""
    return {
        row["_step"]: {key: value for key, value in row.items() if key not in NOT_OURS and "/" not in key}
        for row in found.history
    }


def offline_run(folder: Path) -> Any:
    runs = list((folder / "wandb").glob("offline-run-*"))
    assert len(runs) == 1, "one offline run, also after a second upload"
    return WandbRun(runs[0])


@pytest.fixture(scope="module")
def scored(tiny_place: Any) -> Path:
    """A generator trained with wandb offline, then scored."""
    tiny_place.new_runs("wandb")
    words = (*tiny_place.GAN, *tiny_place.WATCH, "logger=offline", "callbacks.sample_grid.every=2")
    assert tiny_place.train("wandb", *words) == 0
    run: Path = tiny_place.run("wandb", "watched")
    assert tiny_place.command("wandb", "evaluate", f"run={run}") == 0
    return run


@pytest.fixture(scope="module")
def published(tiny_place: Any, scored: Path) -> Path:
    """The same run and its encoder, uploaded twice by `report`; the folder of the report."""
    out = scored.parent / "page"
    runs = f"runs=[{scored},{tiny_place.run('wandb', 'seen')}]"
    for _ in range(2):
        words = ("report", runs, f"out={out}", "logger=offline", "logger.wandb.entity=birdwatchers")
        assert tiny_place.command("wandb", *words) == 0
    return out


def test_training_reaches_wandb_as_it_reaches_the_journal(scored: Path) -> None:
    found = offline_run(scored)
    assert found.run.run_id == scored.name and found.exit_code == 0
    assert found.config["generator"]["gf_dim"] == 4 and found.config["seed"] == 0
    assert found.run.run_group == "watched" and found.summary["cost/train_seconds"] > 0
    ours, theirs = journal_rows(scored), history_rows(found)
    assert set(ours) == set(theirs) == {1, 2, 3, 4}
    for step, scalars in ours.items():
        assert theirs[step] == pytest.approx(scalars, rel=1e-5)
    assert {"val_fid", "val_kid", "val_attribute_accuracy", "val_quality_seconds"} <= set(theirs[4])
    pictures = [row["samples/path"] for row in found.history if "samples/path" in row]
    assert len(pictures) == 2 and all((found.files / path).is_file() for path in pictures)


def test_upload_carries_history_protocol_and_costs(scored: Path, published: Path) -> None:
    found = offline_run(scored / "published")
    about = json.loads((scored / "run.json").read_text())
    assert found.run.run_id == scored.name and found.run.job_type == "gan"
    assert found.run.run_group == "watched" and "spoken_birds" in found.run.tags
    assert history_rows(found) == journal_rows(scored)
    protocol = found.config["protocols"]["spoken_birds"]
    assert protocol["split"] == "test" and protocol["network"] == "probe"
    assert found.config["generator"]["gf_dim"] == 4
    for key in ("train_seconds", "images_seen"):
        assert found.summary[f"cost/{key}"] == about[key]
    assert found.summary["cost/images_per_s"] > 0
    metrics = json.loads((scored / "metrics.json").read_text())["metrics"]
    scores = {f"spoken_birds/test/{metric['name']}": metric["value"] for metric in metrics}
    assert {key: found.summary[key] for key in scores} == scores


def test_upload_carries_tables_pictures_and_sound(scored: Path, published: Path) -> None:
    found = offline_run(scored / "published")
    metrics = json.loads((scored / "metrics.json").read_text())["metrics"]
    rows = {row["metric"]: row for row in found.table("metrics")}
    assert len(rows) == len(metrics) > 5
    for metric in metrics:
        row = rows[metric["name"]]
        for key in ("value", "low", "high", "count", "protocol"):
            assert row[key] == metric[key] or math.isclose(row[key], metric[key])
    lines = [json.loads(line) for line in (scored / "generated/test/manifest.jsonl").read_text().splitlines()]
    painted = {line["utterance"]: line for line in lines}
    table = found.table("utterances")
    assert len(table) == min(16, len(painted))
    for row in table:
        line = painted[row["utterance"]]
        assert row["caption"] == line["caption"]
        files = {name: found.table_file("utterances", row[name])
                 for name in ("speech", "spectrogram", "real", "painted")}  # fmt: skip
        assert all(scored in file.parents for file in files.values()), "nothing lies outside the run"
        assert files["speech"].read_bytes() == Path(line["wave"]).read_bytes()
        assert (row["painted"]["width"], row["spectrogram"]["height"]) == (32, 72)
    sounds = found.summary["speech"]["audio"]
    assert len(sounds) == len(table) and all((found.files / sound["path"]).is_file() for sound in sounds)
    assert len(found.summary["painted"]["filenames"]) == len(table)


def test_encoder_is_published_with_its_retrieval(tiny_place: Any, published: Path) -> None:
    run = tiny_place.run("wandb", "seen")
    found = offline_run(run / "published")
    assert history_rows(found) == journal_rows(run)
    assert found.run.job_type == "encoder" and found.artifacts == {}, "it was not scored and paints nothing"


def test_dashboard_becomes_workspace_and_report(published: Path) -> None:
    from speech2image.training.dashboards import make_report, make_workspace

    spec = json.loads((published / "dashboard.json").read_text())
    assert spec["entity"] == "birdwatchers" and len(spec["runs"]) == 2
    shown = {key for section in spec["sections"] for panel in section["panels"] for key in panel["keys"]}
    wanted = {"val_fid", "metrics", "utterances", "samples", "speech", "spoken_birds/test/fid",
              "cost/train_seconds", "loss_g"}  # fmt: skip
    assert wanted <= shown
    workspace = make_workspace(spec)._to_model().model_dump_json(by_alias=True)
    grids = [block for block in make_report(spec).blocks if hasattr(block, "panels")]
    report = json.dumps(  # as a whole it asks the server for the number of the project
        [panel._to_model().model_dump(by_alias=True, mode="json") for grid in grids for panel in grid.panels]
    )
    for key in wanted:
        assert key in workspace and key in report, key
    assert len(grids) == len(spec["sections"])
    for run in spec["runs"]:
        assert run in workspace and all(run in str(grid.runsets[0].filters) for grid in grids)


def test_training_and_report_survive_a_wandb_that_breaks(
    tiny_place: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    import wandb

    def refuse(*args: object, **kwargs: object) -> None:
        raise RuntimeError("no room on the server")

    tiny_place.new_runs("broken")
    with monkeypatch.context() as patch:
        patch.setattr(wandb, "init", refuse)
        with pytest.warns(UserWarning, match="wandb is off for this run: no room"):
            assert tiny_place.train("broken", *tiny_place.GAN, "logger=offline") == 0
        run = tiny_place.run("broken", "watched")
        words = (f"runs=[{run}]", f"out={run.parent}/page", "logger=offline")
        with pytest.warns(UserWarning, match="wandb is off"):
            assert tiny_place.command("broken", "report", *words) == 0
    assert (run.parent / "page" / "index.html").is_file()
    shutil.rmtree(run)
    monkeypatch.setattr(wandb.Run, "log", refuse)
    with pytest.warns(UserWarning, match="wandb failed and is off from here: no room"):
        assert tiny_place.train("broken", *tiny_place.GAN, "logger=offline") == 0
    assert tiny_place.info("broken", "watched")["status"] == "finished"
    assert set(journal_rows(run)) == {1, 2, 3, 4}


def test_training_survives_a_wandb_folder_that_cannot_be_written(tiny_place: Any) -> None:
    tiny_place.new_runs("blocked")
    assert tiny_place.train("blocked", *tiny_place.GAN, "trainer.max_steps=2") == 0
    run = tiny_place.run("blocked", "watched")
    shutil.rmtree(run)
    run.mkdir()
    (run / "wandb").write_text("a file where wandb wants its folder")
    with pytest.warns(UserWarning, match="wandb is off for this run"):
        assert tiny_place.train("blocked", *tiny_place.GAN, "trainer.max_steps=2", "logger=offline") == 0
    assert tiny_place.info("blocked", "watched")["status"] == "finished"
    assert (run / "wandb").is_file()
