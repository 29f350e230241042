"""`speech2image generate`: paint images from speech, a folder of speech, a text, a class, or a split."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from speech2image.app.sheets import Sheets
from speech2image.data.corpora import open_corpus
from speech2image.data.whole import write_whole
from speech2image.data.words import pad_words
from speech2image.diffusion.transformer import DiffusionCondition
from speech2image.errors import ConfigError, DataError
from speech2image.types import SpeechBatch

_AT_A_TIME = 32
_SOURCES = ("speech", "text", "class_id")
_AUDIO = {".wav", ".flac", ".ogg", ".mp3", ".aiff", ".aif"}


@dataclass
class Request:
    """One image to paint: what the generator is told, and what is known about the utterance.

    Attributes:
        name: root of its draws and of its file names.
        sentence: `(D,)` float32; None: not read.
        known: goes to the manifest.
        words: `(N, Dw)` float16; None: not read.
        class_id: label; None: not read.
    """

    name: str
    sentence: np.ndarray | None
    known: dict[str, Any] = field(default_factory=dict)
    words: np.ndarray | None = None
    class_id: int | None = None


def run(config: dict[str, Any]) -> None:
    """Paint what was asked for; print the folder."""
    from speech2image.training.runs import GENERATORS, open_run

    if config["num_images"] < 1:
        raise ConfigError(f"num_images: found {config['num_images']}, expected at least 1")
    if config["strip"] < 0:
        raise ConfigError(
            f"strip: found {config['strip']}, expected 0 or more states on the way", "Type: strip=8"
        )
    if config["condition"] not in ("sample", "mean"):
        raise ConfigError(f"condition: found {config['condition']!r}, expected sample or mean")
    given = [key for key in _SOURCES if config[key] is not None]
    if len(given) > 1:
        raise ConfigError(f"{' and '.join(given)} were given together", "Give one of them.")
    painter_run = open_run(config["run"], Path(config["paths"]["runs"]), GENERATORS)
    print(generate(painter_run, config))


def generate(painter_run: Any, config: dict[str, Any]) -> Path:
    """Paint with one generator run; return the folder of PNGs, manifest and contact sheet."""
    if all(config[key] is None for key in _SOURCES):
        requests = split_requests(painter_run, config)
        out = Path(config["out"] or split_folder(painter_run, config["split"], config["sampler"]))
    elif config["class_id"] is not None:
        out, requests = _class_request(painter_run, config)
    else:
        out, requests = _told_requests(painter_run, config)
    paint(painter_run, requests, out, config)
    return out


def split_folder(painter_run: Any, split: str, sampler: dict[str, Any]) -> Path:
    """Return where the images of a split lie: samplers other than the run's own have folders of their own."""
    from speech2image.training.painting import sampler_label

    folder: Path = painter_run.path / "generated"
    return folder / "-".join(filter(None, (split, sampler_label(painter_run, sampler))))


# ---- what to paint ----------------------------------------------------------------------------
def split_requests(painter_run: Any, config: dict[str, Any]) -> list[Request]:
    """Return the utterances of a split of the run's corpus."""
    from speech2image.training.conditions import condition_embeddings, resolve_condition, what_is_read

    settings = _with_paths(painter_run.config, config["paths"])
    condition = resolve_condition(settings)
    assert condition is not None
    split = config["split"]
    corpus = open_corpus(settings["data"], condition.audio, config["paths"])
    utterances = corpus.utterances(split)
    if not utterances:
        raise DataError(f"split={split}: {corpus.manifest.corpus} has no utterance in it", "Type: split=test")
    reads = what_is_read(settings["generator"])
    row_of: dict[str, int] = {}
    if reads.needs_encoder:
        embeddings = condition_embeddings(condition, corpus, split, reads.words)
        row_of = {key: row for row, key in enumerate(embeddings.keys)}
    if reads.class_id:
        _check_classes(painter_run, corpus, split)
    records = corpus.records(split)
    real = export_real(corpus, split, settings["data"]["image_px"])
    chosen = range(len(utterances))
    if config["max_utterances"] is not None and config["max_utterances"] < len(utterances):
        chosen = np.linspace(0, len(utterances) - 1, config["max_utterances"]).astype(int)  # type: ignore[assignment]
    requests = []
    for index in chosen:
        row, utterance = utterances[index]
        record = records[row]
        wave = corpus.wave_path(utterance)
        known = {
            "utterance": utterance.key,
            "image_key": record.key,
            "image_file": str(real[row]),
            "class_id": record.class_id,
            "class_name": record.class_name,
            "caption": utterance.caption,
            "attributes": dict(utterance.attributes),
            "wave": str(wave) if wave else None,
        }
        request = Request(utterance.key, None, known, class_id=record.class_id if reads.class_id else None)
        if reads.needs_encoder:
            request.sentence = embeddings.arrays["sentence"][row_of[utterance.key]]
        if reads.words and embeddings.words is not None:
            request.words = embeddings.words[embeddings.words.index(utterance.key)]
        requests.append(request)
    return requests


