"""Where a generator's condition comes from: an encoder's run, a text encoder, or released embeddings.

Here: what a generator reads, who says it, and the embeddings of a corpus, computed once and kept.  Words, one
vector a time step or token, are computed and stored only for generators that read them.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader
from tqdm import tqdm

from speech2image.config.build import build
from speech2image.data.batches import SpeechBatches
from speech2image.data.corpus import Corpus
from speech2image.data.embeddings import (
    Embeddings,
    read_embeddings,
    read_published_embeddings,
    write_embeddings,
)
from speech2image.data.front_ends import CAPTIONS, AnyFrontEnd, front_end_of
from speech2image.data.store import RaggedStore, RaggedWriter, is_complete
from speech2image.data.turns import one_at_a_time
from speech2image.errors import ConfigError, DataError
from speech2image.speech.discriminant import Discriminant
from speech2image.training.runs import Run, all_runs, load_encoder, open_run
from speech2image.types import Condition
from speech2image.weight_files import file_sha256

Encoded = Iterator[tuple[list[str], Condition]]
_LARGEST = float(np.finfo(np.float16).max)
_AT_A_TIME = 64


# ---- who says it ------------------------------------------------------------------------------


class FromRun:
    """Embeddings of a trained encoder, computed once a corpus and kept in its run folder.

    Args:
        run: encoder run folder; `auto`: the newest finished encoder on the same corpus.
        lda_dim: directions of `speech/discriminant.py` that a generator is told; None: the whole embedding.
    """

    def __init__(self, run: str = "auto", lda_dim: int | None = None) -> None:
        self.run, self.lda_dim = run, lda_dim

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
            and run.info.get("status") in ("finished", "imported") and not reads_captions(run.config.get("encoder") or {})
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


@dataclasses.dataclass
class ResolvedCondition:
    """A generator's condition after `auto` is resolved: an encoder's run, embedding files, or a text encoder.

    Attributes:
        run: of a trained or imported encoder.
        files: released embeddings.
        audio: group `audio` the corpus is prepared with, or `CAPTIONS`.
        text: the group `encoder` where it is a text encoder by itself.
    """

    run: Run | None
    files: PublishedEmbeddings | None
    audio: dict[str, Any]
    text: dict[str, Any] | None = None


def reads_captions(encoder: dict[str, Any]) -> bool:
    """Return whether a group `encoder` is a text encoder: captions in, no speech."""
    return str(encoder.get("_target_")).startswith("speech2image.text.")


def resolve_condition(config: dict[str, Any]) -> ResolvedCondition | None:
    """Resolve the encoder of a generator, write its run id into `config`; None for encoders and codecs."""
    if config["stage"] not in ("gan", "diffusion"):
        return None
    if not config["encoder"].get("_target_"):  # classes, or nothing at all
        return ResolvedCondition(None, None, CAPTIONS)
    if reads_captions(config["encoder"]):
        return ResolvedCondition(None, None, CAPTIONS, config["encoder"])
    condition = build(config["encoder"])
    if isinstance(condition, PublishedEmbeddings):
        return ResolvedCondition(None, condition, {"name": "s2igan"})
    assert isinstance(condition, FromRun)
    run = condition.resolve(Path(config["paths"]["runs"]), config["data"]["name"])
    config["encoder"]["run"] = run.info["run_id"]
    return ResolvedCondition(run, None, run.config["audio"])


# ---- what is read -----------------------------------------------------------------------------
@dataclasses.dataclass(frozen=True)
class Reads:
    """What a generator reads of its condition."""

    sentence: bool = False
    words: bool = False
    class_id: bool = False

    @property
    def needs_encoder(self) -> bool:
        """Whether an encoder must say something."""
        return self.sentence or self.words


def what_is_read(generator: dict[str, Any]) -> Reads:
    """Return what the network of a group `generator` reads; stacked generators read the sentence."""
    form = generator.get("conditioning", "modulation")
    words = form == "cross" or (form == "adaptive" and bool(generator.get("use_words")))
    return Reads(form in ("adaptive", "modulation"), words, form == "class")


# ---- embeddings -------------------------------------------------------------------------------
def condition_embeddings(
    condition: ResolvedCondition, corpus: Corpus, split: str, wants_words: bool = False
) -> Embeddings:
    """Return the embeddings of one split, by run, by file or by text encoder.

    Raises:  ConfigError: there is no encoder.  DataError: it has no words, or nothing for this split.
    """
    if condition.run is not None:
        return run_embeddings(condition.run, corpus, front_end_of(condition.audio), split, wants_words)
    if condition.files is not None:
        return condition.files.read(corpus, split)
    if condition.text is None:
        raise ConfigError("encoder: none chosen, but this generator is told by one", "Type: encoder=from_run")
    return caption_embeddings(condition.text, corpus, split, wants_words)


def run_embeddings(
    run: Run, corpus: Corpus, front_end: AnyFrontEnd | None, split: str, wants_words: bool = False
) -> Embeddings:
    """Return the embeddings of a split by a run's encoder, from its folder or computed now.

    Args:
        run: of an encoder.
        corpus: prepared with `front_end`.
        front_end: None: the encoder reads captions.
        split: its split.
        wants_words: also keep words, memory-mapped float16.
    """

    def encode() -> Encoded:
        return encoded_batches(load_encoder(run)[0], corpus, split, front_end)

    return kept_embeddings(run.path / "embeddings", corpus, split, run.info["run_id"], encode, wants_words)


def caption_embeddings(
    node: dict[str, Any], corpus: Corpus, split: str, wants_words: bool = False
) -> Embeddings:
    """Return the embeddings of a split by a text encoder, kept beside the corpus they were made of.

    Raises:  CheckpointError: its weights or vocabulary are missing or damaged.
    """
    if node["weights_path"] is None:
        raise ConfigError("encoder.weights_path: which file holds CLIP's weights? found null")
    if not Path(node["weights_path"]).is_file():
        build(node)  # says what is missing and where from
    origin = text_fingerprint(node)

    def encode() -> Encoded:
        return encoded_batches(build(node), corpus, split, None)

    return kept_embeddings(corpus.folder / "embeddings" / origin, corpus, split, origin, encode, wants_words)


def text_fingerprint(node: dict[str, Any]) -> str:
    """Return 16 hex digits over the weights of a text encoder and how it reads."""
    ways = {key: value for key, value in node.items() if not key.endswith("_path") and key != "sha256"}
    ways["weights"] = file_sha256(Path(node["weights_path"]))
    return hashlib.sha256(json.dumps(ways, sort_keys=True).encode()).hexdigest()[:16]


@torch.no_grad()
def encoded_batches(encoder: nn.Module, corpus: Corpus, split: str, front_end: AnyFrontEnd | None) -> Encoded:
    """Run an encoder over all utterances of a split, in order; yield their keys and conditions.

    Args:
        encoder: of speech, or of captions where `front_end` is None; moved to the GPU where there is one.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    encoder = encoder.to(device)
    utterances = [utterance for _, utterance in corpus.utterances(split)]
    bar = tqdm(total=len(utterances), desc=f"embed {split}", unit="utt", disable=None)
    if front_end is None:
        for start in range(0, len(utterances), _AT_A_TIME):
            part = utterances[start : start + _AT_A_TIME]
            yield [utterance.key for utterance in part], encoder([utterance.caption for utterance in part])
            bar.update(len(part))
    elif utterances:
        batches = SpeechBatches(corpus, split, _AT_A_TIME, front_end.pad_value, front_end.pad_frames)
        for batch in DataLoader(batches, batch_size=None, sampler=range(len(batches))):
            yield batch["keys"], encoder(batch["speech"].to(device))
            bar.update(len(batch["keys"]))
    bar.close()


