"""How good the images are while a generator trains: FID, KID and accuracy, within a share of the training time.

Here: `ImageQuality` (torchmetrics through the probe of the corpus) and the callback that paints the same held-out
utterances with the same noise from the averaged weights.  Nothing of it enters a checkpoint or moves a random stream,
so a run with and without it trains the same weights.  The published protocols are in `metrics/` and `evaluate`.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torchmetrics.classification import MulticlassAccuracy
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.kid import KernelInceptionDistance

from speech2image.data.corpus import Corpus
from speech2image.data.order import addressed_rng
from speech2image.data.pixels import Indices
from speech2image.images.grid import to_uint8
from speech2image.metrics.imageset import ImageSet
from speech2image.metrics.probe import Probe, scale
from speech2image.metrics.protocol import PROTOCOLS
from speech2image.training import ranks
from speech2image.training.callbacks import JournalWriter
from speech2image.training.fit import device_of
from speech2image.training.module import TrainingModule
from speech2image.training.painting import Address, Painter, Told
from speech2image.training.probes import corpus_probe, real_features, usual_protocol

CHUNK = 64
"""Most images painted, and looked at, at once."""
KID_SUBSETS, KID_SUBSET_SIZE = 8, 1000


class ProbeFeatures(nn.Module):
    """The probe as torchmetrics' feature extractor; what is features `(B, F)` already passes through.

    Args:    probe: of the corpus.
    """

    def __init__(self, probe: Probe) -> None:
        super().__init__()
        self.probe, self.num_features = probe, probe.feature_dim

    def forward(self, images: Tensor) -> Tensor:
        """Return `(B, F)` of `(B, 3, S, S)` uint8."""
        if images.ndim == 2:
            return images
        features: Tensor = self.probe(scale(images))[0]
        return features


class ImageQuality:
    """FID and KID to the real images of a split, and how often the attributes that were said are seen.

    Args:
        probe: of the corpus.
        real: `(N, F)` its features of the real images.
        spoken: what each of the painted utterances says, attribute to value.
        seed: root of KID's subsets, the same ones at every step.
        device: where images and metrics are.
    """

    def __init__(
        self, probe: Probe, real: npt.NDArray[np.float32], spoken: Sequence[Mapping[str, str]],
        seed: int, device: torch.device,
    ) -> None:  # fmt: skip
        self.probe, self.device, self.spoken = probe.to(device), device, spoken
        self.seed = int(addressed_rng(seed, "quality/kid", 0).integers(2**62))
        extractor = ProbeFeatures(self.probe).requires_grad_(False)
        self.fid = FrechetInceptionDistance(extractor, reset_real_features=False)
        smaller = min(len(real), len(spoken), KID_SUBSET_SIZE)
        with warnings.catch_warnings():  # that KID keeps its features; they are few
            warnings.simplefilter("ignore", UserWarning)
            self.kid = KernelInceptionDistance(
                extractor, subsets=KID_SUBSETS, subset_size=smaller, reset_real_features=False
            )
        for metric in (self.fid, self.kid):
            metric.to(device).update(torch.from_numpy(real).to(device), real=True)
        self.accuracy, self.targets = self._heads()

    def _heads(self) -> tuple[dict[str, MulticlassAccuracy], dict[str, Tensor]]:
        accuracy, targets = {}, {}
        for name, values in self.probe.classes.items():
            number = {value: index for index, value in enumerate(values)}
            rows = torch.tensor([number.get(said.get(name, ""), -1) for said in self.spoken])
            if (rows >= 0).any():
                accuracy[name] = MulticlassAccuracy(len(values), average="micro", ignore_index=-1).to(
                    self.device
                )
                targets[name] = rows.to(self.device)
        return accuracy, targets

    @torch.no_grad()
    def measure(self, images: Tensor) -> dict[str, float]:
        """Score one painting of the utterances.

        Args:    images: `(N, 3, S, S)` uint8 on the device, S the probe's side.
        Returns: `val_fid`, `val_kid` and, where attributes are spoken of, `val_attribute_accuracy` (their mean).
        """
        for start in range(0, len(images), CHUNK):
            features, logits = self.probe(scale(images[start : start + CHUNK]))
            self.fid.update(features, real=False)
            self.kid.update(features, real=False)
            for name, metric in self.accuracy.items():
                metric.update(logits[name], self.targets[name][start : start + CHUNK])
        with torch.random.fork_rng(devices=[]):  # KID draws subsets from torch's stream
            torch.manual_seed(self.seed)
            found = {"val_fid": float(self.fid.compute()), "val_kid": float(self.kid.compute()[0])}
        if self.accuracy:
            shares = [float(metric.compute()) for metric in self.accuracy.values()]
            found["val_attribute_accuracy"] = sum(shares) / len(shares)
        for kept in (self.fid, self.kid, *self.accuracy.values()):
            kept.reset()
        return found


#: What is painted at once: addresses of the draws, and what the generator is told of each.
Chunk = tuple[Sequence[Address], Told]


class QualityWatch(pl.Callback):
    """Measure the averaged generator every `every` steps and at the end, within a share of the time.

    Args:
        quality: the metrics.
        held_out: utterances in chunks, the same each time.
        painter_of: painter of a module's averaged weights.
        every: steps between measurements.
        max_share: largest share of the training time; a measurement that would exceed it is left out, which is
            said once.  1: no limit.
        agree: makes one decision of those of all processes that paint together.
    """

    def __init__(
        self, quality: ImageQuality, held_out: Sequence[Chunk], painter_of: Callable[[pl.LightningModule], Painter],
        every: int, max_share: float, agree: Callable[[bool], bool] = bool,
    ) -> None:  # fmt: skip
        self.agree = agree
        self.quality, self.held_out, self.painter_of = quality, held_out, painter_of
        self.every, self.max_share = every, max_share
        self.seconds, self._cost, self._start = 0.0, 0.0, time.perf_counter()
        self._has_told, self._measured = False, -1

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Start the clock the share is of."""
        self._start = time.perf_counter()

    def on_train_batch_end(
        self, trainer: pl.Trainer, module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Measure when it is due."""
        assert isinstance(module, TrainingModule)
        if module.train_step % self.every == 0:
            self._watch(trainer, module)

    def on_train_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Measure the last step."""
        assert isinstance(module, TrainingModule)
        if module.train_step != self._measured:
            self._watch(trainer, module)

    def _watch(self, trainer: pl.Trainer, module: TrainingModule) -> None:
        writer = next(found for found in trainer.callbacks if isinstance(found, JournalWriter))  # type: ignore[attr-defined]
        if not self._affords(self._cost):
            return self._tell(writer, module.train_step)
        start = _now(module.device)
        images = self._paint(module, start)
        if images is None:
            self.seconds += _now(module.device) - start
            return self._tell(writer, module.train_step)
        values = self.quality.measure(images)
        self._cost, self._measured = _now(module.device) - start, module.train_step
        self.seconds += self._cost
        values = {k: float(f"{v:.6g}") for k, v in values.items()}
        writer.write_validation(module.train_step, values, {"val_quality_seconds": round(self._cost, 4)})
        return None

    def _paint(self, module: TrainingModule, start: float) -> Tensor | None:
        """Return `(N, 3, S, S)` uint8; None: the first chunk shows that the whole would take too long."""
        painter, parts = self.painter_of(module), []
        for addresses, told in self.held_out:
            parts.append(to_uint8(painter(told.to(module.device), addresses).images.float().cpu()))
            if len(parts) == 1:
                self._cost = (_now(module.device) - start) * len(self.held_out)
                if not self._affords(self._cost):
                    return None
        side = self.quality.probe.image_px
        return torch.from_numpy(ImageSet(np.concatenate(parts), side).array()).to(module.device)

    def _affords(self, seconds: float) -> bool:
        elapsed = time.perf_counter() - self._start
        return self.max_share >= 1 or self.agree(self.seconds + seconds <= self.max_share * elapsed)

    def _tell(self, writer: JournalWriter, step: int) -> None:
        if not self._has_told:
            line = (
                f"a measurement of the image quality takes {self._cost:.2g} s: spaced out to stay below"
                f" {100 * self.max_share:g} % of the training time (callbacks.quality.max_share)"
            )
            writer.write_event(step, quality=line)
        self._has_told = True


def watch_quality(
    config: dict[str, Any], corpus: Corpus, split: str, shown: Callable[[Indices], Told],
    painter_of: Callable[[pl.LightningModule], Painter],
) -> list[QualityWatch]:  # fmt: skip
    """Return the callback of `callbacks.quality`, with its probe and the features of the real images ready.

    Args:
        split: whose utterances, evenly spaced.
        shown: from places in the split's utterances to what the generator is told.
        painter_of: painter of a module's averaged weights.
    Returns: nothing where it is off, the run is shorter than its first measurement, or there is one image only.
    """
    options, trainer = config["callbacks"]["quality"], config["trainer"]
    if not 0 < options["every"] <= trainer["max_steps"]:
        return []
    image_px, utterances = config["data"]["image_px"], corpus.utterances(split)
    probe = corpus_probe(corpus, image_px, PROTOCOLS[usual_protocol(corpus.manifest.corpus)].attributes)
    real = real_features(corpus, split, image_px, probe)
    count = min(options["num_images"], len(utterances))
    if min(count, len(real)) < 2:
        return []
    picks = np.linspace(0, len(utterances) - 1, count).astype(np.int64)
    said = [utterances[pick][1] for pick in picks]
    quality = ImageQuality(
        probe, real, [utterance.attributes for utterance in said], config["seed"], device_of(config)
    )
    size = min(CHUNK, trainer["batch_size"])  # what training has memory for, painting has too
    addresses = [(f"quality/{utterance.key}", 0) for utterance in said]
    held_out = [
        (addresses[start : start + size], shown(picks[start : start + size]))
        for start in range(0, count, size)
    ]
    agree = ranks.first_says if trainer["strategy"] == "fsdp" else bool
    # Where runs repeat bitwise, the clock must not decide what is measured.
    max_share = 1 if trainer["deterministic"] else options["max_share"]
    return [QualityWatch(quality, held_out, painter_of, options["every"], max_share, agree)]


def _now(device: torch.device) -> float:
    """Return the time once the device has done what it was asked."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
