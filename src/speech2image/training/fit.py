"""Put corpus, models, module, callbacks and Lightning's Trainer together and train one run."""

from __future__ import annotations

import contextlib
import gc
import logging
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from speech2image.config.build import build
from speech2image.data.batches import ClassBatches, EncoderBatches
from speech2image.data.corpora import open_corpus
from speech2image.data.corpus import Corpus
from speech2image.data.front_ends import AnyFrontEnd, front_end_of
from speech2image.data.order import WHOLE, Share
from speech2image.data.pixels import CropTable, Indices
from speech2image.data.quarantine import count_by_kind, summary_lines, write_quarantine
from speech2image.errors import CheckpointError, DataError
from speech2image.hub.weights import save_weights
from speech2image.images.pyramid import pyramid
from speech2image.losses.contrastive import MaskedContrastiveLoss
from speech2image.training import preemption, ranks
from speech2image.training.callbacks import CheckpointWriter, JournalWriter, SampleGrid
from speech2image.training.checkpoint import load_newest
from speech2image.training.costs import costs_added, forget_peak_memory, peak_memory_mb
from speech2image.training.dashboards import cost_summary
from speech2image.training.datamodule import SpeechImageData
from speech2image.training.encoder_checks import require_published
from speech2image.training.encoder_module import EncoderModule
from speech2image.training.journal import Journal, say
from speech2image.training.loggers import WandbLogger
from speech2image.training.module import TrainingModule
from speech2image.training.pruning import Pruning, pruning_of
from speech2image.training.runs import (
    build_image_branch,
    new_info,
    read_run,
    write_info,
)
from speech2image.training.schedules import make_schedule
from speech2image.training.sharded import is_sharded, shard, whole_state
from speech2image.training.synchronised import synchronise
from speech2image.training.teachers import ClassTeacher, FeatureFile, WithTeacher, fit_on_classes


def is_finished(folder: Path) -> bool:
    """Return whether the run of this folder is trained to its end."""
    return (folder / "run.json").is_file() and read_run(folder).info.get("status") == "finished"


# ---- encoder ----------------------------------------------------------------------------------
def fit_encoder(config: dict[str, Any], name: str, folder: Path) -> Path:
    """Train a speech encoder; return its run folder."""
    require_published(config)
    with ranks.in_turn():
        corpus = open_corpus(config["data"], config["audio"], config["paths"])
    front_end = front_end_of(config["audio"])
    assert front_end is not None  # an encoder hears
    pl.seed_everything(config["seed"], verbose=False)
    session = Session(config, name, folder, corpus)
    vision, teacher_file = _vision(config, corpus, session)
    module = EncoderModule(
        build(config["encoder"]), vision,
        num_classes=len(corpus.class_names), seed=config["seed"], schedule=schedule_of(config),
        **optim_arguments(config), **encoder_loss_arguments(config["loss"]), **_masks(config, front_end),
    )  # fmt: skip
    _pretrain(module, config, corpus, session)
    train = _encoder_batches(config, corpus, front_end, "train", augment=True, share=ranks.share())
    val = _encoder_batches(config, corpus, front_end, val_split(corpus), augment=False)
    if teacher_file is not None:
        train = WithTeacher(train, teacher_file.read(corpus, "train"), config["seed"])
        val = WithTeacher(val, teacher_file.read(corpus, val_split(corpus)), config["seed"])
    start = session.resume(module)
    steps = config["trainer"]["max_steps"]
    data = SpeechImageData(train, val, start, steps, (), config["trainer"]["num_workers"])
    session.info["has_image_branch"] = vision is not None
    session.info["sentence_dim"] = int(module.encoder.sentence_dim)  # type: ignore[arg-type]
    session.fit(module, data, [])
    parts = nn.ModuleDict({"encoder": module.encoder})
    if vision is not None:
        parts["image_branch"] = vision
    session.finish(module, parts)
    return folder


def encoder_loss_arguments(loss: dict[str, Any]) -> dict[str, Any]:
    """Return a loss as `EncoderModule` takes it; SpeechCLIP's comes as a module with its temperature."""
    if loss["objective"] != "speechclip":
        return loss
    own = {key: value for key, value in loss.items() if key not in ("objective", "rivals")}
    return {
        "objective": loss["objective"],
        "rivals": loss["rivals"],
        "criterion": MaskedContrastiveLoss(**own),
    }


