"""Captions to a condition by CLIP's text side, as VQ-Diffusion reads them.

The encoder is frozen and needs two local files: CLIP's weights and its vocabulary.  The transformer is in
`clip_transformer.py`, the tokenizer in `tokenizer.py`; embeddings of a corpus are kept by `training/conditions.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from speech2image.text.clip_transformer import CONTEXT, ClipText, load_clip_text
from speech2image.text.tokenizer import VOCABULARY_SHA256, ClipTokenizer
from speech2image.types import Condition


class ClipTextEncoder(nn.Module):
    """Encode captions; never trained.

    Args:
        weights_path: local CLIP state dict in OpenAI's names; None: random until a checkpoint is loaded.
        sha256: expected hash of that file, or its first digits; None: not compared.
        vocabulary_path: local `bpe_simple_vocab_16e6.txt.gz`, read when the first caption comes; None: the
            copy inside open_clip_torch.
        vocabulary_sha256: expected hash of it; None: not compared.
        vocab_size: rows of the token table.
        width: width W of the transformer (512: ViT-B/32).
        layers: its layers.
        embed_dim: width E of the joint space.
        read_padding: words are all 77 positions, padding included, as VQ-Diffusion was released; False: they
            end with the end of text, which takes a quarter of the space.

    Raises: CheckpointError: a file is missing, damaged or of another network.
    Source: VQ-Diffusion, section 5.1; reference `clip_text_embedding.py`: states after the last norm, each of
        unit length, not projected.  Differs: float32, where the released tower runs in float16.
    """

    def __init__(
        self,
        weights_path: Path | str | None = None,
        sha256: str | None = None,
        vocabulary_path: Path | str | None = None,
        vocabulary_sha256: str | None = VOCABULARY_SHA256,
        vocab_size: int = 49408,
        width: int = 512,
        layers: int = 12,
        embed_dim: int = 512,
        read_padding: bool = True,
    ) -> None:
        super().__init__()
        self.model = ClipText(vocab_size, width, layers, embed_dim)
        self.vocabulary = (vocabulary_path, vocabulary_sha256)
        self.sentence_dim, self.words_dim, self.read_padding = embed_dim, width, read_padding
        self._tokenizer: ClipTokenizer | None = None
        if weights_path is not None:
            load_clip_text(self.model, weights_path, sha256=sha256)
        self.requires_grad_(False).eval()

    @property
    def tokenizer(self) -> ClipTokenizer:
        """Return the tokenizer, read from its file on first use."""
        if self._tokenizer is None:
            self._tokenizer = ClipTokenizer(*self.vocabulary)
        return self._tokenizer

    def train(self, mode: bool = True) -> ClipTextEncoder:
        """Stay in evaluation mode, whatever `mode` says."""
        return super().train(False)

    def forward(self, captions: Sequence[str]) -> Condition:
        """Encode captions.

        Returns: sentence `(B, E)` of unit length, words `(B, W, N)`, each of unit length, and their mask;
            N is 77, or the longest caption where padding is not read.
        """
        rows = self.tokenizer(captions)
        tokens = torch.from_numpy(rows).to(self.model.positional_embedding.device)
        ends = (tokens == self.tokenizer.end).int().argmax(dim=1)
        num_words = (
            CONTEXT if self.read_padding else int((rows == self.tokenizer.end).argmax(axis=1).max()) + 1
        )
        return self.encode(tokens[:, :num_words], ends)

    def encode(self, tokens: Tensor, ends: Tensor) -> Condition:
        """Encode tokens `(B, N)` int64 whose end of text stands at `ends` `(B,)`; as `forward`."""
        states = self.model.token_states(tokens)
        last = states[torch.arange(len(states), device=states.device), ends]
        places = torch.arange(states.shape[1], device=states.device)
        mask = (places <= ends[:, None]) | self.read_padding
        words = functional.normalize(states, dim=-1) * mask[:, :, None]
        sentence = functional.normalize(last @ self.model.text_projection, dim=-1)
        return Condition(sentence, words.transpose(1, 2), mask)
