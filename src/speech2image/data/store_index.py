"""The index of a store: where each item lies, its shape and its checksum, written whole and read with suspicion.

The file is what `numpy.savez` writes.  It is not read by `numpy.load`, which believes sizes that a few
damaged bytes claim, but by `safe/arrays.py`.  The items themselves are in `store.py`.
"""

from __future__ import annotations

import hashlib
import io
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from speech2image.safe.arrays import read_npz

__all__ = ["MAX_NDIM", "Index", "checksums", "read_index_bytes", "seal_of"]

MAX_NDIM = 3
MAX_INDEX_BYTES = 4_000_000_000
"""Largest index: 100 million items."""


@dataclass(frozen=True)
class Index:
    """Where the items of a store lie.

    Attributes:
        offsets: `(N + 1,)` int64, first element of each item and the end of the last.
        shapes: `(N, R)` int64.
        crcs: `(N,)` uint32, CRC-32 of the bytes of each item; None: a store of an earlier version.
    """

    offsets: npt.NDArray[np.int64]
    shapes: npt.NDArray[np.int64]
    crcs: npt.NDArray[np.uint32] | None

    def to_bytes(self) -> bytes:
        """Return the file of this index."""
        content = io.BytesIO()
        crcs = {} if self.crcs is None else {"crcs": self.crcs}
        np.savez(content, offsets=self.offsets, shapes=self.shapes, **crcs)  # type: ignore[arg-type]
        return content.getvalue()


def read_index_bytes(raw: bytes, count: int) -> Index:
    """Read the index of a store of `count` items.

    Raises:  ValueError: it is damaged, does not describe `count` items, or items do not follow one another.
    """
    arrays = read_npz(raw)
    if not {"offsets", "shapes"} <= arrays.keys() <= {"offsets", "shapes", "crcs"}:
        raise ValueError("other arrays than expected")
    if any(array.dtype.str != ("<u4" if name == "crcs" else "<i8") for name, array in arrays.items()):
        raise ValueError("arrays of other types than expected")
    offsets, shapes, crcs = arrays["offsets"], arrays["shapes"], arrays.get("crcs")
    fits = offsets.shape == (count + 1,) and shapes.ndim == 2 and len(shapes) == count
    if not fits or shapes.shape[1] > MAX_NDIM or (crcs is not None and crcs.shape != (count,)):
        raise ValueError(f"it does not describe {count} items")
    # Products in floating point cannot wrap around; beyond 2^53 they only need to differ.
    sizes = shapes.astype(np.float64).prod(axis=1) if count else np.zeros(0)
    if (shapes < 0).any() or offsets[0] != 0 or (np.diff(offsets) != sizes).any():
        raise ValueError("its items do not follow one another")
    return Index(offsets, shapes, crcs)


def checksums(path: Path, sizes_bytes: npt.NDArray[np.int64]) -> tuple[str, npt.NDArray[np.uint32]]:
    """Return the SHA-256 of a file and the CRC-32 of each of the items that lie in it one after the other.

    Raises:  OSError: it cannot be read.
    """
    digest, crcs = hashlib.sha256(), np.zeros(len(sizes_bytes), np.uint32)
    with open(path, "rb", buffering=1 << 20) as file:
        for row, size in enumerate(sizes_bytes.tolist()):
            content = file.read(size)
            digest.update(content)
            crcs[row] = zlib.crc32(content)
    return digest.hexdigest(), crcs


def seal_of(record: dict[str, Any], *contents: bytes) -> str:
    """Return 32 hex digits over what a small file says, apart from its seal, and over the files it stands for."""
    said = {key: record[key] for key in sorted(record) if key != "seal"}
    digest = hashlib.sha256(repr(said).encode("utf-8", "surrogatepass"))
    for content in contents:
        digest.update(hashlib.sha256(content).digest())
    return digest.hexdigest()[:32]
