"""SpeechCLIP's parallel form: hidden states of a speech tower to one vector in CLIP's joint space.

Here: the learned sum over layers, the [CLS] branch, and the encoder that puts a tower and both
together, in the names of the released checkpoints.  Towers are in `towers.py` and `small_tower.py`,
the cascaded form in `cascaded.py`, the loss in `losses/contrastive.py`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from speech2image.errors import ConfigError
from speech2image.speech.small_tower import SmallTower
from speech2image.speech.stored_states import StatesInput
from speech2image.speech.towers import SpeechTower, tower_spec
from speech2image.types import Condition, SpeechBatch

SOURCES = ("wave", "states")


class WeightedSum(nn.Module):
    """Sum the states of all layers with learned shares.

    Args:
        num_states: states n.
        normalise: every state to mean 0 and deviation 1 over its width before the sum.

    Source: SpeechCLIP, section 3.1; reference `weighted_sum.py`, normalisation type `s3prl`.
    """

    def __init__(self, num_states: int, normalise: bool) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.zeros(num_states))
        self.normalise = normalise

    def forward(self, states: Tensor) -> Tensor:
        """Return `(B, T, D)` from states `(n, B, T, D)`."""
        if self.normalise:
            states = functional.layer_norm(states, states.shape[-1:])
        return torch.tensordot(self.weights.softmax(0), states, dims=1)


class BranchOutput(NamedTuple):
    """Sentence `(B, E)` before it is normalised, and the last layer's states `(B, T, D)`."""

    sentence: Tensor
    states: Tensor


