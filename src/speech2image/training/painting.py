"""From sentences to images with a trained generator of either kind, one interface for both.

A painter is called with what it is told of B images and, for each, an address (name, sample); all draws are functions of
(seed, address), so neighbours in a batch change nothing.  Commands are in `app/`, samplers in `diffusion/`.
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from speech2image.codecs.codec import Codec
from speech2image.data.order import addressed_rng
from speech2image.diffusion.predictor import Predictor
from speech2image.diffusion.samplers import Draw, Progress, make_sampler
from speech2image.diffusion.schedule import MaskReplaceSchedule
from speech2image.diffusion.transformer import DiffusionCondition, DiffusionTransformer
from speech2image.errors import CheckpointError
from speech2image.gan.stackgan import StackGenerator
from speech2image.speech.discriminant import Discriminant
from speech2image.training.diffusion_module import scaled_condition
from speech2image.training.runs import (
    Run,
    build_schedule,
    load_codec,
    load_discriminant,
    load_generator,
    load_transformer,
    open_run,
)

Address = tuple[str, int]
#: What a generator is told of a batch: sentences `(B, D)` alone, or a record.
Told = Tensor | DiffusionCondition
#: Keys of the group `sampler` that belong to the predictor, not to the sampler.
PREDICTOR_KEYS = ("guidance_scale", "top_r", "top_k")


class Painter(ABC):
    """Paint images; `steps` is how many calls of `progress` a batch gives."""

    @abstractmethod
    def __call__(self, told: Told, addresses: Sequence[Address], progress: Progress | None = None) -> Tensor:
        """Paint one image for each address.

        Args:
            told: of B images, on the device of the painter: sentences `(B, D)`, or a record with words or
                classes.
            addresses: B names with the number of the sample, the roots of all draws.
            progress: called with (calls done, calls in all) where painting takes several.

        Returns: `(B, 3, S, S)` float32 in [-1, 1].
        """


class GanPainter(Painter):
    """Paint with a stacked generator: one noise vector, and one draw of the condition.

    Args:
        generator: trained, in eval mode.
        seed: root of the draws.
        samples_condition: draw the augmented condition as published; False: take its mean.
    """

    def __init__(self, generator: StackGenerator, seed: int, samples_condition: bool = True) -> None:
        self.generator, self.seed, self.samples_condition = generator, seed, samples_condition

    @torch.no_grad()
    def __call__(self, told: Told, addresses: Sequence[Address], progress: Progress | None = None) -> Tensor:
        """See `Painter`."""
        sentences = told if isinstance(told, Tensor) else told.sentence
        assert sentences is not None
        noise = self._normal(addresses, "noise", self.generator.noise_dim).to(sentences)
        eps = None
        if self.samples_condition:
            eps = self._normal(addresses, "condition", self.generator.condition_dim).to(sentences)
        return self.generator(sentences, noise, eps).images[-1].float()

    def _normal(self, addresses: Sequence[Address], stream: str, width: int) -> Tensor:
        rows = [
            addressed_rng(self.seed, f"generate/{stream}/{name}", sample).standard_normal(
                width, dtype=np.float32
            )
            for name, sample in addresses
        ]
        return torch.from_numpy(np.stack(rows))


class DiffusionPainter(Painter):
    """Paint with a diffusion model: sample a code grid, decode it.

    Args:
        network: trained, in eval mode.
        codec: the one it was trained with.
        schedule: the chain it was trained on.
        sampler: the group `sampler`: name, steps, guidance_scale, top_r, top_k and the sampler's own keys.
        sentence_scale: as in training.
        seed: root of the draws.
    Raises:  ConfigError: options the sampler or the network cannot follow.
    """

    def __init__(
        self, network: DiffusionTransformer, codec: Codec, schedule: MaskReplaceSchedule,
        sampler: dict[str, Any], sentence_scale: float | None, seed: int,
    ) -> None:  # fmt: skip
        self.network, self.codec, self.sentence_scale, self.seed = network, codec, sentence_scale, seed
        given = {key: value for key, value in sampler.items() if value is not None and key != "name"}
        self.predictor = {key: given.pop(key) for key in PREDICTOR_KEYS if key in given}
        if sampler["name"] == "halton":
            given.setdefault("grid", network.grid)
        self.sampler = make_sampler(sampler["name"], schedule, **given)
        if network.conditioning != "none":  # guidance without a null condition is found before any work
            sentence = torch.zeros(1, network.condition_dim or 1, device=next(network.parameters()).device)
            self._predictor(sentence)

    def _predictor(self, told: Told) -> Predictor:
        condition = null = None
        if self.network.conditioning != "none":
            condition = scaled_condition(told, self.sentence_scale)
            if self.network.has_null:
                condition, null = condition.with_null(False), condition.with_null(True)
        return Predictor(self.network, condition, null, **self.predictor)

    @torch.no_grad()
    def __call__(self, told: Told, addresses: Sequence[Address], progress: Progress | None = None) -> Tensor:
        """See `Painter`."""
        draw = addressed_draws(self.seed, addresses, next(self.network.parameters()).device)
        shape = (len(addresses), self.network.length)
        found = self.sampler.sample(self._predictor(told), shape, draw, progress)
        return self.codec.decode(found.tokens, self.network.grid).float()


class ProjectingPainter(Painter):
    """Paint from whole embeddings with a generator that is told their discriminant directions.

    Args:
        discriminant: of the generator's run.
        painter: of that generator.
    """

    def __init__(self, discriminant: Discriminant, painter: Painter) -> None:
        self.discriminant, self.painter = discriminant, painter

    def __call__(self, told: Told, addresses: Sequence[Address], progress: Progress | None = None) -> Tensor:
        """See `Painter`."""
        if isinstance(told, Tensor):
            return self.painter(self.discriminant(told), addresses, progress)
        heard = dataclasses.replace(told, sentence=self.discriminant(told.sentence))
        return self.painter(heard, addresses, progress)


def addressed_draws(seed: int, addresses: Sequence[Address], device: torch.device) -> Draw:
    """Return a source of uniform numbers in which each row is drawn from its own address.

    A row's numbers are a function of (seed, name, sample) and of the order of the calls, which a sampler fixes.
    """
    rngs = [addressed_rng(seed, f"generate/tokens/{name}", sample) for name, sample in addresses]

    def draw(stream: str, shape: tuple[int, ...]) -> Tensor:
        rows = np.empty(shape, np.float32)
        for row, rng in zip(rows.reshape(len(rngs), -1), rngs, strict=True):
            rng.random(out=row, dtype=np.float32)
        return torch.from_numpy(rows).to(device, non_blocking=True)

    return draw


def chosen_sampler(run: Run, asked: dict[str, Any]) -> dict[str, Any]:
    """Return the sampler of a request: its own, or the run's with the keys that were given."""
    if asked["name"] != "from_run":
        return asked
    given = {key: value for key, value in asked.items() if key != "name" and value is not None}
    return {**run.config["sampler"], **given}


