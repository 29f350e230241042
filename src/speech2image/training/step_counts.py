"""Count what a training step of a configuration does: the real modules, run on the meta device.

Here: every operation forward and backward with its FLOPs and bytes, and what is kept in between.  Nothing is
allocated and no weight is read, so published sizes count in seconds on a laptop.  What it costs is in
`cost_model.py`.
"""

from __future__ import annotations

import gc
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from speech2image.codecs.quantizers import GumbelQuantizer
from speech2image.diffusion.transformer import DiffusionCondition
from speech2image.errors import MissingPackageError
from speech2image.training import codec_fit, diffusion_fit
from speech2image.training.conditions import reads_captions
from speech2image.training.encoder_module import EncoderModule
from speech2image.training.fit import encoder_loss_arguments, optim_arguments
from speech2image.training.gan_module import GanModule
from speech2image.training.module import TrainingModule
from speech2image.training.runs import (
    build_discriminators,
    build_encoder,
    build_generator,
    build_image_branch,
)
from speech2image.types import ImagePyramid, SpeechBatch

#: What an encoder tells, where its run is not looked at: the published sentence and words.
SENTENCE_DIM, WORDS_DIM, NUM_WORDS, NUM_CLASSES = 1024, 1024, 77, 200
#: Operations that move nothing: views, and questions about shapes.
_FREE = frozenset(
    f"aten.{name}"
    for name in (
        "view", "t", "detach", "transpose", "unsqueeze", "squeeze", "permute", "expand", "slice", "select", "split",
        "_unsafe_view", "alias", "as_strided", "unbind", "chunk", "empty", "empty_like", "new_empty", "reshape",
        "split_with_sizes", "lift_fresh", "diagonal", "unfold", "view_as", "_reshape_alias", "new_empty_strided",
    )
)  # fmt: skip
#: Where batch norms say that they train, among their arguments.
_NORMS = {"aten.native_batch_norm": 5, "aten.native_batch_norm_backward": 7}


@dataclass
class StepCounts:
    """What one rank does in one step.

    Attributes:
        ops: times of each kind of operation by `(FLOPs, bytes)`.
        forward_flops: FLOPs of the forward pass, where it is apart from the backward pass; GANs: of the painting.
        num_norms: batch norms, forward and backward.
        activation_bytes: most bytes that lay ready for backward passes at one time.
        trained: parameters that get gradients.
        averaged: parameters of moving averages.
        frozen: parameters that are only read.
        num_units: blocks that FSDP shards one by one.
        missing: parts that could not be built, in words.
    """

    ops: Counter[tuple[float, float]] = field(default_factory=Counter)
    forward_flops: float = 0.0
    num_norms: int = 0
    activation_bytes: float = 0.0
    trained: int = 0
    averaged: int = 0
    frozen: int = 0
    num_units: int = 1
    missing: list[str] = field(default_factory=list)

    @property
    def flops(self) -> float:
        """Return all FLOPs of the step; a multiplication and an addition are two."""
        return sum(times * flops for (flops, _), times in self.ops.items())

    @property
    def num_ops(self) -> int:
        """Return the operations that a device would be sent."""
        return sum(self.ops.values())


