"""From latent vectors to code numbers and back: nearest code, Gumbel, and averaged code books.

Here: the three quantizers of released codecs, with their tensor names.  Each gives code numbers
without any randomness (`tokens`), the vectors of code numbers (`vectors`), and, for training, both
with a straight-through gradient and a loss.  Reduced code books are in `code_map.py`.
"""

from __future__ import annotations

import contextlib
import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_BLOCK = 2**26


@dataclass(frozen=True, slots=True)
class Quantized:
    """What a quantizer makes of latents `(B, C, H, W)`.

    Attributes:
        vectors: `(B, C, H, W)`, code vectors; their gradient reaches the latents.
        tokens: `(B, L)` int64, L = H W row by row.
        loss: scalar.
    """

    vectors: Tensor
    tokens: Tensor
    loss: Tensor


class Quantizer(nn.Module, ABC):
    """What the three have in common.

    Args:
        num_codes: size K of the code book.
        code_dim: width C of a code vector.
    """

    def __init__(self, num_codes: int, code_dim: int) -> None:
        super().__init__()
        self.num_codes, self.code_dim = num_codes, code_dim

    @abstractmethod
    def codebook(self) -> Tensor:
        """Return the code vectors, `(K, C)`."""

    def tokens(self, latents: Tensor) -> Tensor:
        """Return code numbers `(B, L)` int64 of latents `(B, C, H, W)`: the nearest codes."""
        return nearest_codes(_rows(latents), self.codebook()).view(len(latents), -1)

    def vectors(self, tokens: Tensor, height: int, width: int) -> Tensor:
        """Return code vectors `(B, C, height, width)` of code numbers `(B, height * width)`."""
        return F.embedding(tokens, self.codebook()).transpose(1, 2).reshape(len(tokens), -1, height, width)

    @abstractmethod
    def forward(self, latents: Tensor, gumbel: Tensor | None = None) -> Quantized:
        """Quantize `(B, C, H, W)` for training; `gumbel` is noise for the Gumbel form only."""


class VectorQuantizer(Quantizer):
    """Nearest code by squared distance, straight-through, code book learned by gradient.

    Args:
        num_codes: K.
        code_dim: C.
        commitment: weight beta of one of the two loss terms.
        legacy: put beta on the code-book term, as all released models were trained; False: on the
            commitment term, as the paper says.
    Source:  van den Oord et al. 2017, equation 3; taming `quantize.py` `VectorQuantizer2`.
    """

    def __init__(self, num_codes: int, code_dim: int, commitment: float = 0.25, legacy: bool = False) -> None:
        super().__init__(num_codes, code_dim)
        self.commitment, self.legacy = commitment, legacy
        self.embedding = nn.Embedding(num_codes, code_dim)
        nn.init.uniform_(self.embedding.weight, -1.0 / num_codes, 1.0 / num_codes)

    def codebook(self) -> Tensor:
        """Return the code vectors, `(K, C)`."""
        return self.embedding.weight

    def forward(self, latents: Tensor, gumbel: Tensor | None = None) -> Quantized:
        """Quantize `(B, C, H, W)`; loss = |sg(e) - z|^2 + |e - sg(z)|^2, beta on one of them."""
        tokens = self.tokens(latents.detach())
        codes = self.vectors(tokens, *latents.shape[2:])
        to_codes = (codes.detach() - latents).square().mean()
        to_latents = (codes - latents.detach()).square().mean()
        beta = self.commitment
        loss = to_codes + beta * to_latents if self.legacy else beta * to_codes + to_latents
        return Quantized(_straight_through(latents, codes), tokens, loss)


class GumbelQuantizer(Quantizer):
    """A categorical distribution over codes from a 1x1 convolution, sampled with Gumbel noise.

    Code numbers outside training are always the arg-max of the scores.  The released code draws noise
    there too, so official text-to-image models saw noisy tokens of their training images.

    Args:
        num_codes: K.
        code_dim: C, of latents and codes.
        kl_weight: weight of the divergence from uniform.
    Attributes:
        temperature: of the relaxation; set by the trainer, not part of the state.
    Source:  Jang et al. 2017; taming `quantize.py` `GumbelQuantize`.
    """

    def __init__(self, num_codes: int, code_dim: int, kl_weight: float = 1e-8) -> None:
        super().__init__(num_codes, code_dim)
        self.kl_weight, self.temperature = kl_weight, 1.0
        self.proj = nn.Conv2d(code_dim, num_codes, 1)
        self.embed = nn.Embedding(num_codes, code_dim)

    def codebook(self) -> Tensor:
        """Return the code vectors, `(K, C)`."""
        return self.embed.weight

    def tokens(self, latents: Tensor) -> Tensor:
        """Return the arg-max of the scores, `(B, L)` int64."""
        return self.proj(latents).argmax(dim=1).flatten(1)

    def forward(self, latents: Tensor, gumbel: Tensor | None = None) -> Quantized:
        """Quantize `(B, C, H, W)`.

        Args:
            latents: `(B, C, H, W)`.
            gumbel: `(B, K, H, W)` standard Gumbel noise; None: no noise.
        Returns: the code with the largest noisy score; the gradient is that of the softmax.  The loss
            is kl_weight * mean over positions of sum_k q_k log(q_k K + 1e-10).
        """
        scores = self.proj(latents).float()
        noisy = scores if gumbel is None else scores + gumbel
        soft = (noisy / self.temperature).softmax(dim=1)
        tokens = noisy.argmax(dim=1)
        hard = torch.zeros_like(soft).scatter_(1, tokens.unsqueeze(1), 1.0)
        weights = hard if not torch.is_grad_enabled() else hard + (soft - soft.detach())
        vectors = torch.einsum("bkhw,kc->bchw", weights, self.embed.weight)
        q = scores.softmax(dim=1)
        divergence = (q * (q * self.num_codes + 1e-10).log()).sum(dim=1).mean()
        return Quantized(vectors, tokens.flatten(1), self.kl_weight * divergence)


