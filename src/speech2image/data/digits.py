"""Make and read `spoken_digits`: people saying digits, paired with handwritten digits.

The recordings lie in the layout of the Free Spoken Digit Dataset, `<digit>_<speaker>_<take>.wav`, and
are referred to where they are; without them espeak-ng speaks the digits.  The images are the 1,797
of scikit-learn's `load_digits` (UCI "Optical Recognition of Handwritten Digits", 8 x 8 pixels).
Which recording belongs to which image is decided here once; `prepare.py` does the rest.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from speech2image.audio.read import write_wave
from speech2image.data.manifest import Manifest, read_manifest, write_manifest
from speech2image.data.order import addressed_rng
from speech2image.data.plain_json import read_json_file
from speech2image.data.whole import write_whole
from speech2image.errors import DataError
from speech2image.speech.synthesis import VOICES, EspeakSpeaker, Voice
from speech2image.types import ImageRecord, Utterance

__all__ = ["DIGIT_WORDS", "IMAGE_PX", "TEST_TAKES", "make_spoken_digits", "scan_spoken_digits"]

DIGIT_WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
TEST_TAKES = (0, 1)
IMAGE_PX = 32
UTTERANCES_PER_IMAGE = 4
_TEST_EVERY = 5  # each fifth image of a digit, in the order of load_digits, is a test image
_NUM_VOICES = 12
_NUM_TAKES = 5
_STAMP, _MANIFEST = "corpus.json", "manifest.jsonl"
_FORMAT = 1
_NAME = re.compile(r"(?P<digit>[0-9])_(?P<speaker>[^_]+)_(?P<take>[0-9]+)\.wav", re.IGNORECASE)
_LAYOUT = "<digit>_<speaker>_<take>.wav, for example 7_jackson_0.wav"


@dataclass(frozen=True, slots=True, order=True)
class _Recording:
    digit: int
    speaker: str
    take: int
    wave: str  # absolute, or relative to the corpus root
    engine: str | None = None


def make_spoken_digits(root: Path, recordings: Path | None = None, seed: int = 0) -> None:
    """Write the images and pair them with recordings below `root`; do nothing where that is done.

    Args:
        root: folder of the corpus; created.
        recordings: folder of recordings, or one that holds a folder `recordings`; takes 0 and 1 of every
            speaker are the test set.  None: espeak-ng speaks 60 recordings of each digit into `root`.
        seed: which recording belongs to which image; images and their division do not depend on it.

    Raises:  DataError: `recordings` is not such a folder, a wav in it is misnamed, or a digit lacks
             training or test recordings; or `root` holds something else.
    Source:  test takes: the data set's own card (its later editions call takes 0 to 4 the test part; the
             suite uses 0 and 1 of ten).  Every training image gets 4 training recordings of its digit,
             all used evenly; every test recording belongs to exactly one test image.
    """
    root = Path(root)
    _check_root(root)
    found = None if recordings is None else _list_recordings(Path(recordings))
    arguments = {"seed": seed, "mirror": False, "recordings": None if found is None else _digest(found)}
    if _read_stamp(root) == arguments:
        return
    (root / _STAMP).unlink(missing_ok=True)
    write_whole(root / _STAMP, _stamp_text(None))
    spoken = _speak_digits(root) if found is None else found
    labels = _write_images(root)
    records = _pair(labels, spoken, seed)
    meta = {
        "images": "scikit-learn load_digits (UCI Optical Recognition of Handwritten Digits)",
        "recordings": "espeak-ng" if recordings is None else str(Path(recordings).resolve()),
        "test_takes": list(TEST_TAKES),
        "seed": seed,
        "mirror": False,
    }
    write_manifest(root / _MANIFEST, Manifest("spoken_digits", root, tuple(records), meta=meta))
    write_whole(root / _STAMP, _stamp_text(arguments))


def scan_spoken_digits(root: Path) -> Manifest:
    """Read the corpus that `make_spoken_digits` wrote.

    Returns: its manifest; test images without a recording have no utterances.
    Raises:  DataError: there is none below `root`, it is unfinished, or files it names are gone.
    """
    root = Path(root)
    if _read_stamp(root) is None:
        raise DataError(
            f"{root}: expected a finished spoken_digits corpus, found none",
            "Make it with: speech2image prepare data=spoken_digits",
        )
    manifest = dataclasses.replace(read_manifest(root / _MANIFEST), root=root)
    wanted = {manifest.image_path(record) for record in manifest.records}
    wanted |= {
        root / said.wave for record in manifest.records for said in record.utterances if said.wave is not None
    }
    missing = sorted(str(path) for path in wanted if not path.is_file())
    if missing:
        raise DataError(
            f"{root}: {len(missing)} files of spoken_digits are missing, the first is {missing[0]}",
            f"Bring them back, or delete {root} and run: speech2image prepare data=spoken_digits",
        )
    return manifest


def _list_recordings(folder: Path) -> list[_Recording]:
    if not folder.is_dir():
        raise DataError(
            f"{folder}: expected a folder of recordings named {_LAYOUT}; found "
            f"{'a file' if folder.exists() else 'nothing'}",
            "Set data.make.recordings to the folder, or to null to have the digits spoken.",
        )
    folder = (folder / "recordings" if (folder / "recordings").is_dir() else folder).resolve()
    names = sorted(path.name for path in folder.iterdir() if path.suffix.lower() == ".wav")
    matches = {name: _NAME.fullmatch(name) for name in names}
    strange = [name for name, match in matches.items() if match is None]
    if strange:
        raise DataError(
            f"{folder}: {len(strange)} of {len(names)} wav files are not named {_LAYOUT}: "
            f"{', '.join(strange[:3])}{', ...' if len(strange) > 3 else ''}",
            "Rename them or move them elsewhere.",
        )
    found = [
        _Recording(int(match["digit"]), match["speaker"], int(match["take"]), str(folder / name))
        for name, match in matches.items()
        if match is not None
    ]
    lacking = [
        f"{digit} has {train} training and {test} test recordings"
        for digit in range(10)
        for train, test in [_count(found, digit)]
        if not train or not test
    ]
    if lacking:
        raise DataError(
            f"{folder}: {len(found)} recordings, but {'; '.join(lacking)} (takes "
            f"{' and '.join(map(str, TEST_TAKES))} are the test set)",
            f"Add recordings named {_LAYOUT}, or set data.make.recordings=null to have the digits spoken.",
        )
    return sorted(found)


def _count(recordings: Sequence[_Recording], digit: int) -> tuple[int, int]:
    takes = [recording.take for recording in recordings if recording.digit == digit]
    test = sum(take in TEST_TAKES for take in takes)
    return len(takes) - test, test


def _speak_digits(root: Path) -> list[_Recording]:
    """Speak every digit in 12 voices, 5 takes each with another pitch and speed, where not done yet."""
    speaker = EspeakSpeaker()
    voices = [VOICES[place * len(VOICES) // _NUM_VOICES] for place in range(_NUM_VOICES)]
    takes = [(digit, voice, take) for digit in range(10) for voice in voices for take in range(_NUM_TAKES)]
    recordings = []
    for digit, voice, take in tqdm(takes, unit="utt", desc="speak digits", disable=None):
        # Middle takes are the voice's own manner, the first and last are its extremes.
        pitch, rate_wpm = voice.pitch + 6 * (take - 2), voice.rate_wpm + 15 * ((2 * take) % _NUM_TAKES - 2)
        manner = Voice(voice.name, voice.language, voice.variant, pitch, rate_wpm)
        wave = Path("recordings") / f"{digit}_{voice.name}_{take}.wav"
        if not (root / wave).is_file():
            write_wave(root / wave, speaker.speak(DIGIT_WORDS[digit], manner), speaker.sample_rate_hz)
        recordings.append(_Recording(digit, voice.name, take, str(wave), speaker.describe(manner)))
    return sorted(recordings)


def _write_images(root: Path) -> np.ndarray:
    """Write the handwritten digits as light strokes on dark; return their labels `(1797,)` int64."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    for number, (strokes, label) in enumerate(zip(digits.images, digits.target, strict=True)):
        path = root / _image_path(number, int(label))
        if path.is_file():
            continue
        small = Image.fromarray(np.rint(strokes * (255 / 16)).astype(np.uint8))
        large = small.resize((IMAGE_PX, IMAGE_PX), Image.Resampling.BICUBIC).convert("RGB")
        encoded = io.BytesIO()
        large.save(encoded, "PNG")
        write_whole(path, encoded.getvalue(), sync=False)
    labels: np.ndarray = digits.target.astype(np.int64)
    return labels


