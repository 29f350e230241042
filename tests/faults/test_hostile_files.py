"""A malicious file in every position where a command reads one: nothing runs, one message, exit code 2.

Each payload is shown to do harm where it is loaded the naive way, so that these tests can fail.  Which calls
of the sources could run a file at all is listed in `tests/unit/test_nothing_is_executed.py`.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import pickle
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from speech2image.app.cli import main
from speech2image.errors import Speech2ImageError


class Harm:
    """Makes a folder when it is unpickled."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, (str(self.canary),)


@dataclass(frozen=True)
class Payload:
    """One form of attack: how it is written, and how a naive program would read it."""

    write: Callable[[Path, Path], bytes]
    read: Callable[[Path], Any]


def _torch(is_new: bool) -> Callable[[Path, Path], bytes]:
    def write(path: Path, canary: Path) -> bytes:
        held = io.BytesIO()
        content = {
            "state_dict": {"a.weight": torch.zeros(3)},
            "a.weight": torch.ones(2),
            "extra": Harm(canary),
        }
        torch.save(content, held, _use_new_zipfile_serialization=is_new)
        return held.getvalue()

    return write


def _numpy(path: Path, canary: Path) -> bytes:
    held, value = io.BytesIO(), np.array([Harm(canary), 1], dtype=object)
    if path.suffix == ".npz":
        np.savez(held, index=value, offsets=value, shapes=value)
    else:
        np.save(held, value)
    return held.getvalue()


def _load_numpy(path: Path) -> None:
    found = np.load(path, allow_pickle=True)
    if path.suffix == ".npz":
        found["index"]


PAYLOADS = {
    "torch": Payload(_torch(True), lambda path: torch.load(path, weights_only=False)),
    "old torch": Payload(_torch(False), lambda path: torch.load(path, weights_only=False)),
    "pickle": Payload(
        lambda _, canary: pickle.dumps([1, Harm(canary)], protocol=2),
        lambda path: pickle.loads(path.read_bytes()),
    ),
    "numpy": Payload(_numpy, _load_numpy),
    "yaml": Payload(
        lambda _, canary: f"!!python/object/apply:os.mkdir ['{canary}']\n".encode(),
        lambda path: yaml.unsafe_load(path.read_bytes()),
    ),
}


@dataclass(frozen=True)
class Position:
    """One place where a file is read: where it lies, and the words that make a command read it."""

    file: str
    words: tuple[str, ...]


def _import(system: str, *more: str) -> Position:
    return Position("received.pth", ("import", f"system={system}", "checkpoint={file}", *more))


def _train(file: str, *words: str) -> Position:
    return Position(file, ("train", *words, *_TINY))


_TINY = (
    "data.make.num_train_species=3", "data.make.num_test_species=2", "data.make.images_per_species=2",
    "data.make.captions_per_image=1", "data.max_captions=1", "data.root={birds}", "logger=none",
    "trainer.max_steps=1", "trainer.batch_size=2", "trainer.accelerator=cpu",
)  # fmt: skip
_CUB = ("prepare", "data=cub200", "data.root={cub}", "data.max_captions=1", "data.speak=null")
_GAN = ("experiment=stackgan_v2_birds", "generator.gf_dim=4", "generator.df_dim=4")

