"""Named evaluation protocols and the record of one measured number.

A number without a protocol is refused: `measured` takes the protocol, checks that it defines the
metric, and returns the `Metric` that goes into `metrics.json`.  The arithmetic is in `scores.py`,
`retrieval.py` and `attributes.py`; published protocols are described, not re-implemented, here.
"""

from __future__ import annotations

import dataclasses
import math
import re
from dataclasses import dataclass, field
from typing import Any

from speech2image.errors import ProtocolError, nearest_names

HIGHER_IS_BETTER: dict[str, bool] = {
    "fid": False,
    "kid": False,
    "inception_score": True,
    "recall": True,
    "map": True,
    "class_accuracy": True,
    "ap": True,
    "attribute_accuracy": True,
    "shuffled_speech": False,
    "probe_accuracy": True,
}
"""Families of metrics; a metric name is `<family>`, `<family>@<k>` or `<family>/<what>`."""


@dataclass(frozen=True, slots=True)
class Protocol:
    """Everything that must be equal before two numbers may stand in one column.

    Attributes:
        name: what `protocol=` takes.
        title: one line for tables.
        split: split that is generated and compared.
        real_set: which real images are the other side.
        crop: how real images are cropped before anything else.
        resize: how both sides reach the feature network.
        network: feature network, `probe` (trained on real training images of the corpus) or
            `inception-v3-compat`.
        metrics: families of metrics it defines.
        attributes: attributes whose mean is the headline accuracy; empty: all the probe knows.
        samples_per_utterance: images generated for each utterance.
        ema: generated with the averaged generator.
        noise: how generation noise is drawn.
        seeds: seeds of generation the protocol asks for.
        metric_seed: seed of shuffles, subsets and resampling.
        isc_splits: splits of the inception score, shuffled.
        kid_subsets: subsets of KID.
        kid_subset_size: images a subset where each side has twice as many, else half a side.
        fid_replicates: bootstrap replicates behind the interval of FID.
        comparable: values may be set beside published ones.
        note: what a reader of the table must know.
    """

    name: str
    title: str
    split: str
    real_set: str
    crop: str
    resize: str
    network: str
    metrics: tuple[str, ...]
    attributes: tuple[str, ...] = ()
    samples_per_utterance: int = 1
    ema: bool = True
    noise: str = "standard normal, not truncated, a function of (seed, utterance)"
    seeds: tuple[int, ...] = (0,)
    metric_seed: int = 2020
    isc_splits: int = 10
    kid_subsets: int = 100
    kid_subset_size: int = 1000
    fid_replicates: int = 200
    comparable: bool = False
    note: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Return the protocol as plain data for `metrics.json`."""
        return dataclasses.asdict(self)


_IMAGE = ("fid", "inception_score", "kid")
_RETRIEVAL = ("recall", "map", "class_accuracy", "ap")
_PROBE = ("attribute_accuracy", "shuffled_speech", "probe_accuracy")
_OWN_NETWORK = (
    "FID, IS and KID use a small network trained on this corpus: compare runs of this corpus with"
    " each other, never with published values."
)

PROTOCOLS: dict[str, Protocol] = {
    protocol.name: protocol
    for protocol in (
        Protocol(
            name="spoken_birds",
            title="Spoken birds, unseen species",
            split="test",
            real_set="all real images of the test species, once each",
            crop="bounding box 0.75, as in training",
            resize="antialiased bilinear to the probe's size, centre crop",
            network="probe",
            metrics=_IMAGE + _RETRIEVAL + _PROBE,
            attributes=("body", "wing", "crown", "belly"),
            note="An attribute counts where the utterance names it. " + _OWN_NETWORK,
        ),
        Protocol(
            name="spoken_digits",
            title="Spoken digits, unseen recordings",
            split="test",
            real_set="all real test digits, once each",
            crop="none",
            resize="antialiased bilinear to the probe's size",
            network="probe",
            metrics=_IMAGE + _RETRIEVAL + _PROBE,
            attributes=("digit",),
            note=_OWN_NETWORK,
        ),
        Protocol(
            name="offline",
            title="Own feature network (any corpus)",
            split="test",
            real_set="all real images of the split, once each",
            crop="as prepared (CUB: bounding box 0.75)",
            resize="antialiased bilinear to the probe's size, centre crop",
            network="probe",
            metrics=_IMAGE + _RETRIEVAL + _PROBE,
            note=_OWN_NETWORK,
        ),
        Protocol(
            name="clean",
            title="Inception, test images only, stated preparation",
            split="test",
            real_set="all real images of the test split, once each; no training image",
            crop="CUB: bounding box 0.75; other corpora: full frame",
            resize="real: shorter side to the generated size (antialiased bilinear), centre crop;"
            " both: TF1 bilinear to 299 inside the network",
            network="inception-v3-compat",
            metrics=_IMAGE + _RETRIEVAL,
            fid_replicates=10,
            note="The published papers do not state how they prepared real images; beside their"
            " tables these values are an orientation, not the same protocol.",
        ),
    )
}
"""Protocols by name."""


def get_protocol(name: str) -> Protocol:
    """Return the protocol called `name`.

    Raises:  ProtocolError: unknown; the message lists the nearest names.
    """
    if name in PROTOCOLS:
        return PROTOCOLS[name]
    near = nearest_names(name, PROTOCOLS) or sorted(PROTOCOLS)
    raise ProtocolError(
        f"there is no evaluation protocol '{name}'",
        f"Use protocol={' or protocol='.join(near)} (all: {', '.join(sorted(PROTOCOLS))}).",
    )


@dataclass(frozen=True, slots=True)
class Metric:
    """One measured number with everything needed to read it.

    Attributes:
        name: `<family>`, `<family>@<k>` or `<family>/<what>`.
        value: the number.
        low: lower end of its interval; None: not estimated.
        high: upper end.
        level: confidence level of the interval.
        count: images or queries it was measured on (the generated side where there are two).
        higher_is_better: direction; for controls, chance is best.
        unit: `fraction` or `` (none).
        chance: what random guessing gives; None: not defined.
        note: one sentence for the reader.
        protocol: name of the protocol.
        details: counts of the other side, subset sizes, network and weight hash.
    """

    name: str
    value: float
    low: float | None
    high: float | None
    level: float
    count: int
    higher_is_better: bool
    unit: str
    chance: float | None
    note: str
    protocol: str
    details: dict[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return the record as plain data for `metrics.json`."""
        return dataclasses.asdict(self)


