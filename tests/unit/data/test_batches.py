"""Whole batches by step: contents, addresses, distributions, and equality for any number of workers."""

from __future__ import annotations

import dataclasses
import itertools
import runpy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from speech2image.audio.features import make_front_end
from speech2image.data.batches import ClassBatches, EncoderBatches, GanBatches, ImageBatches, SpeechBatches
from speech2image.data.corpus import Corpus
from speech2image.data.cub import scan_cub
from speech2image.data.embeddings import Embeddings
from speech2image.data.order import addressed_rng
from speech2image.data.pixels import CropTable, Recycled
from speech2image.data.prepare import prepare_corpus
from speech2image.errors import ConfigError, DataError
from speech2image.types import SpeechBatch

make_cub = runpy.run_path(str(Path(__file__).parents[2] / "tiny_corpora.py"))["make_cub"]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    folder = tmp_path_factory.mktemp("batches")
    manifest = scan_cub(make_cub(folder / "cub", train=4, test=2, images=3))
    return prepare_corpus(manifest, folder / "cache", make_front_end("s2igan"), image_px=32)


@pytest.fixture(scope="module")
def embeddings(corpus: Corpus) -> Embeddings:
    keys = [utterance.key for _, utterance in corpus.utterances("train")]
    rows = np.arange(len(keys), dtype=np.float32)[:, None] * np.ones((1, 5), np.float32)
    shuffled = np.random.default_rng(0).permutation(len(keys))
    return Embeddings([keys[row] for row in shuffled], {"sentence": rows[shuffled]}, {})


def _flat(batch: dict[str, Any]) -> dict[str, torch.Tensor]:
    found = {name: value for name, value in batch.items() if isinstance(value, torch.Tensor)}
    if "speech" in batch:
        found |= {"features": batch["speech"].features, "lengths": batch["speech"].lengths}
    return found


def _assert_equal(one: dict[str, Any], other: dict[str, Any]) -> None:
    assert one.keys() == other.keys()
    for name, value in _flat(one).items():
        assert torch.equal(value, _flat(other)[name]), name


def _is_crop(crop: torch.Tensor, image: np.ndarray) -> bool:
    pixels = crop.permute(1, 2, 0).numpy()
    windows = np.lib.stride_tricks.sliding_window_view(image, pixels.shape)[:, :, 0]
    return any((windows == form).all(axis=(2, 3, 4)).any() for form in (pixels, pixels[:, ::-1]))


def _is_window(pixels: np.ndarray, image: np.ndarray) -> bool:
    windows = np.lib.stride_tricks.sliding_window_view(image, pixels.shape)[:, :, 0]
    return bool((windows == pixels).all(axis=(2, 3, 4)).any())


# ---- encoder ----------------------------------------------------------------------------------
def test_encoder_batch_pairs_an_image_with_its_own_utterance(corpus: Corpus) -> None:
    batches = EncoderBatches(corpus, "train", 5, 3, 32, pad_value=-7.0, pad_frames=None)
    assert len(batches) == 2
    utterances, records = corpus.utterances("train"), corpus.records("train")
    for step in (0, 1, 2, 99):
        batch = batches[step]
        assert batch["image"].shape == (5, 3, 32, 32)
        assert batch["image"].dtype == torch.uint8
        speech: SpeechBatch = batch["speech"]
        assert speech.features.shape[1] == speech.lengths.max()
        for place in range(5):
            image, chosen = int(batch["image_index"][place]), int(batch["utterance_index"][place])
            assert utterances[chosen][0] == image
            assert batch["class_id"][place] == records[image].class_id
            mel = corpus.mel[corpus.mel.index(utterances[chosen][1].wave)]
            assert torch.equal(speech.features[place, : len(mel)], torch.from_numpy(mel.copy()))
            assert speech.lengths[place] == len(mel)
            assert (speech.features[place, len(mel) :] == -7.0).all()
            assert _is_crop(batch["image"][place], corpus.images[corpus.images.index(records[image].key)])


