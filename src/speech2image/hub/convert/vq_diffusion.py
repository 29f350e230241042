"""Released VQ-Diffusion and S2IVQ-D (Speak the Art) checkpoints, and the parts nested in them.

A file of the training loop holds `model` (codec, text tower and transformer under prefixes) and `ema` (averaged
copies of the transformer side, which win).  Dead parameters, unused masks and training counters are dropped and
listed.  The codec inside goes to the codec's converter through `read_parts`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from speech2image.diffusion.schedule import MaskReplaceSchedule
from speech2image.diffusion.transformer import DEAD_KEYS
from speech2image.errors import CheckpointError
from speech2image.hub.convert.converted import Converted, require
from speech2image.hub.weights import must_exist, read_safetensors, unpickle_weights

TARGET = "speech2image.diffusion.transformer.DiffusionTransformer"
TEXT_TARGET = "speech2image.text.clip_text.ClipTextEncoder"
#: Heads of every released configuration; no file tells.
RELEASED_HEADS = 16
#: Pixels of the images that every released codec was used with.
RELEASED_IMAGE_PX = 256
_SCHEDULE_TOLERANCE = 1e-3
_LISTED = 6
_CODEC, _TEXT, _NULL = "content_codec.", "condition_emb.", "empty_text_embed"
_COUNTERS = ("Lt_history", "Lt_count")


@dataclass(frozen=True)
class ReleasedParts:
    """What one released file holds, averaged copies already in place.

    Attributes:
        transformer: names below `transformer.`, e.g. `blocks.0.ln1.emb.weight`.
        tables: the eight log tables of the schedule.
        codec: the image codec with the prefixes of its two halves taken off; empty where the file has none.
        text: the frozen CLIP text tower, empty for networks without text.
        null_words: `(77, 512)` learned empty text, or None.
        counters: names of the training counters.
        averaged: whether the values are the averaged ones.
    """

    transformer: dict[str, Tensor]
    tables: dict[str, Tensor]
    codec: dict[str, Tensor]
    text: dict[str, Tensor]
    null_words: Tensor | None
    counters: tuple[str, ...]
    averaged: bool


def convert(
    path: Path, heads: int = RELEASED_HEADS, activation: str = "gelu2", grid: tuple[int, int] | None = None
) -> Converted:
    """Read a released VQ-Diffusion transformer: text, class-conditional or unconditional.

    Args:
        path: `.pth` of the training loop, its `ema` alone, or safetensors of either.
        heads, activation: what no file tells; those of all released configurations.
        grid: `(H, W)` of the codes; None: found from the file, see `_find_grid`.

    Returns: arguments and state of `DiffusionTransformer`.  `table` differs from `grid` where the file has
        the position-table quirk.
    Raises:  CheckpointError: another system or S2IVQ-D, parts missing or unknown, another schedule, or
        sizes that contradict.
    """
    parts = read_parts(path)
    state = parts.transformer
    biases = [value for name, value in state.items() if re.fullmatch(r"blocks\.\d+\.ln2\.linear\.bias", name)]
    if biases and not any(value.any() for value in biases):
        raise CheckpointError(
            f"{path} has label norms that were never trained: it is an S2IVQ-D (Speak the Art) checkpoint",
            "Import it with system=s2ivq_d.",
        )
    form = "cross" if _has(state, "attn2.key.weight") else "class" if biases else "none"
    return _converted(path, parts, form, heads, activation, grid)


def convert_s2ivq_d(
    path: Path, heads: int = RELEASED_HEADS, activation: str = "gelu2", grid: tuple[int, int] | None = None
) -> Converted:
    """Read a released S2IVQ-D transformer, conditioned on the utterance vector itself.

    Args, Returns: as `convert`; the label norms, which nothing reads, are among `dropped`.
    Raises:  CheckpointError: as `convert`, or a network of text or without condition.
    """
    parts = read_parts(path)
    if not _has(parts.transformer, "ln2.linear.weight"):
        kind = "text" if _has(parts.transformer, "attn2.key.weight") else "unconditional"
        raise CheckpointError(
            f"{path} is a VQ-Diffusion {kind} network, not an S2IVQ-D one: its blocks have no label norms",
            "Import it with system=vq_diffusion.",
        )
    return _converted(path, parts, "modulation", heads, activation, grid)


def convert_text(path: Path) -> Converted | None:
    """Read the frozen CLIP text tower that the files of text networks hold.

    Returns: arguments and state of `ClipTextEncoder`, vocabulary not named; None where the file has no tower.
    Raises:  CheckpointError: as `convert`, or a tower of which parts are missing.
    """
    text = read_parts(path).text
    if not text:
        return None
    needed = ["token_embedding.weight", "text_projection", "transformer.resblocks.0.ln_1.weight"]
    require(text, needed, path, "a file with CLIP's text transformer")
    vocab_size, width = text["token_embedding.weight"].shape
    layers = {name.split(".")[2] for name in text if name.startswith("transformer.resblocks.")}
    arguments = {
        "vocab_size": vocab_size,
        "width": width,
        "layers": len(layers),
        "embed_dim": text["text_projection"].shape[1],
    }
    return Converted(TEXT_TARGET, arguments, {f"model.{name}": _single(v) for name, v in text.items()})


def read_parts(path: Path) -> ReleasedParts:
    """Take a released file apart; every tensor in it ends in one part or in an error.

    Args:    path: as `convert`.
    Raises:  CheckpointError: missing, damaged or hostile file, another system, tensors of no known part,
        values that are not finite, an average that does not cover the model, or a codec whose two copies of the
        code book differ.
    """
    model, ema = _read_nested(path)
    codec = {name: value for name, value in model.items() if name.startswith(_CODEC)}
    live = {name.removeprefix("transformer."): v for name, v in model.items() if name not in codec}
    _compare_names(live, ema, path)
    inner = ema or live
    names = ["log_at", "transformer.content_emb.emb.weight", "transformer.to_logits.1.weight"]
    require(inner, names, path, "a VQ-Diffusion transformer")
    transformer = _below(inner, "transformer.")
    text = _below(inner, _TEXT)
    tables = {name: inner[name] for name in inner if re.fullmatch(r"log_[a-z0-9_]+", name)}
    # The last entries of two tables are the logarithm of 0; `_check_schedule` compares all of them.
    bad = [name for name, v in (inner | codec).items() if name not in tables and not v.isfinite().all()]
    counters = tuple(name for name in _COUNTERS if name in inner)
    known = {*tables, *counters, _NULL}
    unknown = [name for name in inner if name not in known and not name.startswith(("transformer.", _TEXT))]
    if bad or unknown:
        kind, listed = (
            ("tensors of no known part", unknown) if unknown else ("values that are not finite", bad)
        )
        raise CheckpointError(
            f"{path} holds {len(listed)} {kind}: {_list(listed)}",
            "Give the file as released; a changed model cannot be imported.",
        )
    joined = _join_codec(codec, path)
    return ReleasedParts(transformer, tables, joined, text, inner.get(_NULL), counters, bool(ema))


def _read_nested(path: Path) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return the live model with its prefixes, and the average without; either may be empty."""
    must_exist(path)
    content: Any
    if path.suffix == ".safetensors":
        content = read_safetensors(path)[0]
    else:
        content = unpickle_weights(path)
    if isinstance(content, Mapping) and ("model" in content or "ema" in content):
        return _tensors(content.get("model")), _tensors(content.get("ema"))
    state = _tensors(content)
    alone = any(name.startswith("transformer.content_emb.") for name in state)
    return ({}, state) if alone else (state, {})


