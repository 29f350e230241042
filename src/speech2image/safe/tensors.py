"""Safetensors files: the header is checked whole before a byte of a tensor is read or room for it is taken.

The library checks much of this itself, and not all: here are also limits on the header, on the number of
tensors and on their sizes, and nothing may overlap, be left out or stand in the header twice.  What the names
should be is compared by `hub/weights.py` and `weight_files.py`.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from speech2image.safe import Damaged

MAX_HEADER_BYTES = 64 * 1024**2
MAX_TENSORS = 100_000
MAX_FILE_BYTES = 64 * 1024**3
MAX_DIMS = 16
MAX_NAME = 1_000

#: Element type in a header: bytes of an element.
ITEM_BYTES = {
    "BOOL": 1, "U8": 1, "I8": 1, "I16": 2, "U16": 2, "F16": 2, "BF16": 2, "I32": 4, "U32": 4, "F32": 4,
    "F64": 8, "I64": 8, "U64": 8,
}  # fmt: skip


@dataclass(frozen=True)
class Entry:
    """What a header says of one tensor."""

    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Header:
    """A checked header: every tensor lies in the file, whole and for itself."""

    tensors: dict[str, Entry]
    metadata: dict[str, str]


def read_header(path: Path) -> Header:
    """Read and check the header of a safetensors file.

    Raises:  OSError: it cannot be read.  Damaged: it is damaged, or beyond a limit; says why.
    """
    size = os.stat(path).st_size
    with open(path, "rb") as file:
        return parse_header(file.read(8), size, lambda count: file.read(count))


def header_of(content: bytes) -> Header:
    """Check the header of a safetensors file in memory; errors as in `read_header`."""
    return parse_header(content[:8], len(content), lambda count: content[8 : 8 + count])


def parse_header(first: bytes, size: int, read: Any) -> Header:
    """Check a header.

    Args:
        first: the first eight bytes.
        size: bytes of the file.
        read: takes a count, returns the bytes that follow.

    Raises:  Damaged: says what is wrong.
    """
    length = int.from_bytes(first, "little")
    if len(first) < 8 or length > size - 8:
        raise Damaged(f"its header says {length:,} bytes, the file has {size:,}")
    if length > MAX_HEADER_BYTES or size > MAX_FILE_BYTES:
        raise Damaged(f"header of {length:,} bytes in {size:,}, more than is read here")
    text = read(length)
    if text.count(b"{") + text.count(b"[") > 4 * MAX_TENSORS:
        raise Damaged(f"its header describes more than {MAX_TENSORS:,} tensors")
    try:
        content = json.loads(text, object_pairs_hook=_unique)
    except RecursionError:
        raise Damaged("its header is nested too deeply") from None
    if not isinstance(content, dict):
        raise Damaged("its header is no JSON object")
    metadata = content.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(text, str) for text in metadata.values()):
        raise Damaged("its metadata are not texts")
    if len(content) > MAX_TENSORS:
        raise Damaged(f"it says {len(content):,} tensors, more than {MAX_TENSORS:,}")
    tensors, places = {}, []
    for name, entry in content.items():
        tensors[name], start, end = _entry(name, entry)
        places.append((start, end))
    _check_places(places, size - 8 - length)
    return Header(tensors, metadata)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise Damaged("its header has a name twice")
    return found


def _entry(name: str, entry: Any) -> tuple[Entry, int, int]:
    shown = name[:80]
    if len(name) > MAX_NAME:
        raise Damaged(f"a name of {len(name):,} letters")
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise Damaged(f"tensor {shown} is not described by dtype, shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in ITEM_BYTES:
        raise Damaged(f"tensor {shown} is of type {str(dtype)[:20]!r}; known: {', '.join(ITEM_BYTES)}")
    if not _are_counts(shape) or len(shape) > MAX_DIMS:
        raise Damaged(f"tensor {shown} has shape {str(shape)[:80]}")
    if not _are_counts(offsets) or len(offsets) != 2:
        raise Damaged(f"tensor {shown} lies at {str(offsets)[:80]}")
    count = ITEM_BYTES[dtype]
    for side in shape:
        count *= side
        if count > MAX_FILE_BYTES and 0 not in shape:
            raise Damaged(f"tensor {shown} has shape {str(shape)[:80]}, more than is read here")
    start, end = offsets
    if count != end - start:
        raise Damaged(f"tensor {shown} takes {end - start:,} bytes, its shape needs {count:,}")
    return Entry(dtype, tuple(shape)), start, end


def _are_counts(values: Any) -> bool:
    return isinstance(values, list) and all(type(value) is int and 0 <= value < 2**63 for value in values)


def _check_places(places: list[tuple[int, int]], room: int) -> None:
    """Every byte after the header belongs to exactly one tensor."""
    before = 0
    for start, end in sorted(places):
        if start != before:
            raise Damaged(f"its tensors {'overlap' if start < before else 'leave a hole'} at byte {before:,}")
        before = end
    if before != room:
        raise Damaged(f"its tensors end at byte {before:,} of {room:,}")
