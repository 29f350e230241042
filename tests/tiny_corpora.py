"""Write tiny corpora in the official layouts: real images, real sounds, some captions unspoken.

Tests load this file with `runpy.run_path`, which works under every import mode of pytest.
"""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import soundfile
from PIL import Image

RATE_HZ = 16_000


def picture(number: int, width: int = 90, height: int = 70) -> Image.Image:
    """A picture with structure, different for each number."""
    rng = np.random.default_rng(number)
    coarse = Image.fromarray(rng.integers(0, 255, (5, 6, 3), dtype=np.uint8))
    return coarse.resize((width, height), Image.Resampling.BICUBIC)


def sound(number: int, seconds: float = 0.4, rate_hz: int = RATE_HZ) -> np.ndarray:
    """A tone with a little noise, different for each number, `(S,)` float32."""
    time_s = np.arange(int(seconds * rate_hz)) / rate_hz
    noise = np.random.default_rng(number).normal(0, 0.01, len(time_s))
    return (0.4 * np.sin(2 * np.pi * (200 + 37 * number) * time_s) + noise).astype(np.float32)


def write_sound(path: Path, number: int, **options: float) -> None:
    """Write `sound(number)` as 16-bit WAV."""
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, sound(number, **options), RATE_HZ, subtype="PCM_16")


def make_cub(
    root: Path, train: int = 3, test: int = 2, images: int = 3, captions: int = 3, spoken: int = 2
) -> Path:
    """Write `train + test` classes in the layout of CUB; the first `spoken` captions have a recording."""
    base = root / "CUB_200_2011"
    names, boxes, number = [], [], 0
    splits: dict[str, tuple[list[str], list[int]]] = {"train": ([], []), "test": ([], [])}
    for class_number in range(1, train + test + 1):
        split = "train" if class_number <= train else "test"
        folder = f"{class_number:03d}.Bird_{class_number}"
        for place in range(images):
            number += 1
            key = f"{folder}/Bird_{class_number}_{place:04d}"
            for kind in ("images", "text"):
                (base / kind / folder).mkdir(parents=True, exist_ok=True)
            picture(number, 90 + number, 70).save(base / "images" / f"{key}.jpg", quality=90)
            lines = [f"bird {number} has caption {index}." for index in range(captions)]
            (base / "text" / f"{key}.txt").write_text("\n".join(lines) + "\n")
            for index in range(spoken):
                seconds = 0.3 + 0.05 * (number % 4) + 0.1 * index
                write_sound(base / "audio" / f"{key}_{index}.wav", 10 * number + index, seconds=seconds)
            names.append(f"{number} {key}.jpg")
            boxes.append(f"{number} 20.0 15.5 40.2 30.9")
            splits[split][0].append(key)
            splits[split][1].append(class_number)
    (base / "images.txt").write_text("\n".join(names) + "\n")
    (base / "bounding_boxes.txt").write_text("\n".join(boxes) + "\n")
    for split, (keys, numbers) in splits.items():
        (root / split).mkdir(parents=True, exist_ok=True)
        (root / split / "filenames.pickle").write_bytes(pickle.dumps(keys, protocol=2))
        (root / split / "class_info.pickle").write_bytes(pickle.dumps(numbers, protocol=2))
    return root


def make_flickr8k(root: Path, images: int = 5) -> Path:
    """Write the layout of Flickr8k: the last image is test, the one before dev; caption 1 is spoken."""
    files = [f"{100 + number}_abc{number}.jpg" for number in range(images)]
    lists = {"trainImages": files[:-2], "devImages": files[-2:-1], "testImages": files[-1:]}
    for folder in ("Flicker8k_Dataset", "Flickr8k_text", "flickr_audio/wavs"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    tokens, recordings, speakers = [], [], []
    for number, file in enumerate(files):
        picture(number, 80, 64).save(root / "Flicker8k_Dataset" / file)
        tokens += [f"{file}#{index}\tA dog number {number} , caption {index} ." for index in range(5)]
        wav = f"{file.removesuffix('.jpg')}_1.wav"
        write_sound(root / "flickr_audio" / "wavs" / wav, number)
        recordings.append(f"{wav} {file} #1")
        speakers.append(f"{wav} {number % 3}")
    (root / "Flickr8k_text" / "Flickr8k.token.txt").write_text("\n".join(tokens) + "\n")
    for name, members in lists.items():
        (root / "Flickr8k_text" / f"Flickr_8k.{name}.txt").write_text("\n".join(members) + "\n")
    (root / "flickr_audio" / "wav2capt.txt").write_text("\n".join(recordings) + "\n")
    (root / "flickr_audio" / "wav2spk.txt").write_text("\n".join(speakers) + "\n")
    return root
