"""The Li et al. encoder beyond its published sizes; its numbers are compared in tests/parity."""

from __future__ import annotations

import pytest
import torch

from speech2image.errors import ConfigError
from speech2image.speech.cnn_rnn import CnnRnn
from speech2image.types import Condition, SpeechBatch


def run(module: CnnRnn, frames: int, lengths: list[int]) -> Condition:
    draw = torch.Generator().manual_seed(0)
    features = torch.randn(len(lengths), frames, module.mel_dim, generator=draw)
    with torch.no_grad():
        return module.eval()(SpeechBatch(features, torch.tensor(lengths)))


@pytest.mark.parametrize("step_frames", [64, 16, 4, 2])
@pytest.mark.parametrize(("frames", "lengths"), [(200, [200, 70, 130]), (1, [1]), (64, [64]), (37, [37, 5])])
def test_any_length_any_order_and_a_batch_of_one_work(
    step_frames: int, frames: int, lengths: list[int]
) -> None:
    module = CnnRnn(width=32, step_frames=step_frames)
    condition = run(module, frames, lengths)
    assert condition.words is not None and condition.mask is not None
    num_steps = max(1, -(-max(frames, step_frames) // step_frames))
    assert condition.words.shape == (len(lengths), module.words_dim, num_steps)
    assert condition.sentence.shape == (len(lengths), module.sentence_dim)
    assert condition.mask.sum(1).tolist() == [max(1, length // step_frames) for length in lengths]
    assert (condition.words.transpose(1, 2)[~condition.mask] == 0).all()
    assert torch.isfinite(condition.sentence).all()


def test_mean_is_over_valid_steps_and_released_mean_over_all() -> None:
    module = CnnRnn(width=32)
    valid = run(module, 640, [640, 128])
    module.pool = "mean_padded"
    padded = run(module, 640, [640, 128])
    assert torch.allclose(valid.sentence[0], padded.sentence[0])
    assert torch.allclose(valid.sentence[1] * 2 / 10, padded.sentence[1], atol=1e-7)


def test_channels_scale_with_the_width() -> None:
    module = CnnRnn(width=256)
    convolutions = [
        layer.out_channels for layer in module.Conv.modules() if isinstance(layer, torch.nn.Conv2d)
    ]
    assert convolutions == [16, 16, 32, 64, 64, 128, 128, 256]


def test_one_utterance_trains() -> None:
    module = CnnRnn(width=32).train()
    module(SpeechBatch(torch.randn(1, 100, 40), torch.tensor([100]))).sentence.sum().backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in module.parameters())


@pytest.mark.parametrize("wrong", [{"width": 20}, {"width": 0}, {"pool": "max"}, {"step_frames": 48}])
def test_what_cannot_be_built_is_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        CnnRnn(**wrong)  # type: ignore[arg-type]
