"""Scores of a codec: what is left of real images after encoding and decoding."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from speech2image.app.score_real import prepared_arrays, real_set
from speech2image.data.corpora import open_corpus


def evaluate_codec(scored: Any, protocol: Any, config: dict[str, Any]) -> tuple[list[Any], dict[str, Any]]:
    """Return what is left of real images after the codec: FID to the originals, attributes where known."""
    from speech2image.app.score_bounds import half_bounds_of
    from speech2image.app.score_networks import (
        network_of,
        probe_accuracy,
        real_cache,
        score_network,
    )
    from speech2image.metrics.imageset import ImageSet
    from speech2image.metrics.scores import image_scores
    from speech2image.training.probes import probe_labels

    settings, split = scored.config, config["split"]
    corpus = open_corpus(settings["data"], settings["audio"], config["paths"])
    image_px = settings["data"]["image_px"]
    images = prepared_arrays(corpus, split, image_px)
    real = real_set(corpus, protocol, split, image_px)
    painted, usage = repainted(scored, images)
    network, probe = network_of(protocol.network, corpus, image_px, protocol, config)
    metrics: list[Any] = []
    if probe is not None:
        metrics += probe_accuracy(probe, corpus, image_px, protocol)
        labels, _ = probe_labels(corpus, split, protocol.attributes, probe.classes)
        groups = [record.class_id for record in corpus.records(split)]
        arrays = ImageSet(painted, probe.image_px).array()
        for metric in probe.accuracy(arrays, labels, protocol=protocol, groups=groups).values():
            metrics.append(dataclasses.replace(metric, name=metric.name.replace("probe", "codec")))
    metrics += image_scores(
        painted, real.images, protocol=protocol, network=network,
        isc_network=score_network(protocol, config), cache=real_cache(corpus, split),
    ).values()  # fmt: skip
    if config["bounds"]:
        metrics += half_bounds_of(network, painted, real.images, image_px, protocol, config["seed"])
    details = {
        "images": len(images), "codes_used": usage.used, "code_perplexity": usage.perplexity,
        "real": len(real.records), "real_set": real.how,
    }  # fmt: skip
    return metrics, details


def repainted(scored: Any, real: np.ndarray) -> tuple[np.ndarray, Any]:
    """Return images `(N, S, S, 3)` uint8 after encoding and decoding, and which codes they took."""
    import torch

    from speech2image.codecs.code_map import code_usage, count_codes
    from speech2image.images.grid import to_uint8
    from speech2image.images.pyramid import pyramid
    from speech2image.training.runs import load_codec

    codec, parts = load_codec(scored), []
    counts = torch.zeros(codec.num_tokens, dtype=torch.int64)
    for start in range(0, len(real), 64):
        pixels = torch.from_numpy(real[start : start + 64]).permute(0, 3, 1, 2)
        tokens = codec.encode(pyramid(pixels, (pixels.shape[-1],)).levels[0])
        counts += count_codes(tokens, codec.num_tokens)
        parts.append(to_uint8(codec.decode(tokens)))
    return np.concatenate(parts), code_usage(counts)
