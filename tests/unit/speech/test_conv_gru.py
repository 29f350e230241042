"""The S2IGAN speech encoder beyond its published sizes; its numbers are compared in tests/parity."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from speech2image.errors import ConfigError
from speech2image.speech.conv_gru import ConvGru
from speech2image.speech.recurrent import run_recurrent
from speech2image.types import SpeechBatch


def small(**settings: object) -> ConvGru:
    torch.manual_seed(0)
    return ConvGru(rnn_dim=16, rnn_layers=1, attention_dim=8, **settings).eval()  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("frames", "lengths"), [(120, [40, 120, 16]), (15, [15]), (1, [1, 1]), (90, [80, 70])]
)
def test_any_length_any_order_and_a_batch_of_one_work(frames: int, lengths: list[int]) -> None:
    condition = small()(SpeechBatch(torch.randn(len(lengths), frames, 40), torch.tensor(lengths)))
    assert condition.words is not None and condition.mask is not None
    steps = [max(1, ((length - 4) // 2 - 4) // 2) for length in lengths]
    assert condition.mask.sum(1).tolist() == steps
    assert condition.words.shape == (len(lengths), 32, max(steps))
    assert torch.allclose(condition.sentence.norm(dim=1), torch.ones(len(lengths)))


def test_masked_embeddings_do_not_depend_on_the_batch() -> None:
    module, features = small(), torch.randn(2, 200, 40)
    features[1, 100:] = 0
    lengths = torch.tensor([200, 100])
    together = module(SpeechBatch(features, lengths)).sentence
    alone = module(SpeechBatch(features[1:, :100], lengths[1:])).sentence
    assert torch.allclose(together[1], alone[0], atol=1e-6)
    module.mask_attention = False
    released = module(SpeechBatch(features, lengths)).sentence
    assert (released[1] - alone[0]).abs().max() > 1e-4


def test_heads_are_concatenated() -> None:
    module = small(attention_heads=3)
    assert module.sentence_dim == 96
    assert module(SpeechBatch(torch.randn(2, 60, 40), torch.tensor([60, 50]))).sentence.shape == (2, 96)


def test_released_heads_start_orthogonal() -> None:
    weight = ConvGru().att.att_heads[0].hidden.weight
    assert torch.allclose(weight @ weight.T, torch.eye(128), atol=1e-5)


@pytest.mark.parametrize("wrong", [{"pool": "max"}, {"attention_heads": 0}])
def test_what_cannot_be_built_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        ConvGru(**wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", [nn.GRU, nn.LSTM])
@pytest.mark.parametrize("bidirectional", [True, False])
def test_recurrence_equals_packed_sequences(kind: type[nn.GRU | nn.LSTM], bidirectional: bool) -> None:
    torch.manual_seed(0)
    rnn = kind(5, 6, 2, batch_first=True, bidirectional=bidirectional).double()
    inputs, steps = torch.randn(4, 9, 5, dtype=torch.float64), torch.tensor([3, 9, 1, 5])
    results = []
    for packed in (True, False):
        given = inputs.clone().requires_grad_()
        if packed:
            states, _ = rnn(pack_padded_sequence(given, steps, batch_first=True, enforce_sorted=False))
            found = pad_packed_sequence(states, batch_first=True)[0]
        else:
            found = run_recurrent(rnn, given, steps)
        rnn.zero_grad()
        found.sin().sum().backward()
        assert given.grad is not None
        results.append([found, given.grad, *(p.grad for p in rnn.parameters())])
    for expected, found in zip(*results, strict=True):
        assert torch.allclose(expected, found, atol=1e-13)
