"""The codec: frozen, deterministic, its reduced alphabet, its fingerprint and its refusals."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

from speech2image.codecs.code_map import CodeMap
from speech2image.codecs.codec import Codec
from speech2image.codecs.vqgan import VqGan
from speech2image.errors import CheckpointError, DataError

SMALL: dict[str, Any] = {"channels": 8, "num_res_blocks": 1, "latent_dim": 6, "code_dim": 4, "num_codes": 10, "norm_groups": 4}  # fmt: skip


def network(quantizer: Any = "vector") -> VqGan:
    torch.manual_seed(2)
    made = VqGan(16, channel_mult=(1, 2), attn_px=(8,), quantizer=quantizer, **SMALL)
    if quantizer == "vector":
        nn.init.normal_(made.quantize.embedding.weight)  # type: ignore[union-attr, arg-type]
    return made


def images() -> torch.Tensor:
    return torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(1)) * 2 - 1


@pytest.mark.parametrize("quantizer", ["vector", "gumbel", "ema"])
def test_codec_is_frozen_deterministic_and_stays_in_evaluation_mode(quantizer: Any) -> None:
    owner = nn.ModuleList([Codec(network(quantizer))]).train()
    codec = owner[0]
    assert isinstance(codec, Codec)
    assert not any(module.training for module in codec.modules())
    assert not any(parameter.requires_grad for parameter in codec.parameters())
    before = codec.fingerprint()
    tokens = codec.encode(images())
    assert torch.equal(tokens, codec.encode(images())) and tokens.dtype == torch.int64
    painted = codec.decode(tokens)
    assert painted.shape == (4, 3, 16, 16) and float(painted.abs().max()) <= 1.0
    assert codec.fingerprint() == before
    assert (codec.num_tokens, codec.grid, codec.image_px) == (10, (8, 8), 16)


def test_fingerprint_names_weights_and_map() -> None:
    codec = Codec(network())
    prints = [codec.fingerprint(), Codec(copy.deepcopy(codec.network)).fingerprint()]
    assert prints[0] == prints[1] and len(prints[0]) == 16
    table = CodeMap.from_lookup(torch.tensor([0, 1, 2, 3, 0, 0, 0, 0, 0, 0]))
    other = CodeMap.from_lookup(torch.tensor([0, 1, 2, 0, 3, 0, 0, 0, 0, 0]))
    prints += [Codec(codec.network, table).fingerprint(), Codec(codec.network, other).fingerprint()]
    codec.network.decoder.conv_out.bias.data[0] += 1e-6
    assert len({*prints, codec.fingerprint()}) == 4


def test_reduced_alphabet_paints_the_codes_its_numbers_stand_for() -> None:
    full = Codec(network())
    reduced = Codec(full.network, CodeMap.from_lookup(torch.tensor([0, 0, 1, 0, 2, 0, 0, 3, 0, 0])))
    assert reduced.num_tokens == 4
    tokens = reduced.encode(images())
    assert int(tokens.max()) <= 3
    stands_for = torch.tensor([0, 2, 4, 7])
    assert torch.equal(reduced.decode(tokens), full.decode(stands_for[tokens]))


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda c: c.encode(torch.zeros(2, 3, 15, 16)), "multiples of 2 px"),
        (lambda c: c.encode(torch.zeros(2, 1, 16, 16)), r"found \(2, 1, 16, 16\)"),
        (lambda c: c.encode(torch.zeros(2, 3, 16, 16, dtype=torch.uint8)), "uint8"),
        (lambda c: c.decode(torch.zeros(2, 63, dtype=torch.int64)), r"takes tokens \(B, 64\)"),
        (lambda c: c.decode(torch.full((2, 64), 10)), "still hold the mask"),
        (lambda c: c.decode(torch.full((2, 64), -1)), "from -1"),
    ],
)
def test_wrong_images_and_tokens_are_refused(call: Any, words: str) -> None:
    with pytest.raises(DataError, match=words):
        call(Codec(network()))


def test_map_of_another_code_book_is_refused() -> None:
    with pytest.raises(CheckpointError, match="for 3 codes, the codec has 10"):
        Codec(network(), CodeMap(3, 2))
    broken = CodeMap(10, 4)
    broken.reduced_to_full[1] = 5
    with pytest.raises(CheckpointError, match="contradicts itself"):
        Codec(network(), broken)
