"""The README's commands exist: each composes, and the make targets it names are there."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from speech2image.app.cli import VERBS, main
from speech2image.config.compose import conf_dir

REPOSITORY = conf_dir().parent
PAGES = [REPOSITORY / "README.md", *sorted((REPOSITORY / "experiments").glob("*/README.md"))]


def commands(page: Path) -> list[str]:
    blocks = re.findall(r"```sh\n(.*?)```", page.read_text(), flags=re.DOTALL)
    whole = [block.replace("\\\n", "") for block in blocks]  # a line that ends in a backslash goes on
    lines = [line.split("  #")[0].strip() for block in whole for line in block.splitlines()]
    return [line for line in lines if line.startswith("speech2image ")]


COMMANDS = [(page.parent.name, command) for page in PAGES for command in commands(page)]


@pytest.mark.parametrize(("page", "command"), COMMANDS, ids=lambda item: str(item)[:60])
def test_command_of_a_page_composes(page: str, command: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = shlex.split(command.replace("$R", "/some/folder"))[1:]
    assert words[0] in VERBS
    for job in jobs_of(words):
        assert main([*job, "--cfg", "job"]) == 0, capsys.readouterr().err


def jobs_of(words: list[str]) -> list[list[str]]:
    """Return the command, or of a sweep the jobs that take the first choices, the second ones, and so on."""
    if "-m" not in words:
        return [words]
    fixed = [
        word for word in words if word != "-m" and "(" not in word
    ]  # a search draws from choice(…), interval(…)
    split = [[word] if "[" in word or "=" not in word else swept(word) for word in fixed]
    return [[choices[min(job, len(choices) - 1)] for choices in split] for job in range(max(map(len, split)))]


def swept(word: str) -> list[str]:
    key, _, values = word.partition("=")
    return [f"{key}={value}" for value in values.split(",")]


def test_make_targets_of_the_readme_exist() -> None:
    makefile = (REPOSITORY / "Makefile").read_text()
    named = set(re.findall(r"`make (\w+)`", (REPOSITORY / "README.md").read_text()))
    assert {"demo", "test"} <= named
    assert all(re.search(rf"^{target}:", makefile, flags=re.MULTILINE) for target in named)


def test_pictures_of_the_pages_exist() -> None:
    for page in PAGES:
        for name in re.findall(r"!\[[^\]]*\]\(([^)]+)\)", page.read_text()):
            assert (page.parent / name).is_file(), f"{page}: {name}"


def test_every_command_of_the_table_is_a_verb() -> None:
    section = (REPOSITORY / "README.md").read_text().split("## Commands")[1].split("\n## ")[0]
    named = set(re.findall(r"^\| `(\w+) ", section, flags=re.MULTILINE))
    assert named == set(VERBS)
