"""A tiny place to train in: corpus, encoder, codec and a probe, shared by the tests of one session."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from speech2image.app.cli import main

TINY = (
    "data.make.num_train_species=8", "data.make.num_test_species=6", "data.make.images_per_species=4",
    "data.make.captions_per_image=2", "data.max_captions=1", "callbacks.progress=false",
    "trainer.max_steps=4", "trainer.batch_size=8", "trainer.log_every=1", "callbacks.checkpoint.every=2",
)  # fmt: skip
CODEC = ("experiment=codec_birds", "name=coded", "codec.channels=8", "codec.num_codes=16")


class TinyPlace:
    """Folders of runs of one tiny corpus, whose probe has seen it for three steps only."""

    GAN = ("experiment=stackgan_v2_birds", "name=watched", "encoder.run=seen", "generator.gf_dim=4",
           "generator.df_dim=4", "generator.condition_dim=8", "generator.noise_dim=8")  # fmt: skip
    DIFFUSION = (
        "experiment=s2ivq_d_birds", "name=watched_d", "encoder.run=seen", "codec.run=coded", "generator.depth=2",
        "generator.dim=32", "generator.heads=2", "codec.num_views=2",
    )  # fmt: skip
    WATCH = ("callbacks.quality.every=2", "callbacks.quality.num_images=12", "callbacks.quality.max_share=1")

    def __init__(self, root: Path) -> None:
        self.root = root
        assert self.train("base", "experiment=sen_birds", "name=seen") == 0
        assert self.train("base", *CODEC) == 0
        corpus_folder = Path(self.info("base", "seen")["data_folder"])
        self._write_probe(corpus_folder)

    def train(self, runs: str, *words: str) -> int:
        """Train four steps; return the exit code."""
        return self.command(runs, "train", "logger=none", "callbacks.sample_grid.every=0", *TINY, *words)

    def command(self, runs: str, *words: str) -> int:
        """Run one verb with everything below `root` and its runs in the folder `runs`; return the exit code."""
        paths = [f"paths.{name}={self.root / name}" for name in ("data", "cache", "weights")]
        return main([*words, *paths, f"paths.runs={self.root / runs}"])

    def run(self, runs: str, name: str) -> Path:
        """Return the folder of a run by its name."""
        return next((self.root / runs).glob(f"{name}-????????"))

    def info(self, runs: str, name: str) -> dict[str, Any]:
        """Return its run.json."""
        found: dict[str, Any] = json.loads((self.run(runs, name) / "run.json").read_text())
        return found

    def new_runs(self, runs: str) -> None:
        """Make a folder of runs with encoder and codec."""
        shutil.copytree(self.root / "base", self.root / runs)

    def _write_probe(self, folder: Path) -> None:
        from speech2image.data.corpus import Corpus
        from speech2image.metrics.probe import train_probe
        from speech2image.training.probes import probe_labels, real_images

        corpus = Corpus(folder)
        labels, classes = probe_labels(corpus, "train", ("body", "wing", "crown", "belly"))
        probe = train_probe(real_images(corpus, "train", 32, 32), labels, classes, max_steps=3)
        probe.save(folder / "probe_32px.safetensors")


@pytest.fixture(scope="session")
def tiny_place(tmp_path_factory: pytest.TempPathFactory) -> TinyPlace:
    """The place of this session."""
    return TinyPlace(tmp_path_factory.mktemp("tiny_place"))
