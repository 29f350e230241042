"""What enters the transformer besides scores: token and position tables, and the step as a vector.

The released position tables may be larger than the code grid; the quirk that follows from it is kept
because released weights were trained with it, and new networks simply take a table of the grid's size.
Blocks that use these vectors are in `blocks.py`, the whole network in `transformer.py`.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

#: The released sinusoids stretch the schedule to this length and use this longest period.
RESCALED_STEPS = 4000.0
LONGEST_PERIOD = 10000.0


class ContentEmbedding(nn.Module):
    """Embed code tokens (mask included) and add a learned position, one vector a row and one a column.

    Args:
        num_tokens: K real tokens; the mask is row K of the table.
        length: L, tokens an image.
        dim: width d.
        table: rows and columns of the position tables.  Position i takes row `i // columns` and column
            `i % columns` of this table, not of the code grid: with a 32x32 table and a 16x16 grid two
            grid rows share one table row, as in the released ImageNet, FFHQ and S2IVQ-D networks.

    Source:  VQ-Diffusion, section 5.1; reference `DalleMaskImageEmbedding`.  Differs: none.
    """

    def __init__(self, num_tokens: int, length: int, dim: int, table: tuple[int, int]) -> None:
        super().__init__()
        self.emb = nn.Embedding(num_tokens + 1, dim)
        self.height_emb = nn.Embedding(table[0], dim)
        self.width_emb = nn.Embedding(table[1], dim)
        self.length = length

    def positions(self) -> Tensor:
        """Return the position vectors, `(L, d)`."""
        grid = self.height_emb.weight[:, None] + self.width_emb.weight[None]
        return grid.flatten(0, 1)[: self.length]

    def forward(self, tokens: Tensor) -> Tensor:
        """Embed tokens.

        Args:    tokens: `(B, L)` int64 in 0 .. K, K the mask.
        Returns: `(B, L, d)`.
        """
        embedded: Tensor = self.emb(tokens)
        return embedded + self.positions()


def sinusoid(t: Tensor, dim: int, num_steps: int) -> Tensor:
    """Write a step as sines and cosines.

    Args:    t: `(B,)` int64 in 0 .. num_steps - 1; dim: even width d.
    Returns: `(B, d)` float32, all sines first.
    Source:  reference `SinusoidalPosEmb`; the order of operations is kept, the arguments are large.

    >>> sinusoid(torch.tensor([1]), 8, 100)[0, :3]
    tensor([0.7451, 0.9594, 0.0861])
    """
    half = dim // 2
    rates = torch.exp(torch.arange(half, device=t.device) * -(math.log(LONGEST_PERIOD) / (half - 1)))
    angles = (t.float() / num_steps * RESCALED_STEPS)[:, None] * rates
    return torch.cat([angles.sin(), angles.cos()], dim=1)


class VectorEmbedding(nn.Module):
    """Join step and sentence into the vector that steers every block of the `adaptive` form.

    The sentence is layer-normalised first: SpeechCLIP vectors of unit length have components near 0.03,
    which leaves a raw projection almost blind at the start of training.

    Args:
        condition_dim: D, width of the sentence vector.
        dim: width d.
        num_steps: steps of the schedule.
        timestep: `learned` (a table) or `absolute` (sinusoids).

    Source:  DiT (arXiv 2212.09748), section 3.2, embedding of step and label added.
    """

    def __init__(self, condition_dim: int, dim: int, num_steps: int, timestep: str) -> None:
        super().__init__()
        self.dim, self.num_steps = dim, num_steps
        self.emb = nn.Embedding(num_steps, dim) if timestep == "learned" else None
        self.step = nn.Sequential(nn.Linear(dim, dim), nn.SiLU(), nn.Linear(dim, dim))
        self.sentence = nn.Sequential(nn.LayerNorm(condition_dim), nn.Linear(condition_dim, dim))

    def forward(self, t: Tensor, sentence: Tensor) -> Tensor:
        """Return the steering vector.

        Args:    t: `(B,)` int64; sentence: `(B, D)`.
        Returns: `(B, d)`.
        """
        if self.emb is None:
            step = sinusoid(t, self.dim, self.num_steps).to(sentence.dtype)
        else:
            step = self.emb(t)
        vector: Tensor = self.step(step) + self.sentence(sentence)
        return vector


def replace_null_words(
    words: Tensor, mask: Tensor | None, null_words: Tensor, is_null: Tensor
) -> tuple[Tensor, Tensor | None]:
    """Put the learned null words in place of the words of unconditional items.

    Args:
        words: `(B, N, D)`; mask: `(B, N)` bool, True at valid words; None: all are valid.
        null_words: `(M, D)`.
        is_null: `(B,)` bool.

    Returns: words `(B, max(N, M), D)` and their mask, None where every item has the same length.
    """
    num_words, num_null = words.shape[1], null_words.shape[0]
    if mask is None and num_words != num_null:
        mask = torch.ones(words.shape[:2], dtype=torch.bool, device=words.device)
    longest = max(num_words, num_null)
    words = nn.functional.pad(words, (0, 0, 0, longest - num_words))
    null = nn.functional.pad(null_words, (0, 0, 0, longest - num_null)).to(words.dtype)
    words = torch.where(is_null[:, None, None], null, words)
    if mask is None:
        return words, None
    mask = nn.functional.pad(mask, (0, longest - num_words))
    null_mask = torch.arange(longest, device=words.device) < num_null
    return words, torch.where(is_null[:, None], null_mask, mask)
