"""Which words of a command may reach Hydra.

Hydra can be told to import, call and unpickle things from the command line, and a command may have been copied
from somebody: `hydra.callbacks`, `hydra.job_logging` (Python's logging calls any factory), `hydra.searchpath`,
`--config-dir`, `--experimental-rerun FILE` (a pickle).  Here stands what a command of this suite needs; all else
is refused in words before Hydra sees it.  What groups may hold is checked by `validate.py`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from speech2image.errors import nearest_names

MAX_WORDS = 1_000
MAX_WORD = 20_000
MAX_KEY_BYTES = 250  # Hydra asks the disk whether a key is a folder, and no file's name may be longer
MAX_DEPTH = 24

#: Flags of Hydra that show or sweep; each either takes no value, or the next word.
_FLAGS = ("-m", "--multirun", "-r", "--run", "--resolve", "--hydra-help", "--version")
_FLAGS_WITH_VALUE = {
    "-c": ("job", "hydra", "all"), "--cfg": ("job", "hydra", "all"), "-p": (), "--package": (),
    "-i": (), "--info": (),
}  # fmt: skip
#: Groups below `hydra` whose options are files of the tree or part of Hydra, and their options beside the files.
HYDRA_GROUPS = {"hydra/launcher": ("basic",), "hydra/sweeper": ("basic",)}
_HYDRA_KEYS = ("hydra.launcher.", "hydra.sweeper.")
_KEY = re.compile(r"[+~]{0,3}[A-Za-z_][\w/.-]*")
_OPEN, _CLOSE = "([{", ")]}"


def word_problems(arguments: Sequence[str]) -> list[str]:
    """Return in words what in a command may not reach Hydra; empty: all of it may."""
    if len(arguments) > MAX_WORDS:
        return [f"{len(arguments):,} words, expected at most {MAX_WORDS:,}"]
    problems, flag = [], ""
    for word in arguments:
        problem, flag = _word_problem(word, flag)
        if problem is not None:
            problems.append(f"{word[:120]!r}: {problem}")
    if flag:
        problems.append(f"{flag}: expected a value after it")
    return problems


def flags_first(words: Sequence[str]) -> list[str]:
    """Return words with flags and their values before all overrides, the only order that argparse takes."""
    flags: list[str] = []
    rest: list[str] = []
    takes = False
    for word in words:
        is_flag = takes or word.startswith("-")
        (flags if is_flag else rest).append(word)
        takes = not takes and word in _FLAGS_WITH_VALUE
    return flags + rest


def _word_problem(word: str, flag: str) -> tuple[str | None, str]:
    """Return the problem of one word, and the flag whose value comes next."""
    if flag:
        allowed = _FLAGS_WITH_VALUE[flag]
        fits = word in allowed if allowed else re.fullmatch(r"[\w.-]*", word) is not None
        return (None if fits else f"no value of {flag}"), ""
    if len(word) > MAX_WORD:
        return f"{len(word):,} letters, expected at most {MAX_WORD:,}", ""
    if any(ord(letter) < 32 and letter not in "\t\n\r" or 0xD800 <= ord(letter) < 0xE000 for letter in word):
        return "holds a control character", ""
    if word.startswith("-"):
        name, equals, value = word.partition("=")
        if name in _FLAGS_WITH_VALUE:
            return (None, name) if not equals else (_word_problem(value, name)[0], "")
        return (None if word in _FLAGS else f"no flag of this command; flags: {_listed_flags()}"), ""
    key, _, value = word.partition("=")
    if not _KEY.fullmatch(key):
        return "found no key before '=', expected key=value", ""
    if len(key.encode()) > MAX_KEY_BYTES:
        return f"its key has {len(key):,} letters, expected at most {MAX_KEY_BYTES}", ""
    if _depth(value) > MAX_DEPTH:
        return f"nested deeper than {MAX_DEPTH}", ""
    return _hydra_problem(key.lstrip("+~"), value), ""


def _listed_flags() -> str:
    return ", ".join((*_FLAGS, *_FLAGS_WITH_VALUE, "--help"))


def _depth(text: str) -> int:
    depth = deepest = 0
    for letter in text:
        depth += (letter in _OPEN) - (letter in _CLOSE)
        deepest = max(deepest, depth)
    return deepest


def _hydra_problem(key: str, value: str) -> str | None:
    if not re.match(r"hydra\b", key):
        return None
    if key in HYDRA_GROUPS:
        fits = re.fullmatch(r"\w+", value) is not None
        return None if fits else f"found {value[:40]!r}, expected one name"
    if not key.startswith(_HYDRA_KEYS):
        return "this key of Hydra is not taken; known: " + ", ".join(
            (*HYDRA_GROUPS, *(f"{k}…" for k in _HYDRA_KEYS))
        )
    if re.search(r"(^|\W)_\w+_(\W|$)", f"{key} {value}") or re.search(r"\bhydra\b", value):
        return "targets and keys of Hydra are not taken here"
    return None


def group_problem(group: str, name: str, files: Sequence[str]) -> str | None:
    """Return why a group below `hydra` has no such option; None: it has.

    Args:
        group: `hydra/launcher` or another.
        name: the option.
        files: options that the tree has.
    """
    known = sorted({*HYDRA_GROUPS.get(group, ()), *files})
    if name in known:
        return None
    near = nearest_names(name[:40], known)
    hint = f"did you mean: {', '.join(near)}?" if near else f"known: {', '.join(known)}"
    return f"{group}={name[:40]}: there is no such option; {hint}"
