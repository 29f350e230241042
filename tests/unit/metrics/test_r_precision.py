"""R-precision: recorded reference values, chance, ties and small galleries."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from speech2image.errors import ProtocolError
from speech2image.metrics.protocol import get_protocol
from speech2image.metrics.r_precision import mismatched_rows, r_hits, r_precision

OFFLINE = get_protocol("offline")
with np.load(Path(__file__).parents[2] / "parity" / "oracles" / "r_precision.npz") as stored:
    Z = {name: stored[name] for name in stored.files}


def test_hits_and_folds_match_the_reference() -> None:
    hits = r_hits(Z["rp_image"], Z["rp_sentence"], np.arange(60), Z["rp_mismatch_index"])
    assert np.array_equal(hits, Z["rprec/hit"])
    folds = np.array([fold.mean() for fold in np.array_split(hits, 10)])
    assert hits.mean() == pytest.approx(float(Z["rprec/mean"]), abs=1e-6)
    assert folds.mean() == pytest.approx(float(Z["rprec/ten_fold_mean"]), abs=1e-6)
    assert folds.std() == pytest.approx(float(Z["rprec/ten_fold_std"]), abs=1.9e-7)


def test_random_embeddings_are_at_chance_and_true_ones_are_right() -> None:
    rng = np.random.default_rng(0)
    utterances, groups = rng.normal(size=(600, 32)), np.arange(600) // 4
    rows = np.arange(600)
    random = r_precision(rng.normal(size=(600, 32)), utterances, rows, groups, protocol=OFFLINE)
    assert random.chance == 0.01 and random.low <= 0.01 <= random.high
    right = r_precision(utterances + 0.1, utterances, rows, groups, protocol=OFFLINE)
    assert right.value > 0.99
    assert right.details["folds"] == 10 and right.details["distractors"] == 99
    assert right.details["fold_mean"] == pytest.approx(right.value)


def test_an_encoder_that_says_the_same_of_everything_is_at_chance() -> None:
    same = np.ones((300, 8))
    found = r_precision(same, same, np.arange(300), np.arange(300) // 2, protocol=OFFLINE)
    assert found.value == pytest.approx(0.01)


def test_mismatched_utterances_are_of_other_groups_and_repeat_by_seed() -> None:
    groups = np.repeat([0, 1, 2], [200, 30, 20])
    drawn = mismatched_rows([0, 210, 240], groups, 40, seed=3)
    assert drawn.shape == (3, 40)
    assert all((groups[row] != groups[own]).all() for row, own in zip(drawn, (0, 210, 240), strict=True))
    assert all(len(set(row)) == 40 for row in drawn.tolist())
    assert np.array_equal(drawn, mismatched_rows([0, 210, 240], groups, 40, seed=3))
    assert not np.array_equal(drawn, mismatched_rows([0, 210, 240], groups, 40, seed=4))


def test_small_gallery_says_so_and_one_class_is_refused() -> None:
    rng = np.random.default_rng(1)
    found = r_precision(
        rng.normal(size=(6, 4)), rng.normal(size=(6, 4)), range(6), range(6), protocol=OFFLINE
    )
    assert found.chance == pytest.approx(1 / 6) and "5 instead of 99" in found.note
    with pytest.raises(ProtocolError, match="one group"):
        r_precision(np.eye(3), np.eye(3), range(3), [1, 1, 1], protocol=OFFLINE)
