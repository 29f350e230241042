"""Groups of speech encoders: the encoders, the image side that teaches them, and their losses.

The same rules as in `schema.py`, which lists every variant; fields equal constructor arguments.
"""

from __future__ import annotations

from dataclasses import dataclass

from speech2image.config.option import option


# ---- encoders and image branches --------------------------------------------------------------
@dataclass
class CnnRnnConfig:
    """Li et al.: convolutions and a bidirectional LSTM."""

    mel_dim: int = option(40, "mel bands", low=1, high=512)
    width: int = option(1024, "channels of the last convolution; all others scale with it", low=16, high=4096)
    bidirectional: bool = option(True, "LSTM in both directions")
    pool: str = option(
        "mean", "mean over valid steps, or over all 32 as released", choices=("mean", "mean_padded")
    )
    step_frames: int = option(64, "frames of one output step", unit="frames", choices=(64, 32, 16, 8, 4, 2))


@dataclass
class ConvGruConfig:
    """S2IGAN's speech encoder (SEN): convolutions, bidirectional GRU, attention."""

    mel_dim: int = option(40, "mel bands", low=1, high=512)
    hidden_channels: int = option(64, "channels of the first convolution", low=1, high=4096)
    out_channels: int = option(128, "channels of the second convolution", low=1, high=4096)
    rnn_dim: int = option(512, "GRU units a direction; the embedding has twice as many", low=4, high=4096)
    rnn_layers: int = option(2, "GRU layers", low=1, high=8)
    attention_dim: int = option(128, "hidden units of the attention", low=1, high=4096)
    attention_heads: int = option(1, "attention heads", low=1, high=16)
    mask_attention: bool = option(True, "padded steps take no attention; false: as released")


_TOWER_NAMES = (
    "small", "hubert_base", "hubert_large", "wavlm_base", "wavlm_base_plus", "wavlm_large",
    "wav2vec2_base", "wav2vec2_large", "wav2vec2_large_lv60k",
)  # fmt: skip


@dataclass
class _SpeechTowerConfig:
    """What both SpeechCLIP encoders ask: the speech tower, its file, and how its states are read and summed."""

    tower: str = option("small", "speech tower; small: trained from scratch", choices=_TOWER_NAMES)
    weights_path: str | None = option(None, "torchaudio's weights of a published tower, a local file")
    sha256: str | None = option(None, "expected hash (or its beginning) of that file")
    source: str = option(
        "wave",
        "the tower runs on what audio= gives, or its stored states are read",
        choices=("wave", "states"),
    )
    dropout: float = option(0.1, "in branch or attention (and in a small tower)", low=0, high=0.9)
    normalise_states: bool | None = option(None, "norm every state before the sum; null: as published")
    legacy_len: bool = option(False, "count frames as released, one too many for most lengths")
    mel_dim: int = option(40, "small tower: mel bands; 1: waveforms (audio=wave_16k)", low=1, high=512)


@dataclass
class SpeechClipConfig(_SpeechTowerConfig):
    """SpeechCLIP, parallel: a frozen speech tower (or a small trained one), a learned sum, a [CLS] branch."""

    embed_dim: int = option(512, "size of the sentence; must equal the image side's", low=4, high=4096)
    heads: int = option(8, "attention heads of the branch", low=1, high=64)
    ff_dim: int = option(0, "feed-forward width of the branch; 0: four times the tower's", low=0, high=65536)
    num_layers: int = option(1, "layers of the branch", low=1, high=24)
    small_dim: int = option(192, "small tower: width", low=4, high=4096)
    small_layers: int = option(3, "small tower: transformer layers", low=1, high=48)


@dataclass
class CascadedSpeechClipConfig(_SpeechTowerConfig):
    """SpeechCLIP, cascaded: keywords chosen from CLIP's tokens, read by CLIP's frozen text transformer."""

    num_keywords: int = option(8, "keywords", low=1, high=75)
    vocab_size: int = option(8112, "rows of the token table, without vocabulary_path", low=4, high=49408)
    text_dim: int = option(512, "width of CLIP's text transformer", low=4, high=4096)
    text_layers: int = option(12, "its layers", low=1, high=48)
    embed_dim: int = option(0, "size of the sentence; 0: text_dim", low=0, high=4096)
    special: list[int] = option([0, 2, 3], "rows of padding, start and end of text")
    clip_path: str | None = option(None, "CLIP's weights, a local file; training needs them")
    vocabulary_path: str | None = option(None, "SpeechCLIP's .npy of CLIP ids and counts; null: vocab_size")


@dataclass
class FromRunConfig:
    """A generator's condition: the embeddings of a trained encoder."""

    run: str = option("auto", "encoder run folder; auto: the newest finished one on this corpus")
    lda_dim: int | None = option(
        None,
        "tell the generator the embedding's discriminant directions, at most this many; null: all of it",
        low=1,
        high=4096,
    )


@dataclass
class PublishedEmbeddingsConfig:
    """A generator's condition: released embedding pickles, (images, captions, D)."""

    train: str | None = option(None, "speech_embeddings_train.pickle")
    test: str | None = option(None, "speech_embeddings_test.pickle")


