"""Torchvision teachers: pooled features, hashes, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torchvision.models import get_model

from speech2image.errors import CheckpointError, ConfigError
from speech2image.vision.branch import InceptionBranch
from speech2image.vision.teacher import TorchvisionTeacher, require_pretrained
from speech2image.weight_files import file_sha256

IMAGES = torch.rand(2, 3, 64, 64) * 2 - 1


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "resnet18.pth"
    torch.manual_seed(0)
    torch.save(get_model("resnet18", weights=None).state_dict(), path)
    return path


def test_features_are_the_input_of_the_last_layer(weights: Path) -> None:
    teacher = TorchvisionTeacher("resnet18", weights, file_sha256(weights)[:8]).train()
    whole = get_model("resnet18", weights=None).eval()
    whole.load_state_dict(torch.load(weights, weights_only=True))
    seen: list[torch.Tensor] = []
    whole.fc.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
    shown = torch.nn.functional.interpolate(IMAGES, (224, 224), mode="bilinear", antialias=True)
    mean = torch.tensor([0.485, 0.456, 0.406])[:, None, None]
    std = torch.tensor([0.229, 0.224, 0.225])[:, None, None]
    with torch.no_grad():
        whole((shown / 2 + 0.5 - mean) / std)
        features = teacher.features(IMAGES)
    assert features.shape == (2, teacher.feature_dim) == (2, 512)
    assert torch.allclose(features, seen[0], atol=1e-5)
    assert not teacher.network.training
    assert teacher.weights_sha256 == file_sha256(weights)
    assert not any(p.requires_grad for p in teacher.parameters())


@pytest.mark.parametrize(("network", "dim"), [("googlenet", 1024), ("efficientnet_b0", 1280)])
def test_other_networks_have_features_too(network: str, dim: int) -> None:
    teacher = TorchvisionTeacher(network)
    assert teacher(IMAGES).shape == (2, dim)
    assert teacher.feature_dim == dim


def test_wrong_files_and_names_are_refused(weights: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"download\.pytorch\.org/models/googlenet-1378be20\.pth"):
        TorchvisionTeacher("googlenet", tmp_path / "googlenet.pth")
    with pytest.raises(CheckpointError, match="expected 1234abcd"):
        TorchvisionTeacher("resnet18", weights, "1234abcd")
    with pytest.raises(CheckpointError, match="resnet34"):
        TorchvisionTeacher("resnet34", weights)
    with pytest.raises(ConfigError, match="resnet50"):
        TorchvisionTeacher("resnet5O")
    with pytest.raises(ConfigError, match="linear"):
        TorchvisionTeacher("squeezenet1_1")


def test_random_frozen_networks_are_refused_until_loaded() -> None:
    for network in (TorchvisionTeacher("resnet18"), InceptionBranch(8)):
        with pytest.raises(CheckpointError, match="random weights"):
            require_pretrained(network)
        network.load_state_dict(network.state_dict())
        require_pretrained(network)
    require_pretrained(torch.nn.Linear(2, 2))
    require_pretrained(None)