def _masks(config: dict[str, Any], front_end: AnyFrontEnd) -> dict[str, Any]:
    masks = {key: value for key, value in config["audio"].items() if key.startswith(("num_", "max_"))}
    return {**masks, "mask_fill": front_end.pad_value}


def _vision(
    config: dict[str, Any], corpus: Corpus, session: Session
) -> tuple[nn.Module | None, FeatureFile | None]:
    node = config["vision"]
    if not node["_target_"]:
        raise DataError("vision: an encoder is taught by images; none chosen", "Type: vision=conv_branch")
    if node["_target_"].endswith("FeatureFile"):
        return None, build(node)
    vision = build(node) if "weights_path" in node else build_image_branch(node)
    if isinstance(vision, ClassTeacher) and not session.has_checkpoint():
        ranks.by_first(lambda: _fit_teacher(vision, config, corpus, session))
        session.save_first = True
    return vision, None


def _fit_teacher(teacher: ClassTeacher, config: dict[str, Any], corpus: Corpus, session: Session) -> None:
    with costs_added(session.info):
        right = teacher.fit(_class_batches(config, corpus), len(corpus.class_names), device_of(config))
    session.journal.write(0, "event", teacher_train_accuracy=right)


def _pretrain(module: EncoderModule, config: dict[str, Any], corpus: Corpus, session: Session) -> None:
    """Fit a small image branch and the shared classifier to the training classes, before any speech."""
    if getattr(module.image_branch, "pretrain_steps", 0) and not session.has_checkpoint():
        ranks.by_first(lambda: _fit_branch(module, config, corpus, session))
        session.save_first = True


def _fit_branch(module: EncoderModule, config: dict[str, Any], corpus: Corpus, session: Session) -> None:
    branch: Any = module.image_branch
    steps = branch.pretrain_steps
    assert module.classifier is not None  # config/validate.py saw to that
    device = device_of(config)
    module.to(device)
    with costs_added(session.info):
        right = fit_on_classes(
            lambda images: module.class_logits(branch(images)), nn.ModuleList([branch, module.classifier]),
            _class_batches(config, corpus), steps, device,
        )  # fmt: skip
    session.journal.write(0, "event", pretrain_steps=steps, pretrain_accuracy=right)
    session.journal.write_clock(0, event="pretrained", pretrain_seconds=session.info["train_seconds"])


def _class_batches(config: dict[str, Any], corpus: Corpus) -> ClassBatches:
    return ClassBatches(
        corpus, "train", config["trainer"]["batch_size"], config["seed"], config["data"]["image_px"]
    )


def device_of(config: dict[str, Any]) -> torch.device:
    """Return the device a run trains on."""
    wants_gpu = config["trainer"]["accelerator"] != "cpu" and torch.cuda.is_available()
    return torch.device("cuda" if wants_gpu else "cpu")


def _encoder_batches(
    config: dict[str, Any], corpus: Corpus, front_end: AnyFrontEnd, split: str, augment: bool,
    share: Share = WHOLE,
) -> Any:  # fmt: skip
    return EncoderBatches(
        corpus, split, config["trainer"]["batch_size"], config["seed"], config["data"]["image_px"],
        front_end.pad_value, front_end.pad_frames, min_frames=front_end.min_frames, augment=augment,
        pool_batches=config["trainer"]["pool_batches"], pairs=config["loss"]["objective"] == "speechclip", share=share,
    )  # fmt: skip


