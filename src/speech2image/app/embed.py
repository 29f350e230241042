"""`speech2image embed`: run a trained encoder over its corpus and keep named arrays."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from speech2image.data.corpora import open_corpus
from speech2image.errors import ConfigError

_SPLITS = ("train", "val", "test")


def run(config: dict[str, Any]) -> None:
    """Embed one split or all of them; print the files."""
    from speech2image.data.embeddings import write_embeddings
    from speech2image.data.front_ends import front_end_of
    from speech2image.training.conditions import run_embeddings
    from speech2image.training.runs import open_run

    if config["split"] not in (*_SPLITS, "all"):
        raise ConfigError(f"split: found {config['split']!r}, expected train, val, test or all")
    encoder_run = open_run(config["run"], Path(config["paths"]["runs"]), "encoder")
    settings = encoder_run.config
    corpus = open_corpus(settings["data"], settings["audio"], config["paths"])
    front_end = front_end_of(settings["audio"])
    for split in _SPLITS if config["split"] == "all" else (config["split"],):
        if not corpus.utterances(split):
            continue
        found = run_embeddings(encoder_run, corpus, front_end, split)
        path = encoder_run.path / "embeddings" / f"{split}.safetensors"
        if config["out"] is not None:
            path = Path(config["out"]) / f"{split}.safetensors"
            write_embeddings(path, found.keys, found.arrays, found.meta)
        print(f"{split:<6}{len(found.keys):>7} utterances x {found.arrays['sentence'].shape[1]}: {path}")
