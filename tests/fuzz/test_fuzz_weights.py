"""Hostile weight files: a result or one message, in 2 s of processor time, within 1 GB of address space.

Bytes of valid files are mutated, and what bytes alone rarely reach is made on purpose: headers of safetensors that
lie, pickles of torch changed below a right checksum, archives that unfold.  `make test` runs a sample of each kind,
`make faults` all of them; the seeds are the same.
"""

from __future__ import annotations

import functools
import io
import json
import pickle
import pickletools
import runpy
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save
from torch import nn

from speech2image.hub.convert.vqgan import convert_code_map
from speech2image.hub.weights import load_weights, read_foreign, save_weights
from speech2image.metrics.networks import inception_network, stackgan_network
from speech2image.speech.cascaded import read_vocabulary
from speech2image.weight_files import read_local_weights

MUTATIONS = runpy.run_path(str(Path(__file__).parent / "mutations.py"))
Rounds = Callable[[int, int], int]
SAMPLE, FULL = 30, 350


def network() -> nn.Module:
    torch.manual_seed(3)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(5, 6)).half().float()


def torch_file(content: Any, is_new: bool = True) -> bytes:
    held = io.BytesIO()
    torch.save(content, held, _use_new_zipfile_serialization=is_new)
    return held.getvalue()


def trained() -> dict[str, Any]:
    """What training loops save: a state beside an optimizer's, with shared and permuted tensors."""
    made = network()
    optimizer = torch.optim.Adam(made.parameters())
    made[2](torch.ones(1, 5)).sum().backward()
    optimizer.step()
    extra = {"t": torch.arange(6.0).reshape(2, 3).t(), "h": torch.ones(3).bfloat16(), "n": np.float64(2.0)}
    return {"state_dict": made.state_dict(), "optimizer": optimizer.state_dict(), "epoch": 3, **extra}


# ---- made on purpose --------------------------------------------------------------------------
_WRONG: tuple[Any, ...] = (
    0, 1, -1, 2**31, 2**53, 2**63 - 1, 2**64, 10**30, 1.5, "3", None, True, [], {}, [[]], "F64", "F4", "C128", "é" * 2000,
)  # fmt: skip


def lying_safetensors(valid: bytes, rng: np.random.Generator) -> bytes:
    """Return a file whose header is JSON and says something that is not so."""
    length = int.from_bytes(valid[:8], "little")
    header: dict[str, Any] = json.loads(valid[8 : 8 + length])
    for _ in range(int(rng.integers(1, 4))):
        names = [name for name in header if isinstance(header[name], dict) and "shape" in header[name]]
        name = names[int(rng.integers(len(names)))] if names else "a"
        entry = header.setdefault(name, {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]})
        wrong = _WRONG[int(rng.integers(len(_WRONG)))]
        way = int(rng.integers(8))
        if way == 0:
            entry["dtype"] = wrong
        elif way == 1:
            entry["shape"] = [wrong] * int(rng.integers(1, 40))
        elif way == 2:
            entry["data_offsets"] = [wrong, _WRONG[int(rng.integers(len(_WRONG)))]]
        elif way == 3:
            header[f"other{rng.integers(99)}"] = dict(entry)  # overlaps
        elif way == 4:
            header.pop(name, None)  # leaves a hole
        elif way == 5:
            header["__metadata__"] = (
                wrong if rng.random() < 0.5 else {"speech2image": wrong, "sha256": "0" * 64}
            )
        elif way == 6:
            entry["data_offsets"], entry["shape"] = [0, 2**62], [2**60]
        else:
            header[name] = wrong
    text = json.dumps(header).encode()
    if rng.random() < 0.1:
        text = text[:-1] + b"," + text[1:]  # every name twice
    if rng.random() < 0.1:
        text = b'{"a":' * 50_000 + b"1" + b"}" * 50_000
    said = len(text) if rng.random() < 0.9 else int(rng.choice([0, 7, 2**20, 2**31, 2**62]))
    return struct.pack("<Q", said) + text + valid[8 + length :]


