"""Fréchet distance: fixtures, closed forms, singular covariances, sampling error, streaming moments."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from speech2image.errors import ProtocolError
from speech2image.metrics.frechet import (
    frechet_distance,
    frechet_influences,
    moments_distance,
    trace_of_root,
)
from speech2image.metrics.statistics import Moments


def wave_sets() -> tuple[np.ndarray, np.ndarray]:
    x = np.sin(0.7 * np.arange(256.0)).reshape(64, 4)
    y = 1.2 * np.sin(0.3 * np.arange(192.0) + 1).reshape(48, 4) + 0.1
    return x, y


def moments(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return rows.mean(axis=0), np.cov(rows, rowvar=False)


def eigen_trace(left: np.ndarray, right: np.ndarray) -> float:
    """Return the trace by the definition: roots of the eigenvalues of the product."""
    return float(np.sqrt(np.linalg.eigvals(left @ right).astype(complex)).real.sum())


def test_fixture_by_every_route() -> None:
    x, y = wave_sets()
    assert frechet_distance(x, y) == pytest.approx(0.6330276, abs=1e-7)
    assert frechet_influences(x, y).value == pytest.approx(0.6330276, abs=1e-7)
    assert moments_distance(*moments(x), *moments(y)) == pytest.approx(0.6330276, abs=1e-7)
    assert frechet_distance(x, x) == pytest.approx(0, abs=1e-12)


def test_diagonal_gaussians_have_the_closed_form() -> None:
    left, right = np.array([1.0, 4.0, 9.0]), np.array([4.0, 1.0, 16.0])
    expected = 5.0**2 + ((np.sqrt(left) - np.sqrt(right)) ** 2).sum()
    shift = np.array([3.0, 4.0, 0.0])
    assert moments_distance(shift, np.diag(left), np.zeros(3), np.diag(right)) == pytest.approx(expected)


def test_shift_and_scale_change_it_as_theory_says() -> None:
    rows = np.random.default_rng(0).normal(size=(300, 5))
    assert frechet_distance(rows, rows + 2.0) == pytest.approx(5 * 4.0)
    trace = np.cov(rows, rowvar=False).trace()
    expected = trace * (3.0 - 1.0) ** 2 + ((2.0 * rows.mean(axis=0)) ** 2).sum()
    assert frechet_distance(rows, 3.0 * rows) == pytest.approx(expected)
    assert frechet_distance(3.0 * rows, rows) == pytest.approx(expected)
    turn = np.linalg.qr(np.random.default_rng(1).normal(size=(5, 5)))[0]
    other = np.random.default_rng(2).normal(0.3, 1.4, (200, 5))
    assert frechet_distance(rows @ turn, other @ turn) == pytest.approx(frechet_distance(rows, other))


@pytest.mark.parametrize("counts", [(40, 40), (20, 90), (90, 20), (33, 32)])
def test_fewer_images_than_dimensions_are_no_special_case(counts: tuple[int, int]) -> None:
    rng = np.random.default_rng(3)
    mixing = rng.normal(size=(32, 32))
    x, y = rng.normal(size=(counts[0], 32)) @ mixing, rng.normal(0.5, 2, (counts[1], 32)) @ mixing
    expected = moments_distance(*moments(x), *moments(y))
    assert frechet_distance(x, y) == pytest.approx(expected, rel=1e-9)
    assert frechet_influences(x, y).value == pytest.approx(expected, rel=1e-9)
    (mean_x, cov_x), (mean_y, cov_y) = moments(x), moments(y)
    plain = ((mean_x - mean_y) ** 2).sum() + cov_x.trace() + cov_y.trace() - 2 * eigen_trace(cov_x, cov_y)
    assert expected == pytest.approx(plain, rel=1e-5)


def test_trace_of_singular_and_of_sound_products() -> None:
    rng = np.random.default_rng(4)
    sound = [np.cov(rng.normal(size=(200, 24)), rowvar=False) for _ in range(2)]
    assert trace_of_root(*sound) == pytest.approx(eigen_trace(*sound), rel=1e-10)
    thin = rng.normal(size=(24, 3))
    low_rank = thin @ thin.T
    assert trace_of_root(low_rank, low_rank) == pytest.approx(low_rank.trace(), rel=1e-9)
    assert trace_of_root(sound[0], low_rank) == pytest.approx(trace_of_root(low_rank, sound[0]), rel=1e-9)
    assert trace_of_root(np.zeros((4, 4)), np.eye(4)) == pytest.approx(0, abs=1e-12)


def test_duplicates_add_no_information() -> None:
    rows = np.random.default_rng(5).normal(size=(500, 8))
    ratio = np.cov(rows.repeat(10, axis=0), rowvar=False) / np.cov(rows, rowvar=False)
    assert ratio == pytest.approx(10 * 499 / 4999)
    other = np.random.default_rng(6).normal(0.2, 1, (500, 8))
    once, ten = frechet_distance(rows, other), frechet_distance(rows.repeat(10, axis=0), other)
    assert ten == pytest.approx(once, rel=0.02)
    groups = np.arange(500).repeat(10)
    repeated = frechet_influences(rows.repeat(10, axis=0), other)
    assert repeated.deviation(groups) == pytest.approx(frechet_influences(rows, other).deviation(), rel=0.02)
    assert repeated.deviation() < 0.9 * repeated.deviation(groups)


@pytest.mark.parametrize(("count", "expected"), [(1000, 33.8), (3000, 11.1)])
def test_bias_of_small_samples_is_that_of_the_table(count: int, expected: float) -> None:
    rng = np.random.default_rng(7)
    value = frechet_distance(rng.normal(size=(count, 256)), rng.normal(size=(count, 256)))
    assert value == pytest.approx(expected, rel=0.03)


@pytest.mark.parametrize(("counts", "dim", "shift"), [((150, 150), 6, 0.5), ((40, 60), 48, 0.3)])
def test_deviation_is_that_of_repeated_draws(counts: tuple[int, int], dim: int, shift: float) -> None:
    rng = np.random.default_rng(8)
    found = [
        frechet_influences(rng.normal(shift, 1, (counts[0], dim)), rng.normal(0, 1, (counts[1], dim)))
        for _ in range(80)
    ]
    true = np.std([one.value for one in found])
    assert np.mean([one.deviation() for one in found]) == pytest.approx(true, rel=0.4)
    assert abs(found[0].left.mean()) < 1e-9 and len(found[0].right) == counts[1]


def test_influence_is_the_change_from_leaving_an_image_out() -> None:
    rng = np.random.default_rng(9)
    x, y = rng.normal(0.4, 1, (300, 4)), rng.normal(size=(250, 4))
    found = frechet_influences(x, y)
    for row in (0, 17, 123):
        change = found.value - frechet_distance(np.delete(x, row, axis=0), y)
        assert change * len(x) == pytest.approx(found.left[row], rel=0.1, abs=0.05)


def test_streamed_moments_are_those_of_all_rows() -> None:
    rng = np.random.default_rng(10)
    rows = (1e4 + rng.normal(size=(103, 7))).astype(np.float32)
    streamed, other = Moments(7), Moments(7)
    for start in range(0, 60, 17):
        streamed.update(torch.from_numpy(rows[start : min(start + 17, 60)]))
    other.update(torch.from_numpy(rows[60:]))
    other.update(torch.zeros(0, 7))
    streamed.merge(other)
    streamed.merge(Moments(7))
    assert streamed.count == 103
    assert streamed.mean.numpy() == pytest.approx(rows.astype(np.float64).mean(axis=0), abs=1e-9)
    assert streamed.covariance().numpy() == pytest.approx(
        np.cov(rows.astype(np.float64), rowvar=False), abs=1e-9
    )
    with pytest.raises(ProtocolError, match="7 dimensions|3 dimensions"):
        streamed.merge(Moments(3))
    with pytest.raises(ProtocolError, match="at least two images, found 1"):
        one = Moments(2)
        one.update(torch.ones(1, 2))
        one.covariance()


def test_senseless_sets_are_refused() -> None:
    x = np.zeros((5, 3))
    for other in (np.zeros((1, 3)), np.zeros((5, 4)), np.zeros(5)):
        with pytest.raises(ProtocolError, match="at least two rows of one width"):
            frechet_distance(x, other)
    with pytest.raises(ProtocolError, match="not finite"):
        frechet_influences(x, np.full((5, 3), np.nan))
    with pytest.raises(ProtocolError, match="do not belong together"):
        moments_distance(np.zeros(3), np.eye(3), np.zeros(2), np.eye(2))
