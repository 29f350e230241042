"""Paint birds: soft backgrounds, perches and anti-aliased birds of given colours, with PIL.

Here is only paint.  The geometry and the palette are in `bird_shapes.py`; which birds there are and
where the files go is in `birds.py`.
"""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageFilter

from speech2image.data.bird_shapes import PALETTE, PARTS, BirdPlan

__all__ = ["paint_bird"]

_BEAK_COLOUR = (228, 160, 52)
_LEG_COLOUR = (112, 84, 60)
_OVERSAMPLING = 3

_Colour = tuple[int, int, int]
_Pens = tuple[ImageDraw.ImageDraw, ImageDraw.ImageDraw]
_Polygon = list[tuple[float, float]]


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


_SCENES: dict[str, tuple[_Colour, _Colour, _Colour, _Colour]] = {
    # top, horizon, ground, blobs
    "sky": ((166, 196, 222), (208, 222, 230), (196, 210, 216), (226, 234, 238)),
    "meadow": ((196, 212, 214), (206, 216, 196), (158, 176, 132), (176, 190, 146)),
    "forest": ((120, 140, 122), (146, 162, 140), (122, 128, 104), (168, 182, 154)),
    "water": ((194, 206, 212), (184, 204, 210), (128, 160, 172), (158, 186, 194)),
    "sand": ((204, 212, 216), (216, 212, 200), (206, 190, 158), (218, 206, 180)),
}


def _paint_background(plan: BirdPlan, rng: np.random.Generator) -> Image.Image:
    """Return a soft, out-of-focus scene: painted at half the size, blurred and enlarged."""
    side = max(plan.image_px // 2, 8)
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
    small = Image.fromarray(
        np.broadcast_to(np.clip(column, 0, 255)[:, None], (side, side, 3)).astype(np.uint8)
    )
    draw = ImageDraw.Draw(small)
    flat = plan.background in ("sky", "water", "sand")
    for _ in range(int(rng.integers(4, 9))):
        x, y = rng.uniform(0, side, 2)
        radius = rng.uniform(0.03, 0.13) * side
        wide = radius * (2.2 if flat else 1.0)
        tint = np.clip(blob + rng.normal(0, 7), 0, 255).astype(int)
        draw.ellipse(
            (x - wide, y - radius / (2.5 if flat else 1), x + wide, y + radius), fill=tuple(tint.tolist())
        )
    if plan.pose == "standing":
        _paint_shadow(draw, plan, side, tuple(np.clip(ground * 0.72, 0, 255).astype(int).tolist()))
    small = small.filter(ImageFilter.BoxBlur(side / 42)).filter(ImageFilter.BoxBlur(side / 42))
    return small.resize((plan.image_px, plan.image_px), Image.Resampling.BICUBIC)


def _paint_shadow(draw: ImageDraw.ImageDraw, plan: BirdPlan, side: int, fill: tuple[int, ...]) -> None:
    x, y = (plan.outlines["leg_left"][1] + plan.outlines["leg_right"][1]) / 2 * side / plan.image_px
    wide, high = 0.52 * plan.unit_px * side / plan.image_px, 0.09 * plan.unit_px * side / plan.image_px
    draw.ellipse((x - wide, y - high, x + wide, y + high), fill=fill)


def _paint_layers(plan: BirdPlan, rng: np.random.Generator) -> tuple[Image.Image, Image.Image]:
    """Return colours and coverage of perch and bird, reduced to the size of the frame."""
    side = plan.image_px * _OVERSAMPLING
    contour = max(2, round(plan.image_px * _OVERSAMPLING / 128))
    fills = {
        part: _jitter(PALETTE[colour], rng) for part, colour in zip(PARTS, plan.look.colours(), strict=True)
    }
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
            _stroke(pens, polygons[leg], _LEG_COLOUR, max(3, round(0.055 * plan.unit_px * _OVERSAMPLING)))
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


def _paint_part(pens: _Pens, polygon: _Polygon, fill: _Colour, contour: int) -> None:
    pens[0].polygon(polygon, fill=fill)
    pens[1].polygon(polygon, fill=255)
    _stroke(pens, [*polygon, polygon[0]], _darker(fill, 0.55), contour)


def _stroke(pens: _Pens, line: _Polygon, fill: _Colour, width: int) -> None:
    pens[0].line(line, fill=fill, width=width, joint="curve")
    pens[1].line(line, fill=255, width=width, joint="curve")


def _paint_branch(pens: _Pens, plan: BirdPlan, rng: np.random.Generator) -> None:
    side = plan.image_px * _OVERSAMPLING
    x, y = plan.outlines["leg_left"][1] * _OVERSAMPLING
    thick = side * rng.uniform(0.035, 0.055)
    slope = rng.uniform(-0.12, 0.12)
    wood = _jitter((134, 116, 98), rng)
    y += thick * 0.35
    _stroke(pens, [(0, y - slope * x), (side, y + slope * (side - x))], wood, round(thick))
    bark = _darker(wood, 0.88)
    shift = thick * 0.28
    pens[0].line(
        ((0, y - slope * x + shift), (side, y + slope * (side - x) + shift)),
        fill=bark,
        width=round(thick * 0.42),
    )


def _paint_feathers(pen: ImageDraw.ImageDraw, points: _Polygon, fill: _Colour, plan: BirdPlan) -> None:
    width = max(2, round(0.028 * plan.unit_px * _OVERSAMPLING))
    # On dark wings the lines are lighter, or they would not be seen.
    ink = _darker(fill, 0.78) if sum(fill) > 200 else (66, 66, 74)
    for start in range(0, len(points), 3):
        pen.line(points[start : start + 3], fill=ink, width=width, joint="curve")


def _paint_eye(pen: ImageDraw.ImageDraw, centre: tuple[float, float], plan: BirdPlan) -> None:
    x, y = centre
    for radius, shift, fill in (
        (0.085, 0.0, (236, 232, 220)),
        (0.066, 0.0, (18, 16, 16)),
        (0.022, -0.022, (250,) * 3),
    ):
        reach, away = radius * plan.unit_px * _OVERSAMPLING, shift * plan.unit_px * _OVERSAMPLING
        pen.ellipse((x - reach - away, y - reach + away, x + reach - away, y + reach + away), fill=fill)


def _shading(plan: BirdPlan, rng: np.random.Generator) -> np.ndarray:
    """Return a factor a pixel, `(H, W)` float32: light from above, and a faint texture of feathers."""
    _, y, _, height = plan.box
    rows = (np.arange(plan.image_px, dtype=np.float32) - y) / max(height, 1.0)
    light = 1.05 - 0.13 * np.clip(rows, 0, 1)
    grain = rng.standard_normal((plan.image_px // 2, plan.image_px // 2), dtype=np.float32) * 0.014
    texture = grain.repeat(2, axis=0).repeat(2, axis=1)
    padded = np.zeros((plan.image_px, plan.image_px), dtype=np.float32)
    padded[: texture.shape[0], : texture.shape[1]] = texture
    factor: np.ndarray = (light[:, None] + padded).astype(np.float32)
    return factor


def _jitter(colour: _Colour, rng: np.random.Generator) -> _Colour:
    """Return a shade of `colour` nobody would name otherwise."""
    factor = rng.uniform(0.94, 1.04)
    red, green, blue = np.clip(np.array(colour) * factor + rng.normal(0, 3, 3), 0, 255).astype(int).tolist()
    return red, green, blue


def _darker(colour: _Colour, factor: float) -> _Colour:
    red, green, blue = (int(channel * factor) for channel in colour)
    return red, green, blue
