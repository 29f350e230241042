"""`speech2image prepare`: check or make a corpus, speak its captions, cache what training reads."""

from __future__ import annotations

import time
from typing import Any

from speech2image.data.corpora import open_corpus
from speech2image.data.corpus import Corpus
from speech2image.errors import DataError


def run(config: dict[str, Any]) -> None:
    """Prepare one corpus and print where it lies."""
    if config["audio"]["name"] == "from_encoder":
        raise DataError("audio=from_encoder names no front end", "Type: audio=s2igan or audio=li_et_al")
    start = time.perf_counter()
    corpus = open_corpus(config["data"], config["audio"]["name"], config["paths"])
    if config["verify"]:
        corpus.mel.verify()
        corpus.images.verify()
        print("every stored array has the hash it was written with")
    for line in describe(corpus):
        print(line)
    done = "already prepared, nothing to do" if corpus.was_ready else "prepared"
    print(f"{done} ({time.perf_counter() - start:.1f} s): {corpus.folder}")


def describe(corpus: Corpus) -> list[str]:
    """Return lines for the reader: counts of each split, voices, damaged items by name."""
    lines = []
    for split in ("train", "val", "test"):
        records = corpus.records(split)
        if records:
            spoken = len(corpus.utterances(split))
            classes = len({record.class_id for record in records})
            lines.append(f"{split:<6}{len(records):>7} images {classes:>5} classes {spoken:>7} utterances")
    problems = corpus.manifest.problems
    if problems:
        lines.append(f"{len(problems)} damaged items were left out:")
        lines += [f"  {problem.kind}: {problem.path}: {problem.message}" for problem in problems[:10]]
        if len(problems) > 10:
            lines.append(f"  … all of them: {corpus.folder / 'manifest.jsonl'}")
    return lines
