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

from speech2image.data.layout import Findings, find_root, read_lines
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
    recordings = _recordings(root, findings)
    speakers = _speakers(root)
    records: list[ImageRecord] = []
    total = 0
    for split, name in _LISTS.items():
        for line in read_lines(root / name):
            file, total = line.strip(), total + 1
            if not (images / file).is_file():
                findings.add("missing image", f"{images.name}/{file}", "there is no such file")
            elif file not in captions:
                findings.add("missing captions", file, f"{_TOKENS} has no line for it")
            else:
                record = _record(root, images / file, split, captions[file], recordings, speakers)
                records.append(dataclasses.replace(record, class_id=len(records)))
    findings.finish(total, "images", len(records))
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
    captions: dict[str, dict[int, str]] = {}
    for number, line in enumerate(read_lines(root / _TOKENS), start=1):
        name, tab, caption = line.partition("\t")
        file, mark, index = name.rpartition("#")
        if not tab or not mark or not index.strip().isdigit() or not caption.strip():
            findings.add("bad caption line", f"{_TOKENS} line {number}", f"found {line[:60]!r}")
            continue
        captions.setdefault(file, {})[int(index)] = caption.strip()
    return captions


def _recordings(root: Path, findings: Findings) -> dict[tuple[str, int], str]:
    """Return the file of each recording by image key and caption number, by list or, without it, by name."""
    path = root / "flickr_audio" / "wav2capt.txt"
    present = {file.name for file in (root / "flickr_audio" / "wavs").glob("*.wav")}
    found: dict[tuple[str, int], str] = {}
    if not path.is_file():
        names = [(name, *name.removesuffix(".wav").rpartition("_")[::2]) for name in sorted(present)]
        return {(key, int(index)): name for name, key, index in names if index.isdigit()}
    for number, line in enumerate(read_lines(path), start=1):
        parts = line.split()
        if len(parts) != 3 or not parts[2].lstrip("#").isdigit():
            findings.add("bad line", f"flickr_audio/wav2capt.txt line {number}", f"found {line[:60]!r}")
        elif parts[0] not in present:
            findings.add("missing wav", f"flickr_audio/wavs/{parts[0]}", "wav2capt.txt lists it")
        else:
            found[parts[1].rpartition(".")[0], int(parts[2].lstrip("#"))] = parts[0]
    return found


def _speakers(root: Path) -> dict[str, str]:
    path = root / "flickr_audio" / "wav2spk.txt"
    if not path.is_file():
        return {}
    return {parts[0]: parts[1] for line in read_lines(path) if len(parts := line.split()) == 2}