def kept_embeddings(
    folder: Path, corpus: Corpus, split: str, origin: str, encode: Callable[[], Encoded], wants_words: bool
) -> Embeddings:
    """Return the embeddings kept in `folder`, after computing and writing them where they are not whole.

    Args:
        folder: holds `<split>.safetensors` and, where words were wanted, the store `<split>_words`.
        corpus: prepared corpus.
        split: its split.
        origin: names the encoder.
        encode: computes them, called at most once.
        wants_words: also keep words.
    Raises:  DataError: words are wanted of an encoder that has none.
    """
    path, words_path = folder / f"{split}.safetensors", folder / f"{split}_words"
    wanted = [utterance.key for _, utterance in corpus.utterances(split)]
    fingerprint = f"words of {origin}, corpus {corpus.fingerprint}"
    with one_at_a_time(folder):
        if not (_is_kept(path, wanted, corpus) and (not wants_words or is_complete(words_path, fingerprint))):
            writer = RaggedWriter(words_path, wanted, np.float16, fingerprint) if wants_words else None
            try:
                sentences = _write_rows(encode(), writer)
                if writer is not None:
                    writer.commit()
            finally:
                if writer is not None:
                    writer.close()
            meta = {"corpus": corpus.manifest.corpus, "split": split, "run": origin,
                    "corpus_fingerprint": corpus.fingerprint}  # fmt: skip
            write_embeddings(path, wanted, {"sentence": sentences}, meta)
    words = RaggedStore.open(words_path) if wants_words else None
    return dataclasses.replace(read_embeddings(path), words=words)


