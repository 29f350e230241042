"""Several processes that need the same prepared folder at the same time: one makes it, the others wait for it."""

from __future__ import annotations

import multiprocessing
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from speech2image.config.compose import compose
from speech2image.data.corpora import open_corpus
from speech2image.data.store import RaggedStore

FORK = multiprocessing.get_context("fork")
TINY = ("data.make.num_train_species=5", "data.make.num_test_species=3", "data.make.images_per_species=2",
        "data.make.captions_per_image=2", "data.max_captions=1")  # fmt: skip


def config_below(root: Path) -> dict[str, Any]:
    return compose("train", [*TINY, f"paths.data={root}/data", f"paths.cache={root}/cache"])


def together(work: Callable[[], Any], count: int = 4) -> list[int | None]:
    """Run `work` in processes that start at the same moment; return their exit codes."""
    gate = FORK.Barrier(count)

    def start() -> None:
        gate.wait()
        work()

    processes = [FORK.Process(target=start) for _ in range(count)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
    return [process.exitcode for process in processes]


def open_all(config: dict[str, Any]) -> Any:
    return open_corpus(config["data"], config["audio"], config["paths"])


def test_processes_that_prepare_one_corpus_together_make_what_one_makes(tmp_path: Path) -> None:
    alone, shared = config_below(tmp_path / "alone"), config_below(tmp_path / "shared")
    expected = open_all(alone)
    assert together(lambda: open_all(shared)) == [0, 0, 0, 0]
    found = open_all(shared)
    assert found.was_ready
    for name in ("mel", "images"):
        ours, theirs = (RaggedStore.open(c.folder / name, verify=True) for c in (expected, found))
        assert ours.sha256 == theirs.sha256
    assert not list(found.folder.rglob("*.part"))


def test_next_process_goes_on_where_the_preparing_one_was_killed(tmp_path: Path) -> None:
    words = [*TINY, f"paths.data={tmp_path}/data", f"paths.cache={tmp_path}/cache"]
    prepare = [
        sys.executable,
        "-m",
        "speech2image",
        "prepare",
        *words,
    ]  # torch's threads do not survive a fork
    first = subprocess.Popen(prepare, stdout=subprocess.DEVNULL)
    while not list(tmp_path.glob("cache/*/mel/data.part")):
        assert first.poll() is None
        time.sleep(0.002)
    second = subprocess.Popen(prepare, stdout=subprocess.DEVNULL)
    first.kill()
    first.wait()
    assert second.wait(120) == 0
    config = config_below(tmp_path)
    corpus = open_all(config)
    assert corpus.was_ready
    RaggedStore.open(corpus.folder / "mel", verify=True)


def test_processes_that_encode_one_corpus_together_write_its_words_once(tmp_path: Path) -> None:
    import torch

    from speech2image.training.conditions import kept_embeddings
    from speech2image.types import Condition

    corpus, calls = open_all(config_below(tmp_path)), tmp_path / "calls"

    def encode() -> Any:
        with calls.open("a") as log:
            log.write("called\n")
        for _, utterance in corpus.utterances("train"):
            words = torch.full((1, 3, 4), float(len(utterance.caption)))
            time.sleep(0.002)
            yield (
                [utterance.key],
                Condition(
                    words=words.transpose(1, 2), sentence=words[:, 0], mask=torch.ones(1, 3, dtype=torch.bool)
                ),
            )

    folder = tmp_path / "embeddings"
    assert together(lambda: kept_embeddings(folder, corpus, "train", "toy", encode, True)) == [0] * 4
    assert calls.read_text().splitlines() == ["called"]
    kept = kept_embeddings(folder, corpus, "train", "toy", lambda: pytest.fail("kept"), True)
    lengths = [len(utterance.caption) for _, utterance in corpus.utterances("train")]
    assert kept.words is not None
    assert [float(np.asarray(kept.words[row]).mean()) for row in range(len(lengths))] == lengths
