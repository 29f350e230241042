"""JSON of files that may be damaged or hostile: one kind of error, no matter what they hold.

Here is one function that manifests, stores, indexes and lists share.  What a value must look like is
checked by those who read it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from speech2image.safe.records import read_json

__all__ = ["parse_json", "read_json_file"]

MAX_FILE_BYTES = 1_000_000
"""Largest small JSON file (`store.json`, `corpus.json`, stamps)."""


def parse_json(text: str | bytes) -> Any:
    """Parse one JSON text.

    Raises:  ValueError: it is no JSON, is nested too deeply, or holds half a surrogate pair, which no file
        could be written with again.
    """
    text = text.decode("utf-8") if isinstance(text, bytes) else text
    value = read_json(text)
    if "\\ud" in text or "\\uD" in text:
        json.dumps(value, ensure_ascii=False).encode("utf-8")
    return value


def read_json_file(path: Path) -> dict[str, Any]:
    """Read a small JSON file that holds one object.

    Raises:  OSError: it cannot be read.  ValueError: it is no JSON object, or larger than 1 MB.
    """
    with open(path, "rb") as file:
        raw = file.read(MAX_FILE_BYTES + 1)
    if len(raw) > MAX_FILE_BYTES:
        raise ValueError(f"{path.name} is larger than {MAX_FILE_BYTES:,} bytes")
    value = parse_json(raw)
    if isinstance(value, dict):
        return value
    raise ValueError(f"{path.name} holds no JSON object")
