"""Where a trained encoder listens: its attention over one recording after the other, for the report.

Encoders that pool by attention have it (`ConvGru` with pool `attention`, the [CLS] branch of `SpeechClip`);
the others, and runs without weights, give nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from speech2image.report.attention import Attention


def attend(folder: Path, waves: Mapping[str, Path]) -> dict[str, Attention]:
    """Return the attention of the encoder in `folder` over recordings; nothing where it has none.

    Args:
        folder: run folder of a speech encoder.
        waves: recordings by utterance.
    Cost:    one pass of the encoder a recording; torch is loaded only where the run has weights.
    """
    if not (folder / "weights.safetensors").is_file():
        return {}
    import torch

    from speech2image.app.generate import _speech_batch
    from speech2image.data.front_ends import front_end_of
    from speech2image.errors import Speech2ImageError
    from speech2image.training.runs import load_encoder, read_run

    found: dict[str, Attention] = {}
    try:
        run = read_run(folder)
        front_end = front_end_of(run.config["audio"])
        encoder = load_encoder(run)[0].eval()
        if front_end is None or not _has_attention(encoder):
            return {}
        with torch.no_grad():
            for key, path in waves.items():
                found[key] = _attention(encoder, _speech_batch(path, front_end), front_end)
    except Speech2ImageError as error:
        print(f"attention of {folder.name} is not shown: {error}")
        return {}
    return found


def _has_attention(encoder: Any) -> bool:
    from speech2image.speech.conv_gru import ConvGru
    from speech2image.speech.speechclip import SpeechClip

    return isinstance(encoder, SpeechClip) or (isinstance(encoder, ConvGru) and encoder.pool == "attention")


def _attention(encoder: Any, speech: Any, front_end: Any) -> Attention:
    from speech2image.speech.conv_gru import KERNEL, STRIDE, ConvGru

    is_convolution = isinstance(encoder, ConvGru)
    weights = conv_gru_weights(encoder, speech) if is_convolution else cls_weights(encoder, speech)
    samples_per_feature = 1 if encoder.mel_dim == 1 else getattr(front_end, "hop_samples", 320)
    frame_ms = 1000.0 * samples_per_feature / front_end.sample_rate_hz
    if is_convolution:
        # Two convolutions of the same kernel and stride: the first step hears frames 0 to 15.
        first = (KERNEL - 1) * (1 + STRIDE) / 2.0
        return Attention(tuple(weights), STRIDE * STRIDE * frame_ms, first * frame_ms)
    hop_ms = frame_ms * float(speech.lengths[0]) / len(weights)
    return Attention(tuple(weights), hop_ms, hop_ms / 2.0)


def conv_gru_weights(encoder: Any, speech: Any) -> list[float]:
    """Return the weight of each step of one utterance, mean over heads and features; they sum to 1.

    Args:
        encoder: a `ConvGru` with pool `attention`.
        speech: a batch of one.
    """
    states, steps = encoder.encode(speech)
    weights = encoder.att(states[:, : int(steps[0])], None)
    return [float(weight) for weight in weights.mean(dim=(0, 3))[0]]


def cls_weights(encoder: Any, speech: Any) -> list[float]:
    """Return how much the [CLS] token of the last layer takes of each step, mean over heads.

    Args:
        encoder: a `SpeechClip`.
        speech: a batch of one.
    """
    from speech2image.speech.speechclip import with_tokens

    sequence, lengths = encoder.audio_encoder(speech)
    branch = encoder.parallel_branch
    stacked, padding = with_tokens(branch.cls, sequence, lengths)
    layers = branch.self_att.model.layers
    for layer in layers[:-1]:
        stacked = layer(stacked, src_key_padding_mask=padding)
    weights = layers[-1].self_attn(
        stacked[:, :1],
        stacked,
        stacked,
        key_padding_mask=padding,
        need_weights=True,
        average_attn_weights=True,
    )[1]
    return [float(weight) for weight in weights[0, 0, 1 : 1 + int(lengths[0])]]
