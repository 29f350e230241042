"""FID, IS and KID of a set of generated images, with intervals and counts.

The arithmetic is torch-fidelity's; features are extracted once and shared by the three.  Intervals:
FID by resampling features, KID by its subsets, IS by its splits.  Which images, which network and
which sizes is the protocol's business (`protocol.py`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import DataLoader
from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
from torch_fidelity.metric_isc import isc_features_to_metric
from torch_fidelity.metric_kid import kid_features_to_metric
from tqdm import tqdm

from speech2image.errors import ProtocolError
from speech2image.metrics.bootstrap import resampling_counts
from speech2image.metrics.imageset import ImageSet, Source, common_size
from speech2image.metrics.networks import FeatureNetwork
from speech2image.metrics.protocol import Metric, Protocol, measured

_Z95 = NormalDist().inv_cdf(0.975)
_MANY_IMAGES = 2000


@dataclass(frozen=True)
class Features:
    """What a feature network said about a set: `features` `(N, F)` and `logits` `(N, classes)`."""

    features: Tensor
    logits: Tensor


@torch.no_grad()
def extract(network: FeatureNetwork, images: ImageSet, batch_size: int = 64, what: str = "img") -> Features:
    """Run a feature network over a set of images, in order.

    Args:
        network: the feature network.
        images: images of one size.
        batch_size: images a batch.
        what: word for the progress bar.
    """
    device = next(network.extractor.parameters()).device
    workers = 2 if len(images) > _MANY_IMAGES else 0
    features, logits = [], []
    with tqdm(total=len(images), unit="img", desc=f"features of {what}", disable=None) as bar:
        for batch in DataLoader(images, batch_size=batch_size, num_workers=workers):
            found = network(batch.to(device))
            features.append(found[0].cpu())
            logits.append(found[1].cpu())
            bar.update(len(batch))
    return Features(torch.cat(features), torch.cat(logits))


def image_scores(
    generated: Source,
    real: Source,
    *,
    protocol: Protocol | None,
    network: FeatureNetwork,
    batch_size: int = 64,
) -> dict[str, Metric]:
    """Measure FID, IS and KID of generated against real images under a protocol.

    Args:
        generated: files or arrays, all of one square size.
        real: files or arrays as prepared (boxes cropped); resized as the protocol says.
        protocol: defines metrics, splits, subsets and seeds.
        network: `probe_network(...)` or `inception_network(...)`; must be the protocol's kind.
        batch_size: images a batch.

    Returns: `fid`, `inception_score` and `kid`.
    Raises:  ProtocolError: no protocol, another network than it names, too few images, sizes mixed.
    """
    if protocol is None:
        raise ProtocolError(
            "FID, IS and KID were asked for without a protocol", "Name one: protocol=offline."
        )
    if protocol.network != network.name:
        raise ProtocolError(
            f"protocol '{protocol.name}' uses the network {protocol.network}, not {network.name}",
            "Choose the protocol that belongs to the network.",
        )
    _check_counts(protocol, len(generated), len(real))
    image_px = network.image_px or common_size(generated)
    fake = extract(network, ImageSet(generated, image_px), batch_size, "generated images")
    true = extract(network, ImageSet(real, image_px), batch_size, "real images")
    return feature_scores(
        fake,
        true,
        protocol=protocol,
        image_px=image_px,
        network=network.name,
        weight_hash=network.weight_hash,
    )


def feature_scores(
    fake: Features, true: Features, *, protocol: Protocol | None, **details: Any
) -> dict[str, Metric]:
    """Measure FID, IS and KID on extracted features; `details` are recorded with each.

    Raises:  ProtocolError: as in `image_scores`.
    """
    if protocol is None:
        raise ProtocolError(
            "FID, IS and KID were asked for without a protocol", "Name one: protocol=offline."
        )
    _check_counts(protocol, len(fake.features), len(true.features))
    details |= {"generated": len(fake.features), "real": len(true.features), "seed": protocol.metric_seed}
    return {
        "fid": _fid(fake.features, true.features, protocol, details),
        "inception_score": _inception_score(fake.logits, protocol, details),
        "kid": _kid(fake.features, true.features, protocol, details),
    }


def frechet_distance(left: npt.NDArray[Any], right: npt.NDArray[Any]) -> float:
    """Return the Fréchet distance of two feature sets, `(N, F)` and `(M, F)`, by one SVD.

    The trace of the root of the product of covariances is the nuclear norm of the product of the
    centred matrices, so no matrix root is needed and few samples are no special case.

    Source:  Heusel et al. 2017, eq. 6.  Differs: arithmetic only, equal to ten digits in float64.
    Cost:    one singular value decomposition of order min(N, M, F).
    """
    left, right = np.asarray(left, dtype=np.float64), np.asarray(right, dtype=np.float64)
    distance = float(((left.mean(axis=0) - right.mean(axis=0)) ** 2).sum())
    left, right = (side - side.mean(axis=0) for side in (left, right))
    left, right = (side / math.sqrt(len(side) - 1) for side in (left, right))
    small_left, small_right = (_triangle(side) for side in (left, right))
    nuclear = float(np.linalg.svd(small_left @ small_right.T, compute_uv=False).sum())
    return distance + float((left**2).sum() + (right**2).sum()) - 2 * nuclear


def _triangle(matrix: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return the smaller matrix of equal Gram matrix: the R factor of a tall one."""
    if len(matrix) <= matrix.shape[1]:
        return matrix
    return np.asarray(np.linalg.qr(matrix, mode="r"))


