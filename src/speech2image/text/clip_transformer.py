"""OpenAI CLIP's text transformer: tokens of captions, or keywords of speech, to states and joint vectors.

Frozen, in the tensor names of CLIP's own checkpoints.  `clip_text.py` feeds it captions; the cascaded
SpeechCLIP (`speech/cascaded.py`) feeds it keywords.  The tokenizer is in `tokenizer.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from speech2image.errors import CheckpointError
from speech2image.weight_files import load_into, read_local_weights

CONTEXT = 77
START_ID, END_ID, PAD_ID = 49406, 49407, 0
CLIP_URL = "https://huggingface.co/timm/vit_base_patch32_clip_224.openai (open_clip_model.safetensors)"


class QuickGelu(nn.Module):
    """CLIP's activation, x sigmoid(1.702 x)."""

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the activation of `inputs`."""
        return inputs * torch.sigmoid(1.702 * inputs)


class _TextBlock(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.attn = nn.MultiheadAttention(width, heads, batch_first=True)
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.mlp = nn.Sequential()
        self.mlp.add_module("c_fc", nn.Linear(width, 4 * width))
        self.mlp.add_module("gelu", QuickGelu())
        self.mlp.add_module("c_proj", nn.Linear(4 * width, width))

    def forward(self, states: Tensor, unseen: Tensor) -> Tensor:
        inputs = self.ln_1(states)
        states = states + self.attn(inputs, inputs, inputs, need_weights=False, attn_mask=unseen)[0]
        return states + self.mlp(self.ln_2(states))


class ClipText(nn.Module):
    """OpenAI CLIP's text transformer on a (reduced) token table; frozen, always in evaluation mode.

    Args:
        vocab_size: rows V of the token table.
        width: width of the transformer and of the table.
        layers: transformer layers.
        embed_dim: width of the joint space; 0: `width`.
        special: rows of padding, start and end of text.

    Source: openai/CLIP, `model.py`; SpeechCLIP, `clip_official.py: encode_keywords`.  Differs: steps
        behind the end of text are not computed; attention is causal, so nothing depends on them.
    """

    def __init__(
        self,
        vocab_size: int = 49408,
        width: int = 512,
        layers: int = 12,
        embed_dim: int = 0,
        special: Sequence[int] = (PAD_ID, START_ID, END_ID),
    ) -> None:
        super().__init__()
        self.width, self.embed_dim, self.special = width, embed_dim or width, tuple(special)
        self.pretrained = False
        self.token_embedding = nn.Embedding(vocab_size, width)
        self.positional_embedding = nn.Parameter(0.01 * torch.randn(CONTEXT, width))
        self.transformer = nn.Module()
        heads = max(1, width // 64)
        self.transformer.resblocks = nn.ModuleList([_TextBlock(width, heads) for _ in range(layers)])
        self.ln_final = nn.LayerNorm(width)
        self.text_projection = nn.Parameter(width**-0.5 * torch.randn(width, self.embed_dim))
        self.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> ClipText:
        """Stay in evaluation mode, whatever `mode` says."""
        return super().train(False)

    def encode_keywords(self, keywords: Tensor) -> Tensor:
        """Return `(B, E)`, not normalised, of the sentence start, keywords `(B, K, W)`, end."""
        _, start, end = self.special
        borders = self.token_embedding.weight[[start, end]].to(keywords.dtype).expand(len(keywords), -1, -1)
        return self._encode(torch.cat([borders[:, :1], keywords, borders[:, 1:]], dim=1))

    def encode_tokens(self, tokens: Tensor) -> Tensor:
        """Return `(B, E)`, not normalised, of rows `(B, N)` int64 of the table whose last is the end."""
        return self._encode(self.token_embedding(tokens))

    def token_states(self, tokens: Tensor) -> Tensor:
        """Return states `(B, N, W)` after the last norm of rows `(B, N)` int64 of the table."""
        return self.ln_final(self._states(self.token_embedding(tokens)))

    def _encode(self, inputs: Tensor) -> Tensor:
        return self.ln_final(self._states(inputs)[:, -1]) @ self.text_projection

    def _states(self, inputs: Tensor) -> Tensor:
        steps = inputs.shape[1]
        states = inputs + self.positional_embedding[:steps]
        unseen = torch.ones(steps, steps, dtype=torch.bool, device=inputs.device).triu(1)
        blocks: Any = self.transformer.resblocks
        for block in blocks:
            states = block(states, unseen)
        return states


def load_clip_text(
    text: ClipText, path: Path | str, original_ids: np.ndarray | None = None, sha256: str | None = None
) -> None:
    """Fill a text transformer from a CLIP state dict.

    Args:
        text: filled in place.
        path: local file in OpenAI's names, whole or its text side.
        original_ids: rows of the file's token table that `text` has; None: all.
        sha256: expected hash of the file, or its first digits; None: not compared.

    Raises: CheckpointError: missing, damaged, of another hash, or another network.
    """
    own = text.state_dict()
    state, _ = read_local_weights(path, "CLIP's text transformer", CLIP_URL, sha256)
    kept = {name: value.float() for name, value in state.items() if name in own}
    if original_ids is not None and "token_embedding.weight" in kept:
        table = kept["token_embedding.weight"]
        if int(original_ids.max()) >= len(table):
            raise CheckpointError(
                f"{path} has {len(table)} tokens, the vocabulary names id {int(original_ids.max())}",
                "Give CLIP's full weights.",
            )
        kept["token_embedding.weight"] = table[torch.from_numpy(original_ids.astype(np.int64))]
    load_into(text, kept, path, "CLIP's text transformer")
    text.pretrained = True
