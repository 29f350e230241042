"""One JSON-lines format for every corpus.

The first line says which corpus and where it lies, each further line is one image with its
captions, and quarantined items stand in the first line by name.  Readers of official layouts make
manifests (`cub.py`, `flickr8k.py`, `digits.py`); `prepare.py` keeps them beside the stores.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from speech2image.data.plain_json import parse_json
from speech2image.data.whole import write_whole
from speech2image.errors import DataError
from speech2image.types import ImageRecord, Utterance

FORMAT, VERSION = "speech2image-manifest", 1
SPLITS = ("train", "val", "test")

MAX_HEAD_BYTES = 32_000_000
"""Longest first line of a manifest: it names 200,000 damaged items."""
MAX_LINE_BYTES = 1_000_000
"""Longest line of an image with its captions."""
MAX_RECORDS = 5_000_000
"""Most images of one corpus; more belong into shards, see `experiments/scaling/`."""
MAX_CAPTION_CHARS = 2_000
"""Longest caption: three minutes of speech."""
MAX_KEY_CHARS = 240
"""Longest key of an image: file systems take names of 255 bytes, and keys become names of files."""
_CONTROL = re.compile("[\x00-\x1f\x7f\x85\u2028\u2029]")


@dataclass(frozen=True, slots=True)
class Problem:
    """One item that was left out: what kind of damage, which file, and what was found."""

    kind: str
    path: str
    message: str


@dataclass(frozen=True)
class Manifest:
    """A corpus as a list of images with captions.

    Attributes:
        corpus: its name.
        root: folder that relative paths start from.
        records: its images, in the official order of each split.
        problems: items that were left out, by name.
        meta: further facts, plain JSON data.
    """

    corpus: str
    root: Path
    records: tuple[ImageRecord, ...]
    problems: tuple[Problem, ...] = ()
    meta: dict[str, Any] = field(default_factory=dict)

    def wave_path(self, utterance: Utterance) -> Path | None:
        """Return the file of an utterance's recording, or None where there is none."""
        return None if utterance.wave is None else self.root / utterance.wave

    def image_path(self, record: ImageRecord) -> Path:
        """Return the file of an image."""
        return self.root / record.path

    def split(self, name: str) -> list[ImageRecord]:
        """Return the images of one split, in order."""
        return [record for record in self.records if record.split == name]

    def digest(self) -> str:
        """Return 16 hex digits over everything the manifest says."""
        text = "\n".join(_lines(self))
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def write_manifest(path: Path, manifest: Manifest) -> None:
    """Write a manifest whole or not at all."""
    write_whole(path, ("\n".join(_lines(manifest)) + "\n").encode())


def key_problem(key: object) -> str | None:
    """Return why a text can be no key of an image or utterance, None where it can.

    Keys become names of files, so none may lead out of its folder.
    """
    if not isinstance(key, str) or not key.strip():
        return "expected a name"
    if len(key.encode("utf-8", "surrogatepass")) > MAX_KEY_CHARS:
        return f"longer than {MAX_KEY_CHARS} bytes"
    if _CONTROL.search(key) or any("\ud800" <= letter <= "\udfff" for letter in key):
        return "it holds control characters"
    if key.startswith("/") or "\\" in key or any(part in ("", ".", "..") for part in key.split("/")):
        return "it leads out of the corpus"
    return None


def read_manifest(path: Path) -> Manifest:
    """Read a manifest.

    Raises:  DataError: missing, of another format, or a damaged line (its number is named).
    """
    number = 0
    try:
        with open(path, "rb") as file:
            lines = _limited_lines(file)
            head = parse_json(next(lines, b""))
            if not isinstance(head, dict) or head.get("format") != FORMAT or head.get("version") != VERSION:
                raise ValueError(f"it is not a {FORMAT} of version {VERSION}")
            records = []
            for number, line in enumerate(lines, start=1):
                records.append(_record(parse_json(line)))
        if len(records) != head["images"]:
            raise ValueError(f"it holds {len(records)} images, its first line says {head['images']}")
        if not isinstance(head["meta"], dict):
            raise TypeError("meta is no mapping")
        problems = tuple(_plain(Problem, problem) for problem in head["problems"])
        root = Path(_text(head["root"], "root"))
        return Manifest(_text(head["corpus"], "corpus"), root, tuple(records), problems, head["meta"])
    except OSError as error:
        raise DataError(f"{path}: the manifest cannot be read ({error})", _REMEDY) from None
    except (IndexError, KeyError, TypeError, ValueError, AttributeError) as error:
        reason = str(error)[:300]
        raise DataError(f"{path}, line {number + 1}: damaged manifest ({reason})", _REMEDY) from None


