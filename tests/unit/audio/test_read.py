"""Recordings: every readable kind is read, every bad kind is one message that names the file."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
import soundfile

from speech2image.audio.read import read_wave, resample_wave, write_wave
from speech2image.errors import DataError

RATE = 16_000


def tone(rate_hz: int = RATE, seconds: float = 1.0, hz: float = 440.0) -> np.ndarray:
    return (0.5 * np.sin(2 * np.pi * hz * np.arange(int(rate_hz * seconds)) / rate_hz)).astype(np.float32)


def refused(path: Path, **arguments: float) -> str:
    with pytest.raises(DataError) as caught:
        read_wave(path, RATE, **arguments)
    assert str(path) in caught.value.message
    assert caught.value.remedy
    return caught.value.message


@pytest.mark.parametrize("subtype", ["PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE"])
def test_every_sample_width_is_read(tmp_path: Path, subtype: str) -> None:
    soundfile.write(tmp_path / "a.wav", tone(), RATE, subtype=subtype)
    wave = read_wave(tmp_path / "a.wav", RATE)
    assert wave.dtype == np.float32
    assert np.abs(wave - tone()).max() < (0.01 if subtype == "PCM_U8" else 1e-4)


@pytest.mark.parametrize("rate_hz", [8_000, 11_025, 22_050, 44_100, 48_000, 96_000])
def test_every_rate_becomes_the_one_asked_for(tmp_path: Path, rate_hz: int) -> None:
    soundfile.write(tmp_path / "a.wav", tone(rate_hz), rate_hz, subtype="FLOAT")
    wave = read_wave(tmp_path / "a.wav", RATE)
    assert wave.shape == (RATE,)
    assert np.abs(wave - tone())[400:-400].max() < 1e-3


def test_a_prime_rate_needs_little_memory_and_is_right() -> None:
    wave = resample_wave(tone(44_101), 44_101, RATE)
    assert abs(len(wave) - RATE) <= 1
    assert np.abs(wave[:RATE] - tone()[: len(wave)])[400:-400].max() < 3e-3


def test_channels_are_averaged(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", np.stack([tone(), 0 * tone()], axis=1), RATE, subtype="FLOAT")
    assert np.allclose(read_wave(tmp_path / "a.wav", RATE), tone() / 2, atol=1e-6)


def test_other_formats_under_a_wav_name_are_read(tmp_path: Path) -> None:
    for name in ("FLAC", "OGG", "MP3"):
        with open(tmp_path / f"{name}.wav", "wb") as file:
            soundfile.write(file, tone(), RATE, format=name)
        assert abs(len(read_wave(tmp_path / f"{name}.wav", RATE)) - RATE) < 2_500


def test_missing_file_and_folder_are_refused(tmp_path: Path) -> None:
    assert "nothing" in refused(tmp_path / "no.wav")
    assert "folder" in refused(tmp_path)


def test_empty_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.wav").write_bytes(b"")
    assert "empty" in refused(tmp_path / "a.wav")


def test_no_samples_are_refused(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", np.zeros(0, np.float32), RATE)
    assert "no samples" in refused(tmp_path / "a.wav")


@pytest.mark.parametrize("kept", [0.3, 0.9, 0.999])
def test_cut_wav_is_refused(tmp_path: Path, kept: float) -> None:
    soundfile.write(tmp_path / "a.wav", tone(), RATE)
    whole = (tmp_path / "a.wav").read_bytes()
    (tmp_path / "a.wav").write_bytes(whole[: int(len(whole) * kept)])
    assert "cut" in refused(tmp_path / "a.wav")


def test_cut_flac_is_refused(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, RATE)
    soundfile.write(tmp_path / "a.flac", noise, RATE)
    whole = (tmp_path / "a.flac").read_bytes()
    (tmp_path / "a.flac").write_bytes(whole[: len(whole) // 2])
    refused(tmp_path / "a.flac")


def test_wav_of_a_stream_without_sizes_is_read(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", tone(), RATE)
    data = bytearray((tmp_path / "a.wav").read_bytes())
    at = data.index(b"data") + 4
    data[at : at + 4] = struct.pack("<I", 0xFFFFFFFF)
    (tmp_path / "a.wav").write_bytes(data)
    assert len(read_wave(tmp_path / "a.wav", RATE)) == RATE


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_samples_that_are_no_numbers_are_refused(tmp_path: Path, value: float) -> None:
    wave = tone()
    wave[7] = value
    soundfile.write(tmp_path / "a.wav", wave, RATE, subtype="FLOAT")
    assert "1 of 16000" in refused(tmp_path / "a.wav")


def test_silence_is_refused_and_a_whisper_is_not(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", np.zeros(RATE), RATE)
    assert "silent" in refused(tmp_path / "a.wav")
    soundfile.write(tmp_path / "b.wav", tone() * 1e-3, RATE, subtype="FLOAT")
    assert np.abs(read_wave(tmp_path / "b.wav", RATE)).max() > 1e-4


def test_long_recordings_are_refused_before_they_are_read(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", np.tile(tone(), 600), RATE)
    assert "600.0 s" in refused(tmp_path / "a.wav")
    assert len(read_wave(tmp_path / "a.wav", 1_000, max_s=601)) == 600_000


@pytest.mark.parametrize(
    ("content", "name"),
    [
        (b"\x89PNG\r\n\x1a\n" + b"0" * 40, "PNG"),
        (b"<!DOCTYPE html><html>", "HTML"),
        (b"PK\x03\x04" + b"\0" * 40, "ZIP"),
        (b"\0\0\0\x20ftypM4A " + b"\0" * 40, "MP4"),
        (b"version https://git-lfs.github.com/spec/v1\n", "LFS"),
        (b"good morning", "good morning"),
        (bytes(range(128, 168)), "80 81"),
    ],
)
def test_what_is_no_audio_is_named(tmp_path: Path, content: bytes, name: str) -> None:
    (tmp_path / "a.wav").write_bytes(content)
    assert name in refused(tmp_path / "a.wav")


def test_a_written_wave_is_read_back(tmp_path: Path) -> None:
    write_wave(tmp_path / "deep" / "a.wav", tone() * 3, RATE)
    assert np.allclose(read_wave(tmp_path / "deep" / "a.wav", RATE), np.clip(tone() * 3, -1, 1), atol=1e-4)
    assert soundfile.info(tmp_path / "deep" / "a.wav").subtype == "PCM_16"
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["a.wav"]


def test_a_failed_write_leaves_the_old_file_alone(tmp_path: Path) -> None:
    write_wave(tmp_path / "a.wav", tone(), RATE)
    before = (tmp_path / "a.wav").read_bytes()
    for bad in (np.zeros(0), np.array([0.0, np.nan]), np.zeros((2, 5))):
        with pytest.raises(DataError):
            write_wave(tmp_path / "a.wav", bad, RATE)
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(DataError):
        write_wave(tmp_path / "file" / "a.wav", tone(), RATE)
    assert (tmp_path / "a.wav").read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.wav", "file"]
