"""Every number of the oracle `retrieval`: what the released scripts of S2IGAN compute, as released and corrected."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from speech2image.metrics.protocol import get_protocol
from speech2image.metrics.ranking import (
    average_precisions,
    cosine_scores,
    first_hit_ranks,
    median_rank,
    precisions_at,
    ranked,
    ranked_hits,
    recalls,
    released_gallery,
    speech_image_recalls,
    whole_batches,
)
from speech2image.metrics.retrieval import mean_average_precision, precision_at_k, recall_at_k

ORACLES = Path(__file__).parent / "oracles"
RECORD = json.loads((ORACLES / "retrieval.json").read_text())
with np.load(ORACLES / "retrieval.npz") as stored:
    Z = {name: stored[name] for name in stored.files}
OFFLINE = get_protocol("offline")
CHECKED: set[str] = set()


def check(name: str, found: object) -> None:
    """Compare with a recorded output as its tolerance says."""
    CHECKED.add(name)
    bound, expected = RECORD["tolerance"][name], Z[name]
    value = np.asarray(found, dtype=np.float64).reshape(expected.shape)
    difference = np.abs(value - expected)
    if bound.get("exact"):
        assert difference.max() == 0, name
    else:
        assert difference.max() <= bound["suggested_atol"], (name, difference.max())


def smallest_gap(queries: np.ndarray, gallery: np.ndarray) -> float:
    rows = np.sort(cosine_scores(queries, gallery).numpy(), axis=1)
    return float(np.diff(rows, axis=1).min())


@pytest.mark.parametrize(("case", "pool", "each"), [("recall_five", "", 5), ("recall_one", "_one", 1)])
def test_recall_script(case: str, pool: str, each: int) -> None:
    queries, gallery = Z["recall_ground"], Z[f"recall_generated{pool}"]
    ids, gallery_ids = np.arange(60), np.arange(len(gallery)) // each
    hits = ranked_hits(queries, gallery, ids, gallery_ids)
    check(f"{case}/r1_r5_r10_r50", recalls(hits, (1, 5, 10, 50)))
    check(f"{case}/first_hit_rank", first_hit_ranks(hits))
    check(f"{case}/similarity_sub", cosine_scores(queries, gallery)[::9, ::7])
    check(f"{case}/smallest_gap", smallest_gap(queries, gallery))
    metrics = recall_at_k(queries, gallery, ids, gallery_ids, protocol=OFFLINE, ks=(1, 5, 10, 50))
    check(f"{case}/r1_r5_r10_r50", [metrics[f"recall@{k}"].value for k in (1, 5, 10, 50)])


def test_map_script() -> None:
    queries, gallery = Z["map_ground"], Z["map_generated"]
    ids = Z["map_ground_class"], Z["map_generated_class"]
    hits = ranked_hits(queries, gallery, *ids)
    check("map/average_precision_per_query", average_precisions(hits))
    check("map/mAP", average_precisions(hits).mean())
    check("map/R1_R2_R3_R5_R10", [precisions_at(hits, k).mean() for k in (1, 2, 3, 5, 10)])
    check("map/smallest_gap", smallest_gap(queries, gallery))
    check("map/mAP", mean_average_precision(queries, gallery, *ids, protocol=OFFLINE)["map"].value)
    metrics = precision_at_k(queries, gallery, *ids, protocol=OFFLINE, ks=(1, 2, 3, 5, 10))
    check("map/R1_R2_R3_R5_R10", [metrics[f"ap@{k}"].value for k in (1, 2, 3, 5, 10)])


def test_order_of_ties_is_the_stable_one() -> None:
    order = ranked(Z["tie_ground"], Z["tie_generated"])
    check("ties/order_stable", order)
    check("ties/order_as_sorted", order)
    check("ties/hit_at_1", order[:, 0] // 3 == np.arange(4))


def test_validation_measures_of_the_speech_encoder() -> None:
    pairs = np.arange(40)
    by_speech, by_image = speech_image_recalls(Z["sen_image"], Z["sen_audio"], pairs, pairs)
    # calc_recalls names the directions the other way round: A_* ranks speech for an image
    check("sen/calc_recalls", np.concatenate([by_image, by_speech]))
    sets = Z["all_image"], Z["all_audio"], Z["all_image_id"], Z["all_audio_id"]
    check("sen/retrieval_all", np.concatenate(speech_image_recalls(*sets)))
    images, speech, image_ids, speech_ids = sets
    by_image_hits = ranked_hits(images, speech, image_ids, speech_ids)
    by_speech_hits = ranked_hits(speech, images, speech_ids, image_ids)
    check("sen/median_rank_I2A_A2I", [median_rank(by_image_hits), median_rank(by_speech_hits)])


def test_calc_map_as_released_and_corrected() -> None:
    """As released: one query a class, whichever an unstable sort puts first. Corrected: every utterance."""
    images, speech, classes = Z["sen_image"], Z["sen_audio"], Z["sen_class"]
    queries = np.array([18, 17, 8, 28, 2, 6, 7, 12])  # the rows that sort put first
    assert sorted(classes[queries]) == sorted(set(classes))
    hits = ranked_hits(speech[queries], images, classes[queries], classes)
    check("sen/calc_mAP", average_precisions(hits).mean())
    every = average_precisions(ranked_hits(speech, images, classes, classes))
    corrected = mean_average_precision(speech, images, classes, classes, protocol=OFFLINE)["map"]
    assert corrected.value == pytest.approx(every.mean(), abs=1e-6)
    assert corrected.count == 40 and corrected.low < corrected.value < corrected.high


def test_every_recorded_output_was_compared() -> None:
    assert set(RECORD["outputs"]) == CHECKED


# ---- defects of the released loaders ----------------------------------------------------------
def test_last_incomplete_batch_is_dropped_as_published() -> None:
    assert [whole_batches(count, 7) for count in (995, 4975, 29_330, 11_550)] == [994, 4970, 29_330, 11_550]


def test_index_of_speak_the_art_hides_half_of_the_images() -> None:
    """Perfect images, ten captions: the corrected recall is 1, the released one cannot pass one half."""
    rng = np.random.default_rng(0)
    real = rng.normal(size=(40, 32))
    generated = real.repeat(10, axis=0) + 1e-3 * rng.normal(size=(400, 32))
    ids = np.arange(40).repeat(10)
    rows = released_gallery(40, 10)
    assert len(rows) == 200 and set(ids[rows]) == set(range(20))
    released = recall_at_k(real, generated[rows], np.arange(40), ids[rows], protocol=OFFLINE, ks=(1,))
    corrected = recall_at_k(real, generated, np.arange(40), ids, protocol=OFFLINE, ks=(1,))
    assert released["recall@1"].value == 0.5
    assert released["recall@1"].details["queries_without_answer"] == 20
    assert corrected["recall@1"].value == 1.0
    assert np.array_equal(released_gallery(40, 5), np.arange(200)), "Flickr8k's branch has no such defect"
