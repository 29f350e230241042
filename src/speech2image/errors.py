"""Errors a user can act on.

Each error says what failed and where, what was found and what was expected, and what to type
next.  The command line prints it without a traceback and exits with code 2.  Programming errors
are not here: those keep their tracebacks.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

_UNPRINTABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")
_END_CHARACTERS = 600


def _printable(text: str) -> str:
    """Escape what would steer a terminal or cannot be written, shorten long lines: messages quote words and files."""
    escaped = _UNPRINTABLE.sub(lambda found: f"\\x{ord(found[0]):02x}", text)
    return "\n".join(_shortened(line) for line in escaped.split("\n"))


def _shortened(line: str) -> str:
    """Cut a line that nobody would read, in its middle: both ends tell the most."""
    left_out = len(line) - 2 * _END_CHARACTERS
    if left_out <= _END_CHARACTERS:
        return line
    return f"{line[:_END_CHARACTERS]} … {left_out:,} characters … {line[-_END_CHARACTERS:]}"


class Speech2ImageError(Exception):
    """A problem the user can solve: one message and one remedy.

    Args:
        message: what failed, where, what was found and what was expected.
        remedy: what to type or do next, one sentence.
    """

    exit_code = 2

    def __init__(self, message: str, remedy: str = "") -> None:
        self.message = message = _printable(message)
        self.remedy = remedy
        super().__init__(f"{message}\n  {remedy}" if remedy else message)


class ConfigError(Speech2ImageError):
    """The configuration is wrong: unknown key, wrong type, value out of range, hostile target."""


class DataError(Speech2ImageError):
    """A corpus, an image, a recording or a store is missing, damaged or of the wrong form."""


class CheckpointError(Speech2ImageError):
    """A checkpoint or weight file is missing, damaged, or belongs to another model."""


class TrainingError(Speech2ImageError):
    """Training cannot go on: a loss is no number."""


class Preempted(Speech2ImageError):
    """A signal asked the run to stop; what is done is saved, and the same command continues.

    Exit code: 75, `EX_TEMPFAIL` of sysexits.h, which schedulers read as "try again".
    """

    exit_code = 75


class Interrupted(Preempted):
    """Ctrl-C asked the run to stop; what is done is saved.  Exit code: 130, the shell's for SIGINT."""

    exit_code = 130


class SweepError(Speech2ImageError):
    """Jobs of a sweep did not finish; those that did are kept."""


class ProtocolError(Speech2ImageError):
    """A metric was asked for in a way its protocol does not allow."""


class MissingPackageError(Speech2ImageError):
    """An optional package is not installed."""

    def __init__(self, package: str, extra: str) -> None:
        super().__init__(
            f"the optional package '{package}' is not installed",
            f"Install it with: pip install 'speech2image[{extra}]'",
        )


def nearest_names(name: str, known: Iterable[str], limit: int = 3) -> list[str]:
    """Return up to `limit` names of `known` that look like `name`, best first."""
    from difflib import get_close_matches

    return get_close_matches(name, list(known), n=limit, cutoff=0.4)