@dataclass
class ClipTextConfig:
    """CLIP's text transformer on captions, frozen; weights and vocabulary are local files."""

    weights_path: str | None = option(None, "CLIP's weights in OpenAI's names, a local file")
    sha256: str | None = option(None, "expected hash (or its beginning) of that file")
    vocabulary_path: str | None = option(
        None, "bpe_simple_vocab_16e6.txt.gz, a local file; null: the copy inside open_clip_torch"
    )
    vocabulary_sha256: str | None = option(None, "expected hash (or its beginning) of it; null: any file")
    vocab_size: int = option(49408, "rows of the token table", low=4, high=1_000_000)
    width: int = option(512, "width of the transformer", low=4, high=4096)
    layers: int = option(12, "layers of the transformer", low=1, high=64)
    embed_dim: int = option(512, "width of the joint space", low=4, high=4096)
    read_padding: bool = option(True, "words are all 77 positions as released; false: up to the end of text")


@dataclass
class NoneConfig:
    """Nothing chosen in this group."""


@dataclass
class ConvBranchConfig:
    """A small image branch trained from scratch, for the embedded corpora."""

    embed_dim: int = option(256, "embedding size; must equal the encoder's", low=4, high=4096)
    width: int = option(32, "channels of the first convolution", low=4, high=512)
    image_px: int = option(64, "side of the images it sees", unit="px", low=16, high=512)
    pretrain_steps: int = option(
        0, "steps on the training classes before speech begins", low=0, high=1_000_000
    )


@dataclass
class InceptionBranchConfig:
    """S2IGAN's image branch: frozen Inception-v3 and one linear layer."""

    embed_dim: int = option(1024, "embedding size; must equal the encoder's", low=4, high=4096)
    weights_path: str | None = option(None, "torchvision's inception_v3 weights, a local file")


@dataclass
class ClipTowerConfig:
    """CLIP's frozen image tower, by the optional package open_clip_torch."""

    network: str = option("ViT-B-32-quickgelu", "open_clip's name; OpenAI's weights want -quickgelu")
    weights_path: str | None = option(None, "CLIP's weights, a local file")
    sha256: str | None = option(None, "expected hash (or its beginning) of the file")


@dataclass
class TorchvisionTeacherConfig:
    """A frozen torchvision network whose pooled features teach the encoder."""

    network: str = option("googlenet", "torchvision classification network")
    weights_path: str | None = option(None, "its weights, a local file")
    sha256: str | None = option(None, "expected hash (or its beginning) of the file")


@dataclass
class FeatureFileConfig:
    """Teacher features from a file in the published layout, (images, views, D)."""

    train: str | None = option(None, "pickle of training features")
    test: str | None = option(None, "pickle of test features")


@dataclass
class ClassTeacherConfig:
    """A small network trained first on the classes of the training images, then frozen."""

    feature_dim: int = option(256, "pooled features; must equal the encoder's embedding", low=4, high=4096)
    width: int = option(32, "channels of the first convolution", low=4, high=512)
    image_px: int = option(64, "side of the images it sees", unit="px", low=16, high=512)
    train_steps: int = option(400, "steps of its training", low=1, high=1_000_000)


# ---- losses ---------------------------------------------------------------------------------
@dataclass
class LiLossConfig:
    """Li et al.: joint embedding, L1 and distillation."""

    objective: str = option("li_et_al", "which recipe", choices=("li_et_al",))
    diff_weight: float = option(1.0, "joint embedding, pairs of different classes", low=0)
    same_weight: float = option(0.1, "joint embedding, pairs of one class", low=0)
    l1_weight: float = option(5.0, "normalised L1", low=0)
    distill_weight: float = option(1000.0, "distillation", low=0)
    temperature: float = option(2.0, "softening of the teacher", low=0.01)
    direction: str = option("column", "margin of the joint embedding", choices=("column", "row", "both"))
    l1_per: str = option(
        "batch", "norm of the L1 term: whole batch as published, or each item", choices=("batch", "sample")
    )
    distill_reduction: str = option("mean", "reduction of the distillation", choices=("mean", "batchmean"))


@dataclass
class SenLossConfig:
    """S2IGAN: matching and distinctive losses."""

    objective: str = option("s2igan", "which recipe", choices=("s2igan",))
    match_weight: float = option(1.0, "matching loss, both directions", low=0)
    distinctive_weight: float = option(1.0, "shared classifier on image and speech", low=0)
    distinctive_scale: float = option(
        1.0, "factor on the embeddings before the classifier; sqrt(their size) learns fast", low=0.01
    )
    distinctive_form: str = option(
        "linear", "classifier: published linear, or cosine of unit weights", choices=("linear", "cosine")
    )
    gamma: float = option(10.0, "inverse temperature of the matching loss", low=0.01)
    mask_same_class: bool = option(True, "other items of the class do not compete")


@dataclass
class SpeechClipLossConfig:
    """SpeechCLIP: contrastive loss over (utterance, image) pairs, each utterance once an epoch."""

    objective: str = option("speechclip", "which recipe", choices=("speechclip",))
    temperature: float = option(0.07, "temperature, or where it starts", low=0.001, high=10)
    trainable: bool = option(False, "learn the temperature, as the large models do")
    margin: float = option(0.0, "taken from the logits of matching pairs", low=0)
    decoupled: bool = option(False, "leave the matching pair out of its own denominator")
    max_scale: float = option(100.0, "highest inverse temperature", low=1)
    rivals: str = option(
        "other_image",
        "what competes: pairs of other images, as published, or of other classes",
        choices=("other_image", "other_class"),
    )
