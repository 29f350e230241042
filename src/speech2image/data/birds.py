"""Make `spoken_birds`: drawn birds with known attributes, on disk in the layout of CUB-200-2011.

Here are the choice of species, the files and their names.  The pictures are in `bird_shapes.py` and
`bird_drawing.py`, the sentences in `bird_captions.py`; `cub.py` reads the result like the official corpus, and
`prepare.py` speaks its captions.  Test species are combinations of colours that training never shows.
"""

from __future__ import annotations

import io
import itertools
import json
import os
import pickle
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from speech2image.data.bird_captions import describe_bird
from speech2image.data.bird_drawing import paint_bird
from speech2image.data.bird_shapes import BEAKS, PALETTE, PARTS, SIZES, BirdLook, plan_bird
from speech2image.data.order import addressed_rng
from speech2image.data.plain_json import read_json_file
from speech2image.data.whole import write_whole
from speech2image.errors import ConfigError, DataError

__all__ = ["MAX_SPECIES", "choose_species", "make_spoken_birds"]

_STAMP = "corpus.json"
_FORMAT = 1  # raise when the same arguments would give other bytes
_MAX_TEST_IMAGES = 5
_CANDIDATES = 40
_COMBINATIONS = tuple(
    colours for colours in itertools.product(PALETTE, repeat=len(PARTS)) if colours[0] not in colours[1:]
)
MAX_SPECIES = len(_COMBINATIONS)


@dataclass(frozen=True, slots=True)
class _Species:
    number: int  # from 1, as in classes.txt
    name: str
    look: BirdLook
    split: str

    @property
    def folder(self) -> str:
        return f"{self.number:03d}.{self.name}"


def make_spoken_birds(
    root: Path,
    seed: int = 0,
    num_train_species: int = 400,
    num_test_species: int = 60,
    images_per_species: int = 4,
    captions_per_image: int = 4,
    image_px: int = 128,
) -> None:
    """Draw and describe the whole corpus below `root`; do nothing where it is there already.

    Args:
        root: folder of the corpus; created.
        seed: the same seed and counts give the same bytes.
        num_train_species: species of the training split.
        num_test_species: species of the test split, other colour combinations.
        images_per_species: images of a training species; test species have at most 5.
        captions_per_image: sentences an image.
        image_px: side of the square images.

    Raises:  ConfigError: counts out of range.
             DataError: `root` holds something else, or cannot be written.
    Cost:    about 5 ms an image on one core.  A killed call is resumed by the next.
    """
    root = Path(root)
    arguments = {
        "seed": seed,
        "num_train_species": num_train_species,
        "num_test_species": num_test_species,
        "images_per_species": images_per_species,
        "captions_per_image": captions_per_image,
        "image_px": image_px,
    }
    _check_counts(arguments)
    if _read_stamp(root, arguments):
        return
    _write_stamp(root, arguments, complete=False)
    species = _name_species(seed, num_train_species, num_test_species)
    plans = list(_image_names(species, images_per_species))
    lines = []
    for number, (kind, key) in enumerate(tqdm(plans, unit="img", desc="draw birds", disable=None), start=1):
        lines.append(_make_image(root, kind, key, number, arguments))
    _write_lists(root, species, plans, lines)
    os.sync()  # one for all images, before the stamp says that they are there
    _write_stamp(root, arguments, complete=True)


def choose_species(seed: int, num_train: int, num_test: int) -> tuple[list[BirdLook], list[BirdLook]]:
    """Choose species with balanced colours: body, wing, crown, belly, with body unlike the other three.

    Returns: looks of the training and of the test species; no combination of four colours occurs twice,
             and within each split every colour is about equally frequent for every part.
    Raises:  ConfigError: more species asked for than there are combinations.
    """
    if num_train + num_test > MAX_SPECIES:
        raise ConfigError(
            f"{num_train} + {num_test} bird species asked for; there are {MAX_SPECIES} combinations of colours",
            f"Ask for at most {MAX_SPECIES} in num_train_species + num_test_species.",
        )
    rng = addressed_rng(seed, "birds/species", 0)
    names = list(PALETTE)
    table = np.array([[names.index(colour) for colour in colours] for colours in _COMBINATIONS])
    free = rng.permutation(len(table))
    splits = []
    for count in (num_train, num_test):
        frequency = np.zeros((len(PARTS), len(names)))
        looks = []
        for place in range(count):
            candidates = table[free[:_CANDIDATES]]
            best = int((frequency[np.arange(len(PARTS)), candidates] ** 2).sum(axis=1).argmin())
            chosen, free = candidates[best], np.roll(np.delete(free, best), -_CANDIDATES)
            frequency[np.arange(len(PARTS)), chosen] += 1
            body, wing, crown, belly = (names[index] for index in chosen)
            beak, size = BEAKS[place % len(BEAKS)], SIZES[int(rng.integers(len(SIZES)))]
            looks.append(BirdLook(body, wing, crown, belly, beak, size))
        splits.append(looks)
    return splits[0], splits[1]


def _name_species(seed: int, num_train: int, num_test: int) -> list[_Species]:
    """Number the species as CUB does: test species stand among the training species."""
    train, test = choose_species(seed, num_train, num_test)
    looks = [(look, "train") for look in train] + [(look, "test") for look in test]
    order = addressed_rng(seed, "birds/numbers", 0).permutation(len(looks))
    species = []
    for number, place in enumerate(order, start=1):
        look, split = looks[place]
        name = f"{look.crown}_crowned_{look.wing}_winged_{look.belly}_bellied_{look.body}_bird".title()
        species.append(_Species(number, name, look, split))
    return species


