"""Full and read-only disks under every verb that writes: one message, exit code 2, nothing half-written.

The disks are real: a small tmpfs, mounted for each test.  Where this may not be done, the tests skip.
"""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

CORPUS = (
    "data=spoken_birds", "data.make.num_train_species=4", "data.make.num_test_species=2",
    "data.make.images_per_species=2", "data.make.captions_per_image=1", "data.max_captions=1", "data.image_px=32",
)  # fmt: skip


class Disk:
    """A small file system of its own."""

    def __init__(self, path: Path, size_kb: int) -> None:
        self.path = path
        path.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size_kb}k", "tmpfs", str(path)], check=True)

    def fill(self, left_kb: int) -> None:
        """Leave no more than this."""
        free = shutil.disk_usage(self.path).free - 1024 * left_kb
        (self.path / "filler").write_bytes(b"x" * max(0, free))

    def lock(self) -> None:
        """Make it read-only."""
        subprocess.run(["mount", "-o", "remount,ro", str(self.path)], check=True)

    def names(self) -> set[str]:
        """Return what lies on it, but for the filler and marks of writers that were refused."""
        found = {path.relative_to(self.path).as_posix() for path in self.path.rglob("*") if path.is_file()}
        return found - {"filler"}


def _may_mount() -> bool:
    return os.geteuid() == 0 and shutil.which("mount") is not None and subprocess.run(
        ["unshare", "-m", "mount", "-t", "tmpfs", "tmpfs", "/mnt"], capture_output=True, check=False
    ).returncode == 0  # fmt: skip


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Callable[[int], Disk]]:
    """Mount small disks below the folder of a test."""
    if not _may_mount():
        pytest.skip("a small disk can be mounted by root only")
    made: list[Disk] = []

    def mount(size_kb: int) -> Disk:
        made.append(Disk(tmp_path / f"disk{len(made)}", size_kb))
        return made[-1]

    yield mount
    for own in made:
        subprocess.run(["umount", "-l", str(own.path)], check=True)  # a refused run may hold a file open


def _is_one_message(code: int, errors: str) -> None:
    assert code == 2, errors
    assert "Traceback" not in errors
    assert errors.count("speech2image: ") == 1, errors
    message = errors.split("speech2image: ")[1]
    assert "cannot be written" in message or "No space left" in message or "Read-only" in message, errors


@pytest.mark.parametrize("size_kb", [12, 60, 130])
def test_prepare_on_a_full_disk(size_kb: int, disk: Callable[[int], Disk], workplace: Path) -> None:
    words = ["prepare", *CORPUS, f"data.root={workplace / 'disk_birds'}"]
    place = [f"paths.{name}={workplace / name}" for name in ("data", "runs", "weights")]
    assert (
        _run([*words, *place, f"paths.cache={workplace / 'disk_cache'}"])[0] == 0
    )  # the corpus lies elsewhere
    small = disk(size_kb)
    words += [*place, f"paths.cache={small.path}"]
    code, _, errors = _run(words)
    _is_one_message(code, errors)
    assert not any(name.endswith("corpus.json") for name in small.names())
    subprocess.run(["mount", "-o", "remount,size=8m", str(small.path)], check=True)
    code, out, errors = _run([*words, "verify=true"])
    assert code == 0, errors
    assert "every stored array has the hash" in out


@pytest.mark.parametrize(
    ("verb", "way"),
    [
        ("embed", "full"), ("generate", "full"), ("evaluate", "full"), ("report", "full"), ("generate", "read-only"),
        ("report", "read-only"), ("train", "read-only"),  # on a full disk training goes on: test_resume.py
    ],
)  # fmt: skip
def test_verbs_on_a_disk_that_takes_nothing(
    verb: str, way: str, disk: Callable[[int], Disk], painted_run: dict[str, Path], workplace: Path
) -> None:
    small = disk(40_000)
    for path in painted_run.values():
        shutil.copytree(path, small.path / "runs" / path.name)
    runs = {name: small.path / "runs" / path.name for name, path in painted_run.items()}
    place = [f"paths.{name}={workplace / name}" for name in ("data", "cache", "weights")]
    place.append(f"paths.runs={small.path / 'runs'}")
    words = {
        "embed": ["embed", f"run={runs['eval_sen']}", f"out={small.path / 'embedded'}"],
        "generate": [
            "generate",
            f"run={runs['eval_gan']}",
            "text=a red bird",
            f"out={small.path / 'painted'}",
        ],
        "evaluate": ["evaluate", f"run={runs['eval_sen']}"],
        "report": ["report", f"runs=[{runs['eval_gan']}]", f"out={small.path / 'laid'}"],
        "train": [
            "train",
            "experiment=sen_birds",
            *CORPUS,
            "logger=none",
            "trainer.max_steps=1",
            "name=nowhere",
        ],
    }[verb]
    small.fill(4) if way == "full" else small.lock()
    before = small.names()
    code, _, errors = _run([*words, *place])
    _is_one_message(code, errors)
    assert small.names() == before


def _run(words: list[str]) -> tuple[int, str, str]:
    """Run one command in this process: exit code, output, messages."""
    from speech2image.app.cli import main

    out, errors = io.StringIO(), io.StringIO()
    with contextlib.redirect_stderr(errors), contextlib.redirect_stdout(out):
        code = main(words)
    return code, out.getvalue(), errors.getvalue()


def test_prepared_corpus_on_a_read_only_disk_is_read(disk: Callable[[int], Disk], workplace: Path) -> None:
    small = disk(20_000)
    words = ["prepare", *CORPUS, f"data.root={workplace / 'disk_birds'}", f"paths.cache={small.path}"]
    words += [f"paths.{name}={workplace / name}" for name in ("data", "runs", "weights")]
    assert _run(words)[0] == 0
    small.lock()
    code, out, errors = _run([*words, "verify=true"])
    assert code == 0, errors
    assert "already prepared" in out
