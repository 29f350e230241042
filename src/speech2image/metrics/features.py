"""Features of a set of images: one pass of a network, streamed into moments or kept, and cached.

The cache is for real images, which are scored again and again: a file is named by the hash of the
image bytes, their preparation and the network's weights, so it cannot be stale unnoticed; what is damaged or
does not say the same inside is made again, with one line said.  Scores are in `scores.py`.
"""

from __future__ import annotations

import hashlib
import os
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm import tqdm

from speech2image.errors import DataError
from speech2image.metrics.imageset import ImageSet
from speech2image.metrics.networks import FeatureNetwork
from speech2image.metrics.statistics import Moments
from speech2image.safe.tensors import read_header

_MANY_IMAGES = 2000
_BATCH = 32
_FORMAT = "speech2image features 1"


@dataclass(frozen=True)
class Features:
    """What a feature network said about a set.

    Attributes:
        features: `(N, F)`; None where only moments were asked for.
        logits: `(N, classes)`; None where they were not asked for.
        moments: of all rows, where features were not kept.
    """

    features: Tensor | None
    logits: Tensor | None = None
    moments: Moments | None = None

    def __len__(self) -> int:
        for kept in (self.features, self.logits):
            if kept is not None:
                return len(kept)
        return 0 if self.moments is None else self.moments.count

    def mean_and_covariance(self) -> tuple[Tensor, Tensor]:
        """Return `(F,)` and `(F, F)`, float64."""
        moments = self.moments
        if moments is None:
            assert self.features is not None
            moments = Moments(self.features.shape[1], self.features.device)
            moments.update(self.features)
        return moments.mean, moments.covariance()


@dataclass(frozen=True)
class Cache:
    """Where statistics of real images are kept.

    Attributes:
        folder: made when needed.
        label: names the set (corpus and split), so that a change of its images can be told; may be empty.
    """

    folder: Path
    label: str = ""


@torch.no_grad()
def extract(
    network: FeatureNetwork,
    images: ImageSet,
    what: str = "img",
    *,
    keep: bool = True,
    logits: bool = True,
) -> Features:
    """Run a feature network once over a set of images, in order.

    Args:
        network: the feature network.
        images: images of one size.
        what: word for the progress bar.
        keep: keep all features; otherwise only their running moments, on the device.
        logits: keep the logits.

    Cost:    4 N F bytes where features are kept, 8 F^2 where not.
    """
    workers = 2 if len(images) > _MANY_IMAGES and (os.cpu_count() or 1) > 2 else 0
    rows: list[Tensor] = []
    heads: list[Tensor] = []
    moments: Moments | None = None
    with tqdm(total=len(images), unit="img", desc=f"features of {what}", disable=None) as bar:
        for batch in DataLoader(images, batch_size=_BATCH, num_workers=workers):
            features, found = network(batch.to(network.device))
            if keep:
                rows.append(features.cpu())
            else:
                moments = moments or Moments(features.shape[1], features.device)
                moments.update(features)
            if logits:
                heads.append(found.cpu())
            bar.update(len(batch))
    return Features(torch.cat(rows) if rows else None, torch.cat(heads) if heads else None, moments)


def real_features(
    network: FeatureNetwork, images: ImageSet, cache: Cache | Path | None, keep: bool = True
) -> Features:
    """Return features (or moments) of real images, from the cache where it has them.

    Args:
        network: the feature network.
        images: real images with their preparation.
        cache: folder, or folder and label; None: nothing is kept on disk.
        keep: features of every image; otherwise moments are enough.

    Raises:  DataError: an image cannot be read or the cache cannot be written.
    """
    if cache is None:
        return extract(network, images, "real images", keep=keep, logits=False)
    cache = cache if isinstance(cache, Cache) else Cache(cache)
    key = content_key(network, images)
    kind = "features" if keep else "moments"
    stem = "-".join(filter(None, (cache.label, network.name, kind)))
    path = cache.folder / f"{stem}-{key[:24]}.safetensors"
    found = _load(path, key, len(images), keep)
    if found is not None:
        return found
    if not path.exists() and cache.label and any(cache.folder.glob(f"{stem}-*.safetensors")):
        _say(f"statistics of {cache.label} in {cache.folder} belong to other images or weights: made again")
    made = extract(network, images, "real images", keep=keep, logits=False)
    _save(path, key, made)
    return made


def content_key(network: FeatureNetwork, images: ImageSet) -> str:
    """Return the sha256 of image bytes in order, their preparation and the network's weights."""
    digest = hashlib.sha256()
    digest.update(
        f"{_FORMAT}|{network.name}|{network.weight_hash}|{network.feeding}|{images.preparation}".encode()
    )
    for item in images.images:
        if isinstance(item, (str, Path)):
            try:
                content = Path(item).read_bytes()
            except OSError as problem:
                raise DataError(
                    f"{item}: the image cannot be read: {problem}", "Prepare the corpus again."
                ) from None
        else:
            array = np.ascontiguousarray(item)
            digest.update(str(array.shape).encode())
            content = array.tobytes()
        digest.update(hashlib.sha256(content).digest())
    return digest.hexdigest()


def _load(path: Path, key: str, count: int, keep: bool) -> Features | None:
    if not path.is_file():
        return None
    try:
        header = read_header(path)
        said = header.metadata
        with safe_open(path, framework="pt") as stored:
            tensors = {name: stored.get_tensor(name) for name in header.tensors}
        if said.get("key") != key:
            raise ValueError("it was made for other images or weights")
        if said.get("digest") != _digest(tensors):
            raise ValueError("its numbers are not those that were written")
        if keep:
            if len(tensors["features"]) != count:
                raise ValueError(f"it holds {len(tensors['features'])} images, expected {count}")
            return Features(tensors["features"])
        moments = Moments(len(tensors["mean"]))
        moments.mean, moments.scatter, moments.count = tensors["mean"], tensors["scatter"], count
        return Features(None, None, moments)
    except (SafetensorError, OSError, ValueError, KeyError) as problem:
        _say(f"{path} cannot be used ({str(problem).splitlines()[0][:120]}): made again")
        return None


def _save(path: Path, key: str, made: Features) -> None:
    tensors = {} if made.features is None else {"features": made.features.contiguous()}
    if made.moments is not None:
        tensors = {"mean": made.moments.mean.cpu(), "scatter": made.moments.scatter.cpu().contiguous()}
    content = save(tensors, {"key": key, "digest": _digest(tensors), "format": _FORMAT})
    beside = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(beside, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    except OSError as problem:
        raise DataError(
            f"{path}: statistics of real images cannot be kept: {problem}",
            "Check the free space and the rights of the folder.",
        ) from problem


def _digest(tensors: dict[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(name.encode() + np.ascontiguousarray(tensors[name].numpy()).tobytes())
    return digest.hexdigest()


def _say(line: str) -> None:
    print(f"speech2image: {line}", file=sys.stderr)
