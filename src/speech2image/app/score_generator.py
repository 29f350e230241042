"""Scores of a generator: one folder of images for each seed of generation, against the real images of its corpus."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from speech2image.data.corpora import open_corpus
from speech2image.errors import ConfigError, DataError
from speech2image.report.journal import read_json_lines
from speech2image.report.measures import read_object

DEFAULT_SEED = 100
"""Seed of generation of the folder without a seed in its name."""


@dataclass
class Training:
    """Training images of a corpus as the copying check needs them.

    Attributes:
        small: `(M, 3, 32, 32)` uint8.
        shown: `(P, 3, S, S)` uint8, some of them at full size, to be planted.
        features: `(M, F)`.
        keys: image keys.
        predicted: what the probe says of them, head to `(M,)`; empty without one.
    """

    small: np.ndarray
    shown: np.ndarray
    features: torch.Tensor
    keys: list[str]
    predicted: dict[str, np.ndarray]


@dataclass
class FolderImages:
    """One folder of generated images beside its real set.

    Attributes:
        source: generated images, as the network sees them.
        records: their lines of the manifest.
        image_px: side they are compared at.
        real_images: the other side.
        real_records: what it shows.
        sides: features of both, and logits, extracted once.
        nearest: nearest training images; None: bounds are switched off.
        groups: class of each generated image.
    """

    source: Any
    records: tuple[dict[str, Any], ...]
    image_px: int
    real_images: Any
    real_records: Sequence[Any]
    sides: Any
    nearest: Any = None
    groups: list[Any] = field(default_factory=list)

    @property
    def fake(self) -> torch.Tensor:
        """Return features of the generated images, `(N, F)`."""
        features: torch.Tensor = self.sides.fake.features
        return features

    @property
    def real(self) -> torch.Tensor:
        """Return features of the real images, `(M, F)`."""
        features: torch.Tensor = self.sides.true.features
        return features


class Bench:
    """What all folders of one evaluation share: corpus, networks, training images.

    Args:
        scored: run of a generator.
        protocol: of the evaluation.
        config: of the verb.
    """

    def __init__(self, scored: Any, protocol: Any, config: dict[str, Any]) -> None:
        from speech2image.app.score_networks import network_of, score_network
        from speech2image.training.conditions import resolve_condition

        self.scored, self.protocol, self.config = scored, protocol, config
        self.condition = resolve_condition({**scored.config, "paths": config["paths"]})
        assert self.condition is not None
        self.settings = scored.config["data"]
        self.corpus = open_corpus(self.settings, self.condition.audio, config["paths"])
        self.network, self.probe = network_of(
            protocol.network, self.corpus, self.settings["image_px"], protocol, config
        )
        self.isc_network = score_network(protocol, config)
        self.skipped: dict[str, str] = {}
        self.classifier: tuple[Any, Any] | None = None
        self._train: dict[int, Training] = {}

    @property
    def split(self) -> str:
        """Return the split that is scored."""
        return str(self.config["split"])

    def features(self, images: Any, image_px: int, what: str) -> torch.Tensor:
        """Return features `(N, F)` of images by the network of the protocol."""
        from speech2image.metrics.features import extract
        from speech2image.metrics.imageset import ImageSet

        shown = ImageSet(images, self.network.image_px or image_px)
        found = extract(self.network, shown, what, logits=False).features
        assert found is not None
        return found

    def train(self, image_px: int) -> Training:
        """Return the training images, prepared like the real set."""
        if image_px not in self._train:
            from speech2image.app.score_bounds import SMALL_PX
            from speech2image.app.score_networks import real_cache
            from speech2image.app.score_real import real_set
            from speech2image.metrics.features import real_features
            from speech2image.metrics.imageset import ImageSet

            real = real_set(self.corpus, self.protocol, "train", image_px)
            shown = np.random.default_rng(0).permutation(len(real.records))[:60]
            predicted: dict[str, np.ndarray] = {}
            if self.probe is not None:
                predicted = self.probe.predict(ImageSet(real.images, self.probe.image_px).array())
            shown_px = self.network.image_px or image_px
            known = real_features(
                self.network, ImageSet(real.images, shown_px), real_cache(self.corpus, "train")
            )
            assert known.features is not None
            self._train[image_px] = Training(
                ImageSet(real.images, SMALL_PX).array(),
                ImageSet([real.images[row] for row in shown], image_px).array(),
                known.features,
                [record.key for record in real.records], predicted,
            )  # fmt: skip
        return self._train[image_px]

    @cached_property
    def clip(self) -> tuple[Any, Any]:
        """Return CLIP's image tower and text encoder."""
        from speech2image.app.score_match import clip_towers

        return clip_towers(self.config["clip_weights"], self.config["clip_network"])

    @cached_property
    def utterances(self) -> list[str]:
        """Return the keys of the utterances of the split."""
        return [utterance.key for _, utterance in self.corpus.utterances(self.split)]


