"""Named arrays with the key of every row, and the released pickles that have none."""

from __future__ import annotations

import hashlib
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
from speech2image.data.plain_json import parse_json
from speech2image.data.safe_pickle import read_pickle
from speech2image.data.store import RaggedStore
from speech2image.data.whole import write_whole
from speech2image.errors import DataError
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
    arrays = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    header = {"keys": json.dumps(list(keys)), "meta": json.dumps(meta)}
    header["sha256"] = _sha256(header, arrays)
    write_whole(Path(path), save(arrays, metadata=header))


def _sha256(header: dict[str, str], arrays: dict[str, npt.NDArray[Any]]) -> str:
    """Return a hash over keys, origin and every number."""
    digest = hashlib.sha256()
    for text in (
        header["keys"],
        header["meta"],
        *(f"{name} {arrays[name].shape}" for name in sorted(arrays)),
    ):
        digest.update(text.encode() + b"\0")
    for name in sorted(arrays):
        digest.update(arrays[name].tobytes())
    return digest.hexdigest()


def read_embeddings(path: Path) -> Embeddings:
    """Read a file of `write_embeddings`; every byte of it is compared with its hash.

    Raises:  DataError: missing, damaged, without keys, or holding other than finite numbers.
    """
    try:
        checked = read_header(Path(path))
        header = checked.metadata
        with safe_open(os.fspath(path), framework="np") as file:
            arrays = {name: file.get_tensor(name) for name in checked.tensors}
        keys, meta = parse_json(header["keys"]), parse_json(header["meta"])
        if not isinstance(keys, list) or not isinstance(meta, dict) or len(set(map(str, keys))) != len(keys):
            raise ValueError("its keys are no list of different names")
        if any(array.ndim == 0 or len(array) != len(keys) for array in arrays.values()):
            raise ValueError("rows and keys differ")
        if "sha256" in header and header["sha256"] != _sha256(header, arrays):
            raise ValueError("its content is not what was written")
        broken = [name for name, array in arrays.items() if array.dtype.kind == "f" and not _is_finite(array)]
        if broken:
            raise ValueError(f"{', '.join(broken)}: NaN or infinite numbers")
    except (SafetensorError, OSError, KeyError, ValueError, TypeError) as error:
        raise DataError(
            f"{path}: no readable embeddings ({error})",
            f"Type: rm '{path}', then the same command again; or speech2image embed run=<encoder run>",
        ) from None
    return Embeddings(keys, arrays, meta)


def _is_finite(array: npt.NDArray[Any]) -> bool:
    return bool(np.isfinite(array).all())


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
    if len({len(row) for row in rows}) != 1:
        raise DataError(f"{path}: embeddings of unequal width", "Get the file from its original source.")
    return Embeddings(keys, {"sentence": np.stack(rows)}, {"source": str(path), "split": split})


def _matrix(value: Any, path: Path) -> Float:
    """Return one image's rows `(R, D)` as finite float32.

    Raises:  DataError: it is no matrix of finite numbers.
    """
    try:
        matrix = np.asarray(value, np.float32)
        if matrix.ndim == 2 and _is_finite(matrix):
            return matrix
        found = f"shape {matrix.shape}" + ("" if _is_finite(matrix) else " with NaN or infinite numbers")
    except (TypeError, ValueError, OverflowError) as error:
        found = str(error)
    raise DataError(
        f"{path}: expected a matrix of finite numbers for each image ({found[:200]})",
        "Get the file from its original source.",
    )


def read_teacher_features(path: str | Path) -> Float:
    """Read teacher features in the published layout, a pickled list over images of `(views, F)`.

    Returns: `(N, views, F)` float32.
    Raises:  DataError: not a list of equal matrices.
    """
    images = read_pickle(Path(path))
    matrices = (
        [_matrix(image, Path(path)) for image in images] if isinstance(images, (list, np.ndarray)) else []
    )
    if not matrices or len({matrix.shape for matrix in matrices}) != 1:
        raise DataError(
            f"{path}: expected a list of (views, F) matrices of one size", "Get it from its original source."
        )
    return np.stack(matrices)
