"""Recordings from and to files: decode, mix to mono, resample, and refuse what is not speech.

Every way a recording can be bad (missing, empty, cut, silent, not a number, not audio, too long)
ends in one `DataError` that names the file.  Decoding is libsndfile's, through soundfile;
resampling is torchaudio's.  Acoustic features are in `features.py`.
"""

from __future__ import annotations

import io
import os
import struct
from contextlib import suppress
from fractions import Fraction
from pathlib import Path

import numpy as np
import soundfile
import torch
from torchaudio.functional import resample

from speech2image.errors import DataError

SILENCE_PEAK = 1e-4
MIN_RATE_HZ = 1000
MAX_RATE_HZ = 192_000
MAX_WAVE_S = 60.0
"""Longest recording, seconds: a spoken sentence; longer ones are cut into sentences first."""
MAX_WAVE_BYTES = 200_000_000
"""Largest file of a recording: a minute in stereo at the highest rate, 64 bits a sample."""
MAX_VALUES = 24_000_000
"""Most samples over all channels that are decoded, 96 MB: a minute in stereo at the highest rate."""
#: Read; other parsers of libsndfile are not trusted with files of unknown making.
FORMATS = ("WAV", "WAVEX", "RF64", "W64", "FLAC", "OGG", "MP3", "MPEG", "AIFF", "AU", "NIST", "CAF")

_MAX_CHUNKS = 1000
_UNKNOWN_SIZES = (0, 0xFFFFFFFF)
_MAX_PHASES = 640

_SIGNATURES: tuple[tuple[bytes, str], ...] = (
    (b"ID3", "MP3"),
    (b"\xff\xfb", "MP3"),
    (b"\xff\xf3", "MP3"),
    (b"\xff\xf1", "AAC"),
    (b"OggS", "Ogg"),
    (b"fLaC", "FLAC"),
    (b"RIFF", "RIFF (WAV) with a damaged header"),
    (b"\x1aE\xdf\xa3", "Matroska or WebM"),
    (b"\x89PNG", "PNG image"),
    (b"\xff\xd8\xff", "JPEG image"),
    (b"PK\x03\x04", "ZIP archive"),
    (b"\x1f\x8b", "gzip archive"),
    (b"%PDF", "PDF"),
    (b"version https://git-lfs", "Git LFS pointer, the file itself was not fetched"),
    (b"<", "HTML or XML page"),
)


def read_wave(path: Path | str, sample_rate_hz: int, max_s: float = MAX_WAVE_S) -> np.ndarray:
    """Read a recording of any rate, sample width and channel count as mono float32.

    Args:
        path: audio file of one of `FORMATS`.
        sample_rate_hz: rate of the result.
        max_s: longest recording accepted, seconds.

    Returns: waveform `(S,)` float32, channels averaged, full scale at 1.
    Raises:  DataError: missing, empty, no samples, cut, NaN or infinite, silent, too long, or not
             audio; the message names the file and what was found.
    """
    path = Path(path)
    _check_file(path)
    try:
        with soundfile.SoundFile(path) as sound:
            if sound.format not in FORMATS:
                raise ValueError(f"format {sound.format}")
            rate_hz, declared = int(sound.samplerate), int(sound.frames)
            _check_extent(path, (rate_hz, declared, int(sound.channels)), max_s)
            wave = sound.read(declared, dtype="float32", always_2d=True)
    except DataError:
        raise
    except Exception as error:  # libsndfile and its wrapper fail in many ways
        raise DataError(
            f"{path}: cannot be decoded as audio; found: {_real_format(path)}",
            "Convert it to WAV (for example with ffmpeg -i in.xyz out.wav), or skip it with on_error=skip.",
        ) from error
    if len(wave) < declared:
        raise _cut(path, f"{len(wave)} of {declared} samples are there")
    mono = wave.mean(axis=1, dtype=np.float32)
    _check_samples(path, mono)
    return resample_wave(mono, rate_hz, sample_rate_hz)


def resample_wave(wave: np.ndarray, rate_hz: int, sample_rate_hz: int) -> np.ndarray:
    """Change the sample rate with a Kaiser-windowed sinc.

    Args:
        wave: `(S,)` float32 at `rate_hz`.
        rate_hz: its rate.
        sample_rate_hz: rate wanted.

    Returns: `(ceil(S * sample_rate_hz / rate_hz),)` float32.
    Source:  the `kaiser_best` filter of resampy 0.3, which loaded the recordings of both published
             recipes.  Differs: whole taps, so samples differ by 1e-6 and standardised features by
             4e-3 at most; a ratio of rates that needs more than 640 filter phases is rounded to
             the nearest that does not (pitch error below 1e-5), exact ones take gigabytes.
    """
    if rate_hz == sample_rate_hz:
        return np.ascontiguousarray(wave, dtype=np.float32)
    ratio = Fraction(rate_hz, sample_rate_hz).limit_denominator(_MAX_PHASES)
    resampled = resample(
        torch.from_numpy(np.ascontiguousarray(wave, dtype=np.float32)),
        ratio.numerator,
        ratio.denominator,
        lowpass_filter_width=46,
        rolloff=0.9173473712608761,
        resampling_method="sinc_interp_kaiser",
        beta=12.984585247040012,
    )
    return resampled.numpy()


