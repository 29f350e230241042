"""Writes run folders as training, generation and evaluation leave them, with real small files.

The birds are ellipses, the captions are tones, the curves are exponentials with noise: enough for
every reader of a run folder to work on real PNG, wav and JSON-lines files.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
from PIL import Image, ImageDraw

PAINTS = {
    "red": (205, 50, 45), "yellow": (240, 200, 40), "blue": (50, 100, 210), "green": (60, 150, 70),
    "brown": (130, 85, 50), "black": (40, 40, 45), "white": (240, 240, 235), "orange": (235, 130, 30),
}  # fmt: skip
NAMES = tuple(PAINTS)


@dataclass(frozen=True)
class Spoken:
    """One made-up test utterance."""

    key: str
    caption: str
    class_name: str
    body: str
    wing: str
    belly: str


def utterances(num: int) -> list[Spoken]:
    """Return `num` utterances of `num // 2` species; captions name three colours."""
    made = []
    for place in range(num):
        species = place // 2
        body, wing, belly = (NAMES[(species * k + k) % len(NAMES)] for k in (1, 3, 5))
        name = f"{species + 101:03d}.{body}_{wing}_warbler"
        caption = f"a small {body} bird with {wing} wings, a {belly} belly and a short pointed beak"
        if place % 2:
            caption = f"this bird is {body} all over, its wings are {wing} and it has a {belly}ish breast"
        made.append(Spoken(f"{name}/bird_{species:04d}_{place % 2}", caption, name, body, wing, belly))
    return made


def bird(said: Spoken, size_px: int, rng: np.random.Generator, blur: float = 0.0) -> Image.Image:
    """Draw a bird of the spoken colours; `blur` from 0 to 1 mixes it with noise."""
    big = Image.new("RGB", (256, 256), tuple(int(v) for v in rng.integers(150, 230, 3)))
    pen = ImageDraw.Draw(big)
    dx, dy = rng.integers(-18, 18, 2)
    pen.line((110 + dx, 190 + dy, 104 + dx, 236), fill=(90, 70, 50), width=5)
    pen.line((138 + dx, 190 + dy, 140 + dx, 236), fill=(90, 70, 50), width=5)
    pen.polygon([(30 + dx, 130 + dy), (90 + dx, 120 + dy), (80 + dx, 165 + dy)], fill=PAINTS[said.wing])
    pen.ellipse((60 + dx, 90 + dy, 190 + dx, 205 + dy), fill=PAINTS[said.body])
    pen.ellipse((95 + dx, 140 + dy, 185 + dx, 203 + dy), fill=PAINTS[said.belly])
    pen.ellipse((70 + dx, 112 + dy, 145 + dx, 165 + dy), fill=PAINTS[said.wing])
    pen.ellipse((150 + dx, 50 + dy, 220 + dx, 120 + dy), fill=PAINTS[said.body])
    pen.polygon([(214 + dx, 75 + dy), (246 + dx, 86 + dy), (214 + dx, 95 + dy)], fill=(240, 170, 40))
    pen.ellipse((185 + dx, 70 + dy, 197 + dx, 82 + dy), fill=(10, 10, 10))
    small = np.asarray(big.resize((size_px, size_px), Image.Resampling.BOX), dtype=np.float64)
    noise = rng.normal(128.0, 50.0, small.shape)
    return Image.fromarray(np.clip((1 - blur) * small + blur * noise, 0, 255).astype(np.uint8))


def write_wave(path: Path, seconds: float, rng: np.random.Generator, rate_hz: int = 22_050) -> None:
    """Write a vowel-like gliding tone with pauses."""
    time = np.arange(int(seconds * rate_hz)) / rate_hz
    pitch = 130 + 30 * np.sin(2 * np.pi * 0.7 * time + rng.uniform(0, 6))
    phase = 2 * np.pi * np.cumsum(pitch) / rate_hz
    peaks = 700 + 400 * np.sin(2 * np.pi * 2.1 * time + rng.uniform(0, 6))
    wave = sum(np.exp(-(((k * pitch - peaks) / 450) ** 2)) * np.sin(k * phase) for k in range(1, 24))
    wave = wave * (0.5 + 0.5 * np.sin(2 * np.pi * 3.3 * time)) ** 2 + rng.normal(0, 0.01, len(time))
    soundfile.write(path, 0.5 * wave / np.abs(wave).max(), rate_hz, subtype="PCM_16")


def write_corpus(root: Path, num: int, size_px: int = 64) -> list[dict[str, object]]:
    """Write real pictures and recordings; return the part of a manifest line they make."""
    root.mkdir(parents=True, exist_ok=True)
    lines: list[dict[str, object]] = []
    for place, said in enumerate(utterances(num)):
        rng = np.random.default_rng(1000 + place)
        bird(said, size_px, rng).save(root / f"real_{place}.png")
        write_wave(root / f"said_{place}.wav", 2.6 + 0.3 * (place % 5), rng)
        lines.append({
            "utterance": said.key, "image_key": said.key[:-2], "image_file": str(root / f"real_{place}.png"),
            "class_id": place // 2, "class_name": said.class_name, "caption": said.caption,
            "attributes": {"body": said.body}, "wave": str(root / f"said_{place}.wav"), "split": "test",
        })  # fmt: skip
    return lines


def write_journal(path: Path, stage: str, steps: int, seed: int, level: float) -> None:
    """Write losses, rates and validation numbers of a run of `steps` steps."""
    rng = np.random.default_rng(seed)
    lines: list[dict[str, object]] = [{"step": 0, "time": 1.7e9, "kind": "event", "event": "started"}]
    for step in range(10, steps + 1, 10):
        fall = np.exp(-3.0 * step / steps)
        line: dict[str, object] = {"step": step, "time": 1.7e9 + step * 0.21, "kind": "train", "lr": 2e-4}
        line["images_per_s"] = 300 + 12 * rng.normal()
        if stage == "encoder":
            line |= {
                "loss": 4 * fall + level + 0.15 * rng.normal(),
                "loss_joint": 3 * fall + 0.1 * rng.normal(),
            }
        else:
            line |= {"loss_g": 6 * level + 3 * fall + 0.5 * rng.normal(), "loss_kl": 0.2 + 0.1 * rng.random()}
            line |= {"loss_d_32": 1 + 0.2 * rng.normal(), "loss_d_64": 1.4 - level + 0.2 * rng.normal()}
        lines.append(line)
        if step % (steps // 10) == 0:
            name = "val_recall@10" if stage == "encoder" else "val_attribute_accuracy"
            value = (0.95 - 0.3 * level) * (1 - fall)
            lines.append({"step": step, "time": 1.7e9 + step * 0.21, "kind": "val", name: value})
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def write_metrics(path: Path, values: dict[str, tuple[float, float, float, float | None, bool]]) -> None:
    """Write metrics.json from name -> (value, low, high, chance, higher is better)."""
    metrics = [
        {"name": name, "value": value, "low": low, "high": high, "level": 0.95, "count": 480, "unit": "fraction" if chance else "",
         "higher_is_better": better, "chance": chance, "note": "colour heads of the probe" if chance else ""}
        for name, (value, low, high, chance, better) in values.items()
    ]  # fmt: skip
    content = {"protocol": "spoken_birds", "split": "test", "created": "2026-11-02T10:00:00", "metrics": metrics,
               "details": {"probe_accuracy_on_real": 0.9871}, "versions": {"torch": "2.11.0"},
               "weights": "sha256 4f2a"}  # fmt: skip
    path.write_text(json.dumps(content, indent=1))


def write_run(
    folder: Path, lines: list[dict[str, object]], experiment: str, stage: str = "gan", seed: int = 0,
    level: float = 0.3, steps: int = 2000, num_samples: int = 2, size_px: int = 64, corpus: str = "spoken_birds",
) -> Path:  # fmt: skip
    """Write a whole run folder; `level` from 0 (good) to 1 (noise) says how well it paints."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    about = {
        "run_id": folder.name, "stage": stage, "experiment": experiment, "corpus": corpus, "status": "finished",
        "created": "2026-11-02T09:12:44", "finished": "2026-11-02T09:21:02", "train_seconds": steps * 0.21,
        "train_step": steps, "parameters": {"encoder": 812_345} if stage == "encoder" else {"generator": 1_234_567 + seed, "discriminators": 2_345_678}, "machine": {"cpu": "2 cores", "gpu": None},
        "versions": {"torch": "2.11.0", "speech2image": "0.1.0"},
        "command": f"speech2image train experiment={experiment} seed={seed}",
    }  # fmt: skip
    (folder / "run.json").write_text(json.dumps(about))
    generator = (
        "" if stage == "encoder" else "generator:\n  _target_: speech2image.gan.stackgan.StackGenerator\n"
    )
    encoder = "encoder:\n  _target_: speech2image.speech.cnn_rnn.CnnRnn\n  width: 64\n"
    (folder / "config.yaml").write_text(f"seed: {seed}\n{encoder}{generator}")
    write_journal(folder / "journal.jsonl", stage, steps, seed, level)
    if stage == "encoder":
        write_metrics(folder / "metrics.json", {"recall@10": (0.9521, 0.93, 0.97, 0.0423, True),
                                                "recall@1": (0.6123, 0.57, 0.65, 0.0051, True)})  # fmt: skip
        return folder
    accuracy = 0.96 - 0.6 * level
    write_metrics(folder / "metrics.json", {
        "fid": (21.0 + 80 * level + seed / 7, 20.0 + 80 * level, 23.5 + 80 * level, None, False),
        "attribute_accuracy/mean": (accuracy, accuracy - 0.021, accuracy + 0.019, 0.1254, True),
        "attribute_accuracy/belly": (accuracy - 0.1, accuracy - 0.131, accuracy - 0.07, 0.1254, True),
        "shuffled_speech/mean": (0.1311, 0.1099, 0.1525, 0.1254, False),
        "kid": (0.0123 + 0.1 * level, 0.0101 + 0.1 * level, 0.0147 + 0.1 * level, None, False),
    })  # fmt: skip
    write_pictures(folder, lines, rng, level, num_samples, size_px)
    said = utterances(8)
    (folder / "samples").mkdir()
    for place in range(6):
        sheet = Image.new("RGB", (size_px * 4, size_px * 2))
        for cell, one in enumerate(said):
            blur = level + (1 - level) * (1 - place / 5)
            picture = bird(one, size_px, np.random.default_rng(cell), blur)
            sheet.paste(picture, (cell % 4 * size_px, cell // 4 * size_px))
        sheet.save(folder / "samples" / f"step_{(place + 1) * steps // 6:08d}.png")
    return folder


def write_pictures(
    folder: Path, lines: list[dict[str, object]], rng: np.random.Generator, level: float, num_samples: int, size_px: int
) -> None:  # fmt: skip
    """Write generated/test of a run."""
    home = folder / "generated" / "test"
    home.mkdir(parents=True)
    said = {one.key: one for one in utterances(len(lines))}
    written = []
    for place, line in enumerate(lines):
        for sample in range(num_samples):
            file = f"{place:05d}_{sample}.png"
            one = said.get(str(line["utterance"]), next(iter(said.values())))
            bird(one, size_px, rng, level).save(home / file)
            written.append({**line, "file": file, "seed": 0, "sample": sample})
    (home / "manifest.jsonl").write_text("".join(json.dumps(line) + "\n" for line in written))
