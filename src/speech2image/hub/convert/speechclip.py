"""Released SpeechCLIP checkpoints: `epoch_<n>-step_<m>-….ckpt`, parallel and cascaded.

A trainer's checkpoint: `state_dict` beside `hyper_parameters`, which holds an object of the project's
own class; an empty object is put in its place, no code of the file runs.  The speech tower comes along
in fairseq's names and becomes torchaudio's; CLIP's image tower is left out (`vision/clip_tower.py`
loads it from its own file), as are masks, pretraining heads and the second copy of CLIP.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from speech2image.errors import CheckpointError
from speech2image.hub.convert.converted import Converted, require, require_shapes
from speech2image.hub.weights import read_foreign
from speech2image.speech.towers import TOWERS, TowerSpec

PARALLEL = "speech2image.speech.speechclip.SpeechClip"
CASCADED = "speech2image.speech.cascaded.CascadedSpeechClip"
LOSS = "speech2image.losses.contrastive.MaskedContrastiveLoss"
_TOWER = "audio_encoder.encoder."
_SETTINGS_CLASS = "avssl.base.ordered_namespace.OrderedNamespace"
_LAYER = r"encoder\.layers\.(\d+)\."
_RENAMED = (
    (r"feature_extractor\.conv_layers\.(\d+)\.0\.", r"feature_extractor.conv_layers.\1.conv."),
    (r"feature_extractor\.conv_layers\.(\d+)\.2\.1\.", r"feature_extractor.conv_layers.\1.layer_norm."),
    (r"feature_extractor\.conv_layers\.0\.2\.", r"feature_extractor.conv_layers.0.layer_norm."),
    (r"layer_norm\.", r"encoder.feature_projection.layer_norm."),
    (r"post_extract_proj\.", r"encoder.feature_projection.projection."),
    (
        r"encoder\.pos_conv\.0\.weight_g",
        r"encoder.transformer.pos_conv_embed.conv.parametrizations.weight.original0",
    ),
    (
        r"encoder\.pos_conv\.0\.weight_v",
        r"encoder.transformer.pos_conv_embed.conv.parametrizations.weight.original1",
    ),
    (r"encoder\.pos_conv\.0\.bias", r"encoder.transformer.pos_conv_embed.conv.bias"),
    (r"encoder\.layer_norm\.", r"encoder.transformer.layer_norm."),
    (_LAYER + r"self_attn\.", r"encoder.transformer.layers.\1.attention."),
    (_LAYER + r"self_attn_layer_norm\.", r"encoder.transformer.layers.\1.layer_norm."),
    (_LAYER + r"fc1\.", r"encoder.transformer.layers.\1.feed_forward.intermediate_dense."),
    (_LAYER + r"fc2\.", r"encoder.transformer.layers.\1.feed_forward.output_dense."),
    (_LAYER + r"final_layer_norm\.", r"encoder.transformer.layers.\1.final_layer_norm."),
)


def convert(path: Path) -> Converted:
    """Read a released SpeechCLIP encoder; the names inside decide between parallel and cascaded.

    Returns: arguments and state of `SpeechClip` or `CascadedSpeechClip`, `legacy_len` as trained.
    Raises:  CheckpointError: another system, an unknown speech tower, or sizes that contradict.
    """
    state = _read(path)
    require(state, ["audio_encoder.weightedsum_layer.weights"], path, "a SpeechCLIP checkpoint")
    if "parallel_branch.cls" in state:
        return _parallel(state, path)
    require(state, ["cascaded_branch.cls"], path, "a SpeechCLIP checkpoint with a branch we know")
    return _cascaded(state, path)


def convert_loss(path: Path) -> Converted:
    """Read the learned temperature of a released checkpoint (large models; base ones have none).

    Raises: CheckpointError: another system, or no learned temperature.
    """
    state = _read(path)
    require(state, ["criterion.temperature"], path, "a SpeechCLIP checkpoint with a learned temperature")
    kept = {"temperature": state["criterion.temperature"].reshape(())}
    dropped = tuple(name for name in state if name != "criterion.temperature")
    return Converted(LOSS, {"trainable": True, "max_scale": float("inf")}, kept, dropped)


def _read(path: Path) -> dict[str, Tensor]:
    return read_foreign(path, [_SETTINGS_CLASS])


def _parallel(state: Mapping[str, Tensor], path: Path) -> Converted:
    what, layer = "SpeechCLIP parallel branch", "parallel_branch.self_att.model.layers.0."
    needed = ["parallel_branch.linear_proj.weight", layer + "linear1.weight"]
    require(state, needed, path, f"a {what}")
    embed_dim, dim = state["parallel_branch.linear_proj.weight"].shape
    ff_dim = state[layer + "linear1.weight"].shape[0]
    expected: dict[str, tuple[int, ...]] = {
        "parallel_branch.cls": (1, 1, dim),
        layer + "self_attn.in_proj_weight": (3 * dim, dim),
        layer + "linear2.weight": (dim, ff_dim),
        "parallel_branch.linear_proj.bias": (embed_dim,),
    }
    require_shapes(state, expected, path, what)
    arguments = {
        "tower": _tower_name(state, path, dim),
        "embed_dim": embed_dim,
        "ff_dim": ff_dim,
        "num_layers": _count(state, r"parallel_branch\.self_att\.model\.layers\.(\d+)\.linear1\.weight"),
        "legacy_len": True,
    }
    return _split(PARALLEL, arguments, state, ("parallel_branch.",))


def _cascaded(state: Mapping[str, Tensor], path: Path) -> Converted:
    what = "SpeechCLIP cascaded branch"
    table, projection = "clip.model.token_embedding.weight", "clip.model.text_projection"
    require(state, ["cascaded_branch.linear_proj.weight", table, projection], path, f"a {what}")
    text_dim, dim = state["cascaded_branch.linear_proj.weight"].shape
    num_keywords = state["cascaded_branch.cls"].shape[1]
    expected: dict[str, tuple[int, ...]] = {
        "cascaded_branch.bn_layer.bn_layer.weight": (num_keywords * text_dim,),
        "cascaded_branch.self_att.multihead_attn_layer.in_proj_weight": (3 * dim, dim),
        table: (state[table].shape[0], text_dim),
    }
    require_shapes(state, expected, path, what)
    arguments = {
        "tower": _tower_name(state, path, dim),
        "num_keywords": num_keywords,
        "vocab_size": state[table].shape[0],
        "text_dim": text_dim,
        "text_layers": _count(state, r"clip\.model\.transformer\.resblocks\.(\d+)\.ln_1\.weight"),
        "embed_dim": state[projection].shape[1],
        "legacy_len": True,
    }
    return _split(CASCADED, arguments, state, ("cascaded_branch.", "clip.model."))


def _split(
    target: str, arguments: dict[str, Any], state: Mapping[str, Tensor], branches: tuple[str, ...]
) -> Converted:
    """Sort the tensors of a checkpoint into what our class takes and what it has no use for."""
    kept, dropped = {}, []
    for name, value in state.items():
        if name.startswith(_TOWER):
            renamed = _torchaudio_name(name.removeprefix(_TOWER))
            if renamed is None:
                dropped.append(name)
            else:
                kept[f"{_TOWER}network.{renamed}"] = value
        elif name.startswith("audio_encoder.weightedsum_layer.") or (
            name.startswith(branches) and not name.startswith(_SECOND_COPIES)
        ):
            kept[name] = value.float() if name.startswith("clip.") else value
        else:
            dropped.append(name)
    return Converted(target, arguments, kept, tuple(dropped))


_SECOND_COPIES = ("cascaded_branch.clip.", "clip.model.visual.", "clip.model.logit_scale")


def _torchaudio_name(name: str) -> str | None:
    """Return torchaudio's name of a tensor of fairseq's HuBERT; None: a pretraining head."""
    for pattern, replacement in _RENAMED:
        if re.match(pattern, name):
            return re.sub("^" + pattern, replacement, name)
    return None


def _tower_name(state: Mapping[str, Tensor], path: Path, dim: int) -> str:
    layers = _count(state, re.escape(_TOWER) + r"encoder\.layers\.(\d+)\.fc1\.weight")
    large_form = _TOWER + "feature_extractor.conv_layers.1.2.1.weight" in state
    for name, spec in TOWERS.items():
        if (
            name.startswith("hubert")
            and (spec.dim, spec.num_layers, spec.layer_norm) == (dim, layers, large_form)
            and _has_width(state, spec)
        ):
            return name
    raise CheckpointError(
        f"{path} has a speech tower of {layers} layers, width {dim}, which is neither HuBERT-base nor -large",
        "This version imports the released SpeechCLIP models, whose towers are these two.",
    )


def _has_width(state: Mapping[str, Tensor], spec: TowerSpec) -> bool:
    first = state.get(_TOWER + "encoder.layers.0.fc1.weight")
    return first is not None and tuple(first.shape) == (spec.ff_dim, spec.dim)


def _count(state: Mapping[str, Tensor], pattern: str) -> int:
    return sum(1 for name in state if re.fullmatch(pattern, name))
