"""Train a GAN run: embeddings of an encoder in, a run folder with a generator out."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from speech2image.data.batches import GanBatches
from speech2image.data.corpora import open_corpus
from speech2image.data.corpus import Corpus
from speech2image.data.embeddings import Embeddings
from speech2image.data.pixels import Indices
from speech2image.errors import DataError
from speech2image.gan.stackgan import StackGenerator
from speech2image.training import ranks
from speech2image.training.conditions import (
    ResolvedCondition,
    condition_embeddings,
    fit_discriminant,
    projected,
)
from speech2image.training.datamodule import SpeechImageData
from speech2image.training.fit import (
    Session,
    optim_arguments,
    sample_grid,
    schedule_of,
    val_split,
)
from speech2image.training.gan_module import GanModule
from speech2image.training.painting import GanPainter
from speech2image.training.quality import watch_quality
from speech2image.training.runs import build_discriminators, build_generator, load_encoder


def fit_gan(config: dict[str, Any], name: str, folder: Path, condition: ResolvedCondition) -> Path:
    """Train StackGAN-v2 on the embeddings of an encoder; return its run folder."""
    with ranks.in_turn():
        corpus = open_corpus(config["data"], condition.audio, config["paths"])
        embeddings = condition_embeddings(condition, corpus, "train")
        held_out = condition_embeddings(condition, corpus, val_split(corpus))
    discriminant = fit_discriminant(corpus, embeddings, config["encoder"].get("lda_dim"))
    told, held_out = projected(embeddings, discriminant), projected(held_out, discriminant)
    sentence_dim = told.arrays["sentence"].shape[1]
    pl.seed_everything(config["seed"], verbose=False)
    session = Session(config, name, folder, corpus)
    generator = build_generator(config["generator"], sentence_dim)
    needs_branch = config["loss"]["semantic_weight"] + config["loss"]["prototype_weight"] > 0
    branch = load_encoder(condition.run)[1] if condition.run and needs_branch else None
    if needs_branch and branch is None:
        raise DataError(
            "loss.semantic_weight and loss.prototype_weight need an encoder run with an image branch",
            "Type: loss.semantic_weight=0 loss.prototype_weight=0",
        )
    loss = {key: value for key, value in config["loss"].items() if key != "objective"}
    module = GanModule(
        generator, build_discriminators(config["generator"]), noise_dim=config["generator"]["noise_dim"],
        image_branch=branch, prototypes=_prototypes(corpus, embeddings) if needs_branch else None,
        seed=config["seed"], schedule=schedule_of(config), **optim_arguments(config), **loss,
    )  # fmt: skip
    trainer = config["trainer"]
    train = GanBatches(
        corpus, "train", told, trainer["batch_size"], config["seed"], config["data"]["image_px"],
        share=ranks.share(),
    )  # fmt: skip
    start = session.resume(module)
    data = SpeechImageData(
        train, None, start, trainer["max_steps"], generator.image_sizes, trainer["num_workers"]
    )
    session.info |= {
        "sentence_dim": sentence_dim,
        "embedding_dim": None if discriminant is None else len(discriminant.mean),
        "encoder_run": condition.run.info["run_id"] if condition.run else None,
    }

    def shown(picks: Indices) -> Tensor:
        return torch.from_numpy(held_out.arrays["sentence"][picks])

    split = val_split(corpus)
    grid = sample_grid(config, session, corpus, split, shown, _noise_painter(config))
    with ranks.in_turn():
        watch = watch_quality(config, corpus, split, shown, lambda module: _averaged(module, config["seed"]))
    session.fit(module, data, [grid, *watch])
    parts = nn.ModuleDict(
        {"generator": module.inference_module(), "discriminators": nn.ModuleList(module.discriminators)}
    )
    if discriminant is not None:
        parts["discriminant"] = discriminant
    session.finish(module, parts)
    return folder


def _prototypes(corpus: Corpus, embeddings: Embeddings) -> Tensor:
    """Return the mean training embedding of each class, `(classes, D)`; zero where a class has none."""
    owners = np.array([corpus.class_ids("train")[row] for row, _ in corpus.utterances("train")])
    rows = dict(zip(embeddings.keys, embeddings.arrays["sentence"], strict=True))
    sentences = np.stack([rows[utterance.key] for _, utterance in corpus.utterances("train")])
    totals = np.zeros((len(corpus.class_names), sentences.shape[1]), np.float32)
    np.add.at(totals, owners, sentences)
    return torch.from_numpy(totals)


def _averaged(module: pl.LightningModule, seed: int) -> GanPainter:
    assert isinstance(module, GanModule)
    generator = module.inference_module()
    assert isinstance(generator, StackGenerator)
    return GanPainter(generator, seed)


def _noise_painter(config: dict[str, Any]) -> Callable[[pl.LightningModule, Tensor], Tensor]:
    rng = np.random.Generator(np.random.Philox(config["seed"]))
    count = config["callbacks"]["sample_grid"]["num_utterances"]
    noise = torch.from_numpy(rng.standard_normal((count, config["generator"]["noise_dim"]), dtype=np.float32))

    def paint(module: pl.LightningModule, sentence: Tensor) -> Tensor:
        assert isinstance(module, GanModule)
        return module.inference_module()(sentence, noise[: len(sentence)].to(sentence.device)).images[-1]

    return paint
