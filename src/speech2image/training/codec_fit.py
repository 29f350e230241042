"""Train a codec run: images of a corpus in, a run folder with a frozen VQGAN out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from torch import Tensor, nn

from speech2image.codecs.codec import Codec
from speech2image.data.batches import ClassBatches, ImageBatches
from speech2image.data.corpora import open_corpus
from speech2image.training import ranks
from speech2image.training.codec_module import CodecModule, load_perceptual
from speech2image.training.datamodule import SpeechImageData
from speech2image.training.fit import Session, sample_grid, schedule_of, val_split
from speech2image.training.runs import build_codec, build_patch_discriminator


def fit_codec(config: dict[str, Any], name: str, folder: Path) -> Path:
    """Train a codec on the training images of a corpus; return its run folder."""
    with ranks.in_turn():
        corpus = open_corpus(config["data"], config["audio"], config["paths"])
    pl.seed_everything(config["seed"], verbose=False)
    session = Session(config, name, folder, corpus)
    module = make_module(config)
    trainer, image_px = config["trainer"], config["data"]["image_px"]
    train = ClassBatches(corpus, "train", trainer["batch_size"], config["seed"], image_px, ranks.share())
    val = ImageBatches(corpus, val_split(corpus), trainer["batch_size"], image_px)
    start = session.resume(module)
    data = SpeechImageData(train, val, start, trainer["max_steps"], (), trainer["num_workers"])
    session.fit(module, data, [sample_grid(config, session, corpus, val_split(corpus), None, repaint)])
    codec = module.codec()
    session.info |= {
        "num_tokens": codec.num_tokens,
        "grid": list(codec.grid),
        "codec_fingerprint": codec.fingerprint(),
    }
    session.finish(module, nn.ModuleDict({"network": codec.network}))
    return folder


def make_module(config: dict[str, Any]) -> CodecModule:
    """Build network, discriminator and, where its weights are named, the perceptual network."""
    loss = {key: value for key, value in config["loss"].items() if key != "objective"}
    lpips, linear = loss.pop("lpips_path"), loss.pop("lpips_linear_path")
    optim = {key: config["optim"][key] for key in ("lr", "lr_d", "betas", "weight_decay")}
    uses_disc = loss["disc_weight"] > 0 and loss["disc_start"] < config["trainer"]["max_steps"]
    return CodecModule(
        build_codec(config["codec"]),
        build_patch_discriminator(config["codec"]) if uses_disc else None,
        load_perceptual(lpips, linear) if lpips is not None else None,
        seed=config["seed"], schedule=schedule_of(config), **optim, **loss,
    )  # fmt: skip


def repaint(module: pl.LightningModule, images: Tensor) -> Tensor:
    """Return images `(N, 3, S, S)` through the codec as it is now."""
    assert isinstance(module, CodecModule)
    codec: Codec = module.codec()
    return codec.decode(codec.encode(images))
