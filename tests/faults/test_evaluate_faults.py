"""Bad input to `evaluate`: one message each, exit code 2, and nothing half-written."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def images(painted_run: dict[str, Path], tmp_path: Path) -> Path:
    """A copy of the images of a run, to be damaged."""
    return Path(shutil.copytree(painted_run["eval_gan"] / "generated" / "test", tmp_path / "images"))


@pytest.fixture
def refused(command: Command, painted_run: dict[str, Path], images: Path) -> Callable[..., str]:
    """Evaluate with bad input; return the one message."""
    run = painted_run["eval_gan"]

    def call(*words: str) -> str:
        before = {path: path.stat().st_mtime_ns for folder in (run, images) for path in folder.rglob("*")}
        code, out, err = command("evaluate", f"run={run}", *words)
        assert code == 2, out + err
        assert err.count("speech2image: ") == 1 and "Traceback" not in err
        assert "bounds and controls" not in out
        after = {path: path.stat().st_mtime_ns for folder in (run, images) for path in folder.rglob("*")}
        assert {path for path in after if path not in before or after[path] != before[path]} == set()
        return err

    return call


def first_png(images: Path) -> Path:
    return images / json.loads((images / "manifest.jsonl").read_text().splitlines()[0])["file"]


def _stray(images: Path) -> None:
    shutil.copy(first_png(images), images / "holiday.png")


def _stranger(images: Path) -> None:
    lines = (images / "manifest.jsonl").read_text().splitlines()
    lines[0] = json.dumps(json.loads(lines[0]) | {"utterance": "nobody_said_this"})
    (images / "manifest.jsonl").write_text("\n".join(lines) + "\n")


def _mixed(images: Path) -> None:
    Image.fromarray(np.zeros((16, 16, 3), np.uint8)).save(first_png(images))


def _few(images: Path) -> None:
    lines = (images / "manifest.jsonl").read_text().splitlines()
    for line in lines[5:]:
        (images / json.loads(line)["file"]).unlink()
    (images / "manifest.jsonl").write_text("\n".join(lines[:5]) + "\n")


def _emptied(images: Path) -> None:
    shutil.rmtree(images)
    images.mkdir()


@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        (_stray, "match no utterance of the manifest: "),
        (_stranger, "belong to utterances that the corpus does not have"),
        (lambda images: first_png(images).write_text("<html>404</html>"), "are not images"),
        (lambda images: first_png(images).write_bytes(b""), "are not images"),
        (lambda images: first_png(images).unlink(), "listed in the manifest but missing"),
        (_mixed, "must be square and of one size, found 1 of 16x16, 23 of 32x32"),
        (_few, "needs at least 20 generated images"),
        (_emptied, "holds no generated images"),
    ],
    ids=["stray", "stranger", "no image", "empty file", "missing", "mixed sizes", "few", "empty folder"],
)
def test_damaged_folder_of_images_is_one_message(
    damage: Callable[[Path], object], expected: str, refused: Callable[..., str], images: Path
) -> None:
    damage(images)
    assert expected in refused(f"images={images}")


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("protocol=s2igan_cub",), "is the procedure of cub200, but this run is of spoken_birds"),
        (("protocol=sta_flickr8k", "protocol.legacy=false"), "is the procedure of flickr8k"),
        (("protocol=spoken_digits",), "is the procedure of spoken_digits"),
        (("protocol.legacy=true",), "has no legacy form"),
        (("seeds=[0,0]",), "expected different whole numbers"),
        (("seeds=[a]",), "expected different whole numbers"),
        (("judge=nobody",), "run=nobody: no run.json there"),
        (("judge=eval_gan",), "expected a trained encoder"),
        (("classifier=true",), "two classes with 5 training images"),
        (("split=holiday",), "holiday"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_request_that_cannot_be_followed_is_one_message(
    words: tuple[str, ...], expected: str, refused: Callable[..., str]
) -> None:
    assert expected in refused(*words)


def test_seeds_of_images_that_are_painted_already_are_refused(
    refused: Callable[..., str], images: Path
) -> None:
    assert "are painted already" in refused(f"images={images}", "seeds=[1,2]")


def test_missing_clip_is_one_message(refused: Callable[..., str], tmp_path: Path) -> None:
    message = refused(f"clip_weights={tmp_path / 'clip.safetensors'}")
    assert "open_clip_torch" in message or "clip.safetensors" in message


def test_images_that_lie_in_no_run_need_one(command: Command, images: Path) -> None:
    code, _, err = command("evaluate", f"images={images}")
    assert code == 2 and "lies in no run folder" in err
