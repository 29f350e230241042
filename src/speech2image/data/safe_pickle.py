"""Read the pickles of published data sets without running anything in them.

Admitted are lists, tuples, dictionaries, texts, bytes, numbers, and numpy arrays and scalars of
numeric type.  Everything else a pickle may ask for is refused by name before it is imported.
"""

from __future__ import annotations

import io
import pickle
from pathlib import Path
from typing import Any

import numpy as np

from speech2image.errors import DataError

_MAX_BYTES = 8 * 1024**3


_ADMITTED: dict[tuple[str, str], Any] = {
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("_codecs", "encode"): None,  # filled below: numpy's protocol-2 pickles carry bytes as latin-1 text
}
for _core in ("numpy.core", "numpy._core"):  # the names of numpy 1 and 2
    _ADMITTED[f"{_core}.multiarray", "_reconstruct"] = np._core.multiarray._reconstruct  # type: ignore[attr-defined]
    _ADMITTED[f"{_core}.multiarray", "scalar"] = np._core.multiarray.scalar  # type: ignore[attr-defined]
    _ADMITTED[f"{_core}.numeric", "_frombuffer"] = np._core.numeric._frombuffer  # type: ignore[attr-defined]


def _encode(text: str, encoding: str = "latin1") -> bytes:
    return text.encode("latin-1")


_ADMITTED["_codecs", "encode"] = _encode


class _Reader(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ADMITTED:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        return _ADMITTED[module, name]


def read_pickle(path: Path) -> Any:
    """Read a pickle that holds only lists, mappings, texts, numbers and numeric arrays.

    Args:
        path: pickle of any protocol, also of Python 2.

    Raises:  DataError: missing, damaged, or asking for anything else; nothing has run then.
    """
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise DataError(
            f"{path}: cannot be read ({error.strerror})", "Check the layout of the corpus."
        ) from None
    if len(content) > _MAX_BYTES:
        raise DataError(f"{path}: {len(content):,} bytes, more than {_MAX_BYTES:,}")
    try:
        value = _Reader(io.BytesIO(content), encoding="latin1").load()
        _check(value)
        return value
    except RecursionError:
        reason = "it is nested too deeply"
    except Exception as error:  # noqa: BLE001  a damaged pickle fails in many ways
        reason = str(error) or type(error).__name__
    raise DataError(
        f"{path}: refused, not a plain list of texts and numbers: {reason}",
        "Get the file from its original source; nothing in it was executed.",
    )


def _check(value: Any) -> None:
    todo, seen = [value], set()  # a list may hold itself
    while todo:
        item = todo.pop()
        if isinstance(item, (list, tuple, dict, np.ndarray)):
            if id(item) in seen:
                continue
            seen.add(id(item))
        if isinstance(item, (list, tuple)):
            todo += item
        elif isinstance(item, dict):
            todo += [*item.keys(), *item.values()]
        elif isinstance(item, np.ndarray):
            if item.dtype.hasobject:
                todo += list(item.ravel())
            elif item.dtype.kind not in "biufUS":
                raise TypeError(f"an array of type {item.dtype}")
        elif not isinstance(item, (str, bytes, int, float, bool, type(None), np.number, np.bool_)):
            raise TypeError(f"a {type(item).__name__}")