def make_painter(run: Run, config: dict[str, Any], device: torch.device) -> Painter:
    """Return the painter of a generator run.

    Args:
        run: of stage `gan` or `diffusion`.
        config: a request: `seed`, `condition`, `sampler`, `paths`.
        device: where to paint.
    Raises:  CheckpointError: the codec of the run is not the one it was trained with.
    """
    painter, discriminant = _own_painter(run, config, device), load_discriminant(run)
    return painter if discriminant is None else ProjectingPainter(discriminant.to(device), painter)


def _own_painter(run: Run, config: dict[str, Any], device: torch.device) -> Painter:
    if run.stage == "gan":
        return GanPainter(load_generator(run).to(device), config["seed"], config["condition"] == "sample")
    codec_run = open_run(run.info["codec_run"], Path(config["paths"]["runs"]), "codec")
    codec = load_codec(codec_run)
    if codec.fingerprint() != run.info["codec_fingerprint"]:
        raise CheckpointError(
            f"{codec_run.path} holds codec {codec.fingerprint()}, but {run.path} was trained with codec"
            f" {run.info['codec_fingerprint']}",
            "Put the codec's weights back, or train the generator again.",
        )
    network = load_transformer(run).to(device)
    schedule = build_schedule(run.config, network.num_tokens).to(device)
    sampler = chosen_sampler(run, config["sampler"])
    scale = run.config["generator"]["sentence_scale"]
    return DiffusionPainter(network, codec.to(device), schedule, sampler, scale, config["seed"])