def _image_names(species: list[_Species], images_per_species: int) -> Iterator[tuple[_Species, str]]:
    number = 0
    for kind in species:
        count = images_per_species if kind.split == "train" else min(images_per_species, _MAX_TEST_IMAGES)
        for place in range(1, count + 1):
            number += 1
            yield kind, f"{kind.folder}/{kind.name}_{place:04d}_{number}"


def _make_image(
    root: Path, kind: _Species, key: str, number: int, arguments: dict[str, int]
) -> dict[str, Any]:
    """Write image and captions where they are not there yet; return the line of attributes.jsonl and the box."""
    plan = plan_bird(
        kind.look, addressed_rng(arguments["seed"], "birds/image", number), arguments["image_px"]
    )
    captions = describe_bird(
        kind.look, addressed_rng(arguments["seed"], "birds/captions", number), arguments["captions_per_image"]
    )
    picture = root / "CUB_200_2011" / "images" / f"{key}.jpg"
    if not _is_whole_jpeg(picture):
        encoded = io.BytesIO()
        Image.fromarray(paint_bird(plan)).save(encoded, "JPEG", quality=95, subsampling=0)
        write_whole(picture, encoded.getvalue(), sync=False)
    text = "".join(f"{caption.text}\n" for caption in captions).encode()
    sentences = root / "CUB_200_2011" / "text" / f"{key}.txt"
    if not sentences.is_file() or sentences.read_bytes() != text:
        write_whole(sentences, text, sync=False)
    spoken = [caption.spoken for caption in captions]
    return {"key": key, "attributes": plan.attributes(), "spoken": spoken, "box": plan.box}


def _is_whole_jpeg(path: Path) -> bool:
    """Tell whether a file ends as a JPEG does: one cut by a power failure is drawn again."""
    try:
        with open(path, "rb") as file:
            file.seek(-2, os.SEEK_END)
            return file.read() == b"\xff\xd9"
    except OSError:
        return False


def _write_lists(
    root: Path, species: list[_Species], images: list[tuple[_Species, str]], lines: list[dict[str, Any]]
) -> None:
    """Write the official lists, the pickled splits and attributes.jsonl."""
    numbered = list(enumerate(zip(images, lines, strict=True), start=1))
    lists = {
        "classes.txt": [f"{kind.number} {kind.folder}" for kind in species],
        "images.txt": [f"{number} {key}.jpg" for number, ((_, key), _) in numbered],
        "image_class_labels.txt": [f"{number} {kind.number}" for number, ((kind, _), _) in numbered],
        # CUB's own division inside each class; the class-disjoint one is in the pickles.
        "train_test_split.txt": [f"{number} {number % 2}" for number, _ in numbered],
        "bounding_boxes.txt": [
            f"{number} {' '.join(f'{value:.1f}' for value in line['box'])}" for number, (_, line) in numbered
        ],
    }
    for name, rows in lists.items():
        write_whole(root / "CUB_200_2011" / name, "".join(f"{row}\n" for row in rows).encode())
    for split in ("train", "test"):
        chosen = [(kind.number, key) for kind, key in images if kind.split == split]
        for name, values in (
            ("filenames", [key for _, key in chosen]),
            ("class_info", [n for n, _ in chosen]),
        ):
            write_whole(root / split / f"{name}.pickle", pickle.dumps(values, protocol=2))
    rows = [json.dumps({name: line[name] for name in ("key", "attributes", "spoken")}) for line in lines]
    write_whole(root / "attributes.jsonl", "".join(f"{row}\n" for row in rows).encode())


def _check_counts(arguments: dict[str, int]) -> None:
    lowest = {"seed": 0, "num_train_species": 1, "num_test_species": 0, "images_per_species": 1}
    lowest |= {"captions_per_image": 1, "image_px": 32}
    highest = {"captions_per_image": 100, "image_px": 1024}
    wrong = [
        f"{name}={value} (expected {lowest[name]} to {highest.get(name, 'any')})"
        for name, value in arguments.items()
        if value < lowest[name] or value > highest.get(name, value)
    ]
    if wrong:
        raise ConfigError(
            f"spoken_birds cannot be drawn with {', '.join(wrong)}",
            "Set them below data.make, or leave them out.",
        )


def _read_stamp(root: Path, arguments: dict[str, int]) -> bool:
    """Return whether this very corpus is complete; raise where `root` holds something else."""
    if root.exists() and not root.is_dir():
        raise DataError(
            f"{root}: expected a folder for the corpus, found a file", "Choose another data.root."
        )
    try:
        stamp = read_json_file(root / _STAMP)
        found, complete = stamp["arguments"], stamp["complete"]
        if stamp["corpus"] != "spoken_birds" or stamp["format"] != _FORMAT:
            found = None
    except (FileNotFoundError, NotADirectoryError):
        if root.is_dir() and any(root.iterdir()):
            raise DataError(
                f"{root}: cannot draw spoken_birds here, the folder holds something else",
                "Choose an empty folder with data.root=DIR.",
            ) from None
        return False
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{root / _STAMP}: damaged: {error}", f"Delete the folder {root} and run the command again."
        ) from error
    if found != arguments:
        raise DataError(
            f"{root}: holds another corpus, made with {found}; asked for {arguments}",
            "Choose another folder with data.root=DIR, or delete this one.",
        )
    return bool(complete)


def _write_stamp(root: Path, arguments: dict[str, int], complete: bool) -> None:
    stamp = {"corpus": "spoken_birds", "format": _FORMAT, "arguments": arguments, "complete": complete}
    stamp["palette"] = {name: list(colour) for name, colour in PALETTE.items()}
    write_whole(root / _STAMP, (json.dumps(stamp, indent=1) + "\n").encode())
