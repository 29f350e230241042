"""Does the generated image show what the utterance said?  Accuracy per attribute, with a control.

Predictions come from a probe (`probe.py`), spoken attributes from the corpus.  An attribute counts
only where the utterance names it; the control scores the same images against other utterances.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from speech2image.errors import ProtocolError
from speech2image.metrics.bootstrap import interval, percentile_ends, replicate_statistic
from speech2image.metrics.protocol import Metric, Protocol, measured

Flags = npt.NDArray[np.bool_]


def derangement(count: int, seed: int, groups: npt.ArrayLike | None = None) -> npt.NDArray[np.int64]:
    """Return a random permutation that leaves no item, and no group, in its place where possible.

    Args:
        count: number of items, at least 2.
        seed: seed of the draw.
        groups: `(count,)` labels; an item is then given one of another group.  Where one group
            holds more than half of the items that cannot be kept for all of them.

    Raises:  ProtocolError: fewer than two items or groups.
    """
    labels = np.arange(count) if groups is None else np.asarray(groups)
    if count < 2 or len(np.unique(labels)) < 2:
        raise ProtocolError(
            f"shuffled speech needs utterances of at least two kinds, found {count} item(s) of"
            f" {len(np.unique(labels))} kind(s)",
            "Generate for more utterances.",
        )
    rng = np.random.default_rng(seed)
    order = rng.permutation(count)
    names, dense, sizes = np.unique(labels[order], return_inverse=True, return_counts=True)
    rank = rng.permutation(len(names))[dense.reshape(-1)]
    order = order[np.argsort(rank, kind="stable")]
    shift = int(sizes.max())
    result = np.empty(count, dtype=np.int64)
    result[order] = np.roll(order, -shift)
    for left, right in rng.integers(0, count, (4 * count, 2)):
        swapped = (result[right], result[left])
        if labels[swapped[0]] != labels[left] and labels[swapped[1]] != labels[right]:
            result[left], result[right] = swapped
    return result


def attribute_hits(
    predictions: Mapping[str, npt.NDArray[Any]],
    classes: Mapping[str, Sequence[str]],
    spoken: Sequence[Mapping[str, str]],
    attributes: Sequence[str],
) -> dict[str, tuple[Flags, Flags]]:
    """Return for each attribute which images count and which of them are right, `(N,)` each.

    Raises:  ProtocolError: lengths differ, an unknown attribute, or a spoken value the probe has
        no class for.
    """
    result = {}
    for name in attributes:
        if name not in predictions:
            raise ProtocolError(
                f"the probe has no head for the attribute '{name}'; it has {', '.join(predictions)}",
                "Train the probe on this corpus or choose another protocol.",
            )
        if len(predictions[name]) != len(spoken):
            raise ProtocolError(
                f"{len(predictions[name])} predictions but {len(spoken)} utterances for '{name}'",
                "Generate one image for each utterance of the manifest.",
            )
        number = {value: index for index, value in enumerate(classes[name])}
        unknown = sorted({said[name] for said in spoken if name in said} - set(number))
        if unknown:
            raise ProtocolError(
                f"utterances name the {name} {', '.join(unknown)}, which the probe never saw; it knows"
                f" {', '.join(classes[name])}",
                "Train the probe on images that show every value.",
            )
        target = np.array([number[said[name]] if name in said else -1 for said in spoken])
        counted = target >= 0
        result[name] = (counted, counted & (np.asarray(predictions[name]) == target))
    return result


def attribute_accuracy(
    predictions: Mapping[str, npt.NDArray[Any]],
    classes: Mapping[str, Sequence[str]],
    spoken: Sequence[Mapping[str, str]],
    *,
    protocol: Protocol | None,
    attributes: Sequence[str] | None = None,
    groups: npt.ArrayLike | None = None,
    seed: int = 0,
) -> dict[str, Metric]:
    """Measure how often generated images show the attributes their utterances name.

    Args:
        predictions: `Probe.predict` on the generated images, head to `(N,)` class numbers.
        classes: head to its class names (`Probe.classes`).
        spoken: what each utterance says, attribute to value, one mapping an image.
        protocol: protocol of the numbers.
        attributes: which attributes; None: those of the protocol, or all heads that are spoken of.
        groups: `(N,)` class of each image: resampled together.  None: images are independent.
        seed: seed of the bootstrap and of the control.

    Returns: `attribute_accuracy/<name>` for each attribute, `attribute_accuracy/mean` over the
        attributes (each weighs the same), and `shuffled_speech/mean`, the control: the same images
        against the attributes of other utterances.

    Raises:  ProtocolError: as in `attribute_hits`, or no utterance names any of the attributes.
    """
    wanted = list(attributes or (protocol.attributes if protocol else ()) or predictions)
    named = [name for name in wanted if any(name in said for said in spoken)]
    if not named:
        raise ProtocolError(
            f"no utterance names any of {', '.join(wanted)}",
            "Use a corpus with spoken attributes, or a protocol without attribute accuracy.",
        )
    hits = attribute_hits(predictions, classes, spoken, named)
    result = {}
    for name in named:
        counted, right = hits[name]
        spread = interval(
            right[counted], seed=seed, groups=None if groups is None else np.asarray(groups)[counted]
        )
        result[f"attribute_accuracy/{name}"] = measured(
            protocol,
            f"attribute_accuracy/{name}",
            spread,
            count=spread.count,
            unit="fraction",
            chance=1 / len(classes[name]),
            note=f"images whose utterance names the {name}",
            most_common_share=_most_common_share(spoken, name),
        )
    result["attribute_accuracy/mean"] = _mean_metric(
        protocol, "attribute_accuracy/mean", hits, classes, groups, seed, f"mean over {', '.join(named)}"
    )
    other = derangement(len(spoken), seed)
    shuffled = attribute_hits(predictions, classes, [spoken[index] for index in other], named)
    result["shuffled_speech/mean"] = _mean_metric(
        protocol,
        "shuffled_speech/mean",
        shuffled,
        classes,
        groups,
        seed,
        "control: the same images against other utterances; should be at chance",
    )
    return result


def _most_common_share(spoken: Sequence[Mapping[str, str]], name: str) -> float:
    values = np.unique([said[name] for said in spoken if name in said], return_counts=True)[1]
    return float(values.max() / values.sum())


def _mean_metric(
    protocol: Protocol | None,
    name: str,
    hits: Mapping[str, tuple[Flags, Flags]],
    classes: Mapping[str, Sequence[str]],
    groups: npt.ArrayLike | None,
    seed: int,
    note: str,
) -> Metric:
    counted = np.stack([pair[0] for pair in hits.values()], axis=1).astype(np.float64)
    right = np.stack([pair[1] for pair in hits.values()], axis=1).astype(np.float64)
    value = float((right.sum(axis=0) / counted.sum(axis=0)).mean())

    def mean_over_attributes(counts: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        totals = counts @ counted
        shares = np.divide(counts @ right, totals, out=np.full_like(totals, np.nan), where=totals > 0)
        means: npt.NDArray[np.float64] = shares.mean(axis=1)
        return means

    draws = replicate_statistic(mean_over_attributes, len(counted), seed=seed, groups=groups)
    low, high = percentile_ends(draws, value)
    return measured(
        protocol,
        name,
        value,
        low=low,
        high=high,
        count=int(counted.any(axis=1).sum()),
        unit="fraction",
        chance=float(np.mean([1 / len(classes[attribute]) for attribute in hits])),
        note=note,
        attributes=list(hits),
        named_attributes=int(counted.sum()),
    )