_PIECES = (
    b"r\xff\xff\xff\x7f", b"\x96\xff\xff\xff\xff\x1f\0\0\0", b"cbuiltins\nbytearray\nJ\xff\xff\xff\x7f\x85R", b"\x8e\xff\xff\xff\xff\xff\0\0\0",
    b"ctorch\nTensor\nJ\xff\xff\xff\x7fJ\xff\xff\xff\x7f\x86R", b"cposix\nsystem\nX\x04\0\0\0true\x85R", b"]" * 5000, b"(" * 5000,
    b"}q\x00" * 50, b"ccollections\nOrderedDict\n)R", b"2" * 1000, b"\x8a\xff" + b"\x7f" * 255, b"Q", b"b", b"\x81", b"R",
    b"cnumpy\nndarray\nJ\xff\xff\xff\x7f\x85R", b"ctorch\nSize\n]]\x86\x85R", b"N", b"K\x00", b"J\xff\xff\xff\xff", b"\x88",
)  # fmt: skip


def changed_pickle(raw: bytes, rng: np.random.Generator) -> bytes:
    """Return a pickle with instructions left out, doubled, put in, or numbers changed."""
    places = [place for _, _, place in pickletools.genops(raw)]
    parts = [raw[start:end] for start, end in zip(places, [*places[1:], len(raw)], strict=True)]
    for _ in range(int(rng.integers(1, 5))):
        place = int(rng.integers(len(parts)))
        way = int(rng.integers(5))
        if way == 0:
            parts[place] = b""
        elif way == 1:
            parts.insert(place, _PIECES[int(rng.integers(len(_PIECES)))])
        elif way == 2:
            parts[place] = parts[int(rng.integers(len(parts)))]
        elif parts[place][:1] in (b"K", b"M", b"J"):
            number = int(rng.choice([0, 1, 2**31 - 1, -1, 255]))
            parts[place] = b"J" + struct.pack("<i", number)
        else:
            parts.insert(place, parts[place])
    return b"".join(parts)


