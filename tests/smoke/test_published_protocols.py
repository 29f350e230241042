"""Protocols on Inception end to end, on weight files in the released layouts but with random numbers in them."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torchvision.models import inception_v3

from speech2image.data.birds import make_spoken_birds
from speech2image.metrics import networks

Command = Callable[..., tuple[int, str, str]]


def random_inception(**sizes: Any) -> dict[str, torch.Tensor]:
    """Return the tensors of an Inception whose random convolutions keep the size of what passes."""
    torch.manual_seed(0)
    network = inception_v3(weights=None, init_weights=False, **sizes)
    for module in network.modules():
        if isinstance(module, torch.nn.Conv2d):
            torch.nn.init.kaiming_normal_(module.weight)
    return network.state_dict()


@pytest.fixture(scope="module")
def painter(workplace: Path, place: tuple[str, ...]) -> Path:
    """A generator of two steps on drawn birds in the layout of CUB-200, and both Inception files."""
    from speech2image.app.cli import main

    root = workplace / "cub_of_protocols"
    make_spoken_birds(
        root, num_train_species=4, num_test_species=4, images_per_species=4, captions_per_image=2
    )
    weights = workplace / "weights"
    weights.mkdir(exist_ok=True)
    torch.save(random_inception(num_classes=1008, aux_logits=False), weights / networks.INCEPTION_FILE)
    torch.save(random_inception(), weights / networks.TORCHVISION_FILE)
    corpus = (
        f"data.root={root}",
        "data.image_px=64",
        "data.max_captions=2",
        "data.speak=espeak",
        "debug=two_steps",
        *place,
    )
    assert main(["train", "experiment=sen_cub_small", "name=protocol_sen", *corpus]) == 0
    assert main(
        ["train", "experiment=stackgan_v2_cub_small", "name=protocol_gan", "encoder.run=protocol_sen",
         "generator.base_px=16", "generator.gf_dim=4", "generator.df_dim=4", *corpus]
    ) == 0  # fmt: skip
    yield next((workplace / "runs").glob("protocol_gan-*"))
    (weights / networks.INCEPTION_FILE).unlink()  # other tests want them missing
    (weights / networks.TORCHVISION_FILE).unlink()


@pytest.fixture
def any_hash(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody can make a file with the released hash; everything else about the files is checked."""
    read = networks._read
    monkeypatch.setattr(
        networks, "_read", lambda name, path, known: read(name, path, dataclasses.replace(known, sha256=None))
    )


def read(out: str) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    found = json.loads(Path(out.strip().splitlines()[-1]).read_text())
    return found, {metric["name"]: metric for metric in found["metrics"]}


def test_random_numbers_are_not_the_released_file(painter: Path, command: Command) -> None:
    code, _, err = command("evaluate", f"run={painter}", "protocol=sta_cub")
    assert code == 2 and "damaged or another file" in err and "6726825d" in err


def test_speak_the_art_as_released_and_corrected(painter: Path, command: Command, any_hash: None) -> None:
    code, out, err = command("evaluate", f"run={painter}", "protocol=sta_cub", "bounds=false")
    assert code == 0, err
    legacy, metrics = read(out)
    assert legacy["protocol"] == "sta_cub" and legacy["details"]["protocol"]["legacy"] is True
    assert metrics["fid"]["details"]["network"] == "pytorch-fid"
    assert metrics["fid"]["details"]["real"] == 32, "training images are in the released real set"
    assert metrics["inception_score"]["details"]["num_classes"] == 1000
    assert metrics["fid"]["count"] == metrics["inception_score"]["count"] == 32
    assert metrics["recall@5"]["count"] == 14, "queries in batches of 7, the last one dropped"
    assert metrics["recall@5"]["details"]["gallery"] == 28, "and generated files likewise"
    code, out, err = command(
        "evaluate", f"run={painter}", "protocol=sta_cub", "protocol.legacy=false", "bounds=false"
    )
    assert code == 0, err
    corrected, metrics = read(out)
    assert corrected["protocol"] == "sta_cub-corrected"
    assert metrics["fid"]["details"]["real"] == 16, "test images only"
    assert metrics["fid"]["value"] != pytest.approx(
        {metric["name"]: metric["value"] for metric in legacy["metrics"]}["fid"]
    )


def test_clean_asks_for_three_seeds_and_equal_counts(painter: Path, command: Command, any_hash: None) -> None:
    code, out, err = command("evaluate", f"run={painter}", "protocol=clean", "bounds=false", "judge=null")
    assert code == 0, err
    found, metrics = read(out)
    assert metrics["fid"]["details"]["network"] == "inception-v3-compat"
    assert metrics["fid"]["low"] < metrics["fid"]["value"] < metrics["fid"]["high"]
    assert metrics["fid"]["count"] == metrics["fid"]["details"]["real"] == 16
    assert len(found["details"]["seeds"]) == 3
