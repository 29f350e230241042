"""The record of one measured number, and protocols by name.

A number without a protocol is refused: `measured` takes the protocol, checks that it defines the
metric, and returns the `Metric` that goes into `metrics.json`.  The table of protocols is in
`protocols.py`; the arithmetic is in `scores.py`, `retrieval.py` and `attributes.py`.
"""

from __future__ import annotations

import dataclasses
import math
import re
from dataclasses import dataclass, field
from typing import Any

from speech2image.errors import ProtocolError, nearest_names
from speech2image.metrics.bootstrap import Interval
from speech2image.metrics.protocols import CORRECTED, CORRECTED_SUFFIX, PROTOCOLS, Protocol

__all__ = ["HIGHER_IS_BETTER", "PROTOCOLS", "Metric", "Protocol", "get_protocol", "measured"]

HIGHER_IS_BETTER: dict[str, bool] = {
    "fid": False,
    "kid": False,
    "inception_score": True,
    "precision": True,
    "recall_prdc": True,
    "f_score": True,
    "density": True,
    "coverage": True,
    "recall": True,
    "map": True,
    "class_accuracy": True,
    "ap": True,
    "r_precision": True,
    "clip_score": True,
    "classifier_accuracy": True,
    "attribute_accuracy": True,
    "shuffled_speech": False,
    "probe_accuracy": True,
    "copies": False,
    "fid_bound": False,
    "kid_bound": False,
}
"""Families of metrics; a metric name is `<family>`, `<family>@<k>` or `<family>/<what>`."""


def get_protocol(name: str, legacy: bool | None = None) -> Protocol:
    """Return the protocol called `name`.

    Args:
        name: a key of `PROTOCOLS`, or one with `-corrected` behind it.
        legacy: True: the released procedure with its defects; False: the corrected variant, whose
            name ends in `-corrected`; None: what the name says.

    Raises:  ProtocolError: unknown (the message lists the nearest names), or `legacy=True` for a
        protocol that has no legacy form.
    """
    base = name.removesuffix(CORRECTED_SUFFIX)
    is_corrected = base != name
    if base not in PROTOCOLS or (is_corrected and base not in CORRECTED):
        near = nearest_names(name, PROTOCOLS) or sorted(PROTOCOLS)
        raise ProtocolError(
            f"there is no evaluation protocol '{name}'",
            f"Use protocol={' or protocol='.join(near)} (all: {', '.join(sorted(PROTOCOLS))}).",
        )
    if legacy and base not in CORRECTED:
        raise ProtocolError(
            f"the protocol '{base}' has no legacy form: no released procedure stands behind it",
            f"Leave protocol.legacy out, or use one that has: protocol={' or protocol='.join(CORRECTED)}.",
        )
    wants_corrected = is_corrected if legacy is None else not legacy
    return CORRECTED[base] if wants_corrected and base in CORRECTED else PROTOCOLS[base]


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
    value: float | Interval,
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
    """Return the record of one number measured under `protocol`; an `Interval` brings its ends and level along.

    Raises:  ProtocolError: no protocol, a metric that the protocol does not define, no data, or a
        value that is not finite.
    """
    if isinstance(value, Interval):
        low, high, level = value.low, value.high, value.level
        value = value.value
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
