"""The speech encoder of Li et al.: a deep strided convolution, then one recurrent layer.

Here: the network alone, in the names of the released checkpoints.  Its losses are in
`losses/matching.py` and `losses/distill.py`, its front end is `li_et_al` in `audio/features.py`,
its training in `training/encoder_module.py`.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from speech2image.errors import ConfigError
from speech2image.speech.recurrent import run_recurrent
from speech2image.types import Condition, SpeechBatch

PUBLISHED_WIDTH = 1024
POOLS = ("mean", "mean_padded")


class _Layer(NamedTuple):
    channels: int  # at the published width; 0: a max pool
    kernel: int
    halves: bool


_LAYERS = (
    _Layer(64, 3, False),
    _Layer(0, 3, True),
    _Layer(128, 17, True),
    _Layer(256, 13, True),
    _Layer(256, 3, False),
    _Layer(512, 9, True),
    _Layer(0, 3, True),
    _Layer(512, 3, False),
    _Layer(1024, 5, True),
)


def _convolution(in_channels: int, out_channels: int, kernel: tuple[int, int], stride: int) -> nn.Sequential:
    padding = (0, kernel[1] // 2)
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, kernel, stride=(1, stride), padding=padding, bias=False),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(inplace=True),
    )


class CnnRnn(nn.Module):
    """Encode log-mel frames into one vector per 0.64 s and one per utterance.

    Args:
        mel_dim: mel bands M.
        width: D, width of words and sentence; all channel counts scale with it, 1024 published.
        bidirectional: half of D for each direction of time.
        pool: `mean`: mean over valid steps; `mean_padded`: sum over valid steps divided by all
            steps of the batch, as released, where short utterances get short vectors.
        step_frames: frames of one output step: 64 published; 32, 16, 8, 4 or 2 leave the last
            halvings out, for short utterances.

    Raises: ConfigError: a width, pool or step that cannot be built.
    Source: Li et al. 2020, section 3.1; reference `Audio_to_Image/speech_encoder.py: CNNRNN`.
        Differs: no fixed length, batches of one, any order of lengths, at least one step.
    """

    def __init__(
        self,
        mel_dim: int = 40,
        width: int = 1024,
        bidirectional: bool = True,
        pool: str = "mean",
        step_frames: int = 64,
    ) -> None:
        super().__init__()
        _check(width, pool, step_frames)
        self.mel_dim, self.width, self.pool, self.step_frames = mel_dim, width, pool, step_frames
        self.sentence_dim = self.words_dim = width
        scaled = [max(1, layer.channels * width // PUBLISHED_WIDTH) for layer in _LAYERS]
        channels = scaled[0]
        layers: list[nn.Module] = [nn.BatchNorm2d(1), _convolution(1, channels, (mel_dim, 1), 1)]
        stride_left = step_frames
        for layer, out_channels in zip(_LAYERS, scaled, strict=True):
            stride = 2 if layer.halves and stride_left > 1 else 1
            stride_left //= stride
            if layer.channels:
                layers.append(_convolution(channels, out_channels, (1, layer.kernel), stride))
                channels = out_channels
            else:
                layers.append(nn.MaxPool2d((1, layer.kernel), (1, stride), (0, layer.kernel // 2)))
        self.Conv = nn.Sequential(*layers)
        directions = 2 if bidirectional else 1
        self.RNN = nn.LSTM(width, width // directions, batch_first=True, bidirectional=bidirectional)
        self._draw_weights()

    def _draw_weights(self) -> None:
        for module in self.Conv.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, 0.0, 0.02)
            elif isinstance(module, nn.BatchNorm2d):
                nn.init.normal_(module.weight, 1.0, 0.02)

    def convolve(self, features: Tensor) -> Tensor:
        """Return the convolution stack's output `(B, D, N)`, N = ceil(T / step_frames).

        Args: features: `(B, T, M)` float32.
        """
        return self.Conv(features.transpose(1, 2).unsqueeze(1)).squeeze(2)

    def forward(self, speech: SpeechBatch) -> Condition:
        """Encode a batch.

        Args:
            speech: features `(B, T, M)` and lengths `(B,)`; T and B at least 1.

        Returns: sentence `(B, D)`, words `(B, D, N)` zero beyond each item's
            max(1, length // step_frames) steps, and their mask.
        Cost:    one device sync where lengths are on a GPU.
        """
        frames = speech.features
        maps = self.convolve(functional.pad(frames, (0, 0, 0, max(0, self.step_frames - frames.shape[1]))))
        total = maps.shape[2]
        steps = (speech.lengths.cpu() // self.step_frames).clamp(1, total)
        words = run_recurrent(self.RNN, maps.transpose(1, 2), steps)
        steps = steps.to(words.device, non_blocking=True)
        divisor = float(total) if self.pool == "mean_padded" else steps[:, None].to(words.dtype)
        mask = torch.arange(total, device=words.device) < steps[:, None]
        return Condition(words.sum(dim=1) / divisor, words.transpose(1, 2), mask)


def _check(width: int, pool: str, step_frames: int) -> None:
    if width < 16 or width % 16:
        raise ConfigError(f"CnnRnn width is {width}", "Use a multiple of 16; 1024 is published.")
    if pool not in POOLS:
        raise ConfigError(f"CnnRnn pool is {pool!r}", f"Use one of: {', '.join(POOLS)}.")
    if step_frames not in (2, 4, 8, 16, 32, 64):
        raise ConfigError(f"CnnRnn step_frames is {step_frames}", "Use 2, 4, 8, 16, 32 or 64 (published).")
