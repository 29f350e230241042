"""Feature networks for FID, IS, KID and neighbours, by name, from local files with checked hashes.

Nothing is downloaded and nothing is unpickled with code in it: a missing file fails with what it is,
where it comes from and where it belongs.  How Inception is run is in `inception.py`, the probe of a
corpus in `probe.py`, the scores in `scores.py`.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch_fidelity.registry import FEATURE_EXTRACTORS_REGISTRY
from torch_fidelity.utils import create_feature_extractor

from speech2image.errors import CheckpointError, ProtocolError, nearest_names
from speech2image.metrics.inception import Inception, fid_body, slim_state, torchvision_body
from speech2image.metrics.probe import Probe, scale
from speech2image.safe.arrays import read_npz
from speech2image.safe.tensors import header_of
from speech2image.safe.torch_files import read_torch_file

INCEPTION_FILE = "weights-inception-2015-12-05-6726825d.pth"
INCEPTION_SHA256 = "6726825d"
INCEPTION_URL = f"https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/{INCEPTION_FILE}"
TORCHVISION_FILE = "inception_v3_google-0cc3c7bd.pth"
_MAX_BYTES = 4 * 1024**3
BIRDS_FILE = "inception_birds_valid299.npz"


@dataclass(frozen=True)
class WeightFile:
    """A published weight file.

    Attributes:
        file: its name in the weights folder.
        sha256: first digits of its hash; None: made by hand, so any.
        source: where it comes from, in words for the reader.
    """

    file: str
    sha256: str | None
    source: str


NETWORKS: dict[str, WeightFile] = {
    "inception-v3-compat": WeightFile(INCEPTION_FILE, INCEPTION_SHA256, f"Download {INCEPTION_URL} (91 MB)"),
    "pytorch-fid": WeightFile(
        INCEPTION_FILE,
        INCEPTION_SHA256,
        f"Download {INCEPTION_URL} (91 MB; pytorch-fid's pt_inception-2015-12-05-6726825d.pth holds the"
        " same tensors)",
    ),
    "torchvision-inception": WeightFile(
        TORCHVISION_FILE,
        "0cc3c7bd",
        f"Download https://download.pytorch.org/models/{TORCHVISION_FILE} (104 MB)",
    ),
    "stackgan-birds": WeightFile(
        BIRDS_FILE,
        None,
        "Get birds_valid299 from https://github.com/hanzhanggit/StackGAN-inception-model and save the"
        " variables of model.ckpt-5000 with numpy: r = tensorflow.train.load_checkpoint(path);"
        f" numpy.savez('{BIRDS_FILE}', **{{n: r.get_tensor(n) for n in r.get_variable_to_shape_map()}})",
    ),
}
"""Published feature networks by the name a protocol uses; `probe` needs no file."""


@dataclass(frozen=True)
class FeatureNetwork:
    """A feature extractor with what must be written beside its numbers.

    Attributes:
        extractor: maps `(B, 3, S, S)` uint8 to (features, logits).
        name: `probe`, a key of `NETWORKS`, or a name of torch-fidelity's registry.
        weight_hash: first hex digits of the sha256 of its weights.
        image_px: side its images must have; None: it resizes them itself.
        feeding: how pixels enter, where one network has several ways.
    """

    extractor: nn.Module
    name: str
    weight_hash: str
    image_px: int | None
    feeding: str = ""

    def __call__(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return features `(B, F)` and logits `(B, classes)` of `(B, 3, S, S)` uint8."""
        features, logits = self.extractor(images)
        return features, logits

    @property
    def device(self) -> torch.device:
        """Where its weights are."""
        return next(self.extractor.parameters()).device


def open_network(
    name: str, weights: Path, device: str = "cpu", feeding: Literal["", "unit", "normalised"] = ""
) -> FeatureNetwork:
    """Return a published feature network by name, from the folder of weights.

    Args:
        name: a key of `NETWORKS` or a name of torch-fidelity's registry (`vgg16`, `clip-vit-b-32`, ...).
        weights: folder that holds its file, or the file itself.
        device: where to run it.
        feeding: for `torchvision-inception`: `unit` gives it [0, 1], otherwise [-1, 1].

    Raises:  ProtocolError: no such network.  CheckpointError: as `inception_network`.
    """
    if name == "inception-v3-compat":
        return inception_network(weights, device=device)
    if name == "pytorch-fid":
        return pytorch_fid_network(weights, device=device)
    if name == "torchvision-inception":
        return torchvision_network(weights, "unit" if feeding == "unit" else "normalised", device=device)
    if name == "stackgan-birds":
        return stackgan_network(weights, device=device)
    return registry_network(name, weights, device=device)


