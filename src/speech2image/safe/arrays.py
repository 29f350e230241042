"""Numpy's `.npy` and `.npz` files: no objects, and no more memory than the file has bytes.

`numpy.load(allow_pickle=False)` runs nothing, and still takes room for any shape that a header names, and
unfolds compressed archives.  Here the shape is compared with the bytes that are there first.
"""

from __future__ import annotations

import io
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from speech2image.safe import Damaged

MAX_FILE_BYTES = 8 * 1024**3
MAX_PARTS = 10_000


def read_npy(content: bytes) -> npt.NDArray[Any]:
    """Return the array of a `.npy` file.

    Args:    content: all of its bytes.
    Returns: an array that may not be written to.
    Raises:  Damaged: no such file, cut, or of objects.
    """
    file = io.BytesIO(content)
    try:
        major, _ = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_1_0 if major == 1 else np.lib.format.read_array_header_2_0
        shape, is_fortran, dtype = read(file)
    except Exception as problem:  # noqa: BLE001  numpy parses headers as Python: a TokenError is among what comes out
        raise Damaged(f"no array of numpy ({str(problem)[:100]!r})") from None
    if dtype.hasobject or dtype.kind not in "biufUS":
        raise Damaged(f"an array of {dtype}; numbers and texts are read only")
    count = 1
    for side in shape:
        count *= side
    if min(shape, default=0) < 0 or count * dtype.itemsize != len(content) - file.tell():
        raise Damaged(f"it says {shape} of {dtype} and holds {len(content) - file.tell():,} bytes")
    flat: npt.NDArray[Any] = np.frombuffer(content, dtype, offset=file.tell())
    return flat.reshape(shape, order="F" if is_fortran else "C")


def read_npz(source: Path | bytes) -> dict[str, npt.NDArray[Any]]:
    """Return the arrays of a file of `numpy.savez` by name.

    Args:    source: file, or its bytes.
    Raises:  Damaged: no such file, cut, compressed, or holding objects.  OSError: it cannot be read.
    """
    content = source if isinstance(source, bytes) else _bytes(source)
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            infos = archive.infolist()
            if len(infos) > MAX_PARTS or sum(info.file_size for info in infos) > len(content):
                raise Damaged(f"its archive unfolds into more than its own {len(content):,} bytes")
            if any(info.compress_type != zipfile.ZIP_STORED for info in infos):
                raise Damaged("its arrays are compressed; write them with numpy.savez")
            return {info.filename.removesuffix(".npy"): read_npy(archive.read(info)) for info in infos}
    except Damaged:
        raise
    except (zipfile.BadZipFile, EOFError, RuntimeError, NotImplementedError, ValueError) as problem:
        raise Damaged(f"no archive of arrays ({problem})") from None


def _bytes(path: Path) -> bytes:
    if path.stat().st_size > MAX_FILE_BYTES:
        raise Damaged(f"it is larger than {MAX_FILE_BYTES:,} bytes")
    return path.read_bytes()
