"""The speech encoder of S2IGAN: two strided convolutions, a bidirectional GRU, attention.

Here: the network alone, in the names of the released checkpoints (its paper calls it the speech
branch of the speech embedding network, SEN).  The image branch is in `vision/branch.py`, the
losses in `losses/matching.py`, the front end is `s2igan` in `audio/features.py`.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from speech2image.errors import ConfigError
from speech2image.speech.recurrent import run_recurrent
from speech2image.types import Condition, SpeechBatch

KERNEL, STRIDE, LEAST_FRAMES = 6, 2, 16
POOLS = ("attention", "mean")


def _after_convolution(length: Tensor) -> Tensor:
    return torch.div(length - (KERNEL - STRIDE), STRIDE, rounding_mode="floor")


class _Head(nn.Module):
    """Weigh every feature of every step: softmax over time of a small network."""

    def __init__(self, dim: int, attention_dim: int) -> None:
        super().__init__()
        self.hidden = nn.Linear(dim, attention_dim)
        self.out = nn.Linear(attention_dim, dim)
        nn.init.orthogonal_(self.hidden.weight)

    def forward(self, states: Tensor, mask: Tensor | None) -> Tensor:
        scores = self.out(torch.tanh(self.hidden(states)))
        if mask is not None:
            scores = scores.masked_fill(~mask[:, :, None], -torch.inf)
        return scores.softmax(dim=1)


class _Attention(nn.Module):
    def __init__(self, dim: int, attention_dim: int, heads: int) -> None:
        super().__init__()
        self.att_heads = nn.ModuleList([_Head(dim, attention_dim) for _ in range(heads)])

    def forward(self, states: Tensor, mask: Tensor | None) -> Tensor:
        """Return the weights of all heads, `(heads, B, N, D)`, from `states` `(B, N, D)`."""
        return torch.stack([head(states, mask) for head in self.att_heads])


class ConvGru(nn.Module):
    """Encode log-mel frames into one vector per 40 ms and one unit vector per utterance.

    Args:
        mel_dim: mel bands M.
        hidden_channels: channels of the first convolution.
        out_channels: channels of the second convolution, input of the GRU.
        rnn_dim: units of each direction; words have twice as many.
        rnn_layers: layers of the GRU.
        attention_dim: units inside an attention head.
        attention_heads: heads; their vectors are concatenated.
        mask_attention: keep padding out of the pooling; False: as released, where an embedding
            depends on the longest utterance of its batch.
        pool: `attention`, or `mean` over time.

    Raises: ConfigError: a pool that does not exist or a size below 1.
    Source: Wang et al. 2020 (S2IGAN), section 3.1; reference `models/AudioModels.py:
        CNN_RNN_ENCODER` (no nonlinearity between its convolutions).  Differs: any order of lengths,
        at least one step, `mask_attention`.
    """

    def __init__(
        self,
        mel_dim: int = 40,
        hidden_channels: int = 64,
        out_channels: int = 128,
        rnn_dim: int = 512,
        rnn_layers: int = 2,
        attention_dim: int = 128,
        attention_heads: int = 1,
        mask_attention: bool = True,
        pool: str = "attention",
    ) -> None:
        super().__init__()
        sizes = (mel_dim, hidden_channels, out_channels, rnn_dim, rnn_layers, attention_dim, attention_heads)
        if pool not in POOLS or min(sizes) < 1:
            raise ConfigError(
                f"ConvGru with pool {pool!r} and sizes {sizes} cannot be built",
                f"Use positive sizes and one of the pools: {', '.join(POOLS)}.",
            )
        self.mel_dim, self.mask_attention, self.pool = mel_dim, mask_attention, pool
        self.words_dim = 2 * rnn_dim
        self.sentence_dim = self.words_dim * (attention_heads if pool == "attention" else 1)
        self.Conv1 = nn.Conv1d(mel_dim, hidden_channels, KERNEL, stride=STRIDE)
        self.Conv2 = nn.Conv1d(hidden_channels, out_channels, KERNEL, stride=STRIDE)
        self.bnorm1 = nn.BatchNorm1d(hidden_channels)
        self.bnorm2 = nn.BatchNorm1d(out_channels)
        self.rnn = nn.GRU(out_channels, rnn_dim, rnn_layers, batch_first=True, bidirectional=True)
        if pool == "attention":
            self.att = _Attention(self.words_dim, attention_dim, attention_heads)

    def encode(self, speech: SpeechBatch) -> tuple[Tensor, Tensor]:
        """Return the GRU's states `(B, N, 2 rnn_dim)`, zero beyond the steps, and steps `(B,)`.

        N is the number of steps of the longest item; steps are on the device of the states.
        """
        frames = speech.features
        short = max(0, LEAST_FRAMES - frames.shape[1])
        maps = self.bnorm1(self.Conv1(functional.pad(frames, (0, 0, 0, short)).transpose(1, 2)))
        maps = self.bnorm2(self.Conv2(maps))
        steps = _after_convolution(_after_convolution(speech.lengths.cpu())).clamp(1, maps.shape[2])
        states = run_recurrent(self.rnn, maps.transpose(1, 2)[:, : int(steps.max())], steps)
        return states, steps.to(states.device, non_blocking=True)

    def pool_states(self, states: Tensor, steps: Tensor) -> Tensor:
        """Return the sentence `(B, D)` before it is normalised, from the results of `encode`."""
        mask = self._mask(states, steps)
        if self.pool == "attention":
            weights = self.att(states, mask if self.mask_attention else None)
            return (weights * states).sum(dim=2).transpose(0, 1).flatten(1)
        divisor = steps[:, None].to(states.dtype) if self.mask_attention else float(states.shape[1])
        return states.sum(dim=1) / divisor

    def forward(self, speech: SpeechBatch) -> Condition:
        """Encode a batch.

        Args:
            speech: features `(B, T, M)` and lengths `(B,)`; T and B at least 1.

        Returns: sentence `(B, D)` of unit length, words `(B, 2 rnn_dim, N)` zero beyond each
            item's steps, and their mask.
        Cost:    one device sync where lengths are on a GPU.
        """
        states, steps = self.encode(speech)
        sentence = functional.normalize(self.pool_states(states, steps), dim=1)
        return Condition(sentence, states.transpose(1, 2), self._mask(states, steps))

    @staticmethod
    def _mask(states: Tensor, steps: Tensor) -> Tensor:
        return torch.arange(states.shape[1], device=states.device) < steps[:, None]
