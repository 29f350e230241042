"""The space of a search: what is varied, read from the words of a command as Hydra's Optuna sweeper reads them.

`choice(a,b)` or `a,b`, `range(start,stop,step)`, `interval(low,high)`, `int(interval(low,high))` and
`tag(log,interval(low,high))` vary; all other words stay.  How points are chosen is in `search.py`.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from speech2image.errors import ConfigError

NUM_DIGITS = 6
"""Digits of a drawn float: enough for a hyper-parameter, and short in a table."""
Value = str | int | float


@dataclass(frozen=True)
class Dimension:
    """One thing that is varied.

    Attributes:
        key: of the configuration, `optim.lr`, or a group, `optim`.
        prefix: what stood before it on the command line: nothing, `+` or `++`.
        choices: values as they are typed; empty: an interval or a range of numbers.
        low: smallest value, included.
        high: largest value, included.
        step: distance between values; None: any float, or every integer.
        is_int: whether values are integers.
        is_log: whether values are spread evenly over their logarithm.
    """

    key: str
    prefix: str = ""
    choices: tuple[str, ...] = ()
    low: float = 0.0
    high: float = 0.0
    step: float | None = None
    is_int: bool = False
    is_log: bool = False

    def values(self) -> list[Value] | None:
        """Return every value, or None where there is no end of them."""
        if self.choices:
            return list(self.choices)
        if self.is_int:
            return list(range(int(self.low), int(self.high) + 1, int(self.step or 1)))
        if self.step is None:
            return None
        count = int((self.high - self.low) / self.step + 1e-9) + 1
        return [_rounded(self.low + place * self.step) for place in range(count)]

    def word(self, value: Value) -> str:
        """Return the override that sets `value`.

        >>> Dimension("optim.lr", "++", low=1e-5, high=1e-2).word(0.00123456789)
        '++optim.lr=0.00123457'
        """
        return f"{self.prefix}{self.key}={_rounded(value) if isinstance(value, float) else value}"

    def distribution(self) -> Any:
        """Return Optuna's form of it."""
        from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

        if self.choices:
            return CategoricalDistribution(self.choices)
        if self.is_int:
            return IntDistribution(int(self.low), int(self.high), log=self.is_log, step=int(self.step or 1))
        return FloatDistribution(self.low, self.high, log=self.is_log, step=self.step)


@dataclass(frozen=True)
class Space:
    """What is varied and what is not.

    Attributes:
        dimensions: in the order of the command.
        fixed: the other words of the command.
    """

    dimensions: tuple[Dimension, ...]
    fixed: tuple[str, ...]

    def words(self, point: Mapping[str, Value]) -> tuple[str, ...]:
        """Return the words of a job at a point, key to value."""
        return (*self.fixed, *(dimension.word(point[dimension.key]) for dimension in self.dimensions))

    def corners(self) -> list[dict[str, Value]]:
        """Return two points: all dimensions at their first or lowest value, and all at their last or highest."""
        corners: list[dict[str, Value]] = [{}, {}]
        for dimension in self.dimensions:
            ends = dimension.values() or [float(dimension.low), float(dimension.high)]
            corners[0][dimension.key], corners[1][dimension.key] = ends[0], ends[-1]
        return corners

    def grid(self) -> list[dict[str, Value]]:
        """Return all points, the last dimension fastest.

        Raises:  ConfigError: a dimension without an end.
        """
        values = [dimension.values() for dimension in self.dimensions]
        for dimension, found in zip(self.dimensions, values, strict=True):
            if found is None:
                raise ConfigError(
                    f"hydra.sweeper.sampler=grid: {dimension.key} is an interval of floats, which has no end",
                    f"Type: '{dimension.key}=choice(…)' or '{dimension.key}=range(start,stop,step)'.",
                )
        keys = [dimension.key for dimension in self.dimensions]
        return [
            dict(zip(keys, point, strict=True))
            for point in itertools.product(*(v for v in values if v is not None))
        ]


def _rounded(value: float) -> float:
    return float(f"{value:.{NUM_DIGITS}g}")


def read_space(words: Sequence[str], loader: Any = None) -> Space:
    """Read a space from the words of a command.

    Args:
        words: overrides; a later word on the same key replaces an earlier one.
        loader: Hydra's config loader, which knows the groups behind `glob(…)`; None: not needed.

    Raises:  ConfigError: nothing is varied, an interval without extent, or a choice of one kind that is not known.
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser

    parsed = OverridesParser.create(config_loader=loader).parse_overrides(list(words))
    last = {override.get_key_element(): override for override in parsed}
    dimensions, fixed = [], []
    for override in last.values():
        if override.is_sweep_override():
            dimensions.append(_dimension(override))
        else:
            fixed.append(str(override.input_line))
    if not dimensions:
        raise ConfigError(
            "hydra/sweeper=optuna: nothing is varied",
            "Type for example: 'optim.lr=tag(log,interval(1e-5,1e-2))' or 'trainer.batch_size=choice(16,32)'.",
        )
    return Space(tuple(dimensions), tuple(fixed))


def _dimension(override: Any) -> Dimension:
    key = override.get_key_element()
    plain = key.lstrip("+")
    prefix, value = key[: len(key) - len(plain)], override.value()
    if override.is_interval_sweep():
        is_log, is_int = "log" in value.tags, isinstance(value.start, int) and isinstance(value.end, int)
        if not value.start < value.end or (is_log and value.start <= 0):
            wanted = "0 < low < high" if is_log else "low < high"
            raise ConfigError(
                f"{override.input_line.lstrip('+')}: expected {wanted}", "Write: interval(low,high)."
            )
        return Dimension(plain, prefix, (), value.start, value.end, None, is_int, is_log)
    if override.is_range_sweep() and not value.shuffle:
        parts = (value.start, value.stop, value.step)
        steps = [float(found) for found in override.sweep_iterator()]
        if len(steps) > 1:
            is_int = all(isinstance(part, int) for part in parts)
            return Dimension(plain, prefix, (), min(steps), max(steps), abs(value.step), is_int)
    choices = tuple(dict.fromkeys(override.sweep_string_iterator()))
    if getattr(value, "shuffle", False):  # each call of the command would shuffle anew
        choices = tuple(sorted(choices))
    return Dimension(plain, prefix, choices)
