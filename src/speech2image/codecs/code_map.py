"""Reduced code books and how much of a code book is used.

Released diffusion models speak a shortened list of codes: a lookup gives every full code a reduced
number, and each reduced number stands for the first full code that has it.  All codes outside the
list share number 0, so reduction loses them.  The code book itself is in `quantizers.py`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from speech2image.errors import CheckpointError


class CodeMap(nn.Module):
    """Translate between the numbers of a full and of a reduced code book.

    A new map keeps the first codes; `from_lookup` makes the map of a published table.

    Args:
        num_codes: full size.
        num_reduced: reduced size.
    Attributes:
        full_to_reduced: `(num_codes,)` int64.
        reduced_to_full: `(num_reduced,)` int64.
    Source:  VQ-Diffusion `taming_gumbel_vqvae.py`, `full_to_quantize`, `quantize_to_full`; files
        `taming_vqvae_974.pt`, `taming_vqvae_2887.pt`.  Differs: both tables are part of the state.
    """

    full_to_reduced: Tensor
    reduced_to_full: Tensor

    def __init__(self, num_codes: int, num_reduced: int) -> None:
        super().__init__()
        codes = torch.arange(num_codes)
        self.register_buffer("full_to_reduced", torch.where(codes < num_reduced, codes, 0))
        self.register_buffer("reduced_to_full", torch.arange(num_reduced))

    @classmethod
    def from_lookup(cls, full_to_reduced: Tensor) -> CodeMap:
        """Return the map of a table `(num_codes,)` of reduced numbers.

        Raises:  CheckpointError: not a table of whole numbers in which every reduced number occurs.
        """
        table = full_to_reduced.detach().cpu()
        if table.dim() != 1 or table.is_floating_point() or len(table) == 0 or int(table.min()) < 0:
            raise CheckpointError(
                f"a code map is a table of whole numbers from 0, found {tuple(table.shape)} {table.dtype}",
                "Give taming_vqvae_974.pt, taming_vqvae_2887.pt or a table like them.",
            )
        code_map = cls(len(table), int(table.max()) + 1)
        code_map.full_to_reduced.copy_(table)
        first = torch.full((code_map.num_reduced,), len(table))
        first.scatter_reduce_(0, table.long(), torch.arange(len(table)), "amin")
        code_map.reduced_to_full.copy_(first)
        code_map.check()
        return code_map

    @property
    def num_codes(self) -> int:
        """Size of the full code book."""
        return len(self.full_to_reduced)

    @property
    def num_reduced(self) -> int:
        """Size of the reduced code book."""
        return len(self.reduced_to_full)

    def check(self) -> None:
        """Compare the two tables.

        Raises:  CheckpointError: a reduced number stands for a code that does not have it, or for none.
        """
        inside = (self.reduced_to_full >= 0) & (self.reduced_to_full < self.num_codes)
        back = self.full_to_reduced[self.reduced_to_full.clamp(0, self.num_codes - 1)]
        wrong = (~inside | (back != torch.arange(self.num_reduced, device=back.device))).nonzero().flatten()
        if len(wrong):
            raise CheckpointError(
                f"the code map contradicts itself: {len(wrong)} of {self.num_reduced} reduced codes do not"
                f" come back, first {int(wrong[0])}",
                "The file is damaged; take the published one again.",
            )

    def reduce(self, tokens: Tensor) -> Tensor:
        """Return reduced numbers of full codes, any shape."""
        return self.full_to_reduced[tokens]

    def expand(self, tokens: Tensor) -> Tensor:
        """Return the full code each reduced number stands for, any shape."""
        return self.reduced_to_full[tokens]


@dataclass(frozen=True, slots=True)
class CodeUsage:
    """How a code book was used.

    Attributes:
        used: codes seen at least once.
        size: codes there are.
        perplexity: exp of the entropy of their frequencies, 1 to `size`.
    """

    used: int
    size: int
    perplexity: float


def count_codes(tokens: Tensor, num_codes: int) -> Tensor:
    """Return how often each code occurs in `tokens` (any shape), `(num_codes,)` int64."""
    return torch.bincount(tokens.flatten(), minlength=num_codes)


def code_usage(counts: Tensor) -> CodeUsage:
    """Summarise counts `(K,)` of `count_codes`, summed over as many images as you like.

    >>> code_usage(torch.tensor([2, 2, 0, 0]))
    CodeUsage(used=2, size=4, perplexity=2.0)
    """
    share = counts.double() / counts.sum().clamp(min=1)
    entropy = torch.special.entr(share).sum()
    return CodeUsage(int((counts > 0).sum()), len(counts), round(float(entropy.exp()), 6))
