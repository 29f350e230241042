"""Feature networks by name: files, hashes, forms of input, heads; nothing runs from a weight file."""

from __future__ import annotations

import pickle
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from speech2image.errors import CheckpointError, ProtocolError
from speech2image.metrics.inception import Inception, fid_body, slim_state, torchvision_body
from speech2image.metrics.networks import NETWORKS, open_network, stackgan_network, torchvision_network


@cache
def random_state(num_classes: int, aux: bool) -> dict[str, torch.Tensor]:
    from torchvision.models import inception_v3

    with torch.device("meta"):
        layout = inception_v3(weights=None, init_weights=False, aux_logits=aux, num_classes=num_classes)
    generator = torch.Generator().manual_seed(0)
    state = {}
    for key, value in layout.state_dict().items():
        if value.ndim > 1:
            fan_in = value[0].numel()
            state[key] = torch.randn(value.shape, generator=generator) * (2 / fan_in) ** 0.5
        elif "running_var" in key or key.endswith("bn.weight"):
            state[key] = 0.5 + torch.rand(value.shape, generator=generator)
        elif value.dtype == torch.int64:
            state[key] = torch.tensor(0)
        else:
            state[key] = 0.1 * torch.randn(value.shape, generator=generator)
    return state


def pictures(px: int = 48) -> torch.Tensor:
    rng = np.random.default_rng(1)
    return torch.from_numpy(rng.integers(0, 256, (2, 3, px, px), dtype=np.uint8))


@pytest.mark.parametrize("name", sorted(NETWORKS))
def test_missing_file_says_what_whence_and_where(name: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError) as error:
        open_network(name, tmp_path)
    text = str(error.value)
    known = NETWORKS[name]
    for part in (name, str(tmp_path / known.file), "https://", known.sha256 or "numpy.savez"):
        assert part in text


@pytest.mark.parametrize("name", sorted(set(NETWORKS) - {"stackgan-birds"}))
def test_wrong_hash_is_refused(name: str, tmp_path: Path) -> None:
    path = tmp_path / NETWORKS[name].file
    torch.save({"fc.weight": torch.zeros(2)}, path)
    with pytest.raises(CheckpointError, match=f"expected {NETWORKS[name].sha256}"):
        open_network(name, tmp_path)


def test_hostile_and_foreign_files_do_not_run(tmp_path: Path) -> None:
    canary = tmp_path / "canary"

    class Hostile:
        def __reduce__(self) -> tuple[Any, tuple[Path]]:
            return Path.touch, (canary,)

    path = tmp_path / "weights.pth"
    path.write_bytes(pickle.dumps(Hostile(), protocol=2))
    for network in (torchvision_network, stackgan_network):
        with pytest.raises(CheckpointError, match="does not hold"):
            network(path, sha256=None)
    with pytest.raises(CheckpointError, match="does not hold"):
        open_network("vgg16", path)
    np.savez(tmp_path / "weights.npz", a=np.array([Hostile()], dtype=object))
    with pytest.raises(CheckpointError, match="does not hold"):
        stackgan_network(tmp_path / "weights.npz")
    assert not canary.exists()


def test_unknown_and_unloadable_extractors_are_named(tmp_path: Path) -> None:
    with pytest.raises(ProtocolError, match=r"no feature network 'vgg15'[\s\S]*vgg16"):
        open_network("vgg15", tmp_path)
    with pytest.raises(ProtocolError, match="DINOv2 from the network only"):
        open_network("dinov2-vit-b-14", tmp_path)
    with pytest.raises(CheckpointError, match=r"clip-vit-b-32 are missing: no file .*clip-vit-b-32\.pt"):
        open_network("clip-vit-b-32", tmp_path)
    (tmp_path / "clip-vit-b-32.pt").write_bytes(b"something else")
    with pytest.raises(CheckpointError, match="expected 40d365715913c9da"):
        open_network("clip-vit-b-32", tmp_path)


def test_pixels_enter_as_each_release_has_them() -> None:
    body = fid_body(random_state(1008, False))
    values = torch.tensor([0, 128, 255], dtype=torch.uint8)
    flat = values[:, None, None, None].expand(3, 3, 299, 299)
    seen = {way: Inception(body, way, fold=False).prepare(flat)[:, 0, 0, 0].tolist()
            for way in ("tensorflow", "half_pixel", "unit", "pil")}  # fmt: skip
    assert seen["tensorflow"] == [-1, 0, 0.9921875]
    assert seen["half_pixel"] == pytest.approx([-1, 0.0039216, 1], abs=1e-6)
    assert seen["unit"] == pytest.approx([0, 128 / 255, 1])
    assert seen["pil"] == pytest.approx([-1, 0.0039216, 1], abs=1e-6)
    step = torch.tensor([0, 255], dtype=torch.uint8).expand(1, 3, 2, 2)
    tensorflow, torch_way = (
        Inception(body, way, fold=False).prepare(step)[0, 0, 0] for way in ("tensorflow", "half_pixel")
    )
    assert tensorflow[224] == pytest.approx(0.9921875) and tensorflow[75] < 0.05  # clamps from the middle on
    assert torch_way[75] == pytest.approx(-1, abs=0.02) and torch_way[149] == pytest.approx(0, abs=0.01)