def measured(
    protocol: Protocol | None,
    name: str,
    value: float,
    *,
    low: float | None = None,
    high: float | None = None,
    level: float = 0.95,
    count: int,
    unit: str = "",
    chance: float | None = None,
    note: str = "",
    **details: Any,
) -> Metric:
    """Return the record of one number measured under `protocol`.

    Raises:  ProtocolError: no protocol, a metric that the protocol does not define, no data, or a
        value that is not finite.
    """
    if protocol is None:
        raise ProtocolError(
            f"the metric '{name}' was asked for without a protocol",
            f"Name one: protocol={' or protocol='.join(sorted(PROTOCOLS))}.",
        )
    family = re.split("[@/]", name, maxsplit=1)[0]
    if family not in protocol.metrics or family not in HIGHER_IS_BETTER:
        raise ProtocolError(
            f"protocol '{protocol.name}' does not define the metric '{name}'; it defines"
            f" {', '.join(protocol.metrics)}",
            "Choose another protocol or another metric.",
        )
    if count < 1 or not math.isfinite(value):
        raise ProtocolError(
            f"the metric '{name}' came out as {value} on {count} items under '{protocol.name}'",
            "Check that images were generated for the whole split and are not all alike.",
        )
    return Metric(
        name=name,
        value=float(value),
        low=low,
        high=high,
        level=level,
        count=count,
        higher_is_better=HIGHER_IS_BETTER[family],
        unit=unit,
        chance=chance,
        note=note,
        protocol=protocol.name,
        details=details,
    )
