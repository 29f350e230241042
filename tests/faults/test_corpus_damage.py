"""A twentieth of a corpus damaged in eighteen ways: both layouts, `prepare` and `train` complete, all named, no more."""

from __future__ import annotations

import json
import math
import runpy
import shutil
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
from PIL import Image

TINY = runpy.run_path(str(Path(__file__).parents[1] / "tiny_corpora.py"))
Command = Callable[..., tuple[int, str, str]]
Damage = Callable[[Path], object]


def _patch(path: Path, offset: int, content: bytes) -> None:
    raw = bytearray(path.read_bytes())
    raw[offset : offset + len(content)] = content
    path.write_bytes(raw)


def _nan(path: Path) -> None:
    wave = TINY["sound"](1)
    wave[100] = np.nan
    soundfile.write(path, wave, 16_000, subtype="FLOAT")


def _lies_about_length(path: Path) -> None:
    assert path.read_bytes()[36:40] == b"data"
    _patch(path, 40, struct.pack("<I", 10 * path.stat().st_size))


def _cut_jpeg(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


WAVES: dict[str, Damage] = {
    "empty": lambda path: path.write_bytes(b""),
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:3000]),
    "header lies about the length": _lies_about_length,
    "NaN": _nan,
    "no samples": lambda path: soundfile.write(path, np.zeros(0, np.float32), 16_000),
    "silent": lambda path: soundfile.write(path, np.zeros(9000, np.float32), 16_000),
    "text named wav": lambda path: path.write_text("I am no sound"),
    "rate 0": lambda path: _patch(path, 24, struct.pack("<I", 0)),
    "4,000 channels": lambda path: _patch(path, 22, struct.pack("<H", 4000)),
}
IMAGES: dict[str, Damage] = {
    "cut in half": _cut_jpeg,
    "empty": lambda path: path.write_bytes(b""),
    "a web page": lambda path: path.write_text("<!doctype html><html>404</html>"),
    "bomb": lambda path: Image.new("1", (30_000, 30_000)).save(path, format="PNG"),
    "strip": lambda path: Image.new("RGB", (4000, 90)).save(path, format="PNG"),
}
CAPTIONS: dict[str, Damage] = {
    "missing": lambda path: path.unlink(),
    "UTF-16": lambda path: path.write_bytes("a red bird\n".encode("utf-16")),
    "empty": lambda path: path.write_text("\n\n"),
    "endless": lambda path: path.write_text("bird " * 1000),
}
GONE: dict[str, Damage] = {"missing": lambda path: path.unlink()}
#: (kind of file, kind of damage).
WAYS = [
    (files, name)
    for files, damages in (("wav", WAVES), ("jpg", IMAGES), ("txt", CAPTIONS), ("wav gone", GONE), ("jpg gone", GONE))
    for name in damages
]  # fmt: skip


class Injected:
    """Damage a corpus, and remember which paths must be named.

    Args:
        root: of the corpus.
        seed: chooses the places; every image is damaged at most once.
        ways: kinds of files and of damage that are possible in this layout.
    """

    def __init__(self, root: Path, seed: int, ways: list[tuple[str, str]]) -> None:
        self.root, self.seed, self.rng = root, seed, np.random.default_rng(seed)
        files = [
            path for path in root.rglob("*") if path.suffix in (".wav", ".jpg", ".txt") and path.is_file()
        ]
        images = sorted(path for path in files if path.suffix == ".jpg")
        self.count = math.ceil(0.05 * len(files))
        assert self.count >= 10
        order = self.rng.permutation(len(ways))
        chosen = [ways[order[number % len(ways)]] for number in range(self.count)]
        places = self.rng.choice(len(images), self.count, replace=False)
        self.names = {self._damage(images[place], *way) for place, way in zip(places, chosen, strict=True)}
        assert len(self.names) == self.count

    def _damage(self, image: Path, files: str, name: str) -> str:
        """Damage one file of an image; return the path that must be named."""
        kinds = {"jpg": IMAGES, "wav": WAVES, "txt": CAPTIONS, "wav gone": GONE, "jpg gone": GONE}
        path, named = self._file(image, files[:3])
        if path.suffix == ".token":  # one line of a list
            lines = (self.root / "Flickr8k_text/Flickr8k.token.txt").read_bytes().split(b"\n")
            place = next(
                number for number, line in enumerate(lines) if line.startswith(image.name.encode() + b"#2")
            )
            lines[place] = {"missing": b"\x00\x01", "UTF-16": b"\xff\xfe\x00"}.get(
                name, lines[place].split(b"\t")[0]
            )
            (self.root / "Flickr8k_text/Flickr8k.token.txt").write_bytes(b"\n".join(lines))
            return f"Flickr8k_text/Flickr8k.token.txt line {place + 1}"
        kinds[files][name](path)
        return named

    def _file(self, image: Path, suffix: str) -> tuple[Path, str]:
        relative = image.relative_to(self.root).as_posix()
        if suffix == "jpg":
            return image, relative
        if "CUB_200_2011" not in relative:
            path = self.root / "flickr_audio" / "wavs" / f"{image.stem}_1.wav"
            return (
                (path, path.relative_to(self.root).as_posix()) if suffix == "wav" else (Path("a.token"), "")
            )
        kind = {"wav": "audio", "txt": "text"}[suffix]
        name = relative.replace("/images/", f"/{kind}/").replace(
            ".jpg", ".txt" if suffix == "txt" else "_0.wav"
        )
        return self.root / name, name


