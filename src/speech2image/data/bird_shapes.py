"""Plan images of birds: what a species is, the outlines of the three poses, place and bounding box.

Here are the palette, the attributes and the geometry.  A plan costs a third of a millisecond and
already knows the box; `bird_drawing.py` paints it.  Which birds there are is in `birds.py`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

__all__ = ["BACKGROUNDS", "BEAKS", "PALETTE", "PARTS", "POSES", "SIZES", "BirdLook", "BirdPlan", "plan_bird"]

PALETTE: dict[str, tuple[int, int, int]] = {
    "red": (212, 28, 36),
    "orange": (247, 136, 22),
    "yellow": (252, 224, 44),
    "green": (42, 156, 64),
    "blue": (36, 88, 214),
    "brown": (126, 74, 36),
    "black": (34, 34, 40),
    "white": (246, 246, 242),
}
PARTS = ("body", "wing", "crown", "belly")
BEAKS = ("short", "long")
SIZES = ("small", "medium", "large")
POSES = ("perched", "standing", "flying")
BACKGROUNDS = ("sky", "meadow", "forest", "water", "sand")

_SIZE_SHARE = {"small": 0.56, "medium": 0.66, "large": 0.76}  # longest side of the bird in the frame
_BEAK_LENGTH = {"short": 0.20, "long": 0.52}
_SPLINE_STEPS = 6

# Outlines in bird units, looking right, y down; closed splines unless said otherwise.
_SILHOUETTE = (
    (0.69, -0.48), (0.62, -0.78), (0.36, -0.91), (0.08, -0.79), (-0.07, -0.48), (-0.28, -0.16), (-0.56, 0.20),
    (-0.54, 0.42), (-0.30, 0.58), (0.08, 0.63), (0.42, 0.44), (0.60, 0.10), (0.62, -0.20), (0.68, -0.36),
)  # fmt: skip
_TAIL = ((-0.36, 0.06), (-0.96, 0.56), (-1.02, 0.70), (-0.90, 0.78), (-0.74, 0.76), (-0.34, 0.50))
_BELLY = (
    (0.80, 0.02), (0.56, 0.00), (0.36, 0.10), (0.16, 0.26), (-0.16, 0.36), (-0.48, 0.36), (-0.70, 0.50), (-0.40, 0.80),
    (0.20, 0.84), (0.70, 0.50),
)  # fmt: skip
_CROWN = (
    (0.76, -0.57), (0.56, -0.57), (0.32, -0.52), (0.16, -0.38), (0.00, -0.24), (-0.16, -0.20), (-0.24, -0.50),
    (-0.02, -0.92), (0.30, -1.06), (0.62, -0.98),
)  # fmt: skip
_FOLDED_WING = (
    (0.22, -0.20), (0.29, 0.00), (0.18, 0.20), (-0.12, 0.34), (-0.48, 0.46), (-0.84, 0.60), (-0.62, 0.24),
    (-0.30, -0.10), (0.00, -0.26),
)  # fmt: skip
_RAISED_WING = (
    (0.26, 0.02), (0.30, -0.34), (0.16, -0.76), (-0.14, -1.16), (-0.50, -1.40), (-0.54, -1.20), (-0.72, -1.14),
    (-0.70, -0.94), (-0.82, -0.82), (-0.70, -0.60), (-0.74, -0.44), (-0.52, -0.22), (-0.40, 0.02), (-0.10, 0.12),
)  # fmt: skip
_FOLDED_FEATHERS = (
    ((0.10, 0.16), (-0.30, 0.26), (-0.70, 0.46)),
    ((0.06, 0.00), (-0.28, 0.10), (-0.62, 0.34)),
)
_RAISED_FEATHERS = (
    ((-0.06, -0.20), (-0.30, -0.66), (-0.52, -1.12)),
    ((-0.18, -0.10), (-0.46, -0.46), (-0.70, -0.80)),
)


@dataclass(frozen=True, slots=True)
class BirdLook:
    """What makes a species: four colours of `PALETTE`, a beak and a size."""

    body: str
    wing: str
    crown: str
    belly: str
    beak: str
    size: str

    def colours(self) -> tuple[str, str, str, str]:
        """Return the colours in the order of `PARTS`."""
        return (self.body, self.wing, self.crown, self.belly)


@dataclass(frozen=True, slots=True)
class BirdPlan:
    """One image before it is painted.

    Attributes:
        look: the species.
        pose: one of `POSES`; facing: `left` or `right`; background: one of `BACKGROUNDS`.
        outlines: `(N, 2)` float64 polygons and lines by name, pixels of the frame.
        box: tight `(x, y, width, height)` of the bird, pixels.
        unit_px: pixels of one bird unit.
        image_px: side of the frame.
        paint_seed: seed of shades, blobs and texture.
    """

    look: BirdLook
    pose: str
    facing: str
    background: str
    outlines: dict[str, np.ndarray]
    box: tuple[float, float, float, float]
    unit_px: float
    image_px: int
    paint_seed: int

    def attributes(self) -> dict[str, str]:
        """Return every attribute of the image, name to value."""
        colours = dict(zip(PARTS, self.look.colours(), strict=True))
        scene = {"pose": self.pose, "facing": self.facing, "background": self.background}
        return {**colours, "beak": self.look.beak, "size": self.look.size, **scene}


def plan_bird(look: BirdLook, rng: np.random.Generator, image_px: int = 128) -> BirdPlan:
    """Choose pose, place and shape of one image of a species.

    Args:
        look: the species.
        rng: where pose, background and jitter come from.
        image_px: side of the square frame.

    Returns: the plan; equal draws give equal plans.
    """
    pose = POSES[rng.choice(3, p=(0.42, 0.30, 0.28))]
    facing = ("left", "right")[rng.integers(2)]
    background = BACKGROUNDS[rng.integers(len(BACKGROUNDS))]
    outlines = _shape(look.beak, pose, rng)
    low, high = _extent(outlines)
    unit_px = image_px * _SIZE_SHARE[look.size] * rng.uniform(0.96, 1.04) / float((high - low).max())
    centre = image_px * (0.5 + rng.uniform(-0.035, 0.035, 2))
    mirror = np.array([-1.0 if facing == "left" else 1.0, 1.0])
    placed = {
        name: (points - (low + high) / 2) * mirror * unit_px + centre for name, points in outlines.items()
    }
    low, high = _extent(placed)
    edge = 0.5 * image_px / 128  # the dark contour
    low, high = np.clip(low - edge, 0, image_px), np.clip(high + edge, 0, image_px)
    box = (round(low[0], 1), round(low[1], 1), round(high[0] - low[0], 1), round(high[1] - low[1], 1))
    plain_box = (float(box[0]), float(box[1]), float(box[2]), float(box[3]))
    seed = int(rng.integers(2**63))
    return BirdPlan(look, pose, facing, background, placed, plain_box, unit_px, image_px, seed)


def _extent(outlines: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Return the corners of the bird; crown and belly are cut to the silhouette when painted."""
    points = np.concatenate(
        [outlines[name] for name in outlines if name not in ("crown", "belly", "feathers")]
    )
    return points.min(axis=0), points.max(axis=0)