def evaluate_generator(
    scored: Any, protocol: Any, config: dict[str, Any]
) -> tuple[list[Any], dict[str, Any], list[dict[str, Any]]]:
    """Score the images of a generator, of one seed or of several.

    Returns: metrics (means over the seeds), details, and one line for each generated image.
    """
    from speech2image.app.score_seeds import combine_seeds

    bench = Bench(scored, protocol, config)
    folders = folders_of(bench)
    scores = [score_folder(bench, folder) for folder in folders]
    metrics = combine_seeds([part[0] for part in scores], list(folders.values()) if len(folders) > 1 else [])
    details = dict(scores[0][1])
    if len(scores) > 1:
        details["seeds"] = [part[1] for part in scores]
    if bench.skipped:
        details["skipped"] = bench.skipped
    return metrics, details, [line for part in scores for line in part[2]]


# ---- which images -----------------------------------------------------------------------------
def folders_of(bench: Bench) -> dict[Path, int]:
    """Return the folders to score with their seeds; images that are missing are generated first.

    Without `seeds` it is the folder of the run as it lies there, and as many further seeds as the
    protocol asks for; with `seeds` exactly those, each whole.
    """
    from speech2image.app.generate import split_folder

    config, seeds = bench.config, bench.config["seeds"]
    if config["images"] is not None:
        if seeds:
            raise ConfigError(
                f"images={config['images']} are painted already, seeds={seeds} paint others",
                "Leave out one of them.",
            )
        return {Path(config["images"]): DEFAULT_SEED}
    base = split_folder(bench.scored, bench.split, config["sampler"])
    each = images_each(bench)
    if each > 1:
        base = base.with_name(f"{base.name}-x{each}")
    if not seeds:
        count = bench.protocol.num_seeds
        found = {base: DEFAULT_SEED}
        if not (base / "manifest.jsonl").is_file() or (count > 1 and not is_whole(base, DEFAULT_SEED, bench)):
            generate_split(bench, base, DEFAULT_SEED, each)
        seeds = range(DEFAULT_SEED + 1, DEFAULT_SEED + count)
    else:
        found = {}
    for seed in seeds:
        folder = base if seed == DEFAULT_SEED else base.with_name(f"{base.name}-seed{seed}")
        if not is_whole(folder, seed, bench):
            generate_split(bench, folder, seed, each)
        found[folder] = seed
    return found


