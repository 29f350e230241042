"""Typed groups of codecs and discrete diffusion; the other groups, and the list of all, are in `schema.py`."""

from __future__ import annotations

from dataclasses import dataclass

from speech2image.config.option import option


# ---- transformers -----------------------------------------------------------------------------
@dataclass
class DiffusionTransformerConfig:
    """A discrete diffusion transformer over the codes of a codec."""

    num_tokens: int | None = option(None, "codes; null: as many as the codec has", low=2, high=65536)
    grid: list[int] | None = option(None, "rows and columns of codes; null: the codec's")
    depth: int = option(6, "blocks", low=1, high=128)
    dim: int = option(192, "width", low=8, high=8192)
    heads: int = option(6, "attention heads", low=1, high=128)
    conditioning: str = option(
        "adaptive",
        "what it is told: the sentence by projected adaptive norms (adaptive) or as scale and shift itself"
        " (modulation), words by cross-attention (cross), the class, or nothing",
        choices=("adaptive", "modulation", "cross", "class", "none"),
    )
    use_words: bool = option(False, "adaptive: also attend to the words of the encoder; cross always does")
    num_steps: int = option(100, "steps T of the noise schedule", low=2, high=10_000)
    table: list[int] | None = option(None, "rows and columns of the position tables; null: the grid's")
    mlp: str = option("fc", "feed-forward layers: linear, or with a 3x3 convolution", choices=("fc", "conv"))
    mlp_ratio: float = option(4.0, "hidden width of them over the width", low=0.5, high=16)
    activation: str = option("gelu2", "x sigmoid(1.702 x) as released, or exact", choices=("gelu2", "gelu"))
    timestep: str = option("learned", "embedding of the step", choices=("learned", "absolute"))
    null: str | None = option(
        None,
        "what stands for no condition; null: as the form has it",
        choices=("learned", "mean", "none", None),
    )
    num_null_words: int = option(1, "learned words that stand for no condition (published: 77)", low=1)
    recompute: bool = option(False, "keep only the input of each block for the backward pass")
    sentence_scale: float | None = option(
        None, "factor on the sentence; null: the root of its size", low=0.001
    )


# ---- codecs -----------------------------------------------------------------------------------
@dataclass
class VqGanConfig:
    """A VQGAN and the discriminator that trains it."""

    image_px: int = option(256, "side of the images", unit="px", low=8, high=1024)
    channels: int = option(128, "width of the highest resolution", low=4, high=1024)
    channel_mult: list[int] = option([1, 1, 2, 2, 4], "width of each level over `channels`")
    num_res_blocks: int = option(2, "residual blocks a level", low=1, high=8)
    attn_px: list[int] = option([16], "sides of the maps with attention")
    latent_dim: int = option(256, "channels that leave the encoder", low=1, high=4096)
    code_dim: int = option(256, "width of a code", low=1, high=4096)
    num_codes: int = option(16384, "size of the code book", low=2, high=1_000_000)
    quantizer: str = option("vector", "how codes are chosen", choices=("vector", "gumbel", "ema"))
    commitment: float = option(0.25, "vector: weight beta", low=0)
    legacy: bool = option(False, "vector: beta on the code-book term, as released models were trained")
    kl_weight: float = option(1e-8, "gumbel: weight of the divergence", low=0)
    decay: float = option(0.99, "ema: weight of the past", low=0, high=1)
    patch_px: int = option(1, "pixels folded into channels first", unit="px", low=1, high=64)
    norm_groups: int = option(32, "groups of every norm", low=1, high=256)
    disc_layers: int = option(3, "strided layers of the discriminator", low=1, high=6)
    disc_width: int = option(64, "width of the discriminator", low=4, high=512)


@dataclass
class CodecFromRunConfig:
    """A diffusion model's codec: a trained or imported one."""

    run: str = option("auto", "codec run folder; auto: the newest finished one of this corpus and size")
    num_views: int = option(8, "random crops of each training image that are encoded", low=1, high=256)


# ---- samplers ---------------------------------------------------------------------------------
@dataclass
class FromRunSamplerConfig:
    """The sampler the run was configured with, changed by the keys that are given."""

    name: str = option("from_run", "which sampler", choices=("from_run",))
    steps: int | None = option(None, "steps of the loop", low=1)
    guidance_scale: float | None = option(None, "classifier-free guidance; 1: none", low=0)
    top_r: float | None = option(None, "share of the probability mass kept", low=1e-6, high=1)
    top_k: int | None = option(None, "codes kept; 0: all", low=0)


