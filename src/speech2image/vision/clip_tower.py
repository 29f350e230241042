"""CLIP's image towers: the frozen side that SpeechCLIP brings speech to.

Here: one module on the optional library open_clip, weights from a local file, always in evaluation
mode.  CLIP's text transformer is in `speech/cascaded.py`; torchvision teachers are in `teacher.py`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from speech2image.errors import ConfigError, MissingPackageError, nearest_names
from speech2image.weight_files import load_into, read_local_weights

_MEAN, _STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
_URL = "https://huggingface.co/models?library=open_clip (open_clip_model.safetensors)"
_VISUAL = "visual."


class ClipTower(nn.Module):
    """Map images to unit vectors in CLIP's joint space; never trained.

    Args:
        network: open_clip's name of the model.  OpenAI's weights want its `-quickgelu` form:
            `ViT-B-32-quickgelu` (512 wide), `ViT-L-14-quickgelu` (768), `RN50x64-quickgelu` (1024).
        weights_path: a local CLIP state dict, whole or its image tower; None: random until a
            checkpoint is loaded.
        sha256: expected hash of the file, or its first digits; None: not compared.

    Raises: MissingPackageError: open_clip is not installed.  ConfigError: it has no such model.
        CheckpointError: the file is missing, damaged or of another network.
    Source: SpeechCLIP, section 3.1; S2IVQ-D uses RN50x64.  Differs: evaluation mode is pinned, where
        the released code lets the 199 batch norms of RN50x64 drift; bicubic resizing on tensors.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        network: str = "ViT-B-32-quickgelu",
        weights_path: Path | str | None = None,
        sha256: str | None = None,
    ) -> None:
        super().__init__()
        self.network_name = network
        self.visual, self.embed_dim, self.image_px = _build(network)
        self.feature_dim = self.embed_dim
        self.weights_sha256: str | None = None
        self.pretrained = False
        if weights_path is not None:
            state, self.weights_sha256 = read_local_weights(weights_path, f"CLIP {network}", _URL, sha256)
            whole = any(name.startswith(_VISUAL) for name in state)
            kept = {
                name.removeprefix(_VISUAL): value.float()
                for name, value in state.items()
                if name.startswith(_VISUAL) or not whole
            }
            load_into(self.visual, kept, weights_path, f"CLIP's {network}")
            self.pretrained = True
        self.register_buffer("mean", torch.tensor(_MEAN)[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor(_STD)[:, None, None], persistent=False)
        self.register_load_state_dict_post_hook(_mark_loaded)  # type: ignore[no-untyped-call]
        self.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> ClipTower:
        """Stay in evaluation mode, whatever `mode` says."""
        return super().train(False)

    def features(self, images: Tensor) -> Tensor:
        """Return joint-space features `(B, E)`, not normalised, of `images` `(B, 3, H, W)` in [-1, 1]."""
        scaled = (prepare_square(images, self.image_px) / 2 + 0.5 - self.mean) / self.std
        return self.visual(scaled)

    def forward(self, images: Tensor) -> Tensor:
        """Return unit embeddings `(B, E)` of `images` `(B, 3, H, W)` in [-1, 1]."""
        return functional.normalize(self.features(images), dim=1)


def prepare_square(images: Tensor, image_px: int) -> Tensor:
    """Return the central square of `images` `(B, 3, H, W)` at `image_px`, shorter side resized first.

    Source: CLIP's preprocessing, bicubic with antialiasing; values are kept in [-1, 1].
    """
    height, width = images.shape[-2:]
    if (height, width) != (image_px, image_px):
        factor = image_px / min(height, width)
        size = (max(image_px, round(height * factor)), max(image_px, round(width * factor)))
        images = functional.interpolate(images, size, mode="bicubic", align_corners=False, antialias=True)
        top, left = (size[0] - image_px) // 2, (size[1] - image_px) // 2
        images = images[:, :, top : top + image_px, left : left + image_px].clamp(-1, 1)
    return images


def _build(network: str) -> tuple[nn.Module, int, int]:
    """Return the image tower of open_clip's model, the width of the joint space and the image side."""
    try:
        import open_clip
    except ImportError as error:
        raise MissingPackageError("open_clip_torch", "clip") from error
    known = open_clip.list_models()
    if network not in known:
        near = ", ".join(nearest_names(network, known)) or "ViT-B-32-quickgelu, RN50x64-quickgelu"
        raise ConfigError(f"open_clip has no model {network!r}", f"Did you mean: {near}?")
    settings: Any = open_clip.get_model_config(network)
    whole: Any = open_clip.create_model(network, pretrained=None, device=torch.get_default_device())
    return whole.visual, int(settings["embed_dim"]), int(settings["vision_cfg"]["image_size"])


def _mark_loaded(module: ClipTower, incompatible: object) -> None:
    module.pretrained = True
