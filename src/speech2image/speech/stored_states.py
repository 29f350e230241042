"""Hidden states of a frozen tower, computed once and stored like any other features.

Here: the front end that computes them when a corpus is prepared, and the module that stands in the
tower's place in training, so that a frozen tower never runs in a training step.  Towers are in
`towers.py`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from torch import nn

from speech2image.errors import ConfigError
from speech2image.speech.towers import (
    FRAME_SAMPLES,
    LEAST_SAMPLES,
    SAMPLE_RATE_HZ,
    TOWER_URL,
    HiddenStates,
    SpeechTower,
    tower_spec,
)
from speech2image.types import SpeechBatch
from speech2image.weight_files import file_sha256, must_have_weights


class StatesInput(nn.Module):
    """Stand where a tower stands when its hidden states were computed beforehand.

    Args:
        num_states: states n.
        dim: width D.
    """

    def __init__(self, num_states: int, dim: int) -> None:
        super().__init__()
        self.num_states, self.dim, self.mel_dim = num_states, dim, num_states * dim

    def forward(self, speech: SpeechBatch) -> HiddenStates:
        """Return the states `(n, B, T, D)` float32 that `StatesFrontEnd` laid side by side, `(B, T, n D)`.

        Raises: ConfigError: features of another width.
        """
        batch, frames, width = speech.features.shape
        if width != self.mel_dim:
            raise ConfigError(
                f"stored states are {width} wide, expected {self.num_states} x {self.dim} = {self.mel_dim}",
                "Prepare the corpus with the tower that the encoder names.",
            )
        states = speech.features.float().reshape(batch, frames, self.num_states, self.dim).permute(2, 0, 1, 3)
        return HiddenStates(states, speech.lengths.to(states.device))


@dataclass(frozen=True)
class StatesFrontEnd:
    """Front end that computes the hidden states of a frozen tower, one utterance at a time.

    It has the fields of `audio.features.FrontEnd` that preparing and batching use, so hidden states
    are stored and padded like any other features.

    Attributes:
        tower: a key of `TOWERS`.
        weights_path: file of its weights.
        sha256: expected hash of the file; None: not compared.
        max_frames: longer utterances are cut at the end.
        device: where the tower runs.

    Cost: n D half floats a frame: 1.0 MB for a second of HuBERT-base, 2.6 MB of the large one.
    """

    tower: str
    weights_path: str = field(repr=False)
    sha256: str | None = None
    max_frames: int = 3000
    device: str = field(default="cpu", repr=False)
    sample_rate_hz: int = SAMPLE_RATE_HZ
    pad_value: float = 0.0
    pad_frames: int | None = None
    min_frames: int = 1
    store_dtype: ClassVar[str] = "float16"

    @classmethod
    def of_file(cls, tower: str, weights_path: Path, sha256: str | None = None) -> StatesFrontEnd:
        """Return the front end of a file of weights, on a GPU where there is one.

        Raises:  CheckpointError: there is no file, so that its hash cannot be taken.
        """
        if sha256 is None:
            url = TOWER_URL + tower_spec(tower).file
            must_have_weights(weights_path, f"speech tower {tower}", url)
            found = weights_path.stat()
            sha256 = _hash_of(str(weights_path), found.st_size, found.st_mtime_ns)
        return cls(tower, str(weights_path), sha256, device="cuda" if torch.cuda.is_available() else "cpu")

    @property
    def name(self) -> str:
        """Return the name of the front end."""
        return f"states_{self.tower}"

    @property
    def mel_dim(self) -> int:
        """Return the width n D of a frame."""
        spec = tower_spec(self.tower)
        return (spec.num_layers + 1) * spec.dim

    def __call__(self, wave: np.ndarray) -> np.ndarray:
        """Compute the states of one utterance.

        Args:
            wave: `(S,)` float32 mono at 16 kHz.

        Returns: `(T, n D)` float32, all states of a frame side by side.
        Raises:  DataError: shorter than 400 samples.  CheckpointError: no or foreign weights.
        """
        tower = _loaded_tower(self.tower, self.weights_path, self.sha256, self.device)
        limit = (self.max_frames - 1) * FRAME_SAMPLES + LEAST_SAMPLES
        cut = torch.from_numpy(np.ascontiguousarray(wave[:limit], np.float32))[None, :, None]
        speech = SpeechBatch(cut.to(self.device), torch.tensor([cut.shape[1]]))
        return tower(speech).states[:, 0].permute(1, 0, 2).flatten(1).cpu().numpy()


@lru_cache(maxsize=4)
def _hash_of(path: str, size: int, changed_ns: int) -> str:
    return file_sha256(Path(path))


@lru_cache(maxsize=2)
def _loaded_tower(name: str, weights_path: str, sha256: str | None, device: str) -> SpeechTower:
    return SpeechTower(name, weights_path, sha256).to(device)
