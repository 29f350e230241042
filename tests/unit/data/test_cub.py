"""The layout of CUB-200-2011: what is read, what is forgiven, what is refused."""

from __future__ import annotations

import json
import pickle
import runpy
import shutil
from pathlib import Path

import pytest

from speech2image.data.cub import scan_cub
from speech2image.data.manifest import Manifest
from speech2image.errors import ConfigError, DataError

make_cub = runpy.run_path(str(Path(__file__).parents[2] / "tiny_corpora.py"))["make_cub"]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return make_cub(tmp_path / "cub")


def _first_text(root: Path) -> Path:
    return root / "CUB_200_2011" / "text" / "001.Bird_1" / "Bird_1_0000.txt"


def _first_image(root: Path) -> Path:
    return root / "CUB_200_2011" / "images" / "001.Bird_1" / "Bird_1_0000.jpg"


def _captions(manifest: Manifest) -> list[str]:
    return [utterance.caption for utterance in manifest.records[0].utterances]


def test_everything_of_the_layout_is_read(root: Path) -> None:
    manifest = scan_cub(root)
    assert [record.split for record in manifest.records] == ["train"] * 9 + ["test"] * 6
    first = manifest.records[0]
    assert first.key == "001.Bird_1/Bird_1_0000"
    assert manifest.image_path(first).is_file()
    assert (first.class_id, first.class_name, first.box) == (0, "Bird_1", (20.0, 15.5, 40.2, 30.9))
    assert [utterance.key for utterance in first.utterances] == [f"{first.key}_{index}" for index in range(3)]
    assert [utterance.wave is None for utterance in first.utterances] == [False, False, True]
    assert all(manifest.wave_path(one).is_file() for one in first.utterances[:2])
    assert sorted({record.class_id for record in manifest.records}) == [0, 1, 2, 3, 4]
    assert manifest.problems == ()


@pytest.mark.parametrize("where", ["..", "CUB_200_2011", "train", "CUB_200_2011/images"])
def test_root_one_level_too_high_or_too_deep_is_found(root: Path, where: str) -> None:
    assert scan_cub(root / where).root == root


