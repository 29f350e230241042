"""A store gives back what was appended, however often its writer was killed on the way."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from speech2image.data.store import RaggedStore, RaggedWriter

dtypes = st.sampled_from([np.uint8, np.float32, np.int64])


@st.composite
def contents(draw: st.DrawFn) -> list[np.ndarray]:
    dtype, ndim = draw(dtypes), draw(st.integers(1, 3))
    shape = arrays.array_shapes(min_dims=ndim, max_dims=ndim, min_side=0, max_side=5)
    return draw(st.lists(arrays.arrays(dtype, shape), min_size=1, max_size=8))


@settings(max_examples=60, deadline=None)
@given(contents(), st.lists(st.tuples(st.integers(0, 8), st.integers(0, 40)), max_size=3))
def test_killed_and_continued_store_equals_what_was_appended(
    items: list[np.ndarray], kills: list[tuple[int, int]]
) -> None:
    keys = [f"key {number}" for number in range(len(items))]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "store"
        for count, lost in kills:
            writer = RaggedWriter(folder, keys, items[0].dtype, "f")
            for item in items[writer.next_index : writer.next_index + count]:
                writer.append(item)
            writer.close()
            with (folder / "data.part").open("ab") as file:  # what the system had or had not written
                file.truncate(max(0, file.tell() - lost)) if lost % 2 else file.write(b"\xff" * lost)
        writer = RaggedWriter(folder, keys, items[0].dtype, "f")
        for item in items[writer.next_index :]:
            writer.append(item)
        writer.commit()
        store = RaggedStore.open(folder, verify=True)
        assert store.keys == keys
        for number, item in enumerate(items):
            assert store[number].shape == item.shape
            assert store[number].tobytes() == item.tobytes()