class EmaQuantizer(Quantizer):
    """Nearest code, each code the running mean of the latents that chose it.

    Args:
        num_codes: K.
        code_dim: C.
        decay: weight of the past in the running means.
        eps: Laplace smoothing of the counts.
    Attributes:
        sum_over_ranks: adds up a tensor over the ranks that train together; set by their trainer.
        gather_over_ranks: the same for rows, one rank's behind the other's.
    Source:  van den Oord et al. 2017, appendix A.1; VQ-Diffusion `ema_vqvae.py`.
    """

    embedding: Tensor
    cluster_size: Tensor
    embedding_avg: Tensor

    def __init__(self, num_codes: int, code_dim: int, decay: float = 0.99, eps: float = 1e-5) -> None:
        super().__init__(num_codes, code_dim)
        self.decay, self.eps = decay, eps
        self.sum_over_ranks: Callable[[Tensor], Tensor] = _alone
        self.gather_over_ranks: Callable[[Tensor], Tensor] = _alone
        start = torch.randn(num_codes, code_dim)
        self.register_buffer("embedding", start)
        self.register_buffer("cluster_size", torch.zeros(num_codes))
        self.register_buffer("embedding_avg", start.clone())

    def codebook(self) -> Tensor:
        """Return the code vectors, `(K, C)`."""
        return self.embedding

    def forward(self, latents: Tensor, gumbel: Tensor | None = None) -> Quantized:
        """Quantize `(B, C, H, W)` and, in training, move the codes; loss = mean (sg(e) - z)^2."""
        tokens = self.tokens(latents.detach())
        codes = self.vectors(tokens, *latents.shape[2:])
        if self.training:
            self._average(_rows(latents.detach()), tokens.flatten())
        loss = (codes.detach() - latents).square().mean()
        return Quantized(_straight_through(latents, codes), tokens, loss)

    @torch.no_grad()
    def _average(self, rows: Tensor, tokens: Tensor) -> None:
        rows = rows.float()
        counts = torch.zeros_like(self.cluster_size).index_add_(0, tokens, torch.ones_like(rows[:, 0]))
        sums = torch.zeros_like(self.embedding_avg).index_add_(0, tokens, rows)
        self.cluster_size.lerp_(self.sum_over_ranks(counts), 1.0 - self.decay)
        self.embedding_avg.lerp_(self.sum_over_ranks(sums), 1.0 - self.decay)
        total = self.cluster_size.sum()
        smoothed = (self.cluster_size + self.eps) / (total + self.num_codes * self.eps) * total
        self.embedding.copy_(self.embedding_avg / smoothed.clamp(min=self.eps).unsqueeze(1))

    @torch.no_grad()
    def revive(self, latents: Tensor, uniform: Tensor, share: float | None = None) -> Tensor:
        """Move codes that are hardly chosen onto latents of the batch.

        Args:
            latents: `(B, C, H, W)` of this step.
            uniform: `(K,)` in [0, 1), which latent each code would take.
            share: a code is dead if its running count is below this share of the mean count; None:
                all codes are, which starts the code book from data.
        Returns: number of codes moved, a scalar on the device.
        Source:  Jukebox (Dhariwal et al. 2020), section 3.1, random restarts.
        """
        rows = self.gather_over_ranks(_rows(latents).float())
        mean_count = rows.new_tensor(len(rows) / self.num_codes)
        dead = torch.ones_like(self.cluster_size, dtype=torch.bool)
        if share is not None:
            dead = self.cluster_size < share * self.cluster_size.mean()
            mean_count = self.cluster_size.mean()
        chosen = rows[(uniform * len(rows)).long().clamp(max=len(rows) - 1)]
        moved = dead.unsqueeze(1)
        self.embedding.copy_(torch.where(moved, chosen, self.embedding))
        self.embedding_avg.copy_(torch.where(moved, chosen * mean_count, self.embedding_avg))
        self.cluster_size.copy_(torch.where(dead, mean_count, self.cluster_size))
        return dead.sum()


def nearest_codes(rows: Tensor, codebook: Tensor) -> Tensor:
    """Return the number `(N,)` int64 of the nearest code for each row `(N, C)`, always in float32.

    Cost:    N K C; distances are held for blocks of rows, at most 256 MiB at a time.
    """
    rows, codebook = rows.detach().float(), codebook.detach().float()
    squared = codebook.square().sum(dim=1)
    block = max(1, _BLOCK // len(codebook))
    full = contextlib.nullcontext() if rows.is_meta else torch.autocast(rows.device.type, enabled=False)
    with full:
        found = [
            torch.addmm(squared, part, codebook.t(), alpha=-2.0).argmin(dim=1)
            for part in torch.split(rows, block)
        ]
    return torch.cat(found)


def gumbel_temperature(step: int, start: float = 0.9, end: float = 1e-6, num_steps: int = 1_000_001) -> float:
    """Return the temperature of the relaxation at a step: a half cosine from `start` to `end`.

    Source:  taming `configs/custom`, `LambdaWarmUpCosineScheduler` of the OpenImages codec.
    """
    passed = min(step / num_steps, 1.0)
    return end + 0.5 * (start - end) * (1.0 + math.cos(math.pi * passed))


def _alone(value: Tensor) -> Tensor:
    return value


def _rows(latents: Tensor) -> Tensor:
    return latents.permute(0, 2, 3, 1).reshape(-1, latents.shape[1])


def _straight_through(latents: Tensor, codes: Tensor) -> Tensor:
    return latents + (codes - latents).detach()
