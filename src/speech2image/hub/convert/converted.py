"""What a converter returns, and how it fails.

Shared by the converters of this folder: one record and one error.  Each converter infers the
constructor arguments of our model from the shapes in the released file.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from speech2image.errors import CheckpointError
from speech2image.hub.systems import recognise


@dataclass(frozen=True)
class Converted:
    """A released network, ready to be built.

    Attributes:
        target: import path of our class, e.g. `speech2image.gan.stackgan.StackGenerator`.
        arguments: its constructor arguments, inferred from shapes.
        state: its state, names as in our class.
        dropped: tensors of the file our class has no use for.
    """

    target: str
    arguments: dict[str, Any]
    state: dict[str, Tensor]
    dropped: tuple[str, ...] = ()


def require(state: Mapping[str, Tensor], names: Sequence[str], path: Path, what: str) -> None:
    """Refuse a state that lacks the names that define a network.

    Raises:  CheckpointError: says what the file looks like instead, where that is known.
    """
    absent = [name for name in names if name not in state]
    if absent:
        looks = recognise(state)
        found = f"it looks like {looks}" if looks else f"its first tensors are {', '.join(list(state)[:4])}"
        raise CheckpointError(
            f"{path} is not {what}: it has no {', '.join(absent[:3])}; {found}",
            "Give the file that belongs to the system, or another system=NAME.",
        )


def require_shapes(
    state: Mapping[str, Tensor], expected: Mapping[str, tuple[int, ...]], path: Path, what: str
) -> None:
    """Refuse a state whose named tensors have other shapes; all differences in one message.

    Raises:  CheckpointError: any shape differs.
    """
    wrong = [
        f"{name} is {tuple(state[name].shape)}, expected {shape}"
        for name, shape in expected.items()
        if name in state and tuple(state[name].shape) != shape
    ]
    if wrong:
        raise CheckpointError(
            f"{path} is not a complete {what}: " + "; ".join(wrong),
            "The file is damaged or from a changed model; fetch the released one again.",
        )
