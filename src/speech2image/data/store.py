"""Memory-mapped arrays of unequal shape with hashes, written in one pass that survives kills.

A store is a folder: `data.bin` (all elements one after the other), `index.npz` (offsets, shapes,
checksums), `keys.txt`, and `store.json` (type, count, fingerprint, SHA-256, seal), which is written
last: a store without it does not exist.  Opening compares sizes and the seal; an item is compared with
its checksum when it is first read, once in each process.  While it grows, `progress.bin` holds the shape of every item
already whole in `data.part`, so that a killed writer goes on where it stopped.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import mmap
import os
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from speech2image.data.plain_json import read_json_file
from speech2image.data.store_index import (
    MAX_INDEX_BYTES,
    MAX_NDIM,
    Index,
    checksums,
    read_index_bytes,
    seal_of,
)
from speech2image.data.whole import write_whole
from speech2image.errors import DataError

KEPT_SHARE = 0.5
"""Share of this machine's memory up to which a store is expected to stay there once it was read."""
SMALL_ITEM_BYTES = 16_384
"""Mean size of items up to which pages are fetched one by one."""


class RaggedWriter:
    """Append arrays in the order of their keys; after a kill, continue at `next_index`.

    Args:
        path: folder of the store.
        keys: one unique key an array, in order.
        dtype: element type of all arrays.
        fingerprint: what the content depends on; progress of another one is thrown away.
        sync_every: items between syncs to disk.
    """

    def __init__(
        self, path: Path, keys: Sequence[str], dtype: npt.DTypeLike, fingerprint: str, sync_every: int = 256
    ) -> None:
        self.path, self.keys, self.dtype = path, list(keys), np.dtype(dtype)
        self.fingerprint, self.sync_every = fingerprint, sync_every
        try:
            path.mkdir(parents=True, exist_ok=True)
            (path / "store.json").unlink(missing_ok=True)
            shapes = self._whole_items()
            self._sizes = [int(np.prod(shape[1 : 1 + shape[0]])) for shape in shapes]
            self._shapes = [tuple(int(side) for side in shape[1 : 1 + shape[0]]) for shape in shapes]
            self._data: BinaryIO = (path / "data.part").open("ab")
            self._data.truncate(sum(self._sizes) * self.dtype.itemsize)
            self._progress: BinaryIO = (path / "progress.bin").open("ab")
            self._progress.truncate(len(shapes) * (1 + MAX_NDIM) * 8)
        except OSError as error:
            raise _unwritable(path, error) from None

    @property
    def next_index(self) -> int:
        """Return the number of the next array to append."""
        return len(self._shapes)

    def append(self, array: npt.NDArray[Any]) -> None:
        """Append the array of key `next_index`."""
        if self.next_index >= len(self.keys):
            raise ValueError("more arrays than keys")
        ndim = len(self._shapes[0]) if self._shapes else array.ndim
        if array.ndim > MAX_NDIM or array.ndim != ndim or array.dtype != self.dtype:
            raise ValueError(f"found {array.dtype} {array.shape}, expected {self.dtype} of {ndim} dimensions")
        row = np.zeros(1 + MAX_NDIM, np.int64)
        row[0], row[1 : 1 + array.ndim] = array.ndim, array.shape
        try:
            for file, content in (
                (self._data, np.ascontiguousarray(array).tobytes()),
                (self._progress, row.tobytes()),
            ):
                file.write(content)
                file.flush()  # a killed process loses nothing that was appended
            self._shapes.append(array.shape)
            self._sizes.append(array.size)
            if self.next_index % self.sync_every == 0:
                self._sync()
        except OSError as error:
            raise _unwritable(self.path, error) from None

    def commit(self) -> None:
        """Finish the store: hash, index, and last of all `store.json`."""
        if self.next_index != len(self.keys):
            raise ValueError(f"{self.next_index} arrays for {len(self.keys)} keys")
        try:
            self._sync()
            self._data.close()
            self._progress.close()
            os.replace(self.path / "data.part", self.path / "data.bin")
            sizes = np.array(self._sizes, np.int64)
            sha256, crcs = checksums(self.path / "data.bin", sizes * self.dtype.itemsize)
        except OSError as error:
            raise _unwritable(self.path, error) from None
        width = max((len(shape) for shape in self._shapes), default=1)
        shapes = np.array(self._shapes, np.int64).reshape(len(self._shapes), width)
        offsets = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
        index = Index(offsets, shapes, crcs).to_bytes()
        keys = "".join(f"{key}\n" for key in self.keys).encode()
        write_whole(self.path / "index.npz", index)
        write_whole(self.path / "keys.txt", keys)
        record = {
            "dtype": self.dtype.str,
            "count": len(self.keys),
            "fingerprint": self.fingerprint,
            "sha256": sha256,
        }
        record["seal"] = seal_of(record, index, keys)
        write_whole(self.path / "store.json", json.dumps(record, indent=1).encode())
        (self.path / "progress.bin").unlink(missing_ok=True)
        (self.path / "fingerprint.txt").unlink(missing_ok=True)

    def close(self) -> None:
        """Let go of the files; what is whole so far stays, and the next writer continues there."""
        for file in (self._data, self._progress):
            with contextlib.suppress(OSError):  # a full disk was reported by `append` already
                file.close()

    def _sync(self) -> None:
        for file in (self._data, self._progress):  # data first: progress never promises too much
            file.flush()
            os.fsync(file.fileno())

    def _whole_items(self) -> npt.NDArray[np.int64]:
        mark, data, progress = (self.path / name for name in ("fingerprint.txt", "data.part", "progress.bin"))
        wanted = (
            f"{self.fingerprint}\n{hashlib.sha256(chr(10).join(self.keys).encode()).hexdigest()}".encode()
        )
        if not data.exists() and progress.exists() and (self.path / "data.bin").exists():
            os.replace(self.path / "data.bin", data)  # killed inside `commit`
        if not mark.is_file() or mark.read_bytes() != wanted or not data.is_file() or not progress.is_file():
            data.unlink(missing_ok=True)
            progress.unlink(missing_ok=True)
            write_whole(mark, wanted)
            return np.zeros((0, 1 + MAX_NDIM), np.int64)
        raw = progress.read_bytes()
        rows = np.frombuffer(raw[: len(raw) // 32 * 32], np.int64).reshape(-1, 1 + MAX_NDIM)
        return rows[: _num_whole(rows, data.stat().st_size // self.dtype.itemsize)]


def _num_whole(rows: npt.NDArray[np.int64], room: int) -> int:
    """Return how many items of a list of shapes lie whole in `room` elements; a damaged row ends the list."""
    end = 0
    for number, (ndim, *sides) in enumerate(rows.tolist()):
        end += math.prod(sides[:ndim])
        if not 0 < ndim <= MAX_NDIM or ndim != rows[0, 0] or min(sides) < 0 or end > room:
            return number
    return len(rows)


class RaggedStore:
    """A finished store: item `i` is a view of the memory map.

    Attributes:
        keys: keys in order.
        fingerprint: what the content depends on.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            record = read_json_file(path / "store.json")
            self.dtype, self.fingerprint = _element_type(record["dtype"]), str(record["fingerprint"])
            self.sha256 = str(record["sha256"])
            index, keys = _read_part(path / "index.npz"), _read_part(path / "keys.txt")
            if "seal" in record and record["seal"] != seal_of(record, index, keys):
                raise ValueError(
                    "store.json, index.npz and keys.txt are not those that were written together"
                )
            self.keys = keys.decode("utf-8").split("\n")[:-1]
            if type(record["count"]) is not int or record["count"] != len(self.keys):
                raise ValueError(f"{len(self.keys)} keys, store.json says {str(record['count'])[:20]}")
            found = read_index_bytes(index, len(self.keys))
            size = (path / "data.bin").stat().st_size
        except (OSError, ValueError, KeyError) as error:
            raise DataError(f"{path}: no readable store ({error})", remedy_of(path)) from None
        self.offsets, self.shapes, self._crcs = found.offsets, found.shapes, found.crcs
        expected = int(self.offsets[-1]) * self.dtype.itemsize
        if size != expected:
            raise DataError(f"{path}: data.bin has {size:,} bytes, expected {expected:,}", remedy_of(path))
        self._map = (
            _mapped(path / "data.bin", self.dtype, len(self.keys)) if size else np.zeros(0, self.dtype)
        )
        self._rows: dict[str, int] | None = None
        self._is_checked = bytearray(len(self.keys)) if self._crcs is not None else b"\1" * len(self.keys)

    @classmethod
    def open(cls, path: Path, verify: bool = False) -> RaggedStore:
        """Open a store; with `verify`, read all of it and compare its hash.

        Raises:  DataError: absent, unfinished, damaged.
        """
        store = cls(path)
        if verify:
            store.verify()
        return store

    def verify(self) -> None:
        """Read every byte and compare the hash.

        Raises:  DataError: the content is not what was written.
        """
        sizes = np.diff(self.offsets) * self.dtype.itemsize
        try:
            found, crcs = checksums(self.path / "data.bin", sizes)
        except OSError as error:
            raise DataError(f"{self.path}: cannot be read ({error.strerror})", remedy_of(self.path)) from None
        if found == self.sha256:
            return
        rows = [] if self._crcs is None else np.flatnonzero(crcs != self._crcs).tolist()
        which = ", ".join(repr(self.keys[row]) for row in rows[:3]) + (" …" if len(rows) > 3 else "")
        what = f"; {len(rows)} of {len(self)} items are not what was written: {which}" if rows else ""
        raise DataError(
            f"{self.path}: damaged, SHA-256 {found[:12]}, expected {self.sha256[:12]}{what}",
            remedy_of(self.path),
        )

    def __reduce__(self) -> tuple[type[RaggedStore], tuple[Path]]:
        """Travel to other processes as a path: each maps the file for itself."""
        return RaggedStore, (self.path,)

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, index: int) -> npt.NDArray[Any]:
        start, end = self.offsets[index], self.offsets[index + 1]
        view: npt.NDArray[Any] = self._map[start:end].reshape(self.shapes[index])
        if not self._is_checked[index]:
            self._check(int(index), view)
        return view

    def _check(self, index: int, view: npt.NDArray[Any]) -> None:
        """Compare an item with its checksum, the first time that it is read.

        Cost: 0.1 ms a 300-pixel image, once in each process.
        """
        assert self._crcs is not None and isinstance(self._is_checked, bytearray)
        if zlib.crc32(view.data) != self._crcs[index]:
            raise DataError(
                f"{self.path}: item {self.keys[index]!r} is damaged: its bytes are not those that were written",
                f"See what else is: speech2image prepare … verify=true. {remedy_of(self.path)}",
            )
        self._is_checked[index] = 1

    def index(self, key: str) -> int:
        """Return the number of a key."""
        if self._rows is None:
            self._rows = {name: row for row, name in enumerate(self.keys)}
        if key not in self._rows:
            raise DataError(f"{self.path}: there is no item {key!r}", remedy_of(self.path))
        return self._rows[key]


def _mapped(path: Path, dtype: np.dtype[Any], count: int) -> npt.NDArray[Any]:
    """Map a file as a plain array: views of numpy's memmap class cost three times as much to make.

    Small items of files that memory cannot keep are not read ahead: around a kilobyte that may be a megabyte.  Large
    items are, as page by page they come several times slower; both measured in `experiments/scaling/`.
    """
    with path.open("rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    stays = len(mapped) <= KEPT_SHARE * os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if not stays and len(mapped) <= SMALL_ITEM_BYTES * count:
        mapped.madvise(mmap.MADV_RANDOM)
    return np.frombuffer(mapped, dtype)


def is_complete(path: Path, fingerprint: str) -> bool:
    """Return whether a finished store of this fingerprint lies at `path`."""
    try:
        return bool(read_json_file(path / "store.json").get("fingerprint") == fingerprint)
    except (OSError, ValueError):
        return False


def remedy_of(path: Path) -> str:
    """Return what to type where a store is damaged."""
    return f"Type: rm -r '{path}', then the same command again: it is made anew."


def _element_type(name: Any) -> np.dtype[Any]:
    try:
        dtype = np.dtype(name if isinstance(name, str) and len(name) <= 4 else object)
    except TypeError:
        dtype = np.dtype(object)
    if dtype.kind not in "biuf" or dtype.str != name:
        raise ValueError(f"elements of type {str(name)[:20]!r}")
    return dtype


def _read_part(path: Path) -> bytes:
    if path.stat().st_size > MAX_INDEX_BYTES:
        raise ValueError(f"{path.name} is larger than {MAX_INDEX_BYTES:,} bytes")
    return path.read_bytes()


def _unwritable(path: Path, error: OSError) -> DataError:
    return DataError(
        f"{path}: cannot be written ({error.strerror or error})",
        "Free space or choose another folder (paths.cache=DIR); the same command continues.",
    )
