"""A small speech tower trained from scratch, where no published weights are at hand.

Here: strided convolutions on log-mel frames or on the waveform, then a few transformer layers, with
the hidden states that `speechclip.py` expects of any tower; and masked prediction, so that it can
first learn from speech alone.  Published towers are in `towers.py`.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from speech2image.errors import ConfigError
from speech2image.speech.towers import HiddenStates, normalise_waves
from speech2image.types import SpeechBatch

MEL_LAYERS = ((5, 2), (5, 2))
WAVE_LAYERS = ((10, 5), (8, 4), (8, 4), (4, 2), (4, 2))
WAVE_STRIDE, TARGET_BANDS = 320, 40


class _Convolution(nn.Module):
    """Convolve with a stride, normalise every step over its channels, GELU; padding stays 0."""

    def __init__(self, in_channels: int, out_channels: int, kernel: int, stride: int) -> None:
        super().__init__()
        self.convolution = nn.Conv1d(in_channels, out_channels, kernel, stride, padding=kernel // 2)
        self.norm = nn.LayerNorm(out_channels)
        self.kernel, self.stride = kernel, stride

    def forward(self, maps: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        maps = functional.gelu(self.norm(self.convolution(maps.transpose(1, 2)).transpose(1, 2)))
        lengths = (lengths + 2 * (self.kernel // 2) - self.kernel) // self.stride + 1
        return maps * _mask(maps, lengths)[:, :, None], lengths


class SmallTower(nn.Module):
    """Give the hidden states of a small network that is trained along.

    Args:
        mel_dim: mel bands M of the features; 1: 16 kHz waveforms.
        dim: width D.
        num_layers: transformer layers, 2 to 4 suit small corpora; the tower has one state more.
        heads: attention heads.
        dropout: in attention and feed-forward.

    Raises: ConfigError: sizes that cannot be built.
    Source: own design after wav2vec 2.0: convolutions, a depth-wise convolution as position, layers
        with the norm first.  Steps of 40 ms on mel frames of 10 ms, of 20 ms on waveforms; what is
        computed for an item does not depend on its batch.
    """

    pretrained = True

    def __init__(
        self, mel_dim: int = 40, dim: int = 192, num_layers: int = 3, heads: int = 4, dropout: float = 0.1
    ) -> None:
        super().__init__()
        if min(mel_dim, dim, num_layers, heads) < 1 or dim % heads:
            raise ConfigError(
                f"a small tower of {mel_dim} bands, width {dim}, {num_layers} layers and {heads} heads"
                " cannot be built",
                "Use positive sizes and a width that is a multiple of the heads.",
            )
        self.mel_dim, self.dim, self.num_states = mel_dim, dim, num_layers + 1
        layers = WAVE_LAYERS if mel_dim == 1 else MEL_LAYERS
        widths = [mel_dim] + [dim] * len(layers)
        self.convolutions = nn.ModuleList(
            [
                _Convolution(*channels, *layer)
                for channels, layer in zip(pairwise(widths), layers, strict=True)
            ]
        )
        self.position = nn.Conv1d(dim, dim, 31, padding=15, groups=dim)
        self.layers = nn.ModuleList(
            [
                nn.TransformerEncoderLayer(
                    dim, heads, 4 * dim, dropout, functional.gelu, batch_first=True, norm_first=True
                )
                for _ in range(num_layers)
            ]
        )
        self.hidden_step = nn.Parameter(0.02 * torch.randn(dim))
        self.predict = nn.Linear(dim, TARGET_BANDS if mel_dim == 1 else 4 * mel_dim)

    def forward(self, speech: SpeechBatch) -> HiddenStates:
        """Return all states of a batch.

        Args:
            speech: features `(B, T, M)`, or waveforms `(B, S, 1)`; any length from 1 on.

        Returns: states `(n, B, N, D)` and steps `(B,)` on the device of the states.
        Raises:  ConfigError: features of another width.
        """
        return self._transform(*self._convolve(speech))

    def masked_prediction_loss(
        self, speech: SpeechBatch, rng: np.random.Generator, share: float = 0.4, span: int = 4
    ) -> Tensor:
        """Hide random spans of steps from the transformer and predict their spectra from the rest.

        Args:
            speech: as in `forward`; mel features of about unit deviation.
            rng: source of the spans.
            share: expected share of steps that spans start to cover.
            span: steps of a span.

        Returns: mean absolute error over hidden steps, scalar.
        Source:  Liu et al. 2020, TERA (alteration along time, L1), on convolved steps.
        """
        maps, lengths = self._convolve(speech)
        valid = _mask(maps, lengths)
        starts = torch.from_numpy(rng.random(tuple(valid.shape)) < share / span).to(maps.device)
        starts[:, 0] |= ~(starts & valid).any(dim=1)  # every item hides something
        hidden = starts.clone()
        for later in range(1, span):
            hidden[:, later:] |= starts[:, :-later]
        hidden &= valid
        states = self._transform(torch.where(hidden[:, :, None], self.hidden_step, maps), lengths).states
        errors = (self.predict(states[-1]) - self._targets(speech, maps.shape[1])).abs().mean(dim=2)
        return (errors * hidden).sum() / hidden.sum()

    def _convolve(self, speech: SpeechBatch) -> tuple[Tensor, Tensor]:
        features = speech.features
        if features.shape[2] != self.mel_dim:
            raise ConfigError(
                f"the small tower takes {self.mel_dim} bands, found features {tuple(features.shape)}",
                f"Type: encoder.mel_dim={features.shape[2]}, or choose the matching audio=...",
            )
        lengths = speech.lengths.to(features.device).clamp_min(1)
        if self.mel_dim == 1:
            maps = normalise_waves(features[:, :, 0], lengths)[:, :, None]
        else:
            maps = features * _mask(features, lengths)[:, :, None]
        for convolution in self.convolutions:
            maps, lengths = convolution(maps, lengths)
        return maps, lengths

    def _transform(self, maps: Tensor, lengths: Tensor) -> HiddenStates:
        padding = ~_mask(maps, lengths)
        hidden = maps + functional.gelu(self.position(maps.transpose(1, 2))).transpose(1, 2)
        states = [hidden]
        for layer in self.layers:
            hidden = layer(hidden, src_key_padding_mask=padding)
            states.append(hidden)
        return HiddenStates(torch.stack(states), lengths)

    def _targets(self, speech: SpeechBatch, num_steps: int) -> Tensor:
        """Return what a step covers: four mel frames, or the log-mel energies of 20 ms of waveform."""
        if self.mel_dim > 1:
            frames = speech.features * _mask(speech.features, speech.lengths)[:, :, None]
            short = max(0, 4 * num_steps - frames.shape[1])
            whole = functional.pad(frames, (0, 0, 0, short))[:, : 4 * num_steps]
            return whole.reshape(len(whole), num_steps, 4 * self.mel_dim)
        waves = normalise_waves(speech.features[:, :, 0], speech.lengths.to(speech.features.device))
        power = _mel_power(waves)[:, :, :num_steps]
        return torch.log(power + 1e-3).transpose(1, 2)


def _mel_power(waves: Tensor) -> Tensor:
    """Return mel energies `(B, M, T)`, one frame every 320 samples, at least one more than S / 320."""
    from torchaudio.functional import melscale_fbanks, spectrogram

    window = torch.hann_window(400, device=waves.device)
    bank: Any = melscale_fbanks(201, 0.0, 8000.0, TARGET_BANDS, 16_000).to(waves.device)
    padded = functional.pad(waves, (0, WAVE_STRIDE))
    power = spectrogram(padded, 0, window, 400, WAVE_STRIDE, 400, 2.0, False, pad_mode="constant")
    return bank.T @ (power / 400)


def _mask(states: Tensor, lengths: Tensor) -> Tensor:
    return torch.arange(states.shape[1], device=states.device) < lengths.to(states.device)[:, None]
