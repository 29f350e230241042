"""Retrieval measures against recorded reference values and known chance levels."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import pytest

from speech2image.errors import ProtocolError
from speech2image.metrics.protocol import get_protocol
from speech2image.metrics.retrieval import (
    chance_average_precision,
    chance_recall,
    class_accuracy,
    mean_average_precision,
    recall_at_k,
    sen_mean_average_precision,
)

ORACLES = Path(__file__).parents[2] / "parity" / "oracles"
OFFLINE = get_protocol("offline")


@cache
def arrays(name: str) -> dict[str, np.ndarray]:
    with np.load(ORACLES / f"{name}.npz") as stored:
        return {key: stored[key] for key in stored.files}


@pytest.mark.parametrize(("case", "pool", "each"), [("recall_five", "", 5), ("recall_one", "_one", 1)])
def test_recall_matches_the_reference(case: str, pool: str, each: int) -> None:
    z = arrays("retrieval")
    gallery = z[f"recall_generated{pool}"]
    found = recall_at_k(
        z["recall_ground"], gallery, np.arange(60), np.arange(len(gallery)) // each, protocol=OFFLINE
    )
    values = [found[f"recall@{k}"].value for k in (1, 5, 10, 50)]
    assert np.allclose(values, z[f"{case}/r1_r5_r10_r50"], atol=9.8e-7)
    for metric in found.values():
        assert metric.low <= metric.value <= metric.high
        assert metric.count == 60 and metric.details["gallery"] == len(gallery)


def test_map_matches_the_reference_with_negative_cosines() -> None:
    z = arrays("retrieval")
    ids = z["map_ground_class"], z["map_generated_class"]
    found = mean_average_precision(z["map_ground"], z["map_generated"], *ids, protocol=OFFLINE)
    assert found["map"].value == pytest.approx(float(z["map/mAP"]), abs=4.9e-7)


def test_sen_map_matches_the_reference_and_the_fixture() -> None:
    z = arrays("retrieval")
    queries = np.array([18, 17, 8, 28, 2, 6, 7, 12])  # the rows the reference's unstable sort puts first
    order = np.concatenate([queries, np.setdiff1d(np.arange(40), queries)])
    found = sen_mean_average_precision(
        z["sen_image"][order], z["sen_audio"][order], z["sen_class"][order], protocol=OFFLINE
    )
    assert found["map"].value == pytest.approx(float(z["sen/calc_mAP"]), abs=6.3e-7)
    images = np.array([[1, 0], [0.9, 0.5], [0, 1], [0.6, 0.8], [0.7, 0.7]])
    speech = np.array([[1, 0], [0, 1], [1, 0.2], [1, 0], [1, 1]])
    fixture = sen_mean_average_precision(images, speech, [0, 1, 1, 0, 0], protocol=OFFLINE)
    assert fixture["map"].value == pytest.approx(0.7777778, abs=1e-6)


def test_class_accuracy_matches_the_reference() -> None:
    z = arrays("li_speech_encoder")
    found = class_accuracy(z["eval_audio"], z["eval_image"], z["eval_labels"], protocol=OFFLINE, top_k=3)
    assert 100 * found["class_accuracy"].value == pytest.approx(
        float(z["eval/class_accuracy_percent"]), abs=9.5e-5
    )
    assert 100 * found["ap@3"].value == pytest.approx(float(z["eval/ap_topk_percent"]), abs=7.3e-5)


@pytest.mark.parametrize(
    ("relevant", "gallery", "percent"), [([5], 4970, 4.93), ([1], 2779, 1.80), ([1, 3], 4, 100.0)]
)
def test_chance_of_recall_at_50(relevant: list[int], gallery: int, percent: float) -> None:
    assert 100 * chance_recall(relevant, gallery, 50) == pytest.approx(percent, abs=0.005)


def test_chance_levels_agree_with_random_rankings() -> None:
    rng = np.random.default_rng(0)
    gallery_ids = np.repeat(np.arange(20), 5)
    queries, gallery = rng.normal(size=(2000, 64)), rng.normal(size=(100, 64))
    query_ids = rng.integers(0, 20, 2000)
    found = recall_at_k(queries, gallery, query_ids, gallery_ids, protocol=OFFLINE, ks=(1, 10))
    for metric in found.values():
        assert metric.value == pytest.approx(metric.chance, abs=0.04)
    average = mean_average_precision(queries, gallery, query_ids, gallery_ids, protocol=OFFLINE)["map"]
    assert average.value == pytest.approx(average.chance, abs=0.01)
    assert average.chance == pytest.approx(chance_average_precision([5], 100))


def test_query_without_answer_is_a_miss_and_counted() -> None:
    eye = np.eye(3)
    found = recall_at_k(eye, eye[:2], [0, 1, 7], [0, 1], protocol=OFFLINE, ks=(1, 2, 50))
    assert set(found) == {"recall@1", "recall@2"}
    assert found["recall@1"].value == pytest.approx(2 / 3)
    assert found["recall@1"].details["queries_without_answer"] == 1


def test_mismatched_sides_are_refused() -> None:
    eye = np.eye(3)
    with pytest.raises(ProtocolError, match="3 queries with 2 ids"):
        recall_at_k(eye, eye, [0, 1], [0, 1, 2], protocol=OFFLINE)
    with pytest.raises(ProtocolError, match="no query has a relevant item"):
        recall_at_k(eye, eye, ["a", "b", "c"], ["d", "e", "f"], protocol=OFFLINE)
    with pytest.raises(ProtocolError, match="3 dimensions, the gallery 2"):
        recall_at_k(eye, eye[:, :2], [0, 1, 2], [0, 1, 2], protocol=OFFLINE)
    with pytest.raises(ProtocolError, match="without a protocol"):
        recall_at_k(eye, eye, [0, 1, 2], [0, 1, 2], protocol=None, ks=(1,))