def _image_path(number: int, label: int) -> str:
    return f"images/{label}/{number:04d}.png"


def _pair(labels: np.ndarray, recordings: Sequence[_Recording], seed: int) -> list[ImageRecord]:
    """Give every image its recordings; the records are in the order of `load_digits`."""
    chosen: dict[int, list[_Recording]] = {}
    splits: dict[int, str] = {}
    for digit in range(10):
        images = np.flatnonzero(labels == digit)
        is_test = np.arange(len(images)) % _TEST_EVERY == _TEST_EVERY - 1
        rng = addressed_rng(seed, "digits/pairs", digit)
        own = [recording for recording in recordings if recording.digit == digit]
        train = _shuffled([recording for recording in own if recording.take not in TEST_TAKES], rng)
        test = _shuffled([recording for recording in own if recording.take in TEST_TAKES], rng)
        count = min(UTTERANCES_PER_IMAGE, len(train))
        for place, number in enumerate(rng.permutation(images[~is_test]).tolist()):
            # Walking round and round the recordings uses all of them evenly, none twice for an image.
            chosen[number] = [train[(place * count + step) % len(train)] for step in range(count)]
            splits[number] = "train"
        test_images = rng.permutation(images[is_test]).tolist()
        for place, number in enumerate(test_images):
            chosen[number], splits[number] = test[place :: len(test_images)], "test"
    return [
        _record(number, int(label), splits[number], chosen[number]) for number, label in enumerate(labels)
    ]


