"""Preparing a corpus: what lands in the stores, what is spoken, what a second call does."""

from __future__ import annotations

import dataclasses
import os
import runpy
from pathlib import Path

import numpy as np
import pytest

from speech2image.audio.features import make_front_end
from speech2image.audio.read import read_wave
from speech2image.data.corpus import Corpus
from speech2image.data.cub import scan_cub
from speech2image.data.manifest import Manifest
from speech2image.data.prepare import prepare_corpus
from speech2image.errors import DataError
from speech2image.images.pyramid import crop_box, resize_short
from speech2image.images.read import read_image

make_cub = runpy.run_path(str(Path(__file__).parents[2] / "tiny_corpora.py"))["make_cub"]
FRONT_END = make_front_end("s2igan")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return make_cub(tmp_path / "cub")


def _prepare(root: Path, folder: Path, **options: object) -> Corpus:
    return prepare_corpus(scan_cub(root), folder, FRONT_END, image_px=32, **options)  # type: ignore[arg-type]


def test_stores_hold_features_and_crops(root: Path, tmp_path: Path) -> None:
    corpus = _prepare(root, tmp_path / "cache")
    assert not corpus.was_ready
    assert corpus.image_px == 32
    records, utterances = corpus.records("train"), corpus.utterances("train")
    assert (len(records), len(utterances)) == (9, 18)
    for row, utterance in utterances[:4]:
        wave = read_wave(corpus.wave_path(utterance), FRONT_END.sample_rate_hz)
        assert np.array_equal(corpus.mel[corpus.mel.index(utterance.wave)], FRONT_END(wave))
        image = read_image(corpus.manifest.image_path(records[row]))
        expected = resize_short(crop_box(image, records[row].box), 38)
        assert np.array_equal(corpus.images[corpus.images.index(records[row].key)], expected)
        assert min(expected.shape[:2]) == 38
    corpus.mel.verify()
    corpus.images.verify()


def test_rows_and_classes_agree_with_the_records(root: Path, tmp_path: Path) -> None:
    corpus = _prepare(root, tmp_path / "cache")
    for split in ("train", "val", "test"):
        records, utterances = corpus.records(split), corpus.utterances(split)
        assert [corpus.images.keys[row] for row in corpus.image_rows(split)] == [
            record.key for record in records
        ]
        assert [corpus.mel.keys[row] for row in corpus.mel_rows(split)] == [one.wave for _, one in utterances]
        assert corpus.class_ids(split).tolist() == [record.class_id for record in records]
    assert corpus.class_names == [f"Bird_{number}" for number in range(1, 6)]


def test_second_call_reads_no_item_and_writes_nothing(root: Path, tmp_path: Path) -> None:
    _prepare(root, tmp_path / "cache", speak="espeak", max_captions=3)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").rglob("*")}
    for path in (root / "CUB_200_2011").rglob("*.jpg"):
        path.chmod(0o644)  # touches the inode, not size or time of the content
    again = _prepare(root, tmp_path / "cache", speak="espeak", max_captions=3)
    assert again.was_ready
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").rglob("*")} == before


@pytest.mark.parametrize("what", ["wave", "caption", "image", "front end", "size", "captions used"])
def test_change_of_anything_that_matters_prepares_again(root: Path, tmp_path: Path, what: str) -> None:
    _prepare(root, tmp_path / "cache")
    base, options, front_end = root / "CUB_200_2011", {"image_px": 32}, FRONT_END
    if what == "wave":
        os.utime(base / "audio" / "001.Bird_1" / "Bird_1_0000_0.wav", (1, 1))
    elif what == "image":
        os.utime(base / "images" / "001.Bird_1" / "Bird_1_0000.jpg", (1, 1))
    elif what == "caption":
        (base / "text" / "001.Bird_1" / "Bird_1_0000.txt").write_text("another\ncaption\n")
    elif what == "front end":
        front_end = make_front_end("li_et_al")
    elif what == "size":
        options = {"image_px": 40}
    else:
        options = {"image_px": 32, "max_captions": 1}
    assert not prepare_corpus(scan_cub(root), tmp_path / "cache", front_end, **options).was_ready
    assert prepare_corpus(scan_cub(root), tmp_path / "cache", front_end, **options).was_ready


def test_captions_without_recording_are_spoken_outside_the_corpus(root: Path, tmp_path: Path) -> None:
    before = sorted(root.rglob("*"))
    corpus = _prepare(root, tmp_path / "cache", speak="espeak", max_captions=3)
    assert sorted(root.rglob("*")) == before
    spoken = [one for _, one in corpus.utterances("train") if one.engine]
    assert len(spoken) == 9
    for utterance in spoken:
        assert utterance.caption_index == 2
        assert utterance.speaker
        assert "espeak-ng" in str(utterance.engine)
        path = corpus.wave_path(utterance)
        assert path.is_relative_to(tmp_path / "cache" / "speech")
        assert len(read_wave(path, 16_000)) > 8_000
    assert len({one.speaker for one in spoken}) > 3


def test_other_words_are_spoken_anew(root: Path, tmp_path: Path) -> None:
    first = _prepare(root, tmp_path / "cache", speak="espeak", max_captions=3)
    text = root / "CUB_200_2011" / "text" / "001.Bird_1" / "Bird_1_0000.txt"
    text.write_text("one\ntwo\na completely different and much longer sentence about a bird\n")
    second = _prepare(root, tmp_path / "cache", speak="espeak", max_captions=3)
    assert len(second.mel[second.mel_rows("train")[2]]) > 1.5 * len(first.mel[first.mel_rows("train")[2]])


def test_max_captions_prefers_recordings_and_then_the_first_captions(tmp_path: Path) -> None:
    root = make_cub(tmp_path / "cub", train=1, test=1, images=1, captions=4, spoken=2)
    (root / "CUB_200_2011" / "audio" / "001.Bird_1" / "Bird_1_0000_0.wav").unlink()
    indices = {}
    for count in (1, 2, 3, 4):
        corpus = _prepare(root, tmp_path / f"cache{count}", speak="espeak", max_captions=count)
        indices[count] = [one.caption_index for _, one in corpus.utterances("train")]
    assert indices == {1: [1], 2: [0, 1], 3: [0, 1, 2], 4: [0, 1, 2, 3]}
    silent = _prepare(root, tmp_path / "silent", max_captions=4)
    assert [one.caption_index for _, one in silent.utterances("train")] == [1]


def test_utterances_that_share_a_recording_share_its_features(root: Path, tmp_path: Path) -> None:
    manifest = scan_cub(root)
    shared = manifest.records[0].utterances[0].wave
    records = tuple(
        dataclasses.replace(
            one, utterances=tuple(dataclasses.replace(u, wave=shared) for u in one.utterances)
        )
        for one in manifest.records
    )
    same = Manifest("cub200", manifest.root, records)
    corpus = prepare_corpus(same, tmp_path / "cache", FRONT_END, image_px=32)
    assert len(corpus.mel) == 1
    assert len(corpus.utterances("train")) == 27


def test_number_of_threads_changes_no_byte(root: Path, tmp_path: Path) -> None:
    for threads in (1, 3):
        _prepare(root, tmp_path / f"cache{threads}", threads=threads)
    for name in ("mel/data.bin", "images/data.bin", "mel/keys.txt", "manifest.jsonl"):
        assert (tmp_path / "cache1" / name).read_bytes() == (tmp_path / "cache3" / name).read_bytes()


def test_folder_that_is_no_prepared_corpus_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no prepared corpus"):
        Corpus(tmp_path)
