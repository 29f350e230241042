"""Weight files: our own safetensors with a hash in the header, and foreign checkpoints read safely.

Nothing here runs code from a file, and sizes are checked before memory is taken (`safe/`).  Every way in which a file does not fit a model is listed
in one message.  What foreign tensors mean is the business of `convert/`.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Collection, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_safetensors
from torch import Tensor, nn

from speech2image.errors import CheckpointError
from speech2image.hub.systems import recognise
from speech2image.safe.pickles import Asked
from speech2image.safe.records import read_json
from speech2image.safe.tensors import read_header
from speech2image.safe.torch_files import read_torch_file

_COUNTER = "num_batches_tracked"
_LISTED = 8
_TYPES = {
    "BOOL": torch.bool, "U8": torch.uint8, "I8": torch.int8, "I16": torch.int16, "U16": torch.uint16,
    "F16": torch.float16, "BF16": torch.bfloat16, "I32": torch.int32, "U32": torch.uint32, "F32": torch.float32,
    "F64": torch.float64, "I64": torch.int64, "U64": torch.uint64,
}  # fmt: skip
_NESTS = ("state_dict", "model", "netG", "ema")


def save_weights(path: Path, state: Mapping[str, Tensor], meta: Mapping[str, Any]) -> str:
    """Write tensors and plain metadata to one safetensors file: whole, read back, or absent.

    Args:
        path: file to write; folders are made.
        state: names to tensors.
        meta: plain JSON data (model name, arguments, step).

    Returns: sha256 of tensors and metadata, as `load_weights` checks it.
    Raises:  CheckpointError: the file cannot be written or does not read back the same.
    """
    tensors = {name: value.detach().cpu().contiguous() for name, value in state.items()}
    description = json.dumps(dict(meta), sort_keys=True)
    digest = _sealed(tensors, description)
    header = {"speech2image": description, "sha256": digest}
    beside = path.with_name(path.name + ".part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with beside.open("wb") as file:
            file.writelines(_in_order(to_safetensors(_unshared(tensors), metadata=header)))
            file.flush()
            os.fsync(file.fileno())
        if read_weights(beside)[1] != json.loads(description):
            raise CheckpointError(f"{path} did not read back as written", "Check the disk.")
        beside.replace(path)
    except OSError as problem:
        with suppress(OSError):
            beside.unlink()
        raise CheckpointError(
            f"weights could not be written to {path}: {problem.strerror or problem}",
            "Free some space or choose another folder with paths.runs=DIR.",
        ) from problem
    except CheckpointError:
        beside.unlink(missing_ok=True)
        raise
    return digest


def _in_order(content: bytes) -> tuple[bytes, memoryview]:
    """Return a safetensors file in two pieces, the keys of its header sorted: the library's order is by chance.

    So equal weights are equal files, byte for byte.
    """
    end = 8 + int.from_bytes(content[:8], "little")
    text = json.dumps(json.loads(content[8:end]), sort_keys=True, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # tensors begin at multiples of eight bytes
    return len(text).to_bytes(8, "little") + text, memoryview(content)[end:]


def read_weights(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return tensors and metadata of a file of `save_weights`, checked against its hash.

    Raises:  CheckpointError: missing, empty, cut, changed, or not written by speech2image.
    """
    tensors, header = read_safetensors(path)
    if "speech2image" not in header or "sha256" not in header:
        raise CheckpointError(
            f"{path} is a safetensors file, but not one that speech2image wrote",
            "Foreign checkpoints come in through: speech2image import system=NAME checkpoint=FILE.",
        )
    if _sealed(tensors, header["speech2image"]) != header["sha256"]:
        raise damaged_checkpoint(path, "its content does not match the hash in its header")
    try:
        meta = read_json(header["speech2image"])
    except ValueError as problem:
        raise damaged_checkpoint(path, f"its metadata cannot be read ({problem})") from problem
    if not isinstance(meta, dict):
        raise damaged_checkpoint(path, "its metadata are no JSON object")
    return tensors, meta


