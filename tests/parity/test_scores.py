"""Every recorded value of the oracle `fid_is_kid`, from given features and from rule-filled Inception."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fill import fill

from speech2image.metrics.frechet import frechet_distance, frechet_influences, moments_distance
from speech2image.metrics.inception import Inception, fid_body
from speech2image.metrics.inception_score import inception_score, negative_log_top_probability
from speech2image.metrics.kernel import kernel_distance, sliced_distance
from speech2image.metrics.neighbours import neighbourhoods
from speech2image.metrics.statistics import Moments

ORACLES = Path(__file__).parent / "oracles"


@cache
def oracle() -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    with np.load(ORACLES / "fid_is_kid.npz") as stored:
        arrays = {key: stored[key] for key in stored.files}
    return arrays, json.loads((ORACLES / "fid_is_kid.json").read_text())


def close(name: str, found: Any) -> None:
    z, spec = oracle()
    expected = z[name] if name in z else np.array(spec["scalar_values"][name])
    gap = np.abs(np.asarray(found, dtype=np.float64) - expected).max()
    limit = max(spec["tolerance"][name]["suggested_atol"], 1e-10)  # recorded zeros: rounding of the reference
    assert gap <= limit, f"{name}: {gap:.2e} > {limit:.2e}"


@pytest.mark.parametrize("count", [500, 40])
def test_frechet_distance_of_both_libraries(count: int) -> None:
    z, _ = oracle()
    left, right = z["features_1"][:count], z["features_2"][:count]
    names = (
        ("fid/pytorch_fid", "fid/torch_fidelity_float32_features")
        if count == 500
        else ("fid/few_samples_pytorch_fid", "fid/few_samples_torch_fidelity")
    )
    streamed = []
    for side in (left, right):
        moments = Moments(64)
        for start in range(0, count, 33):
            moments.update(torch.from_numpy(side[start : start + 33]))
        streamed += [moments.mean, moments.covariance()]
    for value in (
        frechet_distance(left, right),
        frechet_influences(left, right).value,
        moments_distance(*streamed),
    ):
        for name in names:
            close(name, value)


def test_same_set_and_its_moments() -> None:
    z, _ = oracle()
    features = z["features_1"]
    for name in ("fid/same_set_pytorch_fid", "fid/same_set_torch_fidelity"):
        close(name, frechet_distance(features, features))
    moments = Moments(64)
    for start in range(0, 500, 128):
        moments.update(torch.from_numpy(features[start : start + 128]))
    close("fid/mu1", moments.mean.numpy())
    close("fid/sigma1_sub", moments.covariance().numpy()[::5, ::5])


def test_inception_scores_of_every_script() -> None:
    z, _ = oracle()
    logits = torch.from_numpy(z["probabilities"]).double().log()
    close("is/torch_fidelity_in_order", inception_score(logits, shuffle_seed=None))
    close("is/torch_fidelity_shuffled_2020", inception_score(logits))
    close("is/torch_fidelity_one_split", inception_score(logits, 1, shuffle_seed=None))
    close("is/s2igan_script", inception_score(logits, shuffle_seed=None, drop_rest=True))
    close("is/stackgan_v2_trainer", inception_score(logits, shuffle_seed=None))
    close("is/stackgan_v2_nlpp", negative_log_top_probability(logits))


def test_kid_with_its_subsets() -> None:
    z, _ = oracle()
    sides = [torch.from_numpy(z[f"features_{index}"]) for index in (1, 2)]
    close("kid/100_subsets_of_100", kernel_distance(*sides, subset_size=100))
    close("kid/13_subsets_of_50_seed_7", kernel_distance(*sides, subsets=13, subset_size=50, seed=7))
    square = {"kid_kernel_poly_degree": 2, "kid_kernel_poly_gamma": 0.01, "kid_kernel_poly_coef0": 0.5}
    close("kid/degree2_gamma_0.01", kernel_distance(*sides, subsets=20, subset_size=100, **square))
    gaussian = {"kid_kernel": "rbf", "kid_kernel_rbf_sigma": 10.0}
    close("kid/rbf_100_subsets_of_100", kernel_distance(*sides, subset_size=100, **gaussian))
    close("mind/1000_projections_seed_2020", sliced_distance(*sides))


@pytest.mark.parametrize("k", [3, 5])
def test_precision_recall_and_f(k: int) -> None:
    z, _ = oracle()
    found = neighbourhoods(*(torch.from_numpy(z[f"features_{index}"]) for index in (1, 2)), prc_k=k)
    values = [found.precision.mean(), found.recall.mean(), found.f_score]
    for name in (f"prc/k{k}", f"prc/k{k}_low_memory"):
        close(name, values)


@cache
def filled() -> dict[str, torch.Tensor]:
    layout = oracle()[1]["state"]["inception"]
    counters = {key: np.zeros(shape, dtype) for key, shape, dtype, kind in layout if kind == "integer"}
    return {key: torch.from_numpy(np.array(value)) for key, value in fill(layout, counters).items()}


@pytest.mark.parametrize(
    ("form", "feeding"), [("pytorch_fid", "half_pixel"), ("torch_fidelity", "tensorflow")]
)
def test_inception_with_rule_filled_weights(form: str, feeding: Any) -> None:
    z, _ = oracle()
    images = torch.from_numpy(z["images_u8"])
    assert (
        sum(value.numel() for key, value in filled().items() if "running" not in key and "num" not in key)
        == 23_850_960
    )
    network = Inception(fid_body(filled()), feeding, use_bias=False)
    close(f"inception/input/{form}_sub", network.prepare(images)[:, :, ::17, ::17])
    with torch.no_grad():
        for width in (64, 192, 768, 2048):
            close(f"inception/rule/{form}/{width}", network.pooled(images, width))
        if form == "torch_fidelity":
            features, logits = network(images)
            close("inception/rule/torch_fidelity/logits_unbiased", logits[:, ::8])
            close("inception/rule/torch_fidelity/logits", network.fc(features)[:, ::8])
