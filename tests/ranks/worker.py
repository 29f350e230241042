"""Train tiny modules as one of several ranks and write what came out; started by `conftest.py` as its own process.

usage: worker.py <scenario,scenario> <rank> <ranks> <folder>: ranks meet in a file of the folder, results go to
`<folder>/<scenario>-<rank>-of-<ranks>.pt`.  A scenario is a function below; nothing here asserts.
"""

from __future__ import annotations

import logging
import os
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
import torch.distributed as dist
from torch import Tensor, nn

from speech2image.codecs.discriminator import PatchDiscriminator
from speech2image.codecs.vqgan import VqGan
from speech2image.data.order import Share
from speech2image.diffusion.schedule import MaskReplaceSchedule
from speech2image.diffusion.transformer import DiffusionTransformer
from speech2image.diffusion.variational import VariationalLoss
from speech2image.errors import DataError, Speech2ImageError
from speech2image.gan.discriminators import StackDiscriminator
from speech2image.gan.stackgan import StackGenerator
from speech2image.losses.class_aware import class_aware_loss
from speech2image.losses.contrastive import MaskedContrastiveLoss, contrastive_loss
from speech2image.losses.distill import normalised_l1
from speech2image.losses.matching import joint_embedding_loss, matching_loss
from speech2image.speech.cnn_rnn import CnnRnn
from speech2image.speech.conv_gru import ConvGru
from speech2image.speech.speechclip import SpeechClip
from speech2image.training import ranks
from speech2image.training.checkpoint import load_newest, save_checkpoint
from speech2image.training.codec_module import CodecModule
from speech2image.training.datamodule import SpeechImageData
from speech2image.training.diffusion_module import DiffusionModule
from speech2image.training.encoder_module import EncoderModule
from speech2image.training.gan_module import GanModule
from speech2image.training.module import TrainingModule
from speech2image.training.sharded import own_part, shard
from speech2image.training.synchronised import average_gradients, gather_rows, synchronise
from speech2image.types import ImagePyramid, SpeechBatch
from speech2image.vision.branch import ConvBranch

BATCH, STEPS = 8, 6
CONFIG: dict[str, Any] = {
    "stage": "diffusion",
    "trainer": {"devices": None, "strategy": "ddp", "accelerator": "cpu", "rank_timeout_s": 60},
}


# ---- batches: functions of the step, of which a rank keeps its share ----------------------------
class Steps(torch.utils.data.Dataset[dict[str, Any]]):
    """Batches of a function of the step, cut to a share."""

    def __init__(self, make: Callable[[torch.Generator], dict[str, Any]], share: Share) -> None:
        self.make, self.rows = make, share.rows(BATCH)

    def __len__(self) -> int:
        return 10_000

    def __getitem__(self, step: int) -> dict[str, Any]:
        batch = self.make(torch.Generator().manual_seed(step))
        return {key: self._cut(value) for key, value in batch.items()}

    def _cut(self, value: Any) -> Any:
        if isinstance(value, SpeechBatch):
            return SpeechBatch(value.features[self.rows], value.lengths[self.rows])
        if isinstance(value, ImagePyramid):
            return ImagePyramid(tuple(level[self.rows] for level in value.levels))
        return value[self.rows]


class AsTheyAre(SpeechImageData):
    """Batches that are on the CPU already and made of floats."""

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        return batch

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        return batch


def gan_batch(rng: torch.Generator) -> dict[str, Any]:
    levels = [[torch.rand(BATCH, 3, px, px, generator=rng) * 2 - 1 for px in (16, 32)] for _ in range(2)]
    return {
        "sentence": torch.randn(BATCH, 6, generator=rng),
        "real": ImagePyramid(tuple(levels[0])),
        "wrong": ImagePyramid(tuple(levels[1])),
        "class_id": torch.randint(3, (BATCH,), generator=rng),
    }


def code_batch(rng: torch.Generator) -> dict[str, Any]:
    return {
        "tokens": torch.randint(7, (BATCH, 6), generator=rng),
        "sentence": torch.randn(BATCH, 5, generator=rng),
    }


def encoder_batch(rng: torch.Generator) -> dict[str, Any]:
    ids = torch.randint(4, (BATCH,), generator=rng)
    lengths = torch.randint(40, 65, (BATCH,), generator=rng)
    return {
        "speech": SpeechBatch(torch.randn(BATCH, 64, 40, generator=rng) + ids[:, None, None], lengths),
        "image": torch.rand(BATCH, 3, 16, 16, generator=rng) * 2 - 1,
        "class_id": ids,
        "image_index": torch.randint(6, (BATCH,), generator=rng),
        "teacher": torch.rand(BATCH, 32, generator=rng),
    }