def _tensors(content: Any) -> dict[str, Tensor]:
    pairs = content.items() if isinstance(content, Mapping) else ()
    found = {str(name): value for name, value in pairs if isinstance(value, Tensor)}
    wrapped = bool(found) and all(name.startswith("module.") for name in found)
    return {name.removeprefix("module."): v for name, v in found.items()} if wrapped else found


def _compare_names(live: Mapping[str, Tensor], ema: Mapping[str, Tensor], path: Path) -> None:
    """Refuse an average that would leave some tensors at their live values."""
    if not live or not ema:
        return
    absent = [name for name in live if name not in ema]
    extra = [name for name in ema if name not in live]
    if absent or extra:
        raise CheckpointError(
            f"{path}: its average does not cover its model: {len(absent)} tensors missing ({_list(absent)}),"
            f" {len(extra)} unknown ({_list(extra)})",
            "The file is damaged or from a changed model; fetch the released one again.",
        )


def _join_codec(codec: Mapping[str, Tensor], path: Path) -> dict[str, Tensor]:
    joined: dict[str, Tensor] = {}
    for name, value in codec.items():
        short = re.sub(r"^(enc|dec)\.", "", name.removeprefix(_CODEC))
        if short in joined and not torch.equal(joined[short], value):
            raise CheckpointError(
                f"{path}: the encoder's and the decoder's copy of {short} differ",
                "The file is damaged or from a changed model; fetch the released one again.",
            )
        joined[short] = value
    return joined


