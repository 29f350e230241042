"""Describe birds in the manner of the CUB captions: a grammar of sentences over known attributes.

Here are the sentence skeletons, the words for parts, colours, beaks and sizes, and the choice among
them.  Each caption names three or four of the four colours; what it names is returned beside it.
No part has a synonym that could be heard as another part: the body is never called breast or back.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np

from speech2image.data.bird_shapes import PARTS, BirdLook

__all__ = ["SKELETONS", "Caption", "describe_bird"]

# {n1} "a red crown" · {b1} "red crown" · {d1} "the crown is red" · {i1} "its crown is red" · {p1} "the crown" ·
# {c1} "red"; the number is the place in the order of parts of this caption.  {B} a bird whose body colour is an
# adjective ("small blue bird"), {S} a bird without colour ("small bird").  {K} may add the beak.
_FOUR = (
    "this {S} has {n1}, {n2}, {n3} and {n4}{K}",
    "this {S} has {n1} and {n2}, with {n3} and {n4}{K}",
    "a {S} with {n1}, {n2}, {n3} and {n4}{K}",
    "a {S} that has {n1} and {n2}, and also {n3} and {n4}{K}",
    "the {S} has {n1}, while {d2}, {d3} and {d4}{K}",
    "this is a {S} with {n1} and {n2}, {i3} and {i4}{K}",
    "{p1} of this {S} {v1} {c1}, {d2}, {d3} and {d4}{K}",
    "{d1} and {d2} on this {S}, and it has {n3} and {n4}{K}",
    "here is a {S}, {i1}, {i2}, {i3} and {i4}{K}",
    "with {n1} and {n2}, this {S} also shows {n3} and {n4}{K}",
    "look at this {S}, it has {n1}, {n2}, {n3} and {n4}{K}",
    "a {S} with {b1}, {b2}, {b3} and {b4}{K}",
    "{i1}, {i2}, and this {S} has {n3} and {n4}{K}",
    "there is a {S} with {n1}, and {d2}, {d3} and {d4}{K}",
    "{b1}, {b2}, {b3} and {b4} make up this {S}{K}",
    "you can tell this {S} by {n1}, {n2}, {n3} and {n4}{K}",
    "a {S}, {d1}, {d2}, {d3}, and {d4}{K}",
    "next to the {b1}, this {S} has {n2}, {n3} and {n4}{K}",
)
_FOUR_BODY = (
    "this {B} has {n1}, {n2} and {n3}{K}",
    "a {B} with {n1}, {n2} and {n3}{K}",
    "a {B} that has {n1} and {n2}, and {i3}{K}",
    "this {B} has {n1} with {n2} and {n3}{K}",
    "here we have a {B}, {i1}, {i2} and {i3}{K}",
    "this is a {B}, {d1}, while {d2} and {d3}{K}",
    "with {n1}, {n2} and {n3}, this is a {B}{K}",
    "{d1}, {d2} and {d3} on this {B}{K}",
    "the {B} shows {n1} and {n2}, and {i3}{K}",
    "a {B}, except that {d1}, {d2} and {d3}{K}",
    "this {B} is easy to spot by {n1}, {n2} and {n3}{K}",
    "the {b1} and the {b2} of this {B} go with {n3}{K}",
)
_THREE = (
    "this {S} has {n1}, {n2} and {n3}{K}",
    "a {S} with {n1} and {n2}, {i3}{K}",
    "{p1} of this {S} {v1} {c1} while {d2} and {d3}{K}",
    "{d1}, {d2} and {d3} on this {S}{K}",
    "a {S} showing {n1} together with {n2} and {n3}{K}",
    "it is a {S}, {d1} and it has {n2} and {n3}{K}",
)
_THREE_BODY = (
    "this {B} has {n1} and {n2}{K}",
    "a {B} with {n1}, and {i2}{K}",
    "this is a {B}, {d1} and {d2}{K}",
    "the {B} here has {n1} beside {n2}{K}",
)

# (template, does {B} speak the body colour, how many parts in numbered slots)
SKELETONS: tuple[tuple[str, bool, int], ...] = (
    *((text, False, 4) for text in _FOUR),
    *((text, True, 3) for text in _FOUR_BODY),
    *((text, False, 3) for text in _THREE),
    *((text, True, 2) for text in _THREE_BODY),
)
_NUM_NAMED = np.array([slots + uses_body for _, uses_body, slots in SKELETONS])
_FOUR_PROB = 0.72

_PART_WORDS = {
    "body": ("body", "body", "plumage"),
    "wing": ("wings", "wings", "wing feathers"),
    "crown": ("crown", "crown", "cap"),
    "belly": ("belly", "belly", "underside"),
}
_PLURAL = frozenset(("wings", "wing feathers"))
_SHADES = {
    "red": ("bright", "vivid", "deep"),
    "orange": ("bright", "vivid", "warm"),
    "yellow": ("bright", "vivid", "lemon"),
    "green": ("bright", "vivid", "leaf"),
    "blue": ("bright", "vivid", "deep"),
    "brown": ("warm", "rich", "plain"),
    "black": ("jet", "deep", "plain"),
    "white": ("pure", "snow", "plain"),
}
_SHADE_PROB = 0.22
_SIZE_WORDS = {
    "small": ("small", "little", "tiny"),
    "medium": ("medium sized", "mid sized", "medium"),
    "large": ("large", "big", "big"),
}
_SIZE_PROB = 0.3
_BEAK_WORDS = {
    "short": ("short beak", "short bill", "stubby beak", "small pointed bill"),
    "long": ("long beak", "long bill", "very long beak", "long thin bill"),
}
_BEAK_PROB = 0.25
_BEAK_ENDINGS = (", and a {beak}", ", with a {beak}", ", its {kind} is {length}", ", and it has a {beak}")


@dataclass(frozen=True, slots=True)
class Caption:
    """One sentence and what it says.

    Attributes:
        text: lower-case words with commas, no full stop.
        spoken: attribute name to value, only what the sentence names.
        skeleton: number of the sentence in `SKELETONS`.
    """

    text: str
    spoken: dict[str, str]
    skeleton: int


def describe_bird(look: BirdLook, rng: np.random.Generator, num_captions: int) -> list[Caption]:
    """Describe one bird several times, never twice in the same words.

    Args:
        look: the species; captions say nothing about pose and background.
        rng: where the choices come from.
        num_captions: how many.

    Returns: captions with all different texts, and different skeletons while there are any left.

    >>> look = BirdLook("blue", "black", "red", "white", "short", "small")
    >>> [caption.spoken["crown"] for caption in describe_bird(look, np.random.default_rng(1), 1)]
    ['red']
    """
    captions: list[Caption] = []
    used: set[int] = set()
    texts: set[str] = set()
    while len(captions) < num_captions:
        wanted = 4 if rng.random() < _FOUR_PROB else 3
        able = np.flatnonzero(_NUM_NAMED == wanted)
        fresh = able[~np.isin(able, list(used))] if used else able
        skeleton = int(rng.choice(fresh if len(fresh) else able))
        caption = _fill(skeleton, look, rng)
        if caption.text not in texts:
            captions.append(caption)
            used.add(skeleton)
            texts.add(caption.text)
    return captions


def _fill(skeleton: int, look: BirdLook, rng: np.random.Generator) -> Caption:
    template, uses_body, num_slots = SKELETONS[skeleton]
    colours = dict(zip(PARTS, look.colours(), strict=True))
    parts = [part for part in PARTS if not (uses_body and part == "body")]
    order = [parts[place] for place in rng.permutation(len(parts))[:num_slots]]
    spoken = {part: colours[part] for part in PARTS if part in order or (uses_body and part == "body")}
    words: dict[str, str] = {}
    for place, part in enumerate(order, start=1):
        words |= {f"{form}{place}": text for form, text in _phrases(part, colours[part], rng).items()}
    size = ""
    if rng.random() < _SIZE_PROB:
        spoken["size"] = look.size
        size = _pick(_SIZE_WORDS[look.size], rng) + " "
    words["S"] = size + "bird"
    words["B"] = size + _shade(look.body, rng) + " bird"
    words["K"] = ""
    if rng.random() < _BEAK_PROB:
        spoken["beak"] = look.beak
        beak = _pick(_BEAK_WORDS[look.beak], rng)
        kind = "bill" if "bill" in beak else "beak"
        words["K"] = _pick(_BEAK_ENDINGS, rng).format(beak=beak, kind=kind, length=look.beak)
    return Caption(_fix_articles(template.format(**words)), spoken, skeleton)


def _phrases(part: str, colour: str, rng: np.random.Generator) -> dict[str, str]:
    """Return every form a numbered slot may take, all with the same words."""
    noun = _pick(_PART_WORDS[part], rng)
    shade = _shade(colour, rng)
    verb = "are" if noun in _PLURAL else "is"
    article = "" if noun in _PLURAL or noun == "plumage" else "a "
    return {
        "n": f"{article}{shade} {noun}",
        "b": f"{shade} {noun}",
        "d": f"the {noun} {verb} {shade}",
        "i": f"its {noun} {verb} {shade}",
        "p": f"the {noun}",
        "v": verb,
        "c": shade,
    }


def _shade(colour: str, rng: np.random.Generator) -> str:
    return f"{_pick(_SHADES[colour], rng)} {colour}" if rng.random() < _SHADE_PROB else colour


def _pick(words: tuple[str, ...], rng: np.random.Generator) -> str:
    return words[int(rng.integers(len(words)))]


def _fix_articles(text: str) -> str:
    return re.sub(r"\ba (?=[aeio])", "an ", text)
