"""Image branches: unit vectors, frozen trunks, weights from local files only."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torchvision.models import inception_v3

from speech2image.errors import CheckpointError
from speech2image.vision.branch import ConvBranch, InceptionBranch

IMAGES = torch.rand(2, 3, 64, 64) * 2 - 1


def test_small_branch_gives_unit_vectors_and_trains_whole() -> None:
    branch = ConvBranch(embed_dim=20, width=8)
    embedding = branch(IMAGES)
    assert embedding.shape == (2, 20)
    assert torch.allclose(embedding.norm(dim=1), torch.ones(2))
    assert branch.features(IMAGES).shape == (2, branch.feature_dim)
    embedding[0, 0].backward()
    assert all(p.grad is not None for p in branch.parameters())


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "inception.pth"
    torch.manual_seed(0)
    torch.save(inception_v3(weights=None, init_weights=False).state_dict(), path)
    return path


def test_inception_branch_reads_a_local_file_and_trains_its_head_only(weights: Path) -> None:
    branch = InceptionBranch(embed_dim=16, weights_path=weights).train()
    stored = torch.load(weights, weights_only=True)
    assert torch.equal(
        branch.state_dict()["Mixed_7c.branch1x1.conv.weight"], stored["Mixed_7c.branch1x1.conv.weight"]
    )
    assert branch.pretrained and len(branch.weights_sha256 or "") == 64
    assert branch.L1.training and not branch.Mixed_6a.training
    images = IMAGES.clone().requires_grad_()
    before = branch.Conv2d_1a_3x3.bn.running_mean.clone()
    branch(images)[0, 0].backward()
    assert images.grad is not None
    assert torch.equal(before, branch.Conv2d_1a_3x3.bn.running_mean)
    assert {n for n, p in branch.named_parameters() if p.grad is not None} == {"L1.weight", "L1.bias"}


def test_inception_branch_takes_safetensors(weights: Path, tmp_path: Path) -> None:
    save_file(torch.load(weights, weights_only=True), tmp_path / "inception.safetensors")
    assert InceptionBranch(8, tmp_path / "inception.safetensors").pretrained


def test_bad_weight_files_are_one_message(weights: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="inception_v3_google-0cc3c7bd.pth"):
        InceptionBranch(8, tmp_path / "missing.pth")
    (tmp_path / "cut.pth").write_bytes(weights.read_bytes()[:100_000])
    with pytest.raises(CheckpointError, match="damaged"):
        InceptionBranch(8, tmp_path / "cut.pth")
    (tmp_path / "cut.safetensors").write_bytes(b"\xff" * 64)
    with pytest.raises(CheckpointError, match="damaged"):
        InceptionBranch(8, tmp_path / "cut.safetensors")
    torch.save({"fc.weight": torch.zeros(3)}, tmp_path / "other.pth")
    with pytest.raises(CheckpointError, match=r"missing Conv2d_1a_3x3.conv.weight"):
        InceptionBranch(8, tmp_path / "other.pth")
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(CheckpointError, match="no state dict"):
        InceptionBranch(8, tmp_path / "list.pth")


class Canary:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[Path]]:
        return Path.touch, (self.path,)


def test_a_weight_file_is_never_executed(tmp_path: Path) -> None:
    torch.save({"a": Canary(tmp_path / "canary")}, tmp_path / "hostile.pth")
    with pytest.raises(CheckpointError, match="more than tensors"):
        InceptionBranch(8, tmp_path / "hostile.pth")
    assert not (tmp_path / "canary").exists()