def _check_classes(painter_run: Any, corpus: Any, split: str) -> None:
    """Refuse a split with classes that a class-conditional generator has never seen."""
    seen = set(corpus.class_ids("train")) if painter_run.info["status"] != "imported" else set()
    unseen = sorted(set(corpus.class_ids(split)) - seen)
    if unseen:
        known = int(painter_run.info["num_classes"])
        raise DataError(
            f"split={split}: {len(unseen)} classes of {corpus.manifest.corpus} were never told to"
            f" {painter_run.path}, first {unseen[0]}",
            f"Type: class_id=<0 .. {known - 1}>, or split=train for a generator trained on this corpus.",
        )


def _class_request(painter_run: Any, config: dict[str, Any]) -> tuple[Path, list[Request]]:
    """Return the one request of a class and where its images go."""
    from speech2image.training.conditions import what_is_read

    number, known = config["class_id"], painter_run.info.get("num_classes")
    if not what_is_read(painter_run.config["generator"]).class_id:
        raise ConfigError(
            f"class_id={number}: {painter_run.path} is not told of classes", "Give text or speech."
        )
    if not 0 <= number < known:
        raise ConfigError(f"class_id: found {number}, expected 0 .. {known - 1}")
    name = f"class_{number}"
    out = Path(config["out"] or painter_run.path / "generated" / name)
    return out, [Request(name, None, {"class_id": number, "utterance": name, "attributes": {}}, None, number)]


def _with_paths(settings: dict[str, Any], paths: dict[str, Any]) -> dict[str, Any]:
    return {**settings, "paths": paths}


def export_real(corpus: Any, split: str, image_px: int) -> list[Path]:
    """Write the real images of a split, centre crops as the generator learned them; return files."""
    from speech2image.data.batches import ImageBatches
    from speech2image.images.grid import write_png

    folder = corpus.folder / f"real_{split}_{image_px}px"
    records = corpus.records(split)
    files = [(folder / f"{_file_name(record.key)}.png").resolve() for record in records]
    if all(file.is_file() for file in files):
        return files
    batches, row = ImageBatches(corpus, split, 64, image_px), 0
    for step in range(len(batches)):
        for image in batches[step]["image"].permute(0, 2, 3, 1).numpy():
            write_png(files[row], image)
            row += 1
    return files


def _told_requests(painter_run: Any, config: dict[str, Any]) -> tuple[Path, list[Request]]:
    """Return the requests of `speech` or `text`, and where their images go."""
    from speech2image.training.conditions import what_is_read, words_of

    reads = what_is_read(painter_run.config["generator"])
    if not reads.needs_encoder:
        raise ConfigError(
            f"{painter_run.path} hears no speech and reads no text", "Give class_id, or a split."
        )
    encoder, front_end = _encoder_of(painter_run, config)
    if front_end is None and config["speech"] is not None:
        raise ConfigError(f"{painter_run.path} reads captions, it hears no speech", "Type: text='a red bird'")
    text, source = config["text"], Path(config["speech"] or "speech")
    waves: list[Path | None] = [None]
    if text is None:
        waves = [*_audio_files(source)]
    elif front_end is not None:
        waves = [_speak(text, config["voice"], painter_run.path / "generated" / "spoken")]
    out = Path(config["out"] or painter_run.path / "generated" / _slug(text or source.stem or "speech"))
    requests = []
    for path in tqdm(waves, desc="listen", unit="file", disable=None):
        with torch.no_grad():
            said = encoder([text]) if path is None else encoder(_speech_batch(path, front_end))
        name = _slug(str(text)) if path is None else path.stem
        known = {"caption": text, "wave": str(path.resolve()) if path else None}
        known |= {"utterance": name, "attributes": {}}
        words = words_of(said)[0] if reads.words else None
        requests.append(Request(name, said.sentence[0].float().numpy(), known, words))
    return out, requests


