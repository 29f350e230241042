"""One typed dataclass for each configuration group.

Each field carries its default, a sentence, and where it has them a unit, a range or its choices;
`validate.py` checks a composed configuration against them, and `--help` prints them.  Variants of
a group are told apart by `_target_`; the fields of a variant equal the constructor arguments of
its target, letter for letter (a test compares them).  No torch and no Hydra here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from speech2image.config.option import option
from speech2image.config.schema_diffusion import (
    AncestralSamplerConfig,
    CodecFromRunConfig,
    CodecLossConfig,
    ConfidenceSamplerConfig,
    DiffusionLossConfig,
    DiffusionTransformerConfig,
    FromRunSamplerConfig,
    HaltonSamplerConfig,
    PuritySamplerConfig,
    RemaskSamplerConfig,
    SkippingSamplerConfig,
    VqGanConfig,
)
from speech2image.config.schema_encoder import (
    CascadedSpeechClipConfig,
    ClassTeacherConfig,
    ClipTextConfig,
    ClipTowerConfig,
    CnnRnnConfig,
    ConvBranchConfig,
    ConvGruConfig,
    FeatureFileConfig,
    FromRunConfig,
    InceptionBranchConfig,
    LiLossConfig,
    NoneConfig,
    PublishedEmbeddingsConfig,
    SenLossConfig,
    SpeechClipConfig,
    SpeechClipLossConfig,
    TorchvisionTeacherConfig,
)
from speech2image.config.schema_hardware import HardwareConfig


# ---- data -------------------------------------------------------------------------------------
@dataclass
class MakeBirdsConfig:
    """How many birds are drawn for `spoken_birds`."""

    seed: int = option(0, "root of every draw of the corpus", low=0)
    num_train_species: int = option(1600, "species seen in training", low=2, high=2600)
    num_test_species: int = option(120, "unseen species, other combinations of colours", low=1, high=2000)
    images_per_species: int = option(2, "drawings a species (at most 5 of a test species)", low=1, high=1000)
    captions_per_image: int = option(4, "captions written for each image", low=1, high=10)
    image_px: int = option(128, "side of the drawings", unit="px", low=64, high=1024)


@dataclass
class MakeDigitsConfig:
    """How `spoken_digits` pairs recordings with handwritten digits."""

    seed: int = option(0, "root of the pairing", low=0)
    recordings: str | None = option(
        None, "folder of <digit>_<speaker>_<take>.wav files; null: espeak-ng speaks them"
    )


@dataclass
class DataConfig:
    """A corpus, where it lies and how it is prepared."""

    name: str = option(
        "spoken_birds",
        "which reader",
        choices=("spoken_birds", "spoken_digits", "cub200", "flickr8k"),
    )
    root: str | None = option(None, "folder of the corpus in its official layout")
    image_px: int = option(64, "side of the largest image a model sees", unit="px", low=16, high=1024)
    max_captions: int = option(4, "captions used (and spoken) of each image", low=1, high=10)
    val_classes: int = option(0, "training classes held out for validation", low=0, high=1000)
    speak: str | None = option(
        "espeak",
        "engine for captions without a recording; null: skip them",
        choices=("espeak", "tacotron2", None),
    )
    on_error: str = option("raise", "damaged items: stop, or quarantine and go on", choices=("raise", "skip"))
    make: dict[str, Any] | None = option(None, "how an embedded corpus is made; null: it is read")


# ---- audio ------------------------------------------------------------------------------------
AUDIO_NAMES = ("li_et_al", "li_et_al_masked", "s2igan", "wave_16k", "from_encoder")


@dataclass
class AudioConfig:
    """An acoustic front end."""

    name: str = option(
        "s2igan",
        "published recipe",
        choices=AUDIO_NAMES,
    )
    num_time_masks: int = option(0, "SpecAugment: stretches of time blanked in training", low=0, high=20)
    max_time_frames: int = option(0, "SpecAugment: longest stretch", unit="frames", low=0, high=1000)
    num_freq_masks: int = option(0, "SpecAugment: groups of mel bands blanked", low=0, high=20)
    max_freq_bands: int = option(0, "SpecAugment: widest group", unit="bands", low=0, high=128)


@dataclass
class StatesAudioConfig(AudioConfig):
    """Hidden states of a frozen speech tower, computed once and stored; for `encoder.source=states`."""

    name: str = option("states", "stored hidden states", choices=("states",))
    tower: str | None = option(None, "which published tower")
    weights_path: str | None = option(None, "its weights, a local file")
    sha256: str | None = option(None, "hash of that file; null: taken from it")


@dataclass
class CaptionsAudioConfig:
    """Of imported text systems: captions are read, nothing is heard."""

    name: str = option("captions", "no front end", choices=("captions",))


# ---- generators -------------------------------------------------------------------------------
@dataclass
class StackGeneratorConfig:
    """StackGAN-v2's generator and its discriminators."""

    condition_dim: int = option(128, "conditioning augmentation: size of c", low=2, high=4096)
    noise_dim: int = option(100, "size of the noise z", low=1, high=4096)
    gf_dim: int = option(64, "width of the generator", low=4, high=512)
    df_dim: int = option(64, "width of the discriminators", low=4, high=512)
    num_stages: int = option(3, "stages: one to three", low=1, high=3)
    num_residual: int = option(2, "residual blocks of each later stage", low=0, high=8)
    base_px: int = option(64, "side of the first stage's image", unit="px", choices=(16, 32, 64))
    sentence_scale: float = option(
        1.0, "factor on the sentence; sqrt(its size) lets short runs hear it", low=0.001
    )