def inception_network(
    weights: Path, sha256: str | None = INCEPTION_SHA256, device: str = "cpu"
) -> FeatureNetwork:
    """Return the Inception network of the published scores in torch-fidelity's form.

    Args:
        weights: the released file, or the folder that holds it under its released name.
        sha256: first digits its sha256 must have; None: any file of the right layout.
        device: where to run it.

    Raises:  CheckpointError: missing, of another hash, damaged or of another layout; the message
        names file, hash, source and place.
    Source:  torch-fidelity 0.4.0 `inception-v3-compat` (TF1 bilinear resize to 299, (x-128)/128);
        logits without bias.
    """
    return _inception("inception-v3-compat", weights, sha256, device, lambda state: Inception(
        fid_body(state), "tensorflow", use_bias=False
    ))  # fmt: skip


def pytorch_fid_network(
    weights: Path, sha256: str | None = INCEPTION_SHA256, device: str = "cpu"
) -> FeatureNetwork:
    """Return the same Inception as pytorch-fid feeds it; arguments and errors of `inception_network`.

    Source:  mseitzer/pytorch-fid b9c1811 `inception.py`: bilinear half-pixel to 299 without antialias on
        [0, 1], then 2x - 1.  It has no logits; these are without bias, as torch-fidelity's.
    """
    return _inception("pytorch-fid", weights, sha256, device, lambda state: Inception(
        fid_body(state), "half_pixel", use_bias=False
    ))  # fmt: skip


def torchvision_network(
    weights: Path,
    feeding: Literal["unit", "normalised"] = "normalised",
    sha256: str | None = "0cc3c7bd",
    device: str = "cpu",
) -> FeatureNetwork:
    """Return torchvision's ImageNet Inception-v3: mean of Mixed_7c and 1,000 logits.

    Args:
        weights: the released file or its folder.
        feeding: `normalised` gives it [-1, 1] (the scores of S2IGAN and Speak the Art), `unit` [0, 1]
            (their retrieval, a defect that is kept where a protocol says so).
        sha256: first digits of its hash; None: any file of that layout.
        device: where to run it.

    Raises:  CheckpointError: as `inception_network`.
    Source:  S2IGAN `inception_score.py`, `Recall_evaluate.py`; the input is stretched to 299 bilinearly.
    """
    way: Literal["unit", "half_pixel"] = "unit" if feeding == "unit" else "half_pixel"
    return _inception("torchvision-inception", weights, sha256, device, lambda state: Inception(
        torchvision_body(state), way
    ), feeding)  # fmt: skip


def stackgan_network(weights: Path, sha256: str | None = None, device: str = "cpu") -> FeatureNetwork:
    """Return StackGAN's Inception fine-tuned on the 50 test classes of CUB; background is left out.

    Raises:  CheckpointError: as `inception_network`; the message says how the file is made.
    Source:  StackGAN-inception-model: bilinear 299 on bytes (antialiased), x / 127.5 - 1, logits 1 to 50.
    """
    return _inception("stackgan-birds", weights, sha256, device, lambda state: Inception(
        fid_body(state, 51, paper_pooling=True), "pil", skip_classes=1
    ))  # fmt: skip