class ParallelBranch(nn.Module):
    """Gather a sequence in a [CLS] vector by transformer layers and project it.

    Args:
        dim: width D of the sequence.
        embed_dim: width E of the result, CLIP's joint space.
        heads: attention heads.
        ff_dim: width of the feed-forward layer; 0: 4 D.
        num_layers: layers, norms last.
        dropout: in attention, feed-forward and residuals.

    Source: SpeechCLIP, section 3.2; reference `kwClip.py`, `TransformerModels.py`.  No positions are
        added; one more layer norm after the last layer.  Differs: none.
    """

    def __init__(
        self,
        dim: int = 768,
        embed_dim: int = 512,
        heads: int = 8,
        ff_dim: int = 0,
        num_layers: int = 1,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        _check_heads(dim, heads)
        self.cls = nn.Parameter(torch.randn(1, 1, dim))
        layer = nn.TransformerEncoderLayer(
            dim, heads, ff_dim or 4 * dim, dropout, functional.gelu, batch_first=True
        )
        self.self_att = nn.Module()
        self.self_att.model = nn.TransformerEncoder(
            layer, num_layers, nn.LayerNorm(dim), enable_nested_tensor=False
        )
        self.linear_proj = nn.Linear(dim, embed_dim)

    def forward(self, sequence: Tensor, lengths: Tensor) -> BranchOutput:
        """Return sentence and states of sequences `(B, T, D)` with `lengths` `(B,)` valid steps."""
        stacked, padding = with_tokens(self.cls, sequence, lengths)
        model: Any = self.self_att.model
        for layer in model.layers:
            stacked = layer(stacked, src_key_padding_mask=padding)
        return BranchOutput(self.linear_proj(model.norm(stacked[:, 0])), stacked[:, 1:])


class AudioEncoder(nn.Module):
    """A tower and the learned sum of its states.

    Args:
        encoder: `SpeechBatch` to `HiddenStates`, with `num_states` and `dim`.
        normalise_states: see `WeightedSum`.
    """

    def __init__(self, encoder: nn.Module, normalise_states: bool) -> None:
        super().__init__()
        self.encoder = encoder
        count: Any = encoder.num_states
        self.weightedsum_layer = WeightedSum(count, normalise_states)

    def forward(self, speech: SpeechBatch) -> tuple[Tensor, Tensor]:
        """Return the weighted sum `(B, T, D)` and valid frames `(B,)`."""
        hidden = self.encoder(speech)
        return self.weightedsum_layer(hidden.states), hidden.lengths


class SpeechClip(nn.Module):
    """Encode speech into CLIP's joint space by the parallel branch on a speech tower.

    Args:
        tower: a key of `TOWERS`, `small` (trained from scratch), or a tower that is already built.
        weights_path: file of a published tower's weights.
        sha256: expected hash of that file.
        source: `wave`: features are waveforms `(B, S, 1)` and the tower is part of this module;
            `states`: features are hidden states stored by `StatesFrontEnd`, the tower is not here.
            `small` takes features of `mel_dim` either way.
        embed_dim: width E of the sentence; must equal the image tower's.
        heads: attention heads of the branch.
        ff_dim: feed-forward width of the branch; 0: 4 D.
        num_layers: layers of the branch.
        dropout: in the branch (and in `small`).
        normalise_states: see `WeightedSum`; None: as published, for large towers (and `small`) only.
        legacy_len: count frames as released, see `SpeechTower`.
        mel_dim: `small`, mel bands; 1: waveforms.
        small_dim: `small`, width.
        small_layers: `small`, transformer layers.

    Raises: ConfigError: a tower or size that does not exist.  CheckpointError: see `SpeechTower`.
    Source: Shih et al. 2022 (SpeechCLIP); the speech encoder of S2IVQ-D in its large form with
        `embed_dim` 1024.  Differs: the tower is never in training mode, lengths are exact.
    """

    def __init__(
        self,
        tower: str | nn.Module = "hubert_base",
        weights_path: Path | str | None = None,
        sha256: str | None = None,
        source: str = "wave",
        embed_dim: int = 512,
        heads: int = 8,
        ff_dim: int = 0,
        num_layers: int = 1,
        dropout: float = 0.1,
        normalise_states: bool | None = None,
        legacy_len: bool = False,
        mel_dim: int = 40,
        small_dim: int = 192,
        small_layers: int = 3,
    ) -> None:
        super().__init__()
        encoder: Any = tower
        if tower == "small":
            encoder = SmallTower(mel_dim, small_dim, small_layers, dropout=dropout)
        elif isinstance(tower, str):
            encoder = make_tower(tower, weights_path, sha256, source, legacy_len)
        self.audio_encoder = AudioEncoder(encoder, _normalises(tower, normalise_states))
        self.parallel_branch = ParallelBranch(encoder.dim, embed_dim, heads, ff_dim, num_layers, dropout)
        self.sentence_dim, self.words_dim, self.mel_dim = embed_dim, encoder.dim, encoder.mel_dim

    def forward(self, speech: SpeechBatch) -> Condition:
        """Encode a batch.

        Args:
            speech: waveforms `(B, S, 1)`, stored states `(B, T, n D)` or mel frames `(B, T, M)`,
                whichever the tower takes.

        Returns: sentence `(B, E)` of unit length; words `(B, D, T)`, the weighted sum of the states, 0
            beyond each item's frames; and their mask.
        """
        sequence, lengths = self.audio_encoder(speech)
        sentence = functional.normalize(self.parallel_branch(sequence, lengths).sentence, dim=1)
        return condition_of(sentence, sequence, lengths)


def make_tower(
    name: str, weights_path: Path | str | None, sha256: str | None, source: str, legacy_len: bool
) -> nn.Module:
    """Return a published tower, or what stands in its place where its states are stored.

    Raises: ConfigError: unknown tower or source.
    """
    if source not in SOURCES:
        raise ConfigError(f"source of speech is {source!r}", f"Use one of: {', '.join(SOURCES)}.")
    if source == "states":
        spec = tower_spec(name)
        return StatesInput(spec.num_layers + 1, spec.dim)
    return SpeechTower(name, weights_path, sha256, legacy_len)


def with_tokens(tokens: Tensor, sequence: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
    """Put learned tokens before sequences.

    Args:
        tokens: `(1, N, D)`.
        sequence: `(B, T, D)`.
        lengths: `(B,)` valid steps.

    Returns: `(B, N + T, D)`, and `(B, N + T)` bool, True at padding.
    """
    stacked = torch.cat([tokens.expand(len(sequence), -1, -1).to(sequence.dtype), sequence], dim=1)
    places = torch.arange(stacked.shape[1], device=stacked.device)
    return stacked, places >= (lengths.to(stacked.device) + tokens.shape[1])[:, None]


def condition_of(sentence: Tensor, sequence: Tensor, lengths: Tensor) -> Condition:
    """Return the condition of unit sentences `(B, E)` and word states `(B, T, D)`."""
    mask = torch.arange(sequence.shape[1], device=sequence.device) < lengths.to(sequence.device)[:, None]
    return Condition(sentence, (sequence * mask[:, :, None]).transpose(1, 2), mask)


def _normalises(tower: str | nn.Module, asked: bool | None) -> bool:
    if asked is not None:
        return asked
    name = tower if isinstance(tower, str) else getattr(tower, "name", "small")
    return name == "small" or tower_spec(name).layer_norm


def _check_heads(dim: int, heads: int) -> None:
    if heads < 1 or dim % heads:
        raise ConfigError(
            f"width {dim} does not divide into {heads} heads", "Choose heads that divide the width."
        )
