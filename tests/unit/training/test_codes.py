"""Code stores: encoded once, refused across codecs, continued after a kill; batches are functions of the step."""

from __future__ import annotations

import json
import runpy
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from speech2image.audio.features import make_front_end
from speech2image.codecs.codec import Codec
from speech2image.codecs.vqgan import VqGan
from speech2image.data.corpus import Corpus
from speech2image.data.cub import scan_cub
from speech2image.data.embeddings import Embeddings
from speech2image.data.prepare import prepare_corpus
from speech2image.data.store import RaggedStore, RaggedWriter
from speech2image.errors import ConfigError, DataError
from speech2image.images.pyramid import pyramid
from speech2image.training import codes
from speech2image.training.codes import CodeBatches, CodecFromRun, check_store, codes_folder, encode_corpus

TINY = runpy.run_path(str(Path(__file__).parents[2] / "tiny_corpora.py"))
VIEWS = 3


def small_codec(seed: int = 0) -> Codec:
    torch.manual_seed(seed)
    network = VqGan(
        image_px=32, channels=8, channel_mult=[1], num_res_blocks=1, attn_px=[], latent_dim=8, code_dim=4,
        num_codes=16, quantizer="ema", patch_px=8, norm_groups=4,
    )  # fmt: skip
    torch.nn.init.normal_(network.quantize.state_dict()["embedding"])
    return Codec(network)


@pytest.fixture
def corpus(tmp_path: Path) -> Corpus:
    root = TINY["make_cub"](tmp_path / "cub")
    return prepare_corpus(
        scan_cub(root, "raise", 0), tmp_path / "cache", make_front_end("s2igan"), image_px=32, speak=None,
        max_captions=2, on_error="raise",
    )  # fmt: skip


def sentences(corpus: Corpus, split: str = "train") -> Embeddings:
    keys = [utterance.key for _, utterance in corpus.utterances(split)]
    values = np.random.default_rng(0).normal(size=(len(keys), 6)).astype(np.float32)
    return Embeddings(tuple(keys), {"sentence": values}, {})


def test_store_holds_the_codes_of_crops_of_each_image(corpus: Corpus) -> None:
    codec = small_codec()
    store = encode_corpus(corpus, codec, "train", VIEWS)
    assert store.keys == [record.key for record in corpus.records("train")]
    row = corpus.image_rows("train")[1]
    image = np.array(corpus.images[row])
    height, width = image.shape[:2]
    candidates = {
        tuple(codec.encode(pyramid(torch.from_numpy(np.ascontiguousarray(cut)).permute(2, 0, 1)[None], (32,)).levels[0])[0].tolist())
        for top in range(height - 31)
        for left in range(width - 31)
        for cut in (image[top : top + 32, left : left + 32], image[top : top + 32, left : left + 32][:, ::-1])
    }  # fmt: skip
    assert store[1].shape == (VIEWS, 16)
    assert {tuple(view.tolist()) for view in store[1]} <= candidates
    assert len({tuple(view.tolist()) for item in range(len(store)) for view in store[item]}) > len(store)


def test_second_call_opens_what_is_there(corpus: Corpus, monkeypatch: pytest.MonkeyPatch) -> None:
    codec = small_codec()
    first = encode_corpus(corpus, codec, "train", VIEWS)
    monkeypatch.setattr(codes, "_encode_views", lambda *_: pytest.fail("encoded again"))
    assert encode_corpus(corpus, codec, "train", VIEWS).sha256 == first.sha256


def test_killed_encoding_goes_on_and_ends_alike(corpus: Corpus, monkeypatch: pytest.MonkeyPatch) -> None:
    codec = small_codec()
    whole = encode_corpus(corpus, codec, "train", VIEWS).sha256
    other = Corpus(corpus.folder)
    for file in codes_folder(corpus, codec.fingerprint(), "train", VIEWS).iterdir():
        file.unlink()
    monkeypatch.setattr(codes, "ENCODE_IMAGES", 2 * VIEWS)
    real, calls = codes._encode_views, []

    def fails_later(*arguments: Any) -> Any:
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(codes, "_encode_views", fails_later)
    with pytest.raises(KeyboardInterrupt):
        encode_corpus(other, codec, "train", VIEWS)
    assert not (codes_folder(other, codec.fingerprint(), "train", VIEWS) / "store.json").exists()
    assert encode_corpus(other, codec, "train", VIEWS).sha256 == whole
    assert len(calls) == 3 + 3, "nine images, two at a time: four were done before the kill"


def test_codes_of_another_codec_are_refused_by_name(corpus: Corpus) -> None:
    mine, other = small_codec(0), small_codec(1)
    store = encode_corpus(corpus, mine, "train", VIEWS)
    check_store(store, mine.fingerprint())
    with pytest.raises(
        DataError, match=f"made by codec {mine.fingerprint()}, expected codec {other.fingerprint()}"
    ):
        CodeBatches(corpus, "train", store, other.fingerprint(), sentences(corpus), 4, 0)


