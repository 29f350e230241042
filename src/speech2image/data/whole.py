"""Write small files whole or not at all.

Here is one function for text, lists and pictures of a corpus.  Memory-mapped arrays are in `store.py`.
"""

from __future__ import annotations

import os
from pathlib import Path

from speech2image.errors import DataError

__all__ = ["write_whole"]


def write_whole(path: Path, content: bytes, sync: bool = True) -> None:
    """Write a file beside its place and rename it, so that a reader sees all of it or nothing.

    Args:
        path: file to make; its folder is created.
        content: all of its bytes.
        sync: wait until the disk has it; leave out for thousands of files and call `os.sync` once.

    Raises: DataError: the disk is full or the folder cannot be written.
    """
    beside = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(beside, "wb") as file:
            file.write(content)
            if sync:
                file.flush()
                os.fsync(file.fileno())
        os.replace(beside, path)
    except OSError as error:
        if beside.parent.is_dir():
            beside.unlink(missing_ok=True)
        raise DataError(
            f"{path}: cannot be written: {error}", "Check the free space and the rights of the folder."
        ) from error
