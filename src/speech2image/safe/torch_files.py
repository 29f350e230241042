"""Files of `torch.save`, old and new format, read without torch's own unpickler.

`torch.load(weights_only=True)` runs no code, and still takes as much memory as a file asks for: 20 bytes of
pickle make a `bytearray` of any size, a stride of zero a tensor of any size, compressed parts unfold, old files
say their sizes themselves.  Here a file never takes more than a few times its own size.  Admitted are tensors,
lists, mappings, texts, numbers and numpy scalars; all else is refused by name.
"""

from __future__ import annotations

import io
import zipfile
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor

from speech2image.safe import Damaged
from speech2image.safe.pickles import ADMITTED, Asked, Inert, PlainUnpickler, check_unfolded

MAX_PARTS = 100_000
MAX_FILE_BYTES = 64 * 1024**3
MAX_PICKLE_BYTES = 256 * 1024**2
_SHARED = 4  # tensors may share memory, tied layers do; all together at most so many times the file
_MAGIC = 0x1950A86A20F9469CFC6C
_STORAGES = {
    "DoubleStorage": torch.float64, "FloatStorage": torch.float32, "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16, "LongStorage": torch.int64, "IntStorage": torch.int32,
    "ShortStorage": torch.int16, "CharStorage": torch.int8, "ByteStorage": torch.uint8, "BoolStorage": torch.bool,
}  # fmt: skip
_DTYPES = ("float64", "float32", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool")


def read_torch_file(source: Path | bytes, stand_ins: Collection[str] = ()) -> Any:
    """Return the content of a file of `torch.save`, everything on the CPU.

    Args:
        source: file, or its bytes.
        stand_ins: full names of classes whose objects are of no interest: an empty object takes their place.

    Raises:
        Asked: it asks to run or build something else; `name` says what.  Nothing was run.
        Damaged: damaged, beyond a limit, or no such file; the reason in words.
        OSError: it cannot be read.
    """
    try:
        with _opened(source) as file:
            file.seek(0)
            start = file.read(4)
            file.seek(0)
            if start == b"PK\x03\x04":
                return _Archive(file, stand_ins).load()
            return _Old(file, stand_ins).load()
    except (Asked, OSError, MemoryError):
        raise
    except RecursionError:
        raise Damaged("it is nested too deeply") from None
    except Exception as problem:  # damaged pickles and archives fail in many ways
        reason = str(problem).splitlines()[0] if str(problem) else type(problem).__name__
        raise Damaged(reason[:200]) from problem


@contextmanager
def _opened(source: Path | bytes) -> Iterator[Any]:
    if isinstance(source, bytes):
        yield io.BytesIO(source)
        return
    with open(source, "rb") as file:
        if file.seek(0, io.SEEK_END) > MAX_FILE_BYTES:
            raise Damaged(f"it is larger than {MAX_FILE_BYTES:,} bytes")
        if file.tell() == 0:
            raise Damaged("it is empty")
        yield file


class _Storage:
    """A stretch of memory that tensors are cut from."""

    def __init__(self, values: Tensor) -> None:
        self.values = values


class _Tensors(ABC):
    """What both formats share: how tensors are rebuilt, and how much memory they may name."""

    def __init__(self, file: Any, stand_ins: Collection[str]) -> None:
        self.file = file
        self.size = file.seek(0, io.SEEK_END)
        file.seek(0)
        self.room = _SHARED * self.size
        self.storages: dict[str, _Storage] = {}
        self.admitted = {**ADMITTED, **_plain_names()}
        for name in ("_rebuild_tensor", "_rebuild_tensor_v2"):
            self.admitted["torch._utils", name] = self._tensor
        self.admitted["torch._tensor", "_rebuild_from_type_v2"] = self._of_type
        self.admitted |= {(full.rpartition(".")[0], full.rpartition(".")[2]): Inert for full in stand_ins}

    def unpickle(self, file: Any) -> Any:
        """Read one pickle at the place where `file` stands."""
        reader = PlainUnpickler(file, self.admitted)
        reader.persistent_load = self.storage
        value = reader.load()
        check_unfolded(value, 4 * self.size + 1000)
        return value

    @abstractmethod
    def storage(self, key: Any) -> _Storage:
        """Return the storage that a pickle names."""

    def _tensor(self, storage: Any, offset: Any, size: Any, stride: Any, *rest: Any) -> Tensor:
        del rest  # whether it wants gradients, hooks
        if not isinstance(storage, _Storage) or not isinstance(size, tuple) or not isinstance(stride, tuple):
            raise Damaged("a tensor of no storage")
        numbers = (offset, *size, *stride)
        if len(size) != len(stride) or len(size) > 16 or not all(type(n) is int and n >= 0 for n in numbers):
            raise Damaged(f"a tensor of shape {str(size)[:60]}")
        count, last = 1, offset
        for side, step in zip(size, stride, strict=True):
            count *= side
            last += max(side - 1, 0) * step
        if count == 0 and max(size) < 2**31:
            return torch.zeros(size, dtype=storage.values.dtype)
        if last >= len(storage.values) or count > len(storage.values):
            raise Damaged(
                f"a tensor of shape {size} and strides {stride} in a part of {len(storage.values)} numbers"
            )
        self.room -= count * storage.values.element_size()
        if self.room < 0:
            raise Damaged(f"its tensors are together more than {_SHARED} times as large as the file")
        return storage.values.as_strided(size, stride, offset)

    def _of_type(self, function: Any, kind: Any, arguments: Any, state: Any) -> Tensor:
        """A tensor that carries attributes, which are left out."""
        del kind, state
        if function not in (self._tensor, _parameter) or not isinstance(arguments, tuple):
            raise Damaged("a tensor of another class")
        made: Tensor = function(*arguments)
        return made

    def _room_for(self, kind: Any, count: Any) -> int:
        if not isinstance(kind, torch.dtype) or type(count) is not int or count < 0:
            raise Damaged("a part of unknown type or size")
        size = count * kind.itemsize
        if size > self.size:
            raise Damaged(f"a part of {size:,} bytes in a file of {self.size:,}")
        return size


class _Archive(_Tensors):
    """The format since torch 1.6: a zip archive of one pickle and one part for each storage."""

    def __init__(self, file: Any, stand_ins: Collection[str]) -> None:
        super().__init__(file, stand_ins)
        self.parts, self.archive = _checked_parts(file, self.size)

    def load(self) -> Any:
        """Return what the pickle describes."""
        if "data.pkl" not in self.parts:
            raise Damaged("its archive has no data.pkl")
        if "constants.pkl" in self.parts:
            raise Asked("a TorchScript program")
        order = self._part("byteorder") if "byteorder" in self.parts else b"little"
        if bytes(order).strip() != b"little":
            raise Damaged("its numbers are big-endian")
        if self.parts["data.pkl"].file_size > MAX_PICKLE_BYTES:
            raise Damaged(f"its data.pkl is larger than {MAX_PICKLE_BYTES:,} bytes")
        return self.unpickle(io.BytesIO(self._part("data.pkl")))

    def storage(self, key: Any) -> _Storage:
        """Read one part of the archive, its checksum compared."""
        if not isinstance(key, tuple) or len(key) != 5 or key[0] != "storage" or not isinstance(key[2], str):
            raise Damaged("a part that is no storage")
        _, kind, name, _, count = key
        if name not in self.storages:
            size = self._room_for(kind, count)
            if f"data/{name}" not in self.parts or self.parts[f"data/{name}"].file_size != size:
                raise Damaged(f"its part data/{name[:40]} is missing or has not {size:,} bytes")
            self.storages[name] = _Storage(_numbers(self._part(f"data/{name}"), kind))
        found = self.storages[name]
        if found.values.dtype != kind or len(found.values) != count:
            raise Damaged(f"its part data/{name[:40]} is used as two types")
        return found

    def _part(self, name: str) -> bytearray:
        info = self.parts[name]
        content = bytearray(info.file_size)  # the parts together are no larger than the file
        try:
            with self.archive.open(info) as part:
                if _fill(part, content) != info.file_size or part.read(1):
                    raise Damaged(f"its part {name} is cut")
        except zipfile.BadZipFile as problem:
            reason = (
                "the checksum of its part {} is wrong" if "CRC" in str(problem) else "its part {} is damaged"
            )
            raise Damaged(reason.format(name)) from None
        return content


def _checked_parts(file: Any, size: int) -> tuple[dict[str, zipfile.ZipInfo], zipfile.ZipFile]:
    """Return the parts by their names below the top folder, after all sizes were compared."""
    ends = getattr(zipfile, "_EndRecData")(file)  # noqa: B009  before a list of parts of any length is made
    if ends is None or ends[3] > MAX_PARTS or ends[5] > 1000 * MAX_PARTS:
        raise Damaged("its archive cannot be read (no end, or too many parts)")
    archive = zipfile.ZipFile(file)
    infos = archive.infolist()
    if len(infos) > MAX_PARTS or sum(info.file_size for info in infos) > size:
        raise Damaged(f"its archive unfolds into more than its own {size:,} bytes")
    parts: dict[str, zipfile.ZipInfo] = {}
    for info in infos:
        _, _, name = info.filename.partition("/")
        if (
            info.compress_type != zipfile.ZIP_STORED
            or info.flag_bits & 1
            or info.file_size != info.compress_size
        ):
            raise Damaged(f"its part {name[:40]} is compressed or encrypted; torch writes no such files")
        if name in parts:
            raise Damaged(f"its archive has the part {name[:40]} twice")
        parts[name] = info
    return parts, archive


class _Old(_Tensors):
    """The format before torch 1.6: five pickles, then the numbers of each storage."""

    def load(self) -> Any:
        """Return what the fourth pickle describes, its storages filled from the end of the file."""
        if self.file.read(262)[257:262] == b"ustar":
            raise Damaged("it is a tar archive, as torch wrote before version 0.1.10")
        self.file.seek(0)
        if self.unpickle(self.file) != _MAGIC or self.unpickle(self.file) != 1001:
            raise Damaged("not a readable PyTorch file (no mark of torch at its beginning)")
        machine = self.unpickle(self.file)
        if not isinstance(machine, dict) or machine.get("little_endian") is not True:
            raise Damaged("its numbers are big-endian")
        self.left = self.size
        value = self.unpickle(self.file)
        keys = self.unpickle(self.file)
        if (
            not isinstance(keys, list)
            or set(map(str, keys)) != set(self.storages)
            or len(keys) != len(set(keys))
        ):
            raise Damaged("its list of parts does not fit its tensors")
        for key in keys:
            values = self.storages[key].values
            head = self.file.read(8)
            if int.from_bytes(head, "little") != len(values):
                raise Damaged(f"cut, or its part {key[:40]} has another size")
            raw: Any = values.view(torch.uint8).numpy()
            content = memoryview(raw).cast("B")
            if _fill(self.file, content) != len(content):
                raise Damaged(f"cut inside its part {key[:40]}")
        return value

    def storage(self, key: Any) -> _Storage:
        """Take room for a storage; it is filled when the whole pickle was read."""
        if not isinstance(key, tuple) or len(key) != 6 or key[0] != "storage" or not isinstance(key[2], str):
            raise Damaged("a part that is no storage")
        _, kind, name, _, count, view = key
        if name not in self.storages:
            self.left -= self._room_for(kind, count)
            if self.left < 0:
                raise Damaged("cut: its parts are together larger than the file")
            self.storages[name] = _Storage(torch.empty(count, dtype=kind))
        found = self.storages[name]
        if found.values.dtype != kind or len(found.values) != count:
            raise Damaged(f"its part {name[:40]} is used as two types")
        if view is None:
            return found
        if (
            not isinstance(view, tuple)
            or len(view) != 3
            or not all(type(n) is int and n >= 0 for n in view[1:])
        ):
            raise Damaged("a part of a part")
        return _Storage(found.values[view[1] : view[1] + view[2]])


def _numbers(content: bytearray, kind: torch.dtype) -> Tensor:
    return torch.frombuffer(content, dtype=kind) if content else torch.zeros(0, dtype=kind)


def _fill(source: IO[bytes], content: bytearray | memoryview) -> int:
    """Read into `content` until it is full or the source ends; return how much was read."""
    view, done = memoryview(content), 0
    while done < len(view):
        some = source.read(min(len(view) - done, 2**24))
        if not some:
            break
        view[done : done + len(some)] = some
        done += len(some)
    return done


def _parameter(data: Any, *rest: Any) -> Tensor:
    del rest
    if not isinstance(data, Tensor):
        raise Damaged("a parameter without a tensor")
    return data


def _mapping(pairs: Any = ()) -> dict[Any, Any]:
    return dict(pairs)


def _sequence(values: Any = ()) -> tuple[Any, ...]:
    return tuple(values) if isinstance(values, (list, tuple)) else ()


def _text(*parts: Any) -> str:
    return ":".join(str(part) for part in parts if isinstance(part, (str, int)))


def _plain_names() -> dict[tuple[str, str], Any]:
    """What files of torch ask for beside numpy's names."""
    names: dict[tuple[str, str], Any] = {
        ("collections", "OrderedDict"): _mapping,
        ("collections", "Counter"): _mapping,
        ("torch", "Size"): _sequence,
        ("torch", "device"): _text,
        ("torch", "Tensor"): "torch.Tensor",
        ("torch.nn.parameter", "Parameter"): "torch.nn.Parameter",
        ("torch._utils", "_rebuild_parameter"): _parameter,
        ("torch._utils", "_rebuild_parameter_with_state"): _parameter,
        ("torch.storage", "UntypedStorage"): torch.uint8,
    }
    for module in ("builtins", "__builtin__"):
        names[module, "set"] = _sequence
    names |= {("torch", name): kind for name, kind in _STORAGES.items()}
    names |= {("torch", name): getattr(torch, name) for name in _DTYPES}
    kinds = [type(np.dtype(name)) for name in ("float64", "float32", "int64", "int32", "bool")]
    return names | {(kind.__module__, kind.__name__): Inert for kind in kinds}
