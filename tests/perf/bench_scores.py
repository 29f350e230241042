"""Time of the Fréchet trace term, and of FID and inception score from files to numbers, beside plain forms.

The peers, written here, are what the released scripts do: pytorch-fid's flow (features of both folders kept in
float64, `numpy.cov`, a Schur root of the product of covariances) and after it the IS script's own pass over the
generated folder (softmax, ten splits).  Both sides run the same network with the same weights (any: time does not
depend on them; without `--weights` random ones) on the same files; values must agree.  CPU seconds are printed beside
wall seconds, because other work on the machine changes only the latter.

Run: python tests/perf/bench_scores.py [--only trace] [--images 200 --threads 1 --dim 2048]
Full: python tests/perf/bench_scores.py --images 5000 --threads 2
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from scipy import linalg
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

sys.path.insert(0, str(Path(__file__).parents[2] / "src"))
from speech2image.metrics.frechet import trace_of_root
from speech2image.metrics.inception import Inception, fid_body
from speech2image.metrics.networks import FeatureNetwork
from speech2image.metrics.protocol import get_protocol
from speech2image.metrics.scores import Cache, image_scores

Array = np.ndarray[Any, np.dtype[Any]]


class PlainFiles(Dataset[Tensor]):
    """PNG files as tensors in [0, 1], one by one."""

    def __init__(self, files: list[Path]) -> None:
        self.files = files

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Tensor:
        pixels = np.asarray(Image.open(self.files[index]).convert("RGB"))
        return torch.from_numpy(pixels.copy()).permute(2, 0, 1).float() / 255


@torch.no_grad()
def plain_pass(network: Inception, files: list[Path]) -> tuple[Array, Array]:
    """Return float64 features and class probabilities, batches of 50 as both scripts take them."""
    features, chances = [], []
    for batch in DataLoader(PlainFiles(files), batch_size=50):
        hidden = 2 * F.interpolate(batch, size=(299, 299), mode="bilinear", align_corners=False) - 1
        for block in network.blocks:
            hidden = block(hidden)
        pooled = hidden.mean(dim=(2, 3))
        features.append(pooled.double().numpy())
        chances.append(torch.softmax(pooled @ network.fc.weight.T, dim=1).double().numpy())
    return np.concatenate(features), np.concatenate(chances)


def plain_trace(left: Array, right: Array) -> float:
    """Return the trace of the matrix root of the product, with the reference's guard."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        root = linalg.sqrtm(left.dot(right), disp=False)[0]
    if not np.isfinite(root).all():
        offset = 1e-6 * np.eye(len(left))
        root = linalg.sqrtm((left + offset) @ (right + offset))
    return float(np.trace(root).real)


