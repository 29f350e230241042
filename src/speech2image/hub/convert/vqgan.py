"""Released VQGAN codecs: taming `last.ckpt`, the Gumbel f8 codec, FFHQ, ITHQ, and VQ-Diffusion files.

The network's tensor names are ours, below `first_stage_model.` in FFHQ's transformer file and below
`content_codec.enc.` and `content_codec.dec.` inside VQ-Diffusion checkpoints.  Sizes are inferred from
shapes and then checked.  Code maps and the perceptual network inside a codec file have readers here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from speech2image.codecs.code_map import CodeMap
from speech2image.errors import CheckpointError
from speech2image.hub.convert.converted import Converted, require, require_shapes
from speech2image.hub.weights import read_foreign, unpickle_weights

CODEC = "speech2image.codecs.vqgan.VqGan"
CODE_MAP = "speech2image.codecs.code_map.CodeMap"
PERCEPTUAL = "speech2image.losses.perceptual.Lpips"
_PARTS = ("encoder.", "decoder.", "quantize.", "quant_conv.", "post_quant_conv.")
_PREFIXES = ("", "first_stage_model.", "transformer.first_stage_model.")
_ENC, _DEC = "content_codec.enc.", "content_codec.dec."
_LPIPS = "loss.perceptual_loss."
_WHAT = "VQGAN codec"


class _CallbackName:
    """Stands for the class that old trainer checkpoints name as a dictionary key; it is never built."""


def convert(path: Path, image_px: int = 256) -> Converted:
    """Read a released codec.

    Args:
        path: a file of the four codecs, or a VQ-Diffusion checkpoint that holds one.
        image_px: side of the images it was trained on (all released: 256); weights do not tell.

    Returns: arguments and state of `VqGan`, with the released placing of beta; tensors of training
        losses and of transformers are listed as dropped.
    Raises:  CheckpointError: another system, or sizes that contradict.
    """
    whole = _read(path)
    state, dropped = _codec_part(whole, path)
    needed = [
        "encoder.conv_in.weight",
        "decoder.conv_out.weight",
        "quant_conv.weight",
        "post_quant_conv.weight",
    ]
    require(state or whole, needed, path, f"a {_WHAT}")
    arguments = {
        "image_px": image_px,
        **_quantizer_arguments(state, path),
        **_layout_arguments(state, image_px),
    }
    channels, latent_dim, code_dim = (arguments[name] for name in ("channels", "latent_dim", "code_dim"))
    expected: dict[str, tuple[int, ...]] = {
        "encoder.conv_in.weight": (channels, 3, 3, 3),
        "decoder.conv_out.weight": (3, channels, 3, 3),
        "quant_conv.weight": (code_dim, latent_dim, 1, 1),
        "post_quant_conv.weight": (latent_dim, code_dim, 1, 1),
        "quantize.embedding.weight": (arguments["num_codes"], code_dim),
        "quantize.proj.weight": (arguments["num_codes"], code_dim, 1, 1),
        "quantize.embedding_avg": (arguments["num_codes"], code_dim),
    }
    require_shapes(state, expected, path, _WHAT)
    return Converted(CODEC, arguments, state, tuple(dropped))


def convert_code_map(path: Path) -> Converted:
    """Read a reduction table such as `taming_vqvae_974.pt`.

    Returns: arguments and state of `CodeMap`.
    Raises:  CheckpointError: the file holds no table of whole numbers, or one with gaps.
    """
    code_map = CodeMap.from_lookup(_read_table(path))
    arguments = {"num_codes": code_map.num_codes, "num_reduced": code_map.num_reduced}
    return Converted(CODE_MAP, arguments, dict(code_map.state_dict()))


def convert_perceptual(path: Path) -> Converted:
    """Read the perceptual network that taming codec files carry below `loss.perceptual_loss.`.

    Returns: arguments and state of `Lpips`.
    Raises:  CheckpointError: the file has none.
    """
    whole = _read(path)
    state = {key.removeprefix(_LPIPS): value for key, value in whole.items() if key.startswith(_LPIPS)}
    require(state, ["net.slice1.0.weight", "lin4.model.1.weight"], path, "a file with a perceptual network")
    dropped = tuple(key for key in whole if not key.startswith(_LPIPS))
    return Converted(PERCEPTUAL, {}, state, dropped)


def _read(path: Path) -> dict[str, Tensor]:
    """Read a checkpoint; the callback class that Lightning 1.0 used as a key is admitted as a name only."""
    return read_foreign(path, ["pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint"])


def _read_table(path: Path) -> Tensor:
    if not path.is_file():
        raise CheckpointError(f"there is no code map at {path}", "Check the path: it must be a file.")
    table = unpickle_weights(path)
    if not isinstance(table, Tensor):
        raise CheckpointError(
            f"{path} holds a {type(table).__name__}, not a table of code numbers",
            "Give taming_vqvae_974.pt, taming_vqvae_2887.pt or a table like them.",
        )
    return table


def _codec_part(whole: Mapping[str, Tensor], path: Path) -> tuple[dict[str, Tensor], list[str]]:
    """Return the codec's tensors under our names and the names of all others."""
    if any(key.startswith(_ENC) for key in whole):
        prefixes: tuple[str, ...] = (_ENC, _DEC)
    else:
        prefixes = tuple(p for p in _PREFIXES if f"{p}encoder.conv_in.weight" in whole)[:1]
    state: dict[str, Tensor] = {}
    dropped = []
    for key, value in whole.items():
        prefix = next((p for p in prefixes if key.startswith(p)), "")
        name = key.removeprefix(prefix)
        if prefix not in prefixes or not name.startswith(_PARTS):
            dropped.append(key)
        elif name in state and not torch.equal(state[name], value.float()):
            raise CheckpointError(
                f"{path} holds two different copies of {name}, one for encoding and one for decoding",
                "The file is damaged or was edited; take the released one again.",
            )
        else:
            state[name] = value.float()
    return state, dropped


