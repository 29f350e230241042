"""Front ends: shapes, odd waves, settings; their numbers are compared in tests/parity."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import numpy as np
import pytest
import torch
from torchaudio.functional import melscale_fbanks

from speech2image.audio.features import FRONT_ENDS, FrontEnd, decibel, make_front_end
from speech2image.errors import ConfigError, DataError

MEL_FRONT_ENDS = [name for name, front_end in FRONT_ENDS.items() if front_end.recipe != "wave"]


@pytest.mark.parametrize("name", MEL_FRONT_ENDS)
@pytest.mark.parametrize("samples", [0, 1, 2, 150, 276, 401, 5_000])
def test_short_waves_have_features(name: str, samples: int) -> None:
    wave = np.random.default_rng(samples).normal(size=samples).astype(np.float32)
    mel = FRONT_ENDS[name](wave)
    assert mel.dtype == np.float32
    assert mel.ndim == 2 and mel.shape[1] == FRONT_ENDS[name].mel_dim and len(mel) >= 1
    assert np.isfinite(mel).all()


@pytest.mark.parametrize("samples", [0, 1, 399])
def test_waves_shorter_than_a_tower_sees_are_refused(samples: int) -> None:
    with pytest.raises(DataError, match=f"{samples} samples are .* shorter than .* 400 samples, 25 ms"):
        FRONT_ENDS["wave_16k"](np.full(samples, 0.1, np.float32))
    assert len(FRONT_ENDS["wave_16k"](np.full(400, 0.1, np.float32))) == 400


def test_frame_counts_follow_the_published_rule() -> None:
    for samples in (1_600, 15_999, 16_000, 16_001):
        wave = np.random.default_rng(0).normal(size=samples)
        assert len(FRONT_ENDS["li_et_al"](wave)) == 1 + samples // 160
        assert len(FRONT_ENDS["s2igan"](wave)) == 1 + (samples - 1) // 220


def test_towers_get_the_samples_themselves() -> None:
    wave = np.random.default_rng(0).normal(size=2_000).astype(np.float32)
    assert np.array_equal(FRONT_ENDS["wave_16k"](wave), wave[:, None])
    assert make_front_end("wave_16k", max_frames=500)(wave).shape == (500, 1)
    with pytest.raises(DataError, match="NaN"):
        FRONT_ENDS["wave_16k"](np.array([0.0, np.nan]))


def test_long_waves_are_cut() -> None:
    wave = np.random.default_rng(0).normal(size=21 * 16_000)
    assert FRONT_ENDS["li_et_al"](wave).shape == (2048, 40)
    assert make_front_end("s2igan", max_frames=100)(wave).shape == (100, 40)


def test_silence_and_gain_do_no_harm() -> None:
    assert (FRONT_ENDS["li_et_al"](np.zeros(4_000)) == 0).all()
    assert np.isfinite(FRONT_ENDS["s2igan"](np.zeros(4_000))).all()
    wave = np.random.default_rng(0).normal(size=4_000)
    quiet, loud = (FRONT_ENDS["li_et_al"](wave * gain) for gain in (0.1, 1.0))
    assert np.allclose(quiet, loud, atol=1e-3)


def test_bands_are_standardised_over_the_utterance() -> None:
    mel = FRONT_ENDS["s2igan"](np.random.default_rng(0).normal(size=22_050))
    assert np.abs(mel.mean(axis=0)).max() < 1e-5
    assert np.abs(mel.std(axis=0) - 1).max() < 1e-5


def test_masked_form_differs_in_padding_only() -> None:
    released, masked = asdict(FRONT_ENDS["li_et_al"]), asdict(FRONT_ENDS["li_et_al_masked"])
    assert {key for key in released if released[key] != masked[key]} == {"name", "pad_value", "pad_frames"}
    assert (masked["pad_value"], masked["pad_frames"]) == (-80.0, None)


@pytest.mark.parametrize("name", MEL_FRONT_ENDS)
def test_filter_bank_is_torchaudios_in_double_precision(name: str) -> None:
    front_end = FRONT_ENDS[name]
    theirs = melscale_fbanks(
        front_end.window_samples // 2 + 1, front_end.fmin_hz, front_end.sample_rate_hz / 2, 40,
        front_end.sample_rate_hz, norm="slaney", mel_scale="slaney",
    )  # fmt: skip
    assert torch.allclose(front_end.filter_bank(), theirs.T, atol=2e-7)


def test_decibels_are_relative_to_the_peak() -> None:
    assert torch.allclose(decibel(torch.tensor([[1.0, 10.0, 1e-30]])), torch.tensor([[-10.0, 0.0, -80.0]]))


@pytest.mark.parametrize("wave", [np.zeros((2, 100)), np.array([0.0, np.nan]), np.array([np.inf])])
def test_bad_waves_are_refused(wave: np.ndarray) -> None:
    with pytest.raises(DataError):
        FRONT_ENDS["s2igan"](wave)


def test_settings_can_be_replaced() -> None:
    front_end = make_front_end("s2igan", mel_dim=64, sample_rate_hz=8_000)
    assert isinstance(front_end, FrontEnd)
    assert front_end(np.random.default_rng(0).normal(size=8_000)).shape == (101, 64)


@pytest.mark.parametrize(
    ("name", "overrides", "found"),
    [
        ("li_et_all", {}, "li_et_al"),
        ("s2igan", {"mels": 3}, "mels"),
        ("s2igan", {"recipe": "mfcc"}, "mfcc"),
        ("s2igan", {"edges": "wrap"}, "wrap"),
        ("s2igan", {"mel_dim": 0}, "mel_dim"),
        ("s2igan", {"sample_rate_hz": 10}, "sample_rate_hz"),
        ("li_et_al", {"fmin_hz": 9_000.0}, "fmin_hz"),
        ("li_et_al", {"min_frames": 5_000}, "min_frames"),
        ("li_et_al", {"pad_frames": 10}, "pad_frames"),
    ],
)
def test_wrong_settings_are_named(name: str, overrides: dict[str, Any], found: str) -> None:
    with pytest.raises(ConfigError, match=found):
        make_front_end(name, **overrides)
