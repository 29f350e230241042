"""Any manifest survives being written and read, whatever its captions hold but control characters."""

from __future__ import annotations

import tempfile
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from speech2image.data.manifest import Manifest, Problem, key_problem, read_manifest, write_manifest
from speech2image.types import ImageRecord, Utterance

# Control characters, which could steer a terminal, are replaced by readers.
texts = st.text(st.characters(exclude_categories=("Cs", "Cc")), max_size=20)
keys = texts.filter(lambda key: key_problem(key) is None)  # files are named so
maybe = st.none() | texts
facts = st.dictionaries(texts, texts, max_size=3)
utterances = st.builds(
    Utterance, keys, texts, st.integers(0, 9), wave=maybe, speaker=maybe, engine=maybe, attributes=facts
)
sides = st.floats(0, 1000, allow_nan=False)
records = st.builds(
    ImageRecord, keys, texts, st.sampled_from(["train", "val", "test"]), st.integers(0, 300), texts,
    box=st.none() | st.tuples(sides, sides, sides, sides), attributes=facts,
    utterances=st.lists(utterances, max_size=3).map(tuple),
)  # fmt: skip
manifests = st.builds(
    Manifest, texts, st.just(Path("/corpus")), st.lists(records, max_size=4).map(tuple),
    st.lists(st.builds(Problem, texts, texts, texts), max_size=2).map(tuple),
    st.dictionaries(texts, st.integers() | texts, max_size=2),
)  # fmt: skip


@settings(max_examples=150, deadline=None)
@given(manifests)
def test_manifest_comes_back_equal(manifest: Manifest) -> None:
    with tempfile.TemporaryDirectory() as folder:
        write_manifest(Path(folder) / "m.jsonl", manifest)
        found = read_manifest(Path(folder) / "m.jsonl")
    assert found == manifest
    assert found.digest() == manifest.digest()