def load_weights(path: Path, into: nn.Module) -> dict[str, Any]:
    """Fill a module from a file of `save_weights` and return the file's metadata.

    Raises:  CheckpointError: as in `read_weights`, or names, shapes or types differ (all listed).
    """
    tensors, meta = read_weights(path)
    fill_module(into, tensors, str(path))
    return meta


def check_header(path: Path, planned: nn.Module) -> None:
    """Compare the header of a file of weights with a module before anything is read.

    Args:
        path: safetensors; tensors of other parts may lie beside.
        planned: made of parts; on the meta device it takes no memory.

    Raises:  CheckpointError: damaged, or names, shapes or types differ; all are counted.
    """
    must_exist(path)
    try:
        header = read_header(path)
    except (OSError, ValueError) as problem:
        raise damaged_checkpoint(path, str(problem)) from problem
    parts = {name.split(".")[0] for name in planned.state_dict()}
    described = {
        name: (entry.shape, _TYPES[entry.dtype])
        for name, entry in header.tensors.items()
        if name.split(".")[0] in parts
    }
    _compare(planned, described, str(path))


def fill_module(module: nn.Module, state: Mapping[str, Tensor], origin: str) -> None:
    """Copy a state into a module after comparing every name, shape and type.

    Args:
        module: receives the values; untouched when anything differs.
        state: names to tensors.  Batch-norm counters may be missing (files older than torch 0.4.1).
        origin: file or source for the message.

    Raises:  CheckpointError: any difference; all are counted, the first of each kind are named.
    """
    compare_state(module, state, origin)
    counters = {
        name: torch.zeros_like(value)
        for name, value in module.state_dict().items()
        if name.endswith(_COUNTER) and name not in state
    }
    module.load_state_dict({**state, **counters}, strict=True)


def compare_state(module: nn.Module, state: Mapping[str, Tensor], origin: str) -> None:
    """Compare names, shapes and types of a state with a module; arguments and errors of `fill_module`."""
    _compare(module, {name: (tuple(value.shape), value.dtype) for name, value in state.items()}, origin)


def _compare(
    module: nn.Module, found: Mapping[str, tuple[tuple[int, ...], torch.dtype]], origin: str
) -> None:
    wanted = {name: (tuple(value.shape), value.dtype) for name, value in module.state_dict().items()}
    absent = [name for name in wanted if name not in found and not name.endswith(_COUNTER)]
    extra = [name for name in found if name not in wanted]
    shared = [name for name in wanted if name in found]
    shapes = [
        f"{name} {found[name][0]}, expected {wanted[name][0]}"
        for name in shared
        if found[name][0] != wanted[name][0]
    ]
    types = [
        f"{name} {found[name][1]}, expected {wanted[name][1]}"
        for name in shared
        if found[name][1] != wanted[name][1]
    ]
    parts = [
        f"{len(names)} {what}: {'; '.join(names[:_LISTED])}{'; ...' if len(names) > _LISTED else ''}"
        for what, names in (
            ("missing", absent),
            ("unknown", extra),
            ("of another shape", shapes),
            ("of another type", types),
        )
        if names
    ]
    if parts:
        looks = recognise(found)
        guess = f" It looks like {looks}." if looks and (absent or extra) else ""
        raise CheckpointError(
            f"{origin} does not fit {type(module).__name__}.{guess} Tensors " + "\n  ".join(parts),
            "Choose the system that the file belongs to, or the run that it came from.",
        )


