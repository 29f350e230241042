"""Processes take turns where they would write the same folder.

Jobs of a sweep need the same corpus, embeddings and codes at the same moment: the first one makes them, the others
wait and find them made.  The lock is the kernel's, so that of a killed process is free at once.
"""

from __future__ import annotations

import errno
import fcntl
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["one_at_a_time"]

_BUSY = (errno.EWOULDBLOCK, errno.EACCES)


@contextmanager
def one_at_a_time(folder: Path) -> Iterator[None]:
    """Wait until no other process is inside for the same folder.

    The empty file `.<name>.lock` beside the folder stays.  Where none can be made (the place is read-only: nobody
    writes there) or the disk knows no locks, there is no waiting.

    Args:    folder: need not exist.
    """
    path = folder.absolute()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = open(path.parent / f".{path.name}.lock", "a")  # noqa: SIM115  closed below
    except OSError:
        yield
        return
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in _BUSY:
                print(f"waiting: another process is at work in {folder}", file=sys.stderr, flush=True)
                fcntl.flock(lock, fcntl.LOCK_EX)
        yield
