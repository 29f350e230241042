"""`speech2image evaluate`: score a run, or a folder of images, under a named protocol."""

from __future__ import annotations

import dataclasses
import json
import time
from pathlib import Path
from typing import Any

import numpy as np

from speech2image.data.corpora import open_corpus
from speech2image.data.whole import write_whole
from speech2image.errors import ConfigError, DataError

PROBE_PX = 64
"""Side of the images a probe looks at; larger ones are resized: it trains in seconds then."""
_DEFAULT_PROTOCOL = {"spoken_birds": "spoken_birds", "spoken_digits": "spoken_digits"}


def run(config: dict[str, Any]) -> None:
    """Score, print a table, write `metrics.json`, or a file beside it that `metrics_name` names."""
    from speech2image.metrics.protocol import get_protocol
    from speech2image.training.painting import sampler_label
    from speech2image.training.runs import open_run, read_run

    runs = Path(config["paths"]["runs"])
    if config["images"] is not None and config["run"] is None:
        folder = Path(config["images"])
        owner = next((parent for parent in folder.resolve().parents if (parent / "run.json").is_file()), None)
        if owner is None:
            raise ConfigError(
                f"images={folder} lies in no run folder, so its corpus is unknown", "Also type: run=<the run>"
            )
        scored = read_run(owner)
    else:
        scored = open_run(config["run"], runs)
    name = config["protocol"]["name"]
    corpus_name = scored.info["corpus"]
    usual = _DEFAULT_PROTOCOL.get(corpus_name, "offline")
    protocol = get_protocol(usual if name == "auto" else name)
    label = sampler_label(scored, config["sampler"])
    if label and config["images"] is not None:
        raise ConfigError(
            f"images={config['images']} are painted already, sampler={config['sampler']['name']} paints others",
            "Leave out one of them.",
        )
    if scored.stage == "encoder":
        metrics, details = evaluate_encoder(scored, protocol, config)
    elif scored.stage == "codec":
        metrics, details = evaluate_codec(scored, protocol, config)
    else:
        metrics, details = evaluate_generator(scored, protocol, config)
    file = metrics_name("" if protocol.name == usual else protocol.name, config["split"], label)
    path = scored.path / file if config["images"] is None else Path(config["images"]) / "metrics.json"
    details["is_default_sampler"] = not label
    write_metrics(path, protocol, config["split"], metrics, details, scored)
    print(f"{protocol.title} ({protocol.name}, {config['split']} split)")
    print("\n".join(table(metrics)))
    print(path)


# ---- encoders ---------------------------------------------------------------------------------
def evaluate_encoder(scored: Any, protocol: Any, config: dict[str, Any]) -> tuple[list[Any], dict[str, Any]]:
    """Return retrieval metrics of a speech encoder, speech to image and back: by class, or by image."""
    from speech2image.data.front_ends import front_end_of
    from speech2image.metrics.retrieval import class_accuracy, recall_at_k, sen_mean_average_precision
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
    for metric in recall_at_k(images, speech, image_ids, speech_ids, **counted).values():
        name = metric.name.replace("recall@", "recall/image_to_speech@")
        metrics[name] = dataclasses.replace(metric, name=name)
    if len(set(image_ids)) < len(image_ids):
        metrics |= class_accuracy(speech, images[rows], speech_ids, protocol=protocol, seed=seed)
        metrics |= sen_mean_average_precision(images[rows], speech, speech_ids, protocol=protocol)
    details = {
        "images": len(images),
        "utterances": len(speech),
        "relevance": "image" if by_image else "class",
    }
    details["classes"] = len({record.class_id for record in records})
    return list(metrics.values()), details


def image_embeddings(scored: Any, corpus: Any, split: str) -> np.ndarray:
    """Return `(N, D)` embeddings of the images of a split by a run's image branch or teacher."""
    import torch

    from speech2image.config.build import build
    from speech2image.data.batches import ImageBatches
    from speech2image.images.pyramid import pyramid
    from speech2image.training.runs import load_encoder

    branch = load_encoder(scored)[1]
    if branch is None:
        node = scored.config["vision"]
        if "FeatureFile" in str(node.get("_target_")):
            return build(node).read(corpus, split).mean(axis=1)
        if "ClipTower" not in str(node.get("_target_")):
            raise DataError(f"{scored.path} has no image branch, so images cannot be retrieved with it")
        branch = build(node)  # an imported SpeechCLIP: CLIP comes from its own file
    px = scored.config["data"]["image_px"]
    rows = []
    batches = ImageBatches(corpus, split, 64, px)
    with torch.no_grad():
        for step in range(len(batches)):
            rows.append(branch(pyramid(batches[step]["image"], (px,)).levels[0]).float().numpy())
    return np.concatenate(rows)


