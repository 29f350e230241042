"""Inception-v3 as the published scores run it: one body, four ways of feeding and reading it.

The blocks are torch-fidelity's (FID weights, StackGAN's birds) or torchvision's (ImageNet weights);
here are input, order of blocks, heads, and the folding of batch norms into convolutions, which halves
the time on a CPU.  Files, hashes and names are in `networks.py`.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torch_fidelity.interpolate_compat_tensorflow import interpolate_bilinear_2d_like_tensorflow1x
from torch_fidelity.utils import create_feature_extractor

Feeding = Literal["tensorflow", "half_pixel", "unit", "pil"]
INPUT_PX = 299
_POOL = "pool"
_BLOCKS = (
    "Conv2d_1a_3x3", "Conv2d_2a_3x3", "Conv2d_2b_3x3", _POOL, "Conv2d_3b_1x1", "Conv2d_4a_3x3", _POOL,
    "Mixed_5b", "Mixed_5c", "Mixed_5d", "Mixed_6a", "Mixed_6b", "Mixed_6c", "Mixed_6d", "Mixed_6e",
    "Mixed_7a", "Mixed_7b", "Mixed_7c",
)  # fmt: skip
_WIDTHS = {64: 3, 192: 6, 768: 14, 2048: 17}
_SLIM_SCOPES = {
    "Conv2d_1a_3x3": "conv0", "Conv2d_2a_3x3": "conv1", "Conv2d_2b_3x3": "conv2", "Conv2d_3b_1x1": "conv3",
    "Conv2d_4a_3x3": "conv4", "Mixed_5b": "mixed_35x35x256a", "Mixed_5c": "mixed_35x35x288a",
    "Mixed_5d": "mixed_35x35x288b", "Mixed_6a": "mixed_17x17x768a", "Mixed_6b": "mixed_17x17x768b",
    "Mixed_6c": "mixed_17x17x768c", "Mixed_6d": "mixed_17x17x768d", "Mixed_6e": "mixed_17x17x768e",
    "Mixed_7a": "mixed_17x17x1280a", "Mixed_7b": "mixed_8x8x2048a", "Mixed_7c": "mixed_8x8x2048b",
}  # fmt: skip


class Inception(nn.Module):
    """Inception-v3 from bytes to features and logits.

    Args:
        body: module that holds the blocks by their torchvision names and a linear layer `fc`.
        feeding: `tensorflow`, old TensorFlow resize of 0..255, then (x - 128) / 128 (torch-fidelity);
            `half_pixel`, bilinear on [0, 1], then 2x - 1 (pytorch-fid, S2IGAN's score);
            `unit`, the same without scaling (S2IGAN's retrieval); `pil`, antialiased on bytes, then
            x / 127.5 - 1 (StackGAN).
        use_bias: logits with the bias of `fc`; torch-fidelity and StackGAN differ here.
        skip_classes: leading logits that are left out (StackGAN's background).
        fold: fold batch norms into convolutions, equal to 1e-5 of the largest feature.
    """

    def __init__(
        self,
        body: nn.Module,
        feeding: Feeding,
        use_bias: bool = True,
        skip_classes: int = 0,
        fold: bool = True,
    ) -> None:
        super().__init__()
        self.feeding, self.use_bias, self.skip_classes = feeding, use_bias, skip_classes
        self.blocks = nn.ModuleList(
            nn.MaxPool2d(3, stride=2) if name == _POOL else body.get_submodule(name) for name in _BLOCKS
        )
        fc = body.get_submodule("fc")
        assert isinstance(fc, nn.Linear)
        self.fc = fc
        self.eval().requires_grad_(False)
        if fold:
            _fold(self)
            self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def prepare(self, images: Tensor) -> Tensor:
        """Return what the first convolution sees, `(B, 3, 299, 299)`, of `(B, 3, H, W)` uint8."""
        size = (INPUT_PX, INPUT_PX)
        if self.feeding == "tensorflow":
            return (
                interpolate_bilinear_2d_like_tensorflow1x(images.float(), size, align_corners=False) - 128
            ) / 128
        if self.feeding == "pil":
            resized = F.interpolate(images.float(), size=size, mode="bilinear", antialias=True)
            return resized.round_().clamp_(0, 255) / 127.5 - 1
        resized = F.interpolate(images.float() / 255, size=size, mode="bilinear", align_corners=False)
        return resized if self.feeding == "unit" else 2 * resized - 1

    def pooled(self, images: Tensor, width: int = 2048) -> Tensor:
        """Return the spatial mean after the block of that width (64, 192, 768, 2048), `(B, width)`."""
        hidden = self.prepare(images).contiguous(memory_format=torch.channels_last)
        for block in self.blocks[: _WIDTHS[width] + 1]:
            hidden = block(hidden)
        return hidden.mean(dim=(2, 3))

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return features `(B, 2048)` and logits `(B, classes)` of `(B, 3, H, W)` uint8."""
        features = self.pooled(images)
        logits = self.fc(features) if self.use_bias else features @ self.fc.weight.T
        return features, logits[:, self.skip_classes :]


def fid_body(state: Mapping[str, Tensor], num_classes: int = 1008, paper_pooling: bool = False) -> nn.Module:
    """Return torch-fidelity's Inception with `state` in it.

    Args:
        state: tensors by torchvision's names, `fc` of `num_classes` rows, no auxiliary head.
        num_classes: 1008, or 51 for StackGAN's birds.
        paper_pooling: average in the last block, as TF-slim; False: maximum, as the FID graph.

    Raises:  RuntimeError, KeyError: `state` is of another layout.
    Source:  torch-fidelity 0.4.0 `feature_extractor_inceptionv3`.  Its constructor unpickles; it is given
        a copy of tensors that were read with `weights_only=True`.
    """
    given = {key: value.detach().clone() for key, value in state.items()}
    weight, bias = given["fc.weight"], given["fc.bias"]
    if tuple(weight.shape) != (num_classes, 2048) or tuple(bias.shape) != (num_classes,):
        raise RuntimeError(f"fc.weight has shape {tuple(weight.shape)}, expected ({num_classes}, 2048)")
    head = nn.Linear(2048, num_classes)
    with torch.no_grad():
        head.weight.copy_(weight)
        head.bias.copy_(bias)
    given["fc.weight"], given["fc.bias"] = torch.zeros(1008, 2048), torch.zeros(1008)
    copy = io.BytesIO()
    torch.save(given, copy)
    copy.seek(0)
    body: nn.Module = create_feature_extractor(
        "inception-v3-compat", ["2048"], cuda=False, verbose=False, feature_extractor_weights_path=copy
    )
    body.add_module("fc", head)
    if paper_pooling:
        last = type(body.get_submodule("Mixed_7b"))(2048)
        last.load_state_dict(body.get_submodule("Mixed_7c").state_dict())
        body.add_module("Mixed_7c", last)
    return body


def torchvision_body(state: Mapping[str, Tensor]) -> nn.Module:
    """Return torchvision's Inception-v3 (ImageNet, 1,000 classes) with `state` in it.

    Raises:  RuntimeError: `state` is of another layout.
    """
    from torchvision.models import inception_v3

    body: nn.Module = inception_v3(weights=None, init_weights=False, aux_logits=True, transform_input=False)
    body.load_state_dict(dict(state))
    return body


def slim_state(variables: Mapping[str, npt.NDArray[Any]]) -> dict[str, Tensor]:
    """Return the state of `fid_body` from the variables of StackGAN's TensorFlow checkpoint.

    Args:
        variables: TF-slim names to arrays; where a variable has an average (suffix
            `/ExponentialMovingAverage`), that is taken, as the released script restores.

    Raises:  KeyError: a variable is missing.
    Source:  StackGAN-inception-model `inception/slim/inception_model.py` (names and order of layers).
        Batch norms have no scale there, so it is one.
    """

    def find(name: str) -> Tensor:
        averaged = f"{name}/ExponentialMovingAverage"
        return torch.from_numpy(np.array(variables[averaged if averaged in variables else name], np.float32))

    state = {}
    with torch.device("meta"):
        from torchvision.models import inception_v3

        template = inception_v3(weights=None, init_weights=False, aux_logits=False)
    seen: dict[str, int] = {}
    for key in template.state_dict():
        if not key.endswith(".conv.weight"):
            continue
        stem = key.removesuffix(".conv.weight")
        block, _, layer = stem.partition(".")
        scope = _SLIM_SCOPES[block]
        if layer:
            branch = layer.split("_")[0] if layer != "branch_pool" else layer
            number = seen.setdefault(f"{scope}/{branch}", 0)
            seen[f"{scope}/{branch}"] += 1
            scope = f"{scope}/{branch}/Conv" + (f"_{number}" if number else "")
        state[key] = find(f"{scope}/weights").permute(3, 2, 0, 1).contiguous()
        state[f"{stem}.bn.bias"] = find(f"{scope}/BatchNorm/beta")
        state[f"{stem}.bn.weight"] = torch.ones_like(state[f"{stem}.bn.bias"])
        state[f"{stem}.bn.running_mean"] = find(f"{scope}/BatchNorm/moving_mean")
        state[f"{stem}.bn.running_var"] = find(f"{scope}/BatchNorm/moving_variance")
        state[f"{stem}.bn.num_batches_tracked"] = torch.tensor(0)
    state["fc.weight"] = find("logits/logits/weights").T.contiguous()
    state["fc.bias"] = find("logits/logits/biases")
    return state


def _fold(network: nn.Module) -> None:
    """Fold every batch norm into the convolution before it, in place."""
    for layer in network.modules():
        convolution, norm = getattr(layer, "conv", None), getattr(layer, "bn", None)
        if isinstance(convolution, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
            layer.conv = fuse_conv_bn_eval(convolution, norm)
            layer.bn = nn.Identity()
