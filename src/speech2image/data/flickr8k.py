"""Flickr8k in its official layout with the Flickr Audio Caption Corpus.

    Flicker8k_Dataset/<name>.jpg                    (the misspelling is the official one)
    Flickr8k_text/Flickr8k.token.txt                name.jpg#k <TAB> caption
    Flickr8k_text/Flickr_8k.{train,dev,test}Images.txt
    flickr_audio/wavs/<name>_<k>.wav  flickr_audio/wav2capt.txt  flickr_audio/wav2spk.txt

Every image is its own class.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

from speech2image.data.layout import (
    Findings,
    caption_problem,
    find_root,
    read_each_line,
    read_lines,
    require_keys,
    small_number,
    unrecorded,
)
from speech2image.data.manifest import Manifest
from speech2image.errors import DataError
from speech2image.types import ImageRecord, Utterance

IMAGES = ("Flicker8k_Dataset", "Flickr8k_Dataset")
_LISTS = {
    "train": "Flickr8k_text/Flickr_8k.trainImages.txt",
    "val": "Flickr8k_text/Flickr_8k.devImages.txt",
    "test": "Flickr8k_text/Flickr_8k.testImages.txt",
}
_TOKENS = "Flickr8k_text/Flickr8k.token.txt"
_EXPECTED = (
    "Expected Flicker8k_Dataset/, Flickr8k_text/Flickr8k.token.txt, "
    "Flickr8k_text/Flickr_8k.{train,dev,test}Images.txt and flickr_audio/ in it. Type: data.root=<that folder>"
)


def scan_flickr8k(root: Path, on_error: str = "raise") -> Manifest:
    """Read the layout of Flickr8k.

    Args:
        root: folder of the corpus.
        on_error: `raise` on missing files, or `skip` them and name them in the manifest.

    Returns: the manifest; the official dev list is `val`.
    Raises:  DataError: not this layout, a missing list, or (`raise`) missing images, captions or
        listed recordings, counted in one message.
    """
    root = find_root(Path(root), (_TOKENS, *_LISTS.values()), "Flickr8k", _EXPECTED).resolve()
    images = next((root / name for name in IMAGES if (root / name).is_dir()), None)
    if images is None:
        raise DataError(f"{root}: there is no {IMAGES[0]}/", _EXPECTED)
    findings = Findings(on_error)
    captions = _captions(root, findings)
    recordings, listed = _recordings(root, findings)
    speakers = _speakers(root)
    lists = {split: [line.strip() for line in read_lines(root / name)] for split, name in _LISTS.items()}
    for split, files in lists.items():
        require_keys(files, root / _LISTS[split])
    records: list[ImageRecord] = []
    for split, files in lists.items():
        for file in files:
            if not (images / file).is_file():
                findings.add("missing image", f"{images.name}/{file}", "there is no such file")
            elif file not in captions:
                findings.add("missing captions", file, f"{_TOKENS} has no line for it")
            else:
                record = _record(root, images / file, split, captions[file], recordings, speakers)
                records.append(dataclasses.replace(record, class_id=len(records)))
    for utterance in () if listed else unrecorded(records):
        wav = f"flickr_audio/wavs/{utterance.key}.wav"
        findings.add("missing wav", wav, "nearly all other images have theirs")
    findings.finish(sum(map(len, lists.values())), "images", len(records))
    return Manifest("flickr8k", root, tuple(records), tuple(findings.problems))


def _record(
    root: Path, image: Path, split: str, captions: dict[int, str],
    recordings: dict[tuple[str, int], str], speakers: dict[str, str],
) -> ImageRecord:  # fmt: skip
    key = image.stem
    utterances = []
    for index, caption in sorted(captions.items()):
        wave = recordings.get((key, index))
        path = f"flickr_audio/wavs/{wave}" if wave else None
        utterances.append(Utterance(f"{key}_{index}", caption, index, path, speakers.get(wave or "")))
    return ImageRecord(key, str(image.relative_to(root)), split, 0, key, utterances=tuple(utterances))


def _captions(root: Path, findings: Findings) -> dict[str, dict[int, str]]:
    """Return the captions of each image by number; an image all of whose lines are damaged is not in it."""
    captions: dict[str, dict[int, str]] = {}
    for number, line in read_each_line(root / _TOKENS):
        name, tab, caption = (line or "").partition("\t")
        file, mark, place = name.rpartition("#")
        index = small_number(place)
        problem = caption_problem(caption)
        if line is None or not tab or not mark or index is None or not caption.strip() or problem:
            found = "no text" if line is None else problem or f"found {line[:60]!r}"
            findings.add("bad caption line", f"{_TOKENS} line {number}", found)
            continue
        captions.setdefault(file, {})[index] = caption.strip()
    return captions


def _recordings(root: Path, findings: Findings) -> tuple[dict[tuple[str, int], str], bool]:
    """Return the file of each recording by image key and caption number, and whether a list names them."""
    path = root / "flickr_audio" / "wav2capt.txt"
    present = {file.name for file in (root / "flickr_audio" / "wavs").glob("*.wav")}
    found: dict[tuple[str, int], str] = {}
    if not path.is_file():
        for name in sorted(present):
            key, _, place = name.removesuffix(".wav").rpartition("_")
            index = small_number(place)
            if index is not None:
                found[key, index] = name
        return found, False
    for number, line in read_each_line(path):
        parts = (line or "").split()
        index = small_number(parts[2].lstrip("#")) if len(parts) == 3 else None
        if index is None:
            what = "no text" if line is None else f"found {line[:60]!r}"
            findings.add("bad line", f"flickr_audio/wav2capt.txt line {number}", what)
        elif parts[0] not in present:
            findings.add("missing wav", f"flickr_audio/wavs/{parts[0]}", "wav2capt.txt lists it")
        else:
            found[parts[1].rpartition(".")[0], index] = parts[0]
    return found, True


def _speakers(root: Path) -> dict[str, str]:
    path = root / "flickr_audio" / "wav2spk.txt"
    if not path.is_file():
        return {}
    return {parts[0]: parts[1] for line in read_lines(path) if len(parts := line.split()) == 2}