def _fid(fake: Tensor, true: Tensor, protocol: Protocol, details: dict[str, Any]) -> Metric:
    statistics = [fid_features_to_statistics(side) for side in (fake, true)]
    value = fid_statistics_to_metric(*statistics, verbose=False)["frechet_inception_distance"]
    spread = _fid_spread(fake, true, protocol)
    return measured(
        protocol,
        "fid",
        value,
        low=None if spread is None else max(0.0, value - spread),
        high=None if spread is None else value + spread,
        count=len(fake),
        note="interval: spread over resampled images; FID of few images is biased upwards",
        feature_dim=fake.shape[1],
        singular=min(len(fake), len(true)) <= fake.shape[1],
        replicates=protocol.fid_replicates,
        **details,
    )


def _fid_spread(fake: Tensor, true: Tensor, protocol: Protocol) -> float | None:
    """Return half the width of the interval of FID from resampled features of both sides."""
    if protocol.fid_replicates < 2:
        return None
    resampled = []
    for index, side in enumerate((fake, true)):
        rows = np.asarray(side, dtype=np.float64)
        blocks = resampling_counts(len(rows), protocol.fid_replicates, protocol.metric_seed + index)
        counts = np.concatenate(list(blocks)).astype(np.int64)
        resampled.append((rows, counts))
    (left, left_counts), (right, right_counts) = resampled
    draws = [
        frechet_distance(left.repeat(drawn, axis=0), right.repeat(other, axis=0))
        for drawn, other in zip(left_counts, right_counts, strict=True)
    ]
    return _Z95 * float(np.std(draws))


def _inception_score(logits: Tensor, protocol: Protocol, details: dict[str, Any]) -> Metric:
    found = isc_features_to_metric(logits, protocol.isc_splits, True, protocol.metric_seed)
    value, deviation = found["inception_score_mean"], found["inception_score_std"]
    spread = _Z95 * deviation / math.sqrt(protocol.isc_splits - 1)
    return measured(
        protocol,
        "inception_score",
        value,
        low=value - spread,
        high=value + spread,
        count=len(logits),
        chance=1.0,
        note=f"mean of {protocol.isc_splits} shuffled splits; published tables give their deviation",
        splits=protocol.isc_splits,
        split_deviation=deviation,
        num_classes=logits.shape[1],
        **details,
    )


def _kid(fake: Tensor, true: Tensor, protocol: Protocol, details: dict[str, Any]) -> Metric:
    smaller = min(len(fake), len(true))
    size = protocol.kid_subset_size if smaller >= 2 * protocol.kid_subset_size else smaller // 2
    found = kid_features_to_metric(
        fake,
        true,
        kid_subsets=protocol.kid_subsets,
        kid_subset_size=size,
        rng_seed=protocol.metric_seed,
        verbose=False,
    )
    value = found["kernel_inception_distance_mean"]
    deviation = found["kernel_inception_distance_std"]
    spread = _Z95 * deviation * math.sqrt(size / (smaller - size))
    return measured(
        protocol,
        "kid",
        value,
        low=value - spread,
        high=value + spread,
        count=len(fake),
        chance=None,
        note="unbiased, so it may be slightly negative; interval from its subsets (delete-d jackknife)",
        subsets=protocol.kid_subsets,
        subset_size=size,
        subset_deviation=deviation,
        **details,
    )


def _check_counts(protocol: Protocol, generated: int, real: int) -> None:
    needed = max(4, 2 * protocol.isc_splits)
    if generated < needed or real < 4:
        raise ProtocolError(
            f"protocol '{protocol.name}' needs at least {needed} generated images (two for each of"
            f" {protocol.isc_splits} splits) and 4 real ones, found {generated} and {real}",
            "Generate for the whole split: speech2image generate run=<run folder>.",
        )
