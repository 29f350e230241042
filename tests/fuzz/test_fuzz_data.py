"""Hostile manifests, recordings, images, lists and stores: a result or one message, in 2 s, within 1 GB.

`make test` runs a sample of each kind, `make faults` all of them; the seeds are the same.
"""

from __future__ import annotations

import functools
import io
import json
import pickle
import runpy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import soundfile
from PIL import Image

from speech2image.audio.read import read_wave
from speech2image.data.corpus import Corpus
from speech2image.data.cub import scan_cub
from speech2image.data.embeddings import read_embeddings, read_teacher_features, write_embeddings
from speech2image.data.flickr8k import scan_flickr8k
from speech2image.data.manifest import Manifest, Problem, read_manifest, write_manifest
from speech2image.data.prepare import load_image
from speech2image.data.store import RaggedStore, RaggedWriter
from speech2image.types import ImageRecord

HERE = Path(__file__).parent
MUTATIONS = runpy.run_path(str(HERE / "mutations.py"))
TINY = runpy.run_path(str(HERE.parent / "tiny_corpora.py"))
Rounds = Callable[[int, int], int]


@dataclass
class Target:
    """One kind of file: valid ones, where a mutated one is put, and who reads it."""

    valid: Sequence[bytes]
    path: Path
    read: Callable[[], object]


def _attempt(target: Target, seed: int, number: int) -> object:
    rng = np.random.default_rng([seed, number])
    valid = target.valid[int(rng.integers(len(target.valid)))]
    target.path.write_bytes(MUTATIONS["mutate"](valid, target.valid, rng))
    return target.read()


def _campaign(target: Target, count: int, folder: Path, least: float = 0.0, most: float = 1.0) -> None:
    """Run `count` mutations; the valid files themselves must be read, and a share of the mutations be refused.

    Args:
        least: share of refused ones; lists whose lines are quarantined one by one may refuse none.
        most: where every byte is sealed, nearly all are refused.
    """
    for valid in target.valid:
        target.path.write_bytes(valid)
        target.read()
    wrong, refused, peak = MUTATIONS["run_watched"](count, functools.partial(_attempt, target, 5), folder)
    print(
        f"{count} mutations of {target.path.name}: {refused} refused, {peak / 1e6:.0f} MB at most, {len(wrong)} wrong"
    )
    assert not wrong, f"{len(wrong)} of {count}:\n" + "\n".join(wrong[:3])
    assert least * count <= refused <= most * count, (
        "fewer or more are refused than this kind of file deserves"
    )


# ---- manifests --------------------------------------------------------------------------------
def test_manifests(tmp_path: Path, rounds: Rounds) -> None:
    whole = scan_cub(TINY["make_cub"](tmp_path / "cub", train=2, test=1, images=1))
    problems = (Problem("damaged image", "a/b.jpg", "found nothing"),)
    contents = []
    for manifest in (whole, Manifest("é", tmp_path, whole.records[:1], problems, {"mirror": False})):
        write_manifest(tmp_path / "valid", manifest)
        contents.append((tmp_path / "valid").read_bytes())
    path = tmp_path / "manifest.jsonl"

    def read() -> None:
        found = read_manifest(path)
        write_manifest(tmp_path / "again", found)  # what was accepted can be written and read again
        assert read_manifest(tmp_path / "again") == found
        assert max((record.class_id for record in found.records), default=0) < 10_000_000

    _campaign(Target(contents, path, read), rounds(150, 2500), tmp_path, 0.5, 0.999)


# ---- recordings -------------------------------------------------------------------------------
def _sounds() -> list[bytes]:
    contents = []
    for form, subtype, channels, rate_hz in (
        ("WAV", "PCM_16", 1, 16_000), ("WAV", "FLOAT", 2, 22_050), ("WAV", "PCM_U8", 1, 8000), ("WAVEX", "PCM_24", 1, 44_100),
        ("WAV", "IMA_ADPCM", 1, 16_000), ("FLAC", "PCM_16", 1, 16_000), ("OGG", "VORBIS", 1, 16_000),
        ("MP3", "MPEG_LAYER_III", 1, 16_000), ("AIFF", "PCM_16", 1, 16_000), ("W64", "PCM_16", 1, 16_000),
    ):  # fmt: skip
        wave = TINY["sound"](3, 0.05, rate_hz)
        content = io.BytesIO()
        soundfile.write(content, np.stack([wave] * channels, axis=1), rate_hz, subtype=subtype, format=form)
        contents.append(content.getvalue())
    return contents