def read_foreign(path: Path, stand_ins: Collection[str] = ()) -> dict[str, Tensor]:
    """Return the tensors of a PyTorch checkpoint without running anything in it.

    A state nested under `state_dict` (or `model`, `netG`, `ema`) is taken out, and a `module.` in
    front of every name (DataParallel) is removed.

    Args:
        path: `.pth`, `.pt` or `.ckpt`, old or new format, or `.safetensors`.
        stand_ins: see `unpickle_weights`.

    Raises:  CheckpointError: missing, empty, cut, changed (checksum), a pickle that asks to run
        code, without tensors, or with values that are not finite.
    """
    must_exist(path)
    if path.suffix == ".safetensors":
        content: Any = read_safetensors(path)[0]
    else:
        content = unpickle_weights(path, stand_ins)
    state = _tensors_of(content, path)
    # The schedule of VQ-Diffusion is stored as logarithms, that of 0 among them.
    bad = [
        name for name, value in state.items()
        if value.is_floating_point() and not name.split(".")[-1].startswith("log_") and not value.isfinite().all()
    ]  # fmt: skip
    if bad:
        raise damaged_checkpoint(path, f"{len(bad)} tensors hold values that are not finite, first {bad[0]}")
    return state


def content_hash(state: Mapping[str, Tensor]) -> str:
    """Return the sha256 of names, types, shapes and values, in the order of names."""
    digest = hashlib.sha256()
    for name in sorted(state):
        value = state[name].detach().cpu().contiguous()
        digest.update(f"{name}|{value.dtype}|{tuple(value.shape)}|".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _sealed(state: Mapping[str, Tensor], description: str) -> str:
    return hashlib.sha256(f"{content_hash(state)}|{description}".encode()).hexdigest()


def _unshared(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    seen: set[int] = set()
    result = {}
    for name, value in tensors.items():
        address = value.untyped_storage().data_ptr()
        result[name] = value.clone() if address in seen else value
        seen.add(address)
    return result


def must_exist(path: Path) -> None:
    """Raise CheckpointError where there is no file, or an empty one."""
    if not path.is_file():
        raise CheckpointError(f"there is no checkpoint at {path}", "Check the path: it must be a file.")
    if path.stat().st_size == 0:
        raise CheckpointError(f"{path} is empty (0 bytes)", "Copy or download it again.")


def damaged_checkpoint(path: Path, reason: str) -> CheckpointError:
    """Return the error that says what is wrong with a file and how large it is."""
    size = path.stat().st_size
    return CheckpointError(f"{path} ({size:,} bytes) is damaged: {reason}", "Copy or download it again.")


def unpickle_weights(path: Path, stand_ins: Collection[str] = ()) -> Any:
    """Return the content of a PyTorch file; only tensors, plain containers and numpy scalars are admitted.

    Args:
        path: the file.
        stand_ins: full names of classes whose objects are of no interest: an empty object takes their place.

    Raises:  CheckpointError: damaged, beyond a limit, or asking to run or build anything else.
    """
    try:
        return read_torch_file(path, stand_ins)
    except Asked as problem:
        raise CheckpointError(
            f"{path} was not opened: it is not a plain file of weights, it asks to run or build {problem.name}."
            " Files of weights hold tensors and plain values only",
            "Use a file from a source you trust that was saved as a state dict.",
        ) from problem
    except (OSError, ValueError) as problem:
        raise damaged_checkpoint(path, str(problem)) from problem


def read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the tensors and the metadata of a safetensors file, its header checked whole before.

    Raises:  CheckpointError: missing, damaged, or beyond a limit.
    """
    must_exist(path)
    try:
        header = read_header(path)
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in header.tensors}, header.metadata
    except (SafetensorError, OSError, ValueError) as problem:
        raise damaged_checkpoint(path, str(problem)) from problem


def _tensors_of(content: Any, path: Path) -> dict[str, Tensor]:
    for nest in _NESTS:
        if isinstance(content, Mapping) and isinstance(content.get(nest), Mapping):
            content = content[nest]
            break
    tensors = {}
    if isinstance(content, Mapping):
        tensors = {str(name): value for name, value in content.items() if isinstance(value, Tensor)}
    if not tensors:
        kind = type(content).__name__
        raise CheckpointError(
            f"{path} holds no tensors by name: its content is a {kind}",
            "Give the state dict that training saved, e.g. netG_210000.pth.",
        )
    if all(name.startswith("module.") for name in tensors):
        tensors = {name.removeprefix("module."): value for name, value in tensors.items()}
    return tensors
