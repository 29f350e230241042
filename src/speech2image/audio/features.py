"""Acoustic features: the front ends of the published recipes, by name.

Each front end turns a mono waveform into `(T, M)` float32 frames, with the numbers of the library
version its paper used (librosa 0.8), computed on torch and torchaudio in float64.  Batches are
padded later with `pad_value` to `pad_frames` (None: to the longest item).  Reading files is in
`read.py`, augmentation in `augment.py`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace
from functools import lru_cache
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor
from torchaudio.functional import amplitude_to_DB, preemphasis, spectrogram

from speech2image.errors import ConfigError, DataError, nearest_names

WINDOW_S, HOP_S = 0.025, 0.010
RECIPES = ("decibel", "standardised", "wave")
EDGES = ("reflect", "zeros")
_LINEAR_HZ, _BREAK_HZ = 200.0 / 3.0, 1000.0
_BREAK_MEL, _LOG_STEP = 15.0, math.log(6.4) / 27.0


@dataclass(frozen=True)
class FrontEnd:
    """A named recipe from waveform to log-mel frames, or to the samples that a speech tower takes.

    Attributes:
        name: entry of `FRONT_ENDS` this one started from.
        sample_rate_hz: rate of the waveforms it takes.
        mel_dim: mel bands M.
        pad_value: value of padding frames in a batch.
        pad_frames: every batch is padded to this length; None: to its longest item.
        max_frames: longer utterances are cut.
        min_frames: shorter utterances are left out of training.
        recipe: `decibel` (pre-emphasis, symmetric Hamming window, dB below the peak of the
            utterance, floor -80), `standardised` (Hann window, natural log, every band to mean 0
            and deviation 1 over the utterance), or `wave` (the samples themselves, one a frame).
        fmin_hz: lower edge of the lowest band; the upper edge of the highest is half the rate.
        edges: what lies beyond both ends of the signal: `reflect` (librosa 0.8) or `zeros` (from
            0.9 on).
        even_bins: FFT bins evenly spaced from 0 to half the rate (librosa 0.8); False: their true
            frequencies (from 0.9 on), which differ where the window is odd, as in `s2igan`.
    """

    name: str
    sample_rate_hz: int
    mel_dim: int
    pad_value: float
    pad_frames: int | None
    max_frames: int
    min_frames: int
    recipe: str = "decibel"
    fmin_hz: float = 0.0
    edges: str = "reflect"
    even_bins: bool = True

    store_dtype: ClassVar[str] = "float32"

    @property
    def window_samples(self) -> int:
        """Samples of a window, which is the FFT size too: 25 ms, rounded down."""
        return int(self.sample_rate_hz * WINDOW_S)

    @property
    def hop_samples(self) -> int:
        """Samples between frames: 10 ms, rounded down."""
        return int(self.sample_rate_hz * HOP_S)

    def power(self, wave: np.ndarray) -> Tensor:
        """Return the power spectrogram `(F, T)` float64 of `wave` `(S,)`, F = window // 2 + 1.

        Raises: DataError: `wave` is not one channel of finite samples.
        """
        wave = _checked(wave)
        size = self.window_samples
        if self.recipe == "decibel":
            wave = wave if wave.size else np.zeros(200)
            signal = preemphasis(torch.from_numpy((wave - wave.mean())[None]), 0.97)[0].numpy()
            window = torch.hamming_window(size, periodic=False, dtype=torch.float64)
        else:
            signal = wave if wave.size else np.zeros(1)
            window = torch.hann_window(size, periodic=True, dtype=torch.float64)
        mode: Any = "reflect" if self.edges == "reflect" else "constant"
        padded = torch.from_numpy(np.pad(signal, size // 2, mode=mode))
        return spectrogram(
            padded, 0, window, size, self.hop_samples, size, power=2.0, normalized=False, center=False
        )

    def filter_bank(self) -> Tensor:
        """Return the mel filter bank `(M, F)` float32."""
        return _filter_bank(
            self.window_samples, self.sample_rate_hz, self.mel_dim, self.fmin_hz, self.even_bins
        )

    def __call__(self, wave: np.ndarray) -> np.ndarray:
        """Compute the features of one utterance.

        Args:
            wave: `(S,)` float32 mono at `sample_rate_hz`.

        Returns: `(T, M)` float32, T = min(`max_frames`, number of whole hops + 1), not padded;
            `decibel`: in [-80, 0], `standardised`: without unit; `wave`: `(S, 1)`, in [-1, 1].
        Raises:  DataError: `wave` is not one channel of finite samples; `wave`: fewer of them than `min_frames`.
        Source:  Li et al., `Audio_to_Image/utils.py: load_one_audio_file`; S2IGAN,
            `data_processing/Audio_to_mel.py`.  Differs: float64 inside, padding is left to the
            batch.
        """
        if self.recipe == "wave":
            samples = _checked(wave)
            if len(samples) < self.min_frames:
                raise DataError(
                    f"{len(samples)} samples are {1000 * len(samples) / self.sample_rate_hz:.3g} ms, shorter than"
                    f" what a speech tower sees at once: {self.min_frames} samples,"
                    f" {1000 * self.min_frames / self.sample_rate_hz:g} ms",
                    "Record it again, or leave it out (data.on_error=skip).",
                )
            return samples[: self.max_frames, None].astype(np.float32)
        mel = self.filter_bank().double() @ self.power(wave)
        frames = decibel(mel) if self.recipe == "decibel" else _standardise(torch.log(mel + 1e-6))
        return frames.T[: self.max_frames].float().contiguous().numpy()


def _checked(wave: np.ndarray) -> np.ndarray:
    wave = np.asarray(wave, dtype=np.float64)
    if wave.ndim != 1 or not np.isfinite(wave).all():
        raise DataError(
            f"a waveform of shape {wave.shape} with NaN or more than one channel has no features",
            "Read recordings with speech2image.audio.read.read_wave, which checks them.",
        )
    return wave


def decibel(power: Tensor) -> Tensor:
    """Return `power` in dB relative to its maximum, floor 80 dB below; same shape, in [-80, 0]."""
    peak = max(float(power.max()), 1e-10)
    level = amplitude_to_DB(power[None], 10.0, 1e-10, math.log10(peak), top_db=80.0)
    return level[0].clamp_max(0.0)  # rounding of the logarithms


def _standardise(bands: Tensor) -> Tensor:
    spread = bands.std(dim=1, correction=0, keepdim=True)
    return (bands - bands.mean(dim=1, keepdim=True)) / (spread + 1e-16)


def _mel_to_hz(mel: Tensor) -> Tensor:
    curved = _BREAK_HZ * torch.exp(_LOG_STEP * (mel - _BREAK_MEL))
    return torch.where(mel < _BREAK_MEL, mel * _LINEAR_HZ, curved)


def _hz_to_mel(hz: float) -> float:
    return hz / _LINEAR_HZ if hz < _BREAK_HZ else _BREAK_MEL + math.log(hz / _BREAK_HZ) / _LOG_STEP


@lru_cache(maxsize=32)
def _filter_bank(size: int, rate_hz: int, mel_dim: int, fmin_hz: float, evenly: bool) -> Tensor:
    """Return triangles of unit area on the Slaney mel scale, `(mel_dim, size // 2 + 1)` float32.

    Source: Slaney's Auditory Toolbox as in librosa.  Equals
        `torchaudio.functional.melscale_fbanks(norm="slaney", mel_scale="slaney")` for `evenly`,
        which computes in float32 and is therefore 1e-7 off the published numbers.
    """
    num_bins = size // 2 + 1
    step_hz = rate_hz / 2 / (num_bins - 1) if evenly else rate_hz / size
    bins_hz = torch.arange(num_bins, dtype=torch.float64) * step_hz
    lowest, highest = _hz_to_mel(fmin_hz), _hz_to_mel(rate_hz / 2)
    corners = _mel_to_hz(torch.linspace(lowest, highest, mel_dim + 2, dtype=torch.float64))
    widths = corners.diff()
    rising = (bins_hz - corners[:-2, None]) / widths[:-1, None]
    falling = (corners[2:, None] - bins_hz) / widths[1:, None]
    triangles = torch.minimum(rising, falling).clamp_min(0)
    return (triangles * (2 / (corners[2:] - corners[:-2]))[:, None]).float()


_LI = FrontEnd("li_et_al", 16_000, 40, 0.0, 2048, 2048, 64, "decibel", fmin_hz=20.0)

FRONT_ENDS: dict[str, FrontEnd] = {
    # As released: padding is 0 dB, the loudest value there is, up to 20.48 s.
    "li_et_al": _LI,
    # The same frames, padded with silence to the longest item only.
    "li_et_al_masked": replace(_LI, name="li_et_al_masked", pad_value=-80.0, pad_frames=None),
    "s2igan": FrontEnd("s2igan", 22_050, 40, 0.0, None, 8192, 16, "standardised"),
    # What self-supervised towers take: 25 ms at least, a minute at most.
    "wave_16k": FrontEnd("wave_16k", 16_000, 1, 0.0, None, 960_000, 400, "wave"),
}


def make_front_end(name: str, **overrides: Any) -> FrontEnd:
    """Return the front end `name` with some fields replaced.

    Args:
        name: a key of `FRONT_ENDS`.
        overrides: fields of `FrontEnd` with their new values.

    Raises:  ConfigError: unknown name or field, or a value out of range.
    """
    if name not in FRONT_ENDS:
        near = nearest_names(name, FRONT_ENDS) or sorted(FRONT_ENDS)
        raise ConfigError(f"unknown front end {name!r}", f"Choose one of: {', '.join(near)}.")
    known = {field.name for field in fields(FrontEnd)} - {"name"}
    unknown = sorted(set(overrides) - known)
    if unknown:
        raise ConfigError(
            f"front end {name!r} has no setting {', '.join(unknown)}",
            f"Known are: {', '.join(sorted(known))}.",
        )
    front_end = replace(FRONT_ENDS[name], **overrides)
    _check(front_end)
    return front_end


def _check(front_end: FrontEnd) -> None:
    problems = []
    if front_end.recipe not in RECIPES:
        problems.append(f"recipe={front_end.recipe!r}, expected one of {RECIPES}")
    if front_end.edges not in EDGES:
        problems.append(f"edges={front_end.edges!r}, expected one of {EDGES}")
    if front_end.sample_rate_hz < 1000:
        problems.append(f"sample_rate_hz={front_end.sample_rate_hz}, expected at least 1000")
    if front_end.mel_dim < 1:
        problems.append(f"mel_dim={front_end.mel_dim}, expected at least 1")
    if not 0 <= front_end.fmin_hz < front_end.sample_rate_hz / 2:
        problems.append(f"fmin_hz={front_end.fmin_hz}, expected 0 to half the sample rate")
    if not 0 <= front_end.min_frames <= front_end.max_frames or front_end.max_frames < 1:
        problems.append(f"min_frames={front_end.min_frames} and max_frames={front_end.max_frames}")
    if front_end.pad_frames is not None and front_end.pad_frames < front_end.max_frames:
        problems.append(f"pad_frames={front_end.pad_frames} below max_frames={front_end.max_frames}")
    if problems:
        raise ConfigError(
            f"front end {front_end.name!r}: " + "; ".join(problems), "Correct these values or leave them out."
        )
