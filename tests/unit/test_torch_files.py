"""Files of `torch.save` that say they are longer than they are: refused before any memory is taken."""

from __future__ import annotations

import io
import tracemalloc
from pathlib import Path

import pytest
import torch

from speech2image.safe import Damaged
from speech2image.safe.torch_files import read_torch_file

_GIGABYTES = (2**31).to_bytes(8, "little")


@pytest.mark.parametrize(
    "lie",
    [b"\x96" + _GIGABYTES, b"\x8e" + _GIGABYTES, b"\x8d" + _GIGABYTES, b"X" + _GIGABYTES[:4], b"\x95" + _GIGABYTES],
    ids=["bytearray", "bytes", "long text", "text", "frame"],
)  # fmt: skip
def test_an_old_file_takes_no_memory_for_bytes_that_are_not_there(lie: bytes, tmp_path: Path) -> None:
    held = io.BytesIO()
    torch.save({"a": torch.ones(3)}, held, _use_new_zipfile_serialization=False)
    path, valid = tmp_path / "old.pth", held.getvalue()
    path.write_bytes(valid)
    assert read_torch_file(path)["a"].tolist() == [1.0, 1.0, 1.0]
    place = valid.index(b"X\x01\x00\x00\x00a")
    path.write_bytes(valid[:place] + lie + valid[place:])
    tracemalloc.start()
    try:
        with pytest.raises(Damaged):
            read_torch_file(path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 8_000_000, f"{peak:,} bytes"


def test_long_texts_are_read_in_pieces_and_whole(tmp_path: Path) -> None:
    content = {"text": "é" * 1_700_000, "raw": bytes(range(256)) * 10_000}
    torch.save(content, tmp_path / "old.pth", _use_new_zipfile_serialization=False, pickle_protocol=4)
    assert read_torch_file(tmp_path / "old.pth") == content
