"""Turn a manifest into stores that training reads: spoken captions, mel features, images.

Every stage continues where a killed run stopped, and a finished folder is recognised by its
fingerprint (manifest, files' sizes and times, front end, sizes) without reading a single item.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from speech2image.audio.features import FrontEnd
from speech2image.audio.read import read_wave, write_wave
from speech2image.data.corpus import Corpus
from speech2image.data.layout import Findings
from speech2image.data.manifest import Manifest, Problem, write_manifest
from speech2image.data.store import RaggedStore, RaggedWriter, is_complete
from speech2image.data.whole import write_whole
from speech2image.errors import DataError
from speech2image.images.pyramid import crop_box, resize_short
from speech2image.images.read import read_image
from speech2image.speech.synthesis import make_speaker
from speech2image.types import ImageRecord, Utterance

LOAD_FACTOR = 76 / 64
"""Images are kept this much larger than the crop a model sees, as the papers do (304 for 256)."""

_MAX_WAVE_S = 60.0
Array = npt.NDArray[Any]


def prepare_corpus(
    manifest: Manifest,
    folder: Path,
    front_end: FrontEnd,
    *,
    image_px: int,
    speak: str | None = None,
    max_captions: int = 10,
    on_error: str = "raise",
    threads: int = 2,
) -> Corpus:
    """Speak captions, compute features, crop and resize images; open the result.

    Args:
        manifest: what to prepare.
        folder: where the result goes; nothing is ever written into the corpus itself.
        front_end: acoustic features of the recordings.
        image_px: side of the crops a model will see; images are kept 76/64 times larger.
        speak: engine for captions without a recording (`espeak`, `tacotron2`); None: leave them.
        max_captions: recordings used of each image; the first captions are spoken.
        on_error: `raise`, or `skip` damaged recordings and images and name them in the manifest.
        threads: items in work at the same time.

    Raises:  DataError: damaged items (all counted, the first named) or a folder that cannot be
        written; what was finished is kept and the next call goes on.
    """
    folder = Path(folder)
    chosen = _choose(manifest, speak, max_captions, folder)
    fingerprint = _fingerprint(chosen, front_end, image_px)
    if _is_ready(folder, fingerprint):
        return Corpus(folder, was_ready=True)
    spoken = _speak(chosen, speak, folder) if speak else chosen
    waves = _unique_waves(spoken)
    paths = {wave: spoken.root / wave for wave in waves}
    silent = _fill(
        folder / "mel", waves, np.float32, fingerprint, threads, "mel features", "utt",
        lambda wave: front_end(read_wave(paths[wave], front_end.sample_rate_hz, _MAX_WAVE_S)).astype(np.float32),
    )  # fmt: skip
    by_key = {record.key: record for record in spoken.records}
    blind = _fill(
        folder / "images", list(by_key), np.uint8, fingerprint, threads, "images", "img",
        lambda key: load_image(spoken, by_key[key], image_px),
    )  # fmt: skip
    whole = _without(spoken, silent, blind, on_error)
    write_manifest(folder / "manifest.jsonl", whole)
    record = {"fingerprint": fingerprint, "image_px": image_px, "front_end": dataclasses.asdict(front_end)}
    write_whole(folder / "corpus.json", json.dumps(record, indent=1).encode())
    return Corpus(folder, was_ready=False)


def load_image(manifest: Manifest, record: ImageRecord, image_px: int) -> npt.NDArray[np.uint8]:
    """Return one image as stored: box cropped, shorter side `image_px` * 76 / 64."""
    image = read_image(manifest.image_path(record))
    if record.box is not None:
        image = crop_box(image, record.box)
    if image.size == 0:
        raise DataError(f"{record.path}: its bounding box {record.box} lies outside the image")
    return resize_short(image, int(image_px * LOAD_FACTOR))


def _choose(manifest: Manifest, speak: str | None, max_captions: int, folder: Path) -> Manifest:
    """Keep `max_captions` recordings an image; name the files that spoken captions will have."""
    records = []
    for record in manifest.records:
        kept = sum(utterance.wave is not None for utterance in record.utterances)
        to_speak = max(0, max_captions - kept) if speak else 0
        room, utterances = max_captions, []
        for utterance in record.utterances:
            if utterance.wave is not None:
                wave = utterance.wave if room > 0 else None
                room -= 1
                utterances.append(dataclasses.replace(utterance, wave=wave))
            elif to_speak > 0:
                to_speak -= 1
                path = str((folder / "speech" / f"{utterance.key}.wav").resolve())
                utterances.append(dataclasses.replace(utterance, wave=path, engine=speak))
            else:
                utterances.append(utterance)
        records.append(dataclasses.replace(record, utterances=tuple(utterances)))
    return dataclasses.replace(manifest, records=tuple(records))


def _fingerprint(manifest: Manifest, front_end: FrontEnd, image_px: int) -> str:
    digest = hashlib.sha256(manifest.digest().encode())
    digest.update(repr((front_end, image_px, "1")).encode())
    for path in _sources(manifest):
        try:
            found = os.stat(path)
            digest.update(f"{found.st_size}:{found.st_mtime_ns};".encode())
        except OSError:
            digest.update(b"absent;")
    return digest.hexdigest()[:16]


def _sources(manifest: Manifest) -> Iterator[Path]:
    for record in manifest.records:
        yield manifest.image_path(record)
        for utterance in record.utterances:
            if utterance.wave is not None and not Path(utterance.wave).is_absolute():
                yield manifest.root / utterance.wave


def _is_ready(folder: Path, fingerprint: str) -> bool:
    try:
        record = json.loads((folder / "corpus.json").read_text())
    except (OSError, ValueError):
        return False
    stores = all(is_complete(folder / name, fingerprint) for name in ("mel", "images"))
    return bool(record.get("fingerprint") == fingerprint) and stores and (folder / "manifest.jsonl").is_file()


def _speak(manifest: Manifest, engine: str, folder: Path) -> Manifest:
    """Speak the captions whose files lie below `folder` and are not there yet; name the voices."""
    home = str((folder / "speech").resolve())
    jobs = [
        utterance
        for record in manifest.records
        for utterance in record.utterances
        if utterance.wave is not None and utterance.wave.startswith(home)
    ]
    if not jobs:
        return manifest
    speaker = make_speaker(engine)
    for utterance in tqdm(jobs, desc="speak captions", unit="utt", disable=None):
        path = Path(str(utterance.wave))
        if not path.is_file():
            wave = speaker.speak(utterance.caption, speaker.voice_for(utterance.key))
            write_wave(path, wave, speaker.sample_rate_hz)
    said = {utterance.key for utterance in jobs}

    def named(utterance: Utterance) -> Utterance:
        if utterance.key not in said:
            return utterance
        voice = speaker.voice_for(utterance.key)
        return dataclasses.replace(utterance, speaker=voice.name, engine=speaker.describe(voice))

    records = [
        dataclasses.replace(record, utterances=tuple(map(named, record.utterances))) for record in manifest.records
    ]
    return dataclasses.replace(manifest, records=tuple(records))


def _unique_waves(manifest: Manifest) -> list[str]:
    waves = (utterance.wave for record in manifest.records for utterance in record.utterances)
    return list(dict.fromkeys(wave for wave in waves if wave is not None))


def _fill(
    path: Path, keys: Sequence[str], dtype: npt.DTypeLike, fingerprint: str, threads: int, what: str, unit: str,
    make: Callable[[str], Array],
) -> dict[str, str]:  # fmt: skip
    """Fill one store in order; return the damaged keys with what was found."""
    if not is_complete(path, fingerprint):
        writer = RaggedWriter(path, keys, dtype, fingerprint)

        def attempt(key: str) -> Array:
            try:
                return make(key)
            except DataError:
                return np.zeros(0, dtype)  # an empty item marks the damage, also for a later session

        rest = iter(keys[writer.next_index :])
        with ThreadPoolExecutor(threads) as pool, tqdm(
            total=len(keys), initial=writer.next_index, desc=what, unit=unit, disable=None
        ) as bar:
            try:
                while chunk := list(islice(rest, 64)):
                    for array in pool.map(attempt, chunk):
                        writer.append(array)
                    bar.update(len(chunk))
            except BaseException:
                writer.close()
                raise
        writer.commit()
    store = RaggedStore.open(path)
    damaged = {}
    for row in np.flatnonzero(np.diff(store.offsets) == 0):
        key = store.keys[row]
        try:
            make(key)
            damaged[key] = "it could not be read when the store was made"
        except DataError as error:
            damaged[key] = error.message
    return damaged


def _without(manifest: Manifest, silent: dict[str, str], blind: dict[str, str], on_error: str) -> Manifest:
    """Leave damaged recordings and images out of the manifest, or raise them all together."""
    findings = Findings(on_error)
    findings.problems += [Problem("damaged recording", wave, message) for wave, message in silent.items()]
    findings.problems += [Problem("damaged image", key, message) for key, message in blind.items()]
    total = len(manifest.records) + len(_unique_waves(manifest))
    findings.finish(total, "images and recordings")
    records = []
    for record in manifest.records:
        if record.key in blind:
            continue
        utterances = tuple(
            dataclasses.replace(utterance, wave=None) if utterance.wave in silent else utterance
            for utterance in record.utterances
        )
        records.append(dataclasses.replace(record, utterances=utterances))
    problems = (*manifest.problems, *findings.problems)
    return dataclasses.replace(manifest, records=tuple(records), problems=problems)
