"""Published numbers as data, each with its source and how sure we are of it.

These rows are shown beside our own and never in one table with them: the papers differ in real
set, crop, resize, network and counts.  No number here was measured by this suite.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class PublishedRow:
    """One method in a published table.

    Attributes:
        method: name as published.
        input: `text` or `speech`.
        values: metric name to the number as printed, spread included.
        source: key of `SOURCES`.
        note: what a reader must know before comparing.
    """

    method: str
    input: str
    values: Mapping[str, str]
    source: str
    note: str = ""


@dataclass(frozen=True)
class PublishedTable:
    """The published numbers of one corpus; metrics ending in ↑ or ↓ say which way is better."""

    corpus: str
    title: str
    metrics: tuple[str, ...]
    rows: tuple[PublishedRow, ...]
    caution: str


SOURCES: Mapping[str, tuple[str, str]] = {
    "sta": ("Speak the Art, README tables", "https://github.com/mariamsaed19/Speak-the-Art"),
    "s2igan": (
        "S2IGAN, project page source",
        "https://github.com/xinshengwang/academic-kickstart/blob/master/content/project/S2IGAN/index.md",
    ),
    "recalled": ("recalled from the paper, not verified", ""),
}
"""Source key to (name, address); an empty address: no page could be checked."""

_ALSO_S2IGAN = "also on the S2IGAN project page"
_CAUTION = (
    "FID and IS of different papers are not comparable with each other or with ours: real sets, crops, "
    "resizes, networks and counts differ, and parts of the protocols were never published."
)


def _row(method: str, kind: str, values: str, source: str, note: str = "") -> PublishedRow:
    """Build a row from `name=value; name=value`."""
    pairs = (part.split("=") for part in values.split(";"))
    return PublishedRow(method, kind, {name.strip(): value.strip() for name, value in pairs}, source, note)


CUB200 = PublishedTable(
    corpus="cub200",
    title="CUB-200",
    metrics=("FID ↓", "IS ↑", "mAP ↑"),
    rows=(
        _row("StackGAN-v2", "text", "FID ↓=15.30; IS ↑=4.04 ± 0.05", "sta", "IS also in its own README"),
        _row("AttnGAN", "text", "IS ↑=4.36 ± 0.03", "sta"),
        _row("MirrorGAN", "text", "IS ↑=4.56 ± 0.05", "sta"),
        _row("SEGAN", "text", "IS ↑=4.67 ± 0.04", "sta"),
        _row("VQ-Diffusion", "text", "FID ↓=10.32", "sta"),
        _row("Li et al.", "speech", "FID ↓=18.37; IS ↑=4.09 ± 0.04", "sta"),
        _row("StackGAN-v2", "speech", "FID ↓=18.94; IS ↑=4.14 ± 0.04", "sta"),
        _row("S2IGAN", "speech", "FID ↓=14.50; IS ↑=4.29 ± 0.04; mAP ↑=9.04", "sta", _ALSO_S2IGAN),
        _row("Fusion-S2iGan", "speech", "FID ↓=13.09; IS ↑=5.06 ± 0.09", "sta"),
        _row("Speak the Art (STA)", "speech", "FID ↓=9.76; IS ↑=4.07 ± 0.05", "sta", "own FID protocol"),
        _row("StackGAN-v2", "text", "FID ↓=20.94; IS ↑=4.02 ± 0.03; mAP ↑=7.01", "recalled",
             "as in the S2IGAN paper; another protocol than 15.30 above"),
        _row("StackGAN-v2", "speech", "mAP ↑=8.09", "recalled", "as in the S2IGAN paper"),
    ),
    caution=_CAUTION,
)  # fmt: skip

FLICKR8K = PublishedTable(
    corpus="flickr8k",
    title="Flickr8k",
    metrics=("FID ↓", "IS ↑", "R@50 ↑"),
    rows=(
        _row("AttnGAN", "text", "FID ↓=84.08; IS ↑=12.37 ± 0.41; R@50 ↑=50.40", "sta"),
        _row("StackGAN-v2", "speech", "FID ↓=101.74; IS ↑=8.36 ± 0.39; R@50 ↑=16.40", "sta",
             "the same R@50 for two methods is suspicious"),
        _row("S2IGAN", "speech", "FID ↓=93.29; IS ↑=8.72 ± 0.34; R@50 ↑=16.40", "sta",
             "the same R@50 for two methods is suspicious"),
        _row("Fusion-S2iGan", "speech", "FID ↓=70.80; IS ↑=11.70 ± 0.45; R@50 ↑=34.95", "sta"),
        _row("Speak the Art (STA)", "speech", "FID ↓=31.15; IS ↑=12.3 ± 0.6; R@50 ↑=43.46", "sta"),
    ),
    caution=_CAUTION + " With about 1,000 test images the Inception covariance is singular.",
)  # fmt: skip

OXFORD102 = PublishedTable(
    corpus="oxford102",
    title="Oxford-102",
    metrics=("FID ↓", "IS ↑", "mAP ↑"),
    rows=(
        _row("S2IGAN", "speech", "FID ↓=48.64; IS ↑=3.55 ± 0.04; mAP ↑=13.40", "s2igan",
             "a second table there says IS ± 0.08"),
        _row("StackGAN-v2", "text", "FID ↓=50.38; IS ↑=3.35 ± 0.07; mAP ↑=9.88", "recalled"),
        _row("StackGAN-v2", "speech", "FID ↓=54.33; IS ↑=3.69 ± 0.08; mAP ↑=12.18", "recalled"),
        _row("Li et al.", "speech", "FID ↓=54.76; IS ↑=3.23 ± 0.05", "recalled"),
    ),
    caution=_CAUTION,
)  # fmt: skip

TABLES: tuple[PublishedTable, ...] = (CUB200, FLICKR8K, OXFORD102)


def published_for(corpus: str) -> PublishedTable | None:
    """Return the published table of `corpus`, or None for a corpus no paper used.

    >>> published_for("cub200").rows[-3].method
    'Speak the Art (STA)'
    """
    return next((table for table in TABLES if table.corpus == corpus), None)
