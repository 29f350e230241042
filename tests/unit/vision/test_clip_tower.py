"""CLIP image towers: preprocessing, files, and the optional library when it is (not) there."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from speech2image.errors import CheckpointError, ConfigError, MissingPackageError
from speech2image.vision.clip_tower import ClipTower, prepare_square

needs_open_clip = pytest.mark.skipif(
    importlib.util.find_spec("open_clip") is None, reason="the optional package open_clip_torch is absent"
)
SMALLEST = "RN50-quickgelu"


def test_missing_library_is_one_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "open_clip", None)  # what an import finds where it is not installed
    with pytest.raises(MissingPackageError, match=r"pip install 'speech2image\[clip\]'"):
        ClipTower()


@pytest.mark.parametrize(("height", "width"), [(64, 64), (40, 90), (90, 40), (224, 300), (225, 224)])
def test_images_become_central_squares(height: int, width: int) -> None:
    images = torch.zeros(2, 3, height, width)
    images[:, :, height // 2 - 8 : height // 2 + 8, width // 2 - 8 : width // 2 + 8] = 1
    square = prepare_square(images, 224)
    assert square.shape == (2, 3, 224, 224)
    assert square[:, :, 112, 112].min() > 0.95 and -1 <= square.min() and square.max() <= 1
    weight = square.clamp_min(0)[0, 0]
    places = torch.arange(224.0)
    for axis in (0, 1):
        centre = (weight.sum(1 - axis) * places).sum() / weight.sum()
        assert abs(centre.item() - 111.5) < 3


def test_image_of_the_right_size_is_untouched() -> None:
    images = torch.rand(1, 3, 32, 32)
    assert prepare_square(images, 32) is images


@needs_open_clip
def test_tower_is_frozen_and_pinned(tmp_path: Path) -> None:
    torch.manual_seed(0)
    tower = ClipTower(SMALLEST)
    outer = nn.Sequential(tower).train()
    norms = [module for module in tower.modules() if isinstance(module, nn.BatchNorm2d)]
    assert norms and outer.training and not any(module.training for module in tower.modules())
    assert not any(parameter.requires_grad for parameter in tower.parameters())
    before = [norm.running_mean.clone() for norm in norms if norm.running_mean is not None]
    images = torch.rand(2, 3, 80, 64) * 2 - 1
    found = tower(images)
    assert found.shape == (2, tower.embed_dim) == (2, 1024) and tower.image_px == 224
    assert torch.allclose(found.norm(dim=1), torch.ones(2), atol=1e-5)
    after = [norm.running_mean for norm in norms if norm.running_mean is not None]
    assert all(torch.equal(old, new) for old, new in zip(before, after, strict=True))
    state = {f"visual.{name}": value for name, value in tower.visual.state_dict().items()}
    torch.save({**state, "logit_scale": torch.tensor(4.6)}, tmp_path / "clip.pt")
    again = ClipTower(SMALLEST, tmp_path / "clip.pt")
    assert again.pretrained and not tower.pretrained
    assert torch.equal(again(images), found)
    with pytest.raises(CheckpointError, match="ViT-B-32"):
        ClipTower("ViT-B-32-quickgelu", tmp_path / "clip.pt")
    with pytest.raises(CheckpointError, match="sha256"):
        ClipTower(SMALLEST, tmp_path / "clip.pt", sha256="00")


@needs_open_clip
@pytest.mark.parametrize(
    ("network", "embed_dim", "image_px", "parameters", "batch_norms"),
    [
        ("ViT-B-32-quickgelu", 512, 224, 87_849_216, 0),
        ("ViT-L-14-quickgelu", 768, 224, 303_966_208, 0),
        ("RN50x64-quickgelu", 1024, 448, 420_380_352, 199),
    ],
)
def test_published_towers_have_their_sizes(
    network: str, embed_dim: int, image_px: int, parameters: int, batch_norms: int
) -> None:
    with torch.device("meta"):
        tower = ClipTower(network)
    assert (tower.embed_dim, tower.image_px) == (embed_dim, image_px)
    assert sum(parameter.numel() for parameter in tower.parameters()) == parameters
    assert sum(isinstance(module, nn.BatchNorm2d) for module in tower.modules()) == batch_norms


@needs_open_clip
def test_unknown_model_is_refused() -> None:
    with pytest.raises(ConfigError, match="ViT-B-32"):
        ClipTower("ViT-B-32-quickgel")
