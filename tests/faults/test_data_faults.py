"""Damaged, missing and hostile input to `prepare`: one clear message, nothing lost, killed at any moment."""

from __future__ import annotations

import os
import pickle
import runpy
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
from PIL import Image

from speech2image.audio.features import make_front_end
from speech2image.data.corpus import Corpus
from speech2image.data.cub import scan_cub
from speech2image.data.manifest import read_manifest
from speech2image.data.prepare import prepare_corpus
from speech2image.errors import DataError
from speech2image.images.read import read_image

TINY = runpy.run_path(str(Path(__file__).parents[1] / "tiny_corpora.py"))
WAVE = Path("CUB_200_2011/audio/001.Bird_1/Bird_1_0001_0.wav")
IMAGE = Path("CUB_200_2011/images/001.Bird_1/Bird_1_0001.jpg")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return TINY["make_cub"](tmp_path / "cub")


def _prepare(root: Path, folder: Path, **options: object) -> Corpus:
    front_end = make_front_end("s2igan")
    return prepare_corpus(scan_cub(root), folder, front_end, image_px=32, **options)  # type: ignore[arg-type]


# ---- damaged items ----------------------------------------------------------------------------
def _write(
    path: Path, wave: np.ndarray, rate_hz: int = 16_000, subtype: str = "PCM_16", form: str = "WAV"
) -> None:
    soundfile.write(path, wave, rate_hz, subtype=subtype, format=form)


def _nan(path: Path) -> None:
    wave = TINY["sound"](1)
    wave[100] = np.nan
    _write(path, wave, subtype="FLOAT")


BAD_WAVES: dict[str, Callable[[Path], object]] = {
    "empty": lambda path: path.write_bytes(b""),
    "cut": lambda path: path.write_bytes(path.read_bytes()[:2000]),
    "silent": lambda path: _write(path, np.zeros(8000, np.float32)),
    "NaN": _nan,
    "10 minutes": lambda path: _write(path, np.tile(TINY["sound"](1, 6.0), 100)),
    "no samples": lambda path: _write(path, np.zeros(0, np.float32)),
    "text": lambda path: path.write_text("this is not a recording"),
    "folder": lambda path: (path.unlink(), path.mkdir()),
}
GOOD_WAVES: dict[str, Callable[[Path], object]] = {
    "8 bit": lambda path: _write(path, TINY["sound"](1), subtype="PCM_U8"),
    "stereo": lambda path: _write(path, np.stack([TINY["sound"](1), TINY["sound"](2)], axis=1)),
    "44.1 kHz": lambda path: _write(path, TINY["sound"](1, 0.5, 44_100), 44_100),
    "mp3 named wav": lambda path: _write(path, TINY["sound"](1, 1.0), subtype="MPEG_LAYER_III", form="MP3"),
    "ten samples": lambda path: _write(path, TINY["sound"](1)[:10]),
}


