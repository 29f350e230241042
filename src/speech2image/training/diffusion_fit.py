"""Train a diffusion run: code grids of a corpus and embeddings of an encoder in, a run folder out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from speech2image.codecs.codec import Codec
from speech2image.config.build import build
from speech2image.data.batches import sentence_rows
from speech2image.data.corpora import open_corpus
from speech2image.data.corpus import Corpus
from speech2image.data.embeddings import Embeddings
from speech2image.data.pixels import Indices
from speech2image.data.words import WordTable
from speech2image.diffusion.transformer import DiffusionCondition, DiffusionTransformer
from speech2image.diffusion.variational import VariationalLoss
from speech2image.errors import ConfigError
from speech2image.training import ranks
from speech2image.training.codes import CodeBatches, CodecFromRun, encode_corpus
from speech2image.training.conditions import (
    Reads,
    ResolvedCondition,
    condition_embeddings,
    fit_discriminant,
    projected,
    what_is_read,
)
from speech2image.training.datamodule import SpeechImageData
from speech2image.training.diffusion_module import DiffusionModule
from speech2image.training.fit import (
    Session,
    device_of,
    sample_grid,
    schedule_of,
    val_split,
)
from speech2image.training.painting import DiffusionPainter, check_sampler
from speech2image.training.quality import watch_quality
from speech2image.training.runs import Run, build_schedule, build_transformer, load_codec


def resolve_codec(config: dict[str, Any]) -> Run | None:
    """Resolve the codec of a diffusion run and write its run id into `config`; None for other stages."""
    if config["stage"] != "diffusion":
        return None
    source = build(config["codec"])
    assert isinstance(source, CodecFromRun)  # config/validate.py saw to that
    run = source.resolve(Path(config["paths"]["runs"]), config["data"]["name"], config["data"]["image_px"])
    config["codec"]["run"] = run.info["run_id"]
    return run


def check_parts(config: dict[str, Any], condition: ResolvedCondition, codec_run: Run) -> None:
    """Refuse parts that do not fit each other before anything is prepared or written.

    Raises:  ConfigError: sizes of network, codec and encoder that differ, a sampler with steps the schedule does
        not have, guidance or condition dropout for a network without a null condition.
    """
    reads, info = what_is_read(config["generator"]), codec_run.info
    sentence_dim = condition.run.info.get("sentence_dim") if condition.run is not None else None
    if reads.words or reads.class_id or (reads.sentence and sentence_dim is None):
        return  # sizes are known once corpus and embeddings are read
    if sentence_dim is not None and config["encoder"].get("lda_dim"):
        sentence_dim = min(sentence_dim, config["encoder"]["lda_dim"])
    module = make_module(config, int(info["num_tokens"]), info["grid"], sentence_dim, device="meta")
    check_sampler(config["sampler"], module.network, module.loss.schedule)


def fit_diffusion(
    config: dict[str, Any], name: str, folder: Path, condition: ResolvedCondition, codec_run: Run
) -> Path:
    """Train a transformer on the code grids of a codec and what its form reads of the condition."""
    reads, codec, device = what_is_read(config["generator"]), load_codec(codec_run), device_of(config)
    with ranks.in_turn():
        corpus = open_corpus(config["data"], condition.audio, config["paths"])
        # Classes of held-out images were never seen where the corpus splits by class.
        split = "train" if reads.class_id else val_split(corpus)
        embeddings, discriminant = _embeddings(condition, corpus, "train", reads), None
        held_out = _embeddings(condition, corpus, split, reads)
        store = encode_corpus(corpus, codec, "train", config["codec"]["num_views"], device)
    if embeddings is not None and reads.sentence:
        discriminant = fit_discriminant(corpus, embeddings, config["encoder"].get("lda_dim"))
        embeddings = projected(embeddings, discriminant)
    pl.seed_everything(config["seed"], verbose=False)
    session = Session(config, name, folder, corpus)
    sizes = condition_sizes(corpus, embeddings, reads)
    module = make_module(
        config, codec.num_tokens, codec.grid, sizes["sentence_dim"], sizes["words_dim"], sizes["num_classes"]
    )
    trainer, fingerprint = config["trainer"], codec.fingerprint()
    train = CodeBatches(
        corpus, "train", store, fingerprint, embeddings, trainer["batch_size"], config["seed"], ranks.share()
    )
    start = session.resume(module)
    data = SpeechImageData(train, None, start, trainer["max_steps"], (), trainer["num_workers"])
    session.info |= {
        **sizes,
        "embedding_dim": None if discriminant is None else len(discriminant.mean),
        "encoder_run": condition.run.info["run_id"] if condition.run else None,
        "codec_run": codec_run.info["run_id"],
        "codec_fingerprint": fingerprint,
        "num_tokens": codec.num_tokens,
        "grid": list(codec.grid),
    }
    shown = _shown(corpus, split, held_out and projected(held_out, discriminant), reads)
    paint = _grid_painter(config, codec.to(device))
    few = config["callbacks"]["quality"]["sampler_steps"]

    def painter_of(module: pl.LightningModule) -> DiffusionPainter:
        return _averaged(module, codec, config, few)

    with ranks.in_turn():
        watch = watch_quality(config, corpus, split, shown, painter_of)
    session.fit(module, data, [sample_grid(config, session, corpus, split, shown, paint), *watch])
    parts = nn.ModuleDict({"generator": module.inference_module()})
    if discriminant is not None:
        parts["discriminant"] = discriminant
    session.finish(module, parts)
    return folder


def _embeddings(condition: ResolvedCondition, corpus: Corpus, split: str, reads: Reads) -> Embeddings | None:
    if not reads.needs_encoder:
        return None
    return condition_embeddings(condition, corpus, split, reads.words)


def condition_sizes(corpus: Corpus, embeddings: Embeddings | None, reads: Reads) -> dict[str, int | None]:
    """Return sizes of what a network reads: `sentence_dim`, `words_dim`, `num_classes`.

    Raises:  DataError: words are read, but the embeddings hold none.  ConfigError: the corpus has no classes.
    """
    classes = len(corpus.class_names)
    if reads.class_id and classes == len(corpus.manifest.records):
        raise ConfigError(
            f"generator.conditioning=class, but {corpus.manifest.corpus} has no classes: each image is its own",
            "Take another corpus, or generator.conditioning=adaptive.",
        )
    return {
        "sentence_dim": None if embeddings is None else int(embeddings.arrays["sentence"].shape[1]),
        "words_dim": WordTable(corpus, "train", embeddings).dim if embeddings and reads.words else None,
        "num_classes": classes if reads.class_id else None,
    }


def _shown(
    corpus: Corpus, split: str, embeddings: Embeddings | None, reads: Reads
) -> Callable[[Indices], DiffusionCondition]:
    """Return what the grid's utterances are told by, from their places."""

    def told(picks: Indices) -> DiffusionCondition:
        owners = [corpus.utterances(split)[pick][0] for pick in picks]
        parts: dict[str, Tensor | None] = {"class_id": torch.from_numpy(corpus.class_ids(split)[owners])}
        if embeddings is not None:
            parts["sentence"] = torch.from_numpy(sentence_rows(corpus, split, embeddings)[picks])
        if embeddings is not None and reads.words:
            parts["words"], parts["mask"] = WordTable(corpus, split, embeddings).batch(picks)
        return DiffusionCondition(**parts)

    return told


