"""Where a generator's condition comes from: a trained encoder's run, or released embeddings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader
from tqdm import tqdm

from speech2image.data.batches import SpeechBatches
from speech2image.data.corpus import Corpus
from speech2image.data.embeddings import (
    Embeddings,
    read_embeddings,
    read_published_embeddings,
    write_embeddings,
)
from speech2image.data.front_ends import AnyFrontEnd
from speech2image.errors import ConfigError, DataError
from speech2image.training.runs import Run, all_runs, load_encoder, open_run


class FromRun:
    """Embeddings of a trained encoder, computed once a corpus and kept in its run folder.

    Args:
        run: encoder run folder; `auto`: the newest finished encoder on the same corpus.
    """

    def __init__(self, run: str = "auto") -> None:
        self.run = run

    def resolve(self, runs: Path, corpus_name: str) -> Run:
        """Return the encoder's run.

        Raises:
            ConfigError: `auto` finds no finished encoder on this corpus.
            DataError: the named run does not exist or is no encoder.
        """
        if self.run != "auto":
            return open_run(self.run, runs, "encoder")
        found = [
            run for run in all_runs(runs)
            if run.stage == "encoder" and run.info.get("corpus") == corpus_name
            and run.info.get("status") in ("finished", "imported")
        ]  # fmt: skip
        if not found:
            raise ConfigError(
                f"encoder.run=auto: there is no finished encoder on {corpus_name} below {runs}/",
                f"Train one first (speech2image train experiment=<encoder> data={corpus_name}), "
                "or name one: encoder.run=runs/<id>",
            )
        return found[-1]


class PublishedEmbeddings:
    """Released embedding pickles, `(images, captions, D)` in the order of the split.

    Args:
        train: pickle of the training split.
        test: pickle of the test split.
    """

    def __init__(self, train: str | None = None, test: str | None = None) -> None:
        self.files = {"train": train, "test": test}

    def read(self, corpus: Corpus, split: str) -> Embeddings:
        """Return the embeddings of one split keyed by utterance."""
        path = self.files.get(split)
        if path is None:
            raise DataError(f"encoder.{split}: no embedding file is named", f"Type: encoder.{split}=<pickle>")
        return read_published_embeddings(Path(path), corpus, split)


@torch.no_grad()
def embed_split(
    encoder: nn.Module, corpus: Corpus, split: str, front_end: AnyFrontEnd, batch_size: int = 64
) -> tuple[list[str], np.ndarray]:
    """Run a speech encoder over all utterances of a split.

    Returns: utterance keys, and sentences `(N, D)` float32 in the same order.
    """
    device = next(encoder.parameters()).device
    batches = SpeechBatches(corpus, split, batch_size, front_end.pad_value, front_end.pad_frames)
    if not len(batches):
        return [], np.zeros((0, encoder.sentence_dim), np.float32)  # type: ignore[arg-type]
    keys: list[str] = []
    rows: list[np.ndarray] = []
    bar = tqdm(total=len(corpus.utterances(split)), desc=f"embed {split}", unit="utt", disable=None)
    for batch in DataLoader(batches, batch_size=None, sampler=range(len(batches))):
        condition = encoder(batch["speech"].to(device))
        rows.append(condition.sentence.float().cpu().numpy())
        keys += batch["keys"]
        bar.update(len(batch["keys"]))
    bar.close()
    return keys, np.concatenate(rows)


def run_embeddings(run: Run, corpus: Corpus, front_end: AnyFrontEnd, split: str) -> Embeddings:
    """Return the embeddings of a split by a run's encoder, from its folder or computed now."""
    path = run.path / "embeddings" / f"{split}.safetensors"
    wanted = [utterance.key for _, utterance in corpus.utterances(split)]
    if path.is_file():
        kept = read_embeddings(path)
        if list(kept.keys) == wanted and kept.meta.get("corpus_fingerprint") == corpus.fingerprint:
            return kept
    encoder, _ = load_encoder(run)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    keys, sentences = embed_split(encoder.to(device), corpus, split, front_end)
    meta: dict[str, Any] = {
        "corpus": corpus.manifest.corpus,
        "split": split,
        "run": run.info["run_id"],
        "corpus_fingerprint": corpus.fingerprint,
    }
    write_embeddings(path, keys, {"sentence": sentences}, meta)
    return read_embeddings(path)
