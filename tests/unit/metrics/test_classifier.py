"""The classifier of a corpus's own classes, and CLIPScore."""

from __future__ import annotations

import numpy as np
import pytest

from speech2image.errors import ProtocolError
from speech2image.metrics.classifier import class_hits, held_out, train_classifier
from speech2image.metrics.clip_score import clip_score, clip_scores
from speech2image.metrics.protocol import get_protocol

OFFLINE = get_protocol("offline")
COLOURS = {"red": (210, 40, 40), "green": (40, 170, 40), "blue": (40, 60, 210)}


def drawn(count: int, seed: int) -> tuple[np.ndarray, list[str]]:
    rng = np.random.default_rng(seed)
    names = [list(COLOURS)[index % 3] for index in range(count)]
    images = (
        rng.normal(0, 30, (count, 3, 16, 16)) + np.array([COLOURS[name] for name in names])[..., None, None]
    )
    return images.clip(0, 255).astype(np.uint8), names


def test_classifier_is_checked_on_images_it_was_not_trained_on() -> None:
    images, names = drawn(90, 0)
    images = np.concatenate([images, images[:2]])
    probe, accuracy = train_classifier(
        images, [*names, "rare", "rare"], protocol=OFFLINE, flip=False, max_steps=60, seed=1
    )
    assert probe.classes == {"class": ["blue", "green", "red"]}, "a class of two images is left out"
    assert accuracy.name == "classifier_accuracy/held_out" and accuracy.count == 18
    assert accuracy.value > 0.9 and accuracy.chance == pytest.approx(1 / 3)
    painted, said = drawn(12, 5)
    hits = class_hits(probe, painted, said)
    assert hits is not None and hits.mean() > 0.9
    assert class_hits(probe, painted, ["unseen"] * 12) is None


def test_held_out_share_is_taken_from_each_class() -> None:
    labels = np.repeat([0, 1, 2], [50, 10, 5])
    chosen = held_out(labels, 0.2, seed=2)
    assert [int(chosen[labels == label].sum()) for label in range(3)] == [10, 2, 1]


def test_classes_with_too_few_images_are_refused() -> None:
    images, _ = drawn(8, 0)
    with pytest.raises(ProtocolError, match="two classes with 5 training images"):
        train_classifier(images, [str(index // 2) for index in range(8)], protocol=OFFLINE)


def test_clip_score_is_the_formula_with_an_interval() -> None:
    rng = np.random.default_rng(0)
    left = rng.normal(size=(50, 8))
    assert np.allclose(clip_scores(left, 3 * left), 2.5)
    assert np.allclose(clip_scores(left, -left), 0)
    other = rng.normal(size=(50, 8))
    cosines = (left * other).sum(1) / np.linalg.norm(left, axis=1) / np.linalg.norm(other, axis=1)
    found = clip_score(left, other, protocol=OFFLINE)
    assert found.value == pytest.approx(np.maximum(2.5 * cosines, 0).mean())
    assert found.low < found.value < found.high and found.count == 50