def _is_kept(path: Path, wanted: list[str], corpus: Corpus) -> bool:
    if not path.is_file():
        return False
    kept = read_embeddings(path)
    return list(kept.keys) == wanted and kept.meta.get("corpus_fingerprint") == corpus.fingerprint


def _write_rows(encoded: Encoded, writer: RaggedWriter | None) -> np.ndarray:
    """Append the words of every utterance to `writer`; return all sentences `(U, D)`."""
    rows: list[np.ndarray] = [np.zeros((0, 1), np.float32)]
    done = 0
    for keys, condition in encoded:
        rows.append(condition.sentence.float().cpu().numpy())
        if writer is not None:
            for place, words in enumerate(words_of(condition)):
                if done + place >= writer.next_index:  # a killed session has written those before
                    writer.append(words)
        done += len(keys)
    return np.concatenate(rows[1:] or rows)


def words_of(condition: Condition) -> list[np.ndarray]:
    """Return the valid words of each item, `(N, D)` float16.

    Raises:  DataError: the encoder keeps no words.
    """
    if condition.words is None or condition.mask is None:
        raise DataError(
            "this encoder gives a sentence only, but the generator reads words",
            "Take an encoder with words (sen, speechclip, clip_text), or another generator.conditioning.",
        )
    words = condition.words.transpose(1, 2).clamp(-_LARGEST, _LARGEST).half().cpu().numpy()
    return [own[valid] for own, valid in zip(words, condition.mask.cpu().numpy(), strict=True)]


# ---- discriminant directions --------------------------------------------------------------
def fit_discriminant(corpus: Corpus, embeddings: Embeddings, lda_dim: int | None) -> Discriminant | None:
    """Return the discriminant directions of training embeddings; None where none are asked for.

    Args:
        corpus: gives the class of each utterance.
        embeddings: of the training split.
        lda_dim: how many directions at most.
    Raises:  DataError: the corpus has one class only.
    """
    if lda_dim is None:
        return None
    class_ids = corpus.class_ids("train")
    class_of = {utterance.key: class_ids[row] for row, utterance in corpus.utterances("train")}
    labels = np.array([class_of[key] for key in embeddings.keys])
    return Discriminant.fit(embeddings.arrays["sentence"], labels, lda_dim)


def projected(embeddings: Embeddings, discriminant: Discriminant | None) -> Embeddings:
    """Return embeddings as a generator is told them: their sentences projected, `(U, k)`, where asked for."""
    if discriminant is None:
        return embeddings
    sentence = discriminant(torch.from_numpy(embeddings.arrays["sentence"])).numpy()
    return dataclasses.replace(embeddings, arrays={**embeddings.arrays, "sentence": sentence})