def registry_network(
    name: str, weights: Path, sha256: str | None = None, device: str = "cpu"
) -> FeatureNetwork:
    """Return any extractor of torch-fidelity's registry whose weights file is given; logits = features.

    Args:
        name: its name there, e.g. `vgg16` or `clip-vit-b-32`.
        weights: its file, or a folder with `<name>.pt` or `<name>.pth`.
        sha256: first digits of its hash; CLIP archives must have OpenAI's.
        device: where to run it.

    Raises:  ProtocolError: no such extractor, or one that torch-fidelity cannot load from a file.
        CheckpointError: as `inception_network`.
    """
    if name not in FEATURE_EXTRACTORS_REGISTRY or name.startswith("dinov2"):
        known = [
            *NETWORKS,
            *(n for n in FEATURE_EXTRACTORS_REGISTRY if not n.startswith(("dinov2", "speech2image"))),
        ]
        why = "torch-fidelity loads DINOv2 from the network only" if name.startswith("dinov2") else "unknown"
        raise ProtocolError(
            f"there is no feature network '{name}' ({why})",
            f"Use {' or '.join(nearest_names(name, known) or known)}.",
        )
    is_clip = name.startswith("clip-")
    if is_clip:
        from torch_fidelity.feature_extractor_clip import MODEL_METADATA

        sha256 = MODEL_METADATA[name]["hash"]
    place = weights if weights.is_file() else weights / f"{name}.{'pt' if is_clip else 'pth'}"
    known_file = WeightFile(place.name, sha256, f"Download the weights that torch-fidelity names for {name}")
    content, digest = _read(name, place, known_file)
    layer = FEATURE_EXTRACTORS_REGISTRY[name].get_default_feature_layer_for_metric(
        "fid" if is_clip else "prc"
    )

    def make() -> nn.Module:
        file: Any = io.BytesIO(content)
        if not is_clip:  # TorchScript of OpenAI's own hash is loaded as it is; the rest only as tensors
            state = _named(read_torch_file(content))
            file = io.BytesIO()
            torch.save(state, file)
            file.seek(0)
        made: nn.Module = create_feature_extractor(
            name, [layer, layer], cuda=False, verbose=False, feature_extractor_weights_path=file
        )
        return made

    extractor = _made(name, place, known_file, make)
    return FeatureNetwork(extractor.to(device), name, digest[:16], None)


class _ProbeExtractor(nn.Module):
    def __init__(self, probe: Probe) -> None:
        super().__init__()
        self.probe = probe

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        pooled, logits = self.probe(scale(images))
        return pooled, logits[self.probe.main_head]


def probe_network(probe: Probe) -> FeatureNetwork:
    """Return the probe as a feature network: pooled features, logits of its main head."""
    return FeatureNetwork(_ProbeExtractor(probe).eval(), "probe", probe.weight_hash(), probe.image_px)


def _inception(
    name: str,
    weights: Path,
    sha256: str | None,
    device: str,
    make: Callable[[dict[str, Tensor]], Inception],
    feeding: str = "",
) -> FeatureNetwork:
    known = NETWORKS[name]
    path = weights / known.file if weights.is_dir() or not weights.suffix else weights
    content, digest = _read(name, path, WeightFile(known.file, sha256, known.source))
    extractor = _made(name, path, known, lambda: make(_tensors(path, content)))
    return FeatureNetwork(extractor.to(device), name, digest[:16], None, feeding)


def _tensors(path: Path, content: bytes) -> dict[str, Tensor]:
    """Return named tensors of a `.pth` or `.safetensors` file, or of an `.npz` of TF-slim variables."""
    if path.suffix == ".npz":
        return slim_state(read_npz(content))
    if path.suffix == ".safetensors":
        from safetensors.torch import load

        header_of(content)
        return load(content)
    return _named(read_torch_file(content))


def _named(content: Any) -> dict[str, Tensor]:
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        raise ValueError("it holds no tensors by name")
    return {str(name): value for name, value in content.items()}


def _read(name: str, path: Path, known: WeightFile) -> tuple[bytes, str]:
    if not path.is_file():
        raise CheckpointError(
            f"the weights of the feature network {name} are missing: no file {path}", _remedy(path, known)
        )
    if path.stat().st_size > _MAX_BYTES:
        raise CheckpointError(f"{path} is larger than {_MAX_BYTES:,} bytes", _remedy(path, known))
    content = path.read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    if known.sha256 is not None and not digest.startswith(known.sha256):
        raise CheckpointError(
            f"{path} ({len(content):,} bytes) is damaged or another file: its sha256 starts with"
            f" {digest[:8]}, expected {known.sha256[:16]}",
            _remedy(path, known),
        )
    return content, digest


def _made(name: str, path: Path, known: WeightFile, make: Callable[[], nn.Module]) -> nn.Module:
    try:
        return make().eval().requires_grad_(False)
    except Exception as problem:
        reason = str(problem).splitlines()[0][:200] if str(problem) else type(problem).__name__
        raise CheckpointError(
            f"{path} does not hold the Inception network that {name} needs: {reason}"
            if name in NETWORKS
            else f"{path} does not hold the network {name}: {reason}",
            _remedy(path, known),
        ) from problem


def _remedy(path: Path, known: WeightFile) -> str:
    digits = f" (sha256 starts with {known.sha256[:16]})" if known.sha256 else ""
    return f"{known.source}{digits} and put it at {path}; or use protocol=offline, which needs no download."
