"""What the layout of a corpus costs as it grows: manifest, index, order and cold reads, extrapolated to 10^8 utterances.

Synthetic records (five captions an image) are written and read by the suite's own code at rising sizes, each in a
process of its own, so that memory is that of one size.  Seconds are of the processor.  Exponents are the slope between
the two largest sizes; what they extrapolate to is printed beside.  Cold reads go through the suite's store after the
kernel was told to forget the file; what they really cost the disk is read from /proc/self/io.

Run: python tests/perf/bench_corpus_size.py [--utterances 10000 100000 1000000] [--orders 1000000 10000000 100000000]
    [--folder DIR] [--out FILE]
"""

from __future__ import annotations

import argparse
import json
import math
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[2] / "src"))
from speech2image.data import store as store_module
from speech2image.data.manifest import Manifest, read_manifest, write_manifest
from speech2image.data.order import batch_indices, epoch_permutation
from speech2image.data.permutation import scattered
from speech2image.data.store import RaggedStore, RaggedWriter
from speech2image.types import ImageRecord, Utterance

CAPTIONS, TARGET = 5, 100_000_000
CAPTION = "a small bird with a long pointed bill, a white belly and grey wings sits on a branch"
#: Kept of an utterance or image: name, bytes.
KINDS = {
    "codes of one view, 16 x 16 int32": 1024,
    "mel, 4 s x 40 float32": 64_160,
    "image, 304 px uint8": 277_248,
}


def rss() -> float:
    """Return the resident bytes of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def record(number: int) -> ImageRecord:
    """Return one synthetic image with its captions, as long as those of real corpora."""
    key = f"{number % 1000:03d}.Some_Class_Name/Some_Class_Name_{number:09d}"
    said = tuple(
        Utterance(f"{key}_{k}", CAPTION, k, f"speech/{key}_{k}.wav", f"speaker_{k}", "espeak-ng en-gb")
        for k in range(CAPTIONS)
    )
    return ImageRecord(key, f"images/{key}.jpg", "train", number % 1000, "Some Class Name", utterances=said)


def at_manifest(count: int, folder: Path) -> dict[str, float]:
    """Write and read a manifest of `count` utterances."""
    path = folder / "manifest.jsonl"
    child = os.fork()
    if child == 0:  # another process makes it, so that its memory is not counted
        write_manifest(
            path, Manifest("synthetic", folder, tuple(record(n) for n in range(count // CAPTIONS)))
        )
        os._exit(0)
    os.waitpid(child, 0)
    before, start = rss(), time.process_time()
    manifest = read_manifest(path)
    seconds, held = time.process_time() - start, rss() - before
    start = time.process_time()
    utterances = [
        (row, said) for row, image in enumerate(manifest.split("train")) for said in image.utterances
    ]
    flat = time.process_time() - start
    assert len(utterances) == count
    return {
        "file_bytes": path.stat().st_size, "read_s": seconds, "records_bytes": held,
        "utterances_s": flat, "with_list_bytes": rss() - before,
        "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }  # fmt: skip


def at_store(count: int, folder: Path) -> dict[str, float]:
    """Open the index of a store of `count` small items."""
    path = folder / "store"
    child = os.fork()
    if child == 0:
        keys = [
            f"{n % 1000:03d}.Some_Class_Name/Some_Class_Name_{n // CAPTIONS:09d}_{n % CAPTIONS}"
            for n in range(count)
        ]
        writer = RaggedWriter(path, keys, np.uint8, "synthetic", sync_every=10**9)
        for _ in range(count):
            writer.append(np.zeros(1, np.uint8))
        writer.commit()
        os._exit(0)
    os.waitpid(child, 0)
    before, start = rss(), time.process_time()
    store = RaggedStore.open(path)
    opened, held = time.process_time() - start, rss() - before
    start = time.process_time()
    store.index(store.keys[-1])
    files = sum((path / name).stat().st_size for name in ("index.npz", "keys.txt"))
    return {
        "index_file_bytes": files, "open_s": opened, "index_bytes": held,
        "lookup_s": time.process_time() - start, "with_lookup_bytes": rss() - before,
    }  # fmt: skip


def at_order(count: int, folder: Path) -> dict[str, float]:
    """Shuffle `count` items: written out, and place by place."""
    before, start = rss(), time.process_time()
    epoch_permutation(count, 0, 0)
    written, held = time.process_time() - start, rss() - before
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before
    epoch_permutation.cache_clear()
    start = time.process_time()
    for step in range(20):
        scattered(np.arange(step * 4096, (step + 1) * 4096), count, 0, 0)
    by_place = (time.process_time() - start) / 20
    batch_indices(count, 4096, 0, 1)
    return {"written_s": written, "written_bytes": held, "peak_bytes": peak, "scattered_4096_s": by_place}


def at_cold_reads(count: int, folder: Path) -> dict[str, float]:
    """Read `count` random items of each kind that are not in memory."""
    found: dict[str, float] = {}
    for kind, size in KINDS.items():
        items = min(60_000, 400_000_000 // size)
        path = folder / "cold"
        writer = RaggedWriter(path, [str(n) for n in range(items)], np.uint8, kind, sync_every=10**9)
        content = np.random.default_rng(0).integers(0, 256, size, np.uint8)
        for _ in range(items):
            writer.append(content)
        writer.commit()
        places = np.random.default_rng(1).permutation(items)[: min(count, items // 4)].tolist()
        for way, share in (("read ahead", 0.5), ("not read ahead", 0.0)):
            store_module.KEPT_SHARE, store_module.SMALL_ITEM_BYTES = share, 10**9
            store = RaggedStore.open(path)
            forget(path / "data.bin")
            before, start = disk_bytes(), time.perf_counter()
            for place in places:
                np.array(store[place])
            wall, read = time.perf_counter() - start, disk_bytes() - before
            found[f"{kind}, {way}: disk bytes a byte"] = read / (len(places) * size)
            found[f"{kind}, {way}: ms an item"] = 1000 * wall / len(places)
        start = time.process_time()
        for place in places:
            np.array(store[place])
        found[f"{kind}, in memory: processor ms an item"] = 1000 * (time.process_time() - start) / len(places)
        for file in path.iterdir():
            file.unlink()
    return found


def forget(path: Path) -> None:
    """Ask the kernel to drop the pages of a file."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def disk_bytes() -> int:
    """Return the bytes this process has had read from disks."""
    lines = Path("/proc/self/io").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("read_bytes")).split()[1])


