"""Null tests on drawn birds: each measure answers as theory says where nothing, or everything, is there to find."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import torch

from speech2image.data.bird_drawing import paint_bird
from speech2image.data.bird_shapes import plan_bird
from speech2image.data.birds import choose_species
from speech2image.errors import ProtocolError
from speech2image.images.pyramid import crop_box
from speech2image.metrics.bounds import half_bounds, is_bound, noise_images, set_bounds
from speech2image.metrics.copies import (
    Nearest,
    calibrate,
    copying_check,
    nearest_in_pixels,
    nearest_training,
    planted_copies,
)
from speech2image.metrics.imageset import to_square
from speech2image.metrics.kernel import squared_mmd
from speech2image.metrics.probe import Probe, train_probe
from speech2image.metrics.protocol import get_protocol
from speech2image.metrics.retrieval import recall_at_k, shuffled_recall

BIRDS = get_protocol("spoken_birds")
SIDE = 32


@cache
def birds() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Training images, test images of unseen species `(N, 3, 32, 32)`, and the species of the latter."""
    train_looks, test_looks = choose_species(0, 120, 60)

    def painted(looks: list, each: int, seed: int) -> np.ndarray:
        rng, images = np.random.default_rng(seed), []
        for look in looks:
            for _ in range(each):
                plan = plan_bird(look, rng, 64)
                image, box = paint_bird(plan), plan.box
                images.append(to_square(crop_box(image, box), SIDE))
        return np.stack(images).transpose(0, 3, 1, 2)

    return painted(train_looks, 2, 1), painted(test_looks, 4, 2), np.arange(60).repeat(4)


@cache
def probe() -> Probe:
    train, _, _ = birds()
    bright = train[:, :, 12:20, 12:20].mean(axis=(2, 3)).argmax(axis=1)
    return train_probe(
        train, {"tint": bright}, {"tint": ["r", "g", "b"]}, max_steps=80, width=8, feature_dim=32
    )