def images_each(bench: Bench) -> int:
    """Return how many images the protocol asks for an utterance."""
    wanted = bench.protocol.num_generated
    if wanted is None or not bench.utterances:
        return int(bench.protocol.samples_per_utterance)
    return int(-(-wanted // len(bench.utterances)))


def is_whole(folder: Path, seed: int, bench: Bench) -> bool:
    """Return whether a folder holds the whole split, painted with this seed."""
    path = folder / "manifest.jsonl"
    if not path.is_file():
        return False
    lines = read_json_lines(path)[0]
    painted = {line.get("utterance") for line in lines}
    return painted >= set(bench.utterances) and {line.get("seed") for line in lines} == {seed}


def generate_split(bench: Bench, folder: Path, seed: int, num_images: int) -> None:
    """Paint the whole split into a folder."""
    from speech2image.app.generate import generate

    asked: dict[str, Any] = {
        "speech": None, "text": None, "voice": None, "class_id": None, "num_images": num_images,
        "condition": "sample", "out": str(folder), "strip": 0, "sampler": bench.config["sampler"],
        "seed": seed, "max_utterances": None, "split": bench.split, "paths": bench.config["paths"],
    }  # fmt: skip
    generate(bench.scored, asked)


# ---- one folder -------------------------------------------------------------------------------
def score_folder(bench: Bench, folder: Path) -> tuple[list[Any], dict[str, Any], list[dict[str, Any]]]:
    """Score the images of one folder; return metrics, details and one line for each image."""
    from speech2image.app.score_bounds import attribute_bounds, copying, image_bounds
    from speech2image.app.score_match import classifier_metrics, clip_metrics, matching_metrics
    from speech2image.app.score_writing import item_lines
    from speech2image.metrics.scores import feature_scores

    images, counts = read_folder(bench, folder)
    metrics: list[Any] = []
    spoken = [dict(record.get("attributes") or {}) for record in images.records]
    hits: list[dict[str, bool]] = [{} for _ in images.records]
    says_attributes = bench.probe is not None and any(set(said) & set(bench.probe.classes) for said in spoken)
    if says_attributes:
        found, hits = attribute_metrics(bench, images, spoken)
        metrics += found
    sides = images.sides
    metrics += feature_scores(
        sides.fake, sides.true, protocol=bench.protocol, groups=images.groups, **sides.details
    ).values()
    found, ranks, matched = matching_metrics(bench, images)
    metrics += found + classifier_metrics(bench, images) + clip_metrics(bench, images)
    flags = None
    if images.nearest is not None:
        found, flags = copying(bench, images, images.groups)
        metrics += image_bounds(bench, images) + found
        metrics += attribute_bounds(bench, images, spoken) if says_attributes else []
    details: dict[str, Any] = {**counts, **matched, "folder": str(folder)}
    if (folder / "sampling.json").is_file():
        sampling = read_object(folder / "sampling.json")
        if isinstance(sampling, str):
            raise DataError(f"{folder}: {sampling}", "Run generate again.")
        details["sampling"] = sampling
    nearest = None if images.nearest is None else (images.nearest, bench.train(images.image_px).keys, flags)
    return metrics, details, item_lines(images.records, hits, ranks, nearest)


def read_folder(bench: Bench, folder: Path) -> tuple[FolderImages, dict[str, Any]]:
    """Read generated images and their real set; return them and their counts, and say what is missing."""
    from speech2image.app.score_bounds import nearest_of
    from speech2image.app.score_networks import real_cache
    from speech2image.app.score_real import PreparedImages, real_side, side_of
    from speech2image.metrics.imageset import common_size, read_generated
    from speech2image.metrics.scores import image_features

    generated, protocol = read_generated(folder, bench.utterances), bench.protocol
    files, lines = _scored_files(bench, generated)
    painted = len({record["utterance"] for record in generated.records})
    if painted < len(bench.utterances):
        print(
            f"scored {painted} of {len(bench.utterances)} utterances of split={bench.split}, as {folder} holds"
            f" no more; for all of them type: speech2image generate run={bench.scored.path}"
        )
    image_px = common_size(files)
    source: Any = files
    if protocol.prepare == "squash256" and bench.probe is None:
        image_px = side_of(protocol, image_px)
        source = PreparedImages([(file, None) for file in files], image_px, protocol)
    real = real_side(
        bench.corpus, protocol, bench.split, image_px, [str(line["image_key"]) for line in lines]
    )
    images = FolderImages(
        source, lines, image_px, real.images, real.records,
        image_features(
            source, real.images, protocol=protocol, network=bench.network, isc_network=bench.isc_network,
            cache=real_cache(bench.corpus, bench.split), keep_rows=True,
        ),
        groups=[line.get("class_id") for line in lines],
    )  # fmt: skip
    if bench.config["bounds"]:
        images.nearest = nearest_of(bench, source, images.fake, image_px)
    counts = {
        "generated": len(files), "real": len(real.records), "real_set": real.how,
        "utterances_scored": painted, "utterances_of_split": len(bench.utterances),
        "images_of_folder": len(generated.files),
    }  # fmt: skip
    return images, counts


def _scored_files(bench: Bench, generated: Any) -> tuple[tuple[Path, ...], tuple[dict[str, Any], ...]]:
    """Return the generated files that the protocol scores, and their lines of the manifest."""
    from speech2image.metrics.ranking import whole_batches

    protocol, records = bench.protocol, bench.corpus.records(bench.split)
    order = list(range(len(generated.files)))
    if protocol.num_generated is not None:  # the first image of every utterance before the second of any
        order = sorted(order, key=lambda row: int(generated.records[row].get("sample") or 0))
        order = order[: protocol.num_generated]
    kept = {record.key for record in records[: whole_batches(len(records), protocol.drop_last)]}
    order = [row for row in order if generated.records[row]["image_key"] in kept]
    return tuple(generated.files[row] for row in order), tuple(generated.records[row] for row in order)


def attribute_metrics(
    bench: Bench, images: FolderImages, spoken: list[dict[str, str]]
) -> tuple[list[Any], list[dict[str, bool]]]:
    """Return the accuracy of spoken attributes, the probe's own first, and the hits of each image."""
    from speech2image.app.score_networks import probe_accuracy
    from speech2image.metrics.attributes import attribute_accuracy, attribute_hits
    from speech2image.metrics.imageset import ImageSet

    probe, protocol = bench.probe, bench.protocol
    metrics = probe_accuracy(probe, bench.corpus, bench.settings["image_px"], protocol)
    predicted = probe.predict(ImageSet(images.source, probe.image_px).array())
    metrics += attribute_accuracy(
        predicted, probe.classes, spoken, protocol=protocol, groups=images.groups,
        seed=bench.config["seed"],
    ).values()  # fmt: skip
    wanted = [name for name in protocol.attributes or predicted if any(name in said for said in spoken)]
    found = attribute_hits(predicted, probe.classes, spoken, wanted)
    hits = [
        {name: bool(right[row]) for name, (counted, right) in found.items() if counted[row]}
        for row in range(len(spoken))
    ]
    return metrics, hits