POSITIONS: dict[str, Position] = {
    **{f"cub {file}": Position(f"cub/{file}", _CUB)
       for file in ("train/filenames.pickle", "train/class_info.pickle", "test/filenames.pickle", "test/class_info.pickle")},
    "published embeddings": _train("e.pickle", *_GAN, "encoder=published", "encoder.train={file}", "encoder.test={file}"),
    "feature file": _train("f.pickle", "experiment=li_et_al_birds", "vision=feature_file", "vision.train={file}", "vision.test={file}"),
    **{f"import {system}": _import(system)
       for system in ("stackgan_v2", "li_et_al", "sen", "speechclip", "vqgan", "vq_diffusion", "s2ivq_d")},
    "import discriminators": Position("netD0.pth", ("import", "system=stackgan_v2", "checkpoint={generator}", "discriminators=[{file}]")),
    "import code map": Position("map.pt", ("import", "system=vqgan", "checkpoint={codec}", "code_map={file}")),
    "teacher": _train("w.pth", "experiment=li_et_al_birds", "vision=googlenet", "vision.weights_path={file}"),
    "clip text weights": _train("w.pth", *_GAN, "encoder=clip_text", "encoder.weights_path={file}", "encoder.vocabulary_path={merges}",
                                "encoder.vocabulary_sha256=null"),
    "spoken by tacotron2": Position("work/weights/tacotron2/tacotron2_english_characters_1500_epochs_wavernn_ljspeech.pth",
                                    ("prepare", "data.speak=tacotron2", *_TINY[:6])),
}  # fmt: skip
POSITIONS["safetensors name"] = Position(
    "received.safetensors", ("import", "system=sen", "checkpoint={file}")
)


@pytest.fixture(scope="module")
def released(tmp_path_factory: pytest.TempPathFactory, tiny_cub: Path) -> dict[str, str]:
    """Whole files that stand beside a hostile one."""
    from speech2image.codecs.vqgan import VqGan
    from speech2image.gan.stackgan import StackGenerator

    folder = tmp_path_factory.mktemp("released")
    generator = StackGenerator(1024, condition_dim=8, noise_dim=8, gf_dim=4, num_stages=1)
    torch.save(generator.state_dict(), folder / "netG_1.pth")
    codec = VqGan(
        channels=32, channel_mult=[1, 1], num_res_blocks=1, attn_px=[], latent_dim=8, num_codes=16, code_dim=8
    )
    torch.save({"state_dict": codec.state_dict()}, folder / "last.ckpt")
    (folder / "merges.txt.gz").write_bytes(gzip.compress(b"#version\nb i\n"))
    names = {"generator": "netG_1.pth", "codec": "last.ckpt", "merges": "merges.txt.gz"}
    return {
        "tiny_cub": str(tiny_cub),
        "shared": str(folder),
        **{key: str(folder / name) for key, name in names.items()},
    }


