"""Real sets: which images, prepared how, from the original files of an official layout."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from speech2image.app.score_generator import _scored_files
from speech2image.app.score_real import PreparedImages, prepare_square, real_set, real_side
from speech2image.data.corpora import open_corpus
from speech2image.data.corpus import Corpus
from speech2image.images.pyramid import centre_crop, crop_box, resize_short
from speech2image.images.read import read_image
from speech2image.metrics.imageset import GeneratedSet
from speech2image.metrics.protocol import get_protocol

CLEAN = get_protocol("clean")


@pytest.fixture(scope="module")
def corpus(tiny_cub: Path, workplace: Path) -> Corpus:
    data = {"name": "cub200", "root": str(tiny_cub), "image_px": 32, "max_captions": 1, "val_classes": 0,
            "speak": "espeak", "on_error": "raise", "make": None}  # fmt: skip
    return open_corpus(data, {"name": "s2igan"}, {"cache": str(workplace / "cache")})


def test_box_and_full_frame_are_cut_from_the_original_file(corpus: Corpus) -> None:
    boxed = real_set(corpus, CLEAN, "test", 64)
    full = real_set(corpus, dataclasses.replace(CLEAN, box_crop=False), "test", 64)
    record = boxed.records[0]
    image = read_image(corpus.manifest.image_path(record))
    expected = centre_crop(resize_short(crop_box(image, record.box), 64), 64)
    assert np.array_equal(boxed.images[0], expected), "64 px, though the corpus was prepared for 32"
    assert np.array_equal(full.images[0], centre_crop(resize_short(image, 64), 64))
    assert "bounding box 0.75" in boxed.how and "full frame" in full.how
    assert len(boxed.images) == 6 and boxed.images[3].shape == (64, 64, 3)


def test_squash_ignores_the_aspect_on_both_sides(tmp_path: Path) -> None:
    wide = np.random.default_rng(0).integers(0, 255, (40, 90, 3), dtype=np.uint8)
    squash = get_protocol("sta_cub")
    expected = np.asarray(Image.fromarray(wide).resize((256, 256), Image.Resampling.BILINEAR))
    assert np.array_equal(prepare_square(wide, 256, squash), expected)
    Image.fromarray(wide).save(tmp_path / "wide.png")
    assert np.array_equal(PreparedImages([(tmp_path / "wide.png", None)], 256, squash)[0], expected)
    short = prepare_square(wide, 256, get_protocol("vqd_30k"))
    assert np.array_equal(short, centre_crop(resize_short(wide, 256), 256))


def test_real_sets_of_the_protocols(corpus: Corpus) -> None:
    keys = [record.key for record in corpus.records("test") for _ in range(2)]
    once = real_side(corpus, CLEAN, "test", 32, keys)
    every = real_side(corpus, get_protocol("sta_cub"), "test", 32, keys)
    paired = real_side(corpus, dataclasses.replace(CLEAN, real_images="per_caption"), "test", 32, keys)
    assert [record.key for record in once.records] == keys[::2]
    assert [record.key for record in paired.records] == keys
    assert np.array_equal(paired.images[3], once.images[1])
    assert {record.split for record in every.records} == {"train", "test"}
    assert len(every.records) == len(corpus.records("train")) + len(corpus.records("test"))


def test_probe_is_shown_prepared_images(corpus: Corpus) -> None:
    found = real_set(corpus, get_protocol("offline"), "test", 32)
    assert found.images[0].shape == (32, 32, 3) and "as prepared" in found.how


def test_incomplete_batch_of_images_was_never_painted(corpus: Corpus) -> None:
    """S2IGAN's loader takes 7 images with all their captions at a time: 1,000 images leave 994, not 4,998 files."""
    records = corpus.records("test")
    lines = tuple(
        {"file": f"{record.key}_{caption}.png", "image_key": record.key}
        for record in records
        for caption in (0, 1)
    )
    generated = GeneratedSet(tuple(Path(line["file"]) for line in lines), lines)
    batch = len(records) - 1
    bench = SimpleNamespace(protocol=dataclasses.replace(CLEAN, drop_last=batch), corpus=corpus, split="test")
    files, kept = _scored_files(bench, generated)
    assert len(files) == len(kept) == 2 * batch
    assert {line["image_key"] for line in kept} == {record.key for record in records[:batch]}
