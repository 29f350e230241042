"""One JSON-lines format for every corpus.

The first line says which corpus and where it lies, each further line is one image with its
captions, and quarantined items stand in the first line by name.  Readers of official layouts make
manifests (`cub.py`, `flickr8k.py`, `digits.py`); `prepare.py` keeps them beside the stores.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from speech2image.data.whole import write_whole
from speech2image.errors import DataError
from speech2image.types import ImageRecord, Utterance

FORMAT, VERSION = "speech2image-manifest", 1
SPLITS = ("train", "val", "test")


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


def read_manifest(path: Path) -> Manifest:
    """Read a manifest.

    Raises:  DataError: missing, of another format, or a damaged line (its number is named).
    """
    try:
        lines = path.read_bytes().decode("utf-8").rstrip("\n").split("\n")  # captions may hold U+2028
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: the manifest cannot be read ({error})", _REMEDY) from None
    number = 0
    try:
        head = json.loads(lines[0])
        if head.get("format") != FORMAT or head.get("version") != VERSION:
            raise ValueError(f"it is not a {FORMAT} of version {VERSION}")
        records = []
        for number, line in enumerate(lines[1:], start=1):
            records.append(_record(json.loads(line)))
        if len(records) != head["images"]:
            raise ValueError(f"it holds {len(records)} images, its first line says {head['images']}")
        problems = tuple(Problem(**problem) for problem in head["problems"])
        return Manifest(head["corpus"], Path(head["root"]), tuple(records), problems, head["meta"])
    except (IndexError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise DataError(f"{path}, line {number + 1}: damaged manifest ({error})", _REMEDY) from None


_REMEDY = "Make it again: speech2image prepare"


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
    utterances = tuple(Utterance(**utterance) for utterance in line.pop("utterances"))
    box = line.pop("box")
    if line["split"] not in SPLITS:
        raise ValueError(f"unknown split {line['split']!r}")
    return ImageRecord(**line, box=tuple(box) if box else None, utterances=utterances)