def test_folding_changes_features_by_less_than_rounding() -> None:
    body = fid_body(random_state(1008, False))
    plain = Inception(body, "half_pixel", use_bias=False, fold=False)
    with torch.no_grad():
        expected = plain(pictures())
        found = Inception(fid_body(random_state(1008, False)), "half_pixel", use_bias=False)(pictures())
        biased = Inception(fid_body(random_state(1008, False)), "half_pixel")(pictures())[1]
    for left, right in zip(expected, found, strict=True):
        assert float((left - right).abs().max()) <= 1e-5 * float(left.abs().max())
    assert torch.allclose(biased - found[1], random_state(1008, False)["fc.bias"].expand(2, -1), atol=1e-4)
    assert (found[0][0] - found[0][1]).abs().max() > 1e-3 * found[0].abs().max()


def test_torchvision_network_is_torchvisions(tmp_path: Path) -> None:
    from torchvision.models import inception_v3

    state = random_state(1000, True)
    torch.save(state, tmp_path / "inception_v3_google-0cc3c7bd.pth")
    network = torchvision_network(tmp_path, sha256=None)
    reference = inception_v3(weights=None, init_weights=False, aux_logits=True, transform_input=False).eval()
    reference.load_state_dict(state)
    images = pictures()
    with torch.no_grad():
        resized = torch.nn.functional.interpolate(images / 255, size=(299, 299), mode="bilinear")
        logits = reference(2 * resized - 1)
        features, found = network(images)
        unit = torchvision_network(tmp_path, "unit", sha256=None)(images)[1]
        assert torch.allclose(unit, reference(resized), atol=1e-3 * float(logits.abs().max()))
    assert features.shape == (2, 2048) and found.shape == (2, 1000)
    assert torch.allclose(found, logits, atol=1e-5 * float(logits.abs().max()))
    assert not torch.allclose(unit, found, atol=1e-2 * float(logits.abs().max()))
    assert network.feeding == "normalised" and len(network.weight_hash) == 16
    broken = dict(state)
    broken.pop("Mixed_7c.branch_pool.conv.weight")
    with pytest.raises(RuntimeError, match="branch_pool"):
        torchvision_body(broken)


def test_stackgan_variables_find_their_layers(tmp_path: Path) -> None:
    state = random_state(51, False)
    names = {"Mixed_5b.branch5x5_2": "mixed_35x35x256a/branch5x5/Conv_1", "Conv2d_1a_3x3": "conv0",
             "Mixed_7c.branch3x3dbl_3b": "mixed_8x8x2048b/branch3x3dbl/Conv_3",
             "Mixed_6a.branch3x3": "mixed_17x17x768a/branch3x3/Conv",
             "Mixed_7a.branch7x7x3_4": "mixed_17x17x1280a/branch7x7x3/Conv_3",
             "Mixed_6e.branch_pool": "mixed_17x17x768e/branch_pool/Conv"}  # fmt: skip

    asked: set[str] = set()

    class Variables(dict[str, np.ndarray]):
        """Every variable the layout may ask for, made from its name."""

        def __contains__(self, name: object) -> bool:
            return str(name).endswith("beta/ExponentialMovingAverage")

        def __getitem__(self, name: str) -> np.ndarray:
            asked.add(name)
            shape = (2, 3) if "logits" in name else (1, 1, 2, 3)
            shape = shape if "weights" in name else (3,)
            return np.full(shape, len(name), np.float32)

    found = slim_state(Variables())
    assert set(found) == set(state)
    for layer, scope in names.items():
        assert f"{scope}/weights" in asked
        assert float(found[f"{layer}.bn.bias"][0]) == len(f"{scope}/BatchNorm/beta/ExponentialMovingAverage")
    assert found["Conv2d_1a_3x3.conv.weight"].shape == (3, 2, 1, 1)  # height, width, in, out turned round
    with pytest.raises(KeyError):
        slim_state({})


def test_stackgan_network_leaves_background_out(tmp_path: Path) -> None:
    state = random_state(51, False)
    torch.save(state, tmp_path / "birds.pth")
    network = stackgan_network(tmp_path / "birds.pth")
    with torch.no_grad():
        features, logits = network(pictures())
        expected = features @ state["fc.weight"].T + state["fc.bias"]
    assert logits.shape == (2, 50)
    assert torch.allclose(logits, expected[:, 1:], atol=1e-4)
    with pytest.raises(RuntimeError, match="expected \\(1008, 2048\\)"):
        fid_body(state)
