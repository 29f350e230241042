"""The probe of a corpus: a small classifier of its own real images, trained once and kept beside it.

Here: which labels it learns, real images as it sees them, and its features of a real split, all cached in the folder
of the corpus.  The network and its training are in `metrics/probe.py`; `quality.py` looks through it during training.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import safetensors.numpy
import torch
from safetensors import SafetensorError

from speech2image.data.batches import ImageBatches
from speech2image.data.corpus import Corpus
from speech2image.data.whole import write_whole
from speech2image.errors import DataError
from speech2image.metrics.imageset import ImageSet
from speech2image.metrics.probe import Probe, rotation_task, train_probe
from speech2image.metrics.protocol import PROTOCOLS
from speech2image.safe.tensors import read_header

PROBE_PX = 64
"""Side of the images a probe looks at; larger ones are resized: it trains in seconds then."""

Labels = dict[str, npt.NDArray[np.int64]]
Classes = dict[str, list[str]]


def usual_protocol(corpus: str) -> str:
    """Return the name of the protocol a corpus is scored under: its own, else `offline`."""
    return corpus if corpus in PROTOCOLS else "offline"


def corpus_probe(corpus: Corpus, image_px: int, attributes: Sequence[str]) -> Probe:
    """Return the probe of a corpus, trained once on its real training images.

    Args:
        corpus: prepared corpus.
        image_px: side of the images of the run; the probe sees them at `min(image_px, PROBE_PX)`.
        attributes: what it learns to name (`Protocol.attributes`); where the corpus has none of them its classes,
            and without classes quarter turns.
    Cost:    some 20 s on two cores where there is no file yet; torch's random stream is left as it was.
    """
    side = min(image_px, PROBE_PX)
    path = corpus.folder / f"probe_{side}px.safetensors"
    with torch.random.fork_rng(devices=[]):  # a new network draws weights, also where a file replaces them
        if path.is_file():
            return Probe.load(path)
        images = real_images(corpus, "train", image_px, side)
        labels, classes = probe_labels(corpus, "train", attributes)
        mirror = bool(classes) and corpus.manifest.meta.get("mirror", True)
        if not classes:
            images, labels, classes = rotation_task(images)
        probe = train_probe(images, labels, classes, flip=mirror)
    try:
        probe.save(path)
    except OSError as error:
        warnings.warn(f"{path}: the probe is not kept ({error.strerror})", stacklevel=2)
    return probe


def probe_labels(
    corpus: Corpus, split: str, attributes: Sequence[str], classes: Mapping[str, Sequence[str]] | None = None
) -> tuple[Labels, Classes]:
    """Return what is to be seen on each image of a split, as class numbers, and the names of the classes.

    Args:
        attributes: names of attributes; those the corpus lacks are left out, without any its classes stand in.
        classes: of an existing probe; None: every value in the corpus (classes: in the split).
    Returns: name to `(N,)` int64 with -1 where unknown, and name to class names; both empty: nothing is known.
    """
    records = corpus.records(split)
    names = [name for name in attributes if any(name in record.attributes for record in records)]
    values = [{name: record.attributes.get(name) for name in names} for record in records]
    if not names and len({record.class_id for record in records}) < len(records):
        names, values = ["class"], [{"class": record.class_name} for record in records]
    if classes is None and names == ["class"]:
        classes = {"class": sorted({str(value["class"]) for value in values})}
    elif classes is None:  # every value of the corpus, so that a small training split lacks no head
        everywhere = corpus.manifest.records
        classes = {
            name: sorted({r.attributes[name] for r in everywhere if name in r.attributes}) for name in names
        }
    labels = {}
    for name in names:
        number = {value: index for index, value in enumerate(classes[name])}
        labels[name] = np.array([number.get(str(value[name]), -1) for value in values], np.int64)
    return labels, {name: list(found) for name, found in classes.items()}


def real_images(corpus: Corpus, split: str, image_px: int, side: int) -> npt.NDArray[np.uint8]:
    """Return the real images of a split, centre crops resized to `side`, `(N, 3, side, side)` uint8."""
    batches = ImageBatches(corpus, split, 64, image_px)
    pixels = (batches[step]["image"].permute(0, 2, 3, 1).numpy() for step in range(len(batches)))
    return np.concatenate([ImageSet(some, side).array() for some in pixels])


def real_features(corpus: Corpus, split: str, image_px: int, probe: Probe) -> npt.NDArray[np.float32]:
    """Return a probe's features of the real images of a split, `(N, F)`; computed once for each corpus.

    The file beside the corpus is named after weights, split and size; a damaged one is made anew.
    """
    path = corpus.folder / f"real_{split}_{image_px}px-{probe.weight_hash()[:8]}.safetensors"
    keys = hashlib.sha256("\n".join(record.key for record in corpus.records(split)).encode()).hexdigest()
    kept = _read_features(path, keys)
    if kept is not None:
        return kept
    features = probe.features(real_images(corpus, split, image_px, probe.image_px))
    content = safetensors.numpy.save({"features": features}, metadata={"images": keys})
    try:
        write_whole(path, content)
    except DataError as error:
        warnings.warn(f"features of the real images are not kept: {error.message}", stacklevel=2)
    return features


def _read_features(path: Path, keys: str) -> npt.NDArray[np.float32] | None:
    try:
        if read_header(path).metadata.get("images") == keys:
            with safetensors.safe_open(path, framework="numpy") as file:
                return np.asarray(file.get_tensor("features"))
    except (OSError, ValueError, SafetensorError):
        pass
    return None
