"""Frozen self-supervised speech networks: waveforms to the hidden states of every layer.

Here: HuBERT, WavLM and wav2vec 2.0 on torchaudio's modules, weights from a local file, always in
evaluation mode, and the exact number of frames.  What is learned on top is in `speechclip.py`, a
tower trained from scratch in `small_tower.py`, states computed once in `stored_states.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from speech2image.errors import ConfigError, DataError, nearest_names
from speech2image.types import SpeechBatch
from speech2image.weight_files import load_into, read_local_weights

SAMPLE_RATE_HZ = 16_000
FRAME_SAMPLES = 320
KERNELS, STRIDES = (10, 3, 3, 3, 3, 2, 2), (5, 2, 2, 2, 2, 2, 2)
LEAST_SAMPLES = 400
PUBLISHED_WINDOW = 102_400
TOWER_URL = "https://download.pytorch.org/torchaudio/models/"


class HiddenStates(NamedTuple):
    """States of all layers, `(n, B, T, D)` float, first the input of the first layer, and frames `(B,)`."""

    states: Tensor
    lengths: Tensor


@dataclass(frozen=True)
class TowerSpec:
    """Form and published file of a tower.

    Attributes:
        file: name of torchaudio's weight file.
        dim: width D of the states.
        num_layers: transformer layers; the tower has one state more.
        heads: attention heads.
        ff_dim: width of the feed-forward layers.
        layer_norm: the large form: every convolution with a layer norm, layers with the norm first;
            False: the base form, one group norm after the first convolution, norms last.
        normalise_wave: each waveform to mean 0 and deviation 1 before the tower.
        gated_bias: WavLM's gated relative positions.
        conv_dim: channels of the convolutions.
        conv_bias: convolutions with bias.
    """

    file: str
    dim: int = 768
    num_layers: int = 12
    heads: int = 12
    ff_dim: int = 3072
    layer_norm: bool = False
    normalise_wave: bool = False
    gated_bias: bool = False
    conv_dim: int = 512
    conv_bias: bool = False


_LARGE: dict[str, Any] = {"dim": 1024, "num_layers": 24, "heads": 16, "ff_dim": 4096}
_STABLE: dict[str, Any] = {**_LARGE, "layer_norm": True, "normalise_wave": True}

TOWERS: dict[str, TowerSpec] = {
    "hubert_base": TowerSpec("hubert_fairseq_base_ls960.pth"),
    "hubert_large": TowerSpec("hubert_fairseq_large_ll60k.pth", **_STABLE),
    "wavlm_base": TowerSpec("wavlm_base.pth", gated_bias=True),
    "wavlm_base_plus": TowerSpec("wavlm_base_plus.pth", gated_bias=True),
    "wavlm_large": TowerSpec("wavlm_large.pth", gated_bias=True, **_STABLE),
    "wav2vec2_base": TowerSpec("wav2vec2_fairseq_base_ls960.pth"),
    "wav2vec2_large": TowerSpec("wav2vec2_fairseq_large_ls960.pth", **_LARGE),
    "wav2vec2_large_lv60k": TowerSpec("wav2vec2_fairseq_large_lv60k.pth", **_STABLE, conv_bias=True),
}
"""Published towers by name."""


def tower_spec(name: str) -> TowerSpec:
    """Return the published tower `name`.

    Raises: ConfigError: there is none of this name.
    """
    if name not in TOWERS:
        near = ", ".join(nearest_names(name, TOWERS) or sorted(TOWERS))
        raise ConfigError(f"there is no speech tower {name!r}", f"Choose one of: {near}.")
    return TOWERS[name]


def build_network(spec: TowerSpec) -> nn.Module:
    """Return torchaudio's network of a form, random weights, all dropouts 0."""
    from torchaudio.models import wav2vec2_model, wavlm_model

    convolutions = [(spec.conv_dim, kernel, stride) for kernel, stride in zip(KERNELS, STRIDES, strict=True)]
    settings: dict[str, Any] = {
        "extractor_mode": "layer_norm" if spec.layer_norm else "group_norm",
        "extractor_conv_layer_config": convolutions,
        "extractor_conv_bias": spec.conv_bias,
        "encoder_embed_dim": spec.dim,
        "encoder_projection_dropout": 0.0,
        "encoder_pos_conv_kernel": 128,
        "encoder_pos_conv_groups": 16,
        "encoder_num_layers": spec.num_layers,
        "encoder_num_heads": spec.heads,
        "encoder_attention_dropout": 0.0,
        "encoder_ff_interm_features": spec.ff_dim,
        "encoder_ff_interm_dropout": 0.0,
        "encoder_dropout": 0.0,
        "encoder_layer_norm_first": spec.layer_norm,
        "encoder_layer_drop": 0.0,
        "aux_num_out": None,
    }
    if spec.gated_bias:
        return wavlm_model(**settings, encoder_num_buckets=320, encoder_max_distance=800)
    return wav2vec2_model(**settings)


