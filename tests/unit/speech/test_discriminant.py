"""Discriminant directions: where classes differ, not where utterances of one class do."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from speech2image.errors import DataError
from speech2image.speech.discriminant import Discriminant


def _utterances(seed: int, num_classes: int = 60, each: int = 8) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return sentences `(U, 16)`, classes, and the three class factors, hidden under louder nuisance."""
    rng = np.random.default_rng(seed)
    factors = rng.standard_normal((num_classes, 3))
    labels = np.repeat(np.arange(num_classes), each)
    mixing = np.linalg.qr(rng.standard_normal((16, 16)))[0]
    hidden = np.concatenate(
        [
            factors[labels] * [1.0, 0.3, 0.1],
            rng.standard_normal((len(labels), 13)) * ([2.0] * 3 + [0.02] * 10),
        ],
        1,
    )
    hidden += 0.02 * rng.standard_normal(hidden.shape)
    return (hidden @ mixing).astype(np.float32), labels, factors[labels]


def test_keeps_weak_class_directions_and_drops_loud_nuisance() -> None:
    sentences, labels, factors = _utterances(0)
    fitted_to = Discriminant.fit(sentences, labels, 3)
    found = ((torch.from_numpy(sentences) - fitted_to.mean) @ fitted_to.directions).numpy()
    fitted = np.linalg.lstsq(np.c_[found, np.ones(len(found))], factors, rcond=None)[0]
    residual = factors - np.c_[found, np.ones(len(found))] @ fitted
    assert (residual.var(0) / factors.var(0) < 0.1).all()


def test_directions_have_equal_variance_and_projections_unit_length() -> None:
    sentences, labels, _ = _utterances(1)
    fitted = Discriminant.fit(sentences, labels, 5)
    plain = (torch.from_numpy(sentences) - fitted.mean) @ fitted.directions
    assert torch.allclose(plain.mean(0), torch.zeros(5), atol=1e-4)
    assert torch.allclose(plain.var(0, correction=0), torch.ones(5), rtol=1e-3)
    assert torch.allclose(fitted(torch.from_numpy(sentences)).norm(dim=1), torch.ones(len(labels)))


def test_agrees_with_scikit_learn_up_to_scale() -> None:
    from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

    sentences, labels, _ = _utterances(4, num_classes=40, each=150)
    kept = (labels % 2 == 0) | (np.arange(len(labels)) % 150 < 10)  # classes of 150 and of 10 utterances
    sentences, labels = sentences[kept], labels[kept]
    ours = Discriminant.fit(sentences, labels, 3).directions.double().numpy()
    theirs = (
        LinearDiscriminantAnalysis(solver="eigen").fit(sentences.astype(np.float64), labels).scalings_[:, :3]
    )
    cosine = (ours * theirs).sum(0) / np.linalg.norm(ours, axis=0) / np.linalg.norm(theirs, axis=0)
    assert np.abs(cosine) == pytest.approx(np.ones(3), abs=1e-3)


def test_an_offset_common_to_all_embeddings_changes_nothing() -> None:
    sentences, labels, _ = _utterances(6)
    plain = Discriminant.fit(sentences, labels, 3)(torch.from_numpy(sentences))
    moved = sentences + np.float32(4)
    found = Discriminant.fit(moved, labels, 3)(torch.from_numpy(moved))
    assert torch.allclose(found.abs(), plain.abs(), atol=1e-3)  # a direction has no sign


def test_fewer_utterances_than_dimensions_still_tell_classes_apart() -> None:
    """12 utterances of 4 classes leave 8 of 16 directions without any scatter inside classes: shrinkage."""
    sentences, labels, _ = _utterances(7, num_classes=4, each=3)
    fitted = Discriminant.fit(sentences, labels, 3)
    assert fitted.directions.isfinite().all() and float(fitted.directions.abs().max()) < 1e3
    new = np.random.default_rng(8).normal(0, 0.02, sentences.shape).astype(np.float32) + sentences
    assert torch.allclose(fitted(torch.from_numpy(new)), fitted(torch.from_numpy(sentences)), atol=0.2)


def test_few_classes_have_fewer_directions() -> None:
    sentences, labels, _ = _utterances(2, num_classes=4)
    assert Discriminant.fit(sentences, labels, 8).directions.shape == (16, 3)


def test_one_class_says_so() -> None:
    sentences, labels, _ = _utterances(3, num_classes=1)
    with pytest.raises(DataError, match="one class") as raised:
        Discriminant.fit(sentences, labels, 8)
    assert "encoder.lda_dim=null" in raised.value.remedy


def test_embeddings_that_are_no_numbers_are_counted_and_named() -> None:
    sentences, labels, _ = _utterances(5)
    sentences[[7, 9], 3] = np.nan
    with pytest.raises(DataError, match="2 of 480 embeddings .* first row 7"):
        Discriminant.fit(sentences, labels, 3)
