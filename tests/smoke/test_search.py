"""A search of toy training runs from the command line: in this process, side by side, and as a wandb sweep."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("optuna", reason="the extra 'search' is not installed")

Command = Callable[..., tuple[int, str, str]]
TOY = (
    "experiment=sen_birds", "data.make.num_train_species=8", "data.make.num_test_species=6",
    "data.make.images_per_species=4", "data.make.captions_per_image=2", "data.max_captions=1", "logger=none",
    "vision.pretrain_steps=0", "callbacks.progress=false", "trainer.max_steps=4", "trainer.batch_size=8",
    "trainer.val_every=2", "callbacks.sample_grid.every=0",
)  # fmt: skip
SEARCH = ("-m", "hydra/sweeper=optuna", "hydra.sweeper.n_trials=4", "hydra.sweeper.startup_trials=2")
LR = "optim.lr=tag(log,interval(1e-4,0.9))"


@pytest.fixture
def toy(workplace: Path) -> tuple[str, ...]:
    return (*TOY, f"data.root={workplace}/birds_of_the_search")


def sweep_of(workplace: Path, name: str) -> Path:
    """The folder of the sweep whose jobs have this name."""
    found = [
        path.parent
        for path in (workplace / "runs" / "sweeps").glob("*/sweep.json")
        if f"name={name}" in json.loads(path.read_text())["words"]
    ]
    assert len(found) == 1
    return found[0]


def records(folder: Path) -> list[dict[str, Any]]:
    paths = sorted(folder.glob("job-*.json"), key=lambda path: int(path.stem.split("-")[1]))
    return [json.loads(path.read_text()) for path in paths]


def test_search_trains_prunes_reports_and_continues(
    command: Command, workplace: Path, toy: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    from speech2image.app import train

    words = ("train", *SEARCH, *toy, "name=sought", LR)
    code, out, err = command(*words)
    assert code == 0, err
    folder = sweep_of(workplace, "sought")
    found = records(folder)
    assert [job["state"] for job in found].count("pruned") >= 1, (folder / "trials.md").read_text()
    assert {job["state"] for job in found} == {"finished", "pruned"}
    assert "best: trial" in out and (folder / "history.png").stat().st_size > 5_000
    assert out.strip().splitlines()[-1].endswith("index.html")
    for job in found:
        run = workplace / "runs" / job["run"]
        about = json.loads((run / "run.json").read_text())
        assert about["status"] == job["state"]
        assert list((run / "checkpoints").glob("*")), "a pruned run keeps its checkpoint"
        assert (run / "weights.safetensors").is_file() == (job["state"] == "finished")
        assert about["train_step"] == (2 if job["state"] == "pruned" else 4)

    trained: list[str] = []
    inner = train.train
    monkeypatch.setattr(train, "train", lambda config: trained.append(config["name"]) or inner(config))  # type: ignore[func-returns-value]
    code, out, err = command(*words)
    assert code == 0 and not trained, err
    assert "search of 4 trials" in out
    longer = [word.replace("n_trials=4", "n_trials=5") for word in words]
    assert command(*longer)[0] == 0
    assert len(trained) == 1 and len(records(folder)) == 5


def test_pruned_run_trains_on_without_the_search(
    command: Command, workplace: Path, toy: tuple[str, ...]
) -> None:
    folder = sweep_of(workplace, "sought")
    job = next(job for job in records(folder) if job["state"] == "pruned")
    words = [word for word in job["overrides"] if not word.startswith(("callbacks.search.", "paths."))]
    code, out, err = command("train", *words)
    assert code == 0, err
    assert (
        "continuing from step 2" in out and Path(out.strip().splitlines()[-1]).name == Path(job["run"]).name
    )
    about = json.loads((workplace / "runs" / job["run"] / "run.json").read_text())
    assert about["status"] == "finished" and about["train_step"] == 4


def test_search_side_by_side_keeps_the_same_records(
    command: Command, workplace: Path, toy: tuple[str, ...]
) -> None:
    code, _, err = command(
        "train", *SEARCH, *toy, "name=besides", "hydra/launcher=joblib", "hydra.sweeper.sampler=random", LR,
    )  # fmt: skip
    assert code == 0, err
    found = records(sweep_of(workplace, "besides"))
    assert len(found) == 4 and {job["state"] for job in found} <= {"finished", "pruned"}
    assert len({job["pid"] for job in found}) == 2, "two workers share the trials"
    assert len({job["run"] for job in found}) == 4


@pytest.mark.parametrize(("word", "said"), [
    ("hydra.sweeper.metrik=val_loss", "did you mean"), ("hydra.sweeper.sampler=cmaes", "hydra.sweeper.sampler"),
    ("hydra.sweeper.metric=fid", "evaluate=true"), ("hydra.sweeper.n_trials=0", "n_trials"),
    ("optim.lrr=1,2", "no point of the space"),
])  # fmt: skip
def test_search_that_cannot_be_is_one_message(
    command: Command, toy: tuple[str, ...], word: str, said: str
) -> None:
    code, _, err = command("train", *SEARCH, *toy, "name=wrong", LR, word)
    assert code == 2 and said in err and "Traceback" not in err, err


def test_exported_search_is_what_wandbs_agents_run(
    command: Command, workplace: Path, toy: tuple[str, ...], tmp_path: Path
) -> None:
    import jsonschema
    import yaml
    from wandb.sdk.launch.sweeps.utils import create_sweep_command, create_sweep_command_args

    path = tmp_path / "wandb.yaml"
    code, out, err = command("train", *SEARCH, *toy, "name=agent", LR, f"hydra.sweeper.export={path}")
    assert code == 0 and f"wandb sweep {path}" in out, err
    found = yaml.safe_load(path.read_text())
    schema = Path(__file__).parents[1] / "unit" / "app" / "wandb_sweep_schema.json"
    jsonschema.Draft7Validator(json.loads(schema.read_text())).validate(found)
    told = create_sweep_command_args({"args": {"optim.lr": {"value": 0.0012345678901}}})
    words: list[str] = []  # as the agent puts them together, `wandb_agent.py: _command_run`
    for word in create_sweep_command(found["command"]):
        is_macro = word.startswith("${") and word.endswith("}")
        known = {**told, "env": ["/usr/bin/env"], "program": [found["program"]]}
        words += known[word[2:-1]] if is_macro else [word]
    assert words[:3] == ["/usr/bin/env", "speech2image", "train"]
    code, out, err = command(*words[2:])
    assert code == 0, err
    config = yaml.safe_load((Path(out.strip().splitlines()[-1]) / "config.yaml").read_text())
    assert config["optim"]["lr"] == 0.0012345678901 and config["name"] == "agent"
