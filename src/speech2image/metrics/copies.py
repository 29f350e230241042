"""The copying check: does a generator paint training images again?

For each image, how far it is from its nearest training image: in pixels, mirrored or shifted by one
pixel too, and in the features of a network.  What counts as near is calibrated on real TEST images,
which are no copies: an image is flagged when it is nearer in pixels than they ever are, and features
agree (among the nearest quarter), so that a blurred image is not taken for one.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from speech2image.errors import ProtocolError
from speech2image.metrics.bootstrap import interval
from speech2image.metrics.protocol import Metric, Protocol, measured

Pixels = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

RATE = 0.01
"""Share of real test images that may be flagged."""
CONFIRM = 0.25
"""Features agree where they are as near as the nearest quarter of real test images: networks see
what JPEG does, and the guarantee comes from the pixels alone."""
_COMPARE_PX = 32
_AT_A_TIME = 128


@dataclass(frozen=True)
class Nearest:
    """The nearest training image of each of N images.

    Attributes:
        rows: `(N,)` training image that is nearest in pixels.
        pixel: `(N,)` its root mean square difference, of values in [0, 1].
        feature_rows: `(N,)` training image that is nearest in features.
        feature: `(N,)` Euclidean distance to it.
    """

    rows: Ints
    pixel: Floats
    feature_rows: Ints
    feature: Floats

    def part(self, chosen: npt.NDArray[np.bool_]) -> Nearest:
        """Return the record of some of the images."""
        return Nearest(self.rows[chosen], self.pixel[chosen], self.feature_rows[chosen], self.feature[chosen])


def nearest_training(
    images: Pixels, train: Pixels, features: Sequence[Tensor], train_features: Tensor
) -> Nearest:
    """Find the nearest training image of each image.

    Args:
        images: `(N, 3, S, S)` uint8.
        train: `(M, 3, S, S)` uint8, all training images.
        features: `(N, F)` of the images, and of the same images mirrored.
        train_features: `(M, F)` of the training images.

    Cost:    N times M distances of 768 pixels and of F features.
    """
    rows, pixel = nearest_in_pixels(images, train)
    sides = [nearest_in_features(side, train_features) for side in features]
    best = np.argmin([side[1] for side in sides], axis=0)
    feature_rows, feature = (np.choose(best, [side[part] for side in sides]) for part in (0, 1))
    return Nearest(rows, pixel, feature_rows, feature)


def nearest_in_features(features: Tensor, train: Tensor) -> tuple[Ints, Floats]:
    """Return row and Euclidean distance of the nearest of `(M, F)` for each of `(N, F)`."""
    rows, distances = [], []
    for block in features.double().split(1024):  # type: ignore[no-untyped-call]
        found = torch.cdist(block, train.double()).min(dim=1)
        rows.append(found.indices.numpy())
        distances.append(found.values.numpy())
    return np.concatenate(rows), np.concatenate(distances)


def nearest_in_pixels(images: Pixels, train: Pixels, candidates: int = 4) -> tuple[Ints, Floats]:
    """Return row and distance of the nearest training image, `(N,)` each.

    The distance is the root mean square difference at 32 x 32 pixels without the border, the smallest
    over the image, its mirror image, and shifts by one pixel; both of 16 x 16 pixels first choose
    `candidates` training images for each orientation.

    Args:
        images: `(N, 3, S, S)` uint8.
        train: `(M, 3, S, S)` uint8.
        candidates: training images compared closely.
    """
    small, known = _small(images), _small(train)
    coarse = functional.avg_pool2d(known, 2).flatten(1)
    candidates = min(candidates, len(known))
    rows, distances = [], []
    for block in small.split(_AT_A_TIME):  # type: ignore[no-untyped-call]
        found = [_closest(turned, known, coarse, candidates) for turned in (block, block.flip(-1))]
        near, where = torch.cat([pair[0] for pair in found], 1), torch.cat([pair[1] for pair in found], 1)
        best = near.min(dim=1)
        distances.append(best.values.double().numpy())
        rows.append(where.gather(1, best.indices[:, None])[:, 0].numpy())
    return np.concatenate(rows), np.concatenate(distances)


def _small(images: Pixels) -> Tensor:
    parts = []
    for block in torch.from_numpy(np.ascontiguousarray(images)).split(512):  # type: ignore[no-untyped-call]
        values = block.float() / 255
        if values.shape[-1] != _COMPARE_PX:
            size = (_COMPARE_PX, _COMPARE_PX)
            values = functional.interpolate(values, size, mode="bilinear", antialias=True)
        parts.append(values)
    return torch.cat(parts)


def _closest(block: Tensor, known: Tensor, coarse: Tensor, candidates: int) -> tuple[Tensor, Tensor]:
    """Return distance and row of the best candidates of one orientation, `(B, candidates)` each."""
    far = torch.cdist(functional.avg_pool2d(block, 2).flatten(1), coarse)
    rows = far.topk(candidates, dim=1, largest=False).indices
    inner, others = block[:, None, :, 1:-1, 1:-1], known[rows]
    side = inner.shape[-1]
    best = torch.full(rows.shape, torch.inf)
    for top in range(3):
        for left in range(3):
            window = others[..., top : top + side, left : left + side]
            best = torch.minimum(best, (inner - window).square().mean(dim=(2, 3, 4)).sqrt())
    return best, rows


# ---- flags ------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Threshold:
    """How near is too near, from the distances of images that are no copies.

    Attributes:
        pixel: distances below it are near.
        feature: distances below it are near.
        rate: at most this share of such images is below `pixel`, on average over calibrations.
        calibrated_on: images behind it.
    """

    pixel: float
    feature: float
    rate: float
    calibrated_on: int

    def flags(self, nearest: Nearest) -> npt.NDArray[np.bool_]:
        """Return which images are nearer than both thresholds, `(N,)`."""
        flagged: npt.NDArray[np.bool_] = (nearest.pixel < self.pixel) & (nearest.feature < self.feature)
        return flagged


def calibrate(nearest: Nearest, rate: float = RATE) -> Threshold:
    """Choose thresholds so that at most `rate` of images like these are flagged.

    The k-th smallest of n pixel distances is undercut by a new one with probability k / (n + 1),
    whatever their distribution: k is the largest with k / (n + 1) <= rate.  With fewer than 1 / rate
    images k = 1, and the rate is 1 / (n + 1) instead.  Asking features too can only flag fewer.

    Raises:  ProtocolError: no image to calibrate on.
    Source:  order statistics (conformal prediction: Vovk et al. 2005, section 2.2).
    """
    count = len(nearest.pixel)
    if count < 1:
        raise ProtocolError("the copying check needs real test images", "Score a split that has images.")
    place = max(1, int(rate * (count + 1) + 1e-9))
    pixel = float(np.sort(nearest.pixel)[place - 1])
    feature = float(np.quantile(nearest.feature, CONFIRM))
    return Threshold(pixel, feature, place / (count + 1), count)


def copying_check(
    generated: Nearest,
    real: Nearest,
    planted: Nearest,
    real_groups: npt.ArrayLike,
    *,
    protocol: Protocol | None,
    generated_groups: npt.ArrayLike | None = None,
    seed: int = 0,
) -> tuple[dict[str, Metric], npt.NDArray[np.bool_]]:
    """Measure the share of generated images that are copies of training images, with its controls.

    Args:
        generated: nearest training images of generated images.
        real: those of real test images; one half of their groups calibrates, the other is flagged too.
        planted: those of re-encoded copies of training images (`planted_copies`): how much is found.
        real_groups: `(N,)` class of each real test image.
        protocol: protocol of the numbers.
        generated_groups: `(M,)` what to resample together.
        seed: seed of the halves and of the bootstrap.

    Returns: `copies/share` of the generated images, `copies/real_test` of the held-out real ones
        (should be at the stated rate or below), `copies/planted` of the planted ones (should be near
        1); and the flag of each generated image, `(M,)`.
    """
    labels = np.unique(np.asarray(real_groups), return_inverse=True)[1].reshape(-1)
    half = np.random.default_rng(seed).permutation(labels.max() + 1) % 2 == 0
    calibrates = half[labels] if labels.max() > 0 else np.arange(len(labels)) % 2 == 0
    threshold = calibrate(real.part(calibrates))
    flags = threshold.flags(generated)
    cases = (
        ("share", flags, generated_groups, "generated images nearer to a training image than real ones are"),
        ("real_test", threshold.flags(real.part(~calibrates)), labels[~calibrates],
         "control: real test images that were not used for calibration; at the stated rate or below"),
        ("planted", threshold.flags(planted), None,
         "control: training images saved as JPEG, shifted by a pixel or mirrored; should be near 100 %"),
    )  # fmt: skip
    result = {}
    for what, found, groups, note in cases:
        if not len(found):
            continue
        spread = interval(found, seed=seed, groups=groups)
        name = f"copies/{what}"
        result[name] = measured(
            protocol, name, spread,
            count=len(found), unit="fraction", chance=None if what == "planted" else threshold.rate, note=note,
            pixel_threshold=threshold.pixel, feature_threshold=threshold.feature,
            calibrated_on=threshold.calibrated_on,
        )  # fmt: skip
    return result, flags


def planted_copies(train: Pixels, count: int = 60, seed: int = 0) -> Pixels:
    """Return re-encoded copies of training images, `(count, 3, S, S)` uint8, made in turn in four ways.

    JPEG of quality 90, shifted right and down by one pixel, mirrored, and mirrored and JPEG.
    """
    rows = np.random.default_rng(seed).permutation(len(train))[:count]
    return np.stack([_reencoded(train[row], place % 4) for place, row in enumerate(rows)])


def _reencoded(image: Pixels, way: int) -> Pixels:
    pixels = image.transpose(1, 2, 0)
    if way == 1:
        return np.pad(pixels, ((1, 0), (1, 0), (0, 0)), mode="edge")[:-1, :-1].transpose(2, 0, 1)
    if way >= 2:
        pixels = pixels[:, ::-1]
    if way in (0, 3):
        held = io.BytesIO()
        Image.fromarray(np.ascontiguousarray(pixels)).save(held, format="JPEG", quality=90)
        pixels = np.asarray(Image.open(held))
    return pixels.transpose(2, 0, 1)


def nearest_keys(nearest: Nearest, keys: Sequence[str]) -> list[dict[str, str | float]]:
    """Return `{key, distance, feature_key, feature_distance}` of each image, for `items.jsonl`."""
    return [
        {"key": keys[row], "distance": round(float(pixel), 5),
         "feature_key": keys[other], "feature_distance": round(float(feature), 5)}
        for row, pixel, other, feature in zip(
            nearest.rows, nearest.pixel, nearest.feature_rows, nearest.feature, strict=True
        )
    ]  # fmt: skip