def _limited_lines(file: BinaryIO) -> Iterator[bytes]:
    """Yield lines, none of them longer than accepted; the newline of the last one may be missing."""
    limit = MAX_HEAD_BYTES
    for _ in range(MAX_RECORDS + 1):
        line = file.readline(limit + 1)
        if not line:
            return
        if len(line) > limit:
            raise ValueError(f"a line longer than {limit:,} bytes")
        yield line.rstrip(b"\n")
        limit = MAX_LINE_BYTES
    if file.read(1):
        raise ValueError(f"more than {MAX_RECORDS:,} images")


_REMEDY = "Delete it and give the same command again: it is written anew."


def _lines(manifest: Manifest) -> Iterable[str]:
    yield json.dumps(
        {
            "format": FORMAT, "version": VERSION, "corpus": manifest.corpus, "root": str(manifest.root),
            "images": len(manifest.records), "meta": manifest.meta,
            "problems": [dataclasses.asdict(problem) for problem in manifest.problems],
        },
        ensure_ascii=False,
    )  # fmt: skip
    for record in manifest.records:
        yield json.dumps(dataclasses.asdict(record), ensure_ascii=False)


def _record(line: dict[str, Any]) -> ImageRecord:
    """Return one image, every field of the type that is promised."""
    if not isinstance(line, dict) or not isinstance(line.get("utterances"), list):
        raise TypeError("expected an image with its utterances")
    utterances = tuple(_utterance(utterance) for utterance in line.pop("utterances"))
    box, class_id = line.pop("box"), line["class_id"]
    if line["split"] not in SPLITS:
        raise ValueError(f"unknown split {str(line['split'])[:20]!r}")
    if type(class_id) is not int or not 0 <= class_id < MAX_RECORDS:
        raise ValueError(f"class_id is {str(class_id)[:20]}")
    if box is not None:
        box = tuple(float(side) for side in box)
        if len(box) != 4 or not all(map(math.isfinite, box)):
            raise ValueError("box is not four numbers")
    _texts(line, ("path", "class_name"))
    return ImageRecord(**_checked(line), box=box, utterances=utterances)


def _utterance(line: dict[str, Any]) -> Utterance:
    if len(_text(line["caption"], "caption")) > MAX_CAPTION_CHARS:
        raise ValueError(f"a caption of {len(line['caption']):,} letters, {MAX_CAPTION_CHARS:,} are accepted")
    if type(line["caption_index"]) is not int:
        raise ValueError("caption_index is no whole number")
    _texts({key: line[key] for key in ("wave", "speaker", "engine") if line.get(key) is not None})
    return Utterance(**_checked(line))


def _checked(line: dict[str, Any]) -> dict[str, Any]:
    problem = key_problem(line["key"])
    if problem:
        raise ValueError(f"key {str(line['key'])[:80]!r}: {problem}")
    if not isinstance(line.get("attributes", {}), dict):
        raise TypeError("attributes is no mapping")
    return line


def _plain(kind: type[Problem], line: dict[str, Any]) -> Problem:
    _texts(line)
    return kind(**line)


def _texts(line: dict[str, Any], names: Iterable[str] | None = None) -> None:
    for name in line if names is None else names:
        _text(line[name], name)


def _text(value: Any, name: str) -> str:
    if not isinstance(value, str) or "\0" in value:
        raise ValueError(f"{name} is no text")
    return value
