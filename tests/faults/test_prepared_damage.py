"""Damage after preparing: every file of the cache, of codes and of embeddings, found when opened or first read."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from speech2image.data.store import RaggedStore, RaggedWriter
from speech2image.errors import DataError

Command = Callable[..., tuple[int, str, str]]
CORPUS = (
    "data=spoken_birds", "data.make.num_train_species=8", "data.make.num_test_species=4",
    "data.make.images_per_species=2", "data.make.captions_per_image=2", "data.max_captions=1", "data.image_px=32",
)  # fmt: skip
SHORT = (
    "train", "experiment=sen_birds", *CORPUS, "trainer.max_steps=3", "trainer.val_every=3", "trainer.batch_size=8",
    "vision.pretrain_steps=1", "logger=none", "callbacks.sample_grid.every=0",
)  # fmt: skip


@pytest.fixture
def prepared(workplace: Path, command: Command) -> Path:
    """A prepared corpus that a test may damage; it is repaired afterwards by the commands' own remedies, or here."""
    code, out, errors = command("prepare", *CORPUS, f"data.root={workplace / 'damaged_birds'}")
    assert code == 0, errors
    return Path(out.strip().splitlines()[-1].rsplit(": ", 1)[1])


def _flip(path: Path, place: float) -> None:
    raw = bytearray(path.read_bytes())
    raw[int(place * (len(raw) - 1))] ^= 4
    path.write_bytes(raw)


def _follow(remedy: str) -> None:
    """Type what the message says."""
    words = remedy.split("Type: rm ", 1)[1].split("'")
    path = Path(words[1])
    if words[0].strip() == "-r":
        shutil.rmtree(path)
    else:
        path.unlink()


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("corpus.json", "flip"), ("corpus.json", "empty"), ("manifest.jsonl", "flip"), ("manifest.jsonl", "cut"),
        ("mel/store.json", "flip"), ("mel/index.npz", "cut"), ("images/keys.txt", "flip"), ("images/data.bin", "flip"),
        ("images/data.bin", "cut"),
    ],
)  # fmt: skip
def test_damaged_cache_is_one_message_whose_remedy_works(
    name: str, damage: str, prepared: Path, workplace: Path, command: Command
) -> None:
    path = prepared / name
    if damage == "flip":
        _flip(path, 0.5)
    else:
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2 if damage == "cut" else 0])
    words = ("prepare", *CORPUS, f"data.root={workplace / 'damaged_birds'}", "verify=true")
    code, out, errors = command(*words)
    for _ in range(2):  # a damaged fingerprint is no longer known, and the file is made anew without a word
        if code == 0:
            break
        assert code == 2
        assert errors.count("speech2image:") == 1
        assert str(prepared) in errors
        _follow(errors)
        code, out, errors = command(*words)
    assert code == 0, errors
    assert "every stored array has the hash" in out


def test_flipped_bit_of_an_item_stops_training_with_its_name(
    prepared: Path, workplace: Path, command: Command
) -> None:
    store = RaggedStore.open(prepared / "mel")
    with (prepared / "mel" / "data.bin").open("r+b") as file:  # in the middle of every item
        for start, end in zip(store.offsets[:-1], store.offsets[1:], strict=True):
            place = int(start + end) // 2 * store.dtype.itemsize
            file.seek(place)
            byte = file.read(1)
            file.seek(place)
            file.write(bytes([byte[0] ^ 1]))
    root = f"data.root={workplace / 'damaged_birds'}"
    code, _, errors = command(*SHORT, root, "name=flipped")
    assert code == 2, errors
    assert "is damaged: its bytes are not those that were written" in errors
    code, _, errors = command("prepare", *CORPUS, root, "verify=true")
    assert code == 2
    assert f"{len(store)} of {len(store)} items are not what was written" in errors
    _follow(errors)
    code, _, errors = command(*SHORT, root, "name=flipped")
    assert code == 0, errors


def test_damaged_items_are_counted_and_named_and_others_are_read(tmp_path: Path) -> None:
    writer = RaggedWriter(tmp_path / "s", [f"item {number}" for number in range(20)], np.int32, "f")
    for number in range(20):
        writer.append(np.full((3, 4), number, np.int32))
    writer.commit()
    for number in (3, 17):
        with (tmp_path / "s" / "data.bin").open("r+b") as file:
            file.seek(number * 48 + 5)
            file.write(b"\x40")
    store = RaggedStore.open(tmp_path / "s")
    with pytest.raises(DataError, match="2 of 20 items are not what was written: 'item 3', 'item 17'"):
        store.verify()
    for number in range(20):
        if number in (3, 17):
            with pytest.raises(DataError, match=f"'item {number}' is damaged"):
                store[number]
        else:
            assert (store[number] == number).all()


def test_store_of_an_earlier_version_is_still_read(tmp_path: Path) -> None:
    writer = RaggedWriter(tmp_path / "s", ["a"], np.float32, "f")
    writer.append(np.ones((2, 3), np.float32))
    writer.commit()
    with np.load(tmp_path / "s" / "index.npz") as index:
        np.savez(tmp_path / "s" / "index.npz", offsets=index["offsets"], shapes=index["shapes"])
    record = json.loads((tmp_path / "s" / "store.json").read_text())
    record.pop("seal")
    (tmp_path / "s" / "store.json").write_text(json.dumps(record))
    store = RaggedStore.open(tmp_path / "s", verify=True)
    assert (store[0] == 1).all()
