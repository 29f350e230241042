"""The VQGAN: shapes at every option, patches as pixels, and the errors of its sizes."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from speech2image.codecs.autoencoder import Decoder, Encoder
from speech2image.codecs.blocks import AttnBlock, Downsample
from speech2image.codecs.vqgan import VqGan
from speech2image.errors import ConfigError

SMALL: dict[str, Any] = {"channels": 8, "num_res_blocks": 1, "latent_dim": 6, "code_dim": 4, "num_codes": 10, "norm_groups": 4}  # fmt: skip


@pytest.mark.parametrize("quantizer", ["vector", "gumbel", "ema"])
@pytest.mark.parametrize(
    ("mult", "patch", "grid"), [((1, 2), 1, 8), ((1, 2), 2, 4), ((1,), 4, 4), ((1, 1, 2), 1, 4)]
)
def test_every_form_paints_images_of_the_size_it_saw(
    quantizer: Any, mult: tuple[int, ...], patch: int, grid: int
) -> None:
    network = VqGan(16, channel_mult=mult, attn_px=(8,), patch_px=patch, quantizer=quantizer, **SMALL)
    images = torch.rand(3, 3, 16, 16) * 2 - 1
    output = network(images)
    assert network.grid == (grid, grid) and output.images.shape == images.shape
    assert output.tokens.shape == (3, grid * grid) and output.latents.shape == (3, 4, grid, grid)
    assert torch.equal(network.eval().tokens(images), network.tokens(images))
    torch.autograd.backward(output.images.square().mean() + output.loss)
    assert network.encoder.conv_in.weight.grad.abs().sum() > 0, "straight through the quantizer"  # type: ignore[union-attr]


@torch.no_grad()
@pytest.mark.parametrize("quantizer", ["vector", "gumbel", "ema"])
def test_half_precision_stays_close_and_leaves_losses_in_float32(quantizer: Any) -> None:
    torch.manual_seed(1)
    network = VqGan(16, channel_mult=(1, 2), attn_px=(8,), quantizer=quantizer, **SMALL).eval()
    images = torch.rand(2, 3, 16, 16) * 2 - 1
    exact = network(images)
    with torch.autocast("cpu", torch.bfloat16):
        near = network(images)
    assert near.images.dtype == near.loss.dtype == torch.float32
    assert torch.allclose(near.latents.float(), exact.latents, atol=0.05)
    assert float((near.tokens == exact.tokens).float().mean()) > 0.9
    assert float(near.loss) == pytest.approx(float(exact.loss), rel=0.05)


def test_wide_images_have_wide_grids() -> None:
    network = VqGan(16, channel_mult=(1, 2), attn_px=(8,), **SMALL).eval()
    images = torch.rand(1, 3, 16, 24) * 2 - 1
    tokens = network.tokens(images)
    assert tokens.shape == (1, 96)
    assert torch.allclose(network.paint_tokens(tokens, (8, 12)), network(images).images, atol=1e-5)


def test_attention_stands_at_the_named_sides_counted_behind_the_patches() -> None:
    network = VqGan(32, channel_mult=(1, 2, 2), attn_px=(8,), patch_px=2, **SMALL)
    assert isinstance(network.encoder, Encoder) and isinstance(network.decoder, Decoder)
    found = (
        [len(level.attn) for level in network.encoder.down],
        [len(level.attn) for level in network.decoder.up],
    )  # type: ignore[arg-type]
    assert found == ([0, 1, 0], [0, 2, 0])


def test_attention_equals_the_written_out_sum() -> None:
    block, hidden = AttnBlock(8, 4), torch.randn(2, 8, 3, 5)
    q, k, v = (layer(block.norm(hidden)).flatten(2) for layer in (block.q, block.k, block.v))
    weights = (torch.einsum("bci,bcj->bij", q, k) / 8**0.5).softmax(dim=2)
    mixed = torch.einsum("bij,bcj->bci", weights, v).view_as(hidden)
    assert torch.allclose(block(hidden), hidden + block.proj_out(mixed), atol=1e-5)


def test_downsampling_looks_right_and_down_only() -> None:
    layer, image = Downsample(1), torch.zeros(1, 1, 4, 4)
    layer.conv.weight.data.zero_()
    layer.conv.bias.data.zero_()  # type: ignore[union-attr]
    layer.conv.weight.data[0, 0, 0, 0] = 1.0
    image[0, 0, 0, 0] = 1.0
    assert layer(image)[0, 0].tolist() == [[1.0, 0.0], [0.0, 0.0]]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"image_px": 20, "channel_mult": (1, 1, 1, 1)}, "20 px do not divide into codes of 8 x 8"),
        ({"image_px": 16, "channels": 10, "channel_mult": (1,)}, r"widths \[10\].* 4 norm groups"),
        ({"image_px": 16, "channel_mult": (1,), "quantizer": "lookup"}, "no quantizer 'lookup'"),
    ],
)
def test_impossible_sizes_are_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        VqGan(**{**SMALL, **options})