def _shuffled(recordings: Sequence[_Recording], rng: np.random.Generator) -> list[_Recording]:
    return [recordings[place] for place in rng.permutation(len(recordings))]


def _record(number: int, digit: int, split: str, recordings: Sequence[_Recording]) -> ImageRecord:
    key = f"{digit}/{number:04d}"
    attributes = {"digit": str(digit)}
    utterances = tuple(
        Utterance(
            key=f"{key}_{place}",
            caption=DIGIT_WORDS[digit],
            caption_index=place,
            wave=recording.wave,
            speaker=recording.speaker,
            engine=recording.engine,
            attributes=dict(attributes),
        )
        for place, recording in enumerate(recordings)
    )
    return ImageRecord(
        key=key,
        path=_image_path(number, digit),
        split=split,
        class_id=digit,
        class_name=DIGIT_WORDS[digit],
        attributes=attributes,
        utterances=utterances,
    )


def _digest(recordings: Sequence[_Recording]) -> str:
    """Return 16 hex digits over the names and places of the recordings."""
    return hashlib.sha256("\n".join(recording.wave for recording in recordings).encode()).hexdigest()[:16]


def _stamp_text(arguments: Mapping[str, int | str | None] | None) -> bytes:
    return (
        json.dumps({"corpus": "spoken_digits", "format": _FORMAT, "arguments": arguments}) + "\n"
    ).encode()


def _check_root(root: Path) -> None:
    """Refuse a folder that holds anything but this corpus."""
    if root.exists() and not root.is_dir():
        raise DataError(
            f"{root}: expected a folder for the corpus, found a file", "Choose another data.root."
        )
    if root.is_dir() and any(root.iterdir()) and not (root / _STAMP).is_file():
        raise DataError(
            f"{root}: cannot make spoken_digits here, the folder holds something else",
            "Choose an empty folder with data.root=DIR.",
        )
    _read_stamp(root)


def _read_stamp(root: Path) -> dict[str, int | str | None] | None:
    """Return the arguments of a finished corpus, or None; raise where another corpus lies there."""
    path = root / _STAMP
    try:
        stamp = read_json_file(path)
        corpus, arguments = stamp["corpus"], stamp["arguments"]
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{path}: damaged: {error}", f"Delete the folder {root} and run the command again."
        ) from error
    if corpus != "spoken_digits":
        raise DataError(
            f"{root}: holds the corpus {corpus!r}, expected spoken_digits",
            "Choose another folder with data.root=DIR.",
        )
    return arguments if stamp.get("format") == _FORMAT else None