def test_recordings(tmp_path: Path, rounds: Rounds) -> None:
    path, sounds = tmp_path / "a.wav", _sounds()

    def read() -> None:
        wave = read_wave(path, 16_000)
        assert wave.ndim == 1
        assert wave.dtype == np.float32
        assert np.isfinite(wave).all()
        assert len(wave) <= 60 * 16_000 + 1

    _campaign(Target([*sounds[:4] * 3, *sounds[4:]], path, read), rounds(150, 2500), tmp_path, 0.3, 0.95)


def test_wav_headers_that_lie(tmp_path: Path) -> None:
    path, valid = tmp_path / "a.wav", _sounds()[0]
    values = (
        0,
        1,
        7,
        999,
        1000,
        16_001,
        191_999,
        192_000,
        1 << 20,
        0x7FFFFFFF,
        0x80000000,
        0xFFFFFFFE,
        0xFFFFFFFF,
    )
    liars = MUTATIONS["integers_at"](valid, (4, 16, 20, 22, 24, 28, 32, 34, 40), values)

    def attempt(number: int) -> object:
        path.write_bytes(liars[number])
        return read_wave(path, 16_000)

    wrong, refused, _ = MUTATIONS["run_watched"](len(liars), attempt, tmp_path)
    assert not wrong, "\n".join(wrong[:3])
    assert refused > 20


# ---- images -----------------------------------------------------------------------------------
def _pictures(forms: Sequence[tuple[str, str]]) -> list[bytes]:
    contents = []
    for form, mode in forms:
        content = io.BytesIO()
        TINY["picture"](5, 24, 20).convert(mode).save(content, format=form)
        contents.append(content.getvalue())
    return contents


FORMS = {
    "png": [("PNG", mode) for mode in ("RGB", "RGBA", "L", "P", "1", "I;16", "LA")],
    "jpeg": [("JPEG", mode) for mode in ("RGB", "L", "CMYK")],
    "other": [("GIF", "P"), ("BMP", "RGB"), ("WEBP", "RGB"), ("TIFF", "RGB"), ("PPM", "RGB"), ("TIFF", "F")],
}


@pytest.mark.parametrize(("form", "full"), [("png", 2500), ("jpeg", 1000), ("other", 500)])
def test_images(form: str, full: int, tmp_path: Path, rounds: Rounds) -> None:
    path = tmp_path / "a.image"
    manifest = Manifest("one", tmp_path, (ImageRecord("a", "a.image", "train", 0, "a"),))

    def read() -> None:
        pixels = load_image(manifest, manifest.records[0], 32)
        assert pixels.dtype == np.uint8
        assert pixels.ndim == 3
        assert pixels.nbytes < 20_000_000

    _campaign(
        Target(_pictures(FORMS[form]), path, read),
        rounds(100 if form == "png" else 50, full),
        tmp_path,
        0.2,
        0.99,
    )


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "P", "I;16", "CMYK"])
def test_largest_image_stays_below_the_limits(mode: str, tmp_path: Path) -> None:
    path = tmp_path / "a.image"
    packed = {"format": "TIFF", "compression": "tiff_deflate"} if mode == "CMYK" else {"format": "PNG"}
    Image.new(mode, (8000, 5000)).save(path, **packed)
    small = ImageRecord("b", "b.image", "train", 0, "b")
    Image.new("RGB", (80, 50)).save(tmp_path / "b.image", format="PNG")
    manifest = Manifest("one", tmp_path, (ImageRecord("a", "a.image", "train", 0, "a"), small))
    load_image(manifest, small, 256)  # what is imported here is not imported under the watchdog
    wrong, refused, peak = MUTATIONS["run_watched"](
        1, lambda number: load_image(manifest, manifest.records[0], 256), tmp_path
    )
    assert not wrong, wrong[0]
    assert refused == 0
    assert peak > 40_000_000


# ---- lists of corpora -------------------------------------------------------------------------
CUB_FILES = (
    "train/filenames.pickle", "train/class_info.pickle", "CUB_200_2011/images.txt", "CUB_200_2011/bounding_boxes.txt",
    "CUB_200_2011/text/001.Bird_1/Bird_1_0000.txt", "attributes.jsonl", "audio_index.jsonl",
)  # fmt: skip


