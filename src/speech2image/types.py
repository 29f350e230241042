"""Frozen records that cross package borders.

Here are the shapes every part of the suite speaks: utterances and images of a corpus, batches of
speech, conditions for generators, image pyramids and code grids.  No behaviour lives here, and no
heavy import: torch is only named in annotations.  Readers of corpora are in `data/`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class Utterance:
    """One caption of one image and, where it exists, its recording.

    Attributes:
        key: unique in its corpus, `<image key>_<caption index>`.
        caption: the words, one line.
        caption_index: position among the captions of its image, from 0.
        wave: path of the recording, relative to the corpus root or absolute; None: not spoken yet.
        speaker: who speaks, as the corpus names it; None: unknown.
        engine: the synthesizer and voice that made `wave`; None: a person, or unknown.
        attributes: what the caption says, attribute name to value (embedded corpora only).
    """

    key: str
    caption: str
    caption_index: int
    wave: str | None = None
    speaker: str | None = None
    engine: str | None = None
    attributes: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ImageRecord:
    """One image of a corpus with its captions.

    Attributes:
        key: unique in its corpus; for CUB `<class>/<file>` without suffix.
        path: image file, relative to the corpus root.
        split: `train`, `val` or `test`.
        class_id: dense class number from 0; every image its own class where a corpus has none.
        class_name: readable class.
        box: bounding box `(x, y, width, height)` in pixels, or None.
        attributes: true attributes of the image, name to value (embedded corpora only).
        utterances: its captions, in order.
    """

    key: str
    path: str
    split: str
    class_id: int
    class_name: str
    box: tuple[float, float, float, float] | None = None
    attributes: dict[str, str] = field(default_factory=dict)
    utterances: tuple[Utterance, ...] = ()


@dataclass(frozen=True, slots=True)
class SpeechBatch:
    """Padded acoustic features of a batch of utterances.

    Attributes:
        features: `(B, T, M)` float32, M mel bands, padded at the end.
        lengths: `(B,)` int64, valid frames of each item, on the CPU or the device of `features`.
    """

    features: Tensor
    lengths: Tensor

    def to(self, device: object) -> SpeechBatch:
        """Return the batch on `device`."""
        return SpeechBatch(self.features.to(device), self.lengths.to(device))  # type: ignore[call-overload]


@dataclass(frozen=True, slots=True)
class Condition:
    """What an encoder tells a generator.

    Attributes:
        sentence: `(B, D)` float32, one vector an utterance.
        words: `(B, D, N)` float32, one vector a time step, 0 where `mask` is False; None: not kept.
        mask: `(B, N)` bool, True at valid steps; None exactly where `words` is None.
    """

    sentence: Tensor
    words: Tensor | None = None
    mask: Tensor | None = None


@dataclass(frozen=True, slots=True)
class ImagePyramid:
    """The same images at rising sizes, `(B, 3, H, H)` float32 in [-1, 1] each, smallest first."""

    levels: tuple[Tensor, ...]


@dataclass(frozen=True, slots=True)
class Codes:
    """A grid of code-book indices: `indices` `(B, H, W)` int64 in [0, `size`)."""

    indices: Tensor
    size: int
