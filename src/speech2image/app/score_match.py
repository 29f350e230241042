"""Do generated images belong to what was said?  Retrieval, R-precision, classes, CLIP."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from speech2image.errors import CheckpointError, ConfigError, MissingPackageError

_OWN = "circular: the encoder that conditioned the generator judges it"


# ---- retrieval by image features --------------------------------------------------------------
def matching_metrics(bench: Any, images: Any) -> tuple[list[Any], np.ndarray, dict[str, Any]]:
    """Return retrieval metrics, the rank of the right real image for each generated one, and details.

    By features of the protocol's network: real images as queries against all generated ones (hit: one of
    the k nearest was painted for a caption of the query), and the other way round; by a speech encoder:
    utterances against generated images, and R-precision.
    """
    from speech2image.metrics.ranking import first_hit_ranks, ranked_hits

    queries, gallery, keys, records = retrieval_sides(bench, images)
    real_keys = np.array([record.key for record in records])
    ranks = np.zeros(len(images.records), dtype=np.int64)
    metrics: dict[str, Any] = {}
    if queries is not None:
        metrics |= image_retrieval(bench, queries, gallery, real_keys, keys)
        metrics |= class_retrieval(bench, queries, gallery, records, images.groups[: len(keys)])
        ranks[: len(keys)] = first_hit_ranks(ranked_hits(gallery, queries, keys, real_keys))
    spoken, details = spoken_metrics(bench, images)
    return [*metrics.values(), *spoken], ranks, details


def retrieval_sides(bench: Any, images: Any) -> tuple[Any, Any, np.ndarray, list[Any]]:
    """Return features of queries and gallery, the image key of each gallery row, and records of the queries.

    Queries are the real images of the split, each once, whatever the real set of the scores is.
    """
    from speech2image.app.score_networks import retrieval_network
    from speech2image.app.score_real import first_rows, real_set
    from speech2image.metrics.features import extract
    from speech2image.metrics.imageset import ImageSet
    from speech2image.metrics.ranking import whole_batches

    protocol = bench.protocol
    batch = protocol.retrieval_drop_last
    keys = np.array([str(record["image_key"]) for record in images.records])
    keys = keys[: whole_batches(len(keys), batch)]
    real = real_set(bench.corpus, protocol, bench.split, images.image_px)
    rows = range(whole_batches(len(real.records), batch))
    records = [real.records[row] for row in rows]
    shown = [real.images[row] for row in rows]
    if protocol.retrieval_network in ("", protocol.network):
        return bench.features(shown, images.image_px, "queries"), images.fake[: len(keys)], keys, records
    try:
        network = retrieval_network(protocol, bench.config)
    except CheckpointError as problem:
        bench.skipped["retrieval"] = problem.message
        print(f"retrieval of images is left out: {problem.message}")
        return None, None, keys, records
    side = network.image_px or images.image_px
    queries, gallery = (
        extract(network, ImageSet(part, side), what, logits=False).features
        for part, what in ((shown, "queries"), (first_rows(images.source, len(keys)), "gallery"))
    )
    return queries, gallery, keys, records


def image_retrieval(bench: Any, queries: Any, gallery: Any, real_keys: Any, keys: Any) -> dict[str, Any]:
    """Return recall with real images as queries, the other way round, and with the pairs shuffled."""
    from speech2image.metrics.ranking import released_gallery
    from speech2image.metrics.retrieval import recall_at_k, renamed, shuffled_recall

    protocol = bench.protocol
    each = len(keys) // max(1, len(set(keys)))
    if protocol.legacy and protocol.name.startswith("sta") and len(keys) == each * len(set(keys)):
        order = np.argsort(keys, kind="stable")  # image-major, as the released list is
        rows = order[released_gallery(len(set(keys)), each)]
        gallery, keys = gallery[rows], keys[rows]
    counted: Any = {"protocol": protocol, "ks": protocol.ks, "seed": bench.config["seed"]}
    metrics = recall_at_k(queries, gallery, real_keys, keys, **counted)
    metrics |= renamed(recall_at_k(gallery, queries, keys, real_keys, **counted), "generated_to_real")
    if bench.config["bounds"]:
        metrics |= shuffled_recall(queries, gallery, real_keys, keys, **counted)
    return metrics


def class_retrieval(
    bench: Any, queries: Any, gallery: Any, records: list[Any], groups: list[Any]
) -> dict[str, Any]:
    """Return mAP by class, real images as queries; nothing where every image is its own class."""
    from speech2image.metrics.retrieval import mean_average_precision, renamed

    classes, labels = np.array([record.class_id for record in records]), np.array(groups)
    if len(set(classes)) == len(classes) or None in groups:
        return {}
    if bench.protocol.legacy and bench.protocol.name.startswith("s2igan"):
        first, shown = _first_of_each(classes, 2), _first_of_each(labels, 20)
        queries, classes, gallery, labels = queries[first], classes[first], gallery[shown], labels[shown]
    counted: Any = {"protocol": bench.protocol, "seed": bench.config["seed"]}
    metrics = mean_average_precision(queries, gallery, classes, labels, **counted)
    if bench.config["bounds"]:
        mixed = np.random.default_rng(bench.config["seed"]).permutation(classes)
        found = mean_average_precision(queries, gallery, mixed, labels, **counted)
        metrics |= renamed(found, "shuffled", "control: queries of other classes; should be at chance")
    return metrics


def _first_of_each(labels: np.ndarray, count: int) -> np.ndarray:
    """Return the rows of the first `count` items of each label, in order.

    Source:  S2IGAN's lists hold 2 real and 20 generated images of each class; which ones was not released.
    """
    rows = [np.flatnonzero(labels == label)[:count] for label in np.unique(labels)]
    return np.sort(np.concatenate(rows))


# ---- retrieval by a speech encoder ------------------------------------------------------------
def spoken_metrics(bench: Any, images: Any) -> tuple[list[Any], dict[str, Any]]:
    """Return recall of generated images for utterances and R-precision, in the space of a speech encoder."""
    from speech2image.app.score_encoder import embed_batches, image_branch
    from speech2image.metrics.imageset import ImageSet
    from speech2image.metrics.r_precision import r_precision
    from speech2image.metrics.retrieval import recall_at_k, renamed

    judge, is_own = judge_of(bench)
    branch = None if judge is None else image_branch(judge)
    if judge is None or branch is None:
        return [], {}
    speech, row_of = speech_embeddings(bench, judge)
    shown = ImageSet(images.source, judge.config["data"]["image_px"])
    painted = embed_batches(branch, ImageBatchList(shown))
    rows = np.array([row_of[record["utterance"]] for record in images.records])
    records = bench.corpus.records(bench.split)
    owners = np.array([row for row, _ in bench.corpus.utterances(bench.split)])
    classes = np.array([record.class_id for record in records])[owners]
    seed, protocol = bench.config["seed"], bench.protocol
    note = _OWN if is_own else f"judged by {judge.info['run_id']}, which the generator never heard"
    name = "own_encoder" if is_own else ""
    found = recall_at_k(speech, painted, owners, owners[rows], protocol=protocol, ks=protocol.ks, seed=seed)
    metrics = list(renamed(found, f"speech_{name}" if name else "speech", note).values())
    precision = r_precision(
        painted, speech, rows, classes, protocol=protocol, seed=seed,
        name=f"r_precision/{name}" if name else "r_precision",
    )  # fmt: skip
    metrics.append(dataclasses.replace(precision, note=f"{precision.note}; {note}"))
    if bench.config["bounds"]:
        mixed = np.random.default_rng(seed).permutation(rows)
        control = r_precision(
            painted, speech, mixed, classes, protocol=protocol, seed=seed, name="r_precision/shuffled"
        )
        metrics.append(dataclasses.replace(control, note="control: utterances of other images; at chance"))
    return metrics, {"judge": judge.info["run_id"], "judge_conditioned_the_generator": is_own}


class ImageBatchList:
    """Batches `(B, 3, S, S)` uint8 of an `ImageSet`, one after the other."""

    def __init__(self, images: Any, batch_size: int = 64) -> None:
        self.images, self.batch_size = images, batch_size

    def __iter__(self) -> Any:
        """Yield the batches."""
        import torch

        for start in range(0, len(self.images), self.batch_size):
            end = min(start + self.batch_size, len(self.images))
            yield torch.stack([self.images[row] for row in range(start, end)])


def judge_of(bench: Any) -> tuple[Any | None, bool]:
    """Return the run of the judging encoder and whether it conditioned the generator; None: there is none.

    `judge=auto` takes the newest finished speech encoder of the same corpus that did not condition the
    generator, else the generator's own, whose numbers are named apart.
    """
    from speech2image.training.conditions import reads_captions
    from speech2image.training.runs import all_runs, open_run

    asked, runs = bench.config["judge"], Path(bench.config["paths"]["runs"])
    own = bench.condition.run
    own_id = None if own is None else own.info["run_id"]
    if asked not in (None, "auto"):
        run = open_run(asked, runs, "encoder")
        if run.info["corpus"] != bench.scored.info["corpus"]:
            raise ConfigError(
                f"judge={asked} knows {run.info['corpus']}, {bench.scored.path} paints"
                f" {bench.scored.info['corpus']}",
                "Name an encoder of the same corpus, or leave out judge.",
            )
        return run, run.info["run_id"] == own_id
    if asked is None:
        return None, False
    found = [
        run for run in all_runs(runs)
        if run.stage == "encoder" and run.info.get("corpus") == bench.scored.info["corpus"]
        and run.info.get("status") == "finished" and run.info.get("has_image_branch")
        and run.info["run_id"] != own_id and run.config.get("data") == bench.settings
        and run.config.get("audio") == bench.condition.audio
        and not reads_captions(run.config.get("encoder") or {})
    ]  # fmt: skip
    return (found[-1], False) if found else (own, own is not None)


def speech_embeddings(bench: Any, judge: Any) -> tuple[np.ndarray, dict[str, int]]:
    """Return `(U, D)` embeddings of the utterances of the split and the row of each utterance."""
    from speech2image.data.corpora import open_corpus
    from speech2image.data.front_ends import front_end_of
    from speech2image.training.conditions import run_embeddings

    corpus = bench.corpus
    if judge.config["audio"] != bench.condition.audio:
        corpus = open_corpus(bench.settings, judge.config["audio"], bench.config["paths"])
    found = run_embeddings(judge, corpus, front_end_of(judge.config["audio"]), bench.split)
    row_of = {key: row for row, key in enumerate(found.keys)}
    order = [row_of[key] for key in bench.utterances]
    return found.arrays["sentence"][order], {key: row for row, key in enumerate(bench.utterances)}


# ---- classes ----------------------------------------------------------------------------------
def classifier_metrics(bench: Any, images: Any) -> list[Any]:
    """Return the inception score by a classifier of the corpus's own classes, with its own accuracy.

    Accuracy of generated images too, where their classes are among those it was trained on.
    """
    if not bench.config["classifier"]:
        return []
    from speech2image.app.score_real import prepared_arrays
    from speech2image.metrics.classifier import accuracy_metric, class_hits, train_classifier
    from speech2image.metrics.imageset import ImageSet
    from speech2image.metrics.networks import probe_network
    from speech2image.metrics.scores import image_scores
    from speech2image.training.probes import PROBE_PX

    px, protocol, seed = bench.settings["image_px"], bench.protocol, bench.config["seed"]
    side = min(px, PROBE_PX)
    if bench.classifier is None:
        train = ImageSet(prepared_arrays(bench.corpus, "train", px), side).array()
        names = [record.class_name for record in bench.corpus.records("train")]
        flip = bool(bench.corpus.manifest.meta.get("mirror", True))
        bench.classifier = train_classifier(train, names, protocol=protocol, flip=flip, seed=seed)
    probe, accuracy = bench.classifier
    by_classifier = dataclasses.replace(
        protocol, network="probe", isc_network="", prepare="crop", metrics=("inception_score",)
    )
    scores = image_scores(
        images.source,
        images.real_images,
        protocol=by_classifier,
        network=probe_network(probe),
    )
    note = f"classifier of {len(probe.classes['class'])} training classes, {accuracy.value:.1%} right on held-out images"
    score = dataclasses.replace(
        scores["inception_score"], name="inception_score/classifier",
        note=note if "classifier_accuracy" in protocol.metrics else "",
    )  # fmt: skip
    metrics = [score, accuracy]
    painted = ImageSet(images.source, side).array()
    classes = [record.get("class_name") for record in images.records]
    hits = class_hits(probe, painted, classes)
    if hits is not None:
        number = len(probe.classes["class"])
        metrics.append(accuracy_metric(hits, images.groups, "generated", number, protocol, seed))
    return metrics


# ---- CLIP -------------------------------------------------------------------------------------
def clip_metrics(bench: Any, images: Any) -> list[Any]:
    """Return CLIPScore of images and transcripts, and of shuffled transcripts, where a weight file is named.

    Raises:  MissingPackageError: open_clip is not installed.  CheckpointError: the file is missing,
        damaged or of another network.
    """
    if bench.config["clip_weights"] is None:
        return []
    from speech2image.app.score_encoder import embed_batches
    from speech2image.metrics.clip_score import PROMPT, clip_score
    from speech2image.metrics.imageset import ImageSet

    tower, text = bench.clip
    painted = embed_batches(tower, ImageBatchList(ImageSet(images.source, images.image_px)))
    captions = [PROMPT + str(record.get("caption") or "") for record in images.records]
    import torch

    with torch.no_grad():
        said = np.concatenate(
            [text(captions[at : at + 64]).sentence.numpy() for at in range(0, len(captions), 64)]
        )
    counted: Any = {"protocol": bench.protocol, "groups": images.groups, "seed": bench.config["seed"]}
    own = bench.condition.text is not None
    metrics = [clip_score(painted, said, note=_OWN if own else "", **counted)]
    if bench.config["bounds"]:
        mixed = np.random.default_rng(bench.config["seed"]).permutation(len(said))
        note = "control: transcripts of other images"
        metrics.append(clip_score(painted, said[mixed], name="clip_score/shuffled", note=note, **counted))
    return metrics


def clip_towers(weights: str, network: str) -> tuple[Any, Any]:
    """Return CLIP's image tower and text encoder from one local file.

    Raises:  MissingPackageError, CheckpointError: as in `clip_metrics`.
    """
    try:
        import open_clip
    except ImportError as error:
        raise MissingPackageError("open_clip_torch", "clip") from error
    from speech2image.text.clip_text import ClipTextEncoder
    from speech2image.vision.clip_tower import ClipTower

    tower = ClipTower(network, weights)
    settings: Any = open_clip.get_model_config(network)
    text = settings["text_cfg"]
    return tower, ClipTextEncoder(
        weights, vocab_size=text["vocab_size"], width=text["width"], layers=text["layers"],
        embed_dim=settings["embed_dim"],
    )  # fmt: skip
