"""Released S2IGAN speech embedding networks: `best_audio_model.pth` and its companions.

The audio model becomes `ConvGru`; of the image and the class model one linear layer each is taken.
Each file is a plain state dict with or without `module.`.
"""

from __future__ import annotations

import re
from pathlib import Path

from speech2image.hub.convert.converted import Converted, require, require_shapes
from speech2image.hub.weights import read_foreign

SPEECH = "speech2image.speech.conv_gru.ConvGru"
LINEAR = "torch.nn.Linear"


def convert(path: Path) -> Converted:
    """Read a released speech encoder, `best_audio_model.pth`.

    Returns: arguments and state of `ConvGru`.  `mask_attention` is False as in training of the
        released weights; for one utterance at a time, as embeddings are extracted, it is the same.
    Raises:  CheckpointError: another system, or sizes that contradict.
    """
    state = read_foreign(path)
    what = "S2IGAN speech encoder"
    needed = ["Conv1.weight", "Conv2.weight", "rnn.weight_ih_l0", "rnn.weight_ih_l0_reverse"]
    require(state, [*needed, "att.att_heads.0.hidden.weight"], path, f"an {what}")
    hidden_channels, mel_dim = state["Conv1.weight"].shape[:2]
    out_channels = state["Conv2.weight"].shape[0]
    rnn_dim = state["rnn.weight_hh_l0"].shape[1]
    attention_dim = state["att.att_heads.0.hidden.weight"].shape[0]
    expected = {
        "Conv1.weight": (hidden_channels, mel_dim, 6),
        "Conv2.weight": (out_channels, hidden_channels, 6),
        "rnn.weight_ih_l0": (3 * rnn_dim, out_channels),
        "rnn.weight_hh_l0": (3 * rnn_dim, rnn_dim),
        "att.att_heads.0.hidden.weight": (attention_dim, 2 * rnn_dim),
        "att.att_heads.0.out.weight": (2 * rnn_dim, attention_dim),
    }
    require_shapes(state, expected, path, what)
    arguments = {
        "mel_dim": mel_dim,
        "hidden_channels": hidden_channels,
        "out_channels": out_channels,
        "rnn_dim": rnn_dim,
        "rnn_layers": sum(1 for name in state if re.fullmatch(r"rnn\.weight_ih_l\d+", name)),
        "attention_dim": attention_dim,
        "attention_heads": sum(
            1 for name in state if re.fullmatch(r"att\.att_heads\.\d+\.hidden\.weight", name)
        ),
        "mask_attention": False,
    }
    return Converted(SPEECH, arguments, state)


def convert_image_model(path: Path) -> Converted:
    """Read the head of a released image model, `best_image_model.pth`, as one linear layer.

    It belongs into `InceptionBranch.L1`, 2,048 pooled Inception features to the embedding; the
    frozen ImageNet trunk before it is torchvision's and is dropped where a file holds it.

    Raises:  CheckpointError: no such layer in the file.
    """
    return _linear(path, "an S2IGAN image model")


def convert_class_model(path: Path) -> Converted:
    """Read a released class model, `best_class_model.pth`, as one linear layer.

    Raises:  CheckpointError: no such layer in the file.
    """
    return _linear(path, "an S2IGAN class model")


def _linear(path: Path, what: str) -> Converted:
    state = read_foreign(path)
    require(state, ["L1.weight", "L1.bias"], path, what)
    out_features, in_features = state["L1.weight"].shape
    require_shapes(state, {"L1.bias": (out_features,)}, path, what)
    kept = {"weight": state["L1.weight"], "bias": state["L1.bias"]}
    dropped = tuple(name for name in state if not name.startswith("L1."))
    return Converted(LINEAR, {"in_features": in_features, "out_features": out_features}, kept, dropped)