def write_wave(path: Path | str, wave: np.ndarray, sample_rate_hz: int) -> None:
    """Write a mono waveform as 16-bit WAV, whole or not at all.

    Args:
        path: file to make; its folder is created.
        wave: `(S,)` in [-1, 1]; louder samples are clipped.
        sample_rate_hz: its rate.

    Raises: DataError: `wave` is empty or holds NaN or infinity, or the file cannot be written.
    """
    path = Path(path)
    wave = np.asarray(wave, dtype=np.float32)
    if wave.ndim != 1 or wave.size == 0 or not np.isfinite(wave).all():
        raise DataError(
            f"{path}: cannot write a waveform of shape {wave.shape}, finite: {bool(np.isfinite(wave).all())}",
            "Give one channel with at least one finite sample.",
        )
    beside = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        content = io.BytesIO()  # first in memory: libsndfile reports a full disk past us
        soundfile.write(content, np.clip(wave, -1, 1), sample_rate_hz, subtype="PCM_16", format="WAV")
        with open(beside, "wb") as file:
            file.write(content.getbuffer())
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    except (OSError, soundfile.LibsndfileError) as error:
        raise DataError(
            f"{path}: cannot be written: {error}", "Check the free space and the rights of the folder."
        ) from error
    finally:
        with suppress(OSError):
            beside.unlink(missing_ok=True)


def _check_file(path: Path) -> None:
    try:
        if not path.is_file():
            found = "a folder" if path.is_dir() else "nothing"
            raise DataError(
                f"{path}: expected a recording, found {found}",
                "Check the path; captions without a recording are spoken by: speech2image prepare",
            )
        total = path.stat().st_size
        missing = _missing_wav_bytes(path, total)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        raise DataError(f"{path}: cannot be read: {error}", "Check the rights of the file.") from error
    if total == 0:
        raise DataError(
            f"{path}: the file is empty (0 bytes)", "Fetch it again, or skip it with on_error=skip."
        )
    if total > MAX_WAVE_BYTES:
        raise DataError(
            f"{path}: a recording of {total:,} bytes, more than the {MAX_WAVE_BYTES:,} that are accepted",
            "Cut it into sentences, or leave it out (data.on_error=skip).",
        )
    if missing > 0:
        raise _cut(path, f"{missing} bytes of its sound are missing")


def _missing_wav_bytes(path: Path, total: int) -> int:
    """Return how many bytes the data chunk of a WAV lacks; 0 if none or no WAV."""
    with open(path, "rb") as file:
        head = file.read(12)
        if head[:4] != b"RIFF" or head[8:12] != b"WAVE":
            return 0
        for _ in range(_MAX_CHUNKS):
            chunk = file.read(8)
            if len(chunk) < 8:
                return 0
            name, size = struct.unpack("<4sI", chunk)
            if name == b"data":
                return 0 if size in _UNKNOWN_SIZES else max(0, size - (total - file.tell()))
            file.seek(size + size % 2, os.SEEK_CUR)
    raise DataError(
        f"{path}: more than {_MAX_CHUNKS} chunks stand before its sound",
        "Convert it again from its source, or skip it with on_error=skip.",
    )


def _check_extent(path: Path, extent: tuple[int, int, int], max_s: float) -> None:
    rate_hz, num_samples, channels = extent
    if num_samples <= 0:
        raise DataError(
            f"{path}: the recording holds no samples", "Record it again, or skip it with on_error=skip."
        )
    if not MIN_RATE_HZ <= rate_hz <= MAX_RATE_HZ:
        raise DataError(
            f"{path}: sample rate {rate_hz} Hz, expected {MIN_RATE_HZ} to {MAX_RATE_HZ:,} Hz",
            "Check the header of the file; convert it again from its source.",
        )
    if num_samples > max_s * rate_hz:
        raise DataError(
            f"{path}: {num_samples / rate_hz:.1f} s long, longer than the limit of {max_s:g} s",
            "Cut it into sentences, or leave it out (data.on_error=skip).",
        )
    if num_samples * channels > MAX_VALUES:
        raise DataError(
            f"{path}: {num_samples:,} samples in {channels} channels, more than {MAX_VALUES:,} together",
            "Mix it to mono, or leave it out (data.on_error=skip).",
        )


def _check_samples(path: Path, mono: np.ndarray) -> None:
    finite = np.isfinite(mono)
    if not finite.all():
        raise DataError(
            f"{path}: {int((~finite).sum())} of {mono.size} samples are NaN or infinite",
            "Convert it again from its source, or skip it with on_error=skip.",
        )
    peak = float(np.abs(mono).max())
    if peak < SILENCE_PEAK:
        raise DataError(
            f"{path}: the recording is silent (peak {peak:.1e} of full scale)",
            "Check the microphone and record it again, or skip it with on_error=skip.",
        )


def _cut(path: Path, detail: str) -> DataError:
    return DataError(
        f"{path}: the recording is cut (truncated): {detail}",
        "Fetch it again, or skip it with on_error=skip.",
    )


def _real_format(path: Path) -> str:
    with open(path, "rb") as file:
        head = file.read(64)
    for signature, name in _SIGNATURES:
        if head.startswith(signature):
            return name
    if head[4:8] == b"ftyp":
        return "MP4 or M4A"
    if head.isascii():
        return f"text starting with {head[:24].decode('ascii')!r}"
    return f"unknown data starting with the bytes {head[:8].hex(' ')}"
