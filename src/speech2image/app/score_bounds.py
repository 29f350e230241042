"""Bounds and controls of an evaluation: what the best, the worst and copied images would score."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from speech2image.report.measures import read_object

_NOISE_IMAGES = 200
SMALL_PX = 32
"""Side at which the copying check compares pixels."""


def half_bounds_of(
    network: Any, generated: Any, real: Any, image_px: int, protocol: Any, seed: int
) -> list[Any]:
    """Return FID and KID of real halves, and of the generated images at their count."""
    from speech2image.metrics.bounds import half_bounds
    from speech2image.metrics.features import extract
    from speech2image.metrics.imageset import ImageSet

    side = network.image_px or image_px
    fake, true = (
        extract(network, ImageSet(images, side), logits=False).features for images in (generated, real)
    )
    assert fake is not None and true is not None
    return list(half_bounds(true, fake, protocol=protocol, seed=seed).values())


def image_bounds(bench: Any, images: Any) -> list[Any]:
    """Return FID and KID of real halves, of noise, and of the nearest training images.

    Args:
        bench: the evaluation.
        images: one folder of it: features of both sides, nearest training images.
    """
    from speech2image.metrics.bounds import half_bounds, noise_images, set_bounds

    counted: Any = {"protocol": bench.protocol, "seed": bench.config["seed"]}
    metrics = half_bounds(images.real, images.fake, **counted)
    size = min(_NOISE_IMAGES, len(images.real))
    noise = bench.features(noise_images(size, images.image_px), images.image_px, "noise")
    metrics |= set_bounds(noise, images.real, "noise", "upper bound: uniform noise", **counted)
    if images.nearest is not None:
        copies = bench.train(images.image_px).features[images.nearest.feature_rows]
        note = "copies: the training image nearest to each generated one"
        metrics |= set_bounds(copies, images.real, "nearest_train", note, **counted)
    return list(metrics.values())


def copying(bench: Any, images: Any, groups: Sequence[Any]) -> tuple[list[Any], np.ndarray]:
    """Return the copying check of one folder and the flag of each generated image."""
    from speech2image.metrics.copies import copying_check, planted_copies

    train = bench.train(images.image_px)
    planted = planted_copies(train.shown).transpose(0, 2, 3, 1)
    own = nearest_of(bench, images.real_images, images.real, images.image_px)
    found = nearest_of(bench, planted, None, images.image_px)
    metrics, flags = copying_check(
        images.nearest, own, found, [record.class_id for record in images.real_records],
        protocol=bench.protocol, generated_groups=groups, seed=bench.config["seed"],
    )  # fmt: skip
    return list(metrics.values()), flags


def nearest_of(bench: Any, images: Any, features: Any, image_px: int) -> Any:
    """Return the nearest training image of each image.

    Args:
        bench: the evaluation.
        images: `(H, W, 3)` uint8 each, or files.
        features: `(N, F)` of them; None: not known yet.
        image_px: side they are compared at.
    """
    from speech2image.metrics.copies import nearest_training
    from speech2image.metrics.imageset import ImageSet

    train = bench.train(image_px)
    if features is None:
        features = bench.features(images, image_px, "copies")
    turned = bench.features(Mirrored(images, image_px), image_px, "mirrored images")
    return nearest_training(
        ImageSet(images, SMALL_PX).array(), train.small, (features, turned), train.features
    )


class Mirrored(Sequence[Any]):
    """Images mirrored when they are asked for, `(S, S, 3)` uint8."""

    def __init__(self, images: Any, image_px: int) -> None:
        from speech2image.metrics.imageset import ImageSet

        self.images = ImageSet(images, image_px)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: Any) -> Any:
        """Return image `index`."""
        return self.images[index].numpy().transpose(1, 2, 0)[:, ::-1]


def text_bounds(scored: Any, runs: Path, file: str, names: set[str]) -> list[dict[str, Any]]:
    """Return the scores of a sibling run that reads transcripts, as `<family>/text`, where there is one.

    Args:
        scored: a run that hears speech.
        runs: folder of all runs.
        file: name of the file of metrics, so that protocol and split are the same.
        names: metrics that have such a bound.
    """
    from speech2image.training.conditions import reads_captions
    from speech2image.training.runs import all_runs

    if reads_captions(scored.config["encoder"]):
        return []
    found: list[dict[str, Any]] = []
    for run in all_runs(runs):
        is_sibling = run.stage == scored.stage and run.info.get("corpus") == scored.info["corpus"]
        path = run.path / file
        if not is_sibling or not path.is_file() or not reads_captions(run.config.get("encoder") or {}):
            continue
        content = read_object(path)
        metrics = content.get("metrics") if isinstance(content, Mapping) else None
        if not isinstance(metrics, list) or not all(
            isinstance(one, dict) and "name" in one for one in metrics
        ):
            continue
        found = [
            metric | {"name": f"{metric['name'].split('/')[0]}/text",
                      "note": f"transcripts instead of speech: {run.info['run_id']}"}
            for metric in metrics
            if metric["name"] in names
        ]  # fmt: skip
    return found


def attribute_bounds(bench: Any, images: Any, spoken: list[dict[str, str]]) -> list[Any]:
    """Return the accuracy of attributes of noise and of the nearest training images, against what was said."""
    from speech2image.metrics.attributes import attribute_accuracy
    from speech2image.metrics.bounds import noise_images
    from speech2image.metrics.imageset import ImageSet

    probe, metrics = bench.probe, []
    count = min(_NOISE_IMAGES, len(spoken))
    noise = ImageSet(noise_images(count, probe.image_px), probe.image_px).array()
    cases = {"noise": (probe.predict(noise), count)}
    if images.nearest is not None:
        rows = images.nearest.feature_rows
        known = bench.train(images.image_px).predicted
        cases["nearest_train"] = ({name: values[rows] for name, values in known.items()}, len(spoken))
    for what, (found, number) in cases.items():
        mean = attribute_accuracy(
            found, probe.classes, spoken[:number], protocol=bench.protocol, groups=images.groups[:number],
            seed=bench.config["seed"],
        )["attribute_accuracy/mean"]  # fmt: skip
        metrics.append(dataclasses.replace(mean, name=f"attribute_accuracy/{what}", note=_NOTES[what]))
    return metrics


_NOTES = {
    "noise": "control: noise instead of images",
    "nearest_train": "control: the training image nearest to each generated one",
}
