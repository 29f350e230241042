"""Embedding files of our own and in the released layouts."""

from __future__ import annotations

import pickle
import runpy
from pathlib import Path

import numpy as np
import pytest

from speech2image.audio.features import make_front_end
from speech2image.data.corpus import Corpus
from speech2image.data.cub import scan_cub
from speech2image.data.embeddings import (
    read_embeddings,
    read_published_embeddings,
    read_teacher_features,
    write_embeddings,
)
from speech2image.data.prepare import prepare_corpus
from speech2image.errors import DataError

make_cub = runpy.run_path(str(Path(__file__).parents[2] / "tiny_corpora.py"))["make_cub"]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    folder = tmp_path_factory.mktemp("embeddings")
    manifest = scan_cub(make_cub(folder / "cub", train=2, test=1, images=2))
    return prepare_corpus(manifest, folder / "cache", make_front_end("s2igan"), image_px=32)


def test_arrays_keys_and_facts_come_back(tmp_path: Path) -> None:
    arrays = {
        "sentence": np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32),
        "length": np.arange(3),
    }
    write_embeddings(tmp_path / "deep" / "a.safetensors", ["x", "ü", "z"], arrays, {"run": "r", "step": 3})
    found = read_embeddings(tmp_path / "deep" / "a.safetensors")
    assert found.keys == ["x", "ü", "z"]
    assert found.meta == {"run": "r", "step": 3}
    for name, array in arrays.items():
        assert np.array_equal(found.arrays[name], array)
        assert found.arrays[name].dtype == array.dtype


def test_rows_without_keys_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="2 keys"):
        write_embeddings(tmp_path / "a.safetensors", ["x", "y"], {"sentence": np.zeros((3, 4))}, {})


def test_damaged_files_are_one_message(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    with pytest.raises(DataError, match="no readable embeddings"):
        read_embeddings(path)
    write_embeddings(path, ["x"], {"sentence": np.zeros((1, 400))}, {})
    content = path.read_bytes()
    for damaged in (content[:-7], content[:50], b"", b"nonsense" * 10):
        path.write_bytes(damaged)
        with pytest.raises(DataError, match="embed run="):
            read_embeddings(path)


@pytest.mark.parametrize("form", ["list of arrays", "one array"])
def test_published_embeddings_belong_to_their_utterances(corpus: Corpus, tmp_path: Path, form: str) -> None:
    published = np.random.default_rng(1).normal(size=(4, 10, 6)).astype(np.float32)
    value = list(published) if form == "list of arrays" else published
    (tmp_path / "speech_embeddings_train.pickle").write_bytes(pickle.dumps(value, protocol=2))
    found = read_published_embeddings(tmp_path / "speech_embeddings_train.pickle", corpus, "train")
    utterances = corpus.utterances("train")
    assert found.keys == [utterance.key for _, utterance in utterances]
    for row, (image, utterance) in enumerate(utterances):
        assert np.array_equal(found.arrays["sentence"][row], published[image, utterance.caption_index])


def test_published_embeddings_of_another_corpus_are_refused(corpus: Corpus, tmp_path: Path) -> None:
    (tmp_path / "a.pickle").write_bytes(pickle.dumps(np.zeros((7, 10, 6), np.float32), protocol=2))
    with pytest.raises(DataError, match="7 images, but the train split of the corpus has 4"):
        read_published_embeddings(tmp_path / "a.pickle", corpus, "train")


def test_teacher_features_are_read(tmp_path: Path) -> None:
    features = np.random.default_rng(2).random((3, 10, 16)).astype(np.float32)
    (tmp_path / "a.pickle").write_bytes(pickle.dumps(list(features), protocol=2))
    assert np.array_equal(read_teacher_features(tmp_path / "a.pickle"), features)


@pytest.mark.parametrize(
    "value", [[], [np.zeros((10, 4)), np.zeros((9, 4))], ["text"], [np.full((2, 3), np.nan)], 5]
)
def test_other_content_is_no_teacher(tmp_path: Path, value: object) -> None:
    (tmp_path / "a.pickle").write_bytes(pickle.dumps(value, protocol=2))
    with pytest.raises(DataError, match=r"a\.pickle"):
        read_teacher_features(tmp_path / "a.pickle")
