"""Fixtures shared by the layers: a tiny corpus in a temporary folder, and the command line."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def rounds() -> Callable[[int, int], int]:
    """Choose between the sample and the full count of rounds: `SPEECH2IMAGE_FAULTS=full` asks for all."""
    full_asked = os.environ.get("SPEECH2IMAGE_FAULTS") == "full"

    def choose(sample: int, full: int) -> int:
        return full if full_asked else sample

    return choose


@pytest.fixture(scope="session")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for data, cache and runs shared by the tests of one session."""
    return tmp_path_factory.mktemp("workplace")


@pytest.fixture(scope="session")
def place(workplace: Path) -> tuple[str, ...]:
    """Overrides that put everything below `workplace`."""
    return tuple(f"paths.{name}={workplace / name}" for name in ("data", "cache", "runs", "weights"))


@pytest.fixture
def command(
    place: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    """Run one command of the suite in this process: exit code, output, messages."""
    from speech2image.app.cli import main

    def call(*words: str) -> tuple[int, str, str]:
        capsys.readouterr()
        code = main([*words, *place])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


@pytest.fixture(scope="session")
def tiny_cub(workplace: Path) -> Path:
    """A few drawn birds in the official layout of CUB-200."""
    from speech2image.data.birds import make_spoken_birds

    root = workplace / "tiny_cub"
    make_spoken_birds(
        root, num_train_species=5, num_test_species=3, images_per_species=2, captions_per_image=2
    )
    return root


@pytest.fixture(scope="session")
def tiny_clip(workplace: Path) -> tuple[str, ...]:
    """Overrides of `encoder=clip_text`: a small random CLIP text side and a short vocabulary, as local files."""
    import gzip

    from safetensors.torch import save_file

    from speech2image.text.clip_transformer import ClipText

    folder = workplace / "tiny_clip"
    folder.mkdir()
    merges = ["b i", "r d</w>", "bi rd</w>", "r e", "re d</w>"]
    vocabulary = folder / "merges.txt.gz"
    vocabulary.write_bytes(gzip.compress("\n".join(["#version", *merges, ""]).encode()))
    torch.manual_seed(0)
    text = ClipText(2 * 256 + len(merges) + 2, 64, 2, 32)
    torch.nn.init.normal_(text.positional_embedding)
    save_file(dict(text.state_dict()), folder / "clip.safetensors")
    return (
        f"encoder.weights_path={folder / 'clip.safetensors'}", f"encoder.vocabulary_path={vocabulary}",
        "encoder.vocabulary_sha256=null", f"encoder.vocab_size={2 * 256 + len(merges) + 2}", "encoder.width=64",
        "encoder.layers=2", "encoder.embed_dim=32",
    )  # fmt: skip


@pytest.fixture(scope="session")
def tiny_flickr(workplace: Path) -> Path:
    """A few pictures with spoken captions in the official layout of Flickr8k."""
    from PIL import Image

    from speech2image.audio.read import write_wave
    from speech2image.speech.synthesis import make_speaker

    root = workplace / "tiny_flickr"
    speaker, colours = make_speaker("espeak"), ("red", "green", "blue", "white", "black", "yellow")
    tokens, pairs, lists = [], [], {"train": range(8), "dev": range(8, 11), "test": range(11, 15)}
    for number in range(15):
        colour, name = colours[number % len(colours)], f"{1000 + number}_abc.jpg"
        path = root / "Flicker8k_Dataset" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (90 + number, 110), colour).save(path)
        tokens += [f"{name}#{index}\tA {colour} wall seen {index} times ." for index in range(2)]
        wave = speaker.speak(f"a {colour} wall seen from afar", speaker.voice_for(name))
        file = name.replace(".jpg", "_0.wav")
        write_wave(root / "flickr_audio" / "wavs" / file, wave, speaker.sample_rate_hz)
        pairs.append(f"{file} {name} #0")
    texts = {"Flickr8k_text/Flickr8k.token.txt": tokens, "flickr_audio/wav2capt.txt": pairs}
    for split, numbers in lists.items():
        texts[f"Flickr8k_text/Flickr_8k.{split}Images.txt"] = [
            f"{1000 + number}_abc.jpg" for number in numbers
        ]
    for file, lines in texts.items():
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        (root / file).write_text("\n".join(lines) + "\n")
    return root


@pytest.fixture(scope="session")
def painted_run(workplace: Path, place: tuple[str, ...]) -> dict[str, Path]:
    """An encoder and a GAN trained two steps on a few drawn birds, and the images of its 24 test utterances."""
    from speech2image.app.cli import main

    tiny = (
        "data.make.num_train_species=8", "data.make.num_test_species=6", "data.make.images_per_species=4",
        "data.make.captions_per_image=2", "data.max_captions=1", f"data.root={workplace}/birds_to_evaluate",
        "logger=none", "trainer.max_steps=2", "trainer.batch_size=8", "trainer.val_every=2",
        "trainer.log_every=1", "callbacks.checkpoint.every=2", "callbacks.sample_grid.every=2",
    )  # fmt: skip
    small = (
        "generator.gf_dim=4", "generator.df_dim=4", "generator.condition_dim=8", "generator.noise_dim=8",
        "encoder.run=eval_sen",
    )  # fmt: skip
    assert main(["train", "experiment=sen_birds", "name=eval_sen", *tiny, *place]) == 0
    assert main(["train", "experiment=stackgan_v2_birds", "name=eval_gan", *tiny, *small, *place]) == 0
    assert main(["generate", "run=eval_gan", *place]) == 0
    return {path.name.split("-")[0]: path for path in (workplace / "runs").glob("eval_*")}
