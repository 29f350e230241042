"""Quantizers: nearest codes by brute force, gradients, averages by hand, revival."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from speech2image.codecs import quantizers
from speech2image.codecs.quantizers import (
    EmaQuantizer,
    GumbelQuantizer,
    VectorQuantizer,
    gumbel_temperature,
    nearest_codes,
)


def test_nearest_codes_are_those_of_brute_force_in_any_block_size(monkeypatch: pytest.MonkeyPatch) -> None:
    rows, codebook = torch.randn(50, 6), torch.randn(17, 6)
    brute = torch.cdist(rows.double(), codebook.double()).argmin(dim=1)
    assert torch.equal(nearest_codes(rows, codebook), brute)
    monkeypatch.setattr(quantizers, "_BLOCK", 17 * 7)
    assert torch.equal(nearest_codes(rows, codebook), brute)


def test_vectors_come_straight_through() -> None:
    quantizer, latents = VectorQuantizer(9, 4), torch.randn(2, 4, 3, 5, requires_grad=True)
    output = quantizer(latents)
    assert torch.allclose(output.vectors, quantizer.vectors(output.tokens, 3, 5), atol=1e-6)
    weights = torch.randn(2, 4, 3, 5)
    (gradient,) = torch.autograd.grad((output.vectors * weights).sum(), latents)
    assert torch.equal(gradient, weights)


def test_gumbel_tokens_are_never_random_and_noise_follows_the_scores() -> None:
    quantizer = GumbelQuantizer(3, 2).train()
    quantizer.proj.weight.data.zero_()
    quantizer.proj.bias.data.copy_(torch.tensor([0.6, 0.3, 0.1]).log())  # type: ignore[union-attr]
    latents = torch.randn(1, 2, 100, 100)
    assert (quantizer.tokens(latents) == 0).all() and (quantizer(latents).tokens == 0).all()
    noise = -torch.empty(1, 3, 100, 100).exponential_(generator=torch.Generator().manual_seed(0)).log()
    shares = quantizer(latents, noise).tokens.flatten().bincount(minlength=3) / 10_000
    assert shares.tolist() == pytest.approx([0.6, 0.3, 0.1], abs=0.02)


def test_gumbel_gradient_is_that_of_the_softmax_at_the_temperature() -> None:
    quantizer, latents = GumbelQuantizer(5, 3), torch.randn(2, 3, 2, 2)
    quantizer.temperature = 0.7
    weights = torch.randn(2, 3, 2, 2)
    torch.autograd.backward((quantizer(latents).vectors * weights).sum())
    found = quantizer.proj.weight.grad
    quantizer.zero_grad()
    soft = (quantizer.proj(latents) / 0.7).softmax(dim=1)
    torch.autograd.backward((torch.einsum("bkhw,kc->bchw", soft, quantizer.embed.weight) * weights).sum())
    assert torch.allclose(found, quantizer.proj.weight.grad, atol=1e-6)  # type: ignore[arg-type]


def test_gumbel_temperature_falls_from_start_to_end() -> None:
    assert gumbel_temperature(0) == pytest.approx(0.9)
    assert gumbel_temperature(500_000) == pytest.approx(0.45, abs=1e-5)
    assert gumbel_temperature(5_000_000) == pytest.approx(1e-6)


def test_averaged_codes_follow_the_formula() -> None:
    quantizer = EmaQuantizer(3, 2, decay=0.9, eps=1e-5).train()
    codebook = torch.tensor([[0.0, 0.0], [1.0, 1.0], [5.0, 5.0]])
    quantizer.embedding.copy_(codebook)
    quantizer.embedding_avg.copy_(4 * codebook)
    quantizer.cluster_size.fill_(4.0)
    latents = torch.tensor([[0.1, 0.0], [0.9, 1.1], [1.1, 1.1], [0.8, 1.0]]).t().reshape(1, 2, 2, 2)
    output = quantizer(latents)
    assert output.tokens.tolist() == [[0, 1, 1, 1]]
    assert float(output.loss) == pytest.approx((0.01 + 0.02 + 0.02 + 0.04) / 8)
    counts = [3.6 + 0.1, 3.6 + 0.3, 3.6]
    assert quantizer.cluster_size.tolist() == pytest.approx(counts)
    sums = [[0.01, 0.0], [3.6 + 0.28, 3.6 + 0.32], [18.0, 18.0]]
    total = sum(counts)
    smoothed = [(count + 1e-5) / (total + 3e-5) * total for count in counts]
    expected = torch.tensor([[v / n for v in row] for row, n in zip(sums, smoothed, strict=True)])
    assert torch.allclose(quantizer.embedding, expected, atol=1e-5)


def test_averaged_codes_stay_still_outside_training() -> None:
    quantizer = EmaQuantizer(4, 3).eval()
    before = quantizer.embedding.clone()
    quantizer(torch.randn(2, 3, 2, 2))
    assert torch.equal(before, quantizer.embedding) and float(quantizer.cluster_size.sum()) == 0


def _latents() -> Tensor:
    return torch.arange(8.0).view(1, 1, 2, 4) + 100.0


def test_revival_starts_all_codes_from_data_and_later_moves_dead_ones_only() -> None:
    quantizer = EmaQuantizer(4, 1)
    uniform = torch.tensor([0.0, 0.26, 0.5, 0.999])
    assert int(quantizer.revive(_latents(), uniform)) == 4
    assert quantizer.embedding.flatten().tolist() == [100.0, 102.0, 104.0, 107.0]
    assert quantizer.cluster_size.tolist() == [2.0] * 4
    quantizer.cluster_size.copy_(torch.tensor([4.0, 3.9, 0.05, 4.05]))
    assert int(quantizer.revive(_latents() + 50, uniform, share=0.1)) == 1
    assert quantizer.embedding.flatten().tolist() == [100.0, 102.0, 154.0, 107.0]
    assert torch.allclose(quantizer.embedding_avg[2] / quantizer.cluster_size[2], quantizer.embedding[2])


def test_a_revived_code_survives_its_next_average() -> None:
    quantizer = EmaQuantizer(4, 1).train()
    quantizer.revive(_latents(), torch.tensor([0.0, 0.3, 0.6, 0.9]))
    before = quantizer.embedding.clone()
    quantizer(_latents())
    assert torch.allclose(before, quantizer.embedding, atol=0.2)
