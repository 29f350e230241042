"""The layout of Flickr8k with its audio captions."""

from __future__ import annotations

import runpy
import shutil
from pathlib import Path

import pytest

from speech2image.data.flickr8k import scan_flickr8k
from speech2image.errors import DataError

make_flickr8k = runpy.run_path(str(Path(__file__).parents[2] / "tiny_corpora.py"))["make_flickr8k"]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return make_flickr8k(tmp_path / "flickr")


def test_everything_of_the_layout_is_read(root: Path) -> None:
    manifest = scan_flickr8k(root)
    assert [record.split for record in manifest.records] == ["train"] * 3 + ["val", "test"]
    assert [record.class_id for record in manifest.records] == [0, 1, 2, 3, 4]
    second = manifest.records[1]
    assert second.key == "101_abc1"
    assert second.box is None
    assert [one.caption for one in second.utterances][1] == "A dog number 1 , caption 1 ."
    assert [one.caption_index for one in second.utterances if one.wave] == [1]
    assert second.utterances[1].speaker == "1"
    assert manifest.wave_path(second.utterances[1]).is_file()


def test_recordings_are_found_by_name_without_their_list(root: Path) -> None:
    listed = scan_flickr8k(root)
    (root / "flickr_audio" / "wav2capt.txt").unlink()
    assert scan_flickr8k(root).records == listed.records


def test_list_of_recordings_decides_where_both_exist(root: Path) -> None:
    path = root / "flickr_audio" / "wav2capt.txt"
    path.write_text(
        path.read_text().replace("100_abc0_1.wav 100_abc0.jpg #1", "100_abc0_1.wav 100_abc0.jpg #3")
    )
    assert [one.wave is not None for one in scan_flickr8k(root).records[0].utterances] == [False] * 3 + [
        True,
        False,
    ]


def test_corpus_without_any_recording_is_read(root: Path) -> None:
    shutil.rmtree(root / "flickr_audio")
    manifest = scan_flickr8k(root)
    assert len(manifest.records) == 5
    assert all(one.wave is None for record in manifest.records for one in record.utterances)


def test_missing_recordings_are_counted_and_may_be_skipped(root: Path) -> None:
    shutil.rmtree(root / "flickr_audio" / "wavs")
    with pytest.raises(
        DataError, match=r"5 damaged or missing.*\n.*missing wav: flickr_audio/wavs/100_abc0_1\.wav"
    ):
        scan_flickr8k(root)
    manifest = scan_flickr8k(root, on_error="skip")
    assert len(manifest.records) == 5
    assert len(manifest.problems) == 5


def test_missing_image_and_captions_are_named(root: Path) -> None:
    (root / "Flicker8k_Dataset" / "100_abc0.jpg").unlink()
    tokens = root / "Flickr8k_text" / "Flickr8k.token.txt"
    kept = [line for line in tokens.read_text().splitlines() if not line.startswith("101_")]
    tokens.write_text("\n".join([*kept, "a line without a tab"]))
    with pytest.raises(DataError) as caught:
        scan_flickr8k(root)
    for part in (
        "missing image: Flicker8k_Dataset/100_abc0.jpg",
        "missing captions: 101_abc1.jpg",
        "line 21",
    ):
        assert part in caught.value.message
    assert [record.key for record in scan_flickr8k(root, on_error="skip").records] == [
        "102_abc2", "103_abc3", "104_abc4",
    ]  # fmt: skip


@pytest.mark.parametrize("name", ["trainImages", "devImages", "testImages"])
def test_missing_split_list_is_named(root: Path, name: str) -> None:
    (root / "Flickr8k_text" / f"Flickr_8k.{name}.txt").unlink()
    with pytest.raises(DataError, match=name):
        scan_flickr8k(root)


def test_lists_with_marks_and_windows_line_ends_are_read(root: Path) -> None:
    before = scan_flickr8k(root).records
    for path in [*(root / "Flickr8k_text").iterdir(), root / "flickr_audio" / "wav2capt.txt"]:
        path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n"))
    assert scan_flickr8k(root).records == before


@pytest.mark.parametrize("where", ["..", "Flickr8k_text", "flickr_audio/wavs"])
def test_root_one_level_too_high_or_too_deep_is_found(root: Path, where: str) -> None:
    assert scan_flickr8k(root / where).root == root


def test_correctly_spelled_image_folder_is_accepted(root: Path) -> None:
    (root / "Flicker8k_Dataset").rename(root / "Flickr8k_Dataset")
    assert len(scan_flickr8k(root).records) == 5


def test_wrong_root_is_explained(tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    with pytest.raises(DataError, match=r"no Flickr8k folder.*Flickr8k\.token\.txt"):
        scan_flickr8k(tmp_path / "a")
