"""Turns pictures and recordings into text that an HTML page carries inside itself.

Here are the encoders to `data:` addresses: pictures as WebP, recordings as MP3 (16-bit wav where the
sound library has no MP3), spectrograms as palette PNG.  Damaged files come back as a reason in words, never as an exception,
because one bad file must not cost the reader the page.
"""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from speech2image.safe.records import read_limited

SAMPLE_RATE_HZ = 16_000
LOSSLESS_PX = 96
MAX_SOURCE_PX = 40_000_000


@dataclass(frozen=True)
class Picture:
    """A picture ready to embed: its address, its size in pixels, or why there is none."""

    address: str = ""
    width_px: int = 0
    height_px: int = 0
    problem: str = ""


@dataclass(frozen=True)
class Sound:
    """A recording ready to embed, with its spectrogram, or why there is none."""

    address: str = ""
    shown_s: float = 0.0
    total_s: float = 0.0
    spectrogram: Picture = Picture()
    problem: str = ""


def embed_picture(path: Path, max_px: int, use_lossless: bool = True, quality: int = 84) -> Picture:
    """Encode the picture at `path` as WebP.

    Args:
        path: picture of one of the formats that corpora may have; alpha is laid over white.
        max_px: longest side; larger pictures are reduced, smaller ones stay as they are.
        use_lossless: keep pictures up to 96 pixels exact; larger ones are always lossy.
        quality: of lossy pictures, 0 to 100.
    """
    from PIL import Image

    from speech2image.images.read import FORMATS, MAX_IMAGE_BYTES

    try:
        content = io.BytesIO(
            read_limited(path, MAX_IMAGE_BYTES)
        )  # a file takes room for any length a chunk claims
        with Image.open(content, formats=FORMATS) as source:
            if source.width * source.height > MAX_SOURCE_PX:
                return Picture(problem=f"too large: {source.width} × {source.height}")
            image = source.convert("RGBA")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        return Picture(problem=f"{path.name} cannot be read ({type(error).__name__})")
    if image.getchannel("A").getextrema()[0] != 255:
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    image = image.convert("RGB")
    if max(image.size) > max_px:
        image.thumbnail((max_px, max_px), Image.Resampling.LANCZOS)
    lossless = use_lossless and max(image.size) <= LOSSLESS_PX
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", lossless=lossless, quality=70 if lossless else quality, method=4)
    return Picture(_address("image/webp", buffer.getvalue()), image.width, image.height)


def embed_sound(path: Path, max_s: float) -> Sound:
    """Encode the first `max_s` seconds of the recording at `path`, with its spectrogram."""
    import soundfile

    try:
        info = soundfile.info(str(path))
        samples, rate_hz = soundfile.read(
            str(path), frames=int(max_s * info.samplerate), dtype="float32", always_2d=True
        )
    except (OSError, RuntimeError, ValueError) as error:
        return Sound(problem=f"{path.name} cannot be read ({type(error).__name__})")
    wave = np.nan_to_num(samples.mean(axis=1))
    if not len(wave):
        return Sound(problem=f"{path.name} is empty")
    wave = _resample(wave, int(rate_hz))
    return Sound(
        address=_encoded(np.clip(wave, -1.0, 1.0)),
        shown_s=len(wave) / SAMPLE_RATE_HZ,
        total_s=info.frames / info.samplerate,
        spectrogram=draw_spectrogram(wave),
    )


def _encoded(wave: np.ndarray) -> str:
    """Return the address of `wave`: an eighth of the room as MP3, which every browser plays."""
    import soundfile

    buffer = io.BytesIO()
    if "MP3" in soundfile.available_formats():
        settings = {"bitrate_mode": "VARIABLE", "compression_level": 0.5}
        soundfile.write(buffer, wave, SAMPLE_RATE_HZ, format="MP3", subtype="MPEG_LAYER_III", **settings)
        return _address("audio/mpeg", buffer.getvalue())
    soundfile.write(buffer, wave, SAMPLE_RATE_HZ, format="WAV", subtype="PCM_16")
    return _address("audio/wav", buffer.getvalue())


def log_mel(wave: np.ndarray, mel_dim: int = 72, hop_ms: float = 10.0) -> np.ndarray:
    """Return a log-mel spectrogram for looking at, in decibels below its own maximum.

    Args:    wave: `(S,)` float32 at 16 kHz.
    Returns: `(T, mel_dim)` float64 in [-70, 0], T = 1 + S // hop; 32 ms Hann windows, 0 to 8 kHz.
    Source:  triangles of equal height on the scale 2595 log10(1 + f / 700) (O'Shaughnessy 1987).
             For the eye only: no model reads these numbers, models have `audio.features`.
    """
    window, hop = 512, int(SAMPLE_RATE_HZ * hop_ms / 1000.0)
    padded = np.pad(wave.astype(np.float64), window // 2)
    num_frames = 1 + len(wave) // hop
    frames = np.lib.stride_tricks.sliding_window_view(padded, window)[::hop][:num_frames]
    power = np.abs(np.fft.rfft(frames * np.hanning(window), axis=1)) ** 2
    top_mel = 2595.0 * np.log10(1.0 + SAMPLE_RATE_HZ / 2 / 700.0)
    edges_hz = 700.0 * (10.0 ** (np.linspace(0.0, top_mel, mel_dim + 2) / 2595.0) - 1.0)
    bins_hz = np.fft.rfftfreq(window, 1.0 / SAMPLE_RATE_HZ)
    low, centre, high = edges_hz[:-2, None], edges_hz[1:-1, None], edges_hz[2:, None]
    # Low triangles are narrower than one bin; each keeps at least the share of its nearest bins.
    width_hz = bins_hz[1]
    rising = (bins_hz - low + width_hz) / (centre - low + width_hz)
    falling = (high - bins_hz + width_hz) / (high - centre + width_hz)
    weights = np.clip(np.minimum(rising, falling), 0.0, None)
    decibels = 10.0 * np.log10(power @ (weights / weights.sum(axis=1, keepdims=True)).T + 1e-10)
    return np.asarray(np.clip(decibels - decibels.max(), -70.0, 0.0))


def draw_spectrogram(wave: np.ndarray) -> Picture:
    """Draw the log-mel spectrogram of `wave` `(S,)`, low frequencies at the bottom."""
    from matplotlib import colormaps
    from PIL import Image

    mel = log_mel(wave)
    levels = np.round((mel.T[::-1] + 70.0) / 70.0 * 63.0).astype(np.uint8)
    palette = (colormaps["magma"](np.linspace(0.02, 1.0, 64))[:, :3] * 255.0).round().astype(np.uint8)
    image = Image.fromarray(levels).convert("P")
    image.putpalette(palette.tobytes())
    if image.width > 480:
        # Resizing indices of a palette ordered from dark to light interpolates the levels.
        grey = Image.fromarray(levels).resize((480, image.height), Image.Resampling.BOX)
        image = grey.convert("P")
        image.putpalette(palette.tobytes())
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=True, bits=6)
    return Picture(_address("image/png", buffer.getvalue()), image.width, image.height)


def _resample(wave: np.ndarray, rate_hz: int) -> np.ndarray:
    if rate_hz == SAMPLE_RATE_HZ:
        return wave
    from scipy.signal import resample_poly

    divisor = int(np.gcd(rate_hz, SAMPLE_RATE_HZ))
    return np.asarray(resample_poly(wave, SAMPLE_RATE_HZ // divisor, rate_hz // divisor), dtype=np.float32)


def _address(media_type: str, content: bytes) -> str:
    return f"data:{media_type};base64,{base64.b64encode(content).decode('ascii')}"