# ---- shared -----------------------------------------------------------------------------------
def sample_grid(
    config: dict[str, Any], session: Session, corpus: Corpus, split: str,
    shown: Callable[[Indices], Any] | None, paint: Callable[[pl.LightningModule, Any], Tensor],
) -> SampleGrid:  # fmt: skip
    """Return the callback that paints the same utterances, or images, again and again.

    Args:
        split: whose utterances, evenly spaced.
        shown: from places in the split's utterances to what `paint` is told; None: `paint` gets the real
            images `(N, 3, S, S)` in [-1, 1].
        paint: `(module, told) -> images`, see `SampleGrid`.
    """
    options = config["callbacks"]["sample_grid"]
    owners = np.array([row for row, _ in corpus.utterances(split)] or range(len(corpus.records(split))))
    count = min(options["num_utterances"], len(owners))
    picks = np.linspace(0, len(owners) - 1, count).astype(int)
    pixels = CropTable(corpus, split, config["data"]["image_px"]).centre(owners[picks])
    told = pyramid(pixels, (pixels.shape[-1],)).levels[0] if shown is None else shown(picks)
    real = pixels.permute(0, 2, 3, 1).numpy().copy()
    return SampleGrid(session.folder / "samples", told, paint, real, options["every"], session.wandb)


def val_split(corpus: Corpus) -> str:
    """Return the split that is looked at during training: `val`, or `test` where there is none."""
    return "val" if corpus.utterances("val") else "test"


def schedule_of(config: dict[str, Any]) -> Any:
    """Return the learning-rate factor of a run as a function of the step."""
    optim = config["optim"]
    return make_schedule(
        optim["schedule"], config["trainer"]["max_steps"], optim["decay_every"], optim["decay_factor"],
        optim["warmup_steps"],
    )  # fmt: skip


def optim_arguments(config: dict[str, Any]) -> dict[str, Any]:
    """Return what a training module takes of the group `optim`."""
    optim = config["optim"]
    arguments = {key: optim[key] for key in ("lr", "betas", "weight_decay")}
    if config["stage"] == "encoder":
        return {**arguments, "clip_norm": optim["clip_norm"]}
    return {**arguments, "lr_d": optim["lr_d"]}


