"""Draw birds of given colours: a plan of outlines first, then the paint.

Here are the palette, the shapes of the three poses, the backgrounds and the anti-aliased painting
with PIL.  A plan is cheap and already knows the bounding box; painting one bird of 128 pixels takes
a few milliseconds.  Which birds there are and where the files go is in `birds.py`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageChops, ImageDraw

__all__ = ["BACKGROUNDS", "BEAKS", "PALETTE", "PARTS", "POSES", "SIZES", "BirdLook", "BirdPlan", "paint_bird", "plan_bird"]

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
_BEAK_COLOUR = (228, 160, 52)
_LEG_COLOUR = (112, 84, 60)
_OVERSAMPLING = 3
_SPLINE_STEPS = 6

# Outlines in bird units, looking right, y down; closed splines unless said otherwise.
_SILHOUETTE = (
    (0.68, -0.48), (0.59, -0.74), (0.36, -0.86), (0.12, -0.74), (-0.02, -0.48), (-0.28, -0.16), (-0.56, 0.20),
    (-0.54, 0.42), (-0.30, 0.58), (0.08, 0.63), (0.42, 0.44), (0.60, 0.10), (0.62, -0.20), (0.68, -0.36),
)  # fmt: skip
_TAIL = ((-0.36, 0.06), (-0.96, 0.56), (-1.02, 0.70), (-0.90, 0.78), (-0.74, 0.76), (-0.34, 0.50))
_BELLY = (
    (0.80, 0.02), (0.56, 0.00), (0.36, 0.10), (0.16, 0.26), (-0.16, 0.36), (-0.48, 0.36), (-0.70, 0.50), (-0.40, 0.80),
    (0.20, 0.84), (0.70, 0.50),
)  # fmt: skip
_CROWN = (
    (0.74, -0.58), (0.50, -0.60), (0.28, -0.56), (0.10, -0.46), (-0.06, -0.40), (-0.12, -0.60), (0.02, -0.86),
    (0.30, -1.00), (0.60, -0.92),
)  # fmt: skip
_FOLDED_WING = (
    (0.22, -0.20), (0.29, 0.00), (0.18, 0.20), (-0.12, 0.34), (-0.48, 0.46), (-0.84, 0.60), (-0.62, 0.24),
    (-0.30, -0.10), (0.00, -0.26),
)  # fmt: skip
_RAISED_WING = (
    (0.26, 0.02), (0.30, -0.34), (0.16, -0.76), (-0.14, -1.16), (-0.50, -1.40), (-0.54, -1.20), (-0.72, -1.14),
    (-0.70, -0.94), (-0.82, -0.82), (-0.70, -0.60), (-0.74, -0.44), (-0.52, -0.22), (-0.40, 0.02), (-0.10, 0.12),
)  # fmt: skip
_FOLDED_FEATHERS = (((0.10, 0.16), (-0.30, 0.26), (-0.70, 0.46)), ((0.06, 0.00), (-0.28, 0.10), (-0.62, 0.34)))
_RAISED_FEATHERS = (((-0.06, -0.20), (-0.30, -0.66), (-0.52, -1.12)), ((-0.18, -0.10), (-0.46, -0.46), (-0.70, -0.80)))


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
    bird = np.concatenate([points for name, points in outlines.items() if name != "feathers"])
    low, high = bird.min(axis=0), bird.max(axis=0)
    unit_px = image_px * _SIZE_SHARE[look.size] * rng.uniform(0.96, 1.04) / float((high - low).max())
    centre = image_px * (0.5 + rng.uniform(-0.035, 0.035, 2))
    mirror = np.array([-1.0 if facing == "left" else 1.0, 1.0])
    placed = {name: (points - (low + high) / 2) * mirror * unit_px + centre for name, points in outlines.items()}
    bird = np.concatenate([points for name, points in placed.items() if name != "feathers"])
    edge = image_px / 128  # the dark contour
    low, high = np.clip(bird.min(axis=0) - edge, 0, image_px), np.clip(bird.max(axis=0) + edge, 0, image_px)
    box = (round(low[0], 1), round(low[1], 1), round(high[0] - low[0], 1), round(high[1] - low[1], 1))
    plain_box = (float(box[0]), float(box[1]), float(box[2]), float(box[3]))
    seed = int(rng.integers(2**63))
    return BirdPlan(look, pose, facing, background, placed, plain_box, unit_px, image_px, seed)


def paint_bird(plan: BirdPlan) -> np.ndarray:
    """Paint a plan.

    Returns: `(image_px, image_px, 3)` uint8; equal plans give equal pixels.
    Cost:    2 to 4 ms at 128 pixels.
    """
    rng = np.random.default_rng(plan.paint_seed)
    frame = _paint_background(plan, rng)
    layer, mask = _paint_layers(plan, rng)
    shade = _shading(plan, rng)
    bird = np.clip(np.asarray(layer, dtype=np.float32) * shade[..., None], 0, 255)
    alpha = np.asarray(mask, dtype=np.float32)[..., None] / 255
    scene = np.asarray(frame, dtype=np.float32)
    mixed: np.ndarray = np.rint(scene + (bird - scene) * alpha).astype(np.uint8)
    return mixed


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
        "eye": np.array(((0.45, -0.46),)) + head,
    }
    if pose == "flying":
        swing = _rotation(rng.uniform(-18, 14))
        shoulder = np.array((0.0, -0.02))
        shape["wing"] = (_spline(_RAISED_WING) - shoulder) @ swing + shoulder
        shape["feathers"] = (np.array(_RAISED_FEATHERS).reshape(-1, 2) - shoulder) @ swing + shoulder
        shape["far_wing"] = (shape["wing"] - shoulder) @ _rotation(rng.uniform(20, 30)) * 0.92 + shoulder + (0.14, -0.06)
        tilt = rng.uniform(14, 30)
    else:
        shape["wing"], shape["feathers"] = _spline(_FOLDED_WING), np.array(_FOLDED_FEATHERS).reshape(-1, 2)
        tilt = rng.uniform(-14, -2) if pose == "perched" else rng.uniform(6, 18)
    turned = {name: (points * stretch) @ _rotation(tilt) for name, points in shape.items()}
    # Crown and belly are cut to the silhouette, so only what is left of them may count for the box.
    low, high = turned["silhouette"].min(axis=0), turned["silhouette"].max(axis=0)
    for name in ("crown", "belly"):
        turned[name] = np.clip(turned[name], low - 0.02, high + 0.02)
    return turned if pose == "flying" else turned | _legs(turned["silhouette"], pose)


def _legs(silhouette: np.ndarray, pose: str) -> dict[str, np.ndarray]:
    bottom = float(silhouette[:, 1].max())
    middle = float(silhouette[silhouette[:, 1].argmax(), 0])
    length = 0.16 if pose == "perched" else 0.34
    left, right = middle - 0.10, middle + 0.10
    return {
        "leg_left": np.array(((left, bottom - 0.06), (left + 0.02, bottom + length))),
        "leg_right": np.array(((right, bottom - 0.06), (right + 0.04, bottom + length))),
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
    points = np.array(corners)
    around = np.stack([np.roll(points, shift, axis=0) for shift in (1, 0, -1, -2)], axis=1)  # (N, 4, 2)
    return np.einsum("sk,nkc->nsc", _WEIGHTS, around).reshape(-1, 2)


_SCENES: dict[str, tuple[tuple[int, int, int], tuple[int, int, int], tuple[int, int, int], tuple[int, int, int]]] = {
    # top, horizon, ground, blobs
    "sky": ((166, 196, 222), (208, 222, 230), (196, 210, 216), (226, 234, 238)),
    "meadow": ((196, 212, 214), (206, 216, 196), (158, 176, 132), (176, 190, 146)),
    "forest": ((120, 140, 122), (146, 162, 140), (122, 128, 104), (168, 182, 154)),
    "water": ((194, 206, 212), (184, 204, 210), (128, 160, 172), (158, 186, 194)),
    "sand": ((204, 212, 216), (216, 212, 200), (206, 190, 158), (218, 206, 180)),
}


def _paint_background(plan: BirdPlan, rng: np.random.Generator) -> Image.Image:
    """Return a soft, out-of-focus scene: painted at a quarter of the size and enlarged."""
    side = max(plan.image_px // 4, 8)
    top, horizon, ground, blob = (np.array(colour) + rng.normal(0, 6) for colour in _SCENES[plan.background])
    # Standing birds stand on the ground; otherwise the horizon is far away.
    feet = plan.outlines["leg_left"][1, 1] / plan.image_px if plan.pose == "standing" else 1.0
    level = feet - rng.uniform(0.06, 0.14) if plan.pose == "standing" else rng.uniform(0.62, 0.92)
    if plan.background == "sky" and plan.pose == "flying":
        level = 1.5
    height = (np.arange(side) + 0.5)[:, None] / side
    above = top + (horizon - top) * np.clip(height / level, 0, 1)
    below = ground * (1.03 - 0.12 * np.clip((height - level) / 0.4, 0, 1))
    column = np.where(height < level, above, below)
    small = Image.fromarray(np.broadcast_to(np.clip(column, 0, 255)[:, None], (side, side, 3)).astype(np.uint8))
    draw = ImageDraw.Draw(small)
    flat = plan.background in ("sky", "water", "sand")
    for _ in range(int(rng.integers(4, 9))):
        x, y = rng.uniform(0, side, 2)
        radius = rng.uniform(0.03, 0.13) * side
        wide = radius * (2.2 if flat else 1.0)
        tint = np.clip(blob + rng.normal(0, 7), 0, 255).astype(int)
        draw.ellipse((x - wide, y - radius / (2.5 if flat else 1), x + wide, y + radius), fill=tuple(tint.tolist()))
    return small.resize((plan.image_px, plan.image_px), Image.Resampling.BICUBIC)


def _paint_layers(plan: BirdPlan, rng: np.random.Generator) -> tuple[Image.Image, Image.Image]:
    """Return colours and coverage of perch and bird, reduced to the size of the frame."""
    side = plan.image_px * _OVERSAMPLING
    contour = max(2, round(plan.image_px * _OVERSAMPLING / 128))
    fills = {part: _jitter(PALETTE[colour], rng) for part, colour in zip(PARTS, plan.look.colours(), strict=True)}
    polygons = {
        name: [(x, y) for x, y in (points * _OVERSAMPLING).tolist()] for name, points in plan.outlines.items()
    }
    layer = Image.new("RGB", (side, side), _darker(fills["body"], 0.45))
    mask = Image.new("L", (side, side), 0)
    pens = (ImageDraw.Draw(layer), ImageDraw.Draw(mask))
    if plan.pose == "perched":
        _paint_branch(pens, plan, rng)
    for leg in ("leg_left", "leg_right"):
        if leg in polygons:
            for pen, fill in zip(pens, (_LEG_COLOUR, 255), strict=True):
                pen.line(polygons[leg], fill=fill, width=max(3, round(0.055 * plan.unit_px * _OVERSAMPLING)))
    if "far_wing" in polygons:
        _paint_part(pens, polygons["far_wing"], _darker(fills["wing"], 0.86), contour)
    _paint_part(pens, polygons["tail"], _darker(fills["body"], 0.94), contour)
    _paint_part(pens, polygons["beak"], _BEAK_COLOUR, contour)
    _paint_part(pens, polygons["silhouette"], fills["body"], contour)
    inside = Image.new("L", (side, side), 0)
    ImageDraw.Draw(inside).polygon(polygons["silhouette"], fill=255)
    for part in ("belly", "crown"):
        cut = Image.new("L", (side, side), 0)
        ImageDraw.Draw(cut).polygon(polygons[part], fill=255)
        layer.paste(fills[part], mask=ImageChops.darker(cut, inside))
    _paint_part(pens, polygons["wing"], fills["wing"], contour)
    _paint_feathers(pens[0], polygons["feathers"], fills["wing"], plan)
    _paint_eye(pens[0], polygons["eye"][0], plan)
    return layer.reduce(_OVERSAMPLING), mask.reduce(_OVERSAMPLING)


_Pens = tuple[ImageDraw.ImageDraw, ImageDraw.ImageDraw]
_Polygon = list[tuple[float, float]]


def _paint_part(pens: _Pens, polygon: _Polygon, fill: tuple[int, int, int], contour: int) -> None:
    for pen, edge, inner in zip(pens, (_darker(fill, 0.55), 255), (fill, 255), strict=True):
        pen.polygon(polygon, fill=inner)
        pen.line([*polygon, polygon[0]], fill=edge, width=contour, joint="curve")


def _paint_branch(pens: _Pens, plan: BirdPlan, rng: np.random.Generator) -> None:
    side = plan.image_px * _OVERSAMPLING
    x, y = plan.outlines["leg_left"][1] * _OVERSAMPLING
    thick = side * rng.uniform(0.035, 0.055)
    slope = rng.uniform(-0.12, 0.12)
    wood = _jitter((134, 116, 98), rng)
    y += thick * 0.35
    for pen, fill in zip(pens, (wood, 255), strict=True):
        pen.line(((0, y - slope * x), (side, y + slope * (side - x))), fill=fill, width=round(thick))
    bark = _darker(wood, 0.88)
    shift = thick * 0.28
    pens[0].line(
        ((0, y - slope * x + shift), (side, y + slope * (side - x) + shift)), fill=bark, width=round(thick * 0.42)
    )


def _paint_feathers(pen: ImageDraw.ImageDraw, points: _Polygon, fill: tuple[int, int, int], plan: BirdPlan) -> None:
    width = max(2, round(0.028 * plan.unit_px * _OVERSAMPLING))
    # On dark wings the lines are lighter, or they would not be seen.
    ink = _darker(fill, 0.78) if sum(fill) > 200 else (66, 66, 74)
    for start in range(0, len(points), 3):
        pen.line(points[start : start + 3], fill=ink, width=width, joint="curve")


def _paint_eye(pen: ImageDraw.ImageDraw, centre: tuple[float, float], plan: BirdPlan) -> None:
    x, y = centre
    for radius, shift, fill in ((0.085, 0.0, (236, 232, 220)), (0.066, 0.0, (18, 16, 16)), (0.022, -0.022, (250,) * 3)):
        reach, away = radius * plan.unit_px * _OVERSAMPLING, shift * plan.unit_px * _OVERSAMPLING
        pen.ellipse((x - reach - away, y - reach + away, x + reach - away, y + reach + away), fill=fill)


def _shading(plan: BirdPlan, rng: np.random.Generator) -> np.ndarray:
    """Return a factor a pixel, `(H, W)` float32: light from above, and a faint texture of feathers."""
    _, y, _, height = plan.box
    rows = (np.arange(plan.image_px, dtype=np.float32) - y) / max(height, 1.0)
    light = 1.05 - 0.13 * np.clip(rows, 0, 1)
    grain = rng.standard_normal((plan.image_px // 2, plan.image_px // 2), dtype=np.float32) * 0.022
    texture = grain.repeat(2, axis=0).repeat(2, axis=1)
    padded = np.zeros((plan.image_px, plan.image_px), dtype=np.float32)
    padded[: texture.shape[0], : texture.shape[1]] = texture
    factor: np.ndarray = (light[:, None] + padded).astype(np.float32)
    return factor


def _jitter(colour: tuple[int, int, int], rng: np.random.Generator) -> tuple[int, int, int]:
    """Return a shade of `colour` nobody would name otherwise."""
    factor = rng.uniform(0.94, 1.04)
    red, green, blue = np.clip(np.array(colour) * factor + rng.normal(0, 4, 3), 0, 255).astype(int).tolist()
    return red, green, blue


def _darker(colour: tuple[int, int, int], factor: float) -> tuple[int, int, int]:
    red, green, blue = (int(channel * factor) for channel in colour)
    return red, green, blue
