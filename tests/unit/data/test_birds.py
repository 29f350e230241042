"""The drawn corpus: layout, determinism, resuming, splits, boxes, colours; and every refusal."""

from __future__ import annotations

import collections
import hashlib
import json
import pickle
import pickletools
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from speech2image.data import birds
from speech2image.data.bird_drawing import paint_bird
from speech2image.data.bird_shapes import (
    BACKGROUNDS,
    BEAKS,
    PALETTE,
    PARTS,
    POSES,
    SIZES,
    BirdLook,
    BirdPlan,
    plan_bird,
)
from speech2image.data.birds import MAX_SPECIES, choose_species, make_spoken_birds
from speech2image.errors import ConfigError, DataError

COUNTS = {
    "seed": 3,
    "num_train_species": 6,
    "num_test_species": 3,
    "images_per_species": 6,
    "captions_per_image": 3,
    "image_px": 64,
}
NUM_IMAGES = 6 * 6 + 3 * 5


def _digests(root: Path) -> dict[str, str]:
    files = sorted(path for path in root.rglob("*") if path.is_file())
    return {str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def _plan(look: BirdLook, number: int, image_px: int = 128) -> BirdPlan:
    return plan_bird(look, np.random.default_rng(number), image_px)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("birds") / "corpus"
    make_spoken_birds(root, **COUNTS)
    return root


def test_lists_agree_with_the_files(corpus: Path) -> None:
    cub = corpus / "CUB_200_2011"
    images = dict(line.split(" ") for line in (cub / "images.txt").read_text().splitlines())
    classes = dict(line.split(" ") for line in (cub / "classes.txt").read_text().splitlines())
    labels = dict(line.split(" ") for line in (cub / "image_class_labels.txt").read_text().splitlines())
    assert len(images) == NUM_IMAGES and list(images) == [str(n) for n in range(1, NUM_IMAGES + 1)]
    assert len(classes) == 9 and len(set(classes.values())) == 9
    on_disk = {str(path.relative_to(cub / "images")) for path in (cub / "images").rglob("*.jpg")}
    assert on_disk == set(images.values())
    for number, name in images.items():
        assert name.split("/")[0] == classes[labels[number]]
        assert classes[labels[number]].startswith(f"{int(labels[number]):03d}.")
        text = (cub / "text" / name).with_suffix(".txt").read_text()
        assert len(text.splitlines()) == 3 and text.endswith("\n") and text.isascii()
    inside = [line.split(" ") for line in (cub / "train_test_split.txt").read_text().splitlines()]
    assert [number for number, _ in inside] == list(images) and {flag for _, flag in inside} == {"0", "1"}


def test_pickles_hold_class_disjoint_splits_of_plain_values(corpus: Path) -> None:
    members: dict[str, tuple[list[str], list[int]]] = {}
    for split in ("train", "test"):
        content = (corpus / split / "filenames.pickle").read_bytes()
        assert {op.name for op, _, _ in pickletools.genops(content)}.isdisjoint(
            {"GLOBAL", "REDUCE", "STACK_GLOBAL"}
        )
        assert content[:2] == b"\x80\x02"
        numbers = pickle.loads((corpus / split / "class_info.pickle").read_bytes())
        members[split] = (pickle.loads(content), numbers)
    assert len(members["train"][0]) == 36 and len(members["test"][0]) == 15
    assert not set(members["train"][1]) & set(members["test"][1])
    for names, numbers in members.values():
        assert all(name.startswith(f"{number:03d}.") for name, number in zip(names, numbers, strict=True))
        assert all((corpus / "CUB_200_2011" / "images" / f"{name}.jpg").is_file() for name in names)


def test_attributes_name_every_image_and_caption(corpus: Path) -> None:
    lines = [json.loads(line) for line in (corpus / "attributes.jsonl").read_text().splitlines()]
    assert len(lines) == NUM_IMAGES
    for line in lines:
        attributes = line["attributes"]
        assert all(attributes[part] in PALETTE for part in PARTS)
        assert attributes["beak"] in BEAKS and attributes["size"] in SIZES
        assert attributes["pose"] in POSES and attributes["background"] in BACKGROUNDS
        assert attributes["facing"] in ("left", "right")
        text = (corpus / "CUB_200_2011" / "text" / f"{line['key']}.txt").read_text().splitlines()
        for caption, spoken in zip(text, line["spoken"], strict=True):
            assert spoken.items() <= attributes.items()
            assert all(spoken[part] in caption for part in PARTS if part in spoken)


def test_species_share_their_look_and_only_theirs(corpus: Path) -> None:
    looks: dict[str, set[tuple[str, ...]]] = collections.defaultdict(set)
    for line in (corpus / "attributes.jsonl").read_text().splitlines():
        row = json.loads(line)
        look = tuple(row["attributes"][name] for name in (*PARTS, "beak", "size"))
        looks[row["key"].split("/")[0]].add(look)
    assert len(looks) == 9 and all(len(found) == 1 for found in looks.values())
    assert len({next(iter(found))[:4] for found in looks.values()}) == 9


def test_images_are_jpeg_of_the_asked_size(corpus: Path) -> None:
    for path in (corpus / "CUB_200_2011" / "images").rglob("*.jpg"):
        with Image.open(path) as image:
            assert image.format == "JPEG" and image.size == (64, 64) and image.mode == "RGB"
            assert max(image.quantization[0]) <= 12  # quality 95


def test_same_arguments_give_the_same_bytes(corpus: Path, tmp_path: Path) -> None:
    make_spoken_birds(tmp_path / "again", **COUNTS)
    assert _digests(tmp_path / "again") == _digests(corpus)


def test_another_seed_gives_other_birds(corpus: Path, tmp_path: Path) -> None:
    make_spoken_birds(tmp_path / "other", **{**COUNTS, "seed": 4})
    old, new = ((root / "CUB_200_2011" / "classes.txt").read_text() for root in (corpus, tmp_path / "other"))
    assert old != new


def test_second_call_touches_nothing(corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = {path: path.stat().st_mtime_ns for path in corpus.rglob("*")}
    monkeypatch.setattr(birds, "plan_bird", None)
    make_spoken_birds(corpus, **COUNTS)
    assert {path: path.stat().st_mtime_ns for path in corpus.rglob("*")} == before


def test_killed_call_is_resumed_without_drawing_again(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    painted = 0

    def paint_and_die(plan: BirdPlan) -> np.ndarray:
        nonlocal painted
        painted += 1
        if painted == 20:
            raise KeyboardInterrupt
        return paint_bird(plan)

    monkeypatch.setattr(birds, "paint_bird", paint_and_die)
    root = tmp_path / "corpus"
    with pytest.raises(KeyboardInterrupt):
        make_spoken_birds(root, **COUNTS)
    assert not (root / "attributes.jsonl").exists()
    cut = min((root / "CUB_200_2011" / "images").rglob("*.jpg"))
    cut.write_bytes(cut.read_bytes()[:-100])  # what a power failure may leave
    make_spoken_birds(root, **COUNTS)
    assert painted == 20 + (NUM_IMAGES - 19) + 1
    assert _digests(root) == _digests(corpus)


def test_other_arguments_in_the_same_folder_are_refused(corpus: Path) -> None:
    with pytest.raises(DataError, match="holds another corpus") as caught:
        make_spoken_birds(corpus, **{**COUNTS, "seed": 9})
    assert "data.root" in caught.value.remedy


def test_folder_with_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("important")
    with pytest.raises(DataError, match="holds something else"):
        make_spoken_birds(tmp_path, **COUNTS)
    assert _digests(tmp_path).keys() == {"thesis.tex"}


def test_file_in_place_of_the_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "birds").write_text("")
    with pytest.raises(DataError, match="found a file"):
        make_spoken_birds(tmp_path / "birds", **COUNTS)


def test_damaged_stamp_is_one_error(tmp_path: Path) -> None:
    (tmp_path / "corpus.json").write_text('{"corpus": "spoken_bi')
    with pytest.raises(DataError, match=r"corpus\.json: damaged"):
        make_spoken_birds(tmp_path, **COUNTS)


def test_unwritable_folder_is_one_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot be written"):
        make_spoken_birds(tmp_path / "file" / "birds", **COUNTS)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("num_train_species", 0),
        ("captions_per_image", 0),
        ("image_px", 8),
        ("images_per_species", -1),
        ("seed", -1),
    ],
)
def test_counts_out_of_range_are_named(tmp_path: Path, name: str, value: int) -> None:
    with pytest.raises(ConfigError, match=f"{name}={value}"):
        make_spoken_birds(tmp_path / "birds", **{**COUNTS, name: value})
    assert not (tmp_path / "birds").exists()


