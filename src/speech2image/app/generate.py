"""`speech2image generate`: paint images from speech, a folder of speech, a text, or a split."""

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

from speech2image.data.corpora import open_corpus
from speech2image.data.whole import write_whole
from speech2image.errors import ConfigError, DataError

_AT_A_TIME = 32
_AUDIO = {".wav", ".flac", ".ogg", ".mp3", ".aiff", ".aif"}


@dataclass
class Request:
    """One utterance to paint: its sentence embedding and what is known about it."""

    name: str
    sentence: np.ndarray
    known: dict[str, Any] = field(default_factory=dict)


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
    if config["speech"] is not None and config["text"] is not None:
        raise ConfigError("speech and text were both given", "Give one of them.")
    painter_run = open_run(config["run"], Path(config["paths"]["runs"]), GENERATORS)
    print(generate(painter_run, config))


def generate(painter_run: Any, config: dict[str, Any]) -> Path:
    """Paint with one generator run; return the folder of PNGs, manifest and contact sheet."""
    if config["speech"] is None and config["text"] is None:
        requests = split_requests(painter_run, config)
        out = Path(config["out"] or split_folder(painter_run, config["split"], config["sampler"]))
    else:
        out, requests = _spoken_requests(painter_run, config)
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
    from speech2image.training.fit import condition_embeddings, resolve_condition

    settings = _with_paths(painter_run.config, config["paths"])
    condition = resolve_condition(settings)
    assert condition is not None
    split = config["split"]
    corpus = open_corpus(settings["data"], condition.audio, config["paths"])
    utterances = corpus.utterances(split)
    if not utterances:
        raise DataError(f"split={split}: {corpus.manifest.corpus} has no utterance in it", "Type: split=test")
    embeddings = condition_embeddings(condition, corpus, split)
    row_of = {key: row for row, key in enumerate(embeddings.keys)}
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
        sentence = embeddings.arrays["sentence"][row_of[utterance.key]]
        requests.append(Request(utterance.key, sentence, known))
    return requests


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


def _spoken_requests(painter_run: Any, config: dict[str, Any]) -> tuple[Path, list[Request]]:
    from speech2image.data.front_ends import front_end_of
    from speech2image.training.runs import load_encoder, open_run

    encoder_id = painter_run.info.get("encoder_run")
    if encoder_id is None:
        raise DataError(
            f"{painter_run.path} was trained on embedding files, no encoder is known for it",
            "Import its encoder (speech2image import) and name it: encoder_run in run.json.",
        )
    encoder_run = open_run(encoder_id, Path(config["paths"]["runs"]), "encoder")
    encoder = load_encoder(encoder_run)[0]
    front_end = front_end_of(encoder_run.config["audio"])
    if config["text"] is not None:
        waves = [_speak(config["text"], config["voice"], painter_run.path / "generated" / "spoken")]
        captions: list[str | None] = [config["text"]]
        out = Path(config["out"] or painter_run.path / "generated" / _slug(config["text"]))
    else:
        source = Path(config["speech"])
        waves = _audio_files(source)
        captions = [None] * len(waves)
        out = Path(config["out"] or painter_run.path / "generated" / _slug(source.stem or "speech"))
    requests = []
    for path, caption in zip(tqdm(waves, desc="listen", unit="file", disable=None), captions, strict=True):
        sentence = _embed_file(path, encoder, front_end)
        known = {"caption": caption, "wave": str(path.resolve()), "utterance": path.stem, "attributes": {}}
        requests.append(Request(path.stem, sentence, known))
    return out, requests


@torch.no_grad()
def _embed_file(path: Path, encoder: Any, front_end: Any) -> np.ndarray:
    from speech2image.audio.read import read_wave
    from speech2image.types import SpeechBatch

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
    return encoder(SpeechBatch(padded, torch.tensor([length]))).sentence[0].float().numpy()


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
    painter = make_painter(painter_run, config, device)
    seed, expected = config["seed"], int(painter_run.info["sentence_dim"])
    found = requests[0].sentence.shape[-1]
    if found != expected:
        raise DataError(
            f"the encoder gives {found} numbers an utterance, the generator {painter_run.path} expects {expected}",
            f"Name the encoder it was trained with: encoder_run in {painter_run.path / 'run.json'}",
        )
    jobs = [(request, sample) for request in requests for sample in range(config["num_images"])]
    lines: list[dict[str, Any]] = []
    sheets, seconds, calls = Sheets(), 0.0, 0
    bar = tqdm(total=len(jobs), desc="paint", unit="img", disable=None)
    for start in range(0, len(jobs), _AT_A_TIME):
        part = jobs[start : start + _AT_A_TIME]
        sentences = torch.from_numpy(np.stack([request.sentence for request, _ in part])).to(device)

        def progress(done: int, total: int, start: int = start, count: int = len(part)) -> None:
            bar.update(start + count * done // total - bar.n)

        addresses = [(request.name, sample) for request, sample in part]
        began = time.perf_counter()
        painted = painter(sentences, addresses, progress)
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


def _effective_sampler(painter_run: Any, config: dict[str, Any]) -> dict[str, Any] | None:
    from speech2image.training.painting import chosen_sampler

    return chosen_sampler(painter_run, config["sampler"]) if painter_run.stage == "diffusion" else None


class Sheets:
    """The first images of a request, and the states of their chains."""

    num_images, num_strips = 64, 12

    def __init__(self) -> None:
        self.images: list[np.ndarray] = []
        self.strip: np.ndarray | None = None

    def add(self, images: np.ndarray, painted: Any) -> None:
        """Keep of a batch `(B, H, W, 3)` uint8 and its `Painted` what there is room for."""
        from speech2image.images.grid import contact_sheet, to_uint8

        self.images += list(images[: max(0, self.num_images - len(self.images))])
        if painted.strip is None:
            return
        frames = [to_uint8(frame[: self.num_strips]) for frame in painted.strip]
        cells = [frame[row] for row in range(len(frames[0])) for frame in frames]
        last = painted.frame_calls[-1]
        labels = [f"{call} of {last}" for call in painted.frame_calls] * len(frames[0])
        self.strip = contact_sheet(cells, len(frames), labels, max(96, images.shape[1]))

    def write(self, out: Path) -> set[str]:
        """Write the sheets; return their names."""
        from speech2image.images.grid import contact_sheet, write_png

        sheets = {"contact_sheet.png": contact_sheet(self.images, min(8, len(self.images)))}
        if self.strip is not None:
            sheets["strip.png"] = self.strip
        for name, sheet in sheets.items():
            write_png(out / name, sheet)
        return set(sheets)


def _finish_folder(out: Path, lines: list[dict[str, Any]], sheets: Sheets, sampling: dict[str, Any]) -> None:
    keep = {line["file"] for line in lines} | sheets.write(out)
    for old in out.glob("*.png"):  # images of an earlier, longer request would belong to nobody
        if old.name not in keep:
            old.unlink()
    write_whole(out / "sampling.json", (json.dumps(sampling, indent=1) + "\n").encode())
    write_whole(out / "manifest.jsonl", "".join(json.dumps(line) + "\n" for line in lines).encode())