# ---- losses -----------------------------------------------------------------------------------
@dataclass
class StackLossConfig:
    """StackGAN-v2's loss terms."""

    objective: str = option("stackgan_v2", "which recipe", choices=("stackgan_v2",))
    uncond_weight: float = option(1.0, "unconditional terms", low=0)
    kl_weight: float = option(2.0, "conditioning augmentation", low=0)
    colour_weight: float = option(0.0, "colour consistency between stages", low=0)
    class_aware_weight: float = option(0.0, "Li et al.'s class-aware term", low=0)
    semantic_weight: float = option(
        0.0, "matching of painted image and speech (needs an image branch)", low=0
    )
    semantic_gamma: float = option(10.0, "sharpness of that matching", low=0.01)
    prototype_weight: float = option(0.0, "class of the painted image among all classes' mean speech", low=0)
    translate_ratio: float = option(
        0.0, "largest shift of what discriminators see, a share of the side", low=0, high=0.5
    )
    ema_decay: float = option(0.999, "moving average of the generator", low=0, high=1)
    ema_warmup: bool = option(False, "let the average follow faster in the first steps")
    ema_buffers: str = option(
        "copy", "batch-norm statistics of the average: live, or averaged", choices=("copy", "average")
    )
    reset_live_to_ema_every: int | None = option(None, "as the released loops do; null: never", low=1)


# ---- optimisation and training ----------------------------------------------------------------
@dataclass
class OptimConfig:
    """Adam (diffusion: AdamW) and its schedule, in steps of the model."""

    lr: float = option(2e-4, "learning rate", low=0, high=1)
    lr_d: float | None = option(None, "learning rate of the discriminators; null: lr", low=0, high=1)
    betas: list[float] = option([0.5, 0.999], "Adam's betas")
    weight_decay: float = option(0.0, "L2 penalty, inside Adam as published", low=0, high=1)
    schedule: str = option(
        "constant", "learning-rate schedule", choices=("constant", "step", "cosine", "one_cycle", "linear")
    )
    decay_every: int | None = option(None, "step schedule: steps between decays", low=1)
    decay_factor: float = option(
        0.5, "step schedule: factor of a decay; linear: share of the rate at the end", low=0, high=1
    )
    warmup_steps: int = option(0, "linear rise at the start", low=0)
    clip_norm: float | None = option(None, "largest norm of the gradient; null: no limit", low=0)


@dataclass
class TrainerConfig:
    """Length, batch, device."""

    max_steps: int = option(1000, "batches seen by the model", low=1)
    batch_size: int = option(32, "images a step, over all devices", low=2, high=65536)
    accelerator: str = option("auto", "device", choices=("auto", "cpu", "gpu"))
    precision: str = option("32-true", "Lightning's precision name", choices=("32-true", "bf16-mixed"))
    num_workers: int = option(0, "loader processes; 0 suits the memory-mapped store", low=0, high=256)
    pool_batches: int = option(
        1, "encoders: batches drawn together and dealt by length, less padding", low=1, high=1024
    )
    val_every: int = option(250, "steps between validations", low=1)
    log_every: int = option(25, "steps between journal lines", low=1)
    deterministic: bool = option(False, "ask torch for deterministic kernels")
    devices: int | None = option(
        None, "ranks that must train together, started by torchrun or srun; null: as many as were", low=1
    )
    strategy: str = option(
        "ddp", "ranks hold whole weights, or (diffusion) shards of them", choices=("ddp", "fsdp")
    )
    sync_batch_norm: bool = option(True, "batch norms see the batches of all ranks")
    rank_timeout_s: int = option(1800, "longest wait for another rank", unit="s", low=10)


@dataclass
class SampleGridConfig:
    """Grids of the same held-out utterances with the same noise."""

    every: int = option(250, "steps between grids; 0: never", low=0)
    num_utterances: int = option(16, "utterances in the grid", low=1, high=256)


@dataclass
class QualityConfig:
    """FID, KID and accuracy of generators while they train, through the probe of the corpus."""

    every: int = option(500, "steps between measurements; 0: never", low=0)
    num_images: int = option(256, "held-out utterances painted, always the same", low=8, high=100_000)
    sampler_steps: int | None = option(10, "diffusion: most steps of the sampler; null: its own", low=1)
    max_share: float = option(
        0.05,
        "largest share of the training time; beyond it measurements are left out; 1: no limit",
        low=0,
        high=1,
    )


@dataclass
class CheckpointConfig:
    """When a run is saved."""

    every: int = option(500, "steps between checkpoints", low=1)
    keep: int = option(2, "checkpoints kept", low=1, high=1000)
    resume: str = option("auto", "continue an unfinished run of the same id", choices=("auto", "never"))