def _encoder_of(painter_run: Any, config: dict[str, Any]) -> tuple[Any, Any]:
    """Return the encoder a generator was trained with and its front end, None for captions."""
    from speech2image.config.build import build
    from speech2image.data.front_ends import front_end_of
    from speech2image.training.conditions import reads_captions
    from speech2image.training.runs import load_encoder, open_run

    if reads_captions(painter_run.config["encoder"]):
        return build(painter_run.config["encoder"]), None
    encoder_id = painter_run.info.get("encoder_run")
    if encoder_id is None:
        raise DataError(
            f"{painter_run.path} was trained on embedding files, no encoder is known for it",
            "Import its encoder (speech2image import) and name it: encoder_run in run.json.",
        )
    encoder_run = open_run(encoder_id, Path(config["paths"]["runs"]), "encoder")
    return load_encoder(encoder_run)[0], front_end_of(encoder_run.config["audio"])


def _speech_batch(path: Path, front_end: Any) -> SpeechBatch:
    from speech2image.audio.read import read_wave

    wave = read_wave(path, front_end.sample_rate_hz)
    try:
        features = torch.from_numpy(front_end(wave))[None]
    except DataError as error:
        raise DataError(
            f"{path}: {error.message}", "Give a longer recording, or a folder without it."
        ) from None
    length = min(features.shape[1], front_end.max_frames)
    features = features[:, :length]
    wanted = front_end.pad_frames or length
    padded = torch.nn.functional.pad(features, (0, 0, 0, max(0, wanted - length)), value=front_end.pad_value)
    return SpeechBatch(padded, torch.tensor([length]))


def _audio_files(source: Path) -> list[Path]:
    if source.is_dir():
        found = sorted(path for path in source.rglob("*") if path.suffix.lower() in _AUDIO)
        if not found:
            raise DataError(
                f"speech={source}: the folder holds no recording", f"Expected {', '.join(sorted(_AUDIO))}"
            )
        return found
    if not source.is_file():
        raise DataError(f"speech={source}: there is no such file or folder", "Type: speech=<file or folder>")
    return [source]


def _speak(text: str, voice: str | None, folder: Path) -> Path:
    from speech2image.audio.read import write_wave
    from speech2image.speech.synthesis import VOICES, make_speaker, voice_for

    if voice is not None and voice not in {known.name for known in VOICES}:
        names = ", ".join(known.name for known in VOICES)
        raise ConfigError(f"voice: there is no voice {voice!r}", f"Voices: {names}")
    chosen = next((known for known in VOICES if known.name == voice), None) or voice_for(text)
    speaker = make_speaker("espeak")
    path = folder / f"{_slug(text)}.wav"
    write_wave(path, speaker.speak(text, chosen), speaker.sample_rate_hz)
    return path


def _slug(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9]+", "-", text).strip("-")[:60] or "speech"


def _file_name(key: str) -> str:
    return key.replace("/", "__")