def features(images: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(probe().features(np.ascontiguousarray(images)))


def halves() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Two halves of the test images, drawn by image, and the species of the first."""
    _, test, species = birds()
    order = np.random.default_rng(7).permutation(len(test))
    return test[order[:120]], test[order[120:]], species[order[:120]]


# ---- real against real ------------------------------------------------------------------------
def test_real_halves_are_at_zero_and_nothing_real_scores_worse() -> None:
    """Unbiased KID of two samples of one distribution is zero on average; FID has its bias in both places."""
    left, right, _ = halves()
    found = half_bounds(features(left), features(right), protocol=BIRDS)
    assert set(found) == {"fid/real_halves", "kid/real_halves", "fid/same_count", "kid/same_count"}
    for name in ("kid/real_halves", "kid/same_count"):
        assert found[name].low < 0 < found[name].high, name
    bound, real = found["fid/real_halves"], found["fid/same_count"]
    assert bound.value > 0, "few images: the bias that the bound shows"
    assert real.low < bound.value < real.high or bound.low < real.value < bound.high
    assert all(is_bound(name) and metric.count == 60 for name, metric in found.items())


def test_noise_is_far_and_training_images_are_between() -> None:
    train, test, _ = birds()
    real = features(test)
    bound = half_bounds(real, features(train), protocol=BIRDS)
    noise = features(noise_images(120, SIDE).transpose(0, 3, 1, 2))
    found = set_bounds(noise, real, "noise", "", protocol=BIRDS)
    copies = set_bounds(features(train), real, "nearest_train", "", protocol=BIRDS)
    for family in ("fid", "kid"):
        worst = found[f"{family}/noise"]
        assert worst.low > 5 * max(bound[f"{family}/real_halves"].high, 0)
        assert copies[f"{family}/nearest_train"].value < worst.low / 5
        assert worst.low <= worst.value <= worst.high


def test_kernel_distance_is_unbiased() -> None:
    """Mean over draws of one distribution is zero within three standard errors, also with unequal counts."""
    rng = np.random.default_rng(0)
    values = np.array([squared_mmd(rng.normal(size=(30, 8)), rng.normal(size=(50, 8))) for _ in range(300)])
    assert abs(values.mean()) < 3 * values.std() / np.sqrt(300)
    assert squared_mmd(rng.normal(size=(30, 8)), rng.normal(1, 1, (50, 8))) > 10 * values.std()


def test_too_few_images_for_halves_are_refused() -> None:
    with pytest.raises(ProtocolError, match="at least 4 real images"):
        half_bounds(torch.zeros(3, 4), torch.zeros(9, 4), protocol=BIRDS)


# ---- shuffled speech --------------------------------------------------------------------------
def test_shuffled_pairs_are_at_chance_however_good_the_images_are() -> None:
    _, test, species = birds()
    found = features(test)
    ids = np.arange(len(test))
    right = recall_at_k(found, found, ids, ids, protocol=BIRDS, ks=(10,))["recall@10"]
    shuffled = shuffled_recall(found, found, ids, ids, protocol=BIRDS, ks=(1, 10))
    assert right.value == 1.0 and list(shuffled) == ["recall/shuffled@10"]
    control = shuffled["recall/shuffled@10"]
    assert control.chance == pytest.approx(10 / 240)
    assert control.low <= control.chance <= control.high
    by_class = shuffled_recall(found, found, species, species, protocol=BIRDS, ks=(10,))["recall/shuffled@10"]
    assert abs(by_class.value - by_class.chance) < 3 * np.sqrt(by_class.chance / 60)


# ---- copies -----------------------------------------------------------------------------------
def checked(images: np.ndarray) -> dict[str, float]:
    train, test, species = birds()
    known = features(train)
    planted = planted_copies(train, 80)
    sides = [
        nearest_training(x, train, (features(x), features(x[..., ::-1])), known)
        for x in (images, test, planted)
    ]
    found, flags = copying_check(*sides, species, protocol=BIRDS)
    assert len(flags) == len(images)
    assert found["copies/real_test"].chance == pytest.approx(1 / 121)
    return {name: metric.value for name, metric in found.items()}


def test_copies_are_flagged_and_unseen_birds_are_not() -> None:
    """Copies, mildly re-encoded: nearly all. Other real images: no more than the stated rate allows."""
    train, _, _ = birds()
    found = checked(planted_copies(train, 100, seed=5))
    assert found["copies/share"] >= 0.95 and found["copies/planted"] >= 0.95
    assert found["copies/real_test"] <= 1 / 121 + 3 * np.sqrt(1 / 121 / 120)
    looks = choose_species(3, 60, 40)[1]
    rng = np.random.default_rng(11)
    plans = [plan_bird(look, rng, 64) for look in looks]
    other = np.stack([to_square(crop_box(paint_bird(plan), plan.box), SIDE) for plan in plans])
    assert checked(other.transpose(0, 3, 1, 2))["copies/share"] <= 0.05


def test_blurred_images_are_no_copies() -> None:
    """A mean of several training images is near to many of them, yet a copy of none."""
    train, _, _ = birds()
    rows = np.random.default_rng(0).permutation(len(train))[:160].reshape(40, 4)
    assert checked(train[rows].mean(axis=1).astype(np.uint8))["copies/share"] <= 0.1


def test_planted_image_is_found_at_its_row_mirrored_and_shifted() -> None:
    train, _, _ = birds()
    moved = np.roll(train[:20, :, :, ::-1], 1, axis=3)
    rows, distances = nearest_in_pixels(moved, train)
    assert np.array_equal(rows, np.arange(20))
    assert distances.max() < 1e-6


def test_stated_rate_holds_on_average_whatever_the_distances() -> None:
    """Over many calibrations a new image is below the threshold with probability at most the stated rate."""
    rng = np.random.default_rng(0)
    for count, rate in ((50, 1 / 51), (400, 4 / 401)):
        shares = []
        for _ in range(300):
            drawn = rng.gamma(2.0, 1.0, count + 200)
            rows = np.zeros(len(drawn), dtype=np.int64)
            known = Nearest(rows[:count], drawn[:count], rows[:count], drawn[:count])
            threshold = calibrate(known, 0.01)
            assert threshold.rate == pytest.approx(rate)
            shares.append((drawn[count:] < threshold.pixel).mean())
        assert np.mean(shares) == pytest.approx(rate, abs=4 * np.std(shares) / np.sqrt(300))