# ---- generators -------------------------------------------------------------------------------
def evaluate_generator(
    scored: Any, protocol: Any, config: dict[str, Any]
) -> tuple[list[Any], dict[str, Any]]:
    """Return accuracy of attributes and FID, IS, KID of the images a generator paints."""
    from speech2image.app.generate import split_folder
    from speech2image.metrics.attributes import attribute_accuracy
    from speech2image.metrics.imageset import ImageSet, common_size, read_generated
    from speech2image.metrics.networks import inception_network, probe_network
    from speech2image.metrics.scores import image_scores

    settings = scored.config
    audio = _audio_of(scored, config)
    corpus = open_corpus(settings["data"], audio, config["paths"])
    folder = Path(config["images"] or split_folder(scored, config["split"], config["sampler"]))
    if not (folder / "manifest.jsonl").is_file() and config["images"] is None:
        _generate_split(scored, config)
    known = [utterance.key for _, utterance in corpus.utterances(config["split"])]
    generated = read_generated(folder, known)
    metrics: list[Any] = []
    real = real_arrays(corpus, config["split"], settings["data"]["image_px"])
    if protocol.network == "inception-v3-compat" or config["inception"]:
        network = inception_network(Path(config["paths"]["weights"]))
        if config["inception"]:
            from speech2image.metrics.protocol import get_protocol

            scores = image_scores(generated.files, real, protocol=get_protocol("clean"), network=network)
            metrics += scores.values()
    if protocol.network == "probe":
        probe, probe_metrics = corpus_probe(corpus, settings["data"]["image_px"], protocol)
        metrics += probe_metrics
        spoken = [dict(attributes or {}) for attributes in generated.column("attributes")]
        if any(set(said) & set(probe.classes) for said in spoken):
            common_size(generated.files)
            arrays = ImageSet(generated.files, probe.image_px).array()
            metrics += attribute_accuracy(
                probe.predict(arrays), probe.classes, spoken, protocol=protocol,
                groups=generated.column("class_id"), seed=config["seed"],
            ).values()  # fmt: skip
        network = probe_network(probe)
    if not config["inception"] or protocol.network == "probe":
        metrics += image_scores(generated.files, real, protocol=protocol, network=network).values()
    details = {"generated": len(generated.files), "real": len(real), "folder": str(folder)}
    if (folder / "sampling.json").is_file():
        details["sampling"] = json.loads((folder / "sampling.json").read_text())
    return metrics, details


# ---- codecs -----------------------------------------------------------------------------------
def evaluate_codec(scored: Any, protocol: Any, config: dict[str, Any]) -> tuple[list[Any], dict[str, Any]]:
    """Return what is left of real images after the codec: FID to the originals, attributes where known."""
    from speech2image.metrics.imageset import ImageSet
    from speech2image.metrics.networks import inception_network, probe_network
    from speech2image.metrics.scores import image_scores

    settings, split = scored.config, config["split"]
    corpus = open_corpus(settings["data"], settings["audio"], config["paths"])
    image_px = settings["data"]["image_px"]
    real = real_arrays(corpus, split, image_px)
    painted, usage = repainted(scored, real)
    metrics: list[Any] = []
    if protocol.network == "probe":
        probe, metrics = corpus_probe(corpus, image_px, protocol)
        labels, _ = _labels(corpus, split, protocol, probe.classes)
        groups = [record.class_id for record in corpus.records(split)]
        arrays = ImageSet(painted, probe.image_px).array()
        for metric in probe.accuracy(arrays, labels, protocol=protocol, groups=groups).values():
            metrics.append(dataclasses.replace(metric, name=metric.name.replace("probe", "codec")))
        network = probe_network(probe)
    else:
        network = inception_network(Path(config["paths"]["weights"]))
    metrics += image_scores(painted, real, protocol=protocol, network=network).values()
    return metrics, {"images": len(real), "codes_used": usage.used, "code_perplexity": usage.perplexity}


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


def _audio_of(scored: Any, config: dict[str, Any]) -> dict[str, Any]:
    from speech2image.training.conditions import resolve_condition

    condition = resolve_condition({**scored.config, "paths": config["paths"]})
    assert condition is not None
    return condition.audio


