"""A prepared corpus, opened for reading: manifest, mel features and images side by side."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property, wraps
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from speech2image.data.manifest import Manifest, read_manifest
from speech2image.data.plain_json import read_json_file
from speech2image.data.store import RaggedStore
from speech2image.data.store_index import seal_of
from speech2image.errors import DataError
from speech2image.types import ImageRecord, Utterance

Kept = TypeVar("Kept")


def _remembered(method: Callable[[Corpus, str], Kept]) -> Callable[[Corpus, str], Kept]:
    """Keep what a method returns for each split on the corpus itself.

    A cache of functools on the method would keep the corpus: in a sweep each job opens its own, half a gigabyte of a
    bird corpus with its maps and their open files.
    """

    @wraps(method)
    def remembering(self: Corpus, split: str) -> Kept:
        key = (method.__name__, split)
        if key not in self._kept:
            self._kept[key] = method(self, split)
        found: Kept = self._kept[key]
        return found

    return remembering


class Corpus:
    """One folder of `prepare`.

    Args:
        folder: holds `manifest.jsonl`, `corpus.json` and the stores `mel/` and `images/`.
        was_ready: the folder was complete already when `prepare` looked.

    Attributes:
        manifest: images and captions; recordings that `prepare` made are named in it.
        mel: features `(T, M)` float32, keyed by `Utterance.wave`.
        images: `(H, W, 3)` uint8 with the shorter side at the loading size, keyed by image.
        image_px: side of the largest crop a model sees.
        fingerprint: what all of it depends on.
        is_spoken: False: captions are read as text, `mel` is empty.
    """

    def __init__(self, folder: Path, was_ready: bool = True) -> None:
        self.folder, self.was_ready = Path(folder), was_ready
        self._kept: dict[tuple[str, str], Any] = {}
        try:
            record = read_json_file(self.folder / "corpus.json")
            self.image_px, self.fingerprint = int(record["image_px"]), str(record["fingerprint"])
            self.is_spoken = record.get("front_end", {}) is not None
            manifest = self.folder / "manifest.jsonl"
            if "seal" in record and record["seal"] != seal_of(record, manifest.read_bytes()):
                raise ValueError("corpus.json and manifest.jsonl are not those that were written together")
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(
                f"{folder} is no prepared corpus ({error})",
                f"Type: rm '{self.folder / 'corpus.json'}', then the same command again: both are written anew.",
            ) from None
        self.manifest: Manifest = read_manifest(manifest)
        self.mel = RaggedStore.open(self.folder / "mel")
        self.images = RaggedStore.open(self.folder / "images")

    @_remembered
    def records(self, split: str) -> list[ImageRecord]:
        """Return the images of a split, in order."""
        return self.manifest.split(split)

    @_remembered
    def utterances(self, split: str) -> list[tuple[int, Utterance]]:
        """Return the utterances of a split with the row of their image: those with a recording.

        Where captions are read as text, all of them.
        """
        return [
            (row, utterance)
            for row, record in enumerate(self.records(split))
            for utterance in record.utterances
            if utterance.wave is not None or not self.is_spoken
        ]

    @_remembered
    def image_rows(self, split: str) -> npt.NDArray[np.int64]:
        """Return the row in `images` of each image of a split, `(N,)`."""
        return np.array([self.images.index(record.key) for record in self.records(split)], np.int64)

    @_remembered
    def mel_rows(self, split: str) -> npt.NDArray[np.int64]:
        """Return the row in `mel` of each utterance of a split, `(U,)`."""
        return np.array(
            [self.mel.index(str(utterance.wave)) for _, utterance in self.utterances(split)], np.int64
        )

    @_remembered
    def class_ids(self, split: str) -> npt.NDArray[np.int64]:
        """Return the class of each image of a split, `(N,)`."""
        return np.array([record.class_id for record in self.records(split)], np.int64)

    @cached_property
    def class_names(self) -> list[str]:
        """Return the name of each class, by class number."""
        names = {record.class_id: record.class_name for record in self.manifest.records}
        return [names.get(number, "") for number in range(max(names, default=-1) + 1)]

    def wave_path(self, utterance: Utterance) -> Path | None:
        """Return the file of an utterance's recording."""
        return self.manifest.wave_path(utterance)