class Session:
    """One training session of one run: its records, its journal, its resume, its Trainer."""

    def __init__(self, config: dict[str, Any], name: str, folder: Path, corpus: Corpus) -> None:
        self.config, self.name, self.folder = config, name, folder
        self.pruning: Pruning | None = None
        self.checkpoints = folder / "checkpoints"
        self.state: dict[str, Any] | None = None
        if config["callbacks"]["checkpoint"]["resume"] == "auto":
            self.state, damaged = load_newest(self.checkpoints, name)
            if damaged is not None:
                say(damaged)
        self.save_first = False
        self.info = self._info(corpus)
        kept, step = (self.state["journal_bytes"], int(self.state["train_step"])) if self.state else (0, 0)
        self.journal = Journal(folder / "journal.jsonl", kept, writes=ranks.is_first())
        self.journal.write_clock(step, event="start")
        others = {} if ranks.is_first() else {"mode": "disabled"}
        self.wandb = WandbLogger(
            **(config["logger"]["wandb"] | others), run_id=name, folder=folder, config=config,
            about={"group": config["name"], "job_type": config["stage"]},
        )  # fmt: skip
        self.wandb.catch_up(int(self.state["train_step"]) if self.state else 0)

    def _info(self, corpus: Corpus) -> dict[str, Any]:
        config = self.config
        info = new_info(self.name, config["stage"], config["name"], corpus.manifest.corpus)
        if self.state is not None and (self.folder / "run.json").is_file():
            earlier = read_run(self.folder).info
            kept = ("created", "train_seconds", "train_cpu_seconds")
            info |= {key: earlier[key] for key in kept if key in earlier}
        problems = corpus.manifest.problems
        info |= {"problems": [problem.path for problem in problems], "problem_kinds": count_by_kind(problems)}
        if ranks.is_first():
            write_quarantine(self.folder, problems)
            print("\n".join(summary_lines(problems, self.folder)), end="\n" if problems else "")
        info["data_folder"] = str(corpus.folder)
        return info

    def has_checkpoint(self) -> bool:
        """Return whether the session continues from a checkpoint."""
        return self.state is not None

    def resume(self, module: TrainingModule) -> int:
        """Load the newest checkpoint into `module`, if there is one; return the step to start from."""
        if self.state is None:
            return 0
        try:
            module.load_checkpoint_state(self.state)
        except CheckpointError as error:
            raise CheckpointError(
                f"{self.checkpoints}: {error.message}",
                "They are of another run: move them away, or start anew with callbacks.checkpoint.resume=never.",
            ) from None
        print(f"{self.name}: continuing from step {module.train_step}")
        return module.train_step

    def fit(self, module: TrainingModule, data: SpeechImageData, callbacks: list[pl.Callback]) -> None:
        """Train the remaining steps, with all ranks."""
        trainer = self.config["trainer"]
        if not ranks.is_first() and trainer["strategy"] == "ddp":
            callbacks = []  # the first rank paints alone, unless weights lie in shards
        self.info["parameters"] = {
            part: sum(parameter.numel() for parameter in child.parameters())
            for part, child in module.named_children()
        }
        self._write_info()
        logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)
        val_every = min(trainer["val_every"], trainer["max_steps"])
        engine = pl.Trainer(
            max_epochs=1, **ranks.engine_arguments(trainer), precision=trainer["precision"],
            logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
            num_sanity_val_steps=0, val_check_interval=val_every, check_val_every_n_epoch=None,
            limit_val_batches=1.0 if data.val is not None else 0,
            deterministic=trainer["deterministic"] or None, callbacks=[*callbacks, *self._writers()],
        )  # fmt: skip
        # Lightning counts the batches of a session; validation is due at steps of the run.
        engine.fit_loop.epoch_loop.batch_progress.total.ready = data.steps.start
        gc.collect()  # what building left, now, not in the middle of training
        forget_peak_memory()
        self._bring_together(module)
        try:
            if len(data.steps):
                preemption.active().start_training()
                with costs_added(self.info), warnings.catch_warnings():  # of what does not apply to our loop
                    warnings.filterwarnings("ignore", module=r"pytorch_lightning.*")
                    engine.fit(module, datamodule=data)
        except BaseException:
            self.wandb.close(exit_code=1)
            raise
        finally:
            self.info["peak_memory_mb"] = peak_memory_mb()
            with contextlib.suppress(DataError):  # what was spent; at its end the run says the rest
                self._write_info()

    def _writers(self) -> list[pl.Callback]:
        """Return journal and checkpoints, in this order: a checkpoint holds the length of the journal."""
        config, trainer = self.config["callbacks"], self.config["trainer"]
        saves = config["checkpoint"]
        journal = JournalWriter(
            self.journal, self.wandb, trainer["log_every"], trainer["max_steps"], config["progress"]
        )
        checkpoints = CheckpointWriter(
            self.checkpoints, saves["every"], saves["keep"], self.name, self.journal, self.save_first
        )
        self.pruning = pruning_of(self.config, journal)
        return [journal, checkpoints, *([] if self.pruning is None else [self.pruning])]

    def _bring_together(self, module: TrainingModule) -> None:
        """Let all ranks start from the weights of the first, whole or in shards."""
        trainer, device = self.config["trainer"], device_of(self.config)
        ranks.check_agreement(run=self.name, step=module.train_step)
        synchronise(module, trainer["sync_batch_norm"], device)
        if trainer["strategy"] == "fsdp":
            shard(module.sharded_networks(), device)

    def _write_info(self) -> None:
        if ranks.is_first():
            write_info(self.folder, self.info)

    def _save_weights(self, module: TrainingModule, parts: nn.Module) -> None:
        meta = {"run_id": self.name, "stage": self.config["stage"], "train_step": str(module.train_step)}
        if is_sharded(parts):  # shards meet on the device; Lightning has left them on the CPU
            parts.to(device_of(self.config))
        weights = whole_state(parts.state_dict())
        if ranks.is_first():
            save_weights(self.folder / "weights.safetensors", weights, meta)

    def finish(self, module: TrainingModule, parts: nn.Module) -> None:
        """Write the weights for use, of a run that a search did not stop, and close the records."""
        is_pruned = self.pruning is not None and self.pruning.pruned_at is not None
        if not is_pruned:
            self._save_weights(module, parts)
        self.journal.write_clock(module.train_step, event="end")
        self.journal.close()
        self.info |= {
            "status": "pruned" if is_pruned else "finished",
            "train_step": module.train_step,
            "images_seen": module.images_seen,
            "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        }
        self._write_info()
        self.wandb.summarise(lambda: cost_summary(self.info))
        self.wandb.close()