def test_symbolic_link_as_root_works(root: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(root)
    assert len(scan_cub(tmp_path / "link").records) == 15


def test_wrong_root_says_what_is_missing_and_what_was_found(tmp_path: Path) -> None:
    (tmp_path / "a" / "holiday").mkdir(parents=True)
    with pytest.raises(DataError) as caught:
        scan_cub(tmp_path / "a")
    message = str(caught.value)
    for part in (
        "CUB_200_2011/images",
        "train/filenames.pickle",
        "holiday",
        "bounding_boxes.txt",
        "data.root=",
    ):
        assert part in message


def test_absent_and_empty_root_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no readable folder"):
        scan_cub(tmp_path / "nowhere")
    (tmp_path / "deep" / "empty").mkdir(parents=True)
    with pytest.raises(DataError, match="nothing at all"):
        scan_cub(tmp_path / "deep" / "empty")


@pytest.mark.parametrize("name", ["train/filenames.pickle", "test/filenames.pickle"])
def test_missing_split_list_is_named(root: Path, name: str) -> None:
    (root / name).unlink()
    with pytest.raises(DataError, match=name):
        scan_cub(root)


@pytest.mark.parametrize("name", ["train/class_info.pickle", "CUB_200_2011/bounding_boxes.txt"])
def test_missing_list_is_named_even_when_skipping(root: Path, name: str) -> None:
    (root / name).unlink()
    with pytest.raises(DataError, match=Path(name).name):
        scan_cub(root, on_error="skip")


def test_missing_items_are_counted_and_named(root: Path) -> None:
    _first_image(root).unlink()
    texts = sorted((root / "CUB_200_2011" / "text").rglob("*.txt"))
    texts[3].unlink()
    texts[4].write_text("\n \n")
    with pytest.raises(DataError) as caught:
        scan_cub(root)
    assert "3 damaged or missing items among 15 images" in caught.value.message
    assert "missing image: CUB_200_2011/images/001.Bird_1/Bird_1_0000.jpg" in caught.value.message
    assert "on_error=skip" in caught.value.remedy
    manifest = scan_cub(root, on_error="skip")
    assert len(manifest.records) == 12
    assert {problem.kind for problem in manifest.problems} == {
        "missing image",
        "missing captions",
        "empty captions",
    }


def test_nothing_left_is_an_error_even_when_skipping(root: Path) -> None:
    shutil.rmtree(root / "CUB_200_2011" / "images")
    (root / "CUB_200_2011" / "images").mkdir()
    with pytest.raises(DataError, match="no usable image is left"):
        scan_cub(root, on_error="skip")


@pytest.mark.parametrize(
    "content",
    [
        b"\xef\xbb\xbfthis bird is red.\r\na caf\xc3\xa9 bird.\r\n",
        b"this bird is red.\na caf\xe9 bird.",
        b"this bird is red.\ra caf\xe9 bird.\r",
        "this bird is red.\na café bird.\n\n".encode(),
    ],
    ids=["mark and CRLF", "Windows-1252", "old Macintosh", "UTF-8"],
)
def test_captions_of_every_making_read_the_same(root: Path, content: bytes) -> None:
    _first_text(root).write_bytes(content)
    assert _captions(scan_cub(root)) == ["this bird is red.", "a café bird."]


def test_caption_with_odd_separators_stays_one_line(root: Path) -> None:
    _first_text(root).write_text("one\u2028two\x85three\x0cfour\nnext\n", encoding="utf-8")
    assert _captions(scan_cub(root)) == ["one\u2028two\x85three\x0cfour", "next"]


def test_blank_line_does_not_shift_captions_against_their_recordings(root: Path) -> None:
    _first_text(root).write_text("\nsecond line\nthird line\n")
    first = scan_cub(root).records[0]
    assert [(one.caption_index, one.caption, one.wave is None) for one in first.utterances] == [
        (1, "second line", False),
        (2, "third line", True),
    ]


def test_val_classes_are_whole_training_classes(root: Path) -> None:
    records = scan_cub(root, val_classes=1).records
    assert [record.split for record in records] == ["train"] * 6 + ["val"] * 3 + ["test"] * 6
    classes = {
        split: {one.class_id for one in records if one.split == split} for split in ("train", "val", "test")
    }
    assert classes == {"train": {0, 1}, "val": {2}, "test": {3, 4}}
    assert [record.class_id for record in records] == [record.class_id for record in scan_cub(root).records]


@pytest.mark.parametrize("number", [3, 50, -1])
def test_too_many_val_classes_are_refused(root: Path, number: int) -> None:
    with pytest.raises(DataError, match="3 training classes"):
        scan_cub(root, val_classes=number)


def test_unknown_way_to_treat_errors_is_refused(root: Path) -> None:
    with pytest.raises(ConfigError, match="ignore"):
        scan_cub(root, on_error="ignore")


def test_attributes_and_voices_beside_the_layout_are_read(root: Path) -> None:
    key = "001.Bird_1/Bird_1_0000"
    line = {"key": key, "attributes": {"wing": "red"}, "spoken": [{"wing": "red"}, {}, {"wing": "red"}]}
    (root / "attributes.jsonl").write_text(json.dumps(line) + "\n")
    voice = {"wav": f"{key}_1.wav", "speaker": "7", "engine": "espeak-ng"}
    (root / "audio_index.jsonl").write_text(json.dumps(voice) + "\n")
    first = scan_cub(root).records[0]
    assert first.attributes == {"wing": "red"}
    assert [one.attributes for one in first.utterances] == [{"wing": "red"}, {}, {"wing": "red"}]
    assert [one.speaker for one in first.utterances] == [None, "7", None]


def test_listed_recording_that_is_missing_is_named(root: Path) -> None:
    (root / "audio_index.jsonl").write_text('{"wav": "001.Bird_1/Bird_1_0000_2.wav"}\n')
    with pytest.raises(DataError, match=r"missing wav: CUB_200_2011/audio/001\.Bird_1/Bird_1_0000_2\.wav"):
        scan_cub(root)
    assert len(scan_cub(root, on_error="skip").records) == 15


def test_damaged_index_line_is_numbered(root: Path) -> None:
    (root / "attributes.jsonl").write_text('{"key": "x"}\n{"key": \n')
    with pytest.raises(DataError, match=r"attributes\.jsonl line 2"):
        scan_cub(root)


def test_bad_box_line_is_named(root: Path) -> None:
    path = root / "CUB_200_2011" / "bounding_boxes.txt"
    path.write_text(path.read_text().replace("1 20.0 15.5 40.2 30.9", "1 20.0 wide 40.2 30.9", 1))
    with pytest.raises(DataError, match=r"bounding_boxes\.txt line 1: found '1 20\.0 wide"):
        scan_cub(root)
    assert len(scan_cub(root, on_error="skip").records) == 14


def test_bad_image_list_is_one_message(root: Path) -> None:
    (root / "CUB_200_2011" / "images.txt").write_text("1\n")
    with pytest.raises(DataError, match=r"images\.txt: expected a number and a name"):
        scan_cub(root)


def test_lists_of_unequal_length_are_refused(root: Path) -> None:
    (root / "train" / "class_info.pickle").write_bytes(pickle.dumps([1, 2], protocol=2))
    with pytest.raises(DataError, match="same length"):
        scan_cub(root)
