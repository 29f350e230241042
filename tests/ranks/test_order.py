"""The same samples, crops, captions and padding in the same order for any number of ranks and loader processes."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from speech2image.audio.augment import spec_augment
from speech2image.audio.features import make_front_end
from speech2image.codecs.codec import Codec
from speech2image.codecs.vqgan import VqGan
from speech2image.data.batches import ClassBatches, EncoderBatches, GanBatches
from speech2image.data.corpus import Corpus
from speech2image.data.cub import scan_cub
from speech2image.data.embeddings import Embeddings
from speech2image.data.order import Share, addressed_rng
from speech2image.data.prepare import prepare_corpus
from speech2image.errors import ConfigError
from speech2image.speech.towers import random_windows
from speech2image.training.codes import CodeBatches, encode_corpus
from speech2image.training.datamodule import SpeechImageData
from speech2image.training.teachers import WithTeacher
from speech2image.types import SpeechBatch

make_cub = runpy.run_path(str(Path(__file__).parents[1] / "tiny_corpora.py"))["make_cub"]
BATCH, STEPS = 4, range(2, 6)
KINDS = ("encoder", "encoder_pooled", "encoder_pairs", "teacher", "classes", "gan", "codes")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    folder = tmp_path_factory.mktemp("order")
    manifest = scan_cub(make_cub(folder / "cub", train=4, test=2, images=3))
    return prepare_corpus(manifest, folder / "cache", make_front_end("s2igan"), image_px=32)


@pytest.fixture(scope="module")
def kinds(corpus: Corpus) -> Any:
    """A function from the name of a kind of batch and a share to its dataset."""
    keys = [utterance.key for _, utterance in corpus.utterances("train")]
    rows = np.random.default_rng(0).normal(size=(len(keys), 5)).astype(np.float32)
    told = Embeddings(tuple(keys), {"sentence": rows}, {})
    torch.manual_seed(0)
    codec = Codec(VqGan(32, 8, [1], 1, [], 8, 4, 16, "vector", patch_px=8, norm_groups=4))
    store = encode_corpus(corpus, codec, "train", 3)
    teacher = np.random.default_rng(1).normal(size=(len(corpus.records("train")), 6, 3)).astype(np.float32)

    def make(kind: str, share: Share) -> Any:
        if kind.startswith(("encoder", "teacher")):
            pool, pairs = 2 if kind == "encoder_pooled" else 1, kind == "encoder_pairs"
            batches = EncoderBatches(
                corpus, "train", BATCH, 7, 24, 0.0, None, pool_batches=pool, pairs=pairs, share=share
            )
            return WithTeacher(batches, teacher, 7) if kind == "teacher" else batches
        if kind == "classes":
            return ClassBatches(corpus, "train", BATCH, 7, 24, share)
        if kind == "gan":
            return GanBatches(corpus, "train", told, BATCH, 7, 24, share=share)
        return CodeBatches(corpus, "train", store, codec.fingerprint(), told, BATCH, 7, share)

    return make


def _flat(batch: dict[str, Any]) -> dict[str, Tensor]:
    found = {name: value for name, value in batch.items() if isinstance(value, Tensor)}
    if "speech" in batch:
        found |= {"features": batch["speech"].features, "lengths": batch["speech"].lengths}
    return found


def _served(dataset: Any, workers: int) -> list[dict[str, Tensor]]:
    data = SpeechImageData(dataset, None, STEPS.start, STEPS.stop, (), workers)
    return [
        {name: value.clone() for name, value in _flat(batch).items()} for batch in data.train_dataloader()
    ]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("of", [2, 4])
def test_shares_of_all_ranks_are_the_batch_of_one(of: int, kind: str, kinds: Any) -> None:
    whole = kinds(kind, Share())
    parts = [kinds(kind, Share(rank, of)) for rank in range(of)]
    for step in STEPS:
        expected = _flat(whole[step])
        found = [_flat(part[step]) for part in parts]
        assert len(expected["class_id"]) == BATCH
        for name, value in expected.items():
            assert torch.equal(torch.cat([part[name] for part in found]), value), (name, step)


@pytest.mark.parametrize("kind", KINDS)
def test_loader_processes_change_nothing_for_a_rank(kind: str, kinds: Any) -> None:
    expected = _served(kinds(kind, Share(1, 2)), 0)
    assert len(expected) == len(STEPS)
    for workers in (1, 4):
        for one, other in zip(expected, _served(kinds(kind, Share(1, 2)), workers), strict=True):
            assert one.keys() == other.keys()
            assert all(torch.equal(value, other[name]) for name, value in one.items())


def test_a_rank_reads_only_its_own_images(kinds: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset, cut = kinds("gan", Share(1, 4)), []
    original = dataset.crops._cut
    monkeypatch.setattr(
        dataset.crops, "_cut", lambda images, *rest: cut.append(len(images)) or original(images, *rest)
    )
    dataset[0]
    assert cut == [BATCH // 4] * 2


@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_that_cannot_be_shared_says_what_to_type(kind: str, kinds: Any) -> None:
    with pytest.raises(ConfigError, match="a batch of 4 cannot be shared equally by 3 ranks") as caught:
        kinds(kind, Share(0, 3))
    assert caught.value.remedy == "Type: trainer.batch_size=6 (or 3)"


@settings(deadline=None)
@given(st.integers(1, 8), st.integers(1, 6))
def test_rows_of_all_ranks_are_the_batch(of: int, size: int) -> None:
    rows = [place for rank in range(of) for place in range(of * size)[Share(rank, of).rows(of * size)]]
    assert rows == list(range(of * size))


def test_augmentation_of_shares_is_that_of_the_batch() -> None:
    features = torch.rand(6, 300, 20)
    lengths = torch.tensor([300, 100, 250, 80, 299, 150])

    def blanked(rows: slice, share: Share) -> Tensor:
        rng = addressed_rng(3, "masks", 5)
        return spec_augment(features[rows], lengths[rows], rng, 2, 40, 2, 5, fill=-1.0, share=share)

    def cut(rows: slice, share: Share) -> Tensor:
        speech = SpeechBatch(features[rows], lengths[rows])
        return random_windows(speech, addressed_rng(3, "window", 5), 64, share).features

    for augment in (blanked, cut):
        whole = augment(slice(None), Share())
        parts = [augment(Share(rank, 3).rows(6), Share(rank, 3)) for rank in range(3)]
        assert not torch.equal(whole[:, :64], features[:, :64])
        assert torch.equal(torch.cat(parts), whole)