@dataclass
class SearchConfig:
    """The search a run is a trial of; set by `hydra/sweeper=optuna`, not by hand."""

    folder: str | None = option(None, "folder of the search; null: none")
    trial: int | None = option(None, "number of the trial in its study", low=0)


@dataclass
class CallbacksConfig:
    """What happens beside training."""

    sample_grid: SampleGridConfig = option({}, "sample grids")
    quality: QualityConfig = option({}, "image quality while training")
    checkpoint: CheckpointConfig = option({}, "checkpoints")
    search: SearchConfig = option({}, "search")
    progress: bool = option(True, "progress bar with rate and remaining time")


@dataclass
class WandbConfig:
    """Weights & Biases."""

    mode: str = option(
        "offline",
        "offline: one folder below <run>/wandb, to upload with `wandb sync <run>/wandb` or, from the journal,"
        " `speech2image report runs=[<run>] logger=online`; online falls back to it without network or login",
        choices=("offline", "online", "disabled"),
    )
    project: str = option("speech2image", "project name")
    entity: str | None = option(None, "team or user")


@dataclass
class LoggerConfig:
    """Loggers beside the local journal, which is always written."""

    wandb: WandbConfig = option({}, "Weights & Biases")


@dataclass
class PathsConfig:
    """Where things lie; never part of a run's name."""

    data: str = option("data", "corpora")
    cache: str = option("cache", "prepared corpora")
    runs: str = option("runs", "run folders")
    weights: str = option("weights", "pretrained weight files")


# ---- evaluation -------------------------------------------------------------------------------
@dataclass
class ProtocolConfig:
    """A named evaluation protocol."""

    name: str = option("auto", "protocol; auto: the embedded corpus's own, else offline")
    legacy: bool | None = option(
        None, "a released procedure with its defects or corrected; null: as the protocol's file says"
    )


#: The key that tells the variants of a group apart, where it is not `_target_`.
TAGS = {"audio": "name", "loss": "objective", "sampler": "name"}

#: Schema of a group by `_target_` or its key of `TAGS` (None: groups without one).
VARIANTS: dict[str, dict[str | None, type]] = {
    "data": {None: DataConfig},
    "audio": {
        **dict.fromkeys(AUDIO_NAMES, AudioConfig),
        "states": StatesAudioConfig,
        "captions": CaptionsAudioConfig,
    },
    "encoder": {
        None: NoneConfig,
        "speech2image.speech.cnn_rnn.CnnRnn": CnnRnnConfig,
        "speech2image.speech.conv_gru.ConvGru": ConvGruConfig,
        "speech2image.speech.speechclip.SpeechClip": SpeechClipConfig,
        "speech2image.speech.cascaded.CascadedSpeechClip": CascadedSpeechClipConfig,
        "speech2image.text.clip_text.ClipTextEncoder": ClipTextConfig,
        "speech2image.training.conditions.FromRun": FromRunConfig,
        "speech2image.training.conditions.PublishedEmbeddings": PublishedEmbeddingsConfig,
    },
    "vision": {
        None: NoneConfig,
        "speech2image.vision.branch.ConvBranch": ConvBranchConfig,
        "speech2image.vision.branch.InceptionBranch": InceptionBranchConfig,
        "speech2image.vision.clip_tower.ClipTower": ClipTowerConfig,
        "speech2image.vision.teacher.TorchvisionTeacher": TorchvisionTeacherConfig,
        "speech2image.training.teachers.FeatureFile": FeatureFileConfig,
        "speech2image.training.teachers.ClassTeacher": ClassTeacherConfig,
    },
    "generator": {
        None: NoneConfig,
        "speech2image.gan.stackgan.StackGenerator": StackGeneratorConfig,
        "speech2image.diffusion.transformer.DiffusionTransformer": DiffusionTransformerConfig,
    },
    "codec": {
        None: NoneConfig,
        "speech2image.codecs.vqgan.VqGan": VqGanConfig,
        "speech2image.training.codes.CodecFromRun": CodecFromRunConfig,
    },
    "sampler": {
        "from_run": FromRunSamplerConfig,
        "ancestral": AncestralSamplerConfig,
        "skipping": SkippingSamplerConfig,
        "purity": PuritySamplerConfig,
        "confidence": ConfidenceSamplerConfig,
        "halton": HaltonSamplerConfig,
        "remask": RemaskSamplerConfig,
    },
    "loss": {
        "li_et_al": LiLossConfig,
        "s2igan": SenLossConfig,
        "speechclip": SpeechClipLossConfig,
        "stackgan_v2": StackLossConfig,
        "codec": CodecLossConfig,
        "vq_diffusion": DiffusionLossConfig,
    },
    "optim": {None: OptimConfig},
    "trainer": {None: TrainerConfig},
    "callbacks": {None: CallbacksConfig},
    "logger": {None: LoggerConfig},
    "paths": {None: PathsConfig},
    "hardware": {None: HardwareConfig},
    "protocol": {None: ProtocolConfig},
}
