"""CUB-200-2011 in its official layout, with the captions and class-disjoint lists of text-to-image work.

    CUB_200_2011/images/<class>/<file>.jpg       CUB_200_2011/text/<class>/<file>.txt
    CUB_200_2011/audio/<class>/<file>_<k>.wav    CUB_200_2011/{images,bounding_boxes}.txt
    train/filenames.pickle  train/class_info.pickle  test/filenames.pickle  test/class_info.pickle

A text file has one caption a line; `k` is the line of the caption that is spoken, from 0.
`spoken_birds` is written in the same layout and read here too, with `attributes.jsonl` (what images
and captions show) and `audio_index.jsonl` (who speaks) beside it.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np

from speech2image.data.layout import (
    MAX_CAPTIONS_BYTES,
    Findings,
    caption_problem,
    find_root,
    read_index,
    read_lines,
    read_table,
    read_text,
    require_keys,
    small_number,
    unrecorded,
)
from speech2image.data.manifest import Manifest
from speech2image.data.safe_pickle import MAX_LIST_BYTES, read_pickle
from speech2image.errors import DataError
from speech2image.types import ImageRecord, Utterance

FOLDER = "CUB_200_2011"
Box = tuple[float, float, float, float]

_SUFFIXES = (".jpg", ".jpeg", ".png", ".JPG")
_LISTS = ("train/filenames.pickle", "test/filenames.pickle")
_MARKS = (f"{FOLDER}/images", *_LISTS)
_EXPECTED = (
    f"Expected {FOLDER}/images, {FOLDER}/text, {FOLDER}/audio, {FOLDER}/bounding_boxes.txt, "
    "train/filenames.pickle and test/filenames.pickle in it. Type: data.root=<that folder>"
)


def scan_cub(
    root: Path, on_error: str = "raise", val_classes: int = 0, must_be_recorded: bool = True
) -> Manifest:
    """Read the layout of CUB-200-2011.

    Args:
        root: folder that holds `CUB_200_2011/`, `train/` and `test/`; its parent and its subfolders
            are understood too.
        on_error: `raise` on missing files, or `skip` them and name them in the manifest.
        val_classes: training classes, the last ones in order, held out as `val`.
        must_be_recorded: a caption without a recording is damage where nearly all images have one of the
            caption at its place; False: it will be spoken.

    Returns: the manifest; captions without a recording have no `wave`.
    Raises:  DataError: not this layout, a damaged list, too many `val_classes`, or (`raise`) missing
        images, captions or recordings, counted in one message.
    """
    root = find_root(Path(root), _MARKS, "CUB-200", _EXPECTED).resolve()
    findings = Findings(on_error)
    scan = _Scan(root, findings)
    listed = [(split, key, number) for split in ("train", "test") for key, number in _read_split(root, split)]
    held_out = _held_out(root, {number for split, _, number in listed if split == "train"}, val_classes)
    dense = {number: place for place, number in enumerate(sorted({number for _, _, number in listed}))}
    records = []
    for split, key, number in listed:
        name = "val" if split == "train" and number in held_out else split
        record = scan.record(name, key, dense[number])
        if record is not None:
            records.append(record)
    if must_be_recorded:
        scan.name_unrecorded(records)
    findings.finish(len(listed), "images", len(records))
    return Manifest("cub200", root, tuple(records), tuple(findings.problems))


def _read_split(root: Path, split: str) -> list[tuple[str, int]]:
    keys = read_pickle(root / split / "filenames.pickle", MAX_LIST_BYTES)
    numbers = read_pickle(root / split / "class_info.pickle", MAX_LIST_BYTES)
    fits = isinstance(keys, list) and isinstance(numbers, list) and len(keys) == len(numbers)
    classes = [_class_number(number) for number in numbers] if fits else [None]
    if None in classes:
        raise DataError(
            f"{root / split}: filenames.pickle and class_info.pickle are not a list of names and a list of "
            "class numbers of the same length",
            "Get both files from the same source.",
        )
    names = [key.decode("utf-8", "replace") if isinstance(key, bytes) else key for key in keys]
    require_keys(names, root / split / "filenames.pickle")
    return [(key, number) for key, number in zip(names, classes, strict=True) if number is not None]


def _class_number(number: Any) -> int | None:
    return small_number(int(number) if isinstance(number, np.integer) else number)


def _held_out(root: Path, numbers: set[int], val_classes: int) -> set[int]:
    if not 0 <= val_classes < max(len(numbers), 1):
        raise DataError(
            f"val_classes={val_classes}, but {root} has {len(numbers)} training classes",
            f"Type: data.val_classes={max(len(numbers) // 3, 0)} or another number below {len(numbers)}",
        )
    return set(sorted(numbers)[len(numbers) - val_classes :])


class _Scan:
    """What lies in the folders, looked up image by image."""

    def __init__(self, root: Path, findings: Findings) -> None:
        self.root, self.base, self.findings = root, root / FOLDER, findings
        self.boxes = _boxes(self.base, findings)
        self.extras = read_index(root / "attributes.jsonl", "key")
        self.voices = read_index(root / "audio_index.jsonl", "wav")
        audio = self.base / "audio"
        found = audio.rglob("*.wav") if audio.is_dir() else ()
        self.recordings = {path.relative_to(audio).as_posix() for path in found}
        self.gone = self.voices.keys() - self.recordings
        for wav in sorted(self.gone):
            findings.add("missing wav", f"{FOLDER}/audio/{wav}", "audio_index.jsonl lists it")

    def record(self, split: str, key: str, class_id: int) -> ImageRecord | None:
        """Return one image, or None where something of it is missing."""
        paths = (self.base / "images" / f"{key}{suffix}" for suffix in _SUFFIXES)
        image = next((path for path in paths if path.is_file()), None)
        if image is None:
            self.findings.add("missing image", f"{FOLDER}/images/{key}.jpg", "there is no such file")
        captions = self._captions(key)
        if self.boxes and key not in self.boxes:
            self.findings.add("missing box", key, "bounding_boxes.txt has no line for it")
        if image is None or captions is None or (self.boxes and key not in self.boxes):
            return None
        extra = self.extras.get(key, {})
        class_folder = key.split("/")[0]
        return ImageRecord(
            key=key, path=str(image.relative_to(self.root)), split=split, class_id=class_id,
            class_name=class_folder.partition(".")[2] or class_folder, box=self.boxes.get(key),
            attributes=_mapping(extra.get("attributes")),
            utterances=self._utterances(key, captions, extra.get("spoken", [])),
        )  # fmt: skip

    def name_unrecorded(self, records: list[ImageRecord]) -> None:
        """Name the recordings that are not there, though nearly all others are."""
        for utterance in unrecorded(records):
            if f"{utterance.key}.wav" not in self.gone:
                wav = f"{FOLDER}/audio/{utterance.key}.wav"
                self.findings.add("missing wav", wav, "nearly all other images have theirs")

    def _captions(self, key: str) -> dict[int, str] | None:
        name = f"{FOLDER}/text/{key}.txt"
        try:
            lines = read_text(self.root / name, MAX_CAPTIONS_BYTES).split("\n")
        except DataError as error:
            kind = "unreadable captions" if (self.root / name).exists() else "missing captions"
            self.findings.add(kind, name, error.message)
            return None
        captions = {index: line.strip() for index, line in enumerate(lines) if line.strip()}
        problem = next(filter(None, map(caption_problem, captions.values())), None)
        if problem or not captions:
            kind = "unreadable captions" if problem else "empty captions"
            self.findings.add(kind, name, problem or "the file holds no caption")
            return None
        return captions

    def _utterances(self, key: str, captions: dict[int, str], spoken: Any) -> tuple[Utterance, ...]:
        made = []
        for index, caption in captions.items():
            wav = f"{key}_{index}.wav"
            voice: dict[str, Any] = self.voices.get(wav, {})
            wave = f"{FOLDER}/audio/{wav}" if wav in self.recordings else None
            attributes = _mapping(spoken[index]) if isinstance(spoken, list) and index < len(spoken) else {}
            made.append(
                Utterance(
                    f"{key}_{index}",
                    caption,
                    index,
                    wave,
                    _text(voice.get("speaker")),
                    _text(voice.get("engine")),
                    attributes,
                )
            )
        return tuple(made)


def _mapping(value: Any) -> dict[str, str]:
    return {str(key): str(item) for key, item in value.items()} if isinstance(value, dict) else {}


def _text(value: Any) -> str | None:
    return None if value is None else str(value)


def _boxes(base: Path, findings: Findings) -> dict[str, Box]:
    if not (base / "bounding_boxes.txt").is_file() or not (base / "images.txt").is_file():
        raise DataError(
            f"{base}: bounding_boxes.txt and images.txt are needed for the box crop, one is missing",
            _EXPECTED,
        )
    names = read_table(base / "images.txt")
    boxes: dict[str, Box] = {}
    for number, line in enumerate(read_lines(base / "bounding_boxes.txt"), start=1):
        try:
            index, *sides = line.split()
            x, y, width, height = map(float, sides)
            if not all(map(math.isfinite, (x, y, width, height))):
                raise ValueError
            boxes[names[index].rpartition(".")[0]] = (x, y, width, height)
        except (ValueError, KeyError):
            findings.add("bad box", f"{FOLDER}/bounding_boxes.txt line {number}", f"found {line[:60]!r}")
    return boxes
