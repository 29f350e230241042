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
from speech2image.data.corpora import open_corpus
from speech2image.diffusion.transformer import DiffusionTransformer
from speech2image.diffusion.variational import VariationalLoss
from speech2image.training.codes import CodeBatches, CodecFromRun, encode_corpus
from speech2image.training.datamodule import SpeechImageData
from speech2image.training.diffusion_module import DiffusionModule
from speech2image.training.fit import (
    ResolvedCondition,
    Session,
    condition_embeddings,
    device_of,
    sample_grid,
    schedule_of,
    val_split,
)
from speech2image.training.painting import DiffusionPainter, check_sampler
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
    sentence_dim = condition.run.info.get("sentence_dim") if condition.run is not None else None
    if sentence_dim is None:  # embedding files: known once they are read
        return
    info = codec_run.info
    module = make_module(config, int(info["num_tokens"]), info["grid"], sentence_dim, device="meta")
    check_sampler(config["sampler"], module.network, module.loss.schedule)


def fit_diffusion(
    config: dict[str, Any], name: str, folder: Path, condition: ResolvedCondition, codec_run: Run
) -> Path:
    """Train a transformer on the code grids of a codec and the embeddings of an encoder."""
    corpus = open_corpus(config["data"], condition.audio, config["paths"])
    embeddings = condition_embeddings(condition, corpus, "train")
    held_out = condition_embeddings(condition, corpus, val_split(corpus))
    codec, device = load_codec(codec_run), device_of(config)
    store = encode_corpus(corpus, codec, "train", config["codec"]["num_views"], device)
    pl.seed_everything(config["seed"], verbose=False)
    session = Session(config, name, folder, corpus)
    sentence_dim = int(embeddings.arrays["sentence"].shape[1])
    module = make_module(config, codec.num_tokens, codec.grid, sentence_dim)
    trainer, fingerprint = config["trainer"], codec.fingerprint()
    train = CodeBatches(
        corpus, "train", store, fingerprint, embeddings, trainer["batch_size"], config["seed"]
    )
    start = session.resume(module)
    data = SpeechImageData(train, None, start, trainer["max_steps"], (), trainer["num_workers"])
    session.info |= {
        "sentence_dim": sentence_dim,
        "encoder_run": condition.run.info["run_id"] if condition.run else None,
        "codec_run": codec_run.info["run_id"],
        "codec_fingerprint": fingerprint,
        "num_tokens": codec.num_tokens,
        "grid": list(codec.grid),
    }
    paint = _grid_painter(config, codec.to(device))
    session.fit(module, data, [sample_grid(config, session, corpus, held_out, paint)])
    session.finish(module, nn.ModuleDict({"generator": module.inference_module()}))
    return folder


def make_module(
    config: dict[str, Any], num_tokens: int, grid: Sequence[int], sentence_dim: int, device: str = "cpu"
) -> DiffusionModule:
    """Build transformer (on `device`) and loss of a configuration for a codec and an encoder."""
    loss, optim = config["loss"], config["optim"]
    bound = VariationalLoss(
        build_schedule(config, num_tokens), loss["aux_weight"], loss["adaptive"], tuple(loss["mask_weight"])
    )
    with torch.device(device):
        network = build_transformer(config["generator"], num_tokens, grid, sentence_dim)
    return DiffusionModule(
        network, bound,
        sentence_scale=config["generator"]["sentence_scale"], lr=optim["lr"], betas=optim["betas"],
        weight_decay=optim["weight_decay"], clip_norm=optim["clip_norm"],
        condition_dropout=loss["condition_dropout"], ema_decay=loss["ema_decay"],
        ema_warmup=loss["ema_warmup"], seed=config["seed"], schedule=schedule_of(config),
    )  # fmt: skip


def _grid_painter(config: dict[str, Any], codec: Codec) -> Callable[[pl.LightningModule, Tensor], Tensor]:
    def paint(module: pl.LightningModule, sentence: Tensor) -> Tensor:
        assert isinstance(module, DiffusionModule)
        network = module.inference_module()
        assert isinstance(network, DiffusionTransformer)
        painter = DiffusionPainter(
            network, codec, module.loss.schedule, config["sampler"], module.sentence_scale, config["seed"]
        )
        return painter(sentence, [("grid", place) for place in range(len(sentence))]).images

    return paint
