"""FID, IS and KID: reference values, intervals, counts, and the two feature networks."""

from __future__ import annotations

import dataclasses
import json
import math
import pickle
import sys
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
from torch_fidelity.metric_isc import isc_features_to_metric
from torch_fidelity.metric_kid import kid_features_to_metric

from speech2image.errors import CheckpointError, ProtocolError
from speech2image.images.grid import write_png
from speech2image.metrics.networks import (
    INCEPTION_FILE,
    INCEPTION_SHA256,
    INCEPTION_URL,
    inception_network,
    probe_network,
)
from speech2image.metrics.probe import Probe
from speech2image.metrics.protocol import get_protocol
from speech2image.metrics.scores import Features, feature_scores, frechet_distance, image_scores

PARITY = Path(__file__).parents[2] / "parity"
OFFLINE = get_protocol("offline")


@cache
def oracle() -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    with np.load(PARITY / "oracles" / "fid_is_kid.npz") as stored:
        arrays = {key: stored[key] for key in stored.files}
    return arrays, json.loads((PARITY / "oracles" / "fid_is_kid.json").read_text())


def wave_sets() -> tuple[np.ndarray, np.ndarray]:
    x = np.sin(0.7 * np.arange(256.0)).reshape(64, 4)
    y = 1.2 * np.sin(0.3 * np.arange(192.0) + 1).reshape(48, 4) + 0.1
    return x, y


def test_own_frechet_distance_equals_fixture_and_library() -> None:
    x, y = wave_sets()
    assert frechet_distance(x, y) == pytest.approx(0.6330276, abs=1e-7)
    statistics = [fid_features_to_statistics(torch.from_numpy(side)) for side in (x, y)]
    library = fid_statistics_to_metric(*statistics, verbose=False)["frechet_inception_distance"]
    assert frechet_distance(x, y) == pytest.approx(library, abs=1e-7)
    assert frechet_distance(x, x) == pytest.approx(0, abs=1e-12)


def test_own_frechet_distance_matches_the_references() -> None:
    z, spec = oracle()
    left, right = z["features_1"], z["features_2"]
    for name, count in (("fid/pytorch_fid", 500), ("fid/few_samples_pytorch_fid", 40)):
        gap = abs(frechet_distance(left[:count], right[:count]) - spec["scalar_values"][name])
        assert gap <= spec["tolerance"][name]["suggested_atol"], name


def test_library_fixtures_of_kid_and_inception_score() -> None:
    x, y = (torch.from_numpy(side) for side in wave_sets())
    found = kid_features_to_metric(x, y, kid_subsets=10, kid_subset_size=32, rng_seed=2020, verbose=False)
    assert found["kernel_inception_distance_mean"] == pytest.approx(0.5691053, abs=1e-7)
    assert found["kernel_inception_distance_std"] == pytest.approx(0.2004652, abs=1e-7)
    logits = torch.from_numpy(3 * np.sin(0.9 * np.arange(200.0)).reshape(40, 5))
    plain = isc_features_to_metric(logits, 4, False)
    shuffled = isc_features_to_metric(logits, 4, True, 2020)
    assert plain["inception_score_mean"] == pytest.approx(2.0709617, abs=1e-7)
    assert plain["inception_score_std"] == pytest.approx(0.0280429, abs=1e-7)
    assert shuffled["inception_score_mean"] == pytest.approx(1.9443954, abs=1e-7)
    assert shuffled["inception_score_std"] == pytest.approx(0.0598697, abs=1e-7)


def test_scores_match_the_oracle_and_carry_intervals() -> None:
    z, spec = oracle()
    logits = torch.from_numpy(z["probabilities"]).log()
    fake = Features(torch.from_numpy(z["features_1"]), torch.cat([logits, logits[:100]]))
    true = Features(torch.from_numpy(z["features_2"]), logits)
    protocol = dataclasses.replace(OFFLINE, kid_subset_size=100)
    found = feature_scores(fake, true, protocol=protocol, network="given")
    values, limits = spec["scalar_values"], spec["tolerance"]
    name = "fid/torch_fidelity_float32_features"
    assert found["fid"].value == pytest.approx(values[name], abs=limits[name]["suggested_atol"])
    name = "kid/100_subsets_of_100"
    assert found["kid"].value == pytest.approx(values[name][0], abs=limits[name]["suggested_atol"])
    assert found["kid"].details["subset_deviation"] == pytest.approx(values[name][1], abs=1e-6)
    assert found["kid"].high - found["kid"].value == pytest.approx(
        1.959964 * values[name][1] * math.sqrt(100 / 400), rel=1e-4
    )
    only = feature_scores(Features(fake.features[:400], logits), true, protocol=protocol)["inception_score"]
    name = "is/torch_fidelity_shuffled_2020"
    assert only.value == pytest.approx(values[name][0], abs=limits[name]["suggested_atol"])
    assert only.details["split_deviation"] == pytest.approx(values[name][1], abs=1e-5)
    for metric in found.values():
        assert metric.low < metric.value < metric.high
        assert (metric.count, metric.details["real"], metric.details["network"]) == (500, 500, "given")


def test_kid_interval_covers_the_truth() -> None:
    rng = np.random.default_rng(5)
    covered = 0
    for _ in range(40):
        sides = [torch.from_numpy(rng.normal(size=(100, 8)).astype(np.float32)) for _ in range(2)]
        sets = [Features(side, side) for side in sides]
        protocol = dataclasses.replace(OFFLINE, metrics=("kid",), kid_subsets=50)
        metric = feature_scores(*sets, protocol=protocol)["kid"]
        assert metric.details["subset_size"] == 50
        covered += metric.low <= 0 <= metric.high
    assert covered >= 33


