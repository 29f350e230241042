"""CLIP's byte-pair tokenizer: captions to rows of its token table, from the published vocabulary file.

Plain Python on the standard library; the vocabulary is a local file whose hash is compared.  The transformer
that reads the tokens is in `clip_transformer.py`.
"""

from __future__ import annotations

import gzip
import html
import itertools
import unicodedata
from collections.abc import Sequence
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import numpy.typing as npt

from speech2image.errors import CheckpointError
from speech2image.text.clip_transformer import CONTEXT, PAD_ID
from speech2image.weight_files import file_sha256

VOCABULARY_FILE = "bpe_simple_vocab_16e6.txt.gz"
VOCABULARY_SHA256 = "924691ac288e54409236115652ad4aa250f48203de50a9e4722a6ecd48d6804a"
_URL = f"https://github.com/openai/CLIP/raw/main/clip/{VOCABULARY_FILE}"
_NUM_MERGES = 49152 - 256 - 2
_ENDINGS = ("'s", "'t", "'re", "'ve", "'m", "'ll", "'d")
_STRAIGHT = str.maketrans({"\u2018": "'", "\u2019": "'", "\u201c": '"', "\u201d": '"'})
_END_OF_WORD = "</w>"


class ClipTokenizer:
    """Split captions into CLIP's tokens.

    Args:
        path: `bpe_simple_vocab_16e6.txt.gz`, or a list of merges like it; None: the copy inside the
            installed package open_clip_torch.
        sha256: expected hash of the file, or its first digits; None: not compared.

    Attributes:
        start, end: tokens before and behind every caption, the last two rows of the table.

    Raises: CheckpointError: the file is missing, damaged or has another hash.
    Source: openai/CLIP, `simple_tokenizer.py`.  Differs: captions are brought to Unicode's composed form and
        their quotes straightened, where CLIP lets `ftfy` repair broken encodings as well.
    """

    def __init__(self, path: Path | str | None = None, sha256: str | None = VOCABULARY_SHA256) -> None:
        merges = _read_merges(_shipped() if path is None else Path(path), sha256)
        letters = list(_byte_letters().values())
        tokens = [
            *letters,
            *(letter + _END_OF_WORD for letter in letters),
            *("".join(pair) for pair in merges),
        ]
        self.ranks = {pair: rank for rank, pair in enumerate(merges)}
        self.ids = {token: row for row, token in enumerate(tokens)}
        self.start, self.end = len(tokens), len(tokens) + 1

    def __call__(self, captions: Sequence[str], context: int = CONTEXT) -> npt.NDArray[np.int64]:
        """Return tokens `(B, context)`: start, words, end, then 0; longer captions lose words, not the end."""
        rows = np.full((len(captions), context), PAD_ID, np.int64)
        for row, caption in zip(rows, captions, strict=True):
            tokens = [self.start, *self.words(caption)[: context - 2], self.end]
            row[: len(tokens)] = tokens
        return rows

    def words(self, caption: str) -> list[int]:
        """Return the tokens of a caption without start and end."""
        letters = _byte_letters()
        found = []
        for word in _split(_clean(caption)):
            spelled = "".join(letters[byte] for byte in word.encode())
            found += [self.ids[part] for part in self._merge(spelled)]
        return found

    def _merge(self, word: str) -> list[str]:
        """Join the pair of lowest rank, everywhere at once, until none is left."""
        parts = [*word[:-1], word[-1] + _END_OF_WORD]
        while len(parts) > 1:
            pairs = list(itertools.pairwise(parts))
            best = min(pairs, key=lambda pair: self.ranks.get(pair, len(self.ranks)))
            if best not in self.ranks:
                break
            joined: list[str] = []
            for part in parts:
                # A part that was just joined may not be joined again in the same round.
                if joined and (joined[-1], part) == best:
                    joined[-1:] = ["".join(best), ""]
                else:
                    joined.append(part)
            parts = [part for part in joined if part]
        return parts


def _clean(caption: str) -> str:
    plain = unicodedata.normalize("NFC", caption.translate(_STRAIGHT))
    return " ".join(html.unescape(html.unescape(plain)).split()).lower()


def _split(text: str) -> list[str]:
    """Split into English endings, runs of letters, single numbers and runs of anything else but spaces."""
    words, place = [], 0
    while place < len(text):
        ending = next((end for end in _ENDINGS if text.startswith(end, place)), None)
        kind = _kind(text[place])
        if ending is not None:
            length = len(ending)
        elif kind == "number":
            length = 1
        else:
            rest = text[place:]
            length = next((count for count, sign in enumerate(rest) if _kind(sign) != kind), len(rest))
        if kind != "space":
            words.append(text[place : place + length])
        place += length
    return words


def _kind(sign: str) -> str:
    category = unicodedata.category(sign)[0]
    return "space" if sign.isspace() else {"L": "letter", "N": "number"}.get(category, "other")


@lru_cache(maxsize=1)
def _byte_letters() -> dict[int, str]:
    """Return a printable letter for every byte, in the order of the vocabulary."""
    printable = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    rest = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {byte: chr(256 + n) for n, byte in enumerate(rest)}


def _shipped() -> Path:
    found = find_spec("open_clip")
    places = [] if found is None else list(found.submodule_search_locations or [])
    return Path(places[0] if places else ".") / VOCABULARY_FILE


def _read_merges(path: Path, sha256: str | None) -> list[tuple[str, str]]:
    remedy = (
        f"Fetch {_URL} on a machine with a network and put it at {path}, or install open_clip_torch"
        " (pip install 'speech2image[clip]') and set encoder.vocabulary_path=null."
    )
    if not path.is_file():
        raise CheckpointError(f"CLIP's vocabulary: no file at {path} (nothing is downloaded here)", remedy)
    digest = file_sha256(path)
    if sha256 and not digest.startswith(sha256.lower()):
        raise CheckpointError(
            f"CLIP's vocabulary: {path} has sha256 {digest[:16]}…, expected {sha256}", remedy
        )
    try:
        lines = gzip.decompress(path.read_bytes()).decode("utf-8").splitlines()
        merges = [tuple(line.split()) for line in lines[1 : 1 + _NUM_MERGES] if line.strip()]
        if any(len(pair) != 2 for pair in merges):
            raise ValueError("a line that is no pair")
    except (OSError, EOFError, ValueError) as error:
        raise CheckpointError(f"CLIP's vocabulary: {path} is damaged: {error}", remedy) from None
    return [(pair[0], pair[1]) for pair in merges]
