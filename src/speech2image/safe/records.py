"""JSON and YAML from files, with limits on size, depth and count.

`json` and `yaml` read what they are given: a few bytes nest until Python's stack ends, aliases of YAML
unfold into gigabytes.  Here such a text is a ValueError (`Damaged`), like any other bad one, so that a
reader needs one `except`.  Tags of YAML that name Python objects are refused; tensors are in `tensors.py`.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from speech2image.safe import Damaged

MAX_JSON_BYTES = 256 * 1024**2
MAX_YAML_BYTES = 2 * 1024**2
MAX_DEPTH = 64
MAX_YAML_NODES = 100_000
_PIECE_BYTES = 2**20


def in_pieces(read: Callable[[int], bytes]) -> Callable[[int], bytes]:
    """Return a `read` that takes no more memory than there are bytes; a file's own takes first all it is asked for."""

    def bounded(count: int) -> bytes:
        if count <= _PIECE_BYTES:
            return read(count)
        pieces: list[bytes] = []
        while count > 0 and (piece := read(min(count, _PIECE_BYTES))):
            pieces.append(piece)
            count -= len(piece)
        return b"".join(pieces)

    return bounded


def read_limited(path: Path, max_bytes: int = MAX_JSON_BYTES) -> bytes:
    """Return all bytes of a file that has at most `max_bytes`.

    Raises:  OSError: it cannot be read.  Damaged: it is larger; nothing was read.
    """
    with open(path, "rb") as file:
        content = in_pieces(file.read)(max_bytes + 1)
    if len(content) > max_bytes:
        raise Damaged(f"it is larger than {max_bytes:,} bytes")
    return content


def read_json(content: str | bytes, max_bytes: int = MAX_JSON_BYTES) -> Any:
    """Return what a JSON text says.

    Args:
        content: text, or UTF-8 bytes.
        max_bytes: longest text that is looked at.

    Raises:  Damaged: too long, nested too deeply, or no JSON; json.JSONDecodeError is one.

    >>> read_json('{"step": 3}')
    {'step': 3}
    """
    if len(content) > max_bytes:
        raise Damaged(f"it has {len(content):,} bytes, more than {max_bytes:,}")
    text = content.decode("utf-8") if isinstance(content, bytes) else content
    try:
        value = json.loads(text.replace("\\u0000", "\\ufffd"))
        if "\\ud" in text.lower():  # halves of surrogate pairs can be written nowhere
            value = json.loads(json.dumps(value, ensure_ascii=False).encode("utf-8", "replace"))
    except RecursionError:
        raise Damaged("it is nested too deeply") from None
    return value


def read_yaml(text: str, max_bytes: int = MAX_YAML_BYTES) -> Any:
    """Return what a YAML text says; only plain values, no aliases.

    Args:
        text: one document.
        max_bytes: longest text that is looked at.

    Raises:  Damaged: too long, too deep, too many values, an alias, a tag of Python, or no YAML.

    >>> read_yaml("seed: 1")
    {'seed': 1}
    """
    import yaml

    if len(text) > max_bytes:
        raise Damaged(f"it has {len(text):,} characters, more than {max_bytes:,}")
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    try:
        _check_events(yaml.parse(text, Loader=loader))
        return yaml.load(text, Loader=loader)
    except yaml.YAMLError as error:
        lines = str(error).splitlines()
        raise Damaged(f"it is no plain YAML: {'; '.join(lines[:2])[:200]}") from None
    except (RecursionError, TypeError, OverflowError, AttributeError, KeyError, IndexError) as error:
        # The constructors of PyYAML fail in these ways on malformed numbers, dates and merge keys.
        raise Damaged(f"it is no plain YAML: {type(error).__name__}") from None


def _check_events(events: Any) -> None:
    import yaml

    depth = 0
    for count, event in enumerate(events):
        if isinstance(event, yaml.AliasEvent):
            raise Damaged("it holds an alias (*name), which unfolds")
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        if depth > MAX_DEPTH:
            raise Damaged(f"it is nested deeper than {MAX_DEPTH}")
        if count > MAX_YAML_NODES:
            raise Damaged(f"it holds more than {MAX_YAML_NODES:,} values")
        tag = str(getattr(event, "tag", None) or "")
        if "python" in tag:
            raise Damaged(f"it asks to build {tag[:80]}")
