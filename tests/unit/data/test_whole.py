"""Files are whole or absent."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from speech2image.data.whole import write_whole
from speech2image.errors import DataError


@pytest.mark.parametrize("sync", [True, False])
def test_content_and_folder_are_made(tmp_path: Path, sync: bool) -> None:
    write_whole(tmp_path / "a" / "b.txt", b"one", sync)
    write_whole(tmp_path / "a" / "b.txt", b"two", sync)
    assert (tmp_path / "a" / "b.txt").read_bytes() == b"two"
    assert os.listdir(tmp_path / "a") == ["b.txt"]


def test_failure_keeps_the_old_file_and_leaves_nothing_beside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_whole(tmp_path / "b.txt", b"old")

    def full_disk(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(DataError, match=r"b\.txt: cannot be written: .*No space left"):
        write_whole(tmp_path / "b.txt", b"new")
    assert os.listdir(tmp_path) == ["b.txt"] and (tmp_path / "b.txt").read_bytes() == b"old"


def test_file_in_place_of_a_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"")
    with pytest.raises(DataError, match="cannot be written"):
        write_whole(tmp_path / "a" / "b.txt", b"x")
