"""The restricted unpickler: published lists and arrays come through, code never runs."""

from __future__ import annotations

import collections
import datetime
import os
import pickle
import pickletools
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from speech2image.data.safe_pickle import read_pickle
from speech2image.errors import DataError


def _write(path: Path, value: Any, protocol: int) -> Path:
    path.write_bytes(pickle.dumps(value, protocol=protocol))
    return path


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_plain_values_come_through(tmp_path: Path, protocol: int) -> None:
    value = [["001.Bird/Bird_0001", "ä"], [1, 2, 2**70], (1.5, True, None), {"a": b"\xff\0"}]
    assert read_pickle(_write(tmp_path / "a.pickle", value, protocol)) == value


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_numeric_arrays_come_through(tmp_path: Path, protocol: int) -> None:
    value = [np.arange(12, dtype=np.float32).reshape(3, 4), np.float64(2.5), np.int64(7)]
    found = read_pickle(_write(tmp_path / "a.pickle", value, protocol))
    assert np.array_equal(found[0], value[0])
    assert found[0].dtype == np.float32
    assert found[1:] == value[1:]


def test_python_2_pickle_with_old_numpy_names_is_read(tmp_path: Path) -> None:
    # What Python 2 and numpy 1 wrote for [array([1.0, 2.0], '<f4'), 'abc'] with protocol 2.
    content = (
        b"\x80\x02]q\x00(cnumpy.core.multiarray\n_reconstruct\nq\x01cnumpy\nndarray\nq\x02K\x00\x85q\x03U\x01b"
        b"q\x04\x87q\x05Rq\x06(K\x01K\x02\x85q\x07cnumpy\ndtype\nq\x08U\x02f4q\tK\x00K\x01\x87q\nRq\x0b(K\x03"
        b"U\x01<q\x0cNNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tq\rb\x89U\x08\x00\x00\x80?\x00\x00\x00@q\x0e"
        b"tq\x0fbU\x03abcq\x10e."
    )
    (tmp_path / "old.pickle").write_bytes(content)
    array, text = read_pickle(tmp_path / "old.pickle")
    assert array.tolist() == [1.0, 2.0]
    assert text == "abc"


class _Canary:
    def __init__(self, call: Any, *arguments: Any) -> None:
        self.made_of = (call, arguments)

    def __reduce__(self) -> Any:
        return self.made_of


def _touch(path: str) -> None:
    Path(path).write_text("executed")


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_code_in_a_pickle_is_not_executed(tmp_path: Path, protocol: int) -> None:
    canary = tmp_path / "canary"
    attacks = [
        _Canary(os.system, f"touch {canary}"),
        _Canary(eval, f"open({str(canary)!r}, 'w')"),
        _Canary(exec, f"open({str(canary)!r}, 'w')"),
        _Canary(open, str(canary), "w"),
        [1, {"a": (_Canary(os.mkdir, str(canary)),)}],
    ]
    for attack in attacks:
        path = _write(tmp_path / "evil.pickle", attack, protocol)
        with pytest.raises(DataError, match=r"evil\.pickle: refused"):
            read_pickle(path)
        assert not canary.exists()
    pickle.loads(pickle.dumps(_Canary(os.mkdir, str(canary))))
    assert canary.exists(), "the attack itself works, so the test above can fail"


def test_attribute_walks_through_admitted_names_are_refused(tmp_path: Path) -> None:
    for module, name in (
        ("numpy", "load"), ("numpy", "ndarray.tofile"), ("numpy.core.multiarray", "fromfile"), ("builtins", "getattr"),
        ("numpy._core.multiarray", "_reconstruct.__class__"), ("posix", "system"), ("_codecs", "open"),
    ):  # fmt: skip
        content = (
            b"\x80\x04"
            + b"".join(b"\x8c" + bytes([len(text)]) + text.encode() for text in (module, name))
            + b"\x93."
        )
        pickletools.dis(content, out=open(os.devnull, "w"))  # noqa: SIM115  a well-formed pickle
        (tmp_path / "walk.pickle").write_bytes(content)
        with pytest.raises(DataError, match="it asks for"):
            read_pickle(tmp_path / "walk.pickle")


def test_other_classes_are_refused_by_name(tmp_path: Path) -> None:
    for value, name in (
        (datetime.date(2020, 1, 1), "datetime.date"),
        (collections.OrderedDict(a=1), "collections.OrderedDict"),
        ({1, 2}, "set"),
        (1j, "complex"),
    ):
        with pytest.raises(DataError, match=name):
            read_pickle(_write(tmp_path / "a.pickle", value, 2))


@pytest.mark.parametrize(
    "content", [b"", b"\x80", b"not a pickle", b"\x80\x04]", b"(" * 5000 + b".", b"\x80\xff."]
)
def test_damaged_pickle_is_one_message(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.pickle").write_bytes(content)
    with pytest.raises(DataError, match=r"a\.pickle: refused"):
        read_pickle(tmp_path / "a.pickle")


def test_list_that_holds_itself_is_refused(tmp_path: Path) -> None:
    value: list[Any] = [1]
    value.append(value)
    with pytest.raises(DataError, match="stands in several places"):
        read_pickle(_write(tmp_path / "a.pickle", value, 2))


def test_shared_lists_that_would_unfold_are_refused(tmp_path: Path) -> None:
    value: list[Any] = [0, 0]
    for _ in range(60):
        value = [value, value]
    path = _write(tmp_path / "a.pickle", value, 2)
    assert path.stat().st_size < 1000
    with pytest.raises(DataError, match="several places"):
        read_pickle(path)


def test_five_bytes_that_make_the_c_unpickler_take_34_gigabytes_take_none(tmp_path: Path) -> None:
    import contextlib
    import tracemalloc

    for content in (
        b"\x80\x02]r\xff\xff\xff\x7f.",  # memo slot 2^31 - 1
        b"\x80\x05\x96\xff\xff\xff\xff\x1f\x00\x00\x00abc.",  # bytearray of 137 GB
        b"\x80\x02cnumpy\nndarray\nJ\xff\xff\xff\x7f\x85R.",  # an array by its constructor
    ):
        (tmp_path / "a.pickle").write_bytes(content)
        tracemalloc.start()
        with contextlib.suppress(DataError):
            read_pickle(tmp_path / "a.pickle")
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 1e6


def test_array_that_says_more_than_it_holds_is_refused(tmp_path: Path) -> None:
    content = pickle.dumps(np.zeros(4, np.float32), protocol=2)
    assert b"K\x04\x85" in content
    (tmp_path / "a.pickle").write_bytes(content.replace(b"K\x04\x85", b"J\xff\xff\xff\x7f\x85", 1))
    with pytest.raises(DataError, match="holds 16 bytes"):
        read_pickle(tmp_path / "a.pickle")


def test_missing_pickle_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"gone\.pickle"):
        read_pickle(tmp_path / "gone.pickle")
