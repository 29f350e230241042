"""The feature networks of an evaluation: the probe of a corpus, and published ones from local files."""

from __future__ import annotations

from pathlib import Path
from typing import Any


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
    from speech2image.training.probes import corpus_probe

    if name == "probe":
        probe = corpus_probe(corpus, image_px, protocol.attributes)
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


def probe_accuracy(probe: Any, corpus: Any, image_px: int, protocol: Any) -> list[Any]:
    """Return the accuracy of a probe on real test images; nothing where it knows no attribute of theirs."""
    from speech2image.app.score_real import prepared_arrays
    from speech2image.metrics.imageset import ImageSet
    from speech2image.training.probes import probe_labels

    if "class" in probe.classes or not any(name in protocol.attributes for name in probe.classes):
        return []
    test = ImageSet(prepared_arrays(corpus, "test", image_px), probe.image_px).array()
    labels, _ = probe_labels(corpus, "test", protocol.attributes, probe.classes)
    groups = [record.class_id for record in corpus.records("test")]
    return list(probe.accuracy(test, labels, protocol=protocol, groups=groups).values())
