"""Statistics of real images are kept under the hash of what made them, and never used when they do not fit."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from speech2image.errors import DataError, ProtocolError
from speech2image.images.grid import write_png
from speech2image.metrics.features import Cache, content_key, extract, real_features
from speech2image.metrics.imageset import ImageSet
from speech2image.metrics.networks import FeatureNetwork
from speech2image.metrics.protocol import get_protocol
from speech2image.metrics.scores import Features, feature_scores, image_scores, prepared_sets


class Means(nn.Module):
    """A tiny network: mean and spread of each channel; counts how many images it saw."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))
        self.seen = 0

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        self.seen += len(images)
        pixels = images.float() * self.weight
        features = torch.cat([pixels.mean(dim=(2, 3)), pixels.std(dim=(2, 3))], dim=1)
        return features, features[:, :4] / 20


def network(weight_hash: str = "0123456789abcdef") -> FeatureNetwork:
    return FeatureNetwork(Means(), "probe", weight_hash, 8)


def seen(of: FeatureNetwork) -> int:
    assert isinstance(of.extractor, Means)
    return of.extractor.seen


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    rng = np.random.default_rng(0)
    paths = [tmp_path / f"real_{index:02}.png" for index in range(24)]
    for path in paths:
        write_png(path, rng.integers(0, 255, (8, 8, 3), dtype=np.uint8))
    return paths


def fakes(count: int = 40) -> np.ndarray:
    return np.random.default_rng(1).integers(0, 200, (count, 8, 8, 3), dtype=np.uint8)


def test_second_evaluation_does_not_look_at_real_images(files: list[Path], tmp_path: Path) -> None:
    cache, protocol = tmp_path / "cache", get_protocol("offline")
    first, second = network(), network()
    before = image_scores(fakes(), files, protocol=protocol, network=first, cache=cache)
    after = image_scores(fakes(), files, protocol=protocol, network=second, cache=cache)
    assert (seen(first), seen(second)) == (64, 40)
    assert after == before == image_scores(fakes(), files, protocol=protocol, network=network())
    assert set(before) == {
        "fid", "inception_score", "kid", "precision", "recall_prdc", "f_score", "density", "coverage",
    }  # fmt: skip
    for metric in before.values():
        assert metric.low <= metric.value <= metric.high
    assert len(list(cache.iterdir())) == 1


def test_anything_that_matters_makes_another_key(files: list[Path]) -> None:
    keys = {content_key(network(), ImageSet(files, 8))}
    keys.add(content_key(network("ffff"), ImageSet(files, 8)))
    keys.add(content_key(network(), ImageSet(files, 16)))
    keys.add(content_key(network(), ImageSet(files, 8, "squash")))
    keys.add(content_key(network(), ImageSet(files, 8, resample="bicubic")))
    keys.add(content_key(network(), ImageSet(files[::-1], 8)))
    keys.add(content_key(network(), ImageSet(files[1:], 8)))
    keys.add(content_key(dataclasses.replace(network(), feeding="unit"), ImageSet(files, 8)))
    assert len(keys) == 8
    moved = files[0].with_name("moved.png")
    files[0].rename(moved)
    assert content_key(network(), ImageSet([moved, *files[1:]], 8)) in keys


