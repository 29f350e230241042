"""Messages quote words and files of unknown making: nothing steers a terminal, no line is too long to be read."""

from __future__ import annotations

from speech2image.errors import ConfigError


def test_a_long_line_is_cut_in_its_middle() -> None:
    said = ConfigError(f"first\npaths={'A' * 19_000}: no such folder\nlast").message.splitlines()
    assert (said[0], said[2]) == ("first", "last")
    assert said[1].startswith("paths=AAA") and said[1].endswith("A: no such folder") and len(said[1]) < 1300
    assert " 17,822 characters " in said[1]


def test_lines_a_person_reads_are_left_as_they_are() -> None:
    text = "\n".join(["known: " + ", ".join(f"key_{number}" for number in range(100))] * 50)
    assert ConfigError(text).message == text


def test_escaped_characters_are_counted_as_they_are_written() -> None:
    message = ConfigError("\ud800" * 1000 + "\x00").message
    assert message.isprintable() and len(message) < 1300
