"""Scores of a speech encoder: retrieval between speech and images, both ways."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from speech2image.data.corpora import open_corpus
from speech2image.errors import DataError


def evaluate_encoder(scored: Any, protocol: Any, config: dict[str, Any]) -> tuple[list[Any], dict[str, Any]]:
    """Return retrieval metrics of a speech encoder, speech to image and back: by class, or by image."""
    from speech2image.data.front_ends import front_end_of
    from speech2image.metrics.retrieval import (
        class_accuracy,
        recall_at_k,
        renamed,
        sen_mean_average_precision,
        shuffled_recall,
    )
    from speech2image.training.conditions import run_embeddings

    settings = scored.config
    corpus = open_corpus(settings["data"], settings["audio"], config["paths"])
    split = config["split"]
    found = run_embeddings(scored, corpus, front_end_of(settings["audio"]), split)
    records, utterances = corpus.records(split), corpus.utterances(split)
    if not utterances:
        raise DataError(f"split={split}: no utterance to score", "Type: split=test")
    speech = found.arrays["sentence"]
    images = image_embeddings(scored, corpus, split)
    rows, seed = np.array([row for row, _ in utterances]), config["seed"]
    by_image = (settings.get("loss") or {}).get("rivals") == "other_image"  # SpeechCLIP's published measure
    image_ids = np.arange(len(records)) if by_image else np.array([record.class_id for record in records])
    speech_ids = image_ids[rows]
    counted: Any = {"protocol": protocol, "ks": (1, 5, 10), "seed": seed}
    metrics = recall_at_k(speech, images, speech_ids, image_ids, **counted)
    metrics |= renamed(recall_at_k(images, speech, image_ids, speech_ids, **counted), "image_to_speech")
    if len(set(image_ids)) < len(image_ids):
        metrics |= class_accuracy(speech, images[rows], speech_ids, protocol=protocol, seed=seed)
        metrics |= sen_mean_average_precision(images[rows], speech, speech_ids, protocol=protocol)
    if config["bounds"]:
        metrics |= shuffled_recall(speech, images, speech_ids, image_ids, **counted)
    details = {
        "images": len(images),
        "utterances": len(speech),
        "relevance": "image" if by_image else "class",
    }
    details["classes"] = len({record.class_id for record in records})
    return list(metrics.values()), details


def image_embeddings(scored: Any, corpus: Any, split: str) -> np.ndarray:
    """Return `(N, D)` embeddings of the images of a split by a run's image branch or teacher."""
    from speech2image.config.build import build
    from speech2image.data.batches import ImageBatches

    node = scored.config["vision"]
    branch = image_branch(scored)
    if branch is None:
        if "FeatureFile" in str(node.get("_target_")):
            return build(node).read(corpus, split).mean(axis=1)
        raise DataError(f"{scored.path} has no image branch, so images cannot be retrieved with it")
    batches = ImageBatches(corpus, split, 64, scored.config["data"]["image_px"])
    return embed_batches(branch, (batches[step]["image"] for step in range(len(batches))))


def image_branch(scored: Any) -> Any | None:
    """Return the network that puts images into the space of an encoder run; None: it has none."""
    from speech2image.config.build import build
    from speech2image.training.runs import load_encoder

    branch = load_encoder(scored)[1]
    if branch is None and "ClipTower" in str(scored.config["vision"].get("_target_")):
        branch = build(scored.config["vision"])  # an imported SpeechCLIP: CLIP comes from its own file
    return branch


def embed_batches(branch: Any, batches: Iterable[Any]) -> np.ndarray:
    """Return `(N, D)` embeddings of batches `(B, 3, S, S)` uint8."""
    import torch

    from speech2image.images.pyramid import pyramid

    with torch.no_grad():
        rows = [branch(pyramid(images, (images.shape[-1],)).levels[0]).float().numpy() for images in batches]
    return np.concatenate(rows)
