"""Speaking captions: determinism, voices, levels, errors; and Tacotron 2 on weights of the right shape."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from speech2image.errors import CheckpointError, ConfigError, DataError, Speech2ImageError
from speech2image.speech import espeak, synthesis
from speech2image.speech.synthesis import (
    VOICES,
    EspeakSpeaker,
    Tacotron2Speaker,
    Voice,
    make_speaker,
    trim_and_level,
    voice_for,
)

SENTENCE = "this small bird has a bright red crown, blue wings and a white belly"


@pytest.fixture(scope="module")
def speaker() -> EspeakSpeaker:
    return EspeakSpeaker()


def _digest(wave: np.ndarray) -> str:
    return hashlib.sha256(wave.tobytes()).hexdigest()


def test_every_voice_speaks_and_no_two_sound_the_same(speaker: EspeakSpeaker) -> None:
    waves = {voice.name: speaker.speak(SENTENCE, voice) for voice in VOICES}
    assert len(VOICES) >= 20 and len(waves) == len(VOICES)
    assert len({_digest(wave) for wave in waves.values()}) == len(VOICES)
    for wave in waves.values():
        assert wave.dtype == np.float32 and wave.ndim == 1
        assert 2.0 < len(wave) / speaker.sample_rate_hz < 8.0
        assert np.abs(wave).max() == pytest.approx(0.7, abs=1e-6)


def test_variants_differ_by_more_than_pitch_and_rate(speaker: EspeakSpeaker) -> None:
    """espeak-ng ignores a variant it does not know in silence: each one used must change the sound."""
    same = {"pitch": 50, "rate_wpm": 175}
    waves = {v.variant: speaker.speak("red", Voice("x", "en-us", v.variant, **same)) for v in VOICES}
    assert len(waves) >= 12
    assert len({_digest(wave) for wave in waves.values()}) == len(waves)
    assert _digest(speaker.speak("red", Voice("x", "en-us", "nobody", **same))) == _digest(waves[""])


def test_speech_repeats_itself_after_other_speech(speaker: EspeakSpeaker) -> None:
    first = [_digest(speaker.speak(SENTENCE, voice)) for voice in VOICES[:10]]
    again = [_digest(speaker.speak(SENTENCE, voice)) for voice in reversed(VOICES[:10])]
    assert first == again[::-1]


def test_speech_repeats_itself_in_another_process(speaker: EspeakSpeaker) -> None:
    code = (
        "import hashlib; from speech2image.speech.synthesis import *\n"
        f"print(hashlib.sha256(EspeakSpeaker().speak({SENTENCE!r}, VOICES[-1]).tobytes()).hexdigest())"
    )
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert printed.strip() == _digest(speaker.speak(SENTENCE, VOICES[-1]))


def test_threads_take_turns(speaker: EspeakSpeaker) -> None:
    alone = [_digest(speaker.speak(SENTENCE, voice)) for voice in VOICES[:8]]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda voice: _digest(speaker.speak(SENTENCE, voice)), VOICES[:8]))
    assert together == alone


def test_silence_at_both_ends_is_50_ms(speaker: EspeakSpeaker) -> None:
    wave = speaker.speak("seven", VOICES[0])
    heard = np.flatnonzero(np.abs(wave) >= 0.01 * 0.7)
    edge = round(0.05 * speaker.sample_rate_hz)
    assert heard[0] == edge
    assert len(wave) - 1 - heard[-1] == edge


def test_trim_pads_where_there_is_no_silence() -> None:
    wave = trim_and_level(np.array([0.5, -0.25], dtype=np.float32), 100)
    np.testing.assert_allclose(wave, [0] * 5 + [0.7, -0.35] + [0] * 5)


def test_trim_refuses_silence() -> None:
    with pytest.raises(DataError, match="no sound"):
        trim_and_level(np.zeros(10, np.float32), 100)


@pytest.mark.parametrize("text", ["", "  \n", " ... !", "\x00"])
def test_text_without_words_is_an_error(speaker: EspeakSpeaker, text: str) -> None:
    with pytest.raises(DataError, match="nothing to speak"):
        speaker.speak(text, VOICES[0])


def test_accented_letters_and_line_breaks_are_spoken(speaker: EspeakSpeaker) -> None:
    assert len(speaker.speak("Blåmeisen sitter\nher", VOICES[0])) > 0.5 * speaker.sample_rate_hz
    assert _digest(speaker.speak("a  red\n bird ", VOICES[0])) == _digest(
        speaker.speak("a red bird", VOICES[0])
    )


def test_unknown_voice_is_named(speaker: EspeakSpeaker) -> None:
    with pytest.raises(DataError, match="xx-nobody") as caught:
        speaker.speak("red", Voice("nobody", "xx-nobody"))
    assert "en-gb-scotland" in caught.value.remedy
    assert len(speaker.speak("red", VOICES[0])) > 0


def test_engine_is_recorded_with_its_version(speaker: EspeakSpeaker) -> None:
    described = speaker.describe(VOICES[9])
    assert described.startswith("espeak-ng 1.")
    assert VOICES[9].language in described and str(VOICES[9].rate_wpm) in described


def test_voice_choice_is_stable_and_even() -> None:
    chosen = [voice_for(f"bird_{number}").name for number in range(5000)]
    counts = {name: chosen.count(name) for name in set(chosen)}
    assert len(counts) == len(VOICES)
    assert min(counts.values()) > 0.6 * 5000 / len(VOICES)
    assert voice_for("001.A/A_0001_0").name == voice_for("001.A/A_0001_0").name


def test_long_installation_path_is_bridged(
    speaker: EspeakSpeaker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """espeak-ng cuts paths at 160 bytes; a deep virtual environment must not silence it."""
    import espeakng_loader

    deep = tmp_path / ("d" * 100) / ("e" * 100)
    deep.mkdir(parents=True)
    data = shutil.copytree(espeakng_loader.get_data_path(), deep / "espeak-ng-data")
    monkeypatch.setattr(espeakng_loader, "get_data_path", lambda: str(data))
    espeak.find_espeak.cache_clear()
    try:
        wave = EspeakSpeaker().speak(SENTENCE, VOICES[0])
    finally:
        espeak.find_espeak.cache_clear()
    assert _digest(wave) == _digest(speaker.speak(SENTENCE, VOICES[0]))


@pytest.mark.parametrize("broken", ["library", "data"])
def test_missing_library_is_one_error_with_a_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    import espeakng_loader

    name = "get_library_path" if broken == "library" else "get_data_path"
    monkeypatch.setattr(espeakng_loader, name, lambda: str(tmp_path / "gone"))
    espeak.find_espeak.cache_clear()
    try:
        with pytest.raises(Speech2ImageError, match="gone") as caught:
            EspeakSpeaker()
    finally:
        espeak.find_espeak.cache_clear()
    assert "pip install" in caught.value.remedy


def test_speech_repeats_itself_after_a_failed_opening(speaker: EspeakSpeaker, tmp_path: Path) -> None:
    before = [_digest(speaker.speak(SENTENCE, VOICES[0])) for _ in range(2)]
    library_path, _ = espeak.find_espeak()
    with pytest.raises(Speech2ImageError, match="gone"), espeak.Espeak(library_path, str(tmp_path / "gone")):
        pass
    assert [_digest(speaker.speak(SENTENCE, VOICES[0])) for _ in range(2)] == before


def test_unknown_engine_suggests_the_nearest() -> None:
    with pytest.raises(ConfigError, match="espaek") as caught:
        make_speaker("espaek")
    assert "'espeak'" in caught.value.remedy


def test_make_speaker_makes_espeak() -> None:
    assert isinstance(make_speaker("espeak"), EspeakSpeaker)


def test_missing_tacotron2_weights_name_file_source_and_place(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="tacotron2_english_characters") as caught:
        make_speaker("tacotron2", tmp_path)
    assert "wavernn" in caught.value.message
    assert "https://download.pytorch.org/torchaudio/models/tacotron2" in caught.value.remedy
    assert str(tmp_path) in caught.value.remedy


def test_wrong_tacotron2_weights_are_named(tmp_path: Path) -> None:
    for name in (synthesis._TACOTRON2_FILE, synthesis._WAVERNN_FILE):
        (tmp_path / name).write_bytes(b"not weights")
    with pytest.raises(CheckpointError, match=r"not the weights of Tacotron2"):
        Tacotron2Speaker(tmp_path)


@pytest.mark.slow
def test_tacotron2_speaks_from_local_files_and_repeats_itself(tmp_path: Path) -> None:
    """Untrained weights of the official shapes go through the whole path: files, tokens, mel, vocoder."""
    import torch
    import torchaudio
    from torchaudio.models import Tacotron2, WaveRNN

    bundle = torchaudio.pipelines.TACOTRON2_WAVERNN_CHAR_LJSPEECH
    torch.manual_seed(0)
    tacotron2 = Tacotron2(**bundle._tacotron2_params)
    torch.nn.init.constant_(tacotron2.decoder.gate_layer.bias, 10.0)  # stop at once: one mel frame
    torch.save(tacotron2.state_dict(), tmp_path / synthesis._TACOTRON2_FILE)
    torch.save(WaveRNN(**bundle._wavernn_params).state_dict(), tmp_path / synthesis._WAVERNN_FILE)
    speaker = Tacotron2Speaker(tmp_path)
    voice = speaker.voice_for("any key")
    wave = speaker.speak("red", voice)
    assert wave.dtype == np.float32 and np.abs(wave).max() == pytest.approx(0.7, abs=1e-6)
    assert _digest(speaker.speak("red", voice)) == _digest(wave)
    assert speaker.sample_rate_hz == 22050 and "tacotron2" in speaker.describe(voice)
