"""Open a corpus from its configuration: make it, scan it, prepare it as far as needed."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from speech2image.data.corpus import Corpus
from speech2image.data.manifest import Manifest
from speech2image.data.turns import one_at_a_time

if TYPE_CHECKING:  # torch is imported only when a corpus is opened
    from speech2image.data.front_ends import AnyFrontEnd


def open_corpus(data: dict[str, Any], audio: dict[str, Any], paths: dict[str, Any]) -> Corpus:
    """Make, scan and prepare a corpus as far as needed, and open it.

    Args:
        data: the group of that name.
        audio: the group of that name: how recordings are heard; named `captions`: not at all, captions are read.
        paths: the group of that name.
    """
    from speech2image.data.front_ends import front_end_of
    from speech2image.data.prepare import prepare_corpus

    front_end = front_end_of(audio)
    is_made = data["name"] in ("spoken_birds", "spoken_digits") and data["make"] is not None
    with one_at_a_time(Path(data["root"])) if is_made else nullcontext():
        manifest = scan(data)
    folder = cache_folder(data, front_end, paths)
    with one_at_a_time(folder):
        return prepare_corpus(
            manifest,
            folder,
            front_end,
            image_px=data["image_px"],
            speak=data["speak"],
            max_captions=data["max_captions"],
            on_error=data["on_error"],
        )


def cache_folder(data: dict[str, Any], front_end: AnyFrontEnd | None, paths: dict[str, Any]) -> Path:
    """Return the folder of the prepared corpus: one for each way to prepare it."""
    name = "captions" if front_end is None else front_end.name
    defining = {
        key: data[key] for key in ("name", "image_px", "max_captions", "val_classes", "speak", "make")
    }
    weights = getattr(front_end, "sha256", None)  # states of other weights lie elsewhere
    audio = name if weights is None else f"{name} {weights}"
    defining |= {"root": str(Path(data["root"]).resolve()), "audio": audio}
    digest = hashlib.sha256(json.dumps(defining, sort_keys=True).encode()).hexdigest()[:8]
    return Path(paths["cache"]) / f"{data['name']}-{data['image_px']}px-{name}-{digest}"


def scan(data: dict[str, Any]) -> Manifest:
    """Read the layout of a corpus; embedded corpora are made first where they are missing."""
    root = Path(data["root"])
    if data["name"] == "spoken_birds":
        from speech2image.data.birds import make_spoken_birds
        from speech2image.data.cub import scan_cub

        if data["make"] is not None:
            make_spoken_birds(root, **data["make"])
        return _named(
            scan_cub(root, data["on_error"], data["val_classes"], data["speak"] is None), "spoken_birds"
        )
    if data["name"] == "spoken_digits":
        from speech2image.data.digits import make_spoken_digits, scan_spoken_digits

        if data["make"] is not None:
            recordings = data["make"]["recordings"]
            make_spoken_digits(root, Path(recordings) if recordings else None, data["make"]["seed"])
        return scan_spoken_digits(root)
    if data["name"] == "cub200":
        from speech2image.data.cub import scan_cub

        return scan_cub(root, data["on_error"], data["val_classes"], data["speak"] is None)
    from speech2image.data.flickr8k import scan_flickr8k

    return scan_flickr8k(root, data["on_error"])


def _named(manifest: Manifest, name: str) -> Manifest:
    return dataclasses.replace(manifest, corpus=name)
