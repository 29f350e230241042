"""The feature networks of an evaluation: the probe of a corpus, and published ones from local files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

PROBE_PX = 64
"""Side of the images a probe looks at; larger ones are resized: it trains in seconds then."""


def network_of(
    name: str, corpus: Any, image_px: int, protocol: Any, config: dict[str, Any]
) -> tuple[Any, Any]:
    """Return a feature network and, where it is the corpus's probe, that probe.

    Args:
        name: `probe`, or a published network whose weights lie in `paths.weights`.
        corpus: prepared corpus: the probe is trained on its real training images, once.
        image_px: side of the images of the run.
        protocol: names the attributes of the probe.
        config: of the verb.

    Raises:  CheckpointError: the weights are missing or have another hash.
    """
    from speech2image.metrics.networks import open_network, probe_network

    if name == "probe":
        probe = corpus_probe(corpus, image_px, protocol)
        return probe_network(probe), probe
    return open_network(name, Path(config["paths"]["weights"]), device_name()), None


def retrieval_network(protocol: Any, config: dict[str, Any]) -> Any:
    """Return the network of image retrieval, fed as the protocol says.

    Raises:  CheckpointError: its weights are missing or have another hash.
    """
    from speech2image.metrics.networks import open_network

    weights = Path(config["paths"]["weights"])
    return open_network(protocol.retrieval_network, weights, device_name(), protocol.retrieval_input)


def score_network(protocol: Any, config: dict[str, Any]) -> Any | None:
    """Return the network of the inception score where it is another one; None: it is the same.

    Raises:  CheckpointError: as `retrieval_network`.
    """
    from speech2image.metrics.networks import open_network

    if protocol.isc_network in ("", protocol.network):
        return None
    return open_network(protocol.isc_network, Path(config["paths"]["weights"]), device_name())


def real_cache(corpus: Any, split: str) -> Any:
    """Return where statistics of the real images of a split are kept: beside the prepared corpus."""
    from speech2image.metrics.features import Cache

    return Cache(corpus.folder / "statistics", f"{corpus.manifest.corpus}-{split}")


def device_name() -> str:
    """Return `cuda` where there is a GPU, else `cpu`."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def corpus_probe(corpus: Any, image_px: int, protocol: Any) -> Any:
    """Return the probe of a corpus, trained once on its real training images and kept beside them."""
    from speech2image.app.score_real import prepared_arrays
    from speech2image.metrics.imageset import ImageSet
    from speech2image.metrics.probe import Probe, rotation_task, train_probe

    probe_px = min(image_px, PROBE_PX)
    path = corpus.folder / f"probe_{probe_px}px.safetensors"
    if path.is_file():
        return Probe.load(path)
    train = ImageSet(prepared_arrays(corpus, "train", image_px), probe_px).array()
    labels, classes = attribute_labels(corpus, "train", protocol)
    supervised = bool(classes)
    if not supervised:
        train, labels, classes = rotation_task(train)
    mirror = supervised and corpus.manifest.meta.get("mirror", True)
    probe = train_probe(train, labels, classes, flip=mirror)
    probe.save(path)
    return probe


def probe_accuracy(probe: Any, corpus: Any, image_px: int, protocol: Any) -> list[Any]:
    """Return the accuracy of a probe on real test images; nothing where it knows no attribute of theirs."""
    from speech2image.app.score_real import prepared_arrays
    from speech2image.metrics.imageset import ImageSet

    if "class" in probe.classes or not any(name in protocol.attributes for name in probe.classes):
        return []
    test = ImageSet(prepared_arrays(corpus, "test", image_px), probe.image_px).array()
    labels, _ = attribute_labels(corpus, "test", protocol, probe.classes)
    groups = [record.class_id for record in corpus.records("test")]
    return list(probe.accuracy(test, labels, protocol=protocol, groups=groups).values())


def attribute_labels(
    corpus: Any, split: str, protocol: Any, classes: dict[str, list[str]] | None = None
) -> tuple[dict[str, np.ndarray], dict[str, list[str]]]:
    """Return what the images of a split show, head to class numbers `(N,)`, and the classes of each head.

    Args:
        corpus: prepared corpus.
        split: its split.
        protocol: names the attributes; where images have none of them, their classes serve.
        classes: those of a trained probe; None: found in the corpus.
    """
    records = corpus.records(split)
    names = [name for name in protocol.attributes if any(name in record.attributes for record in records)]
    values = [{name: record.attributes.get(name) for name in names} for record in records]
    if not names and len({record.class_id for record in records}) < len(records):
        names = ["class"]
        values = [{"class": record.class_name} for record in records]
    if classes is None and names == ["class"]:
        classes = {"class": sorted({value["class"] for value in values})}
    elif classes is None:  # every value of the corpus, so that a small training split lacks no head
        everywhere = corpus.manifest.records
        classes = {
            name: sorted({r.attributes[name] for r in everywhere if name in r.attributes}) for name in names
        }
    labels = {}
    for name in names:
        number = {value: index for index, value in enumerate(classes[name])}
        labels[name] = np.array([number.get(str(value[name]), -1) for value in values])
    return labels, classes
