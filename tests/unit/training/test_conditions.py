"""Embeddings of a corpus: computed once, words only where they are read, stale ones made again."""

from __future__ import annotations

import dataclasses
import json
import runpy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from speech2image.audio.features import make_front_end
from speech2image.data.corpus import Corpus
from speech2image.data.cub import scan_cub
from speech2image.data.prepare import prepare_corpus
from speech2image.errors import CheckpointError, ConfigError, DataError
from speech2image.speech.conv_gru import ConvGru
from speech2image.training import conditions
from speech2image.training.conditions import (
    FromRun,
    ResolvedCondition,
    caption_embeddings,
    condition_embeddings,
    encoded_batches,
    kept_embeddings,
    text_fingerprint,
    what_is_read,
)
from speech2image.types import Condition, SpeechBatch

TINY = runpy.run_path(str(Path(__file__).parents[2] / "tiny_corpora.py"))


@pytest.fixture
def spoken(tmp_path: Path) -> Corpus:
    root = TINY["make_cub"](tmp_path / "cub")
    return prepare_corpus(
        scan_cub(root), tmp_path / "cache", make_front_end("s2igan"), image_px=32, max_captions=2
    )


@pytest.fixture
def written(tmp_path: Path) -> Corpus:
    root = TINY["make_cub"](tmp_path / "cub")
    return prepare_corpus(
        scan_cub(root), tmp_path / "captions", None, image_px=32, max_captions=3, speak="espeak"
    )


@pytest.fixture
def node(tiny_clip: tuple[str, ...]) -> dict[str, Any]:
    pairs = dict(word.removeprefix("encoder.").split("=") for word in tiny_clip)
    sizes = {key: int(pairs[key]) for key in ("vocab_size", "width", "layers", "embed_dim")}
    paths = {key: pairs[key] for key in ("weights_path", "vocabulary_path")}
    target = "speech2image.text.clip_text.ClipTextEncoder"
    return {"_target_": target, **paths, **sizes, "vocabulary_sha256": None, "read_padding": False}


def encoder_of() -> ConvGru:
    torch.manual_seed(0)
    return ConvGru(hidden_channels=8, out_channels=8, rnn_dim=6, rnn_layers=1, attention_dim=4).eval()


def test_a_corpus_of_captions_speaks_nothing(written: Corpus, tmp_path: Path) -> None:
    assert len(written.utterances("train")) == 3 * 9
    assert all(utterance.wave is None for _, utterance in written.utterances("train"))
    assert not len(written.mel) and not (written.folder / "speech").exists()
    assert not written.is_spoken
    manifest = scan_cub(tmp_path / "cub")
    again = prepare_corpus(manifest, written.folder, None, image_px=32, max_captions=3, speak="espeak")
    assert again.was_ready and again.utterances("train") == written.utterances("train")


def test_words_are_those_of_each_utterance_alone(spoken: Corpus, tmp_path: Path) -> None:
    front_end, encoder = make_front_end("s2igan"), encoder_of()

    def encode() -> Iterator[tuple[list[str], Condition]]:
        return encoded_batches(encoder, spoken, "train", front_end)

    found = kept_embeddings(tmp_path / "kept", spoken, "train", "sen", encode, wants_words=True)
    assert found.words is not None and found.words.dtype == np.float16
    for row, (_, utterance) in enumerate(spoken.utterances("train")):
        features = torch.from_numpy(spoken.mel[spoken.mel.index(str(utterance.wave))].copy())[None]
        with torch.no_grad():
            alone = encoder(SpeechBatch(features, torch.tensor([features.shape[1]])))
        words = torch.from_numpy(found.words[found.words.index(utterance.key)].astype(np.float32))
        torch.testing.assert_close(words, alone.words[0].T, atol=2e-3, rtol=2e-3)
        sentence = torch.from_numpy(found.arrays["sentence"][row])
        torch.testing.assert_close(sentence, alone.sentence[0], atol=1e-5, rtol=1e-4)


