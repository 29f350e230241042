"""The transformers that predict clean codes from noisy ones, one class for all published forms and ours.

`cross` reads words (VQ-Diffusion text), `class` a label (ImageNet), `modulation` the utterance vector as scale and
shift (S2IVQ-D), `none` nothing (FFHQ); `adaptive` is the form for new training.  Parameter names of the published
forms are the released ones.  Blocks are in `blocks.py`, reading released files in `hub/convert/vq_diffusion.py`.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from speech2image.diffusion.blocks import (
    ACTIVATIONS,
    AdaptiveBlock,
    BlockSizes,
    ConditionBlock,
    CrossBlock,
    Steering,
    modulate,
)
from speech2image.diffusion.embeddings import ContentEmbedding, VectorEmbedding, replace_null_words
from speech2image.diffusion.linear import TokenLinear
from speech2image.errors import ConfigError
from speech2image.types import Condition

CONDITIONINGS = ("adaptive", "cross", "class", "modulation", "none")
#: How each form was released: what stands for "no condition".
_NULL_OF_FORM = {
    "adaptive": "learned",
    "cross": "none",
    "class": "mean",
    "modulation": "none",
    "none": "none",
}
_NULLS_OF_FORM = {
    "adaptive": ("learned",),
    "cross": ("none", "learned"),
    "class": ("mean", "learned"),
    "modulation": ("none", "learned"),
    "none": ("none",),
}
_INIT_STD = 0.02

#: Parameters of released networks that nothing reads: the unused causal masks of cross-attention, and, in the
#: `modulation` form, the label norms (24.9 M parameters of the published S2IVQ-D).
DEAD_KEYS: dict[str, re.Pattern[str]] = {
    "cross": re.compile(r"blocks\.\d+\.attn2\.mask"),
    "modulation": re.compile(r"blocks\.\d+\.ln2\.(emb\.weight|linear\.weight|linear\.bias)"),
}


@dataclass(frozen=True)
class DiffusionCondition:
    """What the transformer is told; each form reads its own part, the rest may be None.

    Attributes:
        sentence: `(B, D)` float.
        words: `(B, N, Dw)` float, one vector a position.
        mask: `(B, N)` bool, True at valid words; None: all are valid.
        class_id: `(B,)` int64.
        is_null: `(B,)` bool, True where the network is to ignore all of the above; None: nowhere.
    """

    sentence: Tensor | None = None
    words: Tensor | None = None
    mask: Tensor | None = None
    class_id: Tensor | None = None
    is_null: Tensor | None = None

    @classmethod
    def from_encoder(cls, condition: Condition, is_null: Tensor | None = None) -> DiffusionCondition:
        """Take over what a speech or text encoder says; its words `(B, D, N)` become `(B, N, D)`."""
        words = None if condition.words is None else condition.words.transpose(1, 2)
        return cls(condition.sentence, words, condition.mask, is_null=is_null)

    def to(self, device: torch.device | str) -> DiffusionCondition:
        """Return the record on `device`."""
        return DiffusionCondition(
            *(None if value is None else value.to(device)
              for value in (self.sentence, self.words, self.mask, self.class_id, self.is_null))
        )  # fmt: skip

    def with_null(self, is_null: bool) -> DiffusionCondition:
        """Return the same record with every item null, or none: the two sides of guidance, equal in shape.

        Raises:  ConfigError: the record is empty, so its batch size is unknown.
        """
        for value in (self.sentence, self.words, self.class_id):
            if value is not None:
                flags = torch.full((len(value),), is_null, dtype=torch.bool, device=value.device)
                return dataclasses.replace(self, is_null=flags)
        raise ConfigError(
            "guidance: the condition holds neither sentence, words nor labels",
            "set sampler.guidance_scale=1 for a network without conditioning",
        )


class DiffusionTransformer(nn.Module):
    """Score all codes at every position of a partly masked code grid.

    Args:
        num_tokens: K, real tokens of the codec; the mask is token K.
        grid: `(H, W)` of the codes, L = H W.
        depth: number of blocks.
        dim: width d.
        heads: attention heads.
        conditioning: `adaptive`, `cross`, `class`, `modulation` or `none`.
        condition_dim: D of the sentence; `adaptive` needs it; `modulation` takes 2 d and may leave it out.
        words_dim: Dw of the words; `cross` needs it; `adaptive` attends to words where it is given.
        num_classes: labels of `class`.
        num_steps: T, steps of the schedule.
        table: rows and columns of the position tables; None: as the grid.  Released networks of 16x16
            codes have 32x32, see `ContentEmbedding`.
        mlp: `fc` or `conv`; mlp_ratio: its hidden width over d.
        activation: `gelu2` or `gelu`.
        timestep: `learned` table or `absolute` sinusoids.
        null: what stands for "no condition": `learned` vectors, `mean` of the labels, `none` of it;
            None: as the form was released, and `learned` for `adaptive`.
        num_null_words: learned null words, 77 in the released text form.
        recompute: keep only the input of each block for the backward pass.

    Raises:  ConfigError: an unknown name, or sizes that contradict; all problems in one message.
    Source:  VQ-Diffusion, section 5.1; S2IVQ-D (Speak the Art), section 3; the forms are described at their blocks.
        Differs: `adaptive` is ours; dead parameters are not built; fused attention.
    """

    def __init__(
        self,
        num_tokens: int,
        grid: tuple[int, int],
        depth: int,
        dim: int,
        heads: int,
        *,
        conditioning: str = "adaptive",
        condition_dim: int | None = None,
        words_dim: int | None = None,
        num_classes: int | None = None,
        num_steps: int = 100,
        table: tuple[int, int] | None = None,
        mlp: str = "fc",
        mlp_ratio: float = 4.0,
        activation: str = "gelu2",
        timestep: str = "learned",
        null: str | None = None,
        num_null_words: int = 1,
        recompute: bool = False,
    ) -> None:
        super().__init__()
        grid, table = (grid[0], grid[1]), (grid[0], grid[1]) if table is None else (table[0], table[1])
        null = _NULL_OF_FORM.get(conditioning) if null is None else null
        if conditioning == "modulation" and condition_dim is None:
            condition_dim = 2 * dim
        sizes = BlockSizes(dim, heads, grid, mlp, round(dim * mlp_ratio), activation, timestep, num_steps)
        self.num_tokens, self.grid, self.dim, self.num_steps = num_tokens, grid, dim, num_steps
        self.length = grid[0] * grid[1]
        self.conditioning, self.null, self.recompute = conditioning, null, recompute
        self.condition_dim, self.words_dim, self.num_classes = condition_dim, words_dim, num_classes
        _check(self, sizes, table, num_null_words)
        self.content_emb = ContentEmbedding(num_tokens, self.length, dim, table)
        self.blocks = nn.ModuleList(self._block(sizes) for _ in range(depth))
        is_adaptive = conditioning == "adaptive"
        last_norm = nn.Identity() if is_adaptive else nn.LayerNorm(dim)
        self.to_logits = nn.Sequential(last_norm, TokenLinear(dim, num_tokens))
        if is_adaptive:
            self.vector_emb = VectorEmbedding(condition_dim or 0, dim, num_steps, timestep)
            self.final_steer = nn.Linear(dim, 2 * dim)
        if null == "learned" and conditioning in ("adaptive", "modulation"):
            self.null_sentence = nn.Parameter(torch.empty(condition_dim or 0))
        if null == "learned" and words_dim is not None and conditioning in ("adaptive", "cross"):
            self.null_words = nn.Parameter(torch.empty(num_null_words, words_dim))
        if is_adaptive and words_dim is not None:
            self.words_norm = nn.LayerNorm(words_dim)
        self.reset_parameters()

    def _block(self, sizes: BlockSizes) -> nn.Module:
        if self.conditioning == "adaptive":
            return AdaptiveBlock(sizes, self.words_dim)
        if self.conditioning == "cross":
            return CrossBlock(sizes, self.words_dim or 0)
        return ConditionBlock(sizes, self.conditioning, self.num_classes or 0, self.null == "learned")

    def reset_parameters(self) -> None:
        """Draw fresh parameters; released forms: N(0, 0.02) for matrices, tables and null vectors, 0 for biases.

        `adaptive`: N(0, 1/inputs) for matrices and N(0, 1/d) for tables, so that a narrow network hears its
        condition from the first steps; gates, the last steering and the last layer are 0.
        Convolutions keep PyTorch's own.
        """
        is_adaptive = self.conditioning == "adaptive"
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=module.in_features**-0.5 if is_adaptive else _INIT_STD)
                nn.init.zeros_(module.bias)
            elif isinstance(module, nn.Embedding):
                nn.init.normal_(module.weight, std=self.dim**-0.5 if is_adaptive else _INIT_STD)
        for name in ("null_sentence", "null_words"):
            if hasattr(self, name):
                nn.init.normal_(getattr(self, name), std=_INIT_STD)
        if is_adaptive:
            steers = [block.steer for block in self.blocks if isinstance(block, AdaptiveBlock)]
            for linear in (*steers, self.final_steer, self.to_logits[1]):
                nn.init.zeros_(linear.weight)  # type: ignore[arg-type]

    @property
    def has_null(self) -> bool:
        """Whether the network knows "no condition", as guidance and condition dropout need."""
        return self.null in ("learned", "mean")

    def forward(self, tokens: Tensor, t: Tensor, condition: DiffusionCondition | None = None) -> Tensor:
        """Score the clean codes.

        Args:
            tokens: `(B, L)` int64 in 0 .. K, K the mask.
            t: `(B,)` int64 in 0 .. T-1.
            condition: what this form reads; None only for `none`.

        Returns: `(B, K, L)` scores; log p(x_0 | x_t) is their log-softmax over K.
        Raises:  ConfigError: tokens of another length, a part of the condition missing or of the wrong
            width, or null items for a network without a null condition.
        """
        if tokens.shape[1] != self.length:
            raise ConfigError(
                f"transformer: got {tokens.shape[1]} tokens an image, expected {self.length}"
                f" (a grid of {self.grid[0]}x{self.grid[1]})",
                "use codes of the codec that this network was trained on",
            )
        steering = self._steering(t, condition or DiffusionCondition())
        content = self.content_emb(tokens)
        for block in self.blocks:
            content = self._run(block, content, steering)
        return self._head(content, steering).transpose(1, 2)

    def _run(
        self, block: Callable[[Tensor, Steering], Tensor], content: Tensor, steering: Steering
    ) -> Tensor:
        if self.recompute and torch.is_grad_enabled():
            recomputed: Tensor = checkpoint(block, content, steering, use_reentrant=False)
            return recomputed
        return block(content, steering)

    def _head(self, content: Tensor, steering: Steering) -> Tensor:
        if self.conditioning == "adaptive":
            assert steering.vector is not None
            scale, shift = self.final_steer(nn.functional.silu(steering.vector)).chunk(2, dim=1)
            content = modulate(content, scale, shift)
        scores: Tensor = self.to_logits(content)
        return scores

    def _steering(self, t: Tensor, condition: DiffusionCondition) -> Steering:
        is_null = condition.is_null
        if is_null is not None and not self.has_null and self.conditioning != "none":
            raise ConfigError(
                f"transformer: this '{self.conditioning}' network has no null condition",
                "set sampler.guidance_scale=1, or train with generator.null=learned",
            )
        steering = Steering(t, is_null=is_null)
        if self.conditioning == "class":
            return steering._replace(class_id=self._part(condition.class_id, "class_id", None))
        if self.conditioning in ("modulation", "adaptive"):
            sentence = self._part(condition.sentence, "sentence", self.condition_dim)
            if is_null is not None:
                sentence = torch.where(is_null[:, None], self.null_sentence, sentence)
            is_adaptive = self.conditioning == "adaptive"
            steering = steering._replace(vector=self.vector_emb(t, sentence) if is_adaptive else sentence)
        if self.conditioning in ("cross", "adaptive") and self.words_dim is not None:
            words, mask = self._words(condition)
            steering = steering._replace(words=words, mask=mask)
        return steering

    def _words(self, condition: DiffusionCondition) -> tuple[Tensor, Tensor | None]:
        words, mask = self._part(condition.words, "words", self.words_dim), condition.mask
        if condition.is_null is not None:
            words, mask = replace_null_words(words, mask, self.null_words, condition.is_null)
        if self.conditioning == "adaptive":
            words = self.words_norm(words)
        return words, None if mask is None else mask[:, None, None]

    def _part(self, value: Tensor | None, name: str, width: int | None) -> Tensor:
        if value is None:
            raise ConfigError(
                f"transformer: a '{self.conditioning}' network needs condition.{name}, found none",
                "use an encoder that gives it, or another generator.conditioning",
            )
        if width is not None and value.shape[-1] != width:
            raise ConfigError(
                f"transformer: condition.{name} is {value.shape[-1]} wide, expected {width}",
                "use the encoder that this network was trained with",
            )
        return value.to(self.content_emb.emb.weight.dtype) if value.is_floating_point() else value


def _check(network: DiffusionTransformer, sizes: BlockSizes, table: tuple[int, int], null_words: int) -> None:
    """Raise one ConfigError that lists every contradiction of the arguments."""
    form, null, problems = network.conditioning, network.null, []
    for key, found, known in (
        ("conditioning", form, CONDITIONINGS),
        ("mlp", sizes.mlp, ("fc", "conv")),
        ("activation", sizes.activation, tuple(ACTIVATIONS)),
        ("timestep", sizes.timestep, ("learned", "absolute")),
        ("null", null, _NULLS_OF_FORM.get(form, (null,))),
    ):
        if found not in known:
            problems.append(f"{key}={found!r}, expected one of {', '.join(map(str, known))}")
    if sizes.dim % sizes.heads or sizes.dim % 2:
        problems.append(f"dim={sizes.dim}, expected an even multiple of heads={sizes.heads}")
    if math.prod(table) < network.length:
        problems.append(f"table={table} holds fewer positions than grid={network.grid}")
    if min(network.num_tokens, network.num_steps, network.length, null_words) < 1:
        problems.append("num_tokens, num_steps, grid and num_null_words must be at least 1")
    needs = {"adaptive": "condition_dim", "cross": "words_dim", "class": "num_classes"}.get(form)
    if needs and not getattr(network, needs):
        problems.append(f"{needs} is missing, conditioning={form} needs it")
    if form == "modulation" and network.condition_dim != 2 * sizes.dim:
        problems.append(f"condition_dim={network.condition_dim}, modulation needs 2 * dim = {2 * sizes.dim}")
    if problems:
        raise ConfigError("generator: " + "; ".join(problems), "correct these keys under generator.")
