"""A small image classifier trained on real images, which then looks at generated ones.

One trunk (`vision.convnet.ConvNet`) with a linear head for each attribute.  It serves twice: its
heads say what an image shows (`attributes.py`), its pooled features are the feature network of the
offline protocols (`scores.py`).  Its own accuracy on real test images always stands beside both.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_safetensors
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from speech2image.errors import CheckpointError, DataError, ProtocolError
from speech2image.metrics.bootstrap import interval
from speech2image.metrics.protocol import Metric, Protocol, measured
from speech2image.safe.records import read_json
from speech2image.safe.tensors import read_header
from speech2image.vision.convnet import ConvNet

Images = npt.NDArray[np.uint8] | Tensor
_SHIFT_PX = 4


class Probe(nn.Module):
    """Classify every attribute of an image.

    Args:
        classes: head name to its class names, in order.
        width: width of the trunk.
        image_px: side of the input images.
        feature_dim: width of the pooled features.
    """

    def __init__(
        self,
        classes: Mapping[str, Sequence[str]],
        width: int = 16,
        image_px: int = 64,
        feature_dim: int = 256,
    ) -> None:
        super().__init__()
        self.classes = {name: list(values) for name, values in classes.items()}
        self.width, self.image_px, self.feature_dim = width, image_px, feature_dim
        self.trunk = ConvNet(width=width, image_px=image_px, feature_dim=feature_dim)
        self.head = nn.Linear(feature_dim, sum(map(len, self.classes.values())))
        self.real_accuracy: dict[str, float] = {}

    def forward(self, images: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Return features `(B, F)` and head to logits `(B, classes)` of `(B, 3, H, W)` in [-1, 1]."""
        pooled = self.trunk(images)
        logits = self.head(pooled).split([len(values) for values in self.classes.values()], dim=1)
        return pooled, dict(zip(self.classes, logits, strict=True))

    @property
    def main_head(self) -> str:
        """Name of the head whose distribution the inception score uses: the one with most classes."""
        return max(self.classes, key=lambda name: len(self.classes[name]))

    def predict(self, images: Images, batch_size: int = 256) -> dict[str, npt.NDArray[np.int64]]:
        """Return head to class numbers `(N,)` of `(N, 3, S, S)` uint8 images."""
        outputs = [logits for _, logits in self._batches(images, batch_size)]
        return {
            name: np.concatenate([batch[name].argmax(dim=1).cpu().numpy() for batch in outputs])
            for name in self.classes
        }

    def features(self, images: Images, batch_size: int = 256) -> npt.NDArray[np.float32]:
        """Return pooled features `(N, F)` float32 of `(N, 3, S, S)` uint8 images."""
        return np.concatenate([pooled.cpu().numpy() for pooled, _ in self._batches(images, batch_size)])

    def accuracy(
        self,
        images: Images,
        labels: Mapping[str, npt.NDArray[Any]],
        *,
        protocol: Protocol | None,
        groups: npt.ArrayLike | None = None,
        seed: int = 0,
    ) -> dict[str, Metric]:
        """Measure the accuracy on real images and remember it in `real_accuracy`.

        Args:
            images: `(N, 3, S, S)` uint8, real, not used in training.
            labels: head to `(N,)` class numbers; -1: unknown, left out.
            protocol: protocol of the numbers.
            groups: `(N,)` what to resample together.
            seed: seed of the bootstrap.

        Returns: `probe_accuracy/<head>` for each head and `probe_accuracy/mean`; nothing where no image has
            a label the probe knows (test classes it never saw).
        """
        found = self.predict(images)
        result: dict[str, Metric] = {}
        hits: list[npt.NDArray[np.bool_]] = []
        labelled = [name for name in self.classes if name in labels and (np.asarray(labels[name]) >= 0).any()]
        for name in [*labelled, "mean"] if labelled else []:
            if name == "mean":
                values, owners = np.concatenate(hits), None
            else:
                known = np.asarray(labels[name]) >= 0
                values = (found[name] == np.asarray(labels[name]))[known]
                owners = None if groups is None else np.asarray(groups)[known]
                hits.append(values)
            spread = interval(values, seed=seed, groups=owners)
            result[f"probe_accuracy/{name}"] = measured(
                protocol,
                f"probe_accuracy/{name}",
                spread,
                count=spread.count,
                unit="fraction",
                chance=1 / len(self.classes[name]) if name in self.classes else None,
                note="probe on real test images",
            )
            self.real_accuracy[name] = spread.value
        return result

    def weight_hash(self) -> str:
        """Return the first 16 hex digits of the sha256 of all weights."""
        return _digest(self.state_dict())[:16]

    def save(self, path: Path) -> None:
        """Write weights and head names to one safetensors file, whole or not at all."""
        state = {key: value.detach().cpu().contiguous() for key, value in self.state_dict().items()}
        meta = {
            "classes": self.classes,
            "width": self.width,
            "image_px": self.image_px,
            "feature_dim": self.feature_dim,
            "real_accuracy": self.real_accuracy,
        }
        header = {"probe": json.dumps(meta), "sha256": _digest(state)}
        path.parent.mkdir(parents=True, exist_ok=True)
        beside = path.with_name(path.name + ".part")
        with beside.open("wb") as file:
            file.write(to_safetensors(state, metadata=header))
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)

    @classmethod
    def load(cls, path: Path) -> Probe:
        """Read a probe written by `save`.

        Raises:  CheckpointError: missing, damaged, or not a probe.
        """
        remedy = "Delete the file and run evaluate again: the probe is trained anew."
        if not path.is_file():
            raise CheckpointError(f"there is no probe at {path}", "Run evaluate without naming a probe.")
        try:
            checked = read_header(path)
            header = checked.metadata
            meta = read_json(header["probe"])
            accuracy = dict(meta.pop("real_accuracy"))
            with torch.device("meta"):
                sizes = {name: tuple(value.shape) for name, value in cls(**meta).state_dict().items()}
            if sizes != {name: entry.shape for name, entry in checked.tensors.items()}:
                raise ValueError("its tensors are not those of the network it names")
            with safe_open(path, framework="pt") as file:
                state = {name: file.get_tensor(name) for name in checked.tensors}
            probe = cls(**meta)
            probe.load_state_dict(state)
        except (SafetensorError, AttributeError, KeyError, ValueError, TypeError, RuntimeError) as problem:
            raise CheckpointError(f"{path} is damaged or not a probe: {problem}", remedy) from problem
        if _digest(state) != header.get("sha256"):
            raise CheckpointError(f"{path} is damaged: its weights do not match their hash", remedy)
        probe.real_accuracy = accuracy
        return probe.eval()

    @torch.no_grad()
    def _batches(self, images: Images, batch_size: int) -> list[tuple[Tensor, dict[str, Tensor]]]:
        side = (3, self.image_px, self.image_px)
        if tuple(images.shape[1:]) != side or len(images) == 0:
            raise ProtocolError(
                f"the probe looks at images of shape {side}, found {tuple(images.shape)}",
                "Resize with metrics.imageset.ImageSet first.",
            )
        self.eval()
        device = next(self.parameters()).device
        batches = torch.as_tensor(images).split(batch_size)  # type: ignore[no-untyped-call]
        return [self(scale(batch.to(device))) for batch in batches]


