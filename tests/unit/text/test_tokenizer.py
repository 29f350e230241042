"""CLIP's tokenizer: splitting, merging, the published file's form, and files that are not it."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from speech2image.errors import CheckpointError
from speech2image.text.tokenizer import VOCABULARY_SHA256, ClipTokenizer, _split

MERGES = ["i r", "b ir", "bir d</w>", "r e", "re d</w>", "a a", "aa a</w>"]


@pytest.fixture(scope="session")
def vocabulary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("vocabulary") / "merges.txt.gz"
    path.write_bytes(gzip.compress("\n".join(["#version: 0.2", *MERGES, ""]).encode()))
    return path


@pytest.fixture(scope="session")
def tokenizer(vocabulary: Path) -> ClipTokenizer:
    return ClipTokenizer(vocabulary, None)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a bird's wing", ["a", "bird", "'s", "wing"]),
        ("they've 12 wings!", ["they", "'ve", "1", "2", "wings", "!"]),
        ("snow_white -- no.3½", ["snow", "_", "white", "--", "no", ".", "3", "½"]),
        ("café 日本 !?'s", ["café", "日本", "!?'", "s"]),
    ],
)
def test_text_is_split_like_clip_splits_it(text: str, words: list[str]) -> None:
    assert _split(text) == words


def test_merges_follow_their_rank_and_words_end(tokenizer: ClipTokenizer) -> None:
    names = {row: token for token, row in tokenizer.ids.items()}

    def spelled(caption: str) -> list[str]:
        return [names[row] for row in tokenizer.words(caption)]

    assert spelled("A  red Bird") == ["a</w>", "red</w>", "bird</w>"]
    assert spelled("birds") == ["bir", "d", "s</w>"], "the last letter belongs to the end of the word"
    assert spelled("aaaa") == ["aa", "a", "a</w>"], "from left to right"
    assert spelled("aaa") == ["aaa</w>"]
    assert spelled("&amp;") == ["&</w>"]
    assert spelled("“it”") == ['"</w>', "i", "t</w>", '"</w>']


def test_rows_are_start_words_end_and_padding(tokenizer: ClipTokenizer) -> None:
    assert (tokenizer.start, tokenizer.end) == (512 + len(MERGES), 513 + len(MERGES))
    rows = tokenizer(["red bird", "", "bird " * 100])
    assert rows.shape == (3, 77) and rows.dtype == "int64"
    assert rows[0, 0] == tokenizer.start and rows[0, 3] == tokenizer.end and not rows[0, 4:].any()
    assert list(rows[1, :2]) == [tokenizer.start, tokenizer.end] and not rows[1, 2:].any()
    assert rows[2, -1] == tokenizer.end and (rows[2, 1:-1] == tokenizer.ids["bird</w>"]).all()


@settings(deadline=None, max_examples=80)
@given(st.text(st.characters(min_codepoint=32, max_codepoint=126, exclude_characters="&"), max_size=40))
def test_tokens_spell_the_text(vocabulary: Path, text: str) -> None:
    tokenizer = ClipTokenizer(vocabulary, None)
    names = {row: token for token, row in tokenizer.ids.items()}
    spelled = "".join(names[row] for row in tokenizer.words(text)).replace("</w>", "")
    assert spelled == "".join(text.lower().split())


@settings(deadline=None, max_examples=80)
@given(st.text(max_size=40))
def test_any_text_has_tokens(vocabulary: Path, text: str) -> None:
    tokenizer = ClipTokenizer(vocabulary, None)
    assert all(0 <= row < tokenizer.start for row in tokenizer.words(text))


def test_wrong_files_are_refused(tmp_path: Path, vocabulary: Path) -> None:
    with pytest.raises(CheckpointError, match="no file at .*absent.gz") as caught:
        ClipTokenizer(tmp_path / "absent.gz")
    assert "github.com/openai/CLIP" in caught.value.remedy
    with pytest.raises(CheckpointError, match=f"expected {VOCABULARY_SHA256}"):
        ClipTokenizer(vocabulary)
    damaged = tmp_path / "damaged.gz"
    damaged.write_bytes(vocabulary.read_bytes()[:-9])
    with pytest.raises(CheckpointError, match="is damaged"):
        ClipTokenizer(damaged, None)
    triples = tmp_path / "triples.gz"
    triples.write_bytes(gzip.compress(b"#version\na b c\n"))
    with pytest.raises(CheckpointError, match="a line that is no pair"):
        ClipTokenizer(triples, None)
