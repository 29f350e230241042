"""Released StackGAN-v2 checkpoints (also the fork of Li et al.): `netG_*.pth`, `netD{0,1,2}.pth`.

Their tensor names are ours, so converting means inferring the sizes and checking them.  S2IGAN's
generator has the same names but wider up-sampling and is refused with its name.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from speech2image.errors import CheckpointError
from speech2image.hub.convert.converted import Converted, require, require_shapes
from speech2image.hub.weights import read_foreign

GENERATOR = "speech2image.gan.stackgan.StackGenerator"
DISCRIMINATOR = "speech2image.gan.discriminators.StackDiscriminator"
_START_PX = 4


def convert_generator(path: Path) -> Converted:
    """Read a released generator.

    Args:
        path: `netG_<count>.pth`, with or without `module.`, with or without batch-norm counters.

    Returns: arguments and state of `StackGenerator`.  The file holds averaged parameters and the
        batch-norm statistics of the live network.
    Raises:  CheckpointError: another system, S2IGAN's dense generator, or sizes that contradict.
    """
    state = read_foreign(path)
    what = "StackGAN-v2 generator"
    needed = ["ca_net.fc.weight", "h_net1.fc.0.weight", "h_net1.upsample1.1.weight", "img_net1.img.0.weight"]
    require(state, needed, path, f"a {what}")
    four_condition, sentence_dim = state["ca_net.fc.weight"].shape
    condition_dim = four_condition // 4
    noise_dim = state["h_net1.fc.0.weight"].shape[1] - condition_dim
    gf_dim = state["img_net1.img.0.weight"].shape[1]
    num_blocks = _count(state, r"h_net1\.upsample(\d+)\.1\.weight")
    num_stages = _count(state, r"img_net(\d+)\.img\.0\.weight")
    num_residual = _count(state, r"h_net2\.residual\.(\d+)\.block\.0\.weight") if num_stages > 1 else 2
    start = gf_dim * 2**num_blocks
    expected = {
        "ca_net.fc.bias": (4 * condition_dim,),
        "h_net1.fc.0.weight": (2 * start * _START_PX**2, condition_dim + noise_dim),
    }
    for stage in range(2, num_stages + 1):
        channels = gf_dim // 2 ** (stage - 2)
        joint = state.get(f"h_net{stage}.upsample.1.weight")
        if joint is not None and joint.shape[1] == 2 * channels:
            raise CheckpointError(
                f"{path} is an S2IGAN generator: stage {stage} joins {2 * channels} channels before"
                f" up-sampling where StackGAN-v2 has {channels}",
                "This version imports StackGAN-v2 generators; the S2IGAN generator is not built in yet.",
            )
        expected[f"h_net{stage}.jointConv.0.weight"] = (2 * channels, condition_dim + channels, 3, 3)
        expected[f"h_net{stage}.upsample.1.weight"] = (channels, channels, 3, 3)
        expected[f"img_net{stage}.img.0.weight"] = (3, channels // 2, 3, 3)
    require_shapes(state, expected, path, what)
    arguments = {
        "sentence_dim": sentence_dim,
        "condition_dim": condition_dim,
        "noise_dim": noise_dim,
        "gf_dim": gf_dim,
        "num_stages": num_stages,
        "num_residual": num_residual,
        "base_px": _START_PX * 2**num_blocks,
    }
    return Converted(GENERATOR, arguments, state)


def convert_discriminator(path: Path) -> Converted:
    """Read a released discriminator of 64, 128 or 256 pixels.

    Args:
        path: `netD0.pth` (64 pixels), `netD1.pth` (128) or `netD2.pth` (256); the names inside
            decide, not the file name.

    Raises:  CheckpointError: another system, or sizes that contradict.
    """
    state = read_foreign(path)
    what = "StackGAN-v2 discriminator"
    needed = ["img_code_s16.0.weight", "jointConv.0.weight", "logits.0.weight", "uncond_logits.0.weight"]
    require(state, needed, path, f"a {what}")
    code_dim, joined = state["jointConv.0.weight"].shape[:2]
    df_dim, condition_dim = code_dim // 8, joined - code_dim
    image_px = 256 if "img_code_s64.0.weight" in state else 128 if "img_code_s32.0.weight" in state else 64
    expected = {
        "img_code_s16.0.weight": (df_dim, 3, 4, 4),
        "logits.0.weight": (1, code_dim, 4, 4),
        "uncond_logits.0.weight": (1, code_dim, 4, 4),
        "img_code_s32.0.weight": (2 * code_dim, code_dim, 4, 4),
        "img_code_s64.0.weight": (4 * code_dim, 2 * code_dim, 4, 4),
    }
    require_shapes(state, expected, path, what)
    arguments = {"image_px": image_px, "df_dim": df_dim, "condition_dim": condition_dim}
    return Converted(DISCRIMINATOR, arguments, state)


def _count(state: Mapping[str, Tensor], pattern: str) -> int:
    return sum(1 for name in state if re.fullmatch(pattern, name))
