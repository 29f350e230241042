"""Blocks of the diffusion transformers: norms steered by step, label or vector, attention, feed-forward.

Three blocks: `CrossBlock` (text), `ConditionBlock` (label, utterance vector or nothing) with the released
parameter names, and `AdaptiveBlock`, ours.  Embeddings are in `embeddings.py`, the network in `transformer.py`.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from speech2image.diffusion.embeddings import sinusoid
from speech2image.diffusion.linear import TokenLinear

#: GELU2(x) = x * sigmoid(1.702 x).
GELU2_SLOPE = 1.702


class Steering(NamedTuple):
    """What a block may look at besides the content; each form reads its own part.

    Attributes:
        t: `(B,)` int64, diffusion step.
        vector: adaptive: `(B, d)` step and sentence; modulation: `(B, 2d)`, scale then shift.
        words: `(B, N, Dw)`.
        mask: `(B, 1, 1, N)` bool, True at valid words; None: all are valid.
        class_id: `(B,)` int64.
        is_null: `(B,)` bool, True where the label is to be ignored.
    """

    t: Tensor
    vector: Tensor | None = None
    words: Tensor | None = None
    mask: Tensor | None = None
    class_id: Tensor | None = None
    is_null: Tensor | None = None


def modulate(content: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """Normalise without parameters, then scale by 1 + `scale` and shift.

    Args:    content: `(B, L, d)`; scale, shift: `(B, d)`.
    Returns: `(B, L, d)`, LN(content) (1 + scale) + shift.
    Source:  VQ-Diffusion, section 5.1 (AdaLN).
    """
    normed = F.layer_norm(content, content.shape[-1:])
    return torch.addcmul(shift[:, None], normed, 1 + scale[:, None])


class GELU2(nn.Module):
    """The released activation x sigmoid(1.702 x), written as SiLU: one saved tensor instead of two."""

    def forward(self, hidden: Tensor) -> Tensor:
        """Return the activation, same shape."""
        # SiLU looks back at what it was given only, so the division may overwrite what it returned.
        scaled = hidden * GELU2_SLOPE
        return F.silu(scaled, inplace=not torch.is_grad_enabled()).div_(GELU2_SLOPE)


#: Activations by the name that configurations use.
ACTIVATIONS: dict[str, type[nn.Module]] = {"gelu2": GELU2, "gelu": nn.GELU}


class StepNorm(nn.Module):
    """AdaLN steered by the diffusion step.

    Args:
        dim: width d.
        num_steps: steps of the schedule.
        timestep: `learned` (a table a norm) or `absolute` (sinusoids).

    Source:  VQ-Diffusion, section 5.1; reference `AdaLayerNorm`.  Differs: none.
    """

    def __init__(self, dim: int, num_steps: int, timestep: str) -> None:
        super().__init__()
        self.dim, self.num_steps = dim, num_steps
        self.emb = nn.Embedding(num_steps, dim) if timestep == "learned" else None
        self.linear = nn.Linear(dim, 2 * dim)

    def forward(self, content: Tensor, t: Tensor) -> Tensor:
        """Return `(B, L, d)` for content `(B, L, d)` and steps `(B,)`."""
        if self.emb is None:
            step = sinusoid(t, self.dim, self.num_steps).to(self.linear.weight.dtype)
        else:
            step = self.emb(t)
        scale, shift = self.linear(F.silu(step)).chunk(2, dim=1)
        return modulate(content, scale, shift)


class ClassNorm(nn.Module):
    """AdaLN steered by a label; an ignored label is the mean of all label vectors, or the last row.

    Args:
        dim: width d.
        num_classes: labels.
        learned_null: the table has one row more, which stands for "no label".

    Source:  reference `AdaLayerNorm` over classes.  Differs: each item of a batch decides for itself
        whether it has a label; the released code looks only at the first.
    """

    def __init__(self, dim: int, num_classes: int, learned_null: bool) -> None:
        super().__init__()
        self.num_classes, self.learned_null = num_classes, learned_null
        self.emb = nn.Embedding(num_classes + int(learned_null), dim)
        self.linear = nn.Linear(dim, 2 * dim)

    def forward(self, content: Tensor, class_id: Tensor, is_null: Tensor | None) -> Tensor:
        """Return `(B, L, d)`.

        Args:
            content: `(B, L, d)`.
            class_id: `(B,)` int64; `num_classes` and above mean "no label", as in the released code.
            is_null: `(B,)` bool, or None.
        """
        unlabelled = class_id >= self.num_classes
        unlabelled = unlabelled if is_null is None else unlabelled | is_null
        null = self.emb.weight[-1] if self.learned_null else self.emb.weight.mean(dim=0)
        label = self.emb(class_id.clamp(max=self.num_classes - 1))
        label = torch.where(unlabelled[:, None], null, label)
        scale, shift = self.linear(F.silu(label)).chunk(2, dim=1)
        return modulate(content, scale, shift)


class Attention(nn.Module):
    """Multi-head attention, nothing causal, through the fused kernel.

    Args:
        dim: width d of queries and output.
        heads: heads.
        source_dim: width of what is attended to; None: the content itself.

    Source:  VQ-Diffusion, section 5.1; reference `FullAttention` and `CrossAttention`, scale
        1 / sqrt(d / heads).  Differs: the unused triangular mask is not kept; padding may be masked.
    """

    def __init__(self, dim: int, heads: int, source_dim: int | None = None) -> None:
        super().__init__()
        self.heads = heads
        self.key = TokenLinear(source_dim or dim, dim)
        self.query = TokenLinear(dim, dim)
        self.value = TokenLinear(source_dim or dim, dim)
        self.proj = TokenLinear(dim, dim)

    def forward(self, content: Tensor, source: Tensor, mask: Tensor | None = None) -> Tensor:
        """Return `(B, L, d)` for content `(B, L, d)`, source `(B, N, D)`, mask `(B, 1, 1, N)` bool."""
        query, key, value = (
            part.view(*part.shape[:2], self.heads, -1).transpose(1, 2)
            for part in (self.query(content), self.key(source), self.value(source))
        )
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        projected: Tensor = self.proj(mixed.transpose(1, 2).flatten(2))
        return projected


class ConvMlp(nn.Module):
    """Feed-forward of two 3x3 convolutions over the code grid.

    Args:
        dim: width d; hidden_dim: width between.
        grid: `(H, W)` of the codes.
        activation: activation module.

    Source:  reference `Conv_MLP`.  Differs: none; the map stays in channels-last memory, so no copy is made.
    """

    def __init__(self, dim: int, hidden_dim: int, grid: tuple[int, int], activation: nn.Module) -> None:
        super().__init__()
        self.grid = grid
        self.conv1 = nn.Conv2d(dim, hidden_dim, kernel_size=3, padding=1)
        self.act = activation
        self.conv2 = nn.Conv2d(hidden_dim, dim, kernel_size=3, padding=1)

    def forward(self, content: Tensor) -> Tensor:
        """Return `(B, L, d)` for content `(B, L, d)`, L = H W."""
        code_map = content.reshape(-1, *self.grid, content.shape[-1]).permute(0, 3, 1, 2)
        code_map = self.conv2(self.act(self.conv1(code_map)))
        mixed: Tensor = code_map.permute(0, 2, 3, 1).flatten(1, 2)
        return mixed


class BlockSizes(NamedTuple):
    """What all blocks of one network share; see `DiffusionTransformer` for the meaning of each."""

    dim: int
    heads: int
    grid: tuple[int, int]
    mlp: str
    hidden_dim: int
    activation: str
    timestep: str
    num_steps: int

    def feed_forward(self) -> nn.Module:
        """Return the feed-forward part of one block."""
        activation = ACTIVATIONS[self.activation]()
        if self.mlp == "conv":
            return ConvMlp(self.dim, self.hidden_dim, self.grid, activation)
        first, second = TokenLinear(self.dim, self.hidden_dim), TokenLinear(self.hidden_dim, self.dim)
        return nn.Sequential(first, activation, second)

    def step_norm(self) -> StepNorm:
        """Return one norm steered by the step."""
        return StepNorm(self.dim, self.num_steps, self.timestep)


class CrossBlock(nn.Module):
    """Self-attention, cross-attention on words, feed-forward; the step enters both attentions.

    Args:
        sizes: shared sizes.
        words_dim: width of the words.

    Source:  VQ-Diffusion, section 5.1, figure 2; reference block `selfcross`.  Differs: none.
    """

    def __init__(self, sizes: BlockSizes, words_dim: int) -> None:
        super().__init__()
        self.ln1 = sizes.step_norm()
        self.ln2 = nn.LayerNorm(sizes.dim)
        self.attn1 = Attention(sizes.dim, sizes.heads)
        self.attn2 = Attention(sizes.dim, sizes.heads, words_dim)
        self.ln1_1 = sizes.step_norm()
        self.mlp = sizes.feed_forward()

    def forward(self, content: Tensor, steering: Steering) -> Tensor:
        """Return `(B, L, d)`."""
        assert steering.words is not None
        normed = self.ln1(content, steering.t)
        content = content + self.attn1(normed, normed)
        normed = self.ln1_1(content, steering.t)
        content = content + self.attn2(normed, steering.words, steering.mask)
        content = content + self.mlp(self.ln2(content))
        return content


class ConditionBlock(nn.Module):
    """Self-attention steered by the step, feed-forward steered by a label, a vector or nothing.

    Args:
        sizes: shared sizes.
        conditioning: `class`: ClassNorm; `modulation`: the utterance vector itself is scale and shift,
            the same in every block; `none`: an ordinary LayerNorm.
        num_classes: labels of `class`.
        learned_null: see `ClassNorm`.

    Source:  reference blocks `selfcondition` and `self`; S2IVQ-D's variant.  Differs: the label norm
        that S2IVQ-D builds and never uses is not built.
    """

    def __init__(self, sizes: BlockSizes, conditioning: str, num_classes: int, learned_null: bool) -> None:
        super().__init__()
        self.conditioning = conditioning
        self.ln1 = sizes.step_norm()
        if conditioning == "class":
            self.ln2: nn.Module = ClassNorm(sizes.dim, num_classes, learned_null)
        elif conditioning == "none":
            self.ln2 = nn.LayerNorm(sizes.dim)
        self.attn = Attention(sizes.dim, sizes.heads)
        self.mlp = sizes.feed_forward()

    def forward(self, content: Tensor, steering: Steering) -> Tensor:
        """Return `(B, L, d)`."""
        normed = self.ln1(content, steering.t)
        content = content + self.attn(normed, normed)
        content = content + self.mlp(self._second_norm(content, steering))
        return content

    def _second_norm(self, content: Tensor, steering: Steering) -> Tensor:
        if self.conditioning == "modulation":
            assert steering.vector is not None
            scale, shift = steering.vector.chunk(2, dim=1)
            return modulate(content, scale, shift)
        if self.conditioning == "class":
            normed: Tensor = self.ln2(content, steering.class_id, steering.is_null)
            return normed
        plain: Tensor = self.ln2(content)
        return plain


class AdaptiveBlock(nn.Module):
    """Self-attention, cross-attention on words, feed-forward; each with scale, shift and gate of its own.

    Gates start at zero, so the block starts as the identity.

    Args:
        sizes: shared sizes.
        words_dim: width of the words; None: no cross-attention.

    Source:  DiT (arXiv 2212.09748), section 3.2, adaLN-Zero; cross-attention in the same manner.
    """

    def __init__(self, sizes: BlockSizes, words_dim: int | None) -> None:
        super().__init__()
        self.parts = 2 if words_dim is None else 3
        self.attn1 = Attention(sizes.dim, sizes.heads)
        self.attn2 = None if words_dim is None else Attention(sizes.dim, sizes.heads, words_dim)
        self.mlp = sizes.feed_forward()
        self.steer = nn.Linear(sizes.dim, 3 * self.parts * sizes.dim)

    def forward(self, content: Tensor, steering: Steering) -> Tensor:
        """Return `(B, L, d)`."""
        assert steering.vector is not None
        signals = self.steer(F.silu(steering.vector)).chunk(3 * self.parts, dim=1)
        normed = modulate(content, signals[0], signals[1])
        content = torch.addcmul(content, signals[2][:, None], self.attn1(normed, normed))
        if self.attn2 is not None:
            assert steering.words is not None
            normed = modulate(content, signals[6], signals[7])
            heard = self.attn2(normed, steering.words, steering.mask)
            content = torch.addcmul(content, signals[8][:, None], heard)
        normed = modulate(content, signals[3], signals[4])
        return torch.addcmul(content, signals[5][:, None], self.mlp(normed))