def test_more_species_than_combinations_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=str(MAX_SPECIES)):
        choose_species(0, MAX_SPECIES, 1)


def test_every_species_there_is_can_be_chosen() -> None:
    train, test = choose_species(0, MAX_SPECIES - 10, 10)
    assert len({look.colours() for look in train + test}) == MAX_SPECIES


def test_colours_are_balanced_for_every_part_and_differ_from_the_body() -> None:
    train, test = choose_species(0, 200, 60)
    assert not {look.colours() for look in train} & {look.colours() for look in test}
    for looks, lowest in ((train, 22), (test, 6)):
        for place in range(len(PARTS)):
            counts = collections.Counter(look.colours()[place] for look in looks)
            assert set(counts) == set(PALETTE) and min(counts.values()) >= lowest
        assert all(look.body not in look.colours()[1:] for look in looks)
    for values, attribute in ((BEAKS, "beak"), (SIZES, "size")):
        counts = collections.Counter(getattr(look, attribute) for look in train)
        assert min(counts[value] for value in values) >= 45


def test_poses_and_backgrounds_all_occur() -> None:
    look = BirdLook("blue", "black", "red", "white", "short", "small")
    scenes = [_plan(look, number).attributes() for number in range(200)]
    for name, values in (("pose", POSES), ("background", BACKGROUNDS), ("facing", ("left", "right"))):
        counts = collections.Counter(scene[name] for scene in scenes)
        assert set(counts) == set(values) and min(counts.values()) >= 20


