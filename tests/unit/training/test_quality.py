"""Quality while training: torchmetrics through a probe against independent formulas, and no trace left."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.linalg
import torch

from speech2image.metrics.probe import Probe
from speech2image.training.quality import ImageQuality

CLASSES = {"body": ["red", "green", "blue"], "wing": ["red", "white"]}


@pytest.fixture(scope="module")
def probe() -> Probe:
    torch.manual_seed(3)
    return Probe(CLASSES, width=4, image_px=16, feature_dim=8).eval()


def pictures(count: int, seed: int) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).integers(0, 256, (count, 3, 16, 16), dtype=np.uint8))


@pytest.fixture
def spoken(probe: Probe) -> list[dict[str, str]]:
    """Half of the utterances say what the probe sees on `pictures(40, 1)`, half something else; some no wing."""
    seen = probe.predict(pictures(40, 1))
    said = []
    for place, number in enumerate(seen["body"]):
        shift = place % 2
        said.append({"body": CLASSES["body"][(number + shift) % 3]})
        if place < 10:
            said[-1]["wing"] = CLASSES["wing"][seen["wing"][place]]
    return said


def frechet(real: np.ndarray, fake: np.ndarray) -> float:
    """The textbook formula with a general matrix square root, float64."""
    means = [side.astype(np.float64).mean(axis=0) for side in (real, fake)]
    spreads = [np.cov(side.astype(np.float64), rowvar=False) for side in (real, fake)]
    root = scipy.linalg.sqrtm(spreads[0] @ spreads[1])
    return float(((means[0] - means[1]) ** 2).sum() + np.trace(spreads[0] + spreads[1] - 2 * np.real(root)))


def kernel(real: np.ndarray, fake: np.ndarray) -> float:
    """The unbiased estimate with the cubic kernel over all pairs."""
    count, dim = real.shape
    k_rr, k_ff, k_rf = ((a.astype(np.float64) @ b.T.astype(np.float64) / dim + 1) ** 3
                        for a, b in ((real, real), (fake, fake), (real, fake)))  # fmt: skip
    own = sum(k.sum() - np.trace(k) for k in (k_rr, k_ff)) / (count * (count - 1))
    return float(own - 2 * k_rf.mean())


def test_measurement_equals_the_formulas_and_repeats_itself(
    probe: Probe, spoken: list[dict[str, str]]
) -> None:
    real, fake = probe.features(pictures(40, 0)), probe.features(pictures(40, 1))
    quality = ImageQuality(probe, real, spoken, seed=0, device=torch.device("cpu"))
    found = quality.measure(pictures(40, 1))
    assert found["val_fid"] == pytest.approx(frechet(real, fake), rel=1e-4)
    assert found["val_kid"] == pytest.approx(kernel(real, fake), rel=1e-3, abs=1e-6)
    assert found["val_attribute_accuracy"] == pytest.approx((0.5 + 1.0) / 2)
    assert quality.measure(pictures(40, 1)) == found, "nothing of the last measurement is left"
    worse = quality.measure(pictures(40, 1) // 4)
    assert worse["val_fid"] > found["val_fid"] and worse["val_kid"] > found["val_kid"]


def test_measurement_leaves_the_random_streams_alone(probe: Probe, spoken: list[dict[str, str]]) -> None:
    torch.manual_seed(11)
    state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()
    real = probe.features(pictures(60, 0))  # more real images than painted ones: KID draws subsets
    quality = ImageQuality(probe, real, spoken, seed=0, device=torch.device("cpu"))
    first = quality.measure(pictures(40, 1))
    torch.manual_seed(11)
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(3)
    moved = torch.get_rng_state()
    assert quality.measure(pictures(40, 1)) == first, "subsets do not depend on torch's stream"
    assert torch.equal(torch.get_rng_state(), moved)
    assert (np.random.get_state()[1] == numpy_state).all()


def test_without_spoken_attributes_there_is_no_accuracy(probe: Probe) -> None:
    quality = ImageQuality(probe, probe.features(pictures(12, 0)), [{}] * 12, 0, torch.device("cpu"))
    assert set(quality.measure(pictures(12, 1))) == {"val_fid", "val_kid"}