def _converted(
    path: Path,
    parts: ReleasedParts,
    form: str,
    heads: int,
    activation: str,
    grid: tuple[int, int] | None,
) -> Converted:
    state = parts.transformer
    num_tokens, dim = state["to_logits.1.weight"].shape
    if dim % heads:
        raise CheckpointError(
            f"{path}: its width {dim} is no multiple of {heads} heads, the number of all released networks",
            "The number of heads stands in no file; only networks of the released family can be imported.",
        )
    _check_schedule(parts.tables, num_tokens, path)
    arguments = _sizes(parts, form, path) | {"heads": heads, "activation": activation}
    arguments["grid"] = _find_grid(parts, form, arguments["table"], path) if grid is None else grid
    dead = DEAD_KEYS.get(form)
    unused = [name for name in state if dead is not None and dead.fullmatch(name)]
    kept = {name: _single(value) for name, value in state.items() if name not in unused}
    if parts.null_words is not None and form == "cross":
        kept["null_words"] = _single(parts.null_words)
    dropped = [f"transformer.{name}" for name in unused]
    dropped += [*parts.tables, *parts.counters, *(_TEXT + name for name in parts.text)]
    dropped += [_CODEC + name for name in parts.codec]
    return Converted(TARGET, arguments, kept, tuple(dropped))


def _sizes(parts: ReleasedParts, form: str, path: Path) -> dict[str, Any]:
    """Infer the constructor arguments that shapes tell."""
    state = parts.transformer
    num_tokens, dim = state["to_logits.1.weight"].shape
    conv = _has(state, "mlp.conv1.weight")
    first = "blocks.0.mlp.conv1.weight" if conv else "blocks.0.mlp.0.weight"
    needed = ["content_emb.height_emb.weight", "content_emb.width_emb.weight", first]
    require(state, needed, path, "a VQ-Diffusion transformer")
    numbers = {int(found[1]) for name in state if (found := re.match(r"blocks\.(\d+)\.", name))}
    arguments: dict[str, Any] = {
        "num_tokens": num_tokens,
        "depth": max(numbers) + 1,
        "dim": dim,
        "conditioning": form,
        "num_steps": len(parts.tables["log_at"]),
        "table": (len(state[needed[0]]), len(state[needed[1]])),
        "mlp": "conv" if conv else "fc",
        "mlp_ratio": state[first].shape[0] / dim,
        "timestep": "learned" if _has(state, "ln1.emb.weight") else "absolute",
    }
    if form == "cross":
        arguments["words_dim"] = state["blocks.0.attn2.key.weight"].shape[1]
        if parts.null_words is not None:
            arguments |= {"null": "learned", "num_null_words": len(parts.null_words)}
    if form == "class":
        rows = len(state["blocks.0.ln2.emb.weight"])
        # The guided ImageNet network was trained with label 1000 as "no label".
        arguments |= {"num_classes": 1000, "null": "learned"} if rows == 1001 else {"num_classes": rows}
    return arguments


def _find_grid(parts: ReleasedParts, form: str, table: tuple[int, int], path: Path) -> tuple[int, int]:
    """Find the size of the code grid, which the position tables do not tell.

    In this order: from the unused attention mask `(1, 1, L, L)`; from the codec's levels, each but the last of
    which halves 256 pixels; as released: text networks fill their table, the others half of it on each side.
    """
    masks = [value for name, value in parts.transformer.items() if name.endswith("attn2.mask")]
    levels = {int(found[1]) for name in parts.codec if (found := re.match(r"encoder\.down\.(\d+)\.", name))}
    if masks:
        length = masks[0].shape[-1]
        grid = (math.isqrt(length), math.isqrt(length))
    elif levels:
        length = (RELEASED_IMAGE_PX >> max(levels)) ** 2
        grid = (RELEASED_IMAGE_PX >> max(levels), RELEASED_IMAGE_PX >> max(levels))
    else:
        grid = table if form == "cross" else (table[0] // 2, table[1] // 2)
        length = math.prod(grid)
    if math.prod(grid) != length or not 0 < length <= math.prod(table):
        raise CheckpointError(
            f"{path}: {length} tokens an image do not form a square grid within its {table[0]}x{table[1]} table",
            "The file is damaged or from a changed model; fetch the released one again.",
        )
    return grid


def _check_schedule(tables: Mapping[str, Tensor], num_tokens: int, path: Path) -> None:
    """Refuse a file whose noise schedule is not the released one: its steps would mean something else."""
    expected = MaskReplaceSchedule(num_tokens, len(tables["log_at"])).released_logs()
    wrong = [
        name
        for name, table in expected.items()
        if name not in tables
        or tables[name].shape != table.shape
        or not torch.allclose(tables[name].float(), table, rtol=_SCHEDULE_TOLERANCE, atol=_SCHEDULE_TOLERANCE)
    ]
    if wrong:
        raise CheckpointError(
            f"{path}: its noise schedule is not the released one, {len(wrong)} of 8 tables differ: {_list(wrong)}",
            "Only networks trained with the released schedule ('alpha1') can be imported.",
        )


def _single(value: Tensor) -> Tensor:
    return value.float() if value.is_floating_point() else value


def _below(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): v for name, v in state.items() if name.startswith(prefix)}


def _has(state: Mapping[str, Tensor], part: str) -> bool:
    return f"blocks.0.{part}" in state


def _list(names: list[str]) -> str:
    return ", ".join(names[:_LISTED]) + (", ..." if len(names) > _LISTED else "") or "none"