def make_module(
    config: dict[str, Any], num_tokens: int, grid: Sequence[int], sentence_dim: int | None,
    words_dim: int | None = None, num_classes: int | None = None, device: str = "cpu",
) -> DiffusionModule:  # fmt: skip
    """Build transformer (on `device`) and loss of a configuration for a codec and what is read of a condition."""
    loss, optim = config["loss"], config["optim"]
    bound = VariationalLoss(
        build_schedule(config, num_tokens), loss["aux_weight"], loss["adaptive"], tuple(loss["mask_weight"])
    )
    with torch.device(device):
        network = build_transformer(
            config["generator"], num_tokens, grid, sentence_dim, words_dim, num_classes
        )
    return DiffusionModule(
        network, bound,
        sentence_scale=config["generator"]["sentence_scale"], lr=optim["lr"], betas=optim["betas"],
        weight_decay=optim["weight_decay"], clip_norm=optim["clip_norm"],
        condition_dropout=loss["condition_dropout"], ema_decay=loss["ema_decay"],
        ema_warmup=loss["ema_warmup"], seed=config["seed"], schedule=schedule_of(config),
    )  # fmt: skip


def _averaged(
    module: pl.LightningModule, codec: Codec, config: dict[str, Any], most_steps: int | None = None
) -> DiffusionPainter:
    """Return the painter of the averaged weights; `most_steps` shortens the sampler."""
    assert isinstance(module, DiffusionModule)
    network, schedule, sampler = module.inference_module(), module.loss.schedule, config["sampler"]
    assert isinstance(network, DiffusionTransformer)
    if most_steps is not None and sampler["name"] != "ancestral":  # which takes all steps of the chain
        own = sampler["steps"] or schedule.num_steps
        sampler = {**sampler, "steps": min(most_steps, own)}
    return DiffusionPainter(network, codec, schedule, sampler, module.sentence_scale, config["seed"])


def _grid_painter(config: dict[str, Any], codec: Codec) -> Callable[[pl.LightningModule, Any], Tensor]:
    def paint(module: pl.LightningModule, told: DiffusionCondition) -> Tensor:
        assert told.class_id is not None
        addresses = [("grid", place) for place in range(len(told.class_id))]
        return _averaged(module, codec, config)(told, addresses).images

    return paint
