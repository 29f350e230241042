"""Read the pickles of published data sets without running anything in them.

Admitted are lists, tuples, dictionaries, texts, bytes, numbers, and numpy arrays and scalars of
numeric type.  Everything else a pickle may ask for is refused by name before it is imported, and even
numpy's own constructors are replaced by ours, which take only what the bytes in the file fill.
"""

from __future__ import annotations

import io
import pickle
from pathlib import Path
from typing import Any

import numpy as np

from speech2image.errors import DataError

__all__ = ["MAX_ARRAY_BYTES", "MAX_LIST_BYTES", "read_pickle"]

MAX_LIST_BYTES = 8 * 1024**2
"""Largest pickle of names or numbers: 100,000 names take 6 MB; eight million empty lists still fit in 1 GB."""
MAX_ARRAY_BYTES = 8 * 1024**3
"""Largest pickle of embeddings or features."""

_KINDS = "biufSU"


class _Array(np.ndarray):
    """An array that fills itself only from bytes, or from a list of objects, in the pickle."""

    def __reduce_ex__(self, protocol: Any) -> Any:
        return np.asarray(self).__reduce_ex__(protocol)

    def __setstate__(self, state: Any) -> None:
        shape, kind, is_fortran, raw = state[-4:]
        if not isinstance(kind, _Kind) or not isinstance(shape, tuple):
            raise pickle.UnpicklingError("an array of unknown type")
        raw = raw.encode("latin-1") if isinstance(raw, str) else raw
        count = _count(shape)
        given = len(raw) if kind.holds_objects else len(raw) / kind.dtype.itemsize
        if isinstance(raw, list) != kind.holds_objects or given != count:
            raise pickle.UnpicklingError(f"an array of shape {shape} that is not filled")
        super().__setstate__((1, shape, kind.dtype, bool(is_fortran), raw))


class _Kind:
    """Element type named in a pickle; only its byte order may change."""

    def __init__(self, name: Any, *_: Any) -> None:
        name = name.decode("ascii") if isinstance(name, bytes) else name
        if not isinstance(name, str) or not 0 < len(name) <= 8:
            raise pickle.UnpicklingError("an array of unknown type")
        self.dtype = np.dtype(name)
        if (self.dtype.kind not in _KINDS and name not in ("O", "O8")) or self.dtype.itemsize == 0:
            raise pickle.UnpicklingError(f"an array of type {name}")

    @property
    def holds_objects(self) -> bool:
        return self.dtype.hasobject

    def __setstate__(self, state: Any) -> None:
        order = state[1]
        if order in ("<", ">"):
            self.dtype = self.dtype.newbyteorder(order)


def _count(shape: tuple[Any, ...]) -> int:
    count = 1
    for side in shape:
        if not isinstance(side, int) or side < 0:
            raise pickle.UnpicklingError(f"an array of shape {shape}")
        count *= side
    return count


def _reconstruct(_: Any, shape: Any, __: Any) -> _Array:
    if shape != (0,):
        raise pickle.UnpicklingError("an array that is made without its content")
    return _Array((0,), np.int8)


def _frombuffer(raw: Any, kind: Any, shape: Any, order: Any) -> Any:
    if not isinstance(kind, _Kind) or kind.holds_objects or order not in ("C", "F"):
        raise pickle.UnpicklingError("an array of unknown type")
    if not isinstance(shape, tuple) or _count(shape) * kind.dtype.itemsize != len(raw):
        raise pickle.UnpicklingError(f"an array of shape {shape} that is not filled")
    return np.frombuffer(raw, kind.dtype).reshape(shape, order=order)


def _scalar(kind: Any, raw: Any) -> Any:
    raw = raw.encode("latin-1") if isinstance(raw, str) else raw
    if not isinstance(kind, _Kind) or kind.holds_objects or len(raw) != kind.dtype.itemsize:
        raise pickle.UnpicklingError("a number of unknown type")
    return np.frombuffer(raw, kind.dtype)[0]


def _encode(text: str, encoding: str = "latin1") -> bytes:
    return text.encode("latin-1")  # numpy's protocol-2 pickles carry bytes as latin-1 text


def _no_bytes() -> bytes:
    return b""  # as protocols 0 to 2 write it


_ADMITTED: dict[tuple[str, str], Any] = {
    ("numpy", "ndarray"): None,
    ("numpy", "dtype"): _Kind,
    ("_codecs", "encode"): _encode,
    ("__builtin__", "bytes"): _no_bytes,
}
for _core in ("numpy.core", "numpy._core"):  # the names of numpy 1 and 2
    _ADMITTED[f"{_core}.multiarray", "_reconstruct"] = _reconstruct
    _ADMITTED[f"{_core}.multiarray", "scalar"] = _scalar
    _ADMITTED[f"{_core}.numeric", "_frombuffer"] = _frombuffer


class _Reader(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ADMITTED:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        return _ADMITTED[module, name]


def read_pickle(path: Path, max_bytes: int = MAX_ARRAY_BYTES) -> Any:
    """Read a pickle that holds only lists, mappings, texts, numbers and numeric arrays.

    Args:
        path: pickle of any protocol, also of Python 2.
        max_bytes: largest file accepted; `MAX_LIST_BYTES` for lists of names and numbers.

    Raises:  DataError: missing, too large, damaged, or asking for anything else; nothing has run then.
    """
    try:
        with open(path, "rb") as file:
            size = Path(path).stat().st_size
            content = file.read() if size <= max_bytes else b""
    except OSError as error:
        raise DataError(
            f"{path}: cannot be read ({error.strerror})", "Check the layout of the corpus."
        ) from None
    if size > max_bytes:
        raise DataError(
            f"{path}: {size:,} bytes, more than the {max_bytes:,} that are accepted",
            "Get the file from its original source.",
        )
    try:
        value = _Reader(io.BytesIO(content), encoding="latin1").load()
        _check(value)
        return value
    except RecursionError:
        reason = "it is nested too deeply"
    except MemoryError:
        reason = "it asks for more memory than there is"
    except Exception as error:  # noqa: BLE001  a damaged pickle fails in many ways
        reason = (str(error) or type(error).__name__)[:200]
    raise DataError(
        f"{path}: refused, not a plain list of texts and numbers: {reason}",
        "Get the file from its original source; nothing in it was executed.",
    )


def _check(value: Any) -> None:
    """Refuse all but plain data; a container that stands in two places would grow without bound when copied."""
    todo, seen = [value], set()
    while todo:
        item = todo.pop()
        if item.size if isinstance(item, np.ndarray) else isinstance(item, (list, tuple, dict)) and item:
            if id(item) in seen:
                raise TypeError("one list or array that stands in several places")
            seen.add(id(item))
        if isinstance(item, (list, tuple)):
            todo += item
        elif isinstance(item, dict):
            todo += [*item.keys(), *item.values()]
        elif isinstance(item, np.ndarray):
            if item.dtype.hasobject:
                todo += list(item.ravel())
            elif item.dtype.kind not in _KINDS:
                raise TypeError(f"an array of type {item.dtype}")
        elif not isinstance(item, (str, bytes, int, float, bool, type(None), np.number, np.bool_)):
            raise TypeError(f"a {type(item).__name__}")
