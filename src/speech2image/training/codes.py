"""Code grids of a corpus: encoded once by a frozen codec, memory-mapped, dealt in batches by step.

Here are the codec a diffusion run takes, the store of its codes, and the training batches made of them, so that
the codec never runs in a training step.  Codecs are in `codecs/`, their training in `codec_fit.py`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import Dataset
from tqdm import tqdm

from speech2image.codecs.codec import Codec
from speech2image.data.batches import CaptionTable, sentence_rows
from speech2image.data.corpus import Corpus
from speech2image.data.embeddings import Embeddings
from speech2image.data.order import WHOLE, Share, addressed_rng
from speech2image.data.pixels import CropTable
from speech2image.data.store import RaggedStore, RaggedWriter, is_complete
from speech2image.data.turns import one_at_a_time
from speech2image.data.words import WordTable
from speech2image.errors import ConfigError, DataError
from speech2image.images.pyramid import pyramid
from speech2image.training.runs import Run, all_runs, open_run

ENCODE_IMAGES = 256
"""Images encoded at a time."""


class CodecFromRun:
    """The codec of a diffusion run: a trained or imported one, frozen.

    Args:
        run: codec run folder; `auto`: the newest finished codec on the same corpus and image size.
        num_views: crops (each mirrored or not) of every training image that are encoded.
    """

    def __init__(self, run: str = "auto", num_views: int = 8) -> None:
        self.run, self.num_views = run, num_views

    def resolve(self, runs: Path, corpus_name: str, image_px: int) -> Run:
        """Return the codec's run.

        Raises:
            ConfigError: `auto` finds no finished codec of this corpus and size.
            DataError: the named run does not exist, is no codec, or paints another size.
        """
        if self.run != "auto":
            run = open_run(self.run, runs, "codec")
            if run.config["codec"]["image_px"] != image_px:
                raise DataError(
                    f"codec.run={self.run} codes images of {run.config['codec']['image_px']} px, the corpus"
                    f" has data.image_px={image_px}",
                    f"Type: data.image_px={run.config['codec']['image_px']}, or name another codec",
                )
            return run
        found = [
            run for run in all_runs(runs)
            if run.stage == "codec" and run.info.get("corpus") == corpus_name
            and run.info.get("status") in ("finished", "imported")
            and run.config["codec"]["image_px"] == image_px
        ]  # fmt: skip
        if not found:
            raise ConfigError(
                f"codec.run=auto: there is no finished codec on {corpus_name} at {image_px} px below {runs}/",
                f"Train one first (speech2image train experiment=<codec> data={corpus_name}), "
                "or name one: codec.run=runs/<id>",
            )
        return found[-1]


# ---- the store --------------------------------------------------------------------------------
def codes_folder(corpus: Corpus, codec_fingerprint: str, split: str, num_views: int) -> Path:
    """Return where the codes of a split by one codec lie: beside the corpus they were made of."""
    return corpus.folder / "codes" / f"{split}_{codec_fingerprint}_{num_views}views"


def encode_corpus(
    corpus: Corpus, codec: Codec, split: str = "train", num_views: int = 8, device: torch.device | None = None
) -> RaggedStore:
    """Encode every image of a split once, or open what is there already; a killed session goes on.

    Args:
        corpus: prepared corpus.
        codec: frozen; it is moved to `device`.
        split: `train`, `val` or `test`.
        num_views: random crops of each image, mirrored with probability 1/2 where the corpus allows it.
        device: where to encode; None: the CPU.

    Returns: a store with one item an image, `(V, L)` int32, keyed by image.
    Raises:  ConfigError: the corpus was prepared for smaller images than the codec takes.
        DataError: what lies there was made by another codec, or is damaged; it is left as it is.
    """
    crops, name = CropTable(corpus, split, codec.image_px), codec.fingerprint()
    path = codes_folder(corpus, name, split, num_views)
    fingerprint = store_fingerprint(corpus, name, num_views)
    with one_at_a_time(path):
        if (path / "store.json").is_file():
            check_store(RaggedStore.open(path), name)
        if not is_complete(path, fingerprint):
            keys = [record.key for record in corpus.records(split)]
            _write_codes(path, fingerprint, keys, crops, codec.to(device or torch.device("cpu")), num_views)
    return RaggedStore.open(path)


def _write_codes(
    path: Path, fingerprint: str, keys: list[str], crops: CropTable, codec: Codec, num_views: int
) -> None:
    writer = RaggedWriter(path, keys, np.int32, fingerprint)
    bar = tqdm(total=len(keys), initial=writer.next_index, desc=f"encode {path.name.split('_')[0]}", unit="img",
               disable=None)  # fmt: skip
    at_a_time = max(1, ENCODE_IMAGES // num_views)
    try:
        while writer.next_index < len(keys):
            images = np.arange(writer.next_index, min(len(keys), writer.next_index + at_a_time))
            for tokens in _encode_views(crops, codec, images, num_views):
                writer.append(tokens)
            bar.update(len(images))
        writer.commit()
    finally:
        writer.close()
        bar.close()


def store_fingerprint(corpus: Corpus, codec_fingerprint: str, num_views: int) -> str:
    """Return what a store of codes depends on, readable: codec, corpus, views."""
    return f"codec {codec_fingerprint}, corpus {corpus.fingerprint}, views {num_views}"


def _encode_views(
    crops: CropTable, codec: Codec, images: npt.NDArray[np.int64], num_views: int
) -> list[npt.NDArray[np.int32]]:
    """Return the tokens `(V, L)` of each image; views are functions of the image's place alone."""
    device = next(codec.parameters()).device
    views = [
        crops.random(np.full(num_views, image), addressed_rng(0, "codes/views", int(image)))
        for image in images
    ]
    pixels = torch.cat(views).to(device)
    tokens = codec.encode(pyramid(pixels, (codec.image_px,)).levels[0])
    numbers: npt.NDArray[np.int32] = tokens.to(torch.int32).cpu().numpy()
    return list(numbers.reshape(len(images), num_views, -1))