def changed_archive(valid: bytes, rng: np.random.Generator) -> bytes:
    """Return an archive with right checksums and a changed pickle, or parts that are not as torch writes them."""
    held, way = io.BytesIO(), int(rng.integers(6))
    with zipfile.ZipFile(io.BytesIO(valid)) as old, zipfile.ZipFile(held, "w") as new:
        for info in old.infolist():
            content = old.read(info)
            if info.filename.endswith("data.pkl") and way < 4:
                content = changed_pickle(content, rng)
            is_storage = "/data/" in info.filename
            if way == 4 and is_storage and rng.random() < 0.5:
                new.writestr(info.filename, bytes(2_000_000), zipfile.ZIP_DEFLATED)
                continue
            if way == 5 and is_storage and rng.random() < 0.3:
                content = content[: len(content) // 2]
            new.writestr(info.filename, content)
    return held.getvalue()


def changed_old(valid: bytes, rng: np.random.Generator) -> bytes:
    """Return a file of the old format with a changed fourth pickle, or other sizes at its end."""
    held = io.BytesIO(valid)
    for _ in range(3):
        pickle.Unpickler(held).load()
    start = held.tell()
    *_, (_, _, last) = pickletools.genops(io.BytesIO(valid[start:]))
    end = start + last + 1
    if rng.random() < 0.3:
        cut = int(rng.integers(end, len(valid)))
        return valid[:cut] + struct.pack("<q", int(rng.choice([-1, 2**40, 2**62, 0]))) + valid[cut + 8 :]
    return valid[:start] + changed_pickle(valid[start:end], rng) + valid[end:]


# ---- campaigns --------------------------------------------------------------------------------
def _own(path: Path) -> object:
    return load_weights(path, network())


def _code_map(path: Path) -> object:
    return convert_code_map(path)


def _local(path: Path) -> object:
    return read_local_weights(path, "a network", "somewhere")


def _inception(path: Path) -> object:
    return inception_network(path, sha256=None)


def _birds(path: Path) -> object:
    return stackgan_network(path)


def _npz() -> bytes:
    held = io.BytesIO()
    np.savez(held, **{"a/weights": np.zeros((2, 3), np.float32), "b": np.arange(4)})
    return held.getvalue()


def _npy() -> bytes:
    held = io.BytesIO()
    np.save(held, np.arange(20, dtype=np.int64).reshape(10, 2))
    return held.getvalue()


def _saved(folder: Path) -> bytes:
    save_weights(folder / "own.safetensors", network().state_dict(), {"step": 3})
    return (folder / "own.safetensors").read_bytes()


Make = Callable[[bytes, np.random.Generator], bytes]


def _bytes_mutated(valid: bytes, rng: np.random.Generator) -> bytes:
    mutated: bytes = MUTATIONS["mutate"](valid, [valid], rng)
    return mutated


def _plain(is_new: bool) -> bytes:
    return torch_file(network().state_dict(), is_new)


#: Name: (valid file, how it is changed, what it is called, who reads it, whether the valid one is read).
KINDS: dict[str, tuple[Callable[[Path], bytes], Make, str, Callable[[Path], object], bool]] = {
    "own weights, lying header": (_saved, lying_safetensors, "a.safetensors", _own, True),
    "own weights, bytes": (_saved, _bytes_mutated, "a.safetensors", _own, True),
    "foreign safetensors, lying header": (
        lambda _: save(network().state_dict()), lying_safetensors, "a.safetensors", read_foreign, True),
    "local safetensors, bytes": (
        lambda _: save(network().state_dict()), _bytes_mutated, "a.safetensors", _local, True),
    "checkpoint, pickle": (lambda _: torch_file(trained()), changed_archive, "a.pth", read_foreign, True),
    "checkpoint, bytes": (lambda _: torch_file(trained()), _bytes_mutated, "a.pth", read_foreign, True),
    "old checkpoint, pickle": (lambda _: torch_file(trained(), False), changed_old, "a.pth", read_foreign, True),
    "old checkpoint, bytes": (lambda _: torch_file(trained(), False), _bytes_mutated, "a.pth", read_foreign, True),
    "local weights, pickle": (lambda _: _plain(True), changed_archive, "a.pth", _local, True),
    "feature network, pickle": (lambda _: _plain(True), changed_archive, "a.pth", _inception, False),
    "code map, pickle": (lambda _: torch_file(torch.arange(9)), changed_archive, "a.pt", _code_map, True),
    "birds, bytes": (lambda _: _npz(), _bytes_mutated, "a.npz", _birds, False),
    "vocabulary, bytes": (lambda _: _npy(), _bytes_mutated, "a.npy", read_vocabulary, True),
}  # fmt: skip


def _attempt(kind: str, valid: bytes, folder: Path, number: int) -> object:
    _, change, name, read, _ = KINDS[kind]
    rng = np.random.default_rng([sorted(KINDS).index(kind), number])
    (folder / name).write_bytes(change(valid, rng))
    return read(folder / name)


@pytest.mark.parametrize("kind", KINDS)
def test_weights(kind: str, tmp_path: Path, rounds: Rounds, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    make, _, name, read, is_read = KINDS[kind]
    valid = make(tmp_path)
    (tmp_path / name).write_bytes(valid)
    if is_read:
        read(tmp_path / name)
    count = rounds(SAMPLE, FULL)
    attempt = functools.partial(_attempt, kind, valid, tmp_path)
    wrong, refused, peak = MUTATIONS["run_watched"](count, attempt, tmp_path)
    print(f"{kind}: {count}, {refused} refused, {peak / 1e6:.0f} MB at most, {len(wrong)} wrong")
    assert not wrong, f"{len(wrong)} of {count}:\n" + "\n".join(wrong[:3])
    assert refused >= 0.2 * count, "fewer are refused than such files deserve"