@pytest.mark.parametrize("name", CUB_FILES)
def test_lists_of_cub(name: str, tmp_path: Path, rounds: Rounds) -> None:
    root = TINY["make_cub"](tmp_path / "cub", train=2, test=1, images=1)
    lines = [
        {"key": "001.Bird_1/Bird_1_0000", "attributes": {"crown": "red"}, "spoken": [{"crown": "red"}, {}]},
        {"key": "002.Bird_2/Bird_2_0000", "attributes": {}, "spoken": []},
    ]
    (root / "attributes.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    voice = {"wav": "001.Bird_1/Bird_1_0000_0.wav", "speaker": "anna", "engine": "espeak"}
    (root / "audio_index.jsonl").write_text(json.dumps(voice) + "\n")
    valid = [(root / name).read_bytes()]
    if name.endswith(".pickle"):
        valid += [pickle.dumps(pickle.loads(valid[0]), protocol) for protocol in (0, 4)]

    def read() -> None:
        manifest = scan_cub(root, "skip")
        write_manifest(tmp_path / "again", manifest)
        assert read_manifest(tmp_path / "again").records == manifest.records
        for record in manifest.records:
            assert manifest.image_path(record).resolve().is_relative_to(root)

    _campaign(Target(valid, root / name, read), rounds(30, 350), tmp_path)


FLICKR_FILES = (
    "Flickr8k_text/Flickr8k.token.txt", "Flickr8k_text/Flickr_8k.trainImages.txt", "flickr_audio/wav2capt.txt",
    "flickr_audio/wav2spk.txt",
)  # fmt: skip


@pytest.mark.parametrize("name", FLICKR_FILES)
def test_lists_of_flickr8k(name: str, tmp_path: Path, rounds: Rounds) -> None:
    root = TINY["make_flickr8k"](tmp_path / "flickr")

    def read() -> None:
        manifest = scan_flickr8k(root, "skip")
        write_manifest(tmp_path / "again", manifest)
        assert read_manifest(tmp_path / "again").records == manifest.records

    _campaign(Target([(root / name).read_bytes()], root / name, read), rounds(30, 350), tmp_path)


# ---- what prepare and embed wrote -------------------------------------------------------------
@pytest.mark.parametrize("name", ["store.json", "index.npz", "keys.txt", "data.bin"])
@pytest.mark.parametrize("is_sealed", [True, False])
def test_stores(name: str, is_sealed: bool, tmp_path: Path, rounds: Rounds) -> None:
    folder = tmp_path / "store"
    writer = RaggedWriter(folder, ["a", "b/c", "d"], np.float32, "f")
    for number in range(3):
        writer.append(np.full((number + 1, 4), number, np.float32))
    writer.commit()
    if not is_sealed:  # of an earlier version, or by somebody who means harm
        record = json.loads((folder / "store.json").read_text())
        record.pop("seal")
        (folder / "store.json").write_text(json.dumps(record))

    def read() -> None:
        store = RaggedStore.open(folder)
        for row in range(len(store)):
            store[row].sum()
        store.verify()

    _campaign(Target([(folder / name).read_bytes()], folder / name, read), rounds(30, 250), tmp_path, 0.8)


@pytest.mark.parametrize("name", ["corpus.json", "manifest.jsonl"])
def test_prepared_corpora(name: str, tmp_path: Path, rounds: Rounds) -> None:
    from speech2image.data.prepare import prepare_corpus

    manifest = scan_cub(TINY["make_cub"](tmp_path / "cub", train=2, test=1, images=1))
    corpus = prepare_corpus(manifest, tmp_path / "cache", None, image_px=16, max_captions=1)
    path, images = corpus.folder / name, len(corpus.manifest.records)

    def read() -> None:
        assert len(Corpus(corpus.folder).manifest.records) == images

    _campaign(Target([path.read_bytes()], path, read), rounds(30, 250), tmp_path, 0.8)


def test_embeddings(tmp_path: Path, rounds: Rounds) -> None:
    path, rng = tmp_path / "a.safetensors", np.random.default_rng(0)
    arrays = {"sentence": rng.normal(size=(3, 8)).astype(np.float32), "half": np.zeros((3, 2), np.float16)}
    write_embeddings(path, ["a", "b", "é"], arrays, {"corpus": "tiny"})
    _campaign(
        Target([path.read_bytes()], path, lambda: read_embeddings(path)), rounds(60, 1000), tmp_path, 0.9
    )


def test_published_features(tmp_path: Path, rounds: Rounds) -> None:
    path = tmp_path / "a.pickle"
    matrices = [np.full((2, 3), number, np.float32) for number in range(3)]
    valid = [pickle.dumps(matrices, protocol) for protocol in (0, 2, 4)]
    _campaign(Target(valid, path, lambda: read_teacher_features(path)), rounds(30, 500), tmp_path, 0.5)