def scale(images: Tensor) -> Tensor:
    """Return uint8 images `(B, 3, H, W)` as float32 in [-1, 1], channels last in memory."""
    return images.to(memory_format=torch.channels_last).float().div_(127.5).sub_(1)


def train_probe(
    images: npt.NDArray[np.uint8],
    labels: Mapping[str, npt.NDArray[Any]],
    classes: Mapping[str, Sequence[str]],
    seed: int = 0,
    *,
    max_steps: int = 1600,
    batch_size: int = 32,
    width: int = 16,
    feature_dim: int = 256,
    peak_lr: float = 4e-3,
    flip: bool = False,
    device: str = "cpu",
) -> Probe:
    """Train a probe on real training images.

    Args:
        images: `(N, 3, S, S)` uint8.
        labels: head to `(N,)` class numbers; -1: unknown.
        classes: head to class names; heads without a label are refused.
        seed: seed of initial weights, order and augmentation.
        max_steps: batches seen.
        batch_size: images a batch.
        width: width of the trunk.
        feature_dim: width of the pooled features.
        peak_lr: peak of the one-cycle learning rate.
        flip: mirror half of the images (not where a head means left or right).
        device: where to train.

    Returns: the probe, in evaluation mode, on `device`.
    Raises:  DataError: shapes or labels that do not fit.
    Cost:    max_steps * batch_size forward and backward passes of the trunk; the defaults take about
        20 s for 64-pixel images on two free cores.
    """
    _check_labels(images, labels, classes)
    rng = np.random.default_rng(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        probe = Probe(classes, width=width, image_px=images.shape[2], feature_dim=feature_dim)
    probe = probe.to(device, memory_format=torch.channels_last).train()  # type: ignore[call-overload]
    optimizer = torch.optim.AdamW(probe.parameters(), lr=peak_lr, weight_decay=1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, peak_lr, total_steps=max_steps, pct_start=0.2)
    margin = [(0, 0), (0, 0), (_SHIFT_PX, _SHIFT_PX), (_SHIFT_PX, _SHIFT_PX)]
    padded = np.pad(images, margin, mode="edge")
    targets = {name: torch.from_numpy(np.asarray(labels[name], dtype=np.int64)) for name in classes}
    batch_size = min(batch_size, len(images))
    order = np.empty(0, dtype=np.int64)
    for _ in tqdm(range(max_steps), unit="step", desc="probe", disable=None):
        if len(order) < batch_size:
            order = np.concatenate([order, rng.permutation(len(images))])
        rows, order = order[:batch_size], order[batch_size:]
        batch = scale(_shifted(padded, rows, images.shape[2], flip, rng).to(device))
        _, logits = probe(batch)
        loss = torch.stack(
            [_head_loss(logits[name], targets[name][rows].to(device)) for name in classes]
        ).sum()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
    return probe.eval()


def rotation_task(
    images: npt.NDArray[np.uint8], seed: int = 0
) -> tuple[npt.NDArray[np.uint8], dict[str, npt.NDArray[np.int64]], dict[str, list[str]]]:
    """Return images turned by random quarter turns, with the turn as the label to learn.

    For corpora without classes or attributes (Flickr8k): the probe learns features that know the
    corpus without any label.  Returns images, labels and classes for `train_probe`.

    Source:  Gidaris et al. 2018, "Unsupervised representation learning by predicting rotations".
    """
    turns = np.random.default_rng(seed).integers(0, 4, len(images))
    turned = np.stack([np.rot90(image, turn, axes=(1, 2)) for image, turn in zip(images, turns, strict=True)])
    return turned, {"rotation": turns}, {"rotation": ["0", "90", "180", "270"]}


def _shifted(
    padded: npt.NDArray[np.uint8],
    rows: npt.NDArray[np.int64],
    image_px: int,
    flip: bool,
    rng: np.random.Generator,
) -> Tensor:
    offsets = rng.integers(0, 2 * _SHIFT_PX + 1, (len(rows), 2))
    crops = [
        padded[row, :, top : top + image_px, left : left + image_px]
        for row, (top, left) in zip(rows, offsets, strict=True)
    ]
    batch = np.stack(crops)
    if flip:
        mirrored = rng.random(len(rows)) < 0.5
        batch[mirrored] = batch[mirrored, ..., ::-1]
    return torch.from_numpy(batch)


def _head_loss(logits: Tensor, target: Tensor) -> Tensor:
    known = (target >= 0).sum().clamp(min=1)
    total = F.cross_entropy(logits, target, ignore_index=-1, label_smoothing=0.05, reduction="sum")
    return total / known


def _check_labels(
    images: npt.NDArray[np.uint8],
    labels: Mapping[str, npt.NDArray[Any]],
    classes: Mapping[str, Sequence[str]],
) -> None:
    problems = []
    if images.ndim != 4 or images.shape[1] != 3 or images.shape[2] != images.shape[3] or len(images) < 2:
        problems.append(f"images have shape {images.shape}, expected (N, 3, S, S) with N at least 2")
    for name, values in classes.items():
        found = np.asarray(labels.get(name, []))
        if len(found) != len(images):
            problems.append(f"'{name}' has {len(found)} labels for {len(images)} images")
        elif found.max() >= len(values) or (found < 0).all():
            problems.append(f"'{name}' has labels up to {found.max()} for {len(values)} classes")
    if problems or not classes:
        raise DataError("the probe cannot be trained: " + "; ".join(problems or ["no attribute"]), "")


def _digest(state: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for key in sorted(state):
        digest.update(f"{key}{tuple(state[key].shape)}".encode())
        digest.update(state[key].detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
