"""A classifier of the corpus's own classes, for an inception score that knows them.

Trained on real training images of classes that have enough of them, a share of the images of each
class held out; its accuracy on those always stands beside the scores.  Test classes are never used.
The network is `probe.Probe`; attributes are in `attributes.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from speech2image.errors import ProtocolError
from speech2image.metrics.bootstrap import interval
from speech2image.metrics.probe import Probe, train_probe
from speech2image.metrics.protocol import Metric, Protocol, measured

Pixels = npt.NDArray[np.uint8]
MIN_PER_CLASS = 5
"""Images a class must have: four to learn from and one to check with."""
VALIDATION_SHARE = 0.2


def held_out(labels: npt.ArrayLike, share: float = VALIDATION_SHARE, seed: int = 0) -> npt.NDArray[np.bool_]:
    """Choose a share of the images of each class, at least one, `(N,)`.

    >>> held_out([0] * 10 + [1] * 5).reshape(3, 5).sum(axis=1).tolist()[-1]
    1
    """
    names = np.asarray(labels)
    rng, chosen = np.random.default_rng(seed), np.zeros(len(names), dtype=bool)
    for name in np.unique(names):
        rows = np.flatnonzero(names == name)
        chosen[rng.permutation(rows)[: max(1, round(share * len(rows)))]] = True
    return chosen


def train_classifier(
    images: Pixels,
    class_names: Sequence[str],
    *,
    protocol: Protocol | None,
    flip: bool = True,
    max_steps: int = 1600,
    seed: int = 0,
) -> tuple[Probe, Metric]:
    """Train a classifier on real training images and check it on held-out images of the same classes.

    Args:
        images: `(N, 3, S, S)` uint8, of the training split only.
        class_names: class of each image.
        protocol: protocol of the accuracy.
        flip: mirror half of the images.
        max_steps: batches seen.
        seed: seed of the split and of training.

    Returns: the classifier (one head, `class`) and `classifier_accuracy/held_out`.
    Raises:  ProtocolError: fewer than two classes have `MIN_PER_CLASS` images.
    """
    names, counts = np.unique(np.asarray(class_names), return_counts=True)
    large = names[counts >= MIN_PER_CLASS]
    if len(large) < 2:
        raise ProtocolError(
            f"a classifier of the corpus's classes needs two classes with {MIN_PER_CLASS} training images,"
            f" found {len(large)} of {len(names)} (the largest has {counts.max()})",
            "Leave out classifier=true for this corpus.",
        )
    usable = np.isin(np.asarray(class_names), large)
    labels = np.searchsorted(large, np.asarray(class_names)[usable])
    kept, checks = images[usable], held_out(labels, seed=seed)
    classes = {"class": [str(name) for name in large]}
    probe = train_probe(
        kept[~checks], {"class": labels[~checks]}, classes, seed, flip=flip, max_steps=max_steps
    )
    hits = probe.predict(kept[checks])["class"] == labels[checks]
    probe.real_accuracy["class"] = float(hits.mean())
    return probe, accuracy_metric(hits, labels[checks], "held_out", len(large), protocol, seed)


def class_hits(probe: Probe, images: Pixels, class_names: Sequence[Any]) -> npt.NDArray[np.bool_] | None:
    """Return whether each image is taken for its class; None where the classifier does not know them all.

    Args:
        probe: of `train_classifier`.
        images: `(N, 3, S, S)` uint8, e.g. generated.
        class_names: class of each.
    """
    number = {name: index for index, name in enumerate(probe.classes["class"])}
    if not set(class_names) <= set(number):
        return None
    hits: npt.NDArray[np.bool_] = probe.predict(images)["class"] == [number[name] for name in class_names]
    return hits


def accuracy_metric(
    hits: npt.NDArray[np.bool_], groups: npt.ArrayLike, what: str, num_classes: int,
    protocol: Protocol | None, seed: int = 0,
) -> Metric:  # fmt: skip
    """Return `classifier_accuracy/<what>` of hits `(N,)`, resampled by `groups`."""
    spread = interval(hits, seed=seed, groups=groups)
    notes = {"held_out": "classifier on real training-class images it was not trained on"}
    return measured(
        protocol, f"classifier_accuracy/{what}", spread, count=spread.count, unit="fraction", chance=1 / num_classes,
        note=notes.get(what, "images taken for the class of their utterance"), num_classes=num_classes,
    )  # fmt: skip
