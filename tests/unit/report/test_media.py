"""Pictures, sounds and spectrograms inside the page."""

from __future__ import annotations

import base64
import io
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import soundfile
from PIL import Image

from speech2image.report.media import embed_picture, embed_sound, log_mel


def _decode(address: str) -> io.BytesIO:
    return io.BytesIO(base64.b64decode(address.split(",", 1)[1]))


def test_small_pictures_stay_exact(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    picture = embed_picture(tmp_path / "a.png", 288)
    assert (picture.width_px, picture.height_px) == (64, 48)
    np.testing.assert_array_equal(np.asarray(Image.open(_decode(picture.address)).convert("RGB")), pixels)


def test_large_pictures_are_reduced_and_alpha_lies_over_white(tmp_path: Path) -> None:
    Image.new("RGBA", (800, 400), (255, 0, 0, 0)).save(tmp_path / "a.png")
    picture = embed_picture(tmp_path / "a.png", 200)
    assert (picture.width_px, picture.height_px) == (200, 100)
    assert np.asarray(Image.open(_decode(picture.address)).convert("RGB")).min() >= 253


def test_damaged_files_give_a_reason_and_no_exception(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n cut")
    (tmp_path / "a.wav").write_bytes(b"RIFF")
    soundfile.write(tmp_path / "b.wav", np.zeros(0, dtype=np.float32), 16_000)
    assert "a.png" in embed_picture(tmp_path / "a.png", 100).problem
    assert "a.wav" in embed_sound(tmp_path / "a.wav", 4.0).problem
    assert "empty" in embed_sound(tmp_path / "b.wav", 4.0).problem


@pytest.mark.parametrize(("rate_hz", "channels"), [(16_000, 1), (44_100, 2), (22_050, 1), (8_000, 1)])
def test_sound_becomes_16_bit_mono_16_khz_and_is_cut(tmp_path: Path, rate_hz: int, channels: int) -> None:
    time = np.arange(5 * rate_hz) / rate_hz
    tone = 0.5 * np.sin(2 * np.pi * 440.0 * time)
    soundfile.write(tmp_path / "a.wav", np.repeat(tone[:, None], channels, axis=1), rate_hz)
    sound = embed_sound(tmp_path / "a.wav", 2.0)
    wave, found_hz = soundfile.read(_decode(sound.address))
    assert found_hz == 16_000 and wave.ndim == 1 and abs(len(wave) - 32_000) <= 1
    assert sound.shown_s == pytest.approx(2.0, abs=1e-3) and sound.total_s == pytest.approx(5.0)
    loudest = np.abs(np.fft.rfft(wave)).argmax() * found_hz / len(wave)
    assert loudest == pytest.approx(440.0, abs=1.0)


def test_log_mel_shows_a_tone_where_it_is() -> None:
    time = np.arange(16_000) / 16_000
    bands = [int(log_mel(np.sin(2 * np.pi * hz * time))[50].argmax()) for hz in (300.0, 1000.0, 4000.0)]
    top_mel = 2595.0 * np.log10(1.0 + 8000 / 700.0)
    expected = [2595.0 * np.log10(1.0 + hz / 700.0) / top_mel * 73 - 1 for hz in (300.0, 1000.0, 4000.0)]
    np.testing.assert_allclose(bands, expected, atol=1.0)
    mel = log_mel(np.zeros(1600, dtype=np.float32))
    assert mel.shape == (11, 72) and np.isfinite(mel).all()


def test_a_picture_takes_no_memory_for_bytes_that_are_not_there(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.new("RGB", (8, 8), "red").save(path)
    assert not embed_picture(path, 64).problem
    valid = path.read_bytes()
    place = valid.index(b"IDAT") - 4
    path.write_bytes(valid[:place] + (2**31 - 1).to_bytes(4, "big") + valid[place + 4 :])
    tracemalloc.start()
    try:
        embed_picture(path, 64)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 8_000_000, f"{peak:,} bytes"


def test_pictures_of_formats_that_start_programs_are_not_opened(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n")
    assert embed_picture(path, 64).problem == "a.png cannot be read (UnidentifiedImageError)"
