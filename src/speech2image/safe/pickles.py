"""An unpickler that can only build lists, mappings, texts, numbers and numeric arrays.

What a pickle asks for is looked up in a short table of our own functions and never imported; the machine is
Python's own, reduced to the instructions that plain data needs.  The C unpickler is not used: one instruction
of five bytes (LONG_BINPUT) makes it allocate 34 GB.  Files of torch are in `torch_files.py`.
"""

from __future__ import annotations

import pickle
import re
from collections.abc import Callable
from typing import Any

import numpy as np

from speech2image.safe import Damaged
from speech2image.safe.records import in_pieces

MAX_INSTRUCTIONS = 4_000_000

_OPCODES = (
    "PROTO", "FRAME", "STOP", "MARK", "POP", "POP_MARK", "DUP", "NONE", "NEWTRUE", "NEWFALSE", "INT",
    "LONG", "BININT", "BININT1", "BININT2", "LONG1", "LONG4", "FLOAT", "BINFLOAT", "STRING", "BINSTRING",
    "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "UNICODE", "BINUNICODE",
    "SHORT_BINUNICODE", "BINUNICODE8", "EMPTY_TUPLE", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "EMPTY_LIST",
    "LIST", "EMPTY_DICT", "DICT", "APPEND", "APPENDS", "SETITEM", "SETITEMS", "GET", "BINGET",
    "LONG_BINGET", "PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE", "GLOBAL", "STACK_GLOBAL", "REDUCE", "PERSID",
    "BINPERSID",
)  # fmt: skip
_DTYPE = re.compile(r"[<>=|]?([biufUSO])(\d{0,9})")
_NDARRAY = "numpy.ndarray"  # stands for the class where a pickle names it
_MACHINE: Any = pickle._Unpickler


class Asked(pickle.UnpicklingError):
    """A pickle asks for something that plain data does not need; `name` says for what."""

    def __init__(self, name: str) -> None:
        super().__init__(f"it asks for {name}")
        self.name = name


class Inert:
    """Holds the place of an object whose class is known and not wanted; it does nothing."""

    def __init__(self, *state: object) -> None:
        del state


class _Kind:
    """A numpy element type while its description is read."""

    def __init__(self, text: object, *flags: object) -> None:
        del flags
        found = _DTYPE.fullmatch(text) if isinstance(text, str) else None
        if found is None:
            raise pickle.UnpicklingError(f"an array of type {str(text)[:40]}")
        self.dtype: np.dtype[Any] = np.dtype(str(text))

    def build(self, state: object) -> None:
        """Take the order of bytes; fields and the like have no place here."""
        if not isinstance(state, tuple) or len(state) < 5 or any(part is not None for part in state[2:5]):
            raise pickle.UnpicklingError("an array of records")
        if state[1] in ("<", ">"):
            self.dtype = self.dtype.newbyteorder(state[1])


def _checked(dtype: object, shape: object, content: object) -> tuple[np.dtype[Any], tuple[int, ...], bytes]:
    if not isinstance(dtype, _Kind) or not isinstance(shape, tuple):
        raise pickle.UnpicklingError("an array without type or shape")
    if len(shape) > 8 or not all(type(side) is int and side >= 0 for side in shape):
        raise pickle.UnpicklingError("an array of no shape")
    plain = content.encode("latin-1") if isinstance(content, str) else content
    if not isinstance(plain, (bytes, bytearray)) or dtype.dtype.hasobject:
        raise pickle.UnpicklingError("an array of objects")
    count = 1
    for side in shape:
        count *= side
    if count * dtype.dtype.itemsize != len(plain):
        raise pickle.UnpicklingError(
            f"an array that says {shape} of {dtype.dtype} and holds {len(plain)} bytes"
        )
    return dtype.dtype, shape, bytes(plain)


def _scalar(dtype: object, content: object = b"") -> Any:
    kind, _, plain = _checked(dtype, (), content)
    return np.frombuffer(plain, kind)[0]


def _from_buffer(content: object, dtype: object, shape: object, order: object = "C") -> Any:
    kind, sides, plain = _checked(dtype, shape, content)
    return np.frombuffer(plain, kind).reshape(sides, order="F" if order == "F" else "C").copy()


def _empty(*what: object) -> Any:
    if what[:1] != (_NDARRAY,):
        raise pickle.UnpicklingError("an array of another class")
    return np.zeros((0,), np.uint8)


def _fill(array: Any, state: object) -> None:
    """Give an array its content, after its size was compared with the bytes that are there."""
    if not isinstance(state, tuple) or len(state) not in (4, 5):
        raise pickle.UnpicklingError("an array without content")
    shape, dtype, fortran, content = state[-4:]
    if isinstance(dtype, _Kind) and dtype.dtype.hasobject and isinstance(content, list):
        if not isinstance(shape, tuple) or shape != (len(content),):
            raise pickle.UnpicklingError("an array of objects of no shape")
        array.__setstate__((1, shape, dtype.dtype, False, list(content)))
        return
    kind, sides, plain = _checked(dtype, shape, content)
    array.__setstate__((1, sides, kind, bool(fortran), plain))


