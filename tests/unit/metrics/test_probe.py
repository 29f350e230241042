"""The probe learns colours quickly, survives a round trip and refuses damaged files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from speech2image.errors import CheckpointError, DataError, ProtocolError
from speech2image.metrics.probe import Probe, rotation_task, train_probe
from speech2image.metrics.protocol import get_protocol

COLOURS = np.array([[200, 40, 40], [40, 160, 40], [40, 60, 200], [230, 220, 60]])
CLASSES = {"left": ["red", "green", "blue", "yellow"], "right": ["red", "green", "blue", "yellow"]}


def halves(count: int, seed: int) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    rng = np.random.default_rng(seed)
    labels = {name: rng.integers(0, 4, count) for name in CLASSES}
    images = rng.normal(0, 25, (count, 32, 32, 3))
    images[:, :, :16] += COLOURS[labels["left"]][:, None, None]
    images[:, :, 16:] += COLOURS[labels["right"]][:, None, None]
    return images.clip(0, 255).astype(np.uint8).transpose(0, 3, 1, 2), labels


@pytest.fixture(scope="module")
def probe() -> Probe:
    images, labels = halves(200, 1)
    return train_probe(images, labels, CLASSES, seed=3, max_steps=60, batch_size=32, width=8, feature_dim=32)


def test_classes_the_probe_never_saw_give_no_accuracy(probe: Probe) -> None:
    images, labels = halves(8, 4)
    unseen = {name: np.full_like(values, -1) for name, values in labels.items()}
    assert probe.accuracy(images, unseen, protocol=get_protocol("offline")) == {}
    assert probe.accuracy(images, {}, protocol=get_protocol("offline")) == {}


def test_probe_learns_and_reports_its_accuracy_on_real_images(probe: Probe) -> None:
    images, labels = halves(150, 2)
    labels["right"][:50] = -1
    found = probe.accuracy(images, labels, protocol=get_protocol("offline"))
    assert found["probe_accuracy/left"].value > 0.97
    assert found["probe_accuracy/right"].count == 100
    assert found["probe_accuracy/mean"].count == 250
    assert probe.real_accuracy["mean"] == found["probe_accuracy/mean"].value
    assert found["probe_accuracy/left"].chance == 0.25
    assert probe.features(images).shape == (150, 32)


def test_probe_is_a_function_of_its_seed(probe: Probe) -> None:
    images, labels = halves(200, 1)
    settings = {"max_steps": 60, "batch_size": 32, "width": 8, "feature_dim": 32}
    before = torch.random.get_rng_state()
    assert train_probe(images, labels, CLASSES, seed=3, **settings).weight_hash() == probe.weight_hash()
    assert torch.equal(before, torch.random.get_rng_state())
    assert train_probe(images, labels, CLASSES, seed=4, **settings).weight_hash() != probe.weight_hash()


def test_probe_round_trips_and_damage_is_found(probe: Probe, tmp_path: Path) -> None:
    path = tmp_path / "probe.safetensors"
    probe.real_accuracy = {"mean": 0.99}
    probe.save(path)
    again = Probe.load(path)
    images, _ = halves(20, 5)
    assert again.classes == probe.classes and again.real_accuracy == {"mean": 0.99}
    assert np.array_equal(again.features(images), probe.features(images))
    content = bytearray(path.read_bytes())
    content[-9] ^= 0x20
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="do not match their hash"):
        Probe.load(path)
    path.write_bytes(content[:900])
    with pytest.raises(CheckpointError, match="damaged or not a probe"):
        Probe.load(path)
    with pytest.raises(CheckpointError, match="there is no probe"):
        Probe.load(tmp_path / "none")


def test_images_of_another_size_are_refused(probe: Probe) -> None:
    with pytest.raises(ProtocolError, match="looks at images of shape"):
        probe.predict(np.zeros((2, 3, 64, 64), np.uint8))


def test_labels_that_do_not_fit_are_refused_together() -> None:
    images, labels = halves(10, 0)
    labels["left"][0] = 9
    labels["right"] = labels["right"][:5]
    with pytest.raises(DataError) as error:
        train_probe(images, labels, CLASSES)
    assert "'left' has labels up to 9 for 4 classes" in str(error.value)
    assert "'right' has 5 labels for 10 images" in str(error.value)


def test_rotation_task_turns_images_as_labelled() -> None:
    images, _ = halves(12, 0)
    turned, labels, classes = rotation_task(images, seed=1)
    assert classes == {"rotation": ["0", "90", "180", "270"]}
    assert len(set(labels["rotation"])) > 1
    for image, back, turn in zip(images, turned, labels["rotation"], strict=True):
        assert np.array_equal(np.rot90(back, -turn, axes=(1, 2)), image)