@dataclass
class _SamplerConfig:
    steps: int | None = option(None, "steps of the loop; null: the sampler's own", low=1)
    guidance_scale: float | None = option(
        None, "classifier-free guidance; 1: none; null: the run's, else 1", low=0
    )
    top_r: float | None = option(
        None,
        "share of the probability mass kept (published: 0.86); null: the run's, else 1",
        low=1e-6,
        high=1,
    )
    top_k: int | None = option(None, "codes kept; 0: all; null: the run's, else 0", low=0)


@dataclass
class AncestralSamplerConfig(_SamplerConfig):
    """Every step of the chain."""

    name: str = option("ancestral", "which sampler", choices=("ancestral",))


@dataclass
class SkippingSamplerConfig(_SamplerConfig):
    """The chain in strides, by the exact posterior."""

    name: str = option("skipping", "which sampler", choices=("skipping",))
    legacy: bool = option(False, "as the released fast sampler, which is not exact")


@dataclass
class PuritySamplerConfig(_SamplerConfig):
    """Improved VQ-Diffusion: pure positions first."""

    name: str = option("purity", "which sampler", choices=("purity",))
    rule: int = option(2, "1: positions at random; 2: pure ones first", choices=(1, 2))
    weight: float = option(1.0, "sharpen pure positions; 0: do not", low=0)
    per_call: int = option(1024, "most codes revealed by one call", low=1)


@dataclass
class ConfidenceSamplerConfig(_SamplerConfig):
    """MaskGIT: the surest codes first, few calls."""

    name: str = option("confidence", "which sampler", choices=("confidence",))
    curve: str = option("cosine", "share of masks over time", choices=("cosine", "linear", "arccos"))
    choice_temperature: float = option(4.5, "noise on the confidence, falling to 0", low=0)


@dataclass
class HaltonSamplerConfig(_SamplerConfig):
    """Positions in a low-discrepancy order, few calls."""

    name: str = option("halton", "which sampler", choices=("halton",))
    curve: str = option("arccos", "share of masks over time", choices=("cosine", "linear", "arccos"))


@dataclass
class RemaskSamplerConfig(_SamplerConfig):
    """The chain in strides, with settled codes masked again now and then."""

    name: str = option("remask", "which sampler", choices=("remask",))
    rate: float = option(0.04, "largest probability of masking a code again in a step", low=0, high=1)


# ---- losses -----------------------------------------------------------------------------------
@dataclass
class CodecLossConfig:
    """VQGAN: reconstruction, code book, perceptual distance, patch discriminator."""

    objective: str = option("codec", "which recipe", choices=("codec",))
    pixel: str = option("l1", "distance of pixels: l1 as published, or l2", choices=("l1", "l2"))
    perceptual_weight: float = option(1.0, "perceptual distance, where its weights are named", low=0)
    lpips_path: str | None = option(None, "LPIPS weights, or torchvision's vgg16, a local file; null: none")
    lpips_linear_path: str | None = option(None, "LPIPS linear layers beside a torchvision vgg16")
    codebook_weight: float = option(1.0, "loss of the quantizer", low=0)
    disc_weight: float = option(0.75, "factor on the adaptive weight of the discriminator", low=0)
    disc_start: int = option(0, "steps before the discriminator joins in", low=0)
    disc_form: str = option("hinge", "adversarial loss", choices=("hinge", "vanilla"))
    revive_share: float | None = option(
        None,
        "ema quantizer: codes used less than this share of the mean are moved; null: never",
        low=0,
        high=1,
    )
    revive_every: int = option(10, "steps between such checks", low=1)
    revive_until: int | None = option(None, "last step of them; null: no end", low=0)
    ema_decay: float | None = option(None, "moving average of the codec; null: none", low=0, high=1)


@dataclass
class DiffusionLossConfig:
    """VQ-Diffusion: variational bound with importance-sampled steps."""

    objective: str = option("vq_diffusion", "which recipe", choices=("vq_diffusion",))
    schedule: str = option(
        "released", "replaced mass: 1e-6 as released, or 0.1 as in the paper", choices=("released", "paper")
    )
    aux_weight: float = option(5e-4, "auxiliary term: log p(x_0 | x_t)", low=0)
    adaptive: bool = option(True, "weigh it by 2 - t/T")
    mask_weight: list[float] = option([1.0, 1.0], "weights of masked and of other positions")
    condition_dropout: float = option(0.0, "share of items that are told nothing", low=0, high=1)
    ema_decay: float = option(0.99, "moving average of the network", low=0, high=1)
    ema_warmup: bool = option(False, "let the average follow faster in the first steps")
