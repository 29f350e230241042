"""Feature networks for FID, IS and KID, as torch-fidelity feature extractors.

Two kinds: the Inception network of the published scores, from a local file whose hash is checked
and which is never unpickled with code nor downloaded, and a probe of the corpus at hand.  The
scores themselves are in `scores.py`.
"""

from __future__ import annotations

import hashlib
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch_fidelity.feature_extractor_base import FeatureExtractorBase
from torch_fidelity.registry import FEATURE_EXTRACTORS_REGISTRY, register_feature_extractor
from torch_fidelity.utils import create_feature_extractor

from speech2image.errors import CheckpointError
from speech2image.metrics.probe import Probe, scale

INCEPTION_FILE = "weights-inception-2015-12-05-6726825d.pth"
INCEPTION_SHA256 = "6726825d"
INCEPTION_URL = f"https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/{INCEPTION_FILE}"


@dataclass(frozen=True)
class FeatureNetwork:
    """A torch-fidelity extractor with what must be written beside its numbers.

    Attributes:
        extractor: maps `(B, 3, S, S)` uint8 to a tuple in the order (features, logits).
        name: `probe` or `inception-v3-compat`.
        weight_hash: first hex digits of the sha256 of its weights.
        image_px: side its images must have; None: it resizes them itself.
    """

    extractor: FeatureExtractorBase
    name: str
    weight_hash: str
    image_px: int | None

    def __call__(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return features `(B, F)` and logits `(B, classes)` of `(B, 3, S, S)` uint8."""
        features, logits = self.extractor(images)
        return features, logits


def probe_network(probe: Probe) -> FeatureNetwork:
    """Return the probe as a feature network: pooled features, logits of its main head."""
    weight_hash = probe.weight_hash()

    class ProbeExtractor(FeatureExtractorBase):
        def __init__(self, name: str, features_list: list[str], **kwargs: Any) -> None:
            super().__init__(name, features_list)
            self.probe = probe

        @staticmethod
        def get_provided_features_list() -> tuple[str, ...]:
            return "pooled", "logits"

        @staticmethod
        def get_default_feature_layer_for_metric(metric: str) -> str:
            return "logits" if metric == "isc" else "pooled"

        @staticmethod
        def can_be_compiled() -> bool:
            return False

        def forward(self, images: Tensor) -> tuple[Tensor, ...]:
            pooled, logits = self.probe(scale(images))
            found = {"pooled": pooled, "logits": logits[self.probe.main_head]}
            return tuple(found[name] for name in self.features_list)

    name = f"speech2image-probe-{weight_hash}"
    FEATURE_EXTRACTORS_REGISTRY.pop(name, None)
    register_feature_extractor(name, ProbeExtractor)
    extractor = create_feature_extractor(name, ["pooled", "logits"], cuda=False, verbose=False)
    return FeatureNetwork(extractor, "probe", weight_hash, probe.image_px)


def inception_network(
    weights: Path, sha256: str | None = INCEPTION_SHA256, device: str = "cpu"
) -> FeatureNetwork:
    """Return the Inception network of the published scores from a local file.

    Args:
        weights: the released file, or the folder that holds it under its released name.
        sha256: first digits its sha256 must have; None: any file of the right layout.
        device: where to run it.

    Raises:  CheckpointError: missing, of another hash, damaged or of another layout; the message
        names file, hash, source and place.
    Source:  torch-fidelity 0.4.0 `inception-v3-compat` (TF1 bilinear resize to 299, (x-128)/128).
        Differs: its constructor unpickles without `weights_only`; here the file is hashed and read
        with `weights_only=True` first, and the constructor is given a copy of those tensors.
    """
    path = weights / INCEPTION_FILE if weights.is_dir() or not weights.suffix else weights
    remedy = (
        f"Download {INCEPTION_URL} (91 MB, sha256 starts with {INCEPTION_SHA256}) and put it at {path};"
        " or use protocol=offline, which needs no download."
    )
    if not path.is_file():
        raise CheckpointError(f"the Inception weights of FID, IS and KID are missing: no file {path}", remedy)
    content = path.read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    if sha256 is not None and not digest.startswith(sha256):
        raise CheckpointError(
            f"{path} ({len(content):,} bytes) is damaged or another file: its sha256 starts with"
            f" {digest[:8]}, expected {sha256}",
            remedy,
        )
    clean = io.BytesIO()
    try:
        state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
        torch.save({key: value.clone() for key, value in state.items()}, clean)
        clean.seek(0)
        extractor = create_feature_extractor(
            "inception-v3-compat",
            ["2048", "logits_unbiased"],
            cuda=False,
            verbose=False,
            feature_extractor_weights_path=clean,
        )
    except Exception as problem:
        reason = str(problem).splitlines()[0][:200] if str(problem) else type(problem).__name__
        raise CheckpointError(f"{path} does not hold the Inception network: {reason}", remedy) from problem
    return FeatureNetwork(extractor.to(device), "inception-v3-compat", digest[:16], None)