@pytest.mark.parametrize(("pad_frames", "frames"), [(20, 20), (500, 500)])
def test_fixed_length_cuts_and_pads(corpus: Corpus, pad_frames: int, frames: int) -> None:
    speech = EncoderBatches(corpus, "train", 5, 3, 32, 0.0, pad_frames)[0]["speech"]
    assert speech.features.shape[1] == frames
    assert speech.lengths.max() <= frames


def test_short_utterances_are_drawn_only_where_an_image_has_no_other(corpus: Corpus) -> None:
    frames = corpus.mel.shapes[corpus.mel_rows("train"), 0]
    owner = np.array([image for image, _ in corpus.utterances("train")])
    bound = int(np.sort(frames)[len(frames) // 2])
    batches = EncoderBatches(corpus, "train", 12, 0, 32, 0.0, None, min_frames=bound)
    drawn = np.concatenate([batches[step]["utterance_index"].numpy() for step in range(60)])
    longest = np.array([frames[owner == image].max() for image in range(12)])
    assert (longest < bound).any()
    assert (longest >= bound).any()
    for utterance in drawn:
        assert frames[utterance] >= bound or longest[owner[utterance]] < bound
    assert set(owner[drawn]) == set(range(12))


def test_every_caption_of_an_image_is_drawn_equally_often(corpus: Corpus) -> None:
    batches = EncoderBatches(corpus, "train", 12, 0, 32, 0.0, None)
    counts = np.bincount(np.concatenate([batches[step]["utterance_index"].numpy() for step in range(400)]))
    assert len(counts) == 24
    assert np.abs(counts - 200).max() < 5 * 10  # five standard deviations


def test_pooled_batches_are_dealt_by_length(corpus: Corpus) -> None:
    pooled = EncoderBatches(corpus, "train", 4, 0, 32, 0.0, None, pool_batches=3)
    alone = EncoderBatches(corpus, "train", 4, 0, 32, 0.0, None)
    orders = set()
    for pool in range(8):
        steps = range(3 * pool, 3 * pool + 3)
        dealt = [pooled[step] for step in steps]
        drawn = [index for batch in dealt for index in batch["utterance_index"].tolist()]
        assert sorted(drawn) == sorted(i for s in steps for i in alone[s]["utterance_index"].tolist())
        lengths = sorted((int(b["speech"].lengths.min()), int(b["speech"].lengths.max())) for b in dealt)
        assert all(one[1] <= other[0] for one, other in itertools.pairwise(lengths))
        shortest = [int(batch["speech"].lengths.min()) for batch in dealt]
        orders.add(tuple(np.argsort(shortest, kind="stable").tolist()))
    assert len(orders) > 1  # short batches do not always come first


def test_pairs_show_every_utterance_once_an_epoch(corpus: Corpus) -> None:
    utterances = corpus.utterances("train")
    batches = EncoderBatches(corpus, "train", 6, 0, 32, 0.0, None, pairs=True)
    assert len(batches) == len(utterances) // 6
    whole = len(utterances) - len(utterances) % 6
    shown = []
    for step in range(len(batches)):
        batch = batches[step]
        shown += batch["utterance_index"].tolist()
        owners = [utterances[place][0] for place in batch["utterance_index"].tolist()]
        assert owners == batch["image_index"].tolist()
    assert len(set(shown)) == len(shown) == whole
    repeated = [len(set(batches[step]["image_index"].tolist())) < 6 for step in range(40)]
    assert any(repeated), "an image comes twice in a batch"


def test_validation_is_the_same_with_pairs(corpus: Corpus) -> None:
    plain, paired = (
        EncoderBatches(corpus, "train", 5, 3, 32, 0.0, None, augment=False, pairs=pairs)
        for pairs in (False, True)
    )
    assert len(plain) == len(paired)
    _assert_equal(plain[1], paired[1])


def test_class_batches_show_every_training_image_once_an_epoch(corpus: Corpus) -> None:
    batches = ClassBatches(corpus, "train", 4, 0, 16)
    assert len(batches) == 3
    seen = [batches[step] for step in range(3)]
    assert all(batch["image"].shape == (4, 3, 16, 16) for batch in seen)
    assert sorted(np.concatenate([batch["class_id"].numpy() for batch in seen])) == sorted(
        corpus.class_ids("train")
    )
    assert torch.equal(batches[2]["image"], seen[2]["image"])


def test_unaugmented_batches_keep_the_order_and_the_short_rest(corpus: Corpus) -> None:
    batches = EncoderBatches(corpus, "train", 5, 3, 32, 0.0, None, augment=False)
    assert len(batches) == 3
    indices = torch.cat([batches[step]["image_index"] for step in range(3)])
    assert indices.tolist() == list(range(12))
    central = ImageBatches(corpus, "train", 12, 32)[0]["image"]
    assert torch.equal(torch.cat([batches[step]["image"] for step in range(3)]), central)
    with pytest.raises(IndexError):
        batches[3]


# ---- generator --------------------------------------------------------------------------------
def test_gan_batch_pairs_sentence_image_and_mismatch(corpus: Corpus, embeddings: Embeddings) -> None:
    batches = GanBatches(corpus, "train", embeddings, 6, 1, 32)
    utterances, records = corpus.utterances("train"), corpus.records("train")
    assert len(batches) == 2
    for step in (0, 1, 57):
        batch = batches[step]
        for place in range(6):
            real, wrong = int(batch["image_index"][place]), int(batch["wrong_index"][place])
            chosen = int(batch["utterance_index"][place])
            assert utterances[chosen][0] == real
            assert batch["sentence"][place].tolist() == [float(chosen)] * 5
            assert records[real].class_id != records[wrong].class_id
            assert _is_crop(batch["real"][place], corpus.images[corpus.images.index(records[real].key)])
            assert _is_crop(batch["wrong"][place], corpus.images[corpus.images.index(records[wrong].key)])


@pytest.mark.parametrize("wrong", ["other_class", "other_image"])
def test_mismatches_are_uniform(corpus: Corpus, embeddings: Embeddings, wrong: str) -> None:
    batches = GanBatches(corpus, "train", embeddings, 12, 1, 32, wrong=wrong)
    pairs = np.zeros((12, 12))
    for step in range(300):
        batch = batches[step]
        np.add.at(pairs, (batch["image_index"].numpy(), batch["wrong_index"].numpy()), 1)
    classes = corpus.class_ids("train")
    allowed = classes[:, None] != classes if wrong == "other_class" else ~np.eye(12, dtype=bool)
    assert (pairs[~allowed] == 0).all()
    expected = 300 / allowed.sum(1).mean()
    chi_square = ((pairs[allowed] - expected) ** 2 / expected).sum()
    freedom = allowed.sum() - 12
    assert abs(chi_square - freedom) < 5 * np.sqrt(2 * freedom)


def test_crops_reach_every_corner_and_flip_half_the_time(corpus: Corpus) -> None:
    table = CropTable(corpus, "train", 32)
    image = corpus.images[corpus.image_rows("train")[0]]
    rng = np.random.default_rng(0)
    crops = torch.cat([table.random(np.zeros(50, np.int64), rng) for _ in range(20)])
    seen: dict[tuple[int, int, bool], int] = {}
    for crop in crops.permute(0, 2, 3, 1).numpy():
        for mirrored in (False, True):
            pixels = crop[:, ::-1] if mirrored else crop
            windows = np.lib.stride_tricks.sliding_window_view(image, pixels.shape)[:, :, 0]
            for top, left in np.argwhere((windows == pixels).all(axis=(2, 3, 4))):
                seen[top, left, mirrored] = seen.get((top, left, mirrored), 0) + 1
    tops, lefts = image.shape[0] - 31, image.shape[1] - 31
    assert len(seen) == tops * lefts * 2
    flipped = sum(count for (_, _, mirrored), count in seen.items() if mirrored)
    assert abs(flipped - 500) < 80


def test_corpora_that_mean_something_else_mirrored_are_never_mirrored(corpus: Corpus) -> None:
    image = corpus.images[corpus.image_rows("train")[0]]
    flips = []
    for meta in ({}, {"mirror": False}):
        same = Corpus(corpus.folder)
        same.manifest = dataclasses.replace(corpus.manifest, meta={**corpus.manifest.meta, **meta})
        crops = CropTable(same, "train", 32).random(np.zeros(200, np.int64), np.random.default_rng(0))
        upright = [_is_window(crop.permute(1, 2, 0).numpy(), image) for crop in crops]
        flips.append(200 - sum(upright))
    assert 70 <= flips[0] <= 130
    assert flips[1] == 0


def test_missing_embeddings_are_counted_and_named(corpus: Corpus, embeddings: Embeddings) -> None:
    fewer = Embeddings(embeddings.keys[3:], {"sentence": embeddings.arrays["sentence"][3:]}, {})
    with pytest.raises(DataError, match="3 of 24 utterances"):
        GanBatches(corpus, "train", fewer, 4, 0, 32)


def test_larger_images_than_prepared_are_refused(corpus: Corpus) -> None:
    with pytest.raises(ConfigError, match="prepared for 32 px"):
        EncoderBatches(corpus, "train", 4, 0, 64, 0.0, None)


def test_smaller_images_than_prepared_are_cut(corpus: Corpus) -> None:
    assert ImageBatches(corpus, "train", 4, 16)[0]["image"].shape == (4, 3, 16, 16)


def test_split_without_recordings_says_so(corpus: Corpus) -> None:
    with pytest.raises(DataError, match="val split has no recorded utterance"):
        EncoderBatches(corpus, "val", 4, 0, 32, 0.0, None)


def test_unknown_mismatch_is_refused(corpus: Corpus, embeddings: Embeddings) -> None:
    with pytest.raises(ConfigError, match="wrong='any'"):
        GanBatches(corpus, "train", embeddings, 4, 0, 32, wrong="any")


# ---- addresses --------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("wrong", "step", "expected"),
    [
        ("other_class", 0, [[7, 8, 5, 11, 6], [14, 16, 11, 23, 13], [0, 1, 0, 7, 0]]),
        ("other_class", 7, [[1, 11, 5, 3, 2], [2, 22, 11, 7, 4], [7, 0, 6, 10, 4]]),
        ("other_image", 7, [[1, 11, 5, 3, 2], [2, 22, 11, 7, 4], [5, 1, 4, 10, 1]]),
    ],
)
def test_gan_batches_stay_where_they_were_recorded(
    corpus: Corpus, embeddings: Embeddings, wrong: str, step: int, expected: list[list[int]]
) -> None:
    batches = GanBatches(corpus, "train", embeddings, 5, 11, 32, wrong=wrong)
    batch = batches[step]
    assert [batch[f"{name}_index"].tolist() for name in ("image", "utterance", "wrong")] == expected
    for name, images in (("real", expected[0]), ("wrong", expected[2])):
        crops = batches.crops.random(np.array(images), addressed_rng(11, f"gan/crop_{name}", step))
        assert torch.equal(batch[name], crops)


@pytest.mark.parametrize(
    ("options", "step", "expected"),
    [
        ({}, 0, [[7, 8, 5, 11, 6], [14, 17, 11, 22, 13]]),
        ({}, 7, [[1, 11, 5, 3, 2], [2, 22, 10, 7, 4]]),
        ({"pool_batches": 4}, 7, [[7, 11, 11, 4, 0], [14, 22, 22, 8, 0]]),
        ({"pairs": True}, 7, [[2, 9, 2, 1, 9], [4, 19, 5, 2, 18]]),
        ({"augment": False}, 1, [[5, 6, 7, 8, 9], [10, 13, 14, 17, 19]]),
    ],
)
def test_encoder_batches_stay_where_they_were_recorded(
    corpus: Corpus, options: dict[str, Any], step: int, expected: list[list[int]]
) -> None:
    batch = EncoderBatches(corpus, "train", 5, 11, 32, 0.0, None, **options)[step]
    assert [batch[f"{name}_index"].tolist() for name in ("image", "utterance")] == expected


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("start", [0, 7])
def test_start_and_workers_change_nothing(
    corpus: Corpus, embeddings: Embeddings, num_workers: int, start: int
) -> None:
    for batches in (
        GanBatches(corpus, "train", embeddings, 5, 11, 32),
        EncoderBatches(corpus, "train", 5, 11, 32, 0.0, None),
        EncoderBatches(corpus, "train", 5, 11, 32, 0.0, None, pool_batches=4),
        EncoderBatches(corpus, "train", 5, 11, 32, 0.0, None, pool_batches=2, pairs=True),
    ):
        loader = DataLoader(batches, batch_size=None, sampler=range(start, 12), num_workers=num_workers)
        for step, batch in zip(range(start, 12), loader, strict=True):
            _assert_equal(batch, batches[step])


def test_kept_batches_are_not_overwritten_by_later_ones(corpus: Corpus, embeddings: Embeddings) -> None:
    batches = GanBatches(corpus, "train", embeddings, 5, 11, 32)
    first = batches[0]
    copies = {name: value.clone() for name, value in _flat(first).items()}
    view, array = first["real"][2:3], first["wrong"].permute(0, 2, 3, 1).numpy()
    kept_view, kept_array = view.clone(), array.copy()
    del first["wrong"]
    for step in range(1, 30):
        batches[step]
    assert torch.equal(view, kept_view)
    assert np.array_equal(array, kept_array)
    _assert_equal({name: copies[name] for name in first}, first)


def test_freed_memory_is_used_again(corpus: Corpus) -> None:
    pool = Recycled(limit=2)
    first = pool.take((4, 4))
    address = first.ctypes.data
    tensor = torch.from_numpy(first)[1:]
    del first
    assert pool.take((4, 4)).ctypes.data != address
    del tensor
    assert pool.take((4, 4)).ctypes.data == address
    assert pool.take((4, 5)).shape == (4, 5)
    assert len(pool.kept) == 2


def test_seeds_differ(corpus: Corpus, embeddings: Embeddings) -> None:
    one, other = (GanBatches(corpus, "train", embeddings, 5, seed, 32)[0] for seed in (1, 2))
    assert not torch.equal(one["real"], other["real"])
    assert not torch.equal(one["utterance_index"], other["utterance_index"])


# ---- sequential -------------------------------------------------------------------------------
def test_speech_batches_give_every_utterance_once_in_order(corpus: Corpus) -> None:
    batches = SpeechBatches(corpus, "test", 5, 0.0, None)
    found = [batches[step] for step in range(len(batches))]
    keys = [key for batch in found for key in batch["keys"]]
    assert keys == [utterance.key for _, utterance in corpus.utterances("test")]
    assert torch.cat([batch["utterance_index"] for batch in found]).tolist() == list(range(12))
    assert [len(batch["keys"]) for batch in found] == [5, 5, 2]


def test_image_batches_give_every_image_once_in_order(corpus: Corpus) -> None:
    batches = ImageBatches(corpus, "test", 4, 32)
    assert len(batches) == 2
    assert torch.cat([batches[step]["image_index"] for step in range(2)]).tolist() == list(range(6))
    image = corpus.images[corpus.image_rows("test")[4]]
    top, left = (image.shape[0] - 32) // 2, (image.shape[1] - 32) // 2
    found = batches[1]["image"][0].permute(1, 2, 0).numpy()
    assert np.array_equal(found, image[top : top + 32, left : left + 32])
