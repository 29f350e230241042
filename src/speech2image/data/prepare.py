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
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from speech2image.audio.features import FrontEnd
from speech2image.audio.read import MAX_WAVE_S, read_wave, write_wave
from speech2image.data.corpus import Corpus
from speech2image.data.front_ends import AnyFrontEnd
from speech2image.data.layout import Findings
from speech2image.data.manifest import Manifest, write_manifest
from speech2image.data.plain_json import read_json_file
from speech2image.data.quarantine import write_quarantine
from speech2image.data.store import RaggedStore, RaggedWriter, is_complete
from speech2image.data.store_index import seal_of
from speech2image.data.whole import write_whole
from speech2image.errors import DataError
from speech2image.images.pyramid import crop_box, resize_short
from speech2image.images.read import read_image
from speech2image.speech.synthesis import make_speaker
from speech2image.types import ImageRecord, Utterance

__all__ = ["LOAD_FACTOR", "load_image", "prepare_corpus"]

LOAD_FACTOR = 76 / 64
"""Images are kept this much larger than the crop a model sees, as the papers do (304 for 256)."""

Array = npt.NDArray[Any]


def prepare_corpus(
    manifest: Manifest,
    folder: Path,
    front_end: AnyFrontEnd | None,
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
        front_end: acoustic features of the recordings; None: captions are read as text, nothing is spoken
            and no recording is looked at.
        image_px: side of the crops a model will see; images are kept 76/64 times larger.
        speak: engine for captions without a recording (`espeak`, `tacotron2`); None: leave them.
        max_captions: recordings used of each image; the first captions are spoken.
        on_error: `raise`, or `skip` damaged recordings and images and name them in the manifest.
        threads: items in work at the same time.

    Returns: the opened corpus; `was_ready` says that there was nothing to do.
    Raises:  DataError: damaged items (all counted, the first ones named) or a folder that cannot be
        written; what was finished is kept and the next call goes on.
    """
    findings = Findings(on_error)
    folder = Path(folder).absolute()
    if front_end is None:
        chosen, speak = _unspoken(manifest, max_captions), None
    else:
        chosen = _choose(manifest, speak, max_captions, folder)
    fingerprint = _fingerprint(chosen, front_end, image_px, folder)
    if _is_ready(folder, fingerprint):
        return Corpus(folder, was_ready=True)
    spoken = _speak(chosen, speak, folder, findings) if speak else chosen
    silent = _fill(_features(spoken, folder, front_end, threads), fingerprint)
    blind = _fill(_pictures(spoken, folder, image_px, threads), fingerprint)
    kept = _without(spoken, silent, blind, findings)
    write_quarantine(folder, kept.problems)
    write_manifest(folder / "manifest.jsonl", kept)
    described = None if front_end is None else dataclasses.asdict(front_end)
    record: dict[str, Any] = {"fingerprint": fingerprint, "image_px": image_px, "front_end": described}
    record["seal"] = seal_of(json.loads(json.dumps(record)), (folder / "manifest.jsonl").read_bytes())
    write_whole(folder / "corpus.json", json.dumps(record, indent=1).encode())
    return Corpus(folder, was_ready=False)


def load_image(manifest: Manifest, record: ImageRecord, image_px: int) -> npt.NDArray[np.uint8]:
    """Return one image as stored: box cropped, shorter side `image_px` * 76 / 64, `(H, W, 3)`.

    Raises:  DataError: the image is damaged or its box lies outside; the message names the file.
    """
    path = manifest.image_path(record)
    image = read_image(path)
    try:
        cropped = image if record.box is None else crop_box(image, record.box)
        return resize_short(cropped, int(image_px * LOAD_FACTOR))
    except DataError as error:
        raise DataError(f"{path}: {error.message}", error.remedy) from None


def _choose(manifest: Manifest, speak: str | None, max_captions: int, folder: Path) -> Manifest:
    """Keep `max_captions` recordings an image; name the files that spoken captions will have."""
    records = []
    for record in manifest.records:
        recorded = sum(utterance.wave is not None for utterance in record.utterances)
        room, to_speak = max_captions, max(0, max_captions - recorded) if speak else 0
        utterances = []
        for utterance in record.utterances:
            if utterance.wave is not None:
                utterances.append(utterance if room > 0 else dataclasses.replace(utterance, wave=None))
                room -= 1
            elif to_speak > 0:
                to_speak -= 1
                path = _spoken_path(folder, utterance, str(speak))
                utterances.append(dataclasses.replace(utterance, wave=str(path), engine=speak))
            else:
                utterances.append(utterance)
        records.append(dataclasses.replace(record, utterances=tuple(utterances)))
    return dataclasses.replace(manifest, records=tuple(records))


def _unspoken(manifest: Manifest, max_captions: int) -> Manifest:
    """Keep the first `max_captions` captions of each image, without their recordings."""
    records = tuple(
        dataclasses.replace(
            record,
            utterances=tuple(
                dataclasses.replace(one, wave=None, speaker=None, engine=None)
                for one in record.utterances[:max_captions]
            ),
        )
        for record in manifest.records
    )
    return dataclasses.replace(manifest, records=records)


def _spoken_path(folder: Path, utterance: Utterance, engine: str) -> Path:
    """Name the file of a spoken caption after its words, too: other words, another file."""
    digest = hashlib.blake2b(f"{engine}\0{utterance.caption}".encode(), digest_size=4).hexdigest()
    return folder / "speech" / f"{utterance.key}.{digest}.wav"


def _is_ours(wave: str, folder: Path) -> bool:
    return Path(wave).is_relative_to(folder / "speech")


def _fingerprint(manifest: Manifest, front_end: AnyFrontEnd | None, image_px: int, folder: Path) -> str:
    """Hash what the stores depend on; files of the corpus count by size and time, never by content."""
    digest = hashlib.sha256(manifest.digest().encode())
    digest.update(repr((front_end, image_px, "2")).encode())
    for path in _sources(manifest, folder):
        try:
            found = os.stat(path)
            locked = (
                "" if os.access(path, os.R_OK) else "locked"
            )  # lifting that changes neither size nor time
            digest.update(f"{found.st_size}:{found.st_mtime_ns}{locked};".encode())
        except OSError:
            digest.update(b"absent;")
    return digest.hexdigest()[:16]


def _sources(manifest: Manifest, folder: Path) -> Iterator[Path]:
    for record in manifest.records:
        yield manifest.image_path(record)
    for wave in _unique_waves(manifest):
        if not _is_ours(wave, folder):
            yield manifest.root / wave


def _is_ready(folder: Path, fingerprint: str) -> bool:
    try:
        record = read_json_file(folder / "corpus.json")
    except (OSError, ValueError):
        return False
    stores = all(is_complete(folder / name, fingerprint) for name in ("mel", "images"))
    return bool(record.get("fingerprint") == fingerprint) and stores and (folder / "manifest.jsonl").is_file()


def _speak(manifest: Manifest, engine: str, folder: Path, findings: Findings) -> Manifest:
    """Speak the captions whose files are to lie below `folder` and are not there yet; name the voices."""
    said: dict[str, Utterance] = {}
    jobs = [
        utterance
        for record in manifest.records
        for utterance in record.utterances
        if utterance.wave is not None and _is_ours(utterance.wave, folder)
    ]
    if not jobs:
        return manifest
    speaker = make_speaker(engine)
    for utterance in tqdm(jobs, desc="speak captions", unit="utt", disable=None):
        path, voice = Path(str(utterance.wave)), speaker.voice_for(utterance.key)
        named = dataclasses.replace(utterance, speaker=voice.name, engine=speaker.describe(voice))
        if not path.is_file():
            try:
                wave = speaker.speak(utterance.caption, voice)
            except DataError as error:
                findings.add("caption that cannot be spoken", utterance.key, error.message)
                named = dataclasses.replace(utterance, wave=None, engine=None)
            else:
                write_wave(path, wave, speaker.sample_rate_hz)
        said[utterance.key] = named
    records = [
        dataclasses.replace(record, utterances=tuple(said.get(one.key, one) for one in record.utterances))
        for record in manifest.records
    ]
    return dataclasses.replace(manifest, records=tuple(records))


def _unique_waves(manifest: Manifest) -> list[str]:
    waves = (utterance.wave for record in manifest.records for utterance in record.utterances)
    return list(dict.fromkeys(wave for wave in waves if wave is not None))


@dataclass(frozen=True)
class _Stage:
    """One store to fill: where, what stands for a damaged item, how to make one, how many at once, its bar."""

    path: Path
    keys: Sequence[str]
    damage: Array
    make: Callable[[str], Array]
    at_once: int
    desc: str
    unit: str

    def attempt(self, key: str) -> Array:
        """Make one item; the empty `damage` marks what cannot be made, also for a later session."""
        try:
            return self.make(key)
        except DataError:
            return self.damage


def _features(manifest: Manifest, folder: Path, front_end: AnyFrontEnd | None, threads: int) -> _Stage:
    """Acoustic features of every recording; without a front end an empty store."""
    if front_end is None:
        return _Stage(folder / "mel", [], np.zeros((0, 1), np.float32), np.asarray, 1, "mel features", "utt")
    dtype, title, at_once = np.dtype(front_end.store_dtype), "mel features", threads
    if not isinstance(front_end, FrontEnd):  # a tower, which uses every core for one utterance
        title, at_once = front_end.name.replace("_", " "), 1

    def make(wave: str) -> Array:
        return front_end(read_wave(manifest.root / wave, front_end.sample_rate_hz, MAX_WAVE_S)).astype(dtype)

    damage = np.zeros((0, front_end.mel_dim), dtype)
    return _Stage(folder / "mel", _unique_waves(manifest), damage, make, at_once, title, "utt")


def _pictures(manifest: Manifest, folder: Path, image_px: int, threads: int) -> _Stage:
    """Every image of the corpus, cropped and resized."""
    by_key = {record.key: record for record in manifest.records}

    def make(key: str) -> Array:
        return load_image(manifest, by_key[key], image_px)

    damage = np.zeros((0, 0, 3), np.uint8)
    return _Stage(folder / "images", list(by_key), damage, make, threads, "images", "img")


def _fill(stage: _Stage, fingerprint: str) -> dict[str, str]:
    """Fill one store in order; return the damaged keys with what was found."""
    if not is_complete(stage.path, fingerprint):
        writer = RaggedWriter(stage.path, stage.keys, stage.damage.dtype, fingerprint)
        rest = iter(stage.keys[writer.next_index :])
        bar = tqdm(
            total=len(stage.keys), initial=writer.next_index, desc=stage.desc, unit=stage.unit, disable=None
        )
        try:
            with ThreadPoolExecutor(stage.at_once) as pool, bar:
                while chunk := list(islice(rest, 16 * stage.at_once)):
                    for array in pool.map(stage.attempt, chunk):
                        writer.append(array)
                        bar.update()
            writer.commit()
        except BaseException:
            writer.close()
            raise
    return _damaged(stage)


def _damaged(stage: _Stage) -> dict[str, str]:
    store = RaggedStore.open(stage.path)
    damaged = {}
    for row in np.flatnonzero(np.diff(store.offsets) == 0):
        key = store.keys[row]
        try:
            stage.make(key)
            damaged[key] = f"it could not be read when the store was made, now it can: rm -r '{stage.path}'"
        except DataError as error:
            damaged[key] = error.message
    return damaged


def _without(
    manifest: Manifest, silent: dict[str, str], blind: dict[str, str], findings: Findings
) -> Manifest:
    """Leave damaged recordings and images out of the manifest, or raise them all together."""
    for wave, message in silent.items():
        findings.add("damaged recording", wave, message)
    paths = {record.key: record.path for record in manifest.records}
    for key, message in blind.items():
        findings.add("damaged image", paths[key], message)
    total = len(manifest.records) + len(_unique_waves(manifest))
    findings.finish(total, "images and recordings", len(manifest.records) - len(blind))
    records = []
    for record in manifest.records:
        utterances = (
            dataclasses.replace(one, wave=None) if one.wave in silent else one for one in record.utterances
        )
        if record.key not in blind:
            records.append(dataclasses.replace(record, utterances=tuple(utterances)))
    problems = (*manifest.problems, *findings.problems)
    return dataclasses.replace(manifest, records=tuple(records), problems=problems)