def plain_scores(network: Inception, fake: list[Path], real: list[Path]) -> tuple[float, float]:
    """Return FID and inception score as two scripts one after the other."""
    sides = [plain_pass(network, files)[0] for files in (fake, real)]
    means = [side.mean(axis=0) for side in sides]
    covariances = [np.cov(side, rowvar=False) for side in sides]
    shift = means[0] - means[1]
    traces = np.trace(covariances[0]) + np.trace(covariances[1]) - 2 * plain_trace(*covariances)
    chances = plain_pass(network, fake)[1]
    scores = []
    for part in np.split(chances[: len(chances) // 10 * 10], 10):
        gain = part * (np.log(part) - np.log(part.mean(axis=0, keepdims=True)))
        scores.append(np.exp(gain.sum(axis=1).mean()))
    return float(shift @ shift + traces), float(np.mean(scores))


def timed(work: Callable[[], Any]) -> tuple[Any, float, float]:
    """Return the result, wall seconds and CPU seconds."""
    wall, cpu = time.perf_counter(), time.process_time()
    result = work()
    return result, time.perf_counter() - wall, time.process_time() - cpu


def feature_like(dim: int, seed: int) -> Array:
    """Return the covariance of `2.5 dim` rows that are not negative and have a decaying spectrum, as pooled features."""
    rng = np.random.default_rng(seed)
    mixing = np.linalg.qr(np.random.default_rng(100).normal(size=(dim, dim)))[0]
    rows = rng.normal(size=(dim * 5 // 2, dim)) * np.arange(1, dim + 1) ** -0.75 * (1 + 0.1 * seed)
    return np.cov(np.maximum(rows @ mixing.T * 10 + 0.3, 0), rowvar=False)


def bench_trace(dim: int, rounds: int) -> None:
    """Print the time of both forms of the trace term and their relative difference."""
    left, right = feature_like(dim, 0), feature_like(dim, 1)
    trace_of_root(left[:64, :64], right[:64, :64])
    ours = [timed(lambda: trace_of_root(left, right)) for _ in range(rounds)]
    value, wall, cpu = min(ours, key=lambda found: found[2])
    other, plain_wall, plain_cpu = timed(lambda: plain_trace(left, right))
    print(
        f"trace term at {dim}: matrix root {plain_wall:.2f} s (CPU {plain_cpu:.2f}), ours {wall:.2f} s"
        f" (CPU {cpu:.2f}), ratio {plain_wall / wall:.1f} (CPU {plain_cpu / cpu:.1f}), relative difference"
        f" {abs(value - other) / abs(other):.1e}",
        flush=True,
    )


def write_images(folder: Path, count: int, seed: int, px: int) -> list[Path]:
    """Write smooth coloured noise as PNG files."""
    folder.mkdir()
    rng = np.random.default_rng(seed)
    files = []
    for index in range(count):
        coarse = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
        files.append(folder / f"{index:06}.png")
        Image.fromarray(coarse).resize((px, px), Image.Resampling.BICUBIC).save(files[-1])
    return files


def random_state(seed: int) -> dict[str, Tensor]:
    """Return weights of the right layout whose features tell images apart."""
    from torchvision.models import inception_v3

    torch.manual_seed(seed)
    body = inception_v3(weights=None, init_weights=False, aux_logits=False, num_classes=1008)
    state = body.state_dict()
    for key, value in state.items():
        if value.ndim > 1:
            state[key] = torch.randn(value.shape) * (2 / value[0].numel()) ** 0.5
    return state


def bench_pipeline(images: int, px: int, weights: Path | None) -> None:
    """Print the time of FID and IS end to end, first and second evaluation, beside the peer."""
    if weights is not None:
        state = torch.load(weights, map_location="cpu", weights_only=True)
    else:
        state = random_state(0)
    plain = Inception(fid_body(state), "half_pixel", use_bias=False, fold=False)
    folded = Inception(fid_body(state), "half_pixel", use_bias=False)
    network = FeatureNetwork(folded, "pytorch-fid", "bench", None)
    released = get_protocol("s2igan_flickr8k")
    protocol = dataclasses.replace(
        released, metrics=("fid", "inception_score"), prepare="crop", isc_network="", fid_interval=False
    )
    with tempfile.TemporaryDirectory() as place:
        root = Path(place)
        fake, real = (
            write_images(root / name, images, seed, px) for seed, name in enumerate(("fake", "real"))
        )

        def ours() -> tuple[float, float]:
            cache = Cache(root / "cache")
            found = image_scores(fake, real, protocol=protocol, network=network, cache=cache)
            return found["fid"].value, found["inception_score"].value

        with torch.no_grad():
            for warm in (plain, folded):
                warm(torch.zeros(2, 3, px, px, dtype=torch.uint8))
        first, second = timed(ours), timed(ours)
        peer = timed(lambda: plain_scores(plain, fake, real))
    print(f"FID + IS of {images} + {images} images of {px} px, {torch.get_num_threads()} thread(s)")
    for name, (values, wall, cpu) in (
        ("two scripts", peer),
        ("ours, first", first),
        ("ours, second", second),
    ):
        print(
            f"  {name:<12} {wall:8.1f} s (CPU {cpu:8.1f})  ratio {peer[1] / wall:5.2f} (CPU {peer[2] / cpu:5.2f})"
            f"  FID {values[0]:.6g}  IS {values[1]:.6g}"
        )
    print(f"  second against first: {first[1] / second[1]:.2f} (CPU {first[2] / second[2]:.2f})")


def main() -> None:
    """Run what is asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name, default in (("images", 100), ("px", 256), ("dim", 2048), ("threads", 1), ("rounds", 3)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--weights", type=Path, default=None, help="released Inception weights")
    parser.add_argument("--only", choices=["trace", "pipeline"], default=None)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.only != "pipeline":
        bench_trace(options.dim, options.rounds)
    if options.only != "trace":
        bench_pipeline(options.images, options.px, options.weights)


if __name__ == "__main__":
    main()
