"""From sentences to images with a trained generator of either kind, one interface for both.

A painter is called with what it is told of B images and, for each, an address (name, sample); all draws are functions of
(seed, address), so neighbours in a batch change nothing.  Commands are in `app/`, samplers in `diffusion/`.
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from speech2image.codecs.codec import Codec
from speech2image.config.schema import VARIANTS
from speech2image.data.order import addressed_rng
from speech2image.diffusion.predictor import Predictor
from speech2image.diffusion.samplers import Draw, Progress, Sampler, SampleResult, make_sampler
from speech2image.diffusion.schedule import MaskReplaceSchedule
from speech2image.diffusion.transformer import DiffusionCondition, DiffusionTransformer
from speech2image.errors import CheckpointError, ConfigError
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
#: Share of white over what is not settled yet in a strip.
PALE = 0.6


class Painted(NamedTuple):
    """What a painter hands back.

    Attributes:
        images: `(B, 3, S, S)` float32 in [-1, 1].
        calls: how often the network was called for this batch.
        strip: `(F, B, 3, S, S)`, states of the chain decoded; None: not asked.
        frame_calls: after how many calls each of the F states stood.
    """

    images: Tensor
    calls: int = 1
    strip: Tensor | None = None
    frame_calls: tuple[int, ...] = ()


class Painter(ABC):
    """Paint images; a batch gives as many calls of `progress` as the network is called.

    Attributes:
        strip_frames: states of the chain that are decoded beside the images; 0: none.
    """

    strip_frames: int = 0

    @abstractmethod
    def __call__(self, told: Told, addresses: Sequence[Address], progress: Progress | None = None) -> Painted:
        """Paint one image for each address.

        Args:
            told: of B images, on the device of the painter: sentences `(B, D)`, or a record with words or
                classes.
            addresses: B names with the number of the sample, the roots of all draws.
            progress: called with (calls done, calls in all) where painting takes several.
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
    def __call__(self, told: Told, addresses: Sequence[Address], progress: Progress | None = None) -> Painted:
        """See `Painter`."""
        sentences = told if isinstance(told, Tensor) else told.sentence
        assert sentences is not None
        noise = self._normal(addresses, "noise", self.generator.noise_dim).to(sentences)
        eps = None
        if self.samples_condition:
            eps = self._normal(addresses, "condition", self.generator.condition_dim).to(sentences)
        return Painted(self.generator(sentences, noise, eps).images[-1].float())

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
        strip_frames: see `Painter`.
    Raises:  ConfigError: options the sampler or the network cannot follow.
    """

    def __init__(
        self, network: DiffusionTransformer, codec: Codec, schedule: MaskReplaceSchedule,
        sampler: dict[str, Any], sentence_scale: float | None, seed: int, strip_frames: int = 0,
    ) -> None:  # fmt: skip
        self.network, self.codec, self.sentence_scale, self.seed = network, codec, sentence_scale, seed
        self.strip_frames = strip_frames
        self.predictor, self.sampler = check_sampler(sampler, network, schedule)

    def _predictor(self, told: Told) -> Predictor:
        condition = null = None
        if self.network.conditioning != "none":
            condition = scaled_condition(told, self.sentence_scale)
            if self.network.has_null:
                condition, null = condition.with_null(False), condition.with_null(True)
        return Predictor(self.network, condition, null, **self.predictor)

    @torch.no_grad()
    def __call__(self, told: Told, addresses: Sequence[Address], progress: Progress | None = None) -> Painted:
        """See `Painter`."""
        draw = addressed_draws(self.seed, addresses, next(self.network.parameters()).device)
        shape = (len(addresses), self.network.length)
        found = self.sampler.sample(self._predictor(told), shape, draw, progress, self.strip_frames)
        images = self.codec.decode(found.tokens, self.network.grid).float()
        return Painted(images, found.calls, self._strip(found), found.frame_calls)

    def _strip(self, found: SampleResult) -> Tensor | None:
        """Decode the states of a chain; codes that are not settled yet are the likeliest ones, and paler."""
        if found.strip is None or found.guesses is None:
            return None
        rows, columns = self.network.grid
        frames = []
        for tokens, guesses in zip(found.strip, found.guesses, strict=True):
            masked = tokens == self.sampler.schedule.mask_index
            image = self.codec.decode(torch.where(masked, guesses, tokens), (rows, columns)).float()
            pale = masked.reshape(-1, 1, rows, columns).to(image)
            pale = torch.nn.functional.interpolate(pale, image.shape[-2:], mode="nearest")
            frames.append(image.clamp(-1, 1) * (1 - PALE * pale) + PALE * pale)
        return torch.stack(frames)


def check_sampler(
    sampler: dict[str, Any], network: DiffusionTransformer, schedule: MaskReplaceSchedule
) -> tuple[dict[str, Any], Sampler]:
    """Return the predictor's options and the sampler of a group `sampler`.

    Raises:  ConfigError: an unknown sampler or option, steps the schedule does not have, or guidance for a network
        that was trained without a null condition.
    """
    given = {key: value for key, value in sampler.items() if value is not None and key != "name"}
    predictor = {key: given.pop(key) for key in PREDICTOR_KEYS if key in given}
    if sampler["name"] == "halton":
        given.setdefault("grid", network.grid)
    conditions = (True, True) if network.conditioning != "none" and network.has_null else (None, None)
    Predictor(network, *conditions, **predictor)
    return predictor, make_sampler(sampler["name"], schedule, **given)


class ProjectingPainter(Painter):
    """Paint from whole embeddings with a generator that is told their discriminant directions.

    Args:
        discriminant: of the generator's run.
        painter: of that generator.
    """

    def __init__(self, discriminant: Discriminant, painter: Painter) -> None:
        self.discriminant, self.painter, self.strip_frames = discriminant, painter, painter.strip_frames

    def __call__(self, told: Told, addresses: Sequence[Address], progress: Progress | None = None) -> Painted:
        """See `Painter`."""
        self.painter.strip_frames = self.strip_frames
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


def chosen_sampler(run: Run, asked: dict[str, Any] | None = None) -> dict[str, Any]:
    """Return the sampler of a request, complete: what it leaves open is as in the run.

    Args:
        run: of stage `diffusion`.
        asked: the group `sampler`; `from_run`: the run's own with the keys that were given; another one: its own
            keys, with guidance and truncation of the run where they are null.  None: the run's.

    Returns: the group with the number of steps it comes to.
    Raises:  ConfigError: steps the schedule of the run does not have, or a sampler that cannot follow it.
    """
    own, asked = run.config["sampler"], asked or {"name": "from_run"}
    given = {key: value for key, value in asked.items() if value is not None}
    if asked["name"] == "from_run":
        chosen = {**own, **given, "name": own["name"]}
    else:
        chosen = {**{key: own[key] for key in PREDICTOR_KEYS if own.get(key) is not None}, **given}
    chosen = {"guidance_scale": 1.0, "top_r": 1.0, "top_k": 0} | {
        key: value for key, value in chosen.items() if value is not None
    }
    options = {key: value for key, value in chosen.items() if key not in ("name", *PREDICTOR_KEYS)}
    schedule = build_schedule(run.config, int(run.info["num_tokens"]))
    return {**chosen, "steps": make_sampler(chosen["name"], schedule, **options).steps}


def sampler_label(run: Run, asked: dict[str, Any]) -> str:
    """Return what tells results of this sampler from those of the run's own, as part of a file name.

    Returns: the empty text for the run's own settings (and for a GAN), else e.g. `halton-16-top_r-0.86`: name,
        steps, every other setting that is not the sampler's default, and guidance and truncation unlike the run's.
    Raises:  ConfigError: a sampler for a GAN, or see `chosen_sampler`.
    """
    if run.stage != "diffusion":
        if (
            any(value is not None for key, value in asked.items() if key != "name")
            or asked["name"] != "from_run"
        ):
            raise ConfigError(
                f"sampler: {run.path} is a run of stage {run.stage!r}, which has no sampler",
                "Leave out sampler=… and sampler.…=…, or name a diffusion run.",
            )
        return ""
    chosen, own = chosen_sampler(run, asked), chosen_sampler(run)
    if chosen == own:
        return ""
    plain = {item.name: item.default for item in dataclasses.fields(VARIANTS["sampler"][chosen["name"]])}
    plain |= {key: own[key] for key in PREDICTOR_KEYS}
    odd = [
        f"{key}-{value:g}" if isinstance(value, float) else f"{key}-{value}"
        for key, value in sorted(chosen.items())
        if key not in ("name", "steps") and value != plain[key]
    ]
    return "-".join([chosen["name"], str(chosen["steps"]), *odd]).lower()


def make_painter(run: Run, config: dict[str, Any], device: torch.device) -> Painter:
    """Return the painter of a generator run.

    Args:
        run: of stage `gan` or `diffusion`.
        config: a request: `seed`, `condition`, `sampler`, `strip`, `paths`.
        device: where to paint.
    Raises:  CheckpointError: the codec of the run is not the one it was trained with.  ConfigError: a sampler or a
        strip for a GAN, or options the sampler cannot follow.
    """
    sampler_label(run, config["sampler"])
    if run.stage == "gan" and config["strip"]:
        raise ConfigError(
            f"strip={config['strip']}: {run.path} is a GAN, it paints in one call and has no states on the way",
            "Type: strip=0, or name a diffusion run.",
        )
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
    return DiffusionPainter(
        network, codec.to(device), schedule, sampler, scale, config["seed"], config["strip"]
    )
