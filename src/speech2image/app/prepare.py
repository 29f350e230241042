"""`speech2image prepare`: check or make a corpus, speak its captions, cache what training reads."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from speech2image.data.corpora import open_corpus
from speech2image.data.corpus import Corpus
from speech2image.data.quarantine import summary_lines
from speech2image.data.store import RaggedStore, is_complete
from speech2image.errors import ConfigError, DataError


def run(config: dict[str, Any]) -> None:
    """Prepare one corpus and print where it lies."""
    if config["audio"]["name"] == "from_encoder":
        raise DataError("audio=from_encoder names no front end", "Type: audio=s2igan or audio=li_et_al")
    target = str((config["codec"] or {}).get("_target_") or "")
    if target and not target.endswith(".CodecFromRun"):
        raise ConfigError(
            f"codec: {target.rsplit('.', 1)[-1]} is not trained yet, a corpus is encoded by a trained codec",
            "Type: codec=from_run codec.run=<codec run>",
        )
    start = time.perf_counter()
    codec_run = _codec_run(config) if target else None  # before hours of preparing
    corpus = open_corpus(config["data"], config["audio"], config["paths"])
    stores, was_ready = [corpus.mel, corpus.images], corpus.was_ready
    lines = describe(corpus)
    if codec_run is not None:
        codes, codes_ready, line = _encode(corpus, codec_run, config["codec"]["num_views"])
        stores, was_ready, lines = [*stores, codes], was_ready and codes_ready, [*lines, line]
    if config["verify"]:
        for store in stores:
            store.verify()
        print("every stored array has the hash it was written with")
    print("\n".join(lines))
    done = "already prepared, nothing to do" if was_ready else "prepared"
    print(f"{done} ({time.perf_counter() - start:.1f} s): {corpus.folder}")


def _codec_run(config: dict[str, Any]) -> Any:
    from speech2image.config.build import build

    source, data = build(config["codec"]), config["data"]
    return source.resolve(Path(config["paths"]["runs"]), data["name"], data["image_px"])


def _encode(corpus: Corpus, codec_run: Any, num_views: int) -> tuple[RaggedStore, bool, str]:
    """Turn the training images into code grids, as training does; return store, whether it was there, a line."""
    import torch

    from speech2image.training.codes import codes_folder, encode_corpus, store_fingerprint
    from speech2image.training.runs import load_codec

    codec = load_codec(codec_run)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    name = codec.fingerprint()
    folder = codes_folder(corpus, name, "train", num_views)
    was_ready = is_complete(folder, store_fingerprint(corpus, name, num_views))
    store = encode_corpus(corpus, codec, "train", num_views, device)
    size = (folder / "data.bin").stat().st_size / 1e6
    rows, columns = codec.grid
    line = (
        f"codes {len(store):>7} images x {num_views} views of {rows} x {columns} codes by {codec_run.path.name},"
        f" {size:.1f} MB: {folder}"
    )
    return store, was_ready, line


def describe(corpus: Corpus) -> list[str]:
    """Return lines for the reader: counts of each split, voices, damaged items by name."""
    lines = []
    for split in ("train", "val", "test"):
        records = corpus.records(split)
        if records:
            spoken = len(corpus.utterances(split))
            classes = len({record.class_id for record in records})
            lines.append(f"{split:<6}{len(records):>7} images {classes:>5} classes {spoken:>7} utterances")
    return [*lines, *summary_lines(corpus.manifest.problems, corpus.folder)]