def image_batch(rng: torch.Generator) -> dict[str, Any]:
    return {"image": torch.rand(BATCH, 3, 16, 16, generator=rng) * 2 - 1}


# ---- modules ----------------------------------------------------------------------------------
class _Seeing(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer, self.norm = nn.Linear(48, 6), nn.BatchNorm1d(6)

    def forward(self, images: Tensor) -> Tensor:
        return self.norm(self.layer(nn.functional.adaptive_avg_pool2d(images, 4).flatten(1)))


def gan(df_dim: int = 2) -> TrainingModule:
    generator = StackGenerator(6, 5, 4, gf_dim=4, num_stages=2, num_residual=1, base_px=16)
    return GanModule(
        generator, [StackDiscriminator(px, df_dim, 5) for px in (16, 32)], colour_weight=1.0,
        class_aware_weight=1.0, semantic_weight=1.0, prototype_weight=1.0, prototypes=torch.randn(3, 6),
        image_branch=_Seeing(), translate_ratio=0.1, reset_live_to_ema_every=5,
    )  # fmt: skip


def diffusion(**options: Any) -> DiffusionModule:
    network = DiffusionTransformer(7, (3, 2), 2, 16, 2, condition_dim=5, num_steps=4)
    bound = VariationalLoss(MaskReplaceSchedule(7, 4))
    return DiffusionModule(network, bound, condition_dropout=0.3, **options)


def sen() -> TrainingModule:
    encoder = ConvGru(hidden_channels=16, out_channels=16, rnn_dim=16, rnn_layers=1, attention_dim=8)
    return EncoderModule(
        encoder, ConvBranch(32, width=8, image_px=16), num_classes=4, num_time_masks=1, max_time_frames=9,
        num_freq_masks=1, max_freq_bands=9,
    )  # fmt: skip


def li(**options: Any) -> TrainingModule:
    return EncoderModule(CnnRnn(width=32, step_frames=16), None, "li_et_al", clip_norm=1.0, **options)


def clip() -> TrainingModule:
    encoder = SpeechClip(
        tower="small", mel_dim=40, small_dim=16, small_layers=1, embed_dim=32, heads=2, ff_dim=32, dropout=0.0
    )
    criterion = MaskedContrastiveLoss(trainable=True)
    return EncoderModule(encoder, ConvBranch(32, width=8, image_px=16), "speechclip", criterion=criterion)


def codec(quantizer: Any) -> TrainingModule:
    network = VqGan(
        16, channel_mult=(1, 2), attn_px=(), patch_px=2, quantizer=quantizer, channels=8, num_res_blocks=1,
        latent_dim=8, code_dim=4, num_codes=12, norm_groups=4,
    )  # fmt: skip
    revive = {"revive_share": 0.5, "revive_every": 2} if quantizer == "ema" else {}
    return CodecModule(network, PatchDiscriminator(1, 4), lr=1e-4, disc_start=2, ema_decay=0.9, **revive)


MADE: dict[str, tuple[Callable[[], TrainingModule], Callable[[torch.Generator], dict[str, Any]]]] = {
    "gan": (gan, gan_batch),
    "gan_shared_pass": (lambda: gan(8), gan_batch),
    "diffusion": (diffusion, code_batch),
    "encoder_sen": (sen, encoder_batch),
    "encoder_li_et_al": (lambda: li(direction="both"), encoder_batch),
    "encoder_speechclip": (clip, encoder_batch),
    "codec_vector": (lambda: codec("vector"), image_batch),
    "codec_gumbel": (lambda: codec("gumbel"), image_batch),
    "codec_ema": (lambda: codec("ema"), image_batch),
}


class Recorder(pl.Callback):
    """Keep what every step recorded."""

    def __init__(self) -> None:
        self.steps: list[dict[str, float]] = []
        self.seconds: list[float] = []
        self._start = 0.0

    def on_train_batch_start(self, *_: Any) -> None:
        self._start = time.perf_counter()

    def on_train_batch_end(self, trainer: pl.Trainer, module: pl.LightningModule, *_: Any) -> None:
        assert isinstance(module, TrainingModule)
        self.seconds.append(time.perf_counter() - self._start)
        self.steps.append(module.flush_records())


def fit(
    module: TrainingModule, make: Callable[[torch.Generator], dict[str, Any]], steps: int = STEPS,
    strategy: str = "ddp", told: pl.Callback | None = None,
) -> Recorder:  # fmt: skip
    """Train with all ranks up to `train_step == steps`."""
    recorder = Recorder()
    synchronise(module, True, torch.device("cpu"))
    if strategy == "fsdp":
        assert isinstance(module, DiffusionModule)
        shard([module.network, module.ema.module], torch.device("cpu"))
    data = AsTheyAre(Steps(make, ranks.share()), None, module.train_step, steps)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pl.Trainer(
            max_epochs=1, logger=False, enable_checkpointing=False, enable_progress_bar=False,
            enable_model_summary=False, limit_val_batches=0, callbacks=[recorder, *([told] if told else [])],
            **ranks.engine_arguments(CONFIG["trainer"]),
        ).fit(module, datamodule=data)  # fmt: skip
    return recorder


def made(name: str) -> TrainingModule:
    torch.manual_seed(5 + ranks.rank())  # ranks differ until they are brought together
    return MADE[name][0]()


# ---- scenarios --------------------------------------------------------------------------------
def trainers(folder: Path) -> dict[str, Any]:
    """Train every module; return its records of every step."""
    results: dict[str, Any] = {}
    for name, (_, make) in MADE.items():
        recorder = fit(made(name), make)
        results[name] = {"steps": recorder.steps, "seconds": recorder.seconds}
    return results


def gradients(folder: Path) -> dict[str, Any]:
    """Return gradients in float64: of a GAN's networks, and of losses that compare rows, through a batch norm."""
    results: dict[str, Any] = {}
    torch.manual_seed(3)
    rows = slice(*ranks.share().rows(BATCH).indices(BATCH))
    for form in ("gan", "gan_shared_pass"):
        module: Any = MADE[form][0]().double()
        synchronise(module, True, torch.device("cpu"))
        batch = {key: _double(value) for key, value in Steps(gan_batch, ranks.share())[0].items()}
        noise, eps = (torch.randn(BATCH, n, dtype=torch.float64)[rows] for n in (4, 5))
        output = module.generator(batch["sentence"], noise, eps)
        for level in (0, 1):
            module.discriminator_backward(level, batch, output)
        average_gradients(module.discriminators.parameters())
        results[f"{form} discriminators"] = _gradients(module.discriminators)
        module.generator_backward(batch, output)
        average_gradients(module.generator.parameters())
        results[f"{form} generator"] = _gradients(module.generator)
        results[f"{form} statistics"] = {k: v for k, v in module.state_dict().items() if "running" in k}
    items = torch.randn(BATCH, 5, 3, dtype=torch.float64)[rows]
    ids = gather_rows(torch.arange(BATCH)[rows] // 2)
    losses: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
        "contrastive": lambda a, b: contrastive_loss(a.double(), b.double(), ids, margin=0.1),
        "matching": lambda a, b: torch.stack(matching_loss(a, b, ids)).sum(),
        "joint": lambda a, b: joint_embedding_loss(a, b, ids, direction="both"),
        "l1": lambda a, b: normalised_l1(a, b) + normalised_l1(b, a),
        "class_aware": lambda a, b: class_aware_loss(-a, ids) + class_aware_loss(b, ids),
    }
    for name, loss in losses.items():
        torch.manual_seed(4)
        layers = nn.Sequential(nn.BatchNorm1d(5), nn.Flatten(), nn.Linear(15, 8)).double()
        synchronise(layers, True, torch.device("cpu"))
        found = gather_rows(layers(items))
        loss(found[:, :4], found[:, 4:]).backward()
        average_gradients(layers.parameters())
        results[name] = _gradients(layers)
    return results


def _double(value: Any) -> Any:
    if isinstance(value, ImagePyramid):
        return ImagePyramid(tuple(level.double() for level in value.levels))
    return value.double() if value.is_floating_point() else value


def _gradients(module: nn.Module) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}


