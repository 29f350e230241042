"""Spoken digits: pairing, division, determinism, with and without recordings; and every refusal."""

from __future__ import annotations

import collections
import hashlib
import itertools
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile
from PIL import Image
from sklearn.datasets import load_digits

from speech2image.audio.read import read_wave
from speech2image.data import digits
from speech2image.data.digits import DIGIT_WORDS, IMAGE_PX, make_spoken_digits, scan_spoken_digits
from speech2image.data.manifest import Manifest
from speech2image.errors import DataError

SPEAKERS = ("anna", "ben", "carla")
NUM_TAKES = 6


@pytest.fixture(scope="module")
def recordings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Recordings in the official layout: 8 kHz tones, one pitch a digit."""
    folder = tmp_path_factory.mktemp("fsdd") / "recordings"
    folder.mkdir()
    time_s = np.arange(1600) / 8000
    for digit, speaker, take in itertools.product(range(10), SPEAKERS, range(NUM_TAKES)):
        wave = 0.3 * np.sin(2 * np.pi * (200 + 50 * digit + take) * time_s)
        soundfile.write(folder / f"{digit}_{speaker}_{take}.wav", wave, 8000, subtype="PCM_16")
    (folder / "README.md").write_text("not a recording")
    return folder


@pytest.fixture(scope="module")
def recorded(recordings: Path, tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    root = tmp_path_factory.mktemp("recorded") / "digits"
    make_spoken_digits(root, recordings, seed=1)
    return scan_spoken_digits(root)


@pytest.fixture(scope="module")
def spoken(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    root = tmp_path_factory.mktemp("spoken") / "digits"
    make_spoken_digits(root, None, seed=1)
    return scan_spoken_digits(root)


def _digests(root: Path) -> dict[str, str]:
    files = sorted(path for path in root.rglob("*") if path.is_file() and path.name != "manifest.jsonl")
    return {str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_all_images_are_there_with_their_digit(recorded: Manifest) -> None:
    truth = load_digits()
    assert recorded.corpus == "spoken_digits" and len(recorded.records) == 1797
    for number, record in enumerate(recorded.records):
        digit = int(truth.target[number])
        assert record.key == f"{digit}/{number:04d}" and record.class_id == digit
        assert record.class_name == DIGIT_WORDS[digit] and record.attributes == {"digit": str(digit)}
        assert record.box is None
    assert {path.name for path in (recorded.root / "images").iterdir()} == {str(digit) for digit in range(10)}


def test_digits_are_never_mirrored(recorded: Manifest) -> None:
    """What training reads, see `CropTable`: a mirrored 2 is no 2."""
    assert recorded.meta["mirror"] is False


def test_images_are_the_strokes_enlarged(recorded: Manifest) -> None:
    truth = load_digits()
    for number in range(0, 1797, 50):
        with Image.open(recorded.image_path(recorded.records[number])) as image:
            assert image.format == "PNG" and image.mode == "RGB" and image.size == (IMAGE_PX, IMAGE_PX)
            pixels = np.asarray(image, dtype=float)
        assert (pixels[..., 0] == pixels[..., 1]).all() and (pixels[..., 0] == pixels[..., 2]).all()
        blocks = pixels[..., 0].reshape(8, 4, 8, 4).mean(axis=(1, 3))
        assert np.abs(blocks - truth.images[number] * 255 / 16).mean() < 16


def test_division_is_interleaved_and_about_80_to_20(recorded: Manifest) -> None:
    for digit in range(10):
        splits = [record.split for record in recorded.records if record.class_id == digit]
        assert splits == ["test" if place % 5 == 4 else "train" for place in range(len(splits))]
    counts = collections.Counter(record.split for record in recorded.records)
    assert counts["train"] > 1400 and 0.18 < counts["test"] / 1797 < 0.21


def test_training_images_have_four_different_training_recordings(recorded: Manifest) -> None:
    for record in recorded.split("train"):
        waves = [utterance.wave for utterance in record.utterances]
        assert len(waves) == 4 and len(set(waves)) == 4
        for utterance in record.utterances:
            digit, speaker, take = Path(str(utterance.wave)).stem.split("_")
            assert digit == record.attributes["digit"] == utterance.attributes["digit"]
            assert speaker == utterance.speaker and int(take) >= 2
            assert utterance.caption == DIGIT_WORDS[record.class_id] and utterance.engine is None


def test_training_recordings_are_used_evenly(recorded: Manifest) -> None:
    uses = collections.Counter(said.wave for record in recorded.split("train") for said in record.utterances)
    assert len(uses) == 10 * len(SPEAKERS) * (NUM_TAKES - 2)
    for digit in range(10):
        counts = [count for wave, count in uses.items() if Path(str(wave)).name.startswith(f"{digit}_")]
        assert max(counts) - min(counts) <= 1


def test_every_test_recording_belongs_to_one_test_image(recorded: Manifest, recordings: Path) -> None:
    used = [said.wave for record in recorded.split("test") for said in record.utterances]
    expected = {
        str(recordings.resolve() / f"{digit}_{speaker}_{take}.wav")
        for digit, speaker, take in itertools.product(range(10), SPEAKERS, (0, 1))
    }
    assert sorted(str(wave) for wave in used) == sorted(expected)
    for record in recorded.split("test"):
        assert all(Path(str(said.wave)).name.startswith(f"{record.class_id}_") for said in record.utterances)


def test_keys_are_unique(recorded: Manifest) -> None:
    keys = [said.key for record in recorded.records for said in record.utterances]
    assert len(set(keys)) == len(keys) == 4 * len(recorded.split("train")) + 60


def test_recordings_stay_where_they_are(recorded: Manifest) -> None:
    assert not list(recorded.root.rglob("*.wav"))
    said = recorded.split("train")[0].utterances[0]
    assert recorded.wave_path(said) == Path(str(said.wave)) and Path(str(said.wave)).is_absolute()


def test_more_test_recordings_than_test_images_are_shared_out(recordings: Path, tmp_path: Path) -> None:
    folder = tmp_path / "many"
    shutil.copytree(recordings, folder)
    for number in range(40):
        for take in (0, 1):
            shutil.copy(recordings / "7_anna_0.wav", folder / f"7_speaker{number}_{take}.wav")
    make_spoken_digits(tmp_path / "digits", folder)
    manifest = scan_spoken_digits(tmp_path / "digits")
    sevens = [record for record in manifest.split("test") if record.class_id == 7]
    waves = [said.wave for record in sevens for said in record.utterances]
    assert len(waves) == len(set(waves)) == 2 * (40 + len(SPEAKERS))
    assert {len(record.utterances) for record in sevens} <= {2, 3}


def test_without_recordings_the_digits_are_spoken(spoken: Manifest) -> None:
    waves = sorted((spoken.root / "recordings").glob("*.wav"))
    assert len(waves) == 10 * 12 * 5
    by_digit = collections.Counter(wave.name[0] for wave in waves)
    assert min(by_digit.values()) >= 12
    assert len({hashlib.sha256(wave.read_bytes()).digest() for wave in waves}) == len(waves)
    for wave in waves[::37]:
        heard = read_wave(wave, 22050)
        assert 0.2 < len(heard) / 22050 < 1.5
    used = {str(said.wave) for record in spoken.records for said in record.utterances}
    assert used == {f"recordings/{wave.name}" for wave in waves}
    said = spoken.split("test")[0].utterances
    assert all(str(utterance.engine).startswith("espeak-ng 1.") for utterance in said)
    takes = {Path(str(said.wave)).stem[-1] for record in spoken.split("test") for said in record.utterances}
    assert takes == {"0", "1"}


def test_same_seed_gives_the_same_bytes(spoken: Manifest, tmp_path: Path) -> None:
    make_spoken_digits(tmp_path / "again", None, seed=1)
    assert _digests(tmp_path / "again") == _digests(spoken.root)
    assert scan_spoken_digits(tmp_path / "again").records == spoken.records


def test_another_seed_pairs_differently_with_the_same_division(
    recorded: Manifest, recordings: Path, tmp_path: Path
) -> None:
    make_spoken_digits(tmp_path / "other", recordings, seed=2)
    other = scan_spoken_digits(tmp_path / "other")
    assert [record.split for record in other.records] == [record.split for record in recorded.records]
    assert [record.utterances for record in other.records] != [
        record.utterances for record in recorded.records
    ]


def test_second_call_touches_nothing(recorded: Manifest, recordings: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in recorded.root.rglob("*")}
    make_spoken_digits(recorded.root, recordings, seed=1)
    assert {path: path.stat().st_mtime_ns for path in recorded.root.rglob("*")} == before


def test_killed_call_is_resumed(
    recordings: Path, recorded: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, written = tmp_path / "digits", 0
    whole = digits.write_whole

    def write_and_die(path: Path, content: bytes, sync: bool = True) -> None:
        nonlocal written
        written += path.suffix == ".png"
        if path.suffix == ".png" and written == 700:
            raise KeyboardInterrupt
        whole(path, content, sync)

    monkeypatch.setattr(digits, "write_whole", write_and_die)
    with pytest.raises(KeyboardInterrupt):
        make_spoken_digits(root, recordings, seed=1)
    with pytest.raises(DataError, match="finished"):
        scan_spoken_digits(root)
    make_spoken_digits(root, recordings, seed=1)
    assert written == 700 + 1797 - 699
    assert scan_spoken_digits(root).records == recorded.records


def test_new_recordings_in_the_folder_are_noticed(recordings: Path, tmp_path: Path) -> None:
    folder = tmp_path / "recordings"
    shutil.copytree(recordings, folder)
    make_spoken_digits(tmp_path / "digits", tmp_path)  # the folder above, as the project is cloned
    before = scan_spoken_digits(tmp_path / "digits")
    shutil.copy(folder / "3_anna_0.wav", folder / "3_dora_0.wav")
    make_spoken_digits(tmp_path / "digits", tmp_path)
    after = scan_spoken_digits(tmp_path / "digits")
    counts = [sum(len(record.utterances) for record in each.split("test")) for each in (before, after)]
    assert counts == [60, 61]


def test_missing_folder_is_one_error_and_makes_nothing(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="found nothing") as caught:
        make_spoken_digits(tmp_path / "digits", tmp_path / "nowhere")
    assert "data.make.recordings" in caught.value.remedy
    assert not (tmp_path / "digits").exists()


def test_file_in_place_of_the_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.wav").write_bytes(b"")
    with pytest.raises(DataError, match="found a file"):
        make_spoken_digits(tmp_path / "digits", tmp_path / "a.wav")


def test_empty_folder_names_every_digit(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"0 recordings, but 0 has 0 training and 0 test"):
        make_spoken_digits(tmp_path / "digits", tmp_path / "empty")


def test_misnamed_recordings_are_counted_and_named(recordings: Path, tmp_path: Path) -> None:
    folder = tmp_path / "recordings"
    shutil.copytree(recordings, folder)
    for name in ("seven.wav", "7-jackson-0.wav", "12_jackson_0.wav", "7_jackson_x.wav"):
        shutil.copy(folder / "7_anna_0.wav", folder / name)
    with pytest.raises(DataError, match=r"4 of 184 wav files are not named .*7-jackson-0\.wav"):
        make_spoken_digits(tmp_path / "digits", folder)


@pytest.mark.parametrize(
    ("takes", "expected"), [(range(6), "0 training and 0 test"), ((0, 1), "12 training and 0 test")]
)
def test_digit_without_recordings_is_named(
    recordings: Path, tmp_path: Path, takes: range, expected: str
) -> None:
    folder = tmp_path / "recordings"
    shutil.copytree(recordings, folder)
    for speaker, take in itertools.product(SPEAKERS, takes):
        (folder / f"4_{speaker}_{take}.wav").unlink()
    with pytest.raises(DataError, match=f"but 4 has {expected} recordings") as caught:
        make_spoken_digits(tmp_path / "digits", folder)
    assert "5 has" not in caught.value.message


def test_one_training_recording_a_digit_is_enough(recordings: Path, tmp_path: Path) -> None:
    folder = tmp_path / "few"
    folder.mkdir()
    for digit in range(10):
        for take in (0, 2):
            shutil.copy(recordings / f"{digit}_anna_{take}.wav", folder)
    make_spoken_digits(tmp_path / "digits", folder)
    manifest = scan_spoken_digits(tmp_path / "digits")
    assert {len(record.utterances) for record in manifest.split("train")} == {1}
    assert sum(len(record.utterances) for record in manifest.split("test")) == 10


def test_folder_with_something_else_is_left_alone(recordings: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("important")
    with pytest.raises(DataError, match="holds something else"):
        make_spoken_digits(tmp_path, recordings)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_folder_of_another_corpus_is_refused(recordings: Path, tmp_path: Path) -> None:
    (tmp_path / "corpus.json").write_text(
        json.dumps({"corpus": "spoken_birds", "format": 1, "arguments": {}})
    )
    for call in (lambda: make_spoken_digits(tmp_path, recordings), lambda: scan_spoken_digits(tmp_path)):
        with pytest.raises(DataError, match="spoken_birds"):
            call()


def test_damaged_stamp_is_one_error(recordings: Path, tmp_path: Path) -> None:
    (tmp_path / "corpus.json").write_text("{")
    with pytest.raises(DataError, match=r"corpus\.json: damaged"):
        make_spoken_digits(tmp_path, recordings)


def test_scan_of_nothing_says_how_to_make_it(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="found none") as caught:
        scan_spoken_digits(tmp_path / "digits")
    assert "speech2image prepare data=spoken_digits" in caught.value.remedy


def test_scan_counts_and_names_lost_recordings(recordings: Path, tmp_path: Path) -> None:
    folder = tmp_path / "recordings"
    shutil.copytree(recordings, folder)
    make_spoken_digits(tmp_path / "digits", folder)
    for name in ("5_ben_0.wav", "5_ben_3.wav"):
        (folder / name).unlink()
    with pytest.raises(DataError, match=r"2 files of spoken_digits are missing, the first is .*5_ben_0\.wav"):
        scan_spoken_digits(tmp_path / "digits")
