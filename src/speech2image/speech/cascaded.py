"""SpeechCLIP's cascaded form: speech to a few keywords, keywords through CLIP's text transformer.

Here: the keyword attention, its batch norm, the quantizer over CLIP's token table and the encoder that
chains them with CLIP's text transformer (`text/clip_transformer.py`), in the names of the released
checkpoints.  The parallel form, which S2IVQ-D uses, is in `speechclip.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from speech2image.errors import CheckpointError, ConfigError
from speech2image.safe.arrays import read_npy
from speech2image.speech.small_tower import SmallTower
from speech2image.speech.speechclip import AudioEncoder, condition_of, make_tower, with_tokens
from speech2image.speech.towers import tower_spec
from speech2image.text.clip_transformer import END_ID, PAD_ID, START_ID, ClipText, load_clip_text
from speech2image.types import Condition, SpeechBatch

RELEASED_SPECIAL = (0, 2, 3)


def special_columns(original_ids: Sequence[int] | np.ndarray) -> tuple[int, int, int]:
    """Return where padding, start and end of text stand in a reduced vocabulary.

    Args:
        original_ids: `(V,)` CLIP's id of each row of the reduced table.

    Returns: places of padding, start and end; these are never keywords.
    Raises:  ConfigError: one of them is missing.
    Source:  0, 2, 3 are written into the released code, right for Flickr8k and COCO, wrong for CUB.

    >>> special_columns([0, 320, 537, 49406, 49407])
    (0, 3, 4)
    """
    places = {int(number): place for place, number in enumerate(original_ids)}
    missing = [number for number in (PAD_ID, START_ID, END_ID) if number not in places]
    if missing:
        raise ConfigError(
            f"the reduced vocabulary lacks CLIP's ids {missing}", "Count the special tokens in, too."
        )
    return places[PAD_ID], places[START_ID], places[END_ID]


class KeywordNorm(nn.Module):
    """Bring keywords to the statistics of CLIP's token table, every keyword and dimension by itself.

    Args:
        num_keywords: keywords K.
        dim: width E.

    Source: SpeechCLIP, section 3.3; reference `speechclip_c_modules/kw_bn.py`, type `eachKw, parallel`.
    """

    def __init__(self, num_keywords: int, dim: int) -> None:
        super().__init__()
        self.num_keywords, self.dim = num_keywords, dim
        self.bn_layer = nn.BatchNorm1d(num_keywords * dim)

    def start_from(self, table: Tensor, legacy_order: bool = False) -> None:
        """Set scale and shift to the deviation and mean of each dimension of the table `(V, E)`.

        Args:
            table: CLIP's token embeddings.
            legacy_order: repeat them keyword by keyword as released, though the data lie dimension by
                dimension, so that they start at wrong places.
        """
        values: tuple[tuple[Tensor, Any], ...] = (
            (table.std(dim=0), self.bn_layer.weight),
            (table.mean(dim=0), self.bn_layer.bias),
        )
        for value, parameter in values:
            laid = (
                value.repeat(self.num_keywords)
                if legacy_order
                else value.repeat_interleave(self.num_keywords)
            )
            parameter.data.copy_(laid)

    def forward(self, keywords: Tensor) -> Tensor:
        """Return `(B, K, E)` from keywords `(B, K, E)`."""
        flat = self.bn_layer(keywords.transpose(1, 2).flatten(1))
        return flat.unflatten(1, (self.dim, self.num_keywords)).transpose(1, 2)


class Quantized(NamedTuple):
    """One-hot choices `(B, K, V)`, chosen columns `(B, K)`, and how evenly columns are used (scalars)."""

    choices: Tensor
    columns: Tensor
    code_perplexity: Tensor
    prob_perplexity: Tensor
    diversity_loss: Tensor


class VectorQuantizer(nn.Module):
    """Choose the best column of each row; the gradient is that of a sharp softmax.

    Args:
        temperature: of the softmax.
        forbidden: columns that are never chosen.

    Source: SpeechCLIP, section 3.3; reference `speechclip_c_modules/my_vector_quantizer.py`.
    """

    curr_temp: Tensor

    def __init__(self, temperature: float = 0.1, forbidden: Sequence[int] = RELEASED_SPECIAL) -> None:
        super().__init__()
        self.forbidden = list(forbidden)
        self.register_buffer("curr_temp", torch.tensor([temperature]))

    def forward(self, scores: Tensor) -> Quantized:
        """Return choices and their statistics from scores `(B, K, V)`; soft gradients in training only."""
        num_columns = scores.shape[-1]
        scores = scores.float().index_fill(-1, torch.tensor(self.forbidden, device=scores.device), -torch.inf)
        columns = scores.argmax(dim=-1)
        hard = functional.one_hot(columns, num_columns).to(scores.dtype)
        choices = hard
        if self.training:
            soft = (scores / self.curr_temp).softmax(dim=-1)
            choices = hard + soft - soft.detach()
        used = _perplexity(hard.flatten(0, -2).mean(dim=0))
        likely = _perplexity(scores.softmax(dim=-1).flatten(0, -2).mean(dim=0))
        return Quantized(choices, columns, used, likely, (num_columns - likely) / num_columns)


def _perplexity(shares: Tensor) -> Tensor:
    return torch.exp(-(shares * torch.log(shares + 1e-7)).sum())


class _KeywordAttention(nn.Module):
    """One attention head, residual, norm; only the keywords ask."""

    def __init__(self, dim: int, dropout: float) -> None:
        super().__init__()
        self.multihead_attn_layer = nn.MultiheadAttention(dim, 1, dropout, batch_first=True)
        self.attentionBlock_Norm = nn.LayerNorm(dim)

    def forward(self, stacked: Tensor, padding: Tensor, num_keywords: int) -> Tensor:
        asking = stacked[:, :num_keywords]
        found, _ = self.multihead_attn_layer(
            asking, stacked, stacked, key_padding_mask=padding, need_weights=False
        )
        return self.attentionBlock_Norm(found + asking)


class CascadedBranch(nn.Module):
    """Listen for K keywords and choose each among the rows of CLIP's token table.

    Args:
        dim: width D of the speech states.
        text_dim: width of the token table.
        num_keywords: keywords K.
        dropout: of the attention.
        forbidden: rows that are never keywords.

    Source: SpeechCLIP, section 3.3; reference `kwClip.py: KW_CascadedBranch`.
    """

    def __init__(
        self,
        dim: int = 768,
        text_dim: int = 512,
        num_keywords: int = 8,
        dropout: float = 0.1,
        forbidden: Sequence[int] = RELEASED_SPECIAL,
    ) -> None:
        super().__init__()
        self.num_keywords = num_keywords
        self.cls = nn.Parameter(torch.randn(1, num_keywords, dim))
        self.self_att = _KeywordAttention(dim, dropout)
        self.linear_proj = nn.Linear(dim, text_dim)
        self.bn_layer = KeywordNorm(num_keywords, text_dim)
        self.vector_quantizer = VectorQuantizer(forbidden=forbidden)

    def forward(self, sequence: Tensor, lengths: Tensor, table: Tensor) -> tuple[Tensor, Quantized]:
        """Return keywords `(B, K, W)` and their choice from `(B, T, D)`, `lengths`, and a table `(V, W)`."""
        stacked, padding = with_tokens(self.cls, sequence, lengths)
        keywords = self.bn_layer(self.linear_proj(self.self_att(stacked, padding, self.num_keywords)))
        scores = functional.normalize(keywords, dim=-1) @ functional.normalize(table, dim=-1).T
        quantized = self.vector_quantizer(scores)
        return quantized.choices.to(table.dtype) @ table, quantized


class CascadedSpeechClip(nn.Module):
    """Encode speech into CLIP's joint space through keywords and CLIP's text transformer.

    Args:
        tower: a key of `TOWERS`, or `small`; see `SpeechClip`.
        weights_path: file of a published tower's weights.
        sha256: expected hash of that file.
        source: `wave` or `states`, see `SpeechClip`.
        num_keywords: keywords K.
        vocab_size: rows of the reduced token table.
        text_dim: width of CLIP's text transformer: 512 for ViT-B/32, 768 for ViT-L/14.
        text_layers: its layers.
        embed_dim: width of the joint space; 0: `text_dim`.
        special: rows of padding, start and end of text in the reduced table.
        clip_path: CLIP's weights, a state dict in OpenAI's names; None: random until a checkpoint is
            loaded.
        vocabulary_path: `.npy` of `(V, 2)` int64, CLIP's ids and their counts; its rows replace
            `vocab_size` and `special`.
        dropout: of the attention (and in `small`).
        normalise_states: see `SpeechClip`.
        legacy_len: see `SpeechTower`.
        mel_dim: `small`, mel bands; 1: waveforms.

    Raises: ConfigError, CheckpointError: sizes or files that do not fit.
    Source: Shih et al. 2022 (SpeechCLIP).  Differs: the batch norm starts in the right order.
    """

    def __init__(
        self,
        tower: str = "hubert_base",
        weights_path: Path | str | None = None,
        sha256: str | None = None,
        source: str = "wave",
        num_keywords: int = 8,
        vocab_size: int = 8112,
        text_dim: int = 512,
        text_layers: int = 12,
        embed_dim: int = 0,
        special: Sequence[int] = RELEASED_SPECIAL,
        clip_path: Path | str | None = None,
        vocabulary_path: Path | str | None = None,
        dropout: float = 0.1,
        normalise_states: bool | None = None,
        legacy_len: bool = False,
        mel_dim: int = 40,
    ) -> None:
        super().__init__()
        ids = None if vocabulary_path is None else read_vocabulary(vocabulary_path)
        if ids is not None:
            vocab_size, special = len(ids), special_columns(ids)
        small = tower == "small"
        encoder: Any = (
            SmallTower(mel_dim, dropout=dropout)
            if small
            else make_tower(tower, weights_path, sha256, source, legacy_len)
        )
        normalises = (small or tower_spec(tower).layer_norm) if normalise_states is None else normalise_states
        self.audio_encoder = AudioEncoder(encoder, normalises)
        self.cascaded_branch = CascadedBranch(encoder.dim, text_dim, num_keywords, dropout, special)
        self.clip = nn.Module()
        self.clip.model = ClipText(vocab_size, text_dim, text_layers, embed_dim, special)
        if clip_path is not None:
            load_clip_text(self.clip.model, clip_path, ids)
        self.cascaded_branch.bn_layer.start_from(self.clip.model.token_embedding.weight)
        self.sentence_dim = self.clip.model.embed_dim
        self.words_dim, self.mel_dim = encoder.dim, encoder.mel_dim

    def keywords(self, speech: SpeechBatch) -> Tensor:
        """Return the rows `(B, K)` of the reduced table that a batch is heard as."""
        model: Any = self.clip.model
        return self.cascaded_branch(*self.audio_encoder(speech), model.token_embedding.weight)[1].columns

    def forward(self, speech: SpeechBatch) -> Condition:
        """Encode a batch; inputs and results as in `SpeechClip`."""
        model: Any = self.clip.model
        sequence, lengths = self.audio_encoder(speech)
        keywords, _ = self.cascaded_branch(sequence, lengths, model.token_embedding.weight)
        return condition_of(functional.normalize(model.encode_keywords(keywords), dim=1), sequence, lengths)


def read_vocabulary(path: Path | str) -> np.ndarray:
    """Return CLIP's ids `(V,)` of a reduced vocabulary file, `.npy` of `(V, 2)` int64.

    Raises: CheckpointError: missing, damaged, or of another form.
    """
    try:
        table = read_npy(Path(path).read_bytes())
    except (OSError, ValueError) as error:
        raise CheckpointError(f"vocabulary {path} cannot be read: {error}", "Check the path.") from error
    if table.ndim != 2 or table.shape[1] != 2 or table.dtype.kind != "i":
        raise CheckpointError(
            f"vocabulary {path} holds {table.dtype} {table.shape}, expected int64 (V, 2)",
            "Give SpeechCLIP's file of CLIP ids and their counts.",
        )
    return table[:, 0]