def _cut_image(path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (200, 200, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    path.write_bytes(path.read_bytes()[:9000])


BAD_IMAGES: dict[str, Callable[[Path], object]] = {
    "empty": lambda path: path.write_bytes(b""),
    "truncated": _cut_image,
    "text": lambda path: path.write_text("<html>404</html>"),
    "bomb": lambda path: Image.new("1", (30_000, 30_000)).save(path, format="PNG"),
    "box outside": lambda path: Image.new("RGB", (4, 4)).save(path),
}
GOOD_IMAGES: dict[str, Callable[[Path], object]] = {
    "grey": lambda path: TINY["picture"](1).convert("L").save(path),
    "CMYK": lambda path: TINY["picture"](1).convert("CMYK").save(path),
    "alpha": lambda path: TINY["picture"](1).convert("RGBA").save(path, format="PNG"),
    "palette": lambda path: TINY["picture"](1).convert("P").save(path, format="GIF"),
}


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize(
    ("place", "damage"),
    [(WAVE, name) for name in BAD_WAVES] + [(IMAGE, name) for name in BAD_IMAGES],
    ids=lambda value: value if isinstance(value, str) else value.suffix,
)
def test_damaged_item_is_named_and_can_be_left_out(
    root: Path, tmp_path: Path, place: Path, damage: str
) -> None:
    (BAD_WAVES if place is WAVE else BAD_IMAGES)[damage](root / place)
    with pytest.raises(DataError) as caught:
        _prepare(root, tmp_path / "cache")
    assert "1 damaged or missing items among 45 images and recordings" in caught.value.message
    assert place.name in caught.value.message
    assert "on_error=skip" in caught.value.remedy
    assert not (tmp_path / "cache" / "corpus.json").exists()
    corpus = _prepare(root, tmp_path / "cache", on_error="skip")
    assert [problem.kind for problem in corpus.manifest.problems] == [
        "damaged recording" if place is WAVE else "damaged image"
    ]
    lost_images, lost_waves = (0, 1) if place is WAVE else (1, 2)
    assert len(corpus.records("train")) == 9 - lost_images
    assert len(corpus.utterances("train")) == 18 - lost_waves
    assert _prepare(root, tmp_path / "cache", on_error="skip").was_ready
    assert all(len(corpus.mel[row]) for row in corpus.mel_rows("train"))
    assert all(corpus.images[row].size for row in corpus.image_rows("train"))


@pytest.mark.parametrize(
    ("place", "form"),
    [(WAVE, name) for name in GOOD_WAVES] + [(IMAGE, name) for name in GOOD_IMAGES],
    ids=lambda value: value if isinstance(value, str) else value.suffix,
)
def test_unusual_item_is_read(root: Path, tmp_path: Path, place: Path, form: str) -> None:
    (GOOD_WAVES if place is WAVE else GOOD_IMAGES)[form](root / place)
    corpus = _prepare(root, tmp_path / "cache")
    assert corpus.manifest.problems == ()
    assert np.isfinite(corpus.mel[corpus.mel.index(str(WAVE))]).all()


def test_all_damage_is_reported_together(root: Path, tmp_path: Path) -> None:
    waves = sorted((root / "CUB_200_2011" / "audio").rglob("*.wav"))
    for path in waves[:9]:
        path.write_bytes(b"")
    (root / IMAGE).write_bytes(b"")
    with pytest.raises(DataError) as caught:
        _prepare(root, tmp_path / "cache")
    assert "10 damaged or missing items" in caught.value.message
    assert "and 2 more" in caught.value.message
    corpus = _prepare(root, tmp_path / "cache", on_error="skip")
    assert len(read_manifest(tmp_path / "cache" / "manifest.jsonl").problems) == 10
    assert len(corpus.records("train")) == 8


def test_repaired_item_is_taken_up(root: Path, tmp_path: Path) -> None:
    content = (root / WAVE).read_bytes()
    (root / WAVE).write_bytes(b"")
    assert len(_prepare(root, tmp_path / "cache", on_error="skip").utterances("train")) == 17
    (root / WAVE).write_bytes(content)
    assert len(_prepare(root, tmp_path / "cache").utterances("train")) == 18


def test_caption_without_words_is_named_when_it_is_to_be_spoken(root: Path, tmp_path: Path) -> None:
    (root / "CUB_200_2011" / "text" / "001.Bird_1" / "Bird_1_0001.txt").write_text("one bird\ntwo\n?!\n")
    with pytest.raises(DataError, match=r"cannot be spoken: 001\.Bird_1/Bird_1_0001_2"):
        _prepare(root, tmp_path / "cache", speak="espeak", max_captions=3)
    corpus = _prepare(root, tmp_path / "cache", speak="espeak", max_captions=3, on_error="skip")
    assert len(corpus.utterances("train")) == 26


# ---- places that cannot be written ------------------------------------------------------------
def test_cache_folder_that_cannot_be_made_is_one_message(root: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(DataError, match=r"cannot be written"):
        _prepare(root, tmp_path / "file" / "cache")
    with pytest.raises(DataError, match=r"cannot be written"):
        _prepare(root, tmp_path / "file" / "cache", speak="espeak", max_captions=3)


_PREPARE = """
import resource, sys
from pathlib import Path
from speech2image.audio.features import make_front_end
from speech2image.data.cub import scan_cub
from speech2image.data.prepare import prepare_corpus
from speech2image.errors import DataError
from speech2image.images.read import read_image
if int(sys.argv[3]):
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[3]), int(sys.argv[3])))
print("begin", flush=True)
try:
    corpus = prepare_corpus(scan_cub(Path(sys.argv[1])), Path(sys.argv[2]), make_front_end("s2igan"), image_px=32,
                            speak="espeak", max_captions=3)
except DataError as error:
    print("DataError", error.message, "|", error.remedy, flush=True)
    raise SystemExit(2)
print("ready" if corpus.was_ready else "made", flush=True)
"""


def _start(root: Path, folder: Path, limit_bytes: int = 0) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", _PREPARE, str(root), str(folder), str(limit_bytes)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    )


@pytest.mark.parametrize("limit_bytes", [5_000, 30_000, 100_000])
def test_full_disk_is_one_message_and_the_next_call_goes_on(
    root: Path, tmp_path: Path, limit_bytes: int
) -> None:
    # A limit on file sizes fails inside write(2) as a full disk does, after part of the bytes.
    process = _start(root, tmp_path / "cache", limit_bytes)
    output, errors = process.communicate(timeout=120)
    assert process.returncode == 2, errors
    assert "DataError" in output
    assert "cannot be written" in output
    assert not (tmp_path / "cache" / "corpus.json").exists()
    _assert_same(_undisturbed(root, tmp_path), _finish(root, tmp_path / "cache"))


# ---- killed at any moment ---------------------------------------------------------------------
def _contents(folder: Path) -> dict[str, bytes]:
    names = (
        "mel/data.bin",
        "mel/keys.txt",
        "mel/store.json",
        "images/data.bin",
        "images/keys.txt",
        "images/store.json",
    )
    stores = {name: (folder / name).read_bytes() for name in names}
    waves = {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.glob("speech/**/*.wav"))
    }
    manifest = (folder / "manifest.jsonl").read_bytes()
    return {**stores, **waves, "manifest.jsonl": manifest}


def _finish(root: Path, folder: Path) -> dict[str, bytes]:
    _prepare(root, folder, speak="espeak", max_captions=3)
    assert _prepare(root, folder, speak="espeak", max_captions=3).was_ready
    return _contents(folder)


def _undisturbed(root: Path, tmp_path: Path) -> dict[str, bytes]:
    """Prepare once without harm under the same name, since the manifest holds absolute paths."""
    if (tmp_path / "cache").exists():
        shutil.move(tmp_path / "cache", tmp_path / "aside")
    contents = _finish(root, tmp_path / "cache")
    shutil.rmtree(tmp_path / "cache")
    if (tmp_path / "aside").exists():
        shutil.move(tmp_path / "aside", tmp_path / "cache")
    return contents


def _assert_same(expected: dict[str, bytes], found: dict[str, bytes]) -> None:
    assert expected.keys() == found.keys()
    for name, content in expected.items():
        assert content == found[name], name


@pytest.mark.slow
def test_killed_again_and_again_it_ends_with_the_same_bytes(tmp_path: Path) -> None:
    root = TINY["make_cub"](tmp_path / "cub", train=5, test=3, images=6)
    expected = _undisturbed(root, tmp_path)
    folder, kills, moments = tmp_path / "cache", 0, set()
    for number in range(12):
        process = _start(root, folder)
        assert process.stdout is not None
        assert process.stdout.readline() == "begin\n"
        time.sleep(0.03 + 0.05 * number)
        finished = process.poll() is not None
        process.send_signal(signal.SIGKILL)
        process.communicate(timeout=60)
        kills += not finished
        moments.add(tuple(sorted(path.name for path in folder.rglob("*.part"))) + (_speeches(folder),))
        if (folder / "corpus.json").exists():
            break
    assert kills >= 3, "too fast to be killed; make the corpus larger"
    assert len(moments) >= 3, "the kills did not fall on different moments"
    _assert_same(expected, _finish(root, folder))


def _speeches(folder: Path) -> int:
    return len(list(folder.glob("speech/**/*.wav")))


def test_killed_work_is_not_done_again(root: Path, tmp_path: Path) -> None:
    process = _start(root, tmp_path / "cache")
    assert process.stdout is not None
    process.stdout.readline()
    deadline = time.monotonic() + 60
    while _speeches(tmp_path / "cache") < 3 and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.002)
    process.kill()
    process.communicate()
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").glob("speech/**/*.wav")}
    assert before
    _finish(root, tmp_path / "cache")
    assert {path: path.stat().st_mtime_ns for path in before} == before


# ---- files of unknown making ------------------------------------------------------------------
@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.raw", b"\x00" * 4000), ("a.wav", b"RIFF\x00\x00\x00\x00WAVE" + b"LIST\x00\x00\x00\x00" * 5000),
        ("a.sf", b"\x64\xa3\x01\x00" * 400), ("a.wav", b"caff\x00\x01" + b"\xff" * 400),
    ],
)  # fmt: skip
def test_recording_of_unknown_making_is_one_message(tmp_path: Path, name: str, content: bytes) -> None:
    from speech2image.audio.read import read_wave

    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=name):
        read_wave(tmp_path / name, 16_000)


