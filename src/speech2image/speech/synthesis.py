"""Speak captions: espeak-ng in many voices (always there), Tacotron 2 as an option.

Here are the voices, the choice of a voice for an utterance and the two engines, all with one method
`speak(text, voice)`.  Not here: which captions are spoken and where the files go, see
`data/prepare.py`.  The speech of CUB-200 in the literature is Tacotron 2's; espeak-ng is a formant
synthesizer, clearer and more monotonous, and speaks a caption in about 5 ms.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from speech2image.errors import CheckpointError, ConfigError, DataError, nearest_names
from speech2image.speech.espeak import ACCENTS, Espeak, find_espeak

__all__ = [
    "ENGINES",
    "VOICES",
    "EspeakSpeaker",
    "Speaker",
    "Tacotron2Speaker",
    "Voice",
    "make_speaker",
    "trim_and_level",
    "voice_for",
]

SILENCE_LEVEL = 0.01
EDGE_S = 0.05
PEAK = 0.7

_VARIANTS = ("m1", "f1", "m2", "f2", "m3", "f3", "m4", "f4", "m5", "f5", "m6", "m7")
_PITCHES = (50, 42, 58, 35, 65)
_RATES_WPM = (190, 205, 215, 180)


@dataclass(frozen=True, slots=True)
class Voice:
    """One synthetic person: an accent, a timbre, a pitch and a speed.

    Attributes:
        name: unique name, used as `Utterance.speaker`.
        language: accent, e.g. `en-gb-scotland`.
        variant: timbre of espeak-ng (`m1` ... `m7` male, `f1` ... `f5` female); empty: its plain voice.
        pitch: 0 to 99, 50 is the voice's own.
        rate_wpm: words a minute.
    """

    name: str
    language: str
    variant: str = ""
    pitch: int = 50
    rate_wpm: int = 175

    def describe(self) -> str:
        """Say the voice in words: what `Utterance.engine` records after engine and version."""
        timbre = f"+{self.variant}" if self.variant else ""
        return f"{self.language}{timbre} pitch {self.pitch} rate {self.rate_wpm}"


def _make_voices() -> tuple[Voice, ...]:
    voices = []
    for number in range(28):
        language = list(ACCENTS)[number % len(ACCENTS)]
        # The first of every accent is espeak-ng's plain voice; the others walk through the timbres.
        variant = "" if number < len(ACCENTS) else _VARIANTS[(number - len(ACCENTS)) % len(_VARIANTS)]
        pitch, rate_wpm = _PITCHES[number % len(_PITCHES)], _RATES_WPM[number % len(_RATES_WPM)]
        name = f"{language}{'-' + variant if variant else ''}"
        voices.append(Voice(name, language, variant, pitch, rate_wpm))
    return tuple(voices)


VOICES: tuple[Voice, ...] = _make_voices()


def voice_for(key: str, voices: tuple[Voice, ...] = VOICES) -> Voice:
    """Choose the voice of an utterance by a stable hash of its key: the same on every machine.

    >>> voice_for("001.Red_Bird/Red_Bird_0001_0") == voice_for("001.Red_Bird/Red_Bird_0001_0")
    True
    """
    digest = hashlib.blake2b(key.encode("utf-8"), digest_size=8, person=b"voice").digest()
    return voices[int.from_bytes(digest, "little") % len(voices)]


class Speaker(Protocol):
    """What every engine offers; `speak` is a function of its arguments, with no memory."""

    engine: str
    version: str
    licence: str
    sample_rate_hz: int

    def speak(self, text: str, voice: Voice) -> np.ndarray:
        """Return `text` as a mono waveform `(S,)` float32."""

    def voice_for(self, key: str) -> Voice:
        """Return the voice of an utterance."""

    def describe(self, voice: Voice) -> str:
        """Return what `Utterance.engine` records."""


def trim_and_level(
    wave: np.ndarray, sample_rate_hz: int, edge_s: float = EDGE_S, peak: float = PEAK
) -> np.ndarray:
    """Leave `edge_s` of silence at both ends and set the peak.

    Args:
        wave: `(S,)` float32 that is not silent.
        sample_rate_hz: its rate.
        edge_s: silence left (and, where there was less, added) before and after, seconds.
        peak: largest absolute sample of the result.

    Returns: `(S',)` float32; sound counts from 1 % of the loudest sample.
    Raises:  DataError: `wave` is empty or silent.
    """
    loudness = np.abs(wave)
    loudest = float(loudness.max()) if wave.size else 0.0
    if loudest <= 0:
        raise DataError("the synthesizer made no sound", "Give a text that holds words.")
    heard = np.flatnonzero(loudness >= SILENCE_LEVEL * loudest)
    edge = round(edge_s * sample_rate_hz)
    first, last = int(heard[0]) - edge, int(heard[-1]) + 1 + edge
    kept = wave[max(first, 0) : last]
    padded = np.pad(kept, (max(-first, 0), max(last - len(wave), 0)))
    return (padded * (peak / loudest)).astype(np.float32)


def _require_text(text: str) -> str:
    words = " ".join(text.split())
    if not any(character.isalnum() for character in words):
        raise DataError(
            f"nothing to speak: the text is {text!r}",
            "Give at least one word, for example text='a small red bird'.",
        )
    if "\0" in words:
        raise DataError(f"the text {text!r} holds a NUL character", "Remove it.")
    return words


class EspeakSpeaker:
    """Speak with the espeak-ng library that the package `espeakng-loader` carries.

    Every utterance opens the library anew, because espeak-ng keeps the phase of its pitch flutter
    and its random state between utterances: without that, the same text sounds a little different
    each time, and a corpus could not be made twice.

    Cost: about 5 ms an utterance; calls of several threads take turns.
    """

    engine = "espeak-ng"
    licence = "GPL-3.0-or-later"

    def __init__(self) -> None:
        self._library_path, self._data_path = find_espeak()
        with Espeak(self._library_path, self._data_path) as library:
            self.sample_rate_hz: int = library.sample_rate_hz
            self.version: str = library.version

    def speak(self, text: str, voice: Voice) -> np.ndarray:
        """Speak one sentence.

        Args:
            text: what to say, any language of letters; read as English.
            voice: who says it, one of `VOICES` or your own.

        Returns: `(S,)` float32 at `sample_rate_hz`, 50 ms of silence at both ends, peak 0.7; equal
                 arguments give equal samples, in any process and any order.
        Raises:  DataError: `text` holds no word, or the voice is unknown to espeak-ng.
        """
        words = _require_text(text)
        with Espeak(self._library_path, self._data_path) as library:
            wave = library.speak(words, voice.language, voice.variant, voice.pitch, voice.rate_wpm)
        return trim_and_level(wave, self.sample_rate_hz)

    def voice_for(self, key: str) -> Voice:
        """Choose one of `VOICES` for an utterance by its key."""
        return voice_for(key)

    def describe(self, voice: Voice) -> str:
        """Name engine, version and voice, for `Utterance.engine`."""
        return f"{self.engine} {self.version} {voice.describe()}"


_TORCHAUDIO_URL = "https://download.pytorch.org/torchaudio/models"
_TACOTRON2_FILE = "tacotron2_english_characters_1500_epochs_wavernn_ljspeech.pth"
_WAVERNN_FILE = "wavernn_10k_epochs_8bits_ljspeech.pth"


class Tacotron2Speaker:
    """Speak with torchaudio's Tacotron 2 (characters, LJ Speech): the voice family of the published CUB speech.

    Args:
        weights: folder that holds the two weight files under their official names.

    Cost:    seconds an utterance on a CPU: use a GPU machine for a whole corpus, and prepare once.
    Raises:  CheckpointError: a weight file is missing or is not the right one.
    Source:  `torchaudio.pipelines.TACOTRON2_WAVERNN_CHAR_LJSPEECH`.  Differs: weights come from local
             files; the draws of its dropout and sampling are seeded by the text, so that it repeats itself.
    """

    engine = "tacotron2"
    licence = "BSD-2-Clause code; weights trained on LJ Speech (public domain)"

    def __init__(self, weights: Path | str) -> None:
        files = [Path(weights) / _TACOTRON2_FILE, Path(weights) / _WAVERNN_FILE]
        missing = [file.name for file in files if not file.is_file()]
        if missing:
            raise CheckpointError(
                f"Tacotron 2 needs {' and '.join(missing)}, not found in {Path(weights)}",
                "Download "
                + " and ".join(f"{_TORCHAUDIO_URL}/{name}" for name in missing)
                + f" into {Path(weights)}/",
            )
        import torchaudio
        from torchaudio.models import Tacotron2, WaveRNN
        from torchaudio.pipelines._tts.impl import _WaveRNNVocoder

        bundle: Any = torchaudio.pipelines.TACOTRON2_WAVERNN_CHAR_LJSPEECH
        self.version: str = torchaudio.__version__
        self._processor = bundle.get_text_processor()
        self._tacotron2 = _load_local(Tacotron2(**bundle._tacotron2_params), files[0])
        self._vocoder = _WaveRNNVocoder(_load_local(WaveRNN(**bundle._wavernn_params), files[1]))
        self.sample_rate_hz: int = int(self._vocoder.sample_rate)

    def speak(self, text: str, voice: Voice) -> np.ndarray:
        """Speak one sentence in the one voice of the weights; `voice` changes nothing.

        Returns: `(S,)` float32 at `sample_rate_hz`, 50 ms of silence at both ends, peak 0.7.
        Raises:  DataError: `text` holds no word.
        """
        import torch

        words = _require_text(text)
        seed = int.from_bytes(hashlib.blake2b(words.encode("utf-8"), digest_size=4).digest(), "little")
        with torch.inference_mode(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            tokens, lengths = self._processor(words)
            mel, mel_lengths, _ = self._tacotron2.infer(tokens, lengths)
            waves, _ = self._vocoder(mel, mel_lengths)
        return trim_and_level(waves[0].numpy().astype(np.float32), self.sample_rate_hz)

    def voice_for(self, key: str) -> Voice:
        """Return the only voice there is."""
        return Voice("ljspeech", "en-us")

    def describe(self, voice: Voice) -> str:
        """Name engine, version and voice, for `Utterance.engine`."""
        return f"{self.engine} torchaudio {self.version} {voice.name}"


def _load_local(model: Any, path: Path) -> Any:
    import pickle

    from speech2image.safe.torch_files import read_torch_file

    try:
        model.load_state_dict(read_torch_file(path))
    except (OSError, RuntimeError, ValueError, pickle.UnpicklingError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"{path}: not the weights of {type(model).__name__}: {str(error).splitlines()[0]}",
            f"Download it again from {_TORCHAUDIO_URL}/{path.name}",
        ) from error
    return model.eval()


ENGINES = ("espeak", "tacotron2")


def make_speaker(engine: str, weights: Path | str | None = None) -> Speaker:
    """Make the speaker of one engine.

    Args:
        engine: `espeak` or `tacotron2`.
        weights: folder of weight files, for `tacotron2`; None: `weights/tacotron2` in the working folder.

    Raises: ConfigError: the engine is unknown.  CheckpointError: its weights are missing.
    """
    if engine == "espeak":
        return EspeakSpeaker()
    if engine == "tacotron2":
        return Tacotron2Speaker(weights if weights is not None else Path("weights") / "tacotron2")
    raise ConfigError(
        f"unknown speech engine {engine!r}; known: {', '.join(ENGINES)}",
        f"Did you mean {(nearest_names(engine, ENGINES) or ['espeak'])[0]!r}?",
    )
