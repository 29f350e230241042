"""Named arrays with the key of every row, and the released pickles that have none."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from speech2image.data.corpus import Corpus
from speech2image.data.safe_pickle import read_pickle
from speech2image.data.store import RaggedStore
from speech2image.data.whole import write_whole
from speech2image.errors import DataError
from speech2image.safe.records import read_json
from speech2image.safe.tensors import read_header

Float = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Embeddings:
    """Rows of arrays, one an utterance: `keys[i]` belongs to `arrays[name][i]`.

    Attributes:
        keys: one unique key a row.
        arrays: named arrays of as many rows.
        meta: where they come from.
        words: memory-mapped store of `(N, D)` float16 an utterance, by the same keys; None: not kept.
    """

    keys: list[str]
    arrays: dict[str, npt.NDArray[Any]]
    meta: dict[str, Any]
    words: RaggedStore | None = None


def write_embeddings(
    path: Path, keys: Sequence[str], arrays: dict[str, npt.NDArray[Any]], meta: dict[str, Any]
) -> None:
    """Write arrays with the key of each row to one safetensors file, whole or not at all."""
    lengths = {name: len(array) for name, array in arrays.items()}
    if set(lengths.values()) != {len(keys)}:
        raise ValueError(f"{len(keys)} keys for arrays of {lengths} rows")
    header = {"keys": json.dumps(list(keys)), "meta": json.dumps(meta)}
    content = save({name: np.ascontiguousarray(array) for name, array in arrays.items()}, metadata=header)
    write_whole(Path(path), content)


def read_embeddings(path: Path) -> Embeddings:
    """Read a file of `write_embeddings`.

    Raises:  DataError: missing, damaged, or without keys.
    """
    try:
        checked = read_header(Path(path))
        header = checked.metadata
        with safe_open(os.fspath(path), framework="np") as file:
            arrays = {name: file.get_tensor(name) for name in checked.tensors}
        keys, meta = read_json(header["keys"]), read_json(header["meta"])
        if not isinstance(meta, dict) or not isinstance(keys, list) or not all(map(_is_text, keys)):
            raise ValueError("its keys are not texts")
        if any(len(array) != len(keys) for array in arrays.values()):
            raise ValueError("rows and keys differ")
    except (SafetensorError, OSError, KeyError, ValueError, TypeError) as error:
        raise DataError(
            f"{path}: no readable embeddings ({error})",
            "Make them again: speech2image embed run=<encoder run>",
        ) from None
    return Embeddings(keys, arrays, meta)


def _is_text(key: object) -> bool:
    return isinstance(key, str)


def read_published_embeddings(path: Path, corpus: Corpus, split: str) -> Embeddings:
    """Read a released `speech_embeddings_<split>.pickle`: `(images, captions, D)`, in split order.

    Raises:  DataError: the number of images or captions does not fit the split.
    """
    images = read_pickle(path)
    records = corpus.records(split)
    if not isinstance(images, (list, np.ndarray)) or len(images) != len(records):
        found = len(images) if hasattr(images, "__len__") else type(images).__name__
        raise DataError(f"{path}: {found} images, but the {split} split of the corpus has {len(records)}")
    keys, rows = [], []
    for record, captions in zip(records, images, strict=True):
        matrix = _matrix(captions, path)
        for utterance in record.utterances:
            if utterance.caption_index < len(matrix) and utterance.wave is not None:
                keys.append(utterance.key)
                rows.append(matrix[utterance.caption_index])
    if not rows:
        raise DataError(f"{path}: no row belongs to a recorded caption of the {split} split")
    return Embeddings(keys, {"sentence": np.stack(rows)}, {"source": str(path), "split": split})


def _matrix(captions: object, path: Path) -> Float:
    try:
        matrix: Float = np.asarray(captions, np.float32)
    except (TypeError, ValueError) as error:
        raise DataError(f"{path}: the embeddings of an image are no matrix ({error})") from None
    if matrix.ndim != 2:
        raise DataError(
            f"{path}: the embeddings of an image have shape {matrix.shape}, expected (captions, D)"
        )
    return matrix


def read_teacher_features(path: str | Path) -> Float:
    """Read teacher features in the published layout, a pickled list over images of `(views, F)`.

    Returns: `(N, views, F)` float32.
    Raises:  DataError: not a list of equal matrices.
    """
    images = read_pickle(Path(path))
    try:
        features = np.stack([np.asarray(image, np.float32) for image in images])
        if features.ndim != 3 or not np.isfinite(features).all():
            raise ValueError(f"shape {features.shape}")
    except (TypeError, ValueError) as error:
        raise DataError(f"{path}: expected a list of (views, F) matrices of one size ({error})") from None
    return features