def _encode(text: object, encoding: object = "latin1") -> bytes:
    """Numpy's protocol-2 pickles carry bytes as latin-1 text."""
    if not isinstance(text, str):
        raise pickle.UnpicklingError("bytes of no text")
    return text.encode("latin-1")


def _no_bytes() -> bytes:
    return b""  # as protocols 0 to 2 write it


ADMITTED: dict[tuple[str, str], Any] = {
    ("numpy", "ndarray"): _NDARRAY,
    ("numpy", "dtype"): _Kind,
    ("_codecs", "encode"): _encode,
    ("__builtin__", "bytes"): _no_bytes,
}
"""What a plain pickle may ask for, and what of ours it gets."""
for _core in ("numpy.core", "numpy._core"):  # the names of numpy 1 and 2
    ADMITTED[f"{_core}.multiarray", "_reconstruct"] = _empty
    ADMITTED[f"{_core}.multiarray", "scalar"] = _scalar
    ADMITTED[f"{_core}.numeric", "_frombuffer"] = _from_buffer


class _Budget(dict[int, Any]):
    """The instructions of one reading, counted."""

    left = MAX_INSTRUCTIONS

    def __getitem__(self, opcode: int) -> Any:
        self.left -= 1
        if self.left < 0:
            raise pickle.UnpicklingError(f"more than {MAX_INSTRUCTIONS:,} values")
        return super().__getitem__(opcode)

    def __missing__(self, opcode: int) -> Any:
        raise pickle.UnpicklingError(f"the instruction {bytes([opcode])!r}, which plain data does not need")


class PlainUnpickler(_MACHINE):
    """Read one pickle of plain data.

    Args:
        file: binary file, buffer or memory map, at the start of the pickle.
        admitted: (module, name) to the function of ours that answers; everything else is refused by name.

    Raises:  pickle.UnpicklingError and many others: no pickle, damaged, or not plain; nothing has run.
    Cost:    about half a microsecond an instruction.
    """

    def __init__(self, file: Any, admitted: dict[tuple[str, str], Any] | None = None) -> None:
        super().__init__(file, encoding="latin1")
        self._file_read = in_pieces(file.read)
        self.admitted = ADMITTED if admitted is None else admitted
        known = {getattr(pickle, name)[0]: _MACHINE.dispatch[getattr(pickle, name)[0]] for name in _OPCODES}
        own: dict[bytes, Callable[[Any], None]] = {
            pickle.BUILD: PlainUnpickler._build,
            pickle.NEWOBJ: PlainUnpickler._new_object,
            pickle.BYTEARRAY8: PlainUnpickler._read_bytearray,
        }
        self.dispatch = _Budget(known | {key[0]: function for key, function in own.items()})

    def find_class(self, module: str, name: str) -> Any:
        """Return what answers to a name, or refuse it."""
        if (module, name) not in self.admitted:
            raise Asked(f"{str(module)[:80]}.{str(name)[:80]}")
        return self.admitted[module, name]

    def _build(self) -> None:
        state, made = self.stack.pop(), self.stack[-1]
        if isinstance(made, _Kind):
            made.build(state)
        elif isinstance(made, np.ndarray):
            _fill(made, state)
        elif not isinstance(made, (Inert, dict)):  # attributes of a mapping (`_metadata`) are left out
            raise pickle.UnpicklingError(f"the state of a {type(made).__name__}")

    def _new_object(self) -> None:
        self.stack.pop()
        if self.stack[-1] is not Inert:
            raise pickle.UnpicklingError("an object of a class")
        self.stack[-1] = Inert()

    def _read_bytearray(self) -> None:
        size = int.from_bytes(self.read(8), "little")
        content = self.read(size)  # as many as there are, unlike Python's own, which takes the room first
        if len(content) != size:
            raise EOFError("cut")
        self.append(bytearray(content))


def check_unfolded(value: Any, limit: int) -> None:
    """Refuse values whose parts are shared so that they would unfold into more than `limit` items.

    Raises:  Damaged: too many, or a container that holds itself.
    Cost:    each container is looked at once.
    """
    counts: dict[int, int] = {}
    todo: list[tuple[Any, bool]] = [(value, False)]
    opened: set[int] = set()
    while todo:
        item, is_done = todo.pop()
        parts = _parts(item)
        if is_done:
            opened.discard(id(item))
            counts[id(item)] = 1 + sum(counts.get(id(part), 1) for part in parts)
            if counts[id(item)] > limit:
                raise Damaged("its values unfold into more than the file has bytes")
        elif id(item) in opened:
            raise Damaged("a container that holds itself")
        elif parts and id(item) not in counts:
            opened.add(id(item))
            todo.append((item, True))
            todo += [(part, False) for part in parts if _parts(part)]


def _parts(item: Any) -> list[Any]:
    if isinstance(item, dict):
        return [*item.keys(), *item.values()]
    if isinstance(item, np.ndarray):
        return list(item.ravel()) if item.dtype.hasobject else []
    return list(item) if isinstance(item, (list, tuple)) else []
