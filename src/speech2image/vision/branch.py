"""Image branches: image encoders trained together with a speech encoder.

Here: the published one on a frozen Inception-v3 trunk, and a small one trained from scratch for
corpora that need no ImageNet.  Both map images to unit vectors; the same module later serves
retrieval and the semantic term of generators.  Frozen teachers are in `teacher.py`.
"""

from __future__ import annotations

import warnings
from pathlib import Path

from torch import Tensor, nn
from torch.nn import functional

from speech2image.vision.convnet import ConvNet, resize_images
from speech2image.weight_files import load_into, read_local_weights

INCEPTION_URL = "https://download.pytorch.org/models/inception_v3_google-0cc3c7bd.pth"
INCEPTION_SHA256 = "0cc3c7bd"
_NOT_TRUNK = ("AuxLogits", "avgpool", "dropout", "fc")


class ConvBranch(nn.Module):
    """Encode small images by a network trained from scratch.

    Args:
        embed_dim: D of the embedding, equal to the speech encoder's `sentence_dim`.
        width: channels of the trunk's first layer.
        image_px: side of the images the trunk sees; others are resized.
        pretrain_steps: steps on the training classes before the trainer brings in speech, in the place
            of ImageNet weights.

    Source: own design, in the place of S2IGAN's image branch.
    """

    def __init__(
        self, embed_dim: int = 256, width: int = 32, image_px: int = 64, pretrain_steps: int = 0
    ) -> None:
        super().__init__()
        self.embed_dim, self.image_px, self.pretrain_steps = embed_dim, image_px, pretrain_steps
        self.trunk = ConvNet(width, image_px)
        self.feature_dim = self.trunk.feature_dim
        self.L1 = nn.Linear(self.feature_dim, embed_dim)

    def features(self, images: Tensor) -> Tensor:
        """Return pooled trunk features `(B, F)` of `images` `(B, 3, H, W)` in [-1, 1]."""
        return self.trunk(images)

    def forward(self, images: Tensor) -> Tensor:
        """Return unit embeddings `(B, D)` of `images` `(B, 3, H, W)` in [-1, 1]."""
        return functional.normalize(self.L1(self.features(images)), dim=1)


class InceptionBranch(nn.Module):
    """Encode images by a frozen Inception-v3 trunk and one trained linear layer.

    The trunk stays in evaluation mode and takes no gradient, but passes gradients on to images.

    Args:
        embed_dim: D of the embedding.
        weights_path: torchvision's ImageNet weights, a local file; None: the trunk is random
            until a checkpoint is loaded into the branch.

    Raises: CheckpointError: the file is missing, damaged or of another network.
    Source: S2IGAN, section 3.1; reference `models/ImageModels.py: LINEAR_ENCODER` and its trunk,
        up to Mixed_7c, mean over the map.  State keys as released.  Differs: none.
    """

    feature_dim = 2048
    image_px = 299

    def __init__(self, embed_dim: int = 1024, weights_path: Path | str | None = None) -> None:
        super().__init__()
        from torchvision.models import inception_v3

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            donor = inception_v3(weights=None, init_weights=False)
        parts = {name: part for name, part in donor.named_children() if name not in _NOT_TRUNK}
        self._order = tuple(parts)
        for name, part in parts.items():
            self.add_module(name, part)
        self.embed_dim = embed_dim
        self.weights_sha256: str | None = None
        self.pretrained = False
        if weights_path is not None:
            state, found = read_local_weights(weights_path, "Inception-v3", INCEPTION_URL, None)
            kept = {name: value for name, value in state.items() if not name.startswith(_NOT_TRUNK)}
            load_into(self, kept, weights_path, "torchvision's Inception-v3")
            self.weights_sha256, self.pretrained = found, True
        for name in self._order:
            self.get_submodule(name).requires_grad_(False)
        self.L1 = nn.Linear(self.feature_dim, embed_dim)
        self.register_load_state_dict_post_hook(_mark_loaded)  # type: ignore[no-untyped-call]
        self.train(self.training)

    def train(self, mode: bool = True) -> InceptionBranch:
        """Set the mode of the head; the trunk stays in evaluation mode."""
        super().train(mode)
        for name in self._order:
            self.get_submodule(name).eval()
        return self

    def features(self, images: Tensor) -> Tensor:
        """Return pooled trunk features `(B, 2048)` of `images` `(B, 3, H, W)` in [-1, 1]."""
        maps = resize_images(images, self.image_px, antialias=False)
        for name in self._order:
            maps = self.get_submodule(name)(maps)
        return maps.mean(dim=(2, 3))

    def forward(self, images: Tensor) -> Tensor:
        """Return unit embeddings `(B, D)` of `images` `(B, 3, H, W)` in [-1, 1]."""
        return functional.normalize(self.L1(self.features(images)), dim=1)


def _mark_loaded(module: InceptionBranch, incompatible: object) -> None:
    module.pretrained = True
