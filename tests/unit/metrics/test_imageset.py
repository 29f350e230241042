"""Only the images that `generate` listed are scored; anything else is named and refused."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from speech2image.errors import DataError, ProtocolError
from speech2image.images.grid import write_png
from speech2image.metrics.imageset import ImageSet, common_size, read_generated


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    lines = []
    for index in range(4):
        write_png(tmp_path / f"bird_{index}.png", rng.integers(0, 255, (16, 16, 3), dtype=np.uint8))
        lines.append(
            json.dumps({"file": f"bird_{index}.png", "utterance": f"u{index}", "class_id": index % 2})
        )
    (tmp_path / "manifest.jsonl").write_text("\n".join(lines) + "\n")
    write_png(tmp_path / "contact_sheet.png", np.zeros((8, 8, 3), np.uint8))
    return tmp_path


def test_manifest_and_files_are_read_in_order(folder: Path) -> None:
    found = read_generated(folder, known_utterances={f"u{i}" for i in range(9)})
    assert [file.name for file in found.files] == [f"bird_{i}.png" for i in range(4)]
    assert found.column("class_id") == [0, 1, 0, 1]
    assert found.column("speaker") == [None] * 4
    assert common_size(found.files) == 16


def test_image_without_utterance_is_refused(folder: Path) -> None:
    write_png(folder / "stray.png", np.zeros((16, 16, 3), np.uint8))
    with pytest.raises(DataError, match=r"1 file\(s\).*match no utterance.*stray\.png"):
        read_generated(folder)


def test_unknown_utterance_is_refused(folder: Path) -> None:
    with pytest.raises(DataError, match=r"3 file\(s\).*corpus does not have: bird_1\.png \(u1\)"):
        read_generated(folder, known_utterances={"u0"})


def test_missing_and_false_images_are_refused(folder: Path) -> None:
    (folder / "bird_2.png").write_text("this is text")
    with pytest.raises(DataError, match=r"are not images: .*bird_2\.png"):
        read_generated(folder)
    content = (folder / "bird_1.png").read_bytes()
    (folder / "bird_2.png").write_bytes(content[: len(content) // 2])
    with pytest.raises(DataError, match=r"are not images: .*bird_2\.png"):
        read_generated(folder)
    (folder / "bird_2.png").unlink()
    with pytest.raises(DataError, match=r"listed in the manifest but missing: .*bird_2\.png"):
        read_generated(folder)


def test_an_image_takes_no_memory_for_bytes_that_are_not_there(folder: Path) -> None:
    content = (folder / "bird_1.png").read_bytes()
    place = content.index(b"IDAT") - 4
    (folder / "bird_1.png").write_bytes(
        content[:place] + (2**31 - 1).to_bytes(4, "big") + content[place + 4 :]
    )
    tracemalloc.start()
    try:
        read_generated(folder)
    except DataError:
        pass
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < 8_000_000, f"{peak:,} bytes"


def test_damaged_or_missing_manifest_is_refused(folder: Path) -> None:
    manifest = folder / "manifest.jsonl"
    text = manifest.read_text()
    manifest.write_text(text + text.splitlines()[0] + "\n")
    with pytest.raises(DataError, match="are listed twice"):
        read_generated(folder)
    manifest.write_text(text + '{"file": "bi')
    with pytest.raises(DataError, match="line 5 of"):
        read_generated(folder)
    manifest.write_text("")
    with pytest.raises(DataError, match="lists no image"):
        read_generated(folder)
    manifest.unlink()
    with pytest.raises(DataError, match="generate run="):
        read_generated(folder)


def test_images_reach_one_size_by_short_side_and_centre(folder: Path) -> None:
    wide = np.zeros((20, 40, 3), np.uint8)
    wide[:, 8:32] = 200
    images = ImageSet([wide, np.zeros((10, 10, 3), np.uint8)], 10)
    assert images.array().shape == (2, 3, 10, 10)
    assert images[0].min() >= 190
    same = ImageSet([folder / "bird_0.png"], 16)[0]
    assert same.shape == (3, 16, 16)


def test_mixed_sizes_are_counted(folder: Path) -> None:
    with pytest.raises(ProtocolError, match="1 of 8x8, 2 of 16x16"):
        common_size([folder / "contact_sheet.png", folder / "bird_0.png", folder / "bird_1.png"])
    with pytest.raises(ProtocolError, match="1 of 8x9"):
        common_size([np.zeros((8, 9, 3), np.uint8)])
