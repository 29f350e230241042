"""Weight files of published networks, read from this machine only.

Nothing is ever downloaded and nothing in a file is executed: a missing file is one error that
names the file, where it comes from and where to put it.  Used by `speech`, `vision` and the codecs'
perceptual loss; converters for whole foreign checkpoints are in `hub/`.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from speech2image.errors import CheckpointError
from speech2image.safe.pickles import Asked
from speech2image.safe.tensors import read_header
from speech2image.safe.torch_files import read_torch_file


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file as 64 hex digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def must_have_weights(path: Path, what: str, url: str) -> None:
    """Refuse to go on without a file of weights.

    Raises:  CheckpointError: there is none; names the file and where it comes from.
    """
    if not path.is_file():
        raise CheckpointError(
            f"{what}: no weight file at {path} (nothing is downloaded here)",
            f"Fetch {url} on a machine with a network and put it at {path}.",
        )


def read_local_weights(
    path: Path | str, what: str, url: str, sha256: str | None = None
) -> tuple[dict[str, Tensor], str]:
    """Read a state dict from a local file.

    Args:
        path: `.safetensors`, or a torch file holding tensors only.
        what: the network, for messages.
        url: where the published file comes from, for messages.
        sha256: expected hash of the file, or its first digits; None: not compared.

    Returns: the tensors by name, without a `module.` prefix, and the hash of the file.
    Raises:  CheckpointError: the file is missing, damaged, holds code, or has another hash.
    """
    path = Path(path)
    source = f"Fetch {url} on a machine with a network and put it at {path}."
    must_have_weights(path, what, url)
    found = file_sha256(path)
    if sha256 and not found.startswith(sha256.lower()):
        raise CheckpointError(f"{what}: {path} has sha256 {found[:16]}…, expected {sha256}", source)
    try:
        content = read_tensor_file(path)
    except Asked as error:
        raise CheckpointError(
            f"{what}: {path} is damaged or holds more than tensors: it asks to run or build {error.name}",
            source,
        ) from error
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{what}: {path} is damaged: {str(error).splitlines()[0]}", source) from error
    state = content.get("state_dict", content) if isinstance(content, dict) else None
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise CheckpointError(f"{what}: {path} holds no state dict", source)
    return {name.removeprefix("module."): value for name, value in state.items()}, found


def read_tensor_file(path: Path) -> Any:
    """Return the content of a `.safetensors` file or of a file of `torch.save`; see `safe/`.

    Raises:  Asked: it asks to run something; nothing was run.  ValueError: damaged or beyond a limit.
        OSError: it cannot be read.
    """
    if path.suffix != ".safetensors":
        return read_torch_file(path)
    read_header(path)
    try:
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(str(error)) from error


def load_into(network: nn.Module, state: dict[str, Tensor], path: Path | str, what: str) -> None:
    """Copy `state` into `network`, names and shapes compared first, all differences in one error.

    Raises: CheckpointError: a tensor is missing, left over or of another shape.
    """
    own = network.state_dict()
    counters = {name for name in own if name.endswith("num_batches_tracked")}
    problems = [f"missing {name}" for name in own if name not in state and name not in counters]
    problems += [f"unknown {name}" for name in state if name not in own]
    problems += [
        f"{name} is {tuple(state[name].shape)}, expected {tuple(value.shape)}"
        for name, value in own.items()
        if name in state and state[name].shape != value.shape
    ]
    if problems:
        shown = "; ".join(problems[:5]) + (f"; and {len(problems) - 5} more" if len(problems) > 5 else "")
        raise CheckpointError(f"{path} holds no weights of {what}: {shown}", "Check network and file name.")
    network.load_state_dict(state, strict=False)