def test_fid_interval_has_the_spread_of_repeated_draws() -> None:
    rng = np.random.default_rng(6)

    def draw(shift: float) -> torch.Tensor:
        return torch.from_numpy(rng.normal(shift, 1, (400, 6)).astype(np.float32))

    only_fid = dataclasses.replace(OFFLINE, metrics=("fid",))
    values, half_widths = [], []
    for _ in range(25):
        fake, true = draw(0.5), draw(0.0)
        metric = feature_scores(Features(fake), Features(true), protocol=only_fid)["fid"]
        values.append(metric.value)
        half_widths.append(metric.high - metric.value)
    assert np.mean(half_widths) == pytest.approx(1.96 * np.std(values), rel=0.5)


def blobs(count: int, seed: int, side: int = 32) -> np.ndarray:
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 60, (count, side, side, 3))
    images[:, 8:24, 8:24] += rng.integers(0, 190, (count, 1, 1, 3))
    return images.astype(np.uint8)


def probe(side: int = 32) -> Probe:
    torch.manual_seed(0)
    return Probe(
        {"body": ["a", "b", "c"], "wing": list("abcdefgh")}, width=8, image_px=side, feature_dim=16
    ).eval()


def test_offline_scores_tell_same_from_different(tmp_path: Path) -> None:
    network = probe_network(probe())
    real = blobs(80, 1)
    files = []
    for index, image in enumerate(blobs(60, 2, side=48)):
        files.append(tmp_path / f"{index:03}.png")
        write_png(files[-1], image)
    near = image_scores(files, real, protocol=OFFLINE, network=network)
    far = image_scores(255 - blobs(60, 2), real, protocol=OFFLINE, network=network)
    assert near["fid"].value < far["fid"].value / 3
    assert near["kid"].value < far["kid"].value / 3
    assert near["kid"].low <= 0.05
    record = near["fid"].details
    assert (record["generated"], record["real"], record["image_px"]) == (60, 80, 32)
    assert record["weight_hash"] == probe().weight_hash()
    assert near["inception_score"].details["num_classes"] == 8
    again = image_scores(files, real, protocol=OFFLINE, network=probe_network(probe()))
    assert again == near


def test_protocol_and_network_must_belong_together() -> None:
    network = probe_network(probe())
    with pytest.raises(ProtocolError, match="uses the network inception-v3-compat, not probe"):
        image_scores(blobs(40, 0), blobs(40, 1), protocol=get_protocol("clean"), network=network)
    with pytest.raises(ProtocolError, match="without a protocol"):
        image_scores(blobs(40, 0), blobs(40, 1), protocol=None, network=network)


@pytest.mark.parametrize(("generated", "real"), [(19, 40), (40, 3), (0, 40)])
def test_too_few_images_are_refused(generated: int, real: int) -> None:
    network = probe_network(probe())
    with pytest.raises(ProtocolError, match=f"found {generated} and {real}"):
        image_scores(blobs(generated, 0), blobs(real, 1), protocol=OFFLINE, network=network)


def test_missing_inception_names_file_hash_source_and_place(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError) as error:
        inception_network(tmp_path / "weights")
    text = str(error.value)
    for part in (
        INCEPTION_FILE,
        INCEPTION_SHA256,
        INCEPTION_URL,
        str(tmp_path / "weights"),
        "protocol=offline",
    ):
        assert part in text


def test_wrong_inception_files_are_refused_and_nothing_runs(tmp_path: Path) -> None:
    path = tmp_path / INCEPTION_FILE
    path.write_bytes(b"not the file")
    with pytest.raises(CheckpointError, match="expected 6726825d"):
        inception_network(tmp_path)
    canary = tmp_path / "canary"

    class Hostile:
        def __reduce__(self) -> tuple[Any, tuple[str]]:
            return Path.touch, (canary,)

    path.write_bytes(pickle.dumps(Hostile(), protocol=2))
    with pytest.raises(CheckpointError, match="does not hold the Inception network"):
        inception_network(tmp_path, sha256=None)
    assert not canary.exists()
    torch.save({"fc.weight": torch.zeros(2, 2)}, path)
    with pytest.raises(CheckpointError, match="does not hold the Inception network"):
        inception_network(path, sha256=None)


def test_inception_path_with_rule_filled_weights(tmp_path: Path) -> None:
    sys.path.insert(0, str(PARITY))
    try:
        from fill import fill
    finally:
        sys.path.remove(str(PARITY))
    z, spec = oracle()
    layout = spec["state"]["inception"]
    counters = {key: np.zeros(shape, dtype) for key, shape, dtype, kind in layout if kind == "integer"}
    state = {key: torch.from_numpy(np.array(value)) for key, value in fill(layout, counters).items()}
    torch.save(state, tmp_path / INCEPTION_FILE)
    network = inception_network(tmp_path, sha256=None)
    features, logits = network(torch.from_numpy(z["images_u8"]))
    for key, value in (("2048", features), ("logits_unbiased", logits[:, ::8])):
        name = f"inception/rule/torch_fidelity/{key}"
        gap = np.abs(value.numpy().astype(np.float64) - z[name]).max()
        assert gap <= spec["tolerance"][name]["suggested_atol"], key
    protocol = dataclasses.replace(get_protocol("clean"), fid_interval=False, isc_splits=4, kid_subsets=10)
    found = image_scores(blobs(12, 1), blobs(12, 2), protocol=protocol, network=network)
    assert all(math.isfinite(metric.value) for metric in found.values())
    assert found["fid"].details["singular"] is True
    assert found["fid"].low is None
    assert found["fid"].details["network"] == "inception-v3-compat"
    assert found["inception_score"].value >= 1