def conv_length(samples: Tensor) -> Tensor:
    """Return how many frames the convolutions make of `samples` `(B,)` int64; below 400 samples none.

    >>> conv_length(torch.tensor([16_000, 102_400, 400, 399])).tolist()
    [49, 319, 1, 0]
    """
    for kernel, stride in zip(KERNELS, STRIDES, strict=True):
        samples = torch.div(samples - kernel, stride, rounding_mode="floor") + 1
    return samples.clamp_min(0)


def legacy_length(samples: Tensor, num_frames: int) -> Tensor:
    """Return the frames the released SpeechCLIP counts: samples / 320, half to even, at most `num_frames`.

    Source: SpeechCLIP, `speech_encoder_plus.py`; one frame too many for three quarters of all lengths.

    >>> legacy_length(torch.tensor([3600, 800, 1121]), 11).tolist()
    [11, 2, 4]
    """
    return torch.round(samples / FRAME_SAMPLES).long().clamp_max(num_frames)


def normalise_waves(waves: Tensor, lengths: Tensor) -> Tensor:
    """Return each waveform at mean 0 and variance 1 over its own samples, 0 beyond them.

    Args:
        waves: `(B, S)` float32.
        lengths: `(B,)` int64 valid samples, at least 1.

    Source: layer norm of the waveform in fairseq's `normalize` option, eps 1e-5.
    """
    mask = torch.arange(waves.shape[1], device=waves.device) < lengths[:, None]
    count = lengths[:, None].to(waves.dtype)
    centred = (waves - (waves * mask).sum(1, keepdim=True) / count) * mask
    return centred * torch.rsqrt(centred.square().sum(1, keepdim=True) / count + 1e-5)


def random_windows(
    speech: SpeechBatch, rng: np.random.Generator, window: int = PUBLISHED_WINDOW,
    share: tuple[int, int] = (0, 1),
) -> SpeechBatch:  # fmt: skip
    """Cut a random stretch of at most `window` steps out of each item, as published for training.

    Args:
        speech: waveforms `(B, S, 1)`, or any features `(B, T, M)`.
        rng: source of the draws; one an item, whether it is cut or not.
        window: longest stretch, in steps of the features: samples of a waveform.
        share: `(number, of)`: these rows are that one of so many equal parts of the batch that is drawn for.
    """
    batch, steps, width = speech.features.shape
    if steps <= window:
        return speech
    lengths = speech.lengths.to(speech.features.device)
    number, of = share
    draws = torch.from_numpy(rng.random(of * batch)[number * batch : (number + 1) * batch]).to(lengths.device)
    starts = (draws * (lengths - window).clamp_min(0)).long()
    places = (starts[:, None] + torch.arange(window, device=lengths.device)).clamp_max(steps - 1)
    cut = speech.features.gather(1, places[:, :, None].expand(-1, -1, width))
    return SpeechBatch(cut, speech.lengths.clamp_max(window))