def test_batches_pair_codes_with_their_sentences(corpus: Corpus) -> None:
    codec, embeddings = small_codec(), sentences(corpus)
    store = encode_corpus(corpus, codec, "train", VIEWS)
    batches = CodeBatches(corpus, "train", store, codec.fingerprint(), embeddings, 4, seed=3)
    assert len(batches) == 2
    seen = set()
    for step in range(20):
        batch = batches[step]
        assert batch["tokens"].dtype == torch.int64 and batch["tokens"].shape == (4, 16)
        for place in range(4):
            image, utterance = int(batch["image_index"][place]), int(batch["utterance_index"][place])
            assert corpus.utterances("train")[utterance][0] == image
            views = [tuple(view.tolist()) for view in store[image]]
            assert tuple(batch["tokens"][place].tolist()) in views
            seen.add((image, views.index(tuple(batch["tokens"][place].tolist()))))
            assert torch.equal(
                batch["sentence"][place], torch.from_numpy(embeddings.arrays["sentence"][utterance])
            )
            assert int(batch["class_id"][place]) == corpus.class_ids("train")[image]
    assert len(seen) > len(corpus.records("train")), "other views of the same image come up"
    again = CodeBatches(corpus, "train", store, codec.fingerprint(), embeddings, 4, seed=3)[7]
    assert all(torch.equal(again[key], value) for key, value in batches[7].items())


def test_batches_stay_where_they_were_recorded(corpus: Corpus, tmp_path: Path) -> None:
    """Images, utterances and views of two steps; view `v` of image `i` is told by its only token, 10 i + v."""
    writer = RaggedWriter(
        tmp_path / "codes", [one.key for one in corpus.records("train")], np.int32, "codec x, …"
    )
    for image in range(9):
        writer.append(10 * image + np.arange(1 + image % 3, dtype=np.int32)[:, None])
    writer.commit()
    writer.close()
    batches = CodeBatches(corpus, "train", RaggedStore.open(tmp_path / "codes"), "x", None, 4, seed=11)
    names = ("image_index", "utterance_index", "tokens")
    found = [[batches[step][name].flatten().tolist() for name in names] for step in (0, 7)]
    assert found == [
        [[7, 6, 8, 4], [15, 13, 16, 8], [70, 60, 80, 40]],
        [[8, 3, 2, 6], [17, 6, 4, 13], [81, 30, 21, 60]],
    ]


def test_codec_of_a_run_must_fit_the_corpus(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no finished codec on spoken_birds at 32 px"):
        CodecFromRun().resolve(tmp_path, "spoken_birds", 32)
    for number, (name, px, status) in enumerate(
        [("a", 64, "finished"), ("b", 32, "finished"), ("c", 32, "running")]
    ):
        folder = tmp_path / name
        folder.mkdir()
        info = {"stage": "codec", "corpus": "spoken_birds", "status": status, "created": str(number)}
        (folder / "run.json").write_text(json.dumps(info))
        (folder / "config.yaml").write_text(
            f"codec: {{_target_: speech2image.codecs.vqgan.VqGan, image_px: {px}}}\n"
        )
    assert CodecFromRun().resolve(tmp_path, "spoken_birds", 32).path.name == "b"
    with pytest.raises(DataError, match=r"codes images of 64 px, the corpus has data\.image_px=32"):
        CodecFromRun(str(tmp_path / "a")).resolve(tmp_path, "spoken_birds", 32)


def worded(corpus: Corpus, tmp_path: Path, lengths: tuple[int, ...]) -> Embeddings:
    """Sentences, and words that name their utterance: its place in every number."""
    embeddings = sentences(corpus)
    writer = RaggedWriter(tmp_path / "words", embeddings.keys, np.float16, "x")
    for place in range(len(embeddings.keys)):
        writer.append(np.full((lengths[place % len(lengths)], 3), place, np.float16))
    writer.commit()
    writer.close()
    return Embeddings(embeddings.keys, embeddings.arrays, {}, RaggedStore.open(tmp_path / "words"))


@pytest.mark.parametrize("lengths", [(2, 5, 3), (4,)])
def test_batches_carry_the_words_of_their_utterances(
    corpus: Corpus, tmp_path: Path, lengths: tuple[int, ...]
) -> None:
    codec, embeddings = small_codec(), worded(corpus, tmp_path, lengths)
    store = encode_corpus(corpus, codec, "train", VIEWS)
    batches = CodeBatches(corpus, "train", store, codec.fingerprint(), embeddings, 4, seed=3)
    for step in range(5):
        batch = batches[step]
        words, places = batch["words"], batch["utterance_index"].tolist()
        assert words.shape == (4, max(lengths), 3) and words.dtype == torch.float16
        assert ("mask" in batch) == (len(lengths) > 1), "no mask where there is nothing to mask"
        mask = batch.get("mask", torch.ones(4, 4, dtype=torch.bool))
        for row, place in enumerate(places):
            assert int(mask[row].sum()) == lengths[place % len(lengths)]
            assert (words[row][mask[row]] == place).all() and not words[row][~mask[row]].any()


def test_networks_that_read_no_encoder_get_no_sentence(corpus: Corpus) -> None:
    codec = small_codec()
    store = encode_corpus(corpus, codec, "train", VIEWS)
    batch = CodeBatches(corpus, "train", store, codec.fingerprint(), None, 4, seed=3)[0]
    assert set(batch) == {"tokens", "class_id", "image_index", "utterance_index"}


def test_store_of_another_codec_in_the_place_is_refused_and_kept(corpus: Corpus) -> None:
    mine, other = small_codec(0), small_codec(2)
    store = encode_corpus(corpus, mine, "train", VIEWS)
    place = codes_folder(corpus, other.fingerprint(), "train", VIEWS)
    shutil.copytree(store.path, place)
    before = {file.name: file.read_bytes() for file in place.iterdir()}
    with pytest.raises(
        DataError, match=f"made by codec {mine.fingerprint()}, expected codec {other.fingerprint()}"
    ):
        encode_corpus(corpus, other, "train", VIEWS)
    assert {file.name: file.read_bytes() for file in place.iterdir()} == before