def test_postscript_is_not_given_to_a_program(tmp_path: Path) -> None:
    # Pillow hands such files to ghostscript, whatever they are called.
    (tmp_path / "a.jpg").write_bytes(
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n"
    )
    with pytest.raises(DataError, match=r"a\.jpg: the image cannot be decoded \(it is none of JPEG"):
        read_image(tmp_path / "a.jpg")


@pytest.mark.parametrize(
    "key", ["../../outside", "/etc/outside", "a/../../b", "a\nb", "a\x00b", "x" * 300, ""]
)
def test_name_that_leads_out_of_the_corpus_is_refused(root: Path, key: str) -> None:
    keys = pickle.loads((root / "train/filenames.pickle").read_bytes())
    (root / "train/filenames.pickle").write_bytes(pickle.dumps([key, *keys[1:]], protocol=2))
    with pytest.raises(DataError, match="entry 1"):
        scan_cub(root, on_error="skip")


def test_locked_recording_is_quarantined_and_taken_up_when_unlocked(root: Path, tmp_path: Path) -> None:
    """In a child without the rights of root, since root may read everything."""
    if os.geteuid() != 0:
        pytest.skip("only root can lock a file for another user")
    folder = Path(tempfile.mkdtemp(dir="/tmp"))
    try:
        shutil.copytree(root, folder / "cub")
        for path in [folder, *folder.rglob("*")]:
            path.chmod(0o777)
        counts = []
        for mode in (0o000, 0o644):
            (folder / "cub" / WAVE).chmod(mode)
            script = _LOCKED.format(root=str(folder / "cub"), cache=str(folder / "cache"))
            done = subprocess.run(
                [sys.executable, "-c", script], capture_output=True, text=True, check=False,
                env={**os.environ, "HOME": str(folder), "OMP_NUM_THREADS": "1"},
            )  # fmt: skip
            assert done.returncode == 0, done.stderr
            counts.append(done.stdout.split())
        assert counts == [["17", str(WAVE)], ["18"]]
    finally:
        shutil.rmtree(folder)


_LOCKED = """
import os
import pickle
from pathlib import Path
from speech2image.audio.features import make_front_end
from speech2image.data.cub import scan_cub
from speech2image.data.prepare import prepare_corpus
front_end = make_front_end("s2igan")
def prepare(cache):
    return prepare_corpus(scan_cub(Path("{root}"), "skip"), Path(cache), front_end, image_px=32, on_error="skip")
prepare("{cache}_of_root")  # what is imported late must be there before
os.setgid(65534)
os.setuid(65534)
corpus = prepare("{cache}")
print(len(corpus.utterances("train")), *(problem.path for problem in corpus.manifest.problems))
"""
