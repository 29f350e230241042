"""FID, IS, KID, precision, recall, density and coverage of generated images, with intervals and counts.

Features are extracted once and shared; where only FID (and IS) is asked for, moments are streamed and
nothing is kept.  Intervals: FID by its influence on every image, KID by its subsets, IS by its splits,
the others by resampling images.  Which images, network and sizes is the protocol's business.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from speech2image.errors import ProtocolError
from speech2image.metrics.bootstrap import interval, percentile_ends, replicate_statistic
from speech2image.metrics.features import Cache, Features, extract, real_features
from speech2image.metrics.frechet import frechet_distance, frechet_influences, moments_distance
from speech2image.metrics.imageset import ImageSet, Source, common_size
from speech2image.metrics.inception_score import inception_score
from speech2image.metrics.kernel import kernel_distance
from speech2image.metrics.neighbours import Neighbourhoods, f_score, neighbourhoods
from speech2image.metrics.networks import FeatureNetwork
from speech2image.metrics.protocol import Metric, Protocol, measured

__all__ = [
    "Cache",
    "Features",
    "Sides",
    "extract",
    "feature_scores",
    "frechet_distance",
    "image_features",
    "image_scores",
]

_Z95 = NormalDist().inv_cdf(0.975)
_NEIGHBOURS = ("precision", "recall_prdc", "f_score", "density", "coverage")
_PREPARED_PX = 256


def image_scores(
    generated: Source,
    real: Source,
    *,
    protocol: Protocol | None,
    network: FeatureNetwork,
    isc_network: FeatureNetwork | None = None,
    cache: Cache | Path | None = None,
    groups: npt.ArrayLike | None = None,
) -> dict[str, Metric]:
    """Measure how close generated images are to real ones, under a protocol.

    Args:
        generated: files or arrays, all of one square size.
        real: files or arrays, boxes cropped as the protocol says; resized here.
        protocol: defines metrics (those of its `metrics` that are of images), splits, subsets, seeds.
        network: `open_network(...)` or `probe_network(...)`; must be the protocol's kind.
        isc_network: network of the inception score where the protocol names another one.
        cache: where statistics of real images are kept; None: nowhere.
        groups: `(N,)` what was generated for one image or class: drawn together in intervals.

    Returns: `fid`, `inception_score`, `kid`, `precision`, `recall_prdc`, `f_score`, `density`, `coverage`,
        as far as the protocol defines them.
    Raises:  ProtocolError: no protocol, another network than it names, too few images, sizes mixed.
        DataError: an image is empty, damaged or none.
    """
    sides = image_features(
        generated, real, protocol=protocol, network=network, isc_network=isc_network, cache=cache
    )
    return feature_scores(sides.fake, sides.true, protocol=protocol, groups=groups, **sides.details)


@dataclass(frozen=True)
class Sides:
    """What `feature_scores` takes of both sets, extracted once: features, and what is recorded with each number."""

    fake: Features
    true: Features
    details: dict[str, Any]


def image_features(
    generated: Source,
    real: Source,
    *,
    protocol: Protocol | None,
    network: FeatureNetwork,
    isc_network: FeatureNetwork | None = None,
    cache: Cache | Path | None = None,
    keep_rows: bool = False,
) -> Sides:
    """Run the networks of a protocol over both sets; arguments and errors as in `image_scores`.

    Args:    keep_rows: features of every image, also where moments would do for the protocol.
    """
    protocol = _required(protocol)
    _check_networks(protocol, network, isc_network)
    _check_counts(protocol, len(generated), len(real))
    image_px = common_size(generated) if network.image_px is None else network.image_px
    fake_set, true_set = prepared_sets(generated, real, protocol, image_px)
    keep = keep_rows or _needs_rows(protocol, len(generated), len(real))
    wants_score = "inception_score" in protocol.metrics
    own_logits = wants_score and (isc_network is None or isc_network.name == network.name)
    fake = extract(network, fake_set, "generated images", keep=keep, logits=own_logits)
    if wants_score and not own_logits:
        assert isc_network is not None
        scored = extract(isc_network, fake_set, f"generated images ({isc_network.name})", keep=False)
        fake = Features(fake.features, scored.logits, fake.moments)
    details = {
        "image_px": image_px,
        "preparation": true_set.preparation,
        "network": network.name,
        "weight_hash": network.weight_hash,
        "isc_network": network.name if own_logits or isc_network is None else isc_network.name,
    }
    return Sides(fake, real_features(network, true_set, cache, keep), details)


def prepared_sets(
    generated: Source, real: Source, protocol: Protocol, image_px: int
) -> tuple[ImageSet, ImageSet]:
    """Return both sides as the protocol brings them to squares.

    Args:    image_px: side of the generated images, or of the network where it has one.
    """
    if protocol.prepare == "squash256":
        sides = [ImageSet(side, _PREPARED_PX, "squash", protocol.real_resize) for side in (generated, real)]
        return sides[0], sides[1]
    real_px = _PREPARED_PX if protocol.prepare == "short256_crop" else image_px
    return ImageSet(generated, image_px), ImageSet(real, real_px, "crop", protocol.real_resize)


def feature_scores(
    fake: Features,
    true: Features,
    *,
    protocol: Protocol | None,
    groups: npt.ArrayLike | None = None,
    **details: Any,
) -> dict[str, Metric]:
    """Measure everything of `image_scores` on extracted features; `details` are recorded with each.

    Raises:  ProtocolError: as in `image_scores`.
    """
    protocol = _required(protocol)
    _check_counts(protocol, len(fake), len(true))
    details |= {"generated": len(fake), "real": len(true), "seed": protocol.metric_seed}
    found: dict[str, Metric] = {}
    if "inception_score" in protocol.metrics:
        found["inception_score"] = _inception_score(fake, protocol, details)
    labels = None if groups is None else np.asarray(groups)
    if protocol.equal_counts and fake.features is not None and true.features is not None:
        count = min(len(fake), len(true))
        rows, fake = _drawn(fake, count, protocol.metric_seed)
        labels = None if labels is None else labels[rows]
        _, true = _drawn(true, count, protocol.metric_seed)
        details |= {"equal_counts": count}
    if "fid" in protocol.metrics:
        found["fid"] = _fid(fake, true, protocol, labels, details)
    if "kid" in protocol.metrics:
        found["kid"] = _kid(fake, true, protocol, details)
    if any(name in protocol.metrics for name in _NEIGHBOURS):
        found |= _neighbours(fake, true, protocol, labels, details)
    first = [name for name in ("fid", "inception_score", "kid") if name in found]
    return {name: found[name] for name in (*first, *(name for name in found if name not in first))}


def _drawn(side: Features, count: int, seed: int) -> tuple[npt.NDArray[np.int64], Features]:
    """Return `count` rows drawn by seed, in their order; all of them where there are no more."""
    assert side.features is not None
    if len(side.features) == count:
        return np.arange(count), side
    rows = np.sort(np.random.RandomState(seed).permutation(len(side.features))[:count])
    return rows, Features(side.features[torch.from_numpy(rows)])


def _fid(
    fake: Features,
    true: Features,
    protocol: Protocol,
    groups: npt.NDArray[Any] | None,
    details: dict[str, Any],
) -> Metric:
    spread = None
    if fake.features is None or true.features is None:
        value = moments_distance(*fake.mean_and_covariance(), *true.mean_and_covariance())
        width = len(fake.mean_and_covariance()[0])
    else:
        width = fake.features.shape[1]
        if protocol.fid_interval:
            distance = frechet_influences(fake.features, true.features)
            value, spread = distance.value, _Z95 * distance.deviation(groups)
        else:
            value = frechet_distance(fake.features, true.features)
    return measured(
        protocol,
        "fid",
        value,
        low=None if spread is None else max(0.0, value - spread),
        high=None if spread is None else value + spread,
        count=len(fake),
        note="interval: sampling of the images (infinitesimal jackknife); FID of few images is biased upwards",
        feature_dim=width,
        singular=min(len(fake), len(true)) <= width,
        **details,
    )


def _inception_score(fake: Features, protocol: Protocol, details: dict[str, Any]) -> Metric:
    if fake.logits is None:
        raise ProtocolError("an inception score was asked for without logits", "Extract them too.")
    value, deviation = inception_score(
        fake.logits,
        protocol.isc_splits,
        shuffle_seed=protocol.metric_seed if protocol.isc_shuffle else None,
        drop_rest=protocol.isc_drop_rest,
        batch=protocol.isc_batch,
    )
    spread = _Z95 * deviation / math.sqrt(max(1, protocol.isc_splits - 1))
    order = "shuffled splits" if protocol.isc_shuffle else "contiguous splits in file order"
    return measured(
        protocol,
        "inception_score",
        value,
        low=value - spread,
        high=value + spread,
        count=len(fake.logits),
        chance=1.0,
        note=f"mean of {protocol.isc_splits} {order}; published tables give their deviation",
        splits=protocol.isc_splits,
        split_deviation=deviation,
        num_classes=fake.logits.shape[1],
        **details,
    )


def _kid(fake: Features, true: Features, protocol: Protocol, details: dict[str, Any]) -> Metric:
    assert fake.features is not None and true.features is not None
    smaller = min(len(fake), len(true))
    size = protocol.kid_subset_size if smaller >= 2 * protocol.kid_subset_size else smaller // 2
    value, deviation = kernel_distance(
        fake.features,
        true.features,
        subsets=protocol.kid_subsets,
        subset_size=size,
        seed=protocol.metric_seed,
    )
    spread = _Z95 * deviation * math.sqrt(size / (smaller - size))
    return measured(
        protocol,
        "kid",
        value,
        low=value - spread,
        high=value + spread,
        count=len(fake),
        note="unbiased, so it may be slightly negative; interval from its subsets (delete-d jackknife)",
        subsets=protocol.kid_subsets,
        subset_size=size,
        subset_deviation=deviation,
        **details,
    )


def _neighbours(
    fake: Features,
    true: Features,
    protocol: Protocol,
    groups: npt.NDArray[Any] | None,
    details: dict[str, Any],
) -> dict[str, Metric]:
    assert fake.features is not None and true.features is not None
    found = neighbourhoods(fake.features, true.features, protocol.prc_k, protocol.prdc_k)
    result = {}
    for name, values, k, what in (
        ("precision", found.precision, protocol.prc_k, "generated images near a real one"),
        ("recall_prdc", found.recall, protocol.prc_k, "real images near a generated one"),
        ("density", found.density, protocol.prdc_k, "real neighbourhoods around a generated image, over k"),
        ("coverage", found.coverage, protocol.prdc_k, "real neighbourhoods that hold a generated image"),
    ):
        if name in protocol.metrics:
            labels = groups if len(values) == len(fake) and name in ("precision", "density") else None
            spread = interval(values, seed=protocol.metric_seed, groups=labels)
            result[name] = measured(
                protocol,
                name,
                spread,
                count=len(fake),
                unit="" if name == "density" else "fraction",
                note=f"{what}; k = {k}; interval: images resampled, neighbourhoods held fixed",
                neighbour=k,
                **details,
            )
    if "f_score" in protocol.metrics:
        result["f_score"] = _f_score(found, protocol, groups, details)
    return result


def _f_score(
    found: Neighbourhoods, protocol: Protocol, groups: npt.NDArray[Any] | None, details: dict[str, Any]
) -> Metric:
    draws = [
        replicate_statistic(
            lambda counts, hits=hits: (counts @ hits) / counts.sum(axis=1),  # type: ignore[misc]
            len(hits),
            seed=protocol.metric_seed + index,
            groups=labels,
        )
        for index, (hits, labels) in enumerate(((found.precision, groups), (found.recall, None)))
    ]
    replicates = np.array([f_score(p, r) for p, r in zip(*draws, strict=True)])
    low, high = percentile_ends(replicates, found.f_score)
    return measured(
        protocol,
        "f_score",
        found.f_score,
        low=low,
        high=high,
        count=len(found.precision),
        unit="fraction",
        note=f"harmonic mean of precision and recall; k = {protocol.prc_k}",
        neighbour=protocol.prc_k,
        **details,
    )


def _required(protocol: Protocol | None) -> Protocol:
    if protocol is None:
        raise ProtocolError(
            "FID, IS and KID were asked for without a protocol", "Name one: protocol=offline."
        )
    return protocol


def _needs_rows(protocol: Protocol, generated: int, real: int) -> bool:
    if any(name in protocol.metrics for name in ("kid", *_NEIGHBOURS)):
        return True
    unequal = protocol.equal_counts and generated != real
    return "fid" in protocol.metrics and (protocol.fid_interval or unequal)


def _check_networks(protocol: Protocol, network: FeatureNetwork, isc_network: FeatureNetwork | None) -> None:
    if protocol.network != network.name:
        raise ProtocolError(
            f"protocol '{protocol.name}' uses the network {protocol.network}, not {network.name}",
            "Choose the protocol that belongs to the network.",
        )
    wanted = protocol.isc_network or protocol.network
    given = network.name if isc_network is None else isc_network.name
    if "inception_score" in protocol.metrics and given != wanted:
        raise ProtocolError(
            f"protocol '{protocol.name}' takes its inception score from the network {wanted}, not {given}",
            "Put its weight file into the weights folder, or type protocol.legacy=false.",
        )


def _check_counts(protocol: Protocol, generated: int, real: int) -> None:
    nearest = 4
    if any(name in protocol.metrics for name in _NEIGHBOURS):
        nearest = max(4, protocol.prc_k + 1, protocol.prdc_k + 1)
    splits = protocol.isc_splits if "inception_score" in protocol.metrics else 0
    needed = max(nearest, 2 * splits)
    if generated < needed or real < nearest:
        raise ProtocolError(
            f"protocol '{protocol.name}' needs at least {needed} generated images (two for each of"
            f" {splits} splits) and {nearest} real ones, found {generated} and {real}",
            "Generate for the whole split: speech2image generate run=<run folder>.",
        )
