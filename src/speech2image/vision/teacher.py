"""Frozen teachers: pooled features of torchvision networks, weights from a local file.

Here: one module for any classification network of torchvision.  A teacher trained on the corpus
itself is in `training/teachers.py`; the image branches that train along are in `branch.py`.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from speech2image.errors import CheckpointError, ConfigError, nearest_names
from speech2image.vision.convnet import resize_images
from speech2image.weight_files import load_into, read_local_weights

_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_WITHOUT_INIT: dict[str, dict[str, Any]] = {
    "googlenet": {"init_weights": False, "transform_input": True},
    "inception_v3": {"init_weights": False, "transform_input": True},
}


class TorchvisionTeacher(nn.Module):
    """Map images to what the last linear layer of a classification network sees.

    Args:
        network: name of a torchvision classification network, such as `googlenet` or `resnet50`.
        weights_path: its ImageNet weights, a local file; None: random until a checkpoint is loaded.
        sha256: expected hash of the file, or its first digits; None: not compared.

    Raises: ConfigError: torchvision has no such network, or it ends in no linear layer.
        CheckpointError: the file is missing, damaged, of another network or another hash.
    Source: Li et al. 2020 use BVLC GoogLeNet `pool5`, on 227-pixel images in Caffe's scale.
        Differs: torchvision's weights and preprocessing; one view, the whole image.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        network: str = "googlenet",
        weights_path: Path | str | None = None,
        sha256: str | None = None,
    ) -> None:
        super().__init__()
        self.network_name = network
        self.network, published = _build(network)
        self.weights_sha256: str | None = None
        self.pretrained = False
        if weights_path is not None:
            what = f"teacher {network}"
            state, self.weights_sha256 = read_local_weights(weights_path, what, published.url, sha256)
            load_into(self.network, state, weights_path, f"torchvision's {network}")
            self.pretrained = True
        self.image_px = int(published.transforms().crop_size[0])
        self.feature_dim = _cut_last_linear(self.network, network)
        self.register_buffer("mean", torch.tensor(_MEAN)[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor(_STD)[:, None, None], persistent=False)
        self.register_load_state_dict_post_hook(_mark_loaded)  # type: ignore[no-untyped-call]
        self.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> TorchvisionTeacher:
        """Stay in evaluation mode, whatever `mode` says."""
        return super().train(False)

    def features(self, images: Tensor) -> Tensor:
        """Return pooled features `(B, F)` of `images` `(B, 3, H, W)` in [-1, 1]."""
        scaled = (resize_images(images, self.image_px) / 2 + 0.5 - self.mean) / self.std
        return self.network(scaled).flatten(1)

    forward = features


def _build(network: str) -> tuple[nn.Module, Any]:
    from torchvision import models

    known = models.list_models(module=models)
    if network not in known:
        near = ", ".join(nearest_names(network, known)) or "googlenet, resnet50"
        raise ConfigError(f"torchvision has no classification network {network!r}", f"Did you mean: {near}?")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        built = models.get_model(network, weights=None, **_WITHOUT_INIT.get(network, {}))
    weights: Any = models.get_model_weights(network)
    return built, getattr(weights, "IMAGENET1K_V1", weights.DEFAULT)


def _cut_last_linear(module: nn.Module, network: str) -> int:
    """Replace the last linear layer by the identity; return the size of its input."""
    names = [name for name, part in module.named_modules() if isinstance(part, nn.Linear)]
    if not names:
        raise ConfigError(f"{network} ends in no linear layer", "Use googlenet, resnet50 or another network.")
    parent, _, last = names[-1].rpartition(".")
    owner = module.get_submodule(parent)
    linear = getattr(owner, last)
    setattr(owner, last, nn.Identity())
    return int(linear.in_features)


def _mark_loaded(module: TorchvisionTeacher, incompatible: object) -> None:
    module.pretrained = True


def require_pretrained(module: nn.Module | None, key: str = "vision.weights_path") -> None:
    """Refuse a frozen network that still has random weights.

    Args:
        module: the network, or None.
        key: the setting that names its file.

    Raises: CheckpointError: `module` says it is not `pretrained`.
    """
    if getattr(module, "pretrained", True) is False:
        raise CheckpointError(
            f"{type(module).__name__} has no weights: a frozen network with random weights teaches nothing",
            f"Name its weight file: {key}=<file>.",
        )