@pytest.mark.parametrize("size", SIZES)
def test_box_is_tight_around_the_painted_bird(size: str) -> None:
    """The bird is where two paintings differ that differ only in the four colours."""
    dark, light = (BirdLook(colour, colour, colour, colour, "long", size) for colour in ("black", "white"))
    for number in range(30):
        plan, other = _plan(dark, number), _plan(light, number)
        assert plan.box == other.box
        differs = np.abs(paint_bird(plan).astype(int) - paint_bird(other).astype(int)).max(axis=2) > 60
        rows, columns = np.flatnonzero(differs.any(axis=1)), np.flatnonzero(differs.any(axis=0))
        x, y, width, height = plan.box
        assert x - 1 <= columns[0] and columns[-1] + 1 <= x + width + 1
        assert y - 1 <= rows[0] and rows[-1] + 1 <= y + height + 1
        # The beak and the legs do not change with the colours; the tail and the head's top do.
        assert min(columns[0] - x, x + width - columns[-1] - 1) < 2.5
        assert rows[0] - y < 2.5
        assert 0 <= x and x + width <= 128 and 0 <= y and y + height <= 128


def test_size_is_the_share_of_the_frame() -> None:
    sides = {}
    for size in SIZES:
        look = BirdLook("blue", "black", "red", "white", "short", size)
        sides[size] = [max(_plan(look, number).box[2:]) / 128 for number in range(40)]
    assert max(sides["small"]) < min(sides["medium"]) and max(sides["medium"]) < min(sides["large"])
    assert 0.5 < min(sides["small"]) and max(sides["large"]) < 0.85


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("pose", POSES)
def test_every_part_is_visible_in_its_colour(part: str, pose: str) -> None:
    """Repainting one part from black to white must change at least 3 % of the box, and to nearly white."""
    plain = dict.fromkeys(PARTS, "black")
    before = BirdLook(**plain, beak="short", size="medium")
    after = BirdLook(**{**plain, part: "white"}, beak="short", size="medium")
    checked = 0
    for number in range(60):
        old, new = _plan(before, number), _plan(after, number)
        if old.pose != pose:
            continue
        checked += 1
        painted = paint_bird(new)
        changed = np.abs(painted.astype(int) - paint_bird(old).astype(int)).max(axis=2) > 120
        assert changed.sum() > 0.03 * old.box[2] * old.box[3]
        assert np.median(painted[changed], axis=0).min() > 200
    assert checked >= 10


def test_named_colour_is_the_nearest_palette_colour_of_its_part() -> None:
    """Whatever the shade, the median colour of each part is nearest to its own name in the palette."""
    names = list(PALETTE)
    table = np.array([PALETTE[name] for name in names], dtype=float)
    for number in range(96):
        colour = names[number % 8]
        body = names[(number + 4) % 8]
        part = PARTS[1 + number % 3]
        base = dict(zip(PARTS, (body,) * 4, strict=True))
        plan = _plan(BirdLook(**{**base, part: colour}, beak="short", size="large"), number)
        plain = _plan(BirdLook(**base, beak="short", size="large"), number)
        painted = paint_bird(plan)
        changed = np.abs(painted.astype(int) - paint_bird(plain).astype(int)).max(axis=2) > 40
        median = np.median(painted[changed].astype(float), axis=0)
        assert names[int(np.abs(table - median).sum(axis=1).argmin())] == colour


@pytest.mark.parametrize("image_px", [32, 33, 64, 200])
def test_any_size_can_be_painted(image_px: int) -> None:
    look = BirdLook("yellow", "black", "red", "white", "long", "large")
    for number in range(6):
        image = paint_bird(_plan(look, number, image_px))
        assert image.shape == (image_px, image_px, 3) and image.dtype == np.uint8 and image.std() > 15


def test_facing_mirrors_the_bird() -> None:
    look = BirdLook("yellow", "black", "red", "white", "long", "large")
    for number in range(20):
        plan = _plan(look, number)
        beak, tail = plan.outlines["beak"][:, 0].mean(), plan.outlines["tail"][:, 0].mean()
        assert (beak < tail) == (plan.facing == "left")
