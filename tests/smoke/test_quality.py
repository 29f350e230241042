"""A run that watches its quality trains the same weights as one that does not, resumed or not."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from speech2image.app.cli import main
from speech2image.training.checkpoint import load_checkpoint

TINY = (
    "data.make.num_train_species=8", "data.make.num_test_species=6", "data.make.images_per_species=4",
    "data.make.captions_per_image=2", "data.max_captions=1", "logger=none", "callbacks.progress=false",
    "trainer.max_steps=4", "trainer.batch_size=8", "trainer.log_every=1", "callbacks.checkpoint.every=2",
    "callbacks.sample_grid.every=0",
)  # fmt: skip
GAN = ("experiment=stackgan_v2_birds", "name=watched", "encoder.run=seen", "generator.gf_dim=4",
       "generator.df_dim=4", "generator.condition_dim=8", "generator.noise_dim=8")  # fmt: skip
DIFFUSION = (
    "experiment=s2ivq_d_birds", "name=watched_d", "encoder.run=seen", "codec.run=coded", "generator.depth=2",
    "generator.dim=32", "generator.heads=2", "codec.num_views=2",
)  # fmt: skip
CODEC = ("experiment=codec_birds", "name=coded", "codec.channels=8", "codec.num_codes=16")
WATCH = ("callbacks.quality.every=2", "callbacks.quality.num_images=12", "callbacks.quality.max_share=1")


class Place:
    """Folders of this module, with a probe that has seen the corpus for three steps only."""

    def __init__(self, root: Path) -> None:
        self.root = root
        assert self.train("base", "experiment=sen_birds", "name=seen") == 0
        assert self.train("base", *CODEC) == 0
        corpus_folder = Path(self.info("base", "seen")["data_folder"])
        self._write_probe(corpus_folder)

    def train(self, runs: str, *words: str) -> int:
        paths = [f"paths.{name}={self.root / name}" for name in ("data", "cache", "weights")]
        return main(["train", *words, *TINY, *paths, f"paths.runs={self.root / runs}"])

    def run(self, runs: str, name: str) -> Path:
        return next((self.root / runs).glob(f"{name}-????????"))

    def info(self, runs: str, name: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.run(runs, name) / "run.json").read_text())
        return found

    def new_runs(self, runs: str) -> None:
        shutil.copytree(self.root / "base", self.root / runs)

    def _write_probe(self, folder: Path) -> None:
        from speech2image.data.corpus import Corpus
        from speech2image.metrics.probe import train_probe
        from speech2image.training.probes import probe_labels, real_images

        corpus = Corpus(folder)
        labels, classes = probe_labels(corpus, "train", ("body", "wing", "crown", "belly"))
        probe = train_probe(real_images(corpus, "train", 32, 32), labels, classes, max_steps=3)
        probe.save(folder / "probe_32px.safetensors")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Place:
    return Place(tmp_path_factory.mktemp("quality"))


def lines(run: Path, kind: str) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in (run / "journal.jsonl").read_text().splitlines()]
    return [line for line in found if line["kind"] == kind]


def measured(run: Path) -> list[tuple[int, float, float, float]]:
    keys = ("step", "val_fid", "val_kid", "val_attribute_accuracy")
    return [tuple(line[key] for key in keys) for line in lines(run, "val")]  # type: ignore[misc]


def same_weights(one: Path, other: Path) -> bool:
    first, second = load_file(one / "weights.safetensors"), load_file(other / "weights.safetensors")
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


@pytest.mark.parametrize(("words", "name"), [(GAN, "watched"), (DIFFUSION, "watched_d")])
def test_watching_changes_no_weight_and_leaves_nothing_in_the_checkpoint(
    folders: Place, words: tuple[str, ...], name: str
) -> None:
    for runs, watch in ((f"{name}_on", WATCH), (f"{name}_off", ("callbacks.quality.every=0",))):
        folders.new_runs(runs)
        assert folders.train(runs, *words, *watch) == 0
    on, off = folders.run(f"{name}_on", name), folders.run(f"{name}_off", name)
    assert on.name == off.name, "watching is no part of a run's name"
    assert same_weights(on, off)
    assert [step for step, *_ in measured(on)] == [2, 4] and not measured(off)
    assert all(line["val_quality_seconds"] > 0 for line in lines(on, "val"))
    train = [[{k: v for k, v in line.items() if k.startswith(("step", "loss"))} for line in lines(run, "train")]
             for run in (on, off)]  # fmt: skip
    assert train[0] == train[1] and len(train[0]) == 4
    states = [load_checkpoint(newest(run / "checkpoints")) for run in (on, off)]
    assert states[0].keys() == states[1].keys()
    one, other = (state["module"] for state in states)
    assert one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def test_resumed_run_measures_the_same_numbers(folders: Place) -> None:
    for runs in ("whole", "cut"):
        folders.new_runs(runs)
        assert folders.train(runs, *GAN, *WATCH) == 0
    cut = folders.run("cut", "watched")
    for path in (newest(cut / "checkpoints"), cut / "weights.safetensors"):
        path.unlink()
    about = json.loads((cut / "run.json").read_text())
    (cut / "run.json").write_text(json.dumps({**about, "status": "running"}))
    assert folders.train("cut", *GAN, *WATCH) == 0
    whole = folders.run("whole", "watched")
    assert measured(cut) == measured(whole) and len(measured(cut)) == 2
    assert same_weights(cut, whole)


def test_a_measurement_beyond_the_budget_is_left_out_and_said_once(folders: Place) -> None:
    folders.new_runs("tight")
    assert folders.train("tight", *GAN, *WATCH[:2], "callbacks.quality.max_share=0") == 0
    run = folders.run("tight", "watched")
    said = [line["quality"] for line in lines(run, "event") if "quality" in line]
    assert not measured(run) and len(said) == 1 and "max_share" in said[0]


def test_short_run_trains_no_probe(folders: Place) -> None:
    folders.new_runs("short")
    probe = Path(folders.info("base", "seen")["data_folder"]) / "probe_32px.safetensors"
    kept = probe.rename(probe.with_suffix(".aside"))
    try:
        assert folders.train("short", *GAN, "callbacks.quality.every=5") == 0
        assert not probe.exists()
    finally:
        kept.rename(probe)


def newest(checkpoints: Path) -> Path:
    return max(checkpoints.glob("*.ckpt"))
