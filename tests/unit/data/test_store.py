"""The memory-mapped store: what is written is read, hashes hold, other content starts anew."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest

from speech2image.data.store import RaggedStore, RaggedWriter, is_complete
from speech2image.errors import DataError

ARRAYS = [np.arange(n * 3, dtype=np.float32).reshape(n, 3) + n for n in (4, 0, 1, 7)]
KEYS = ["a/1", "ümlaut", "line\u2028mark", "d"]


def _write(path: Path, fingerprint: str = "f") -> RaggedStore:
    writer = RaggedWriter(path, KEYS, np.float32, fingerprint)
    for array in ARRAYS[writer.next_index :]:
        writer.append(array)
    writer.commit()
    return RaggedStore.open(path, verify=True)


def test_arrays_and_keys_come_back(tmp_path: Path) -> None:
    store = _write(tmp_path / "s")
    assert store.keys == KEYS
    assert len(store) == 4
    for key, array in zip(KEYS, ARRAYS, strict=True):
        found = store[store.index(key)]
        assert found.dtype == np.float32
        assert np.array_equal(found, array)
    assert sorted(path.name for path in (tmp_path / "s").iterdir()) == [
        "data.bin", "index.npz", "keys.txt", "store.json",
    ]  # fmt: skip


def test_items_are_views_that_cannot_be_written(tmp_path: Path) -> None:
    store = _write(tmp_path / "s")
    assert store[0].base is not None
    with pytest.raises(ValueError, match="read-only"):
        store[0][0, 0] = 1


def test_interrupted_writer_continues_and_gives_the_same_bytes(tmp_path: Path) -> None:
    _write(tmp_path / "whole")
    writer = RaggedWriter(tmp_path / "s", KEYS, np.float32, "f")
    writer.append(ARRAYS[0])
    writer.append(ARRAYS[1])
    del writer  # neither closed nor committed
    again = RaggedWriter(tmp_path / "s", KEYS, np.float32, "f")
    assert again.next_index == 2
    again.close()
    _write(tmp_path / "s")
    for name in ("data.bin", "keys.txt", "store.json"):
        assert (tmp_path / "s" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_commit_interrupted_after_its_rename_loses_nothing(tmp_path: Path) -> None:
    writer = RaggedWriter(tmp_path / "s", KEYS, np.float32, "f")
    for array in ARRAYS:
        writer.append(array)
    writer.close()
    (tmp_path / "s" / "data.part").rename(tmp_path / "s" / "data.bin")
    again = RaggedWriter(tmp_path / "s", KEYS, np.float32, "f")
    assert again.next_index == 4
    again.commit()
    assert np.array_equal(RaggedStore.open(tmp_path / "s", verify=True)[3], ARRAYS[3])


def test_cut_data_is_appended_again_from_the_last_whole_item(tmp_path: Path) -> None:
    writer = RaggedWriter(tmp_path / "s", KEYS, np.float32, "f")
    for array in ARRAYS[:3]:
        writer.append(array)
    writer.close()
    part = tmp_path / "s" / "data.part"
    part.write_bytes(part.read_bytes()[:-2])  # a machine that lost power
    again = RaggedWriter(tmp_path / "s", KEYS, np.float32, "f")
    assert again.next_index == 2


@pytest.mark.parametrize("what", ["fingerprint", "keys"])
def test_progress_of_other_content_is_thrown_away(tmp_path: Path, what: str) -> None:
    writer = RaggedWriter(tmp_path / "s", KEYS, np.float32, "f")
    writer.append(ARRAYS[0])
    writer.close()
    keys, fingerprint = (KEYS, "g") if what == "fingerprint" else (["z", *KEYS[1:]], "f")
    assert RaggedWriter(tmp_path / "s", keys, np.float32, fingerprint).next_index == 0


def test_unfinished_store_does_not_exist(tmp_path: Path) -> None:
    writer = RaggedWriter(tmp_path / "s", KEYS, np.float32, "f")
    writer.append(ARRAYS[0])
    with pytest.raises(ValueError, match="1 arrays for 4 keys"):
        writer.commit()
    assert not is_complete(tmp_path / "s", "f")
    with pytest.raises(DataError, match="no readable store"):
        RaggedStore.open(tmp_path / "s")


def test_complete_means_the_same_fingerprint(tmp_path: Path) -> None:
    _write(tmp_path / "s")
    assert is_complete(tmp_path / "s", "f")
    assert not is_complete(tmp_path / "s", "g")
    assert not is_complete(tmp_path / "nowhere", "f")


def test_flipped_bit_is_found_by_verify(tmp_path: Path) -> None:
    _write(tmp_path / "s")
    content = bytearray((tmp_path / "s" / "data.bin").read_bytes())
    content[17] ^= 4
    (tmp_path / "s" / "data.bin").write_bytes(content)
    store = RaggedStore.open(tmp_path / "s")
    with pytest.raises(DataError, match="damaged"):
        store.verify()


def test_cut_store_is_found_when_opened(tmp_path: Path) -> None:
    _write(tmp_path / "s")
    content = (tmp_path / "s" / "data.bin").read_bytes()
    (tmp_path / "s" / "data.bin").write_bytes(content[:-1])
    with pytest.raises(DataError, match="expected"):
        RaggedStore.open(tmp_path / "s")


def test_unknown_key_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="'nobody'"):
        _write(tmp_path / "s").index("nobody")


def test_wrong_type_is_refused(tmp_path: Path) -> None:
    writer = RaggedWriter(tmp_path / "s", KEYS, np.float32, "f")
    with pytest.raises(ValueError, match="float64"):
        writer.append(np.zeros(3))


def _sum(store: RaggedStore) -> float:
    return float(store[3].sum())


def test_pickled_store_is_a_path_not_a_copy(tmp_path: Path) -> None:
    store = _write(tmp_path / "s")
    assert len(pickle.dumps(store)) < 500
    assert _sum(pickle.loads(pickle.dumps(store))) == _sum(store)


@pytest.mark.parametrize(
    ("kept_share", "length", "is_advised"), [(0.0, 5000, True), (0.5, 5000, False), (0.0, 50_000, False)]
)
def test_small_items_of_a_store_beyond_memory_are_not_read_ahead(
    kept_share: float, length: int, is_advised: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from speech2image.data import store as store_module

    monkeypatch.setattr(store_module, "KEPT_SHARE", kept_share)
    path = tmp_path / "store"
    writer = RaggedWriter(path, ["a", "b"], np.float32, "f")
    arrays = [np.arange(length, dtype=np.float32), np.ones(3, np.float32)]
    for array in arrays:
        writer.append(array)
    writer.commit()
    store = RaggedStore.open(path)
    assert all(np.array_equal(store[place], array) for place, array in enumerate(arrays))
    maps = Path("/proc/self/smaps").read_text().split(str(path / "data.bin"))
    flags = next(line for line in maps[1].splitlines() if line.startswith("VmFlags")).split()
    assert ("rr" in flags) == is_advised