CASES = {"manifest": at_manifest, "store": at_store, "order": at_order, "cold_reads": at_cold_reads}


def extrapolated(sizes: list[int], values: list[float]) -> tuple[float, float]:
    """Return the exponent between the two largest sizes, and the value it gives at 10^8."""
    if len(sizes) < 2 or min(values[-2:]) <= 0:
        return math.nan, math.nan
    exponent = math.log(values[-1] / values[-2]) / math.log(sizes[-1] / sizes[-2])
    return exponent, values[-1] * (TARGET / sizes[-1]) ** exponent


def main() -> None:
    """Measure every size in its own process; print tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--utterances", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--orders", type=int, nargs="+", default=[1_000_000, 10_000_000, 100_000_000])
    parser.add_argument("--cold", type=int, default=1000)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--case", help="one case in this process; used by itself")
    options = parser.parse_args()
    if options.case:
        name, size = options.case.split(":")
        print(json.dumps(CASES[name](int(size), options.folder)))
        return
    sizes = {
        "manifest": options.utterances,
        "store": options.utterances,
        "order": options.orders,
        "cold_reads": [options.cold],
    }
    made: dict[str, Any] = {}
    for name in CASES:
        rows = {size: _in_process(name, size, options.folder) for size in sizes[name]}
        made[name] = {"sizes": sizes[name], "measured": rows, "at_target": {}}
        print(f"\n{name}: {', '.join(f'{size:,}' for size in sizes[name])}")
        for key in rows[sizes[name][0]]:
            values = [rows[size][key] for size in sizes[name]]
            exponent, target = extrapolated(sizes[name], values)
            made[name]["at_target"][key] = {"exponent": exponent, "value": target}
            shown = "  ".join(f"{value:12,.4g}" for value in values)
            print(
                f"  {key:<66}{shown}"
                + ("" if math.isnan(exponent) else f"   ^{exponent:.2f} at 1e8: {target:,.4g}")
            )
    if options.out:
        options.out.write_text(json.dumps(made, indent=1) + "\n")


def _in_process(name: str, size: int, where: Path | None) -> dict[str, float]:
    with tempfile.TemporaryDirectory(dir=where) as folder:
        words = [sys.executable, __file__, "--case", f"{name}:{size}", "--folder", folder]
        done = subprocess.run(words, check=True, capture_output=True, text=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


if __name__ == "__main__":
    main()