def _shape(beak: str, pose: str, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Return the outlines of a bird looking right, bird units, with its jitter and its pose's tilt."""
    stretch = rng.uniform(0.95, 1.05, 2)
    tail_length = rng.uniform(0.85, 1.15)
    length = _BEAK_LENGTH[beak] * rng.uniform(0.9, 1.1)
    tail = np.array(_TAIL)
    tail[1:5] = tail[0] + (tail[1:5] - tail[0]) * tail_length
    head = np.array((0.0, rng.uniform(-0.03, 0.03)))
    shape = {
        "silhouette": _spline(_SILHOUETTE),
        "tail": tail,
        "belly": _spline(_BELLY),
        "crown": _spline(_CROWN) + head,
        "beak": np.array(((0.62, -0.56), (0.69 + length, -0.41), (0.62, -0.30))) + head,
        "eye": np.array(((0.46, -0.44),)) + head,
    }
    if pose == "flying":
        swing = _rotation(rng.uniform(-34, -6))
        shoulder = np.array((-0.04, 0.02))
        back = np.array((-0.16, 0.04))
        shape["wing"] = (_spline(_RAISED_WING) - shoulder) @ swing + shoulder + back
        shape["feathers"] = (np.array(_RAISED_FEATHERS).reshape(-1, 2) - shoulder) @ swing + shoulder + back
        shape["far_wing"] = (shape["wing"] - shoulder) @ _rotation(rng.uniform(24, 36)) * 0.88 + shoulder
        shape["far_wing"] += (0.06, -0.10)
        shape["tail"] = _spread(tail)
        tilt = rng.uniform(4, 22)
    else:
        shape["wing"], shape["feathers"] = _spline(_FOLDED_WING), np.array(_FOLDED_FEATHERS).reshape(-1, 2)
        tilt = rng.uniform(-14, -2) if pose == "perched" else rng.uniform(6, 18)
    turned = {name: (points * stretch) @ _rotation(tilt) for name, points in shape.items()}
    return turned if pose == "flying" else turned | _legs(turned["silhouette"], pose)


def _spread(tail: np.ndarray) -> np.ndarray:
    """Open the tail as a bird in flight does."""
    opened = tail.copy()
    opened[1] += (0.06, -0.12)
    opened[4] += (0.04, 0.10)
    return opened


def _legs(silhouette: np.ndarray, pose: str) -> dict[str, np.ndarray]:
    bottom = float(silhouette[:, 1].max())
    middle = float(silhouette[silhouette[:, 1].argmax(), 0])
    length = 0.16 if pose == "perched" else 0.34
    left, right = middle - 0.10, middle + 0.10
    return {
        "leg_left": np.array(
            ((left, bottom - 0.06), (left + 0.02, bottom + length), (left + 0.16, bottom + length))
        ),
        "leg_right": np.array(
            ((right, bottom - 0.06), (right + 0.04, bottom + length), (right + 0.18, bottom + length))
        ),
    }


def _rotation(degrees: float) -> np.ndarray:
    """Return the matrix that turns row vectors clockwise on the screen."""
    angle = np.deg2rad(degrees)
    return np.array(((np.cos(angle), np.sin(angle)), (-np.sin(angle), np.cos(angle))))


def _spline_weights() -> np.ndarray:
    t = np.arange(_SPLINE_STEPS)[:, None] / _SPLINE_STEPS
    powers = np.concatenate((np.ones_like(t), t, t**2, t**3), axis=1)
    return powers @ (0.5 * np.array(((0, 2, 0, 0), (-1, 0, 1, 0), (2, -5, 4, -1), (-1, 3, -3, 1))))


_WEIGHTS = _spline_weights()


def _spline(corners: tuple[tuple[float, float], ...]) -> np.ndarray:
    """Return a closed Catmull-Rom spline through `corners`, `(N * 6, 2)`."""
    points: np.ndarray = np.array(corners)
    around: np.ndarray = np.stack(
        [np.roll(points, shift, axis=0) for shift in (1, 0, -1, -2)], axis=1
    )  # (N, 4, 2)
    points = np.einsum("sk,nkc->nsc", _WEIGHTS, around).reshape(-1, 2)
    return points