class _Ledger(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Write down every operation that runs.

    Args:
        counts: filled.
        half: products read and write two bytes an element, as under bfloat16 autocast; what they keep, too.
    """

    def __init__(self, counts: StepCounts, half: bool) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.counts, self.half, self.kept, self.kept_bytes = counts, half, Counter[int](), 0.0
        self.in_recurrent, self.weights = False, set[int]()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        packet = func._overloadpacket
        name = str(packet)
        count_flops = flop_registry.get(packet)
        if name in _FREE or (self.in_recurrent and not count_flops):
            return result
        flops = float(count_flops(*args, **kwargs, out_val=result)) if count_flops else 0.0
        factor = 0.5 if flops and self.half else 1.0
        self.counts.ops[flops, factor * (_bytes(args) + _bytes(result))] += 1
        place = _NORMS.get(name)
        self.counts.num_norms += place is not None and bool(args[place])
        return result

    def watch(self, module: nn.Module) -> None:
        """Know its weights, and count only the products inside recurrent layers: a GPU fuses the rest of their steps."""
        self.weights = {_key(value) for value in module.parameters()}

        def mark(inside: bool) -> Callable[..., None]:
            def change(*_: Any) -> None:
                self.in_recurrent = inside

            return change

        for part in module.modules():
            if isinstance(part, nn.RNNBase):
                part.register_forward_pre_hook(mark(True))
                part.register_forward_hook(mark(False))
                part.register_full_backward_pre_hook(mark(True))
                part.register_full_backward_hook(mark(False))

    def keep(self, tensor: Tensor) -> Any:
        """Count a tensor that waits for the backward pass, once for all views of its memory."""
        return tensor if _key(tensor) in self.weights else _Kept(self, tensor)

    def change(self, tensor: Tensor, by: int) -> None:
        """Add or take away one holder of a tensor's memory."""
        key, size = _key(tensor), tensor.untyped_storage().nbytes() * (0.5 if self.half else 1.0)
        held = self.kept[key]
        self.kept[key] += by
        if not held or not self.kept[key]:
            self.kept_bytes += by * size
        self.counts.activation_bytes = max(self.counts.activation_bytes, self.kept_bytes)


class _FusedAttention(TorchFunctionMode):
    """Attend as GPUs and CPUs do, without writing the matrix; a mask changes no count."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is functional.scaled_dot_product_attention:
            return torch.ops.aten._scaled_dot_product_flash_attention(*args[:3])[0]
        return func(*args, **(kwargs or {}))


class _Kept:
    """A tensor that a graph holds; gone when the graph is."""

    def __init__(self, ledger: _Ledger, tensor: Tensor) -> None:
        self.ledger, self.tensor = ledger, tensor
        ledger.change(tensor, 1)

    def __del__(self) -> None:
        self.ledger.change(self.tensor, -1)


def _key(tensor: Tensor) -> int:
    """Return what all views of one memory share."""
    key: int = tensor.untyped_storage()._cdata
    return key


def _bytes(values: Any) -> float:
    if isinstance(values, Tensor):
        return float(values.numel() * values.element_size())
    if isinstance(values, (list, tuple)):
        return sum(_bytes(value) for value in values)
    return 0.0


def count_step(config: dict[str, Any], images: int, frames: int) -> StepCounts:
    """Count one training step of a configuration.

    Args:
        config: composed, of any stage; nothing it names is opened.
        images: of one rank.
        frames: steps of time of an utterance, where speech is read.

    Returns: counts; networks that live in other runs have their published sizes.
    """
    counts = StepCounts()
    module, forward, backward = step_parts(config, images, frames, torch.device("meta"), counts)
    ledger = _Ledger(counts, config["trainer"]["precision"] == "bf16-mixed")
    ledger.watch(module)
    with (
        ledger,
        _FusedAttention(),
        saved_tensors_hooks(ledger.keep, lambda kept: getattr(kept, "tensor", kept)),
    ):
        told = forward()
        counts.forward_flops = counts.flops
        backward(told)
    del told
    gc.collect()
    _count_parameters(module, counts)
    return counts


Parts = tuple[TrainingModule, Callable[[], Any], Callable[[Any], Any]]


def step_parts(
    config: dict[str, Any], images: int, frames: int, device: torch.device, counts: StepCounts | None = None
) -> Parts:
    """Build the module of a configuration with an empty batch.

    Args:
        config: see `count_step`.
        images: of the batch.
        frames: see `count_step`.
        device: `meta` to count, another one to time.
        counts: where parts that could not be built are named.

    Returns: the module, its forward pass, and its backward pass, which takes what the forward pass returned.
    """
    build = {"encoder": _encoder, "codec": _codec, "gan": _gan, "diffusion": _diffusion}[config["stage"]]
    with device:
        return build(config, images, frames, counts or StepCounts())


def _encoder(config: dict[str, Any], images: int, frames: int, counts: StepCounts) -> Parts:
    encoder, branch, node = build_encoder(config["encoder"]), None, config["vision"]
    if node["_target_"] and "FeatureFile" not in node["_target_"]:
        try:
            branch = build_image_branch(node)
        except MissingPackageError as error:
            counts.missing.append(f"image branch: {error.message}")
    if branch is None and config["loss"]["objective"] != "li_et_al":
        branch = _UnknownBranch(int(encoder.sentence_dim))  # type: ignore[arg-type]
    module = EncoderModule(
        encoder,
        branch,
        num_classes=NUM_CLASSES,
        **optim_arguments(config),
        **encoder_loss_arguments(config["loss"]),
    ).train()
    side = config["data"]["image_px"]
    lengths = torch.full((images,), frames, device="cpu")
    batch: dict[str, Any] = {
        "speech": SpeechBatch(torch.zeros(images, frames, int(encoder.mel_dim)), lengths),  # type: ignore[arg-type]
        "image": torch.zeros(images, 3, side, side),
        "class_id": torch.zeros(images, dtype=torch.int64),
        "image_index": torch.zeros(images, dtype=torch.int64),
    }
    if branch is None:
        batch["teacher"] = torch.zeros(images, int(encoder.sentence_dim))  # type: ignore[arg-type]
    return module, lambda: module.loss_terms(batch)[0]["loss"], torch.autograd.backward


class _UnknownBranch(nn.Module):
    """Stands for a frozen image network whose package is not installed: one embedding for all images."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.embed_dim = dim

    def forward(self, images: Tensor) -> Tensor:
        """Return `(B, D)`."""
        return images.new_ones(len(images), self.embed_dim)


def _codec(config: dict[str, Any], images: int, frames: int, counts: StepCounts) -> Parts:
    module = codec_fit.make_module({**config, "loss": {**config["loss"], "lpips_path": None}})
    if config["loss"]["lpips_path"] is not None:
        counts.missing.append("perceptual network: its weights are not read here")
    side = config["data"]["image_px"]
    seen = torch.zeros(images, 3, side, side)
    module.disc_start = 0  # the steps that most of a run is made of

    def backward(output: Any) -> None:
        module.network_backward(seen, output)
        if module.adversarial:
            module.discriminator_backward(seen, output.images.detach())

    cells = side // module.network.factor
    is_relaxed = isinstance(module.network.quantize, GumbelQuantizer)
    noise = torch.zeros(images, module.network.num_codes, cells, cells) if is_relaxed else None
    return module, lambda: module.network(seen, noise), backward


def _gan(config: dict[str, Any], images: int, frames: int, counts: StepCounts) -> Parts:
    node, loss = config["generator"], dict(config["loss"])
    if loss["semantic_weight"] or loss["prototype_weight"]:
        counts.missing.append("image branch of the encoder's run: which run is not known here")
        loss |= {"semantic_weight": 0.0, "prototype_weight": 0.0}
    told = config["encoder"].get("lda_dim") or SENTENCE_DIM
    generator = build_generator(node, told)
    loss.pop("objective")
    module = GanModule(
        generator, build_discriminators(node), noise_dim=node["noise_dim"], **optim_arguments(config), **loss
    ).train()
    pyramids = [
        ImagePyramid(tuple(torch.zeros(images, 3, side, side) for side in generator.image_sizes))
        for _ in range(2)
    ]
    batch = {
        "sentence": torch.zeros(images, told),
        "real": pyramids[0],
        "wrong": pyramids[1],
        "class_id": torch.zeros(images, dtype=torch.int64),
    }
    draws = torch.zeros(images, generator.noise_dim), torch.zeros(images, generator.condition_dim)

    def backward(output: Any) -> None:
        for level in range(len(module.discriminators)):
            module.discriminator_backward(level, batch, output)
        module.generator_backward(batch, output)

    return module, lambda: generator(batch["sentence"], *draws), backward


def _diffusion(config: dict[str, Any], images: int, frames: int, counts: StepCounts) -> Parts:
    node = config["generator"]
    sentence_dim = config["encoder"].get("lda_dim") or SENTENCE_DIM
    words_dim = WORDS_DIM
    if reads_captions(config["encoder"]):
        text = build_encoder(config["encoder"])
        sentence_dim, words_dim = int(text.sentence_dim), int(text.words_dim)  # type: ignore[arg-type]
    if node["conditioning"] == "modulation":
        sentence_dim = 2 * node["dim"]
    device = torch.get_default_device()
    tokens_of_codec, grid = node["num_tokens"] or 256, node["grid"] or [8, 8]
    with torch.device("cpu"):  # the schedule reads its own numbers
        module = diffusion_fit.make_module(
            config, tokens_of_codec, grid, sentence_dim, words_dim, NUM_CLASSES, device=device.type
        )
    module = module.to(device).train()
    counts.num_units = node["depth"] + 1
    tokens = torch.zeros(images, module.network.length, dtype=torch.int64)
    t = torch.zeros(images, dtype=torch.int64)
    told = DiffusionCondition(
        sentence=torch.zeros(images, sentence_dim),
        words=torch.zeros(images, NUM_WORDS, words_dim),
        class_id=torch.zeros(images, dtype=torch.int64),
    )

    def backward(logits: Tensor) -> None:
        terms = module.loss(logits.float(), tokens, tokens, t, torch.ones(images, device=device))
        torch.autograd.backward(terms["loss"])

    return module, lambda: module.network(tokens, t, told), backward


def _count_parameters(module: TrainingModule, counts: StepCounts) -> None:
    average = getattr(module, "ema", None)
    averaged = set() if average is None else {id(value) for value in average.parameters()}
    for value in module.parameters():
        if id(value) in averaged:
            counts.averaged += value.numel()
        elif value.requires_grad:
            counts.trained += value.numel()
        else:
            counts.frozen += value.numel()