class SpeechTower(nn.Module):
    """Give the hidden states of a frozen network; it never trains and never leaves evaluation mode.

    Args:
        name: a key of `TOWERS`.
        weights_path: torchaudio's file of its weights; None: random until a checkpoint is loaded.
        sha256: expected hash of the file, or its first digits; None: not compared.
        legacy_len: count and mask frames as the released SpeechCLIP does, where a result depends on
            the longest item of its batch; False: padding changes nothing.
        max_s: longest utterance accepted; attention grows with its square.

    Raises: ConfigError: unknown name.  CheckpointError: the file is missing, damaged or foreign.
    Source: SpeechCLIP, section 3.1 and `speech_encoder_plus.py`: state 0 is the input of the first
        layer, after the positional convolution (and in the base form after the norm); the last norm
        of the large form is not applied.  Differs: evaluation mode is pinned; masks are exact.
    """

    def __init__(
        self,
        name: str = "hubert_base",
        weights_path: Path | str | None = None,
        sha256: str | None = None,
        legacy_len: bool = False,
        max_s: float = 60.0,
    ) -> None:
        super().__init__()
        self.name, self.spec, self.legacy_len, self.max_s = name, tower_spec(name), legacy_len, max_s
        self.network = build_network(self.spec)
        self.dim, self.num_states, self.mel_dim = self.spec.dim, self.spec.num_layers + 1, 1
        self.pretrained = False
        if weights_path is not None:
            what, url = f"speech tower {name}", TOWER_URL + self.spec.file
            state, _ = read_local_weights(weights_path, what, url, sha256)
            load_into(self.network, _with_parametrised_norm(state), weights_path, what)
            self.pretrained = True
        self.register_load_state_dict_post_hook(_mark_loaded)  # type: ignore[no-untyped-call]
        self.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> SpeechTower:
        """Stay in evaluation mode, whatever `mode` says."""
        return super().train(False)

    def forward(self, speech: SpeechBatch) -> HiddenStates:
        """Return all states of a batch of waveforms.

        Args:
            speech: features `(B, S, 1)`, 16 kHz waveforms, and their samples `(B,)`.

        Returns: states `(n, B, T, D)` without gradient, T the frames of the longest item, and frames
            `(B,)` on the device of the states.
        Raises:  DataError: an item below 400 samples or above `max_s`.  ConfigError: no waveforms.
        Cost:    one device sync where lengths are on a GPU.
        """
        samples = self._checked(speech)
        device = speech.features.device
        with torch.no_grad():
            waves = speech.features[:, :, 0]
            valid = samples.to(device, non_blocking=True)
            if self.spec.normalise_wave:
                waves = normalise_waves(waves, valid)
            else:
                waves = waves * (torch.arange(waves.shape[1], device=device) < valid[:, None])
            maps = self._convolve(waves, samples)
            frames = self._valid_frames(samples, waves.shape[1], maps.shape[1])
            states = self._layers(maps, None if bool((frames == maps.shape[1]).all()) else frames.to(device))
        lengths = legacy_length(samples, maps.shape[1]) if self.legacy_len else frames
        return HiddenStates(states, lengths.to(device, non_blocking=True))

    def _checked(self, speech: SpeechBatch) -> Tensor:
        if speech.features.shape[2] != 1:
            raise ConfigError(
                f"tower {self.name} takes waveforms (B, S, 1), found features {tuple(speech.features.shape)}",
                "Type: audio=wave_16k",
            )
        samples = speech.lengths.cpu()
        shortest, longest = int(samples.min()), int(samples.max())
        if shortest < LEAST_SAMPLES or longest > self.max_s * SAMPLE_RATE_HZ:
            raise DataError(
                f"tower {self.name} takes utterances of {LEAST_SAMPLES} samples (25 ms) to {self.max_s:g} s,"
                f" found {shortest} to {longest} samples",
                "Leave such recordings out, or cut them into sentences.",
            )
        return samples

    def _convolve(self, waves: Tensor, samples: Tensor) -> Tensor:
        """Return `(B, T, C)`; the base form's statistics over time are those of valid frames only."""
        extractor: Any = self.network.feature_extractor
        maps = waves[:, None]
        for place, block in enumerate(extractor.conv_layers):
            exact = place == 0 and not self.spec.layer_norm and not self.legacy_len
            if exact and int(samples.min()) < waves.shape[1]:
                frames = torch.div(samples - KERNELS[0], STRIDES[0], rounding_mode="floor") + 1
                maps = functional.gelu(_norm_over_time(block.conv(maps), frames.to(maps.device), block))
            else:
                maps, _ = block(maps, None)
        return maps.transpose(1, 2)

    def _valid_frames(self, samples: Tensor, longest: int, num_frames: int) -> Tensor:
        if not self.legacy_len:
            return conv_length(samples)
        chunk = longest // num_frames  # fairseq: a frame is padding where its whole share of samples is
        return torch.div(samples + chunk - 1, chunk, rounding_mode="floor").clamp_max(num_frames)

    def _layers(self, maps: Tensor, frames: Tensor | None) -> Tensor:
        encoder: Any = self.network.encoder
        transformer = encoder.transformer
        hidden = encoder.feature_projection(maps)
        masks: dict[str, Tensor] = {}
        if frames is not None:
            mask = torch.arange(hidden.shape[1], device=hidden.device) < frames[:, None]
            hidden = hidden * mask[:, :, None]
            if self.spec.gated_bias:
                masks["key_padding_mask"] = torch.zeros_like(hidden[:, :, 0]).masked_fill(~mask, -torch.inf)
            else:
                masks["attention_mask"] = mask[:, None, None, :].expand(-1, 1, mask.shape[1], -1)
        hidden = hidden + transformer.pos_conv_embed(hidden)
        if not self.spec.layer_norm:
            hidden = transformer.layer_norm(hidden)
        states, position_bias = [hidden], None
        for layer in transformer.layers:
            hidden, position_bias = layer(hidden, position_bias=position_bias, **masks)
            states.append(hidden)
        return torch.stack(states)


def _norm_over_time(maps: Tensor, frames: Tensor, block: Any) -> Tensor:
    """Return the group norm of one channel each, `(B, C, T)`, with statistics of the valid frames."""
    norm = block.layer_norm
    mask = (torch.arange(maps.shape[2], device=maps.device) < frames[:, None])[:, None]
    count = frames[:, None, None].to(maps.dtype)
    centred = (maps - (maps * mask).sum(2, keepdim=True) / count) * mask
    scale = torch.rsqrt(centred.square().sum(2, keepdim=True) / count + norm.eps)
    return (centred * scale) * norm.weight[:, None] + norm.bias[:, None]


def _with_parametrised_norm(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename the weight norm of older files (`weight_g`, `weight_v`) to torch's parametrisation."""
    new = {"weight_g": "parametrizations.weight.original0", "weight_v": "parametrizations.weight.original1"}
    return {
        ".".join([*name.split(".")[:-1], new.get(name.split(".")[-1], name.split(".")[-1])]): value
        for name, value in state.items()
    }


def _mark_loaded(module: SpeechTower, incompatible: object) -> None:
    module.pretrained = True