def check_store(store: RaggedStore, codec_fingerprint: str) -> None:
    """Refuse a store of codes that another codec made.

    Raises:  DataError: names the codec found and the one expected.
    """
    made_by = store.fingerprint.removeprefix("codec ").split(",")[0]
    if made_by != codec_fingerprint:
        raise DataError(
            f"{store.path}: these codes were made by codec {made_by}, expected codec {codec_fingerprint}",
            "Name the codec they belong to (codec.run=…), or delete the folder: it is made anew.",
        )


# ---- batches ----------------------------------------------------------------------------------
class CodeBatches(Dataset[dict[str, Any]]):
    """Batches for diffusion: the code grid of one view of an image, and what is told about it.

    Item: `tokens` `(B, L)` int64, and `(B,)` int64 `class_id`, `image_index` (place in `corpus.records(split)`)
    and `utterance_index` (place in `corpus.utterances(split)`); with embeddings `sentence` `(B, D)` float32;
    with words `words` `(B, N, Dw)` float16 and, where utterances differ in length, `mask` `(B, N)` bool.

    Args:
        corpus: prepared corpus.
        split: its split; images without a recording are left out.
        store: from `encode_corpus`.
        codec_fingerprint: of the codec that will decode; a store of another one is refused.
        embeddings: the array `sentence` `(N, D)` with a row for each utterance of the split, and words where
            the network reads them; None: it reads neither.
        batch_size: images in a batch B; at most as many as the split has.
        seed: root of all draws.
        share: part of every batch that is served; B is its size then.

    Raises:
        DataError: the store is of another codec, or an utterance has no embedding.
        ConfigError: a batch cannot be shared equally.
    """

    def __init__(
        self, corpus: Corpus, split: str, store: RaggedStore, codec_fingerprint: str,
        embeddings: Embeddings | None, batch_size: int, seed: int, share: Share = WHOLE,
    ) -> None:  # fmt: skip
        check_store(store, codec_fingerprint)
        self.store = store
        self.rows = np.array([store.index(record.key) for record in corpus.records(split)], np.int64)
        self.captions = CaptionTable(corpus, split)
        self.class_ids = corpus.class_ids(split)
        self.sentences = None if embeddings is None else sentence_rows(corpus, split, embeddings)
        self.words: WordTable | None = None
        if embeddings is not None and embeddings.words is not None:
            self.words = WordTable(corpus, split, embeddings)
        self.seed, self.batch_size = seed, min(batch_size, len(self.captions.images))
        self.share = share
        share.rows(self.batch_size)

    def __len__(self) -> int:
        """Return the batches of one epoch; training goes on beyond it with higher step numbers."""
        return len(self.captions.images) // self.batch_size

    def __getitem__(self, step: int) -> dict[str, Any]:
        images, utterances = self.captions.batch(self.batch_size, self.seed, step, "codes")
        rows = self.rows[images]
        views = addressed_rng(self.seed, "codes/view", step).integers(0, self.store.shapes[rows, 0])
        own = self.share.rows(len(images))
        images, utterances, rows, views = images[own], utterances[own], rows[own], views[own]
        tokens = np.stack([self.store[row][view] for row, view in zip(rows, views, strict=True)])
        return self._told(utterances) | {
            "tokens": torch.from_numpy(tokens.astype(np.int64)),
            "class_id": torch.from_numpy(self.class_ids[images]),
            "image_index": torch.from_numpy(images),
            "utterance_index": torch.from_numpy(utterances),
        }

    def _told(self, utterances: npt.NDArray[np.int64]) -> dict[str, Any]:
        told: dict[str, Any] = {}
        if self.sentences is not None:
            told["sentence"] = torch.from_numpy(self.sentences[utterances])
        if self.words is not None:
            words, mask = self.words.batch(utterances)
            told |= {"words": words} if mask is None else {"words": words, "mask": mask}
        return told