def test_sentences_alone_cost_no_words_and_nothing_is_computed_twice(
    written: Corpus, node: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = caption_embeddings(node, written, "test")
    folder = written.folder / "embeddings" / text_fingerprint(node)
    assert plain.words is None and [path.name for path in folder.iterdir()] == ["test.safetensors"]
    full = caption_embeddings(node, written, "test", wants_words=True)
    assert full.words is not None and full.words.keys == list(full.keys)
    np.testing.assert_array_equal(full.arrays["sentence"], plain.arrays["sentence"])
    monkeypatch.setattr(conditions, "encoded_batches", lambda *_: pytest.fail("encoded again"))
    assert caption_embeddings(node, written, "test", wants_words=True).words.sha256 == full.words.sha256  # type: ignore[union-attr]
    assert caption_embeddings(node, written, "test").words is None
    other = {**node, "read_padding": True}
    assert text_fingerprint(other) != text_fingerprint(node)
    moved = {**node, "vocabulary_path": "elsewhere"}
    assert text_fingerprint(moved) == text_fingerprint(node), "where files lie does not matter"


def test_killed_words_go_on_and_end_alike(spoken: Corpus, tmp_path: Path) -> None:
    front_end, encoder = make_front_end("s2igan"), encoder_of()

    def encode(until: int = 10**6) -> Iterator[tuple[list[str], Condition]]:
        for keys, whole in encoded_batches(encoder, spoken, "train", front_end):
            for row, key in enumerate(keys):
                if row == until:
                    raise KeyboardInterrupt
                assert whole.words is not None and whole.mask is not None
                yield [key], Condition(whole.sentence[row : row + 1], whole.words[row : row + 1], whole.mask[row : row + 1])  # fmt: skip

    whole = kept_embeddings(tmp_path / "a", spoken, "train", "sen", encode, wants_words=True)
    with pytest.raises(KeyboardInterrupt):
        kept_embeddings(tmp_path / "b", spoken, "train", "sen", lambda: encode(7), wants_words=True)
    assert not (tmp_path / "b" / "train.safetensors").exists()
    second = kept_embeddings(tmp_path / "b", spoken, "train", "sen", encode, wants_words=True)
    assert whole.words is not None and second.words is not None and second.words.sha256 == whole.words.sha256
    other = dataclasses.replace(second)
    np.testing.assert_array_equal(other.arrays["sentence"], whole.arrays["sentence"])


def test_what_cannot_be_told_is_said(written: Corpus, node: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"encoder\.weights_path"):
        caption_embeddings({**node, "weights_path": None}, written, "test")
    with pytest.raises(CheckpointError, match="no weight file at"):
        caption_embeddings({**node, "weights_path": str(tmp_path / "clip.safetensors")}, written, "test")
    with pytest.raises(ConfigError, match="none chosen"):
        condition_embeddings(ResolvedCondition(None, None, "captions"), written, "test")

    def sentence_only() -> Iterator[tuple[list[str], Condition]]:
        keys = [utterance.key for _, utterance in written.utterances("test")]
        yield keys, Condition(torch.zeros(len(keys), 3))

    with pytest.raises(DataError, match="gives a sentence only"):
        kept_embeddings(tmp_path, written, "test", "x", sentence_only, wants_words=True)


def test_auto_never_takes_a_text_encoder_for_speech(tmp_path: Path) -> None:
    for number, (name, target) in enumerate(
        [
            ("speech", "speech2image.speech.conv_gru.ConvGru"),
            ("text", "speech2image.text.clip_text.ClipTextEncoder"),
        ]
    ):
        (tmp_path / name).mkdir()
        info = {"stage": "encoder", "corpus": "cub200", "status": "imported", "created": str(number)}
        (tmp_path / name / "run.json").write_text(json.dumps(info))
        (tmp_path / name / "config.yaml").write_text(f"encoder: {{_target_: {target}}}\n")
    assert FromRun().resolve(tmp_path, "cub200").path.name == "speech"


@pytest.mark.parametrize(
    ("generator", "read"),
    [
        ({"conditioning": "adaptive", "use_words": False}, (True, False, False)),
        ({"conditioning": "adaptive", "use_words": True}, (True, True, False)),
        ({"conditioning": "modulation", "use_words": True}, (True, False, False)),
        ({"conditioning": "cross"}, (False, True, False)),
        ({"conditioning": "class"}, (False, False, True)),
        ({"conditioning": "none"}, (False, False, False)),
        ({"gf_dim": 16}, (True, False, False)),
    ],
)
def test_each_form_reads_its_part(generator: dict[str, Any], read: tuple[bool, ...]) -> None:
    found = what_is_read(generator)
    assert (found.sentence, found.words, found.class_id) == read
    assert found.needs_encoder == any(read[:2])