def test_stale_cache_is_made_again_with_one_line(
    files: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cache = Cache(tmp_path / "cache", "birds-test")
    real_features(network(), ImageSet(files, 8), cache)
    assert capsys.readouterr().err.count("made again") == 0
    write_png(files[3], np.zeros((8, 8, 3), np.uint8))
    after = network()
    found = real_features(after, ImageSet(files, 8), cache)
    assert capsys.readouterr().err.count("birds-test") == 1
    assert seen(after) == 24 and torch.equal(found.features[3], torch.zeros(6))


@pytest.mark.parametrize("damage", ["cut", "empty", "flipped", "renamed"])
@pytest.mark.parametrize("keep", [True, False])
def test_damaged_cache_is_made_again(
    damage: str, keep: bool, files: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cache = tmp_path / "cache"
    expected = real_features(network(), ImageSet(files, 8), cache, keep)
    (path,) = cache.iterdir()
    content = path.read_bytes()
    if damage == "renamed":
        path.unlink()
        real_features(network("other"), ImageSet(files, 8), cache, keep)
        (other,) = cache.iterdir()
        other.rename(path)
    else:
        flipped = content[:-9] + bytes([content[-9] ^ 1]) + content[-8:]
        path.write_bytes({"cut": content[: len(content) // 2], "empty": b"", "flipped": flipped}[damage])
    capsys.readouterr()
    again = network()
    found = real_features(again, ImageSet(files, 8), cache, keep)
    lines = capsys.readouterr().err.strip().splitlines()
    assert len([line for line in lines if "made again" in line]) == 1 and str(path) in "".join(lines)
    assert seen(again) == 24
    for left, right in zip(found.mean_and_covariance(), expected.mean_and_covariance(), strict=True):
        assert torch.equal(left, right)
    real_features(again, ImageSet(files, 8), cache, keep)
    assert seen(again) == 24 and not capsys.readouterr().err


def test_only_fid_keeps_no_features(files: list[Path], tmp_path: Path) -> None:
    asked = dataclasses.replace(
        get_protocol("offline"), metrics=("fid", "inception_score"), fid_interval=False
    )
    streamed = image_scores(fakes(), files, protocol=asked, network=network(), cache=tmp_path / "cache")
    kept = image_scores(fakes(), files, protocol=get_protocol("offline"), network=network())
    assert set(streamed) == {"fid", "inception_score"}
    assert streamed["fid"].value == pytest.approx(kept["fid"].value, rel=1e-9)
    assert streamed["inception_score"] == kept["inception_score"]
    assert streamed["fid"].low is None and kept["fid"].low is not None
    (path,) = (tmp_path / "cache").iterdir()
    assert "moments" in path.name
    again = network()
    assert image_scores(fakes(), files, protocol=asked, network=again, cache=tmp_path / "cache") == streamed
    assert seen(again) == 40
    passed = extract(network(), ImageSet(files, 8), keep=False)
    assert passed.features is None and passed.moments is not None and len(passed) == 24


def test_released_preparations_reach_the_network() -> None:
    wide = np.zeros((20, 40, 3), np.uint8)
    wide[:, 8:32] = 200
    squashed, cropped = (
        prepared_sets([wide], [wide], get_protocol(name), 16)[1][0] for name in ("sta_cub", "s2igan_cub")
    )
    assert squashed.shape == cropped.shape == (3, 256, 256)
    assert squashed[0, 128, 10] < 10 and squashed[0, 128, 128] > 190
    assert cropped.min() > 190
    made, real = prepared_sets([wide[:20, :20]], [wide], get_protocol("clean"), 20)
    assert made[0].shape == real[0].shape == (3, 20, 20)
    assert prepared_sets([wide], [wide], get_protocol("sta_cub"), 16)[0].preparation == "squash256-bilinear"


def test_equal_counts_and_groups() -> None:
    rng = np.random.default_rng(4)
    fake = Features(torch.from_numpy(rng.normal(0.3, 1, (90, 5)).astype(np.float32)), torch.zeros(90, 3))
    true = Features(torch.from_numpy(rng.normal(size=(30, 5)).astype(np.float32)))
    clean, plain = get_protocol("clean"), dataclasses.replace(get_protocol("clean"), equal_counts=False)
    equal, unequal = (feature_scores(fake, true, protocol=p) for p in (clean, plain))
    assert (equal["fid"].count, unequal["fid"].count) == (30, 90)
    assert equal["fid"].details["equal_counts"] == 30 and equal["inception_score"].count == 90
    assert equal["fid"].value != unequal["fid"].value
    alone = feature_scores(fake, true, protocol=plain, groups=np.arange(90))
    grouped = feature_scores(fake, true, protocol=plain, groups=np.arange(90) // 30)
    assert alone["fid"].high == pytest.approx(unequal["fid"].high)
    assert grouped["fid"].value == alone["fid"].value and grouped["fid"].high != alone["fid"].high


def test_inception_score_of_another_network() -> None:
    released = dataclasses.replace(
        get_protocol("s2igan_flickr8k"),
        network="probe",
        prepare="crop",
        isc_splits=4,
        metrics=("fid", "inception_score"),
    )
    with pytest.raises(
        ProtocolError, match="inception score from the network torchvision-inception, not probe"
    ):
        image_scores(fakes(), fakes(24), protocol=released, network=network())
    other = dataclasses.replace(network(), name="torchvision-inception")
    found = image_scores(fakes(), fakes(24), protocol=released, network=network(), isc_network=other)
    assert seen(other) == 40 and found["inception_score"].details["isc_network"] == "torchvision-inception"


def test_bad_files_are_named(files: list[Path], tmp_path: Path) -> None:
    protocol = get_protocol("offline")
    files[2].write_bytes(b"")
    with pytest.raises(DataError, match=r"real_02\.png: the image file is empty"):
        image_scores(fakes(), files, protocol=protocol, network=network())
    files[2].write_text("text")
    with pytest.raises(DataError, match=r"real_02\.png: the image cannot be decoded"):
        image_scores(
            files * 2, fakes(), protocol=protocol, network=dataclasses.replace(network(), image_px=None)
        )
    files[2].unlink()
    with pytest.raises(DataError, match=r"real_02\.png"):
        image_scores(fakes(), files, protocol=protocol, network=network(), cache=tmp_path / "cache")
    mixed = [*fakes(30), np.zeros((9, 8, 3), np.uint8)]
    with pytest.raises(ProtocolError, match="30 of 8x8, 1 of 9x8"):
        image_scores(mixed, fakes(), protocol=protocol, network=dataclasses.replace(network(), image_px=None))
    with pytest.raises(ProtocolError, match="6 real ones, found 40 and 5"):
        image_scores(fakes(), fakes(5), protocol=protocol, network=network())