def _run(words: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    capsys.readouterr()
    code = main(words)
    return code, capsys.readouterr().err


def _is_one_message(code: int, said: str) -> None:
    assert code == 2, said
    assert said.count("speech2image: ") == 1 and "Traceback" not in said, said


def _does_harm(payload: Payload, path: Path, canary: Path) -> None:
    assert not canary.exists(), "the file was executed"
    payload.read(path)
    assert canary.is_dir(), "the file must be able to do harm, else this test proves nothing"
    canary.rmdir()


@pytest.mark.parametrize("name", POSITIONS)
def test_code_in_a_file_never_runs(
    name: str, tmp_path: Path, released: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    position, canary, shared = POSITIONS[name], tmp_path / "canary", Path(released["shared"])
    file = tmp_path / position.file
    if position.file.startswith("cub/"):
        shutil.copytree(released["tiny_cub"], tmp_path / "cub")
    file.parent.mkdir(parents=True, exist_ok=True)
    homes = {"runs": tmp_path, "weights": tmp_path, "data": shared, "cache": shared}
    paths = [f"paths.{key}={home / 'work' / key}" for key, home in homes.items()]
    places = {"file": str(file), "work": str(tmp_path / "work"), "cub": str(tmp_path / "cub"), **released}
    places["birds"] = str(shared / "birds")
    words = [word.format(**places) if "{" in word else word for word in position.words]
    for kind, payload in PAYLOADS.items():
        if words[0] == "train" and kind not in (
            "torch",
            "pickle",
        ):  # a corpus is made before the file is read
            continue
        file.write_bytes(payload.write(file, canary))
        code, said = _run([*words, *paths], capsys)
        _is_one_message(code, said)
        assert file.name in said or str(file.parent) in said, "the message must name the file"
        _does_harm(payload, file, canary)


# ---- readers that commands reach only after long preparation: called as those call them ---------------
def _checkpoint(path: Path) -> Any:
    from speech2image.training.checkpoint import load_newest

    path.with_suffix(".sha256").write_text(hashlib.sha256(path.read_bytes()).hexdigest() + "\n")
    state, damaged = load_newest(path.parent)
    assert state is None and damaged
    raise Speech2ImageError(damaged[0])


def _store(path: Path) -> Any:
    from speech2image.data.store import RaggedStore, RaggedWriter

    content = path.read_bytes()
    path.unlink(missing_ok=True)
    writer = RaggedWriter(path.parent, ["a"], np.float32, "f")
    writer.append(np.zeros((2, 2), np.float32))
    writer.commit()
    path.write_bytes(content)
    return RaggedStore.open(path.parent)


def _readers() -> dict[str, tuple[str, Callable[[Path], Any]]]:
    from speech2image.data.embeddings import read_embeddings, read_teacher_features
    from speech2image.hub.released import load_released
    from speech2image.hub.weights import read_weights
    from speech2image.metrics.networks import open_network
    from speech2image.metrics.probe import Probe
    from speech2image.speech.cascaded import read_vocabulary
    from speech2image.text.clip_transformer import ClipText, load_clip_text
    from speech2image.training.codec_module import load_perceptual
    from speech2image.vision.branch import InceptionBranch
    from speech2image.vision.clip_tower import ClipTower
    from speech2image.weight_files import read_local_weights

    found: dict[str, tuple[str, Callable[[Path], Any]]] = {
        "weights of a run": ("weights.safetensors", read_weights),
        "checkpoint of a run": ("step_00000001.ckpt", _checkpoint),
        "embeddings of a run": ("test.safetensors", read_embeddings),
        "teacher features": ("f.pickle", read_teacher_features),
        "index of a store": ("index.npz", _store),
        "record of a store": ("store.json", _store),
        "probe": ("probe_32px.safetensors", Probe.load),
        "vocabulary": ("vocabulary.npy", read_vocabulary),
        "clip for keywords": ("clip.pt", lambda path: load_clip_text(ClipText(30, 64, 1, 32), path)),
        "inception branch": ("inception.pth", lambda path: InceptionBranch(weights_path=path)),
        "clip tower": ("clip.pth", lambda path: ClipTower(weights_path=path)),
        "perceptual network": ("lpips.pth", load_perceptual),
        "local weights": ("any.pth", lambda path: read_local_weights(path, "x", "y")),
    }
    for system in ("stackgan_v2", "li_encoder", "sen", "speechclip"):
        found[f"load_released {system}"] = ("a.pth", lambda path, system=system: load_released(system, path))  # type: ignore[misc]
    for network in (
        "inception-v3-compat",
        "pytorch-fid",
        "torchvision-inception",
        "stackgan-birds",
        "vgg16",
        "clip-vit-b-32",
    ):
        file = "a.npz" if network == "stackgan-birds" else "a.pth"
        found[f"network {network}"] = (file, lambda path, network=network: open_network(network, path))  # type: ignore[misc]
    return found


@pytest.mark.parametrize("name", _readers())
def test_code_never_runs_in_a_reader(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, read = _readers()[name]
    for kind, payload in PAYLOADS.items():
        folder, canary = tmp_path / kind, tmp_path / "canary"
        folder.mkdir()
        path = folder / file
        path.write_bytes(payload.write(path, canary))
        if name.startswith("network "):  # the hash of the file is right: an attacker may know how
            digest = hashlib.sha256(path.read_bytes()).hexdigest()
            _with_hash(monkeypatch, digest)
        with pytest.raises(Speech2ImageError):
            read(path)
        _does_harm(payload, path, canary)


def _with_hash(monkeypatch: pytest.MonkeyPatch, digest: str) -> None:
    from speech2image.metrics import networks

    real = networks._read

    def read_any(name: str, path: Path, known: Any) -> tuple[bytes, str]:
        return real(name, path, networks.WeightFile(known.file, digest, known.source))

    if networks._read.__name__ == "_read":
        monkeypatch.setattr(networks, "_read", read_any)