def _layouts(layout: str, root: Path) -> tuple[Path, tuple[str, ...]]:
    if layout == "cub200":
        TINY["make_cub"](root, train=8, test=4, images=6)
        return root, ("data=cub200", "data.max_captions=2", "data.image_px=32", f"data.root={root}")
    TINY["make_flickr8k"](root, images=140)
    return root, ("data=flickr8k", "data.max_captions=2", "data.image_px=32", f"data.root={root}")


def _quarantined(path: Path) -> list[str]:
    return [json.loads(line)["path"] for line in path.read_text(encoding="utf-8").splitlines()]


def _folder(out: str) -> Path:
    return Path(out.strip().splitlines()[-1].rsplit(": ", 1)[1])


@pytest.mark.parametrize("layout", ["cub200", "flickr8k"])
def test_a_twentieth_of_a_corpus_is_damaged_and_named_exactly(
    layout: str, tmp_path: Path, command: Command, rounds: Callable[[int, int], int]
) -> None:
    for seed in range(rounds(1, 10)):
        root, corpus = _layouts(layout, tmp_path / f"{layout}_{seed}")
        shutil.copytree(root, tmp_path / "whole")
        injected = Injected(root, seed, WAYS)
        code, _, errors = command("prepare", *corpus)
        assert code == 2
        assert "damaged or missing items" in errors
        code, out, errors = command("prepare", *corpus, "data.on_error=skip")
        assert code == 0, errors
        assert f"{injected.count} damaged items were left out (" in out
        found = _quarantined(_folder(out) / "quarantine.jsonl")
        assert sorted(found) == sorted(injected.names)
        _train(layout, corpus, injected, command)
        shutil.rmtree(root)
        shutil.move(tmp_path / "whole", root)
        code, out, errors = command("prepare", *corpus)
        assert code == 0, errors
        assert "damaged" not in out
        assert not (_folder(out) / "quarantine.jsonl").exists()


def _train(layout: str, corpus: tuple[str, ...], injected: Injected, command: Command) -> None:
    """Train two steps and compare what the log, the run's record and its list say with what was injected."""
    code, out, errors = command(
        "train", "experiment=sen_birds", *corpus, "data.on_error=skip", "trainer.max_steps=2", "trainer.val_every=2",
        "trainer.batch_size=8", "vision.pretrain_steps=1", "logger=none", "callbacks.checkpoint.every=2",
        "callbacks.sample_grid.every=0", f"name=damaged_{layout}_{injected.seed}",
    )  # fmt: skip
    assert code == 0, errors
    assert f"{injected.count} damaged items were left out (" in out
    run = Path(out.strip().splitlines()[-1])
    info = json.loads((run / "run.json").read_text())
    assert info["status"] == "finished"
    assert sorted(info["problems"]) == sorted(injected.names)
    assert sum(info["problem_kinds"].values()) == injected.count
    assert sorted(_quarantined(run / "quarantine.jsonl")) == sorted(injected.names)
