"""Attribute accuracy counts what is spoken, and its control is at chance."""

from __future__ import annotations

import numpy as np
import pytest

from speech2image.errors import ProtocolError
from speech2image.metrics.attributes import attribute_accuracy, derangement
from speech2image.metrics.protocol import get_protocol

BIRDS = get_protocol("spoken_birds")
COLOURS = [f"colour {i}" for i in range(8)]
CLASSES = {name: COLOURS for name in ("body", "wing", "crown", "belly")}


def test_only_spoken_attributes_count() -> None:
    spoken = [{"body": "colour 1"}, {"wing": "colour 2", "body": "colour 3"}, {"crown": "colour 0"}, {}]
    predictions = {name: np.array([1, 2, 0, 0]) for name in CLASSES}
    found = attribute_accuracy(predictions, CLASSES, spoken, protocol=BIRDS)
    assert set(found) == {
        "attribute_accuracy/body",
        "attribute_accuracy/wing",
        "attribute_accuracy/crown",
        "attribute_accuracy/mean",
        "shuffled_speech/mean",
    }
    assert found["attribute_accuracy/body"].value == 0.5
    assert found["attribute_accuracy/body"].count == 2
    assert found["attribute_accuracy/wing"].value == 1.0
    assert found["attribute_accuracy/mean"].value == pytest.approx((0.5 + 1 + 1) / 3)
    assert found["attribute_accuracy/mean"].details["named_attributes"] == 4
    assert found["attribute_accuracy/mean"].count == 3


def test_good_images_score_high_and_the_control_is_at_chance() -> None:
    rng = np.random.default_rng(4)
    truth = rng.integers(0, 8, (400, 4))
    species = np.repeat(np.arange(40), 10)
    spoken = [dict(zip(CLASSES, [COLOURS[v] for v in row], strict=True)) for row in truth]
    wrong = rng.random((400, 4)) < 0.2
    painted = np.where(wrong, (truth + 1) % 8, truth)
    predictions = {name: painted[:, i] for i, name in enumerate(CLASSES)}
    found = attribute_accuracy(predictions, CLASSES, spoken, protocol=BIRDS, groups=species, seed=1)
    mean, control = found["attribute_accuracy/mean"], found["shuffled_speech/mean"]
    assert mean.value == pytest.approx(1 - wrong.mean())
    assert mean.low < mean.value < mean.high < mean.low + 0.1
    assert mean.chance == control.chance == 1 / 8
    assert control.low <= 1 / 8 <= control.high


def test_unknown_values_and_heads_are_refused() -> None:
    predictions = {"body": np.array([0, 1])}
    with pytest.raises(ProtocolError, match="body mauve, which the probe never saw"):
        attribute_accuracy(predictions, CLASSES, [{"body": "mauve"}] * 2, protocol=BIRDS)
    with pytest.raises(ProtocolError, match="no head for the attribute 'wing'"):
        attribute_accuracy(predictions, CLASSES, [{"wing": "colour 1"}] * 2, protocol=BIRDS)
    with pytest.raises(ProtocolError, match="no utterance names any"):
        attribute_accuracy(predictions, CLASSES, [{}, {}], protocol=BIRDS)
    with pytest.raises(ProtocolError, match="2 predictions but 3 utterances"):
        attribute_accuracy(predictions, CLASSES, [{"body": "colour 1"}] * 3, protocol=BIRDS)
    with pytest.raises(ProtocolError, match="without a protocol"):
        attribute_accuracy(predictions, CLASSES, [{"body": "colour 1"}] * 2, protocol=None)


def test_derangement_needs_two_kinds() -> None:
    with pytest.raises(ProtocolError, match="at least two kinds"):
        derangement(4, 0, [1, 1, 1, 1])
