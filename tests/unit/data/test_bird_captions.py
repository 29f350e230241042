"""The grammar of captions: what is said is true, varied, and recorded."""

from __future__ import annotations

import collections
import re

import numpy as np
import pytest

from speech2image.data.bird_captions import SKELETONS, Caption, describe_bird
from speech2image.data.bird_shapes import PALETTE, PARTS, BirdLook

LOOK = BirdLook("blue", "black", "red", "white", "short", "small")


def _captions(count: int) -> list[tuple[BirdLook, Caption]]:
    rng = np.random.default_rng(0)
    names = list(PALETTE)
    found = []
    for _ in range(count):
        body, *others = rng.permutation(names)[:4].tolist()
        look = BirdLook(
            body, *others, ("short", "long")[rng.integers(2)], ("small", "medium", "large")[rng.integers(3)]
        )
        found += [(look, caption) for caption in describe_bird(look, rng, 4)]
    return found


@pytest.fixture(scope="module")
def captions() -> list[tuple[BirdLook, Caption]]:
    return _captions(1500)


def test_every_skeleton_is_used_and_there_are_enough(captions: list[tuple[BirdLook, Caption]]) -> None:
    counts = collections.Counter(caption.skeleton for _, caption in captions)
    assert len(SKELETONS) >= 30 and len({text for text, _, _ in SKELETONS}) == len(SKELETONS)
    assert set(counts) == set(range(len(SKELETONS)))


def test_three_or_four_colours_are_named_and_mostly_four(captions: list[tuple[BirdLook, Caption]]) -> None:
    counts = collections.Counter(sum(part in caption.spoken for part in PARTS) for _, caption in captions)
    assert set(counts) == {3, 4}
    assert counts[4] / len(captions) >= 0.6


def test_colours_of_a_caption_are_exactly_the_spoken_ones(captions: list[tuple[BirdLook, Caption]]) -> None:
    """In these birds all four colours differ, so the set of colour words must be the set of spoken values."""
    colour_word = re.compile(rf"\b({'|'.join(PALETTE)})\b")
    for look, caption in captions:
        expected = {caption.spoken[part] for part in PARTS if part in caption.spoken}
        found = colour_word.findall(caption.text)
        assert set(found) == expected and len(found) == len(expected), caption.text
        attributes = dict(zip(PARTS, look.colours(), strict=True)) | {"beak": look.beak, "size": look.size}
        assert caption.spoken.items() <= attributes.items()


def test_every_colour_stands_by_its_own_part(captions: list[tuple[BirdLook, Caption]]) -> None:
    """Read the caption back: `<colour> [shade] <noun>` or `<noun> [of this ... bird] is|are [shade] <colour>`."""
    noun = {word: part for part, words in (("wing", ("wings", "wing feathers")), ("crown", ("crown", "cap")),
            ("belly", ("belly", "underside")), ("body", ("body", "plumage"))) for word in words}  # fmt: skip
    colours, nouns = "|".join(PALETTE), "|".join(sorted(noun, key=len, reverse=True))
    before = re.compile(rf"\b({colours}) ({nouns})\b")
    after = re.compile(
        rf"\b({nouns})(?: of this (?:[a-z]+ ){{0,2}}bird)? (?:is|are) (?:[a-z]+ )?({colours})\b"
    )
    whole = re.compile(rf"\b({colours}) bird\b")
    for _, caption in captions:
        read = {noun[word]: colour for colour, word in before.findall(caption.text)}
        read |= {noun[word]: colour for word, colour in after.findall(caption.text)}
        if body := whole.search(caption.text):
            read["body"] = body[1]
        assert read == {part: caption.spoken[part] for part in PARTS if part in caption.spoken}, caption.text


def test_size_and_beak_are_recorded_when_said(captions: list[tuple[BirdLook, Caption]]) -> None:
    for _, caption in captions:
        said_beak = re.search(r"\b(beak|bill)\b", caption.text) is not None
        said_size = re.search(
            r"\b(small|little|tiny|medium|mid|large|big) (sized )?([a-z]+ ){0,2}bird", caption.text
        )
        assert said_beak == ("beak" in caption.spoken), caption.text
        assert (said_size is not None) == ("size" in caption.spoken), caption.text
    shares = [
        sum(name in caption.spoken for _, caption in captions) / len(captions) for name in ("beak", "size")
    ]
    assert all(0.15 < share < 0.5 for share in shares)


def test_sentences_are_clean_english(captions: list[tuple[BirdLook, Caption]]) -> None:
    for _, caption in captions:
        assert re.fullmatch(r"[a-z]+(,? [a-z]+)*", caption.text), caption.text
        assert not re.search(r"\ba [aeio]", caption.text), caption.text
        assert not re.search(r"\ban [^aeio]", caption.text), caption.text
        assert not re.search(r"\ban? ([a-z]+ ){0,2}(wings|wing feathers|plumage)\b", caption.text), (
            caption.text
        )
        assert not re.search(r"\b(wings|wing feathers) (of this [a-z ]*bird )?is\b", caption.text), (
            caption.text
        )
        assert not re.search(r"\b(crown|cap|belly|underside|body|plumage) are\b", caption.text), caption.text
        assert 6 <= len(caption.text.split()) <= 36


def test_vocabulary_is_respectable(captions: list[tuple[BirdLook, Caption]]) -> None:
    words = collections.Counter(
        word for _, caption in captions for word in caption.text.replace(",", "").split()
    )
    assert len(words) >= 70
    assert words["wings"] > 100 and words["cap"] > 100 and words["underside"] > 100


def test_captions_of_an_image_all_differ() -> None:
    for seed in range(50):
        captions = describe_bird(LOOK, np.random.default_rng(seed), 10)
        assert len({caption.text for caption in captions}) == 10
        assert len({caption.skeleton for caption in captions}) >= 9
    many = describe_bird(LOOK, np.random.default_rng(0), 100)
    assert len({caption.text for caption in many}) == 100


def test_captions_follow_from_their_draws() -> None:
    first = describe_bird(LOOK, np.random.default_rng(5), 6)
    assert describe_bird(LOOK, np.random.default_rng(5), 6) == first
    assert describe_bird(LOOK, np.random.default_rng(6), 6) != first


def test_parts_come_in_every_order() -> None:
    """The first colour named belongs to each part often: order tells nothing."""
    first: collections.Counter[str] = collections.Counter()
    for seed in range(600):
        caption = describe_bird(LOOK, np.random.default_rng(seed), 1)[0]
        places = {part: caption.text.find(caption.spoken[part]) for part in PARTS if part in caption.spoken}
        first[min(places, key=lambda part: places[part])] += 1
    assert min(first[part] for part in PARTS) > 60
