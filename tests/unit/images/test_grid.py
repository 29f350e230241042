"""Contact sheets and PNG files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from speech2image.errors import DataError
from speech2image.images.grid import contact_sheet, to_uint8, write_png
from speech2image.images.read import read_image


def test_to_uint8_rounds_and_clamps() -> None:
    values = torch.tensor([-1.5, -1.0, 0.0, 0.499 / 127.5, 0.501 / 127.5, 1.0, 2.0])
    images = values.view(1, 1, 1, 7).expand(1, 3, 1, 7)
    assert to_uint8(images)[0, 0, :, 0].tolist() == [0, 0, 128, 128, 128, 255, 255]


def test_to_uint8_inverts_the_scaling_of_every_grey_level() -> None:
    grey = torch.arange(256).view(1, 1, 16, 16).expand(1, 3, 16, 16)
    assert np.array_equal(to_uint8(grey / 127.5 - 1), grey.permute(0, 2, 3, 1).numpy())


def test_contact_sheet_shows_every_image_unchanged_in_reading_order() -> None:
    images = [np.full((10, 12, 3), 30 * number, np.uint8) for number in range(5)]
    sheet = contact_sheet(images, columns=3)
    assert sheet.shape == (2 * 12 + 2, 3 * 14 + 2, 3)
    for number in range(5):
        top, left = 2 + (number // 3) * 12, 2 + (number % 3) * 14
        assert np.array_equal(sheet[top : top + 10, left : left + 12], images[number])
    assert (sheet[14:24, 30:42] == 255).all()


def test_contact_sheet_writes_labels_and_scales_cells() -> None:
    images = [np.zeros((8, 8, 3), np.uint8)] * 2
    bare = contact_sheet(images, columns=2, cell_px=32)
    labelled = contact_sheet(images, columns=2, labels=["red", "blue"], cell_px=32)
    assert labelled.shape[0] > bare.shape[0]
    assert (labelled[34:48] < 128).any()


def test_write_png_is_whole_or_absent(tmp_path: Path) -> None:
    image = np.random.default_rng(0).integers(0, 255, (9, 7, 3), dtype=np.uint8)
    write_png(tmp_path / "deep" / "a.png", image)
    assert np.array_equal(read_image(tmp_path / "deep" / "a.png"), image)
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(DataError, match="cannot be written"):
        write_png(tmp_path / "file" / "b.png", image)
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["a.png"]
