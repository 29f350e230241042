"""Readers for files that somebody else may have made: nothing runs, sizes are checked before memory is taken.

Each reader raises `Damaged`, a ValueError with the reason in words; who asked adds which file and what to do.
"""


class Damaged(ValueError):
    """A file is not what it says it is, or goes beyond a limit; the reason in words."""