def _quantizer_arguments(state: Mapping[str, Tensor], path: Path) -> dict[str, Any]:
    kinds: dict[str, dict[str, Any]] = {
        "quantize.embedding.weight": {"quantizer": "vector", "legacy": True},
        "quantize.embed.weight": {"quantizer": "gumbel"},
        "quantize.embedding": {"quantizer": "ema"},
    }
    for name, arguments in kinds.items():
        if name in state and state[name].dim() == 2:
            num_codes, code_dim = state[name].shape
            return {**arguments, "num_codes": num_codes, "code_dim": code_dim}
    raise CheckpointError(
        f"{path} is not a {_WHAT} this version knows: it has none of {', '.join(kinds)}",
        "Give a codec with a vector, Gumbel or averaged code book.",
    )


def _layout_arguments(state: Mapping[str, Tensor], image_px: int) -> dict[str, Any]:
    channels = state["encoder.conv_in.weight"].shape[0]
    num_levels = _count(state, r"encoder\.down\.(\d+)\.block\.0\.conv1\.weight")
    widths = [state[f"encoder.down.{level}.block.0.conv1.weight"].shape[0] for level in range(num_levels)]
    with_attention = [
        level for level in range(num_levels) if f"encoder.down.{level}.attn.0.q.weight" in state
    ]
    return {
        "channels": channels,
        "channel_mult": [width // channels for width in widths],
        "num_res_blocks": _count(state, r"encoder\.down\.0\.block\.(\d+)\.conv1\.weight"),
        "attn_px": [image_px // 2**level for level in with_attention],
        "latent_dim": state["post_quant_conv.weight"].shape[0],
    }


def _count(state: Mapping[str, Tensor], pattern: str) -> int:
    return sum(1 for name in state if re.fullmatch(pattern, name))