HALVED = ("gan", "diffusion", "encoder_sen", "codec_ema")


def first_half(folder: Path) -> dict[str, Any]:
    """Train half of the steps and write a checkpoint."""
    results: dict[str, Any] = {}
    for name in HALVED:
        module = made(name)
        results[name] = fit(module, MADE[name][1], STEPS // 2).steps
        _save(module, folder / f"{name}-half-of-{ranks.world_size()}")
    return results


def second_half(folder: Path) -> dict[str, Any]:
    """Continue what the other number of ranks has begun."""
    results: dict[str, Any] = {}
    for name in HALVED:
        module = _load(made(name), folder / f"{name}-half-of-{3 - ranks.world_size()}")
        results[name] = fit(module, MADE[name][1]).steps
        _save(module, folder / f"{name}-whole-of-{ranks.world_size()}")
    return results


def sharded(folder: Path) -> dict[str, Any]:
    """Train a transformer in shards; continue in shards what one rank has begun, and whole what shards have begun."""
    module = made("diffusion")
    results: dict[str, Any] = {"whole": fit(module, code_batch, strategy="fsdp").steps}
    assert isinstance(module, DiffusionModule)
    part = sum(own_part(value).numel() for value in module.network.parameters())
    results["share"] = part / sum(value.numel() for value in module.network.parameters())
    _save(module, folder / "diffusion-sharded")
    continued = _load(made("diffusion"), folder / "diffusion-half-of-1")
    results["continued"] = fit(continued, code_batch, strategy="fsdp").steps
    half = made("diffusion")
    fit(half, code_batch, STEPS // 2, strategy="fsdp")
    _save(half, folder / "diffusion-half-in-shards")
    results["back"] = fit(_load(made("diffusion"), folder / "diffusion-half-in-shards"), code_batch).steps
    return results


def _save(module: TrainingModule, folder: Path) -> None:
    state = module.checkpoint_state()
    if ranks.is_first():
        save_checkpoint(folder, module.train_step, state)
    ranks.wait_for_all()


def _load(module: TrainingModule, folder: Path) -> TrainingModule:
    end = time.monotonic() + 300
    while (state := load_newest(folder)[0]) is None:  # others are still at it
        assert time.monotonic() < end, folder
        time.sleep(0.05)
    module.load_checkpoint_state(state)
    return module


def failures(folder: Path) -> dict[str, Any]:
    """Fail on the first rank, on the second, on both, and by disagreement; return what each rank is left with."""

    def first() -> None:
        with ranks.in_turn():
            if ranks.is_first():
                raise DataError("the corpus is gone")

    def second() -> None:
        if not ranks.is_first():
            raise DataError("no such wave")
        ranks.wait_for_all()

    def both() -> None:
        raise DataError("the same everywhere")

    def differ() -> None:
        ranks.check_agreement(step=ranks.rank())

    results = {}
    for task in (first, second, both, differ):
        try:
            with ranks.together(CONFIG):
                task()
        except (Exception, SystemExit) as error:  # noqa: BLE001  that is what is told
            results[task.__name__] = f"{type(error).__name__}: {getattr(error, 'message', error)}"
            results[f"{task.__name__}_at"] = time.time()
    return results


def endless(folder: Path) -> dict[str, Any]:
    """Train until killed, as the command line does."""

    class Told(pl.Callback):
        def on_train_batch_end(self, *_: Any) -> None:
            (folder / f"trains-{ranks.rank()}").touch()

    try:
        with ranks.together(CONFIG):
            fit(made("diffusion"), code_batch, 1_000_000, told=Told())
    except Speech2ImageError as error:
        print(error, file=sys.stderr)
        sys.stderr.flush()
        os._exit(error.exit_code)
    return {}


SCENARIOS: dict[str, Callable[[Path], dict[str, Any]]] = {
    "trainers": trainers,
    "gradients": gradients,
    "first_half": first_half,
    "second_half": second_half,
    "sharded": sharded,
    "failures": failures,
    "endless": endless,
}


def main() -> None:
    """Join the ranks, play the scenario, write what it returns."""
    scenarios, rank, of, folder = (
        sys.argv[1].split(","),
        int(sys.argv[2]),
        int(sys.argv[3]),
        Path(sys.argv[4]),
    )
    torch.set_num_threads(1)
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    if of > 1:
        store = dist.FileStore(str(folder / f"{scenarios[0]}-{of}.store"), of)
        ranks.start(CONFIG, ranks.Place(rank, of, rank), store)
    for scenario in scenarios:
        results = SCENARIOS[scenario](folder)
        torch.save(results, folder / f"{scenario}-{rank}-of-{of}.pt")
    if of > 1:
        dist.barrier()  # not `wait_for_all`, which ends where a scenario has failed
    ranks.leave()


if __name__ == "__main__":
    main()