def _generate_split(scored: Any, config: dict[str, Any]) -> None:
    from speech2image.app.generate import generate

    asked: dict[str, Any] = {
        "speech": None,
        "text": None,
        "voice": None,
        "class_id": None,
        "num_images": 1,
        "condition": "sample",
        "out": None,
        "strip": 0,
    }
    asked |= {"sampler": config["sampler"]}
    asked |= {"seed": 100, "max_utterances": None, "split": config["split"], "paths": config["paths"]}
    generate(scored, asked)


def real_arrays(corpus: Any, split: str, image_px: int) -> np.ndarray:
    """Return the real images of a split, centre crops, `(N, S, S, 3)` uint8."""
    from speech2image.data.batches import ImageBatches

    batches = ImageBatches(corpus, split, 64, image_px)
    parts = [batches[step]["image"].permute(0, 2, 3, 1).numpy() for step in range(len(batches))]
    return np.concatenate(parts)


def corpus_probe(corpus: Any, image_px: int, protocol: Any) -> tuple[Any, list[Any]]:
    """Return the probe of a corpus, trained once on its real training images, and its own accuracy."""
    from speech2image.metrics.imageset import ImageSet
    from speech2image.metrics.probe import Probe, rotation_task, train_probe

    probe_px = min(image_px, PROBE_PX)
    path = corpus.folder / f"probe_{probe_px}px.safetensors"
    train = ImageSet(real_arrays(corpus, "train", image_px), probe_px).array()
    labels, classes = _labels(corpus, "train", protocol)
    supervised = bool(classes)
    if not supervised:
        train, labels, classes = rotation_task(train)
    if path.is_file():
        probe = Probe.load(path)
    else:
        mirror = supervised and corpus.manifest.meta.get("mirror", True)
        probe = train_probe(train, labels, classes, flip=mirror)
        probe.save(path)
    metrics: list[Any] = []
    if supervised and "class" not in classes:
        test = ImageSet(real_arrays(corpus, "test", image_px), probe_px).array()
        test_labels, _ = _labels(corpus, "test", protocol, classes)
        groups = [record.class_id for record in corpus.records("test")]
        metrics = list(probe.accuracy(test, test_labels, protocol=protocol, groups=groups).values())
    return probe, metrics


def _labels(
    corpus: Any, split: str, protocol: Any, classes: dict[str, list[str]] | None = None
) -> tuple[dict[str, np.ndarray], dict[str, list[str]]]:
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


# ---- writing ----------------------------------------------------------------------------------
def metrics_name(protocol: str, split: str, sampler: str) -> str:
    """Return the file name of an evaluation: one for each protocol, split and sampler of a run.

    Args:
        protocol: its name; empty: the corpus's own.
        split: the test split is not named.
        sampler: label of a sampler; empty: the run's own.

    >>> metrics_name("", "test", ""), metrics_name("clean", "test", "halton-16")
    ('metrics.json', 'metrics-clean-halton-16.json')
    """
    parts = ["metrics", protocol, "" if split == "test" else split, sampler]
    return "-".join(filter(None, parts)) + ".json"


def write_metrics(
    path: Path, protocol: Any, split: str, metrics: list[Any], details: dict[str, Any], scored: Any
) -> None:
    """Write a file of metrics whole or not at all."""
    from importlib.metadata import version

    content = {
        "protocol": protocol.name,
        "split": split,
        "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "metrics": [metric.to_dict() for metric in metrics],
        "details": {**details, "protocol": protocol.to_dict()},
        "versions": {
            name: version(name) for name in ("speech2image", "torch", "torch_fidelity", "torchmetrics")
        },
        "weights": {"run": scored.info["run_id"]},
    }
    write_whole(path, (json.dumps(content, indent=1) + "\n").encode())


def table(metrics: list[Any]) -> list[str]:
    """Return the metrics as aligned lines: value, interval, count, chance."""
    lines = [f"  {'metric':<28}{'value':>9}  {'95 % interval':<20}{'count':>7}  chance"]
    for metric in metrics:
        scale, suffix = (100.0, " %") if metric.unit == "fraction" else (1.0, "")
        spread = "" if metric.low is None else f"[{metric.low * scale:.4g}, {metric.high * scale:.4g}]"
        chance = "" if metric.chance is None else f"{metric.chance * scale:.4g}{suffix}"
        value = f"{metric.value * scale:.4g}{suffix}"
        lines.append(f"  {metric.name:<28}{value:>9}  {spread:<20}{metric.count:>7}  {chance}")
    return lines
