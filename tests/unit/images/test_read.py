"""Reading images: every mode becomes RGB, every damage one message that names the file."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from speech2image.errors import DataError
from speech2image.images.read import read_image


def _gradient() -> np.ndarray:
    rows, columns = np.mgrid[0:24, 0:32]
    return np.stack([rows * 8, columns * 6, 255 - rows * 5], axis=-1).astype(np.uint8)


def test_rgb_png_is_read_exactly(tmp_path: Path) -> None:
    Image.fromarray(_gradient()).save(tmp_path / "a.png")
    assert np.array_equal(read_image(tmp_path / "a.png"), _gradient())


def test_grey_becomes_three_equal_channels(tmp_path: Path) -> None:
    Image.fromarray(_gradient()[..., 0]).save(tmp_path / "a.png")
    found = read_image(tmp_path / "a.png")
    assert found.shape == (24, 32, 3)
    assert all(np.array_equal(found[..., channel], _gradient()[..., 0]) for channel in range(3))


def test_sixteen_bit_grey_keeps_its_upper_bits(tmp_path: Path) -> None:
    values = (_gradient()[..., 1].astype(np.uint16)) * 256 + 17
    Image.fromarray(values).save(tmp_path / "a.png")
    difference = read_image(tmp_path / "a.png")[..., 0].astype(int) - _gradient()[..., 1]
    assert np.abs(difference).max() <= 1


def test_cmyk_becomes_rgb_of_the_same_colour(tmp_path: Path) -> None:
    Image.new("CMYK", (16, 16), (0, 255, 255, 0)).save(tmp_path / "a.jpg", quality=95)
    red, green, blue = read_image(tmp_path / "a.jpg")[8, 8].astype(int)
    assert red > 230
    assert green < 25
    assert blue < 25


def test_transparency_is_laid_over_white(tmp_path: Path) -> None:
    layer = np.zeros((10, 10, 4), np.uint8)
    layer[:5] = (0, 0, 200, 255)
    layer[5:] = (0, 0, 200, 0)
    Image.fromarray(layer).save(tmp_path / "a.png")
    found = read_image(tmp_path / "a.png")
    assert found[2, 2].tolist() == [0, 0, 200]
    assert found[7, 7].tolist() == [255, 255, 255]


def test_palette_with_transparent_entry_is_laid_over_white(tmp_path: Path) -> None:
    image = Image.new("P", (8, 8), 1)
    image.putpalette([255, 0, 0, 0, 255, 0])
    image.paste(0, (0, 0, 4, 8))
    image.save(tmp_path / "a.png", transparency=1)
    found = read_image(tmp_path / "a.png")
    assert found[4, 1].tolist() == [255, 0, 0]
    assert found[4, 6].tolist() == [255, 255, 255]


def test_exif_orientation_is_applied(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(_gradient()).save(tmp_path / "a.jpg", exif=exif)
    assert read_image(tmp_path / "a.jpg").shape == (32, 24, 3)


def _png_header(width: int, height: int) -> bytes:
    def chunk(kind: bytes, content: bytes) -> bytes:
        body = kind + content
        return struct.pack(">I", len(content)) + body + struct.pack(">I", zlib.crc32(body))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"\0" * 1000)) + chunk(b"IEND", b"")


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("side", [9_000, 11_000, 60_000])
def test_decompression_bomb_is_refused_before_it_is_decoded(tmp_path: Path, side: int) -> None:
    (tmp_path / "bomb.png").write_bytes(_png_header(side, side))
    with pytest.raises(DataError, match=r"bomb\.png.*(decompression bomb)"):
        read_image(tmp_path / "bomb.png")


def test_truncated_jpeg_is_refused(tmp_path: Path) -> None:
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (200, 200, 3), dtype=np.uint8)).save(
        tmp_path / "a.jpg"
    )
    content = (tmp_path / "a.jpg").read_bytes()
    (tmp_path / "cut.jpg").write_bytes(content[: len(content) // 2])
    with pytest.raises(DataError, match=r"cut\.jpg.*cannot be decoded"):
        read_image(tmp_path / "cut.jpg")


@pytest.mark.parametrize("content", [b"", b"not an image at all", b"GIF89a", b"\x89PNG\r\n\x1a\n\0\0"])
def test_what_is_no_image_is_refused_by_name(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "odd.jpg").write_bytes(content)
    with pytest.raises(DataError, match=r"odd\.jpg"):
        read_image(tmp_path / "odd.jpg")


def test_missing_image_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"gone\.jpg.*no such"):
        read_image(tmp_path / "gone.jpg")


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_random_damage_never_escapes_as_another_error(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    for suffix in ("jpg", "png", "gif", "bmp", "tif", "webp"):
        Image.fromarray(_gradient()).save(tmp_path / f"a.{suffix}")
        content = bytearray((tmp_path / f"a.{suffix}").read_bytes())
        for _ in range(40):
            damaged = bytearray(content)
            for place in rng.integers(0, len(content), 4):
                damaged[place] = rng.integers(256)
            (tmp_path / "b").write_bytes(damaged[: rng.integers(1, len(content) + 1)])
            try:
                assert read_image(tmp_path / "b").shape[2] == 3
            except DataError as error:
                assert str(tmp_path / "b") in error.message
