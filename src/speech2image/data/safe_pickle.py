"""Read the pickles of published data sets without running anything in them.

Admitted are lists, tuples, dictionaries, texts, bytes, numbers, and numpy arrays and scalars of
numeric type.  Everything else a pickle may ask for is refused by name before it is imported, and even
numpy's own constructors are replaced by ours, which take only what the bytes in the file fill
(`safe/pickles.py`).
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np

from speech2image.errors import DataError
from speech2image.safe.pickles import PlainUnpickler

__all__ = ["MAX_ARRAY_BYTES", "MAX_LIST_BYTES", "read_pickle"]

MAX_LIST_BYTES = 8 * 1024**2
"""Largest pickle of names or numbers: 100,000 names take 6 MB; eight million empty lists still fit in 1 GB."""
MAX_ARRAY_BYTES = 8 * 1024**3
"""Largest pickle of embeddings or features."""


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
        value = PlainUnpickler(io.BytesIO(content)).load()
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
            elif item.dtype.kind not in "biufSU":
                raise TypeError(f"an array of type {item.dtype}")
        elif not isinstance(item, (str, bytes, int, float, bool, type(None), np.number, np.bool_)):
            raise TypeError(f"a {type(item).__name__}")
