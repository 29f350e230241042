"""Every preset in conf/codec builds the network it promises."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf

from speech2image.codecs.discriminator import PatchDiscriminator
from speech2image.codecs.vqgan import VqGan
from speech2image.config.compose import conf_dir

#: Parameters, codes, grid, and the side of the discriminator's map.
EXPECTED = {
    "vqgan_f16_16384": (76_073_859, 16384, (16, 16), 62),
    "vqgan_f16_1024": (72_141_699, 1024, (16, 16), 30),
    "vqgan_gumbel_f8": (68_995_971, 8192, (32, 32), 30),
    "vqgan_small": (683_968, 256, (8, 8), 6),
    "vqgan_small_64": (850_000, 256, (8, 8), 14),
}


TARGET = "speech2image.codecs.vqgan.VqGan"


def test_every_codec_preset_is_listed_here() -> None:
    files = (conf_dir() / "codec").glob("*.yaml")
    assert {path.stem for path in files if f"_target_: {TARGET}" in path.read_text()} == set(EXPECTED)


@pytest.mark.parametrize("name", EXPECTED)
def test_preset_builds_the_network_it_promises(name: str) -> None:
    path = conf_dir() / "codec" / f"{name}.yaml"
    node = OmegaConf.load(path)
    preset: dict[str, Any] = {str(key): value for key, value in node.items()}
    assert preset.pop("_target_") == TARGET
    layers, width = preset.pop("disc_layers"), preset.pop("disc_width")
    assert set(preset) == set(inspect.signature(VqGan).parameters), "every argument is written down"
    with torch.device("meta"):
        network, judge = VqGan(**preset), PatchDiscriminator(layers, width)
        side = judge(torch.zeros(1, 3, network.image_px, network.image_px)).shape[-1]
    found = (sum(p.numel() for p in network.parameters()), network.num_codes, network.grid, side)
    assert found == EXPECTED[name]
    assert path.read_text().startswith("# "), "the first line says what it is"