# ---- painting ---------------------------------------------------------------------------------
@torch.no_grad()
def paint(painter_run: Any, requests: Sequence[Request], out: Path, config: dict[str, Any]) -> None:
    """Paint each request `num_images` times into `out`: PNGs, then `contact_sheet.png`, `sampling.json`, with
    `strip` also `strip.png`, and last `manifest.jsonl`.

    Everything drawn is a function of (seed, utterance, sample).
    """
    from speech2image.images.grid import to_uint8, write_png
    from speech2image.training.painting import make_painter

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    painter, seed = make_painter(painter_run, config, device), config["seed"]
    _check_widths(painter_run, requests[0])
    jobs = [(request, sample) for request in requests for sample in range(config["num_images"])]
    lines: list[dict[str, Any]] = []
    sheets, seconds, calls = Sheets(), 0.0, 0
    bar = tqdm(total=len(jobs), desc="paint", unit="img", disable=None)
    for start in range(0, len(jobs), _AT_A_TIME):
        part = jobs[start : start + _AT_A_TIME]
        told = _stacked([request for request, _ in part]).to(device)

        def progress(done: int, total: int, start: int = start, count: int = len(part)) -> None:
            bar.update(start + count * done // total - bar.n)

        addresses = [(request.name, sample) for request, sample in part]
        began = time.perf_counter()
        painted = painter(told, addresses, progress)
        images = to_uint8(painted.images)  # waits for the device
        seconds, calls = seconds + time.perf_counter() - began, painted.calls
        for (request, sample), image in zip(part, images, strict=True):
            file = f"{_file_name(request.name)}_{sample}.png"
            write_png(out / file, image)
            lines.append(
                {"file": file, **request.known, "split": config["split"], "seed": seed, "sample": sample}
            )
        sheets.add(images, painted)
        painter.strip_frames = 0  # the first images are enough
        progress(1, 1)
    bar.close()
    sampling = {
        "images": len(jobs), "seconds": round(seconds, 4), "seconds_per_image": seconds / len(jobs),
        "network_calls": calls, "images_at_a_time": min(_AT_A_TIME, len(jobs)), "device": device.type,
        "threads": torch.get_num_threads(), "sampler": _effective_sampler(painter_run, config),
    }  # fmt: skip
    _finish_folder(out, lines, sheets, sampling)


def _check_widths(run: Any, request: Request) -> None:
    info = run.info
    for part, what in (("sentence", "an utterance"), ("words", "a word")):
        value, expected = getattr(request, part), info.get(f"{part}_dim")
        if part == "sentence":
            expected = info.get("embedding_dim") or expected  # the painter projects whole embeddings
        if value is not None and expected is not None and value.shape[-1] != expected:
            raise DataError(
                f"the encoder gives {value.shape[-1]} numbers {what}, the generator {run.path} expects {expected}",
                f"Name the encoder it was trained with: encoder_run in {run.path / 'run.json'}",
            )


def _stacked(requests: Sequence[Request]) -> DiffusionCondition:
    """Return what a batch of requests is told; words are padded to the longest."""
    words = [request.words for request in requests if request.words is not None]
    sentences = [request.sentence for request in requests if request.sentence is not None]
    classes = [request.class_id for request in requests if request.class_id is not None]
    longest = max((len(own) for own in words), default=0)
    padded, mask = pad_words(words, longest) if words else (None, None)
    return DiffusionCondition(
        torch.from_numpy(np.stack(sentences)) if sentences else None,
        padded,
        None if all(len(own) == longest for own in words) else mask,
        torch.tensor(classes) if classes else None,
    )


def _effective_sampler(painter_run: Any, config: dict[str, Any]) -> dict[str, Any] | None:
    from speech2image.training.painting import chosen_sampler

    return chosen_sampler(painter_run, config["sampler"]) if painter_run.stage == "diffusion" else None


def _painted_before(out: Path) -> set[str]:
    """Return the names of images that an earlier call painted into `out`; other pictures are not ours."""
    from speech2image.report.journal import read_json_lines

    if not (out / "manifest.jsonl").is_file():
        return set()
    names = {str(line.get("file")) for line in read_json_lines(out / "manifest.jsonl")[0]}
    names |= {"strip.png"} if (out / "sampling.json").is_file() else set()
    return {name for name in names if Path(name).name == name and name.endswith(".png")}


def _finish_folder(out: Path, lines: list[dict[str, Any]], sheets: Sheets, sampling: dict[str, Any]) -> None:
    keep = {line["file"] for line in lines} | sheets.write(out)
    for old in _painted_before(out) - keep:  # images of an earlier, longer request would belong to nobody
        (out / old).unlink(missing_ok=True)
    write_whole(out / "sampling.json", (json.dumps(sampling, indent=1) + "\n").encode())
    write_whole(out / "manifest.jsonl", "".join(json.dumps(line) + "\n" for line in lines).encode())
