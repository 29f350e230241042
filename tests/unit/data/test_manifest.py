"""Manifests: damaged lines are named, whole files only."""

from __future__ import annotations

from pathlib import Path

import pytest

from speech2image.data.manifest import Manifest, Problem, read_manifest, write_manifest
from speech2image.errors import DataError
from speech2image.types import ImageRecord, Utterance


def _manifest(root: Path) -> Manifest:
    utterance = Utterance("a/b_0", "ein Vogel, grün\u2028", 0, "audio/b_0.wav", "7", None, {"wing": "red"})
    spoken = Utterance("a/b_1", "another", 1, "/elsewhere/b_1.wav")
    record = ImageRecord(
        "a/b", "images/b.jpg", "train", 0, "a", (1.0, 2.0, 3.5, 4.0), {}, (utterance, spoken)
    )
    bare = ImageRecord("c", "images/c.jpg", "val", 1, "c")
    return Manifest("birds", root, (record, bare), (Problem("missing image", "x.jpg", "gone"),), {"seed": 3})


def test_manifest_comes_back_equal(tmp_path: Path) -> None:
    write_manifest(tmp_path / "m.jsonl", _manifest(tmp_path))
    found = read_manifest(tmp_path / "m.jsonl")
    assert found == _manifest(tmp_path)
    assert found.digest() == _manifest(tmp_path).digest()
    assert [record.key for record in found.split("val")] == ["c"]


def test_paths_are_relative_to_the_root_or_absolute(tmp_path: Path) -> None:
    manifest = _manifest(tmp_path)
    first, second = manifest.records[0].utterances
    assert manifest.wave_path(first) == tmp_path / "audio" / "b_0.wav"
    assert manifest.wave_path(second) == Path("/elsewhere/b_1.wav")
    assert manifest.wave_path(Utterance("k", "c", 0)) is None


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda text: text[:-30], "line 3"),
        (lambda text: text.replace('"split": "val"', '"split": "validation"'), "line 3.*validation"),
        (lambda text: "\n".join(text.split("\n")[:2]) + "\n", "1 images, its first line says 2"),
        (lambda text: text.replace('"version": 1', '"version": 99'), "line 1.*version 1"),
        (lambda text: "", "line 1"),
        (lambda text: "{}\n", "line 1"),
        (lambda text: "[1, 2]\n", "line 1"),
        (lambda text: text.replace('"problems": [', '"problems": [3, '), "damaged manifest"),
    ],
)
def test_damage_is_one_message_with_its_line(tmp_path: Path, change: object, expected: str) -> None:
    path = tmp_path / "m.jsonl"
    write_manifest(path, _manifest(tmp_path))
    path.write_text(change(path.read_text(encoding="utf-8")), encoding="utf-8")  # type: ignore[operator]
    with pytest.raises(DataError, match=expected):
        read_manifest(path)


def test_missing_manifest_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"m\.jsonl.*cannot be read"):
        read_manifest(tmp_path / "m.jsonl")
