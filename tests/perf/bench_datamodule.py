"""Items per second of the prepared DataModule beside a plain per-item pipeline.

The plain form, written here, is what the papers describe read literally: each item opens two JPEG
files, crops both to their boxes, resizes, crops and mirrors them, and makes three normalised
floats of each with PIL and torchvision.  Ours is the train loader of `SpeechImageData` over
`GanBatches` on the same corpus after `prepare`: once as it leaves the loader (uint8, mismatch and
sentence included; the pyramid is made on the training device), once with the float pyramids made
on this CPU.  One process, no workers, rounds interleaved, the best round of each is printed.

Run: python tests/perf/bench_datamodule.py [--cub DIR] [--image-px 256 --batch 24 --rounds 3]
"""

from __future__ import annotations

import argparse
import json
import runpy
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from speech2image.audio.features import make_front_end
from speech2image.data.batches import GanBatches
from speech2image.data.corpus import Corpus
from speech2image.data.cub import scan_cub
from speech2image.data.embeddings import Embeddings
from speech2image.data.manifest import Manifest
from speech2image.data.prepare import prepare_corpus
from speech2image.training.datamodule import SpeechImageData

SENTENCE_DIM = 1024


class PlainItems(Dataset[Any]):
    """Two images from their files, three float levels each, and a sentence."""

    def __init__(self, manifest: Manifest, sentences: np.ndarray, image_px: int) -> None:
        self.manifest, self.records, self.sentences = manifest, manifest.split("train"), sentences
        self.sizes = (image_px // 4, image_px // 2)
        self.augment = transforms.Compose(
            [
                transforms.Resize(int(image_px * 76 / 64)),
                transforms.RandomCrop(image_px),
                transforms.RandomHorizontalFlip(),
            ]
        )
        self.normalise = transforms.Compose(
            [transforms.ToTensor(), transforms.Normalize((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))]
        )

    def __len__(self) -> int:
        return len(self.records)

    def levels(self, index: int) -> list[torch.Tensor]:
        record = self.records[index]
        image = Image.open(self.manifest.image_path(record)).convert("RGB")
        assert record.box is not None
        x, y, width, height = (int(side) for side in record.box)
        radius, centre_x, centre_y = int(0.75 * max(width, height)), x + width // 2, y + height // 2
        image = image.crop(
            (
                max(0, centre_x - radius),
                max(0, centre_y - radius),
                min(image.width, centre_x + radius),
                min(image.height, centre_y + radius),
            )
        )
        crop = self.augment(image)
        return [self.normalise(transforms.Resize(size)(crop)) for size in self.sizes] + [self.normalise(crop)]

    def __getitem__(self, index: int) -> Any:
        wrong = index
        while self.records[wrong].class_id == self.records[index].class_id:
            wrong = int(np.random.randint(len(self.records)))
        return self.levels(index), self.levels(wrong), self.sentences[index]


def items_per_second(batches: Iterable[Any], num_items: int) -> tuple[float, float]:
    """Run through `batches`; return items per second of wall time and of processor time."""
    wall_s, cpu_s = time.perf_counter(), time.process_time()
    for _ in batches:
        pass
    return num_items / (time.perf_counter() - wall_s), num_items / (time.process_time() - cpu_s)


def draw_corpus(folder: Path) -> Path:
    """Write a corpus of the size and detail of CUB photographs."""
    tiny = runpy.run_path(str(Path(__file__).parents[1] / "tiny_corpora.py"))
    root: Path = tiny["make_cub"](folder, train=8, test=1, images=20, captions=1, spoken=1)
    names = sorted((root / "CUB_200_2011" / "images").rglob("*.jpg"))
    for number, path in enumerate(names):
        noise = np.random.default_rng(number).normal(0, 8, (375, 500, 3))
        photograph = np.asarray(tiny["picture"](number, 500, 375)) + noise
        Image.fromarray(photograph.clip(0, 255).astype(np.uint8)).save(path, quality=88)
    lines = [f"{number} 120.0 80.0 260.0 200.0" for number in range(1, len(names) + 1)]
    (root / "CUB_200_2011" / "bounding_boxes.txt").write_text("\n".join(lines) + "\n")
    return root


def compare(manifest: Manifest, corpus: Corpus, image_px: int, batch: int, rounds: int) -> dict[str, Any]:
    """Measure the three forms in turn; return the best items per second of each, wall and processor."""
    keys = [utterance.key for _, utterance in corpus.utterances("train")]
    rows = np.random.default_rng(0).normal(size=(len(manifest.records), SENTENCE_DIM)).astype(np.float32)
    embeddings = Embeddings(keys, {"sentence": np.resize(rows, (len(keys), SENTENCE_DIM))}, {})
    batches = GanBatches(corpus, "train", embeddings, batch, 0, image_px)
    plain = DataLoader(PlainItems(manifest, rows, image_px), batch_size=batch, shuffle=True, drop_last=True)
    steps, sizes = 20 * len(batches), (image_px // 4, image_px // 2, image_px)

    def ours(with_pyramid: bool) -> Iterable[Any]:
        data = SpeechImageData(batches, None, 0, steps // 5 if with_pyramid else steps, sizes)
        for item in data.train_dataloader():
            yield data.on_after_batch_transfer(item, 0) if with_pyramid else item

    for _ in ours(False):  # once through: the files of the plain form are in the page cache too
        pass
    best: dict[str, tuple[float, float]] = {}
    for _ in range(rounds):
        found = {
            "plain": items_per_second(plain, len(plain) * batch),
            "ours": items_per_second(ours(False), steps * batch),
            "ours with CPU pyramid": items_per_second(ours(True), steps // 5 * batch),
        }
        best = {name: max(found[name], best.get(name, (0.0, 0.0))) for name in found}
    return best


def main() -> None:
    """Prepare, measure, print a table and one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--cub", type=Path, help="a corpus in the layout of CUB; default: one is drawn")
    parser.add_argument("--image-px", type=int, default=256)
    parser.add_argument("--batch", type=int, default=24)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        manifest = scan_cub(options.cub or draw_corpus(folder / "cub"))
        front_end = make_front_end("s2igan")
        corpus = prepare_corpus(manifest, folder / "cache", front_end, image_px=options.image_px)
        best = compare(manifest, corpus, options.image_px, options.batch, options.rounds)
    print(f"{'items per second':<24}{'wall':>10}{'cpu':>10}{'ratio wall':>12}{'ratio cpu':>11}")
    for name, (wall, cpu) in best.items():
        ratios = wall / best["plain"][0], cpu / best["plain"][1]
        print(f"{name:<24}{wall:>10.0f}{cpu:>10.0f}{ratios[0]:>12.1f}{ratios[1]:>11.1f}")
    print(json.dumps({"image_px": options.image_px, "batch": options.batch, "items_per_s": best}))


if __name__ == "__main__":
    main()
