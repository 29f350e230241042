"""Memory-mapped arrays of unequal shape with hashes, written in one pass that survives kills.

A store is a folder: `data.bin` (all elements one after the other), `index.npz` (offsets and
shapes), `keys.txt`, and `store.json` (type, count, fingerprint, SHA-256), which is written last:
a store without it does not exist.  While it grows, `progress.bin` holds the shape of every item
already whole in `data.part`, so that a killed writer goes on where it stopped.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from speech2image.data.whole import write_whole
from speech2image.errors import DataError
from speech2image.safe.arrays import read_npz
from speech2image.safe.records import read_json

_REMEDY = "Delete the folder and give the command again: it is made anew."
_MAX_NDIM = 3


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
            self._progress.truncate(len(shapes) * (1 + _MAX_NDIM) * 8)
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
        if array.ndim > _MAX_NDIM or array.ndim != ndim or array.dtype != self.dtype:
            raise ValueError(f"found {array.dtype} {array.shape}, expected {self.dtype} of {ndim} dimensions")
        row = np.zeros(1 + _MAX_NDIM, np.int64)
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
            sha256 = _sha256(self.path / "data.bin")
            width = max((len(shape) for shape in self._shapes), default=1)
            shapes = np.array(self._shapes, np.int64).reshape(len(self._shapes), width)
            offsets = np.concatenate([[0], np.cumsum(self._sizes, dtype=np.int64)]).astype(np.int64)
            with (self.path / "index.npz").open("wb") as file:
                np.savez(file, offsets=offsets, shapes=shapes)
        except OSError as error:
            raise _unwritable(self.path, error) from None
        write_whole(self.path / "keys.txt", "".join(f"{key}\n" for key in self.keys).encode())
        record = {
            "dtype": self.dtype.str,
            "count": len(self.keys),
            "fingerprint": self.fingerprint,
            "sha256": sha256,
        }
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
        wanted = f"{self.fingerprint}\n{hashlib.sha256(chr(10).join(self.keys).encode()).hexdigest()}"
        if not data.exists() and progress.exists() and (self.path / "data.bin").exists():
            os.replace(self.path / "data.bin", data)  # killed inside `commit`
        if not mark.is_file() or mark.read_text() != wanted or not data.is_file() or not progress.is_file():
            data.unlink(missing_ok=True)
            progress.unlink(missing_ok=True)
            write_whole(mark, wanted.encode())
            return np.zeros((0, 1 + _MAX_NDIM), np.int64)
        raw = progress.read_bytes()
        rows = np.frombuffer(raw[: len(raw) // 32 * 32], np.int64).reshape(-1, 1 + _MAX_NDIM)
        sizes = [int(np.prod(row[1 : 1 + row[0]])) for row in rows]
        room = data.stat().st_size // self.dtype.itemsize
        whole = int(np.searchsorted(np.cumsum(sizes), room, side="right")) if sizes else 0
        return rows[:whole]


class RaggedStore:
    """A finished store: item `i` is a view of the memory map.

    Attributes:
        keys: keys in order.
        fingerprint: what the content depends on.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            record = read_json((path / "store.json").read_text())
            self.dtype, self.fingerprint = np.dtype(record["dtype"]), str(record["fingerprint"])
            self.sha256 = str(record["sha256"])
            self.keys = (path / "keys.txt").read_bytes().decode("utf-8").split("\n")[:-1]
            index = read_npz(path / "index.npz")
            self.offsets, self.shapes = index["offsets"], index["shapes"]
            size = (path / "data.bin").stat().st_size
            if self.dtype.kind not in "biuf":  # objects would be addresses, followed blindly
                raise ValueError(f"elements of type {self.dtype}")
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(f"{path}: no readable store ({error})", _REMEDY) from None
        expected = int(self.offsets[-1]) * self.dtype.itemsize
        if len(self.keys) != record["count"] or len(self.shapes) != record["count"] or size != expected:
            raise DataError(f"{path}: data.bin has {size:,} bytes, expected {expected:,}", _REMEDY)
        # A plain array over the map: views of the memmap class cost three times as much to make.
        self._map: npt.NDArray[Any] = (
            np.asarray(np.memmap(path / "data.bin", self.dtype, "r")) if size else np.zeros(0, self.dtype)
        )
        self._rows: dict[str, int] | None = None

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
        found = _sha256(self.path / "data.bin")
        if found != self.sha256:
            raise DataError(
                f"{self.path}: damaged, SHA-256 {found[:12]}, expected {self.sha256[:12]}", _REMEDY
            )

    def __reduce__(self) -> tuple[type[RaggedStore], tuple[Path]]:
        """Travel to other processes as a path: each maps the file for itself."""
        return RaggedStore, (self.path,)

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, index: int) -> npt.NDArray[Any]:
        start, end = self.offsets[index], self.offsets[index + 1]
        view: npt.NDArray[Any] = self._map[start:end].reshape(self.shapes[index])
        return view

    def index(self, key: str) -> int:
        """Return the number of a key."""
        if self._rows is None:
            self._rows = {name: row for row, name in enumerate(self.keys)}
        if key not in self._rows:
            raise DataError(f"{self.path}: there is no item {key!r}", _REMEDY)
        return self._rows[key]


def is_complete(path: Path, fingerprint: str) -> bool:
    """Return whether a finished store of this fingerprint lies at `path`."""
    try:
        record = read_json((path / "store.json").read_text())
    except (OSError, ValueError):
        return False
    return bool(record.get("fingerprint") == fingerprint)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _unwritable(path: Path, error: OSError) -> DataError:
    return DataError(
        f"{path}: cannot be written ({error.strerror or error})",
        "Free space or choose another folder (paths.cache=DIR); the same command continues.",
    )
