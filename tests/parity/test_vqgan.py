"""VQGAN codecs against recorded values of the released code, and against their published sizes.

Every output of both oracles is compared at the tolerance its file names; the last test sees to it.
Full-size networks are built on the meta device and compared key by key.
"""

from __future__ import annotations

import gzip
import json
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from fill import fill
from oracle import FOLDER, Oracle
from torch import Tensor, nn

from speech2image.codecs.code_map import CodeMap
from speech2image.codecs.codec import Codec
from speech2image.codecs.discriminator import PatchDiscriminator
from speech2image.codecs.quantizers import VectorQuantizer
from speech2image.codecs.vqgan import VqGan
from speech2image.losses.perceptual import Lpips

TINY, GUMBEL = "vqgan_tiny", "vqgan_gumbel_tiny"


recorded = cache(Oracle)


@cache
def facts() -> tuple[dict[str, Any], dict[str, Any]]:
    about = json.loads((FOLDER / "full_size_facts.json").read_text())["configurations"]
    with gzip.open(FOLDER / "full_size_facts.state.json.gz", "rt") as file:
        return about, json.load(file)


def arguments(config: dict[str, Any], **more: Any) -> dict[str, Any]:
    """Return our arguments of a constructor of the released code."""
    layers = config["ddconfig"]
    return {
        "image_px": layers["resolution"],
        "channels": layers["ch"],
        "channel_mult": layers["ch_mult"],
        "num_res_blocks": layers["num_res_blocks"],
        "attn_px": layers["attn_resolutions"],
        "latent_dim": layers["z_channels"],
        "code_dim": config["embed_dim"],
        "num_codes": config["n_embed"],
        **more,
    }


def network(name: str) -> VqGan:
    spec = recorded(name).spec
    kind = {"quantizer": "gumbel", "kl_weight": 0.01} if name == GUMBEL else {"legacy": True}
    codec = VqGan(**arguments(spec["constructor"], **kind))
    load(codec, spec["state"])
    return codec.eval()


def load(module: nn.Module, spec: Any) -> None:
    state = {key: torch.from_numpy(np.array(value)) for key, value in fill(spec).items()}
    assert list(module.state_dict()) == list(state), "state keys and their order"
    module.load_state_dict(state)


def images(name: str) -> Tensor:
    return recorded(name).tensor("images") / 255.0 * 2.0 - 1.0


def to_255(painted: Tensor) -> Tensor:
    return (painted + 1.0) / 2.0 * 255.0


def test_encoder_quantizer_and_decoder_give_recorded_values() -> None:
    codec = network(TINY)
    with torch.no_grad():
        recorded(TINY).check("encoder_out", codec.encoder(images(TINY)))
        output = codec(images(TINY))
        recorded(TINY).check("pre_quant", output.latents)
        recorded(TINY).check("tokens", output.tokens)
        recorded(TINY).check("tokens", codec.tokens(images(TINY)))
        vectors = codec.quantize.vectors(output.tokens, 8, 8)
        recorded(TINY).check("quantised", vectors)
        recorded(TINY).check("quantise_loss", output.loss)
        recorded(TINY).check("post_quant", codec.post_quant_conv(vectors))
        recorded(TINY).check("decoded", output.images)
        recorded(TINY).check("decoded", codec.paint_tokens(output.tokens))


def test_gradients_are_the_recorded_ones() -> None:
    codec = network(TINY)
    output = codec(images(TINY))
    loss = (output.images - images(TINY)).square().mean() + output.loss
    torch.autograd.backward(loss)
    assert [name for name, _ in codec.named_parameters()] == recorded(TINY).spec["parameters_in_order"]
    norms = [float(p.grad.norm()) for p in codec.parameters() if p.grad is not None]
    recorded(TINY).check("grad_norms", torch.tensor(norms))


@pytest.mark.parametrize("name", [TINY, GUMBEL])
def test_reduced_code_book_gives_recorded_tokens_and_images(name: str) -> None:
    code_map = CodeMap.from_lookup(recorded(name).tensor("reduced/full_to_quantize"))
    recorded(name).check("reduced/quantize_to_full", code_map.reduced_to_full)
    codec = Codec(network(name), code_map)
    if name == TINY:
        tokens = codec.encode(images(name))
        recorded(name).check("reduced/tokens", tokens)
        recorded(name).check("reduced/reconstruction", to_255(codec.decode(tokens)))
    else:  # the recorded tokens are the noisy ones
        recorded(name).check("reduced/tokens", code_map.reduce(recorded(name).tensor("noisy/tokens")))
        assert torch.equal(
            codec.encode(images(name)), code_map.reduce(recorded(name).tensor("argmax/tokens"))
        )
    recorded(name).check(
        "reduced/decoded_from_random", to_255(codec.decode(recorded(name).tensor("reduced/random_tokens")))
    )


def test_gumbel_codec_gives_recorded_values_with_and_without_noise() -> None:
    codec = network(GUMBEL)
    gumbel = -recorded(GUMBEL).tensor("exponential").log()
    for kind, noise in (("noisy", gumbel), ("argmax", None)):
        output = codec(images(GUMBEL), noise)
        recorded(GUMBEL).check(f"{kind}/tokens", output.tokens)
        recorded(GUMBEL).check(f"{kind}/decoded", output.images)
        with torch.no_grad():
            recorded(GUMBEL).check(f"{kind}/quantised", codec.quantize(output.latents, noise).vectors)
        recorded(GUMBEL).check(f"{kind}/quantised", codec.quantize(output.latents, noise).vectors)
        recorded(GUMBEL).check(f"{kind}/quantised", codec.quantize.vectors(output.tokens, 8, 8))
    recorded(GUMBEL).check("encoder_out", codec.encoder(images(GUMBEL)))
    recorded(GUMBEL).check("pre_quant", output.latents)
    recorded(GUMBEL).check("logits", codec.quantize.proj(output.latents))
    recorded(GUMBEL).check("kl_term", output.loss)
    recorded(GUMBEL).check("argmax/tokens", codec.tokens(images(GUMBEL)))


F8 = {"quantizer": "gumbel"}
SIZES = [
    ("codec_f16_16384", {}, (29_298_176, 42_449_795, 4_194_304, 65_792, 65_792), (16, 16)),
    ("codec_f8_8192", F8, (26_345_728, 38_316_163, 4_202_496, 65_792, 65_792), (32, 32)),
]


@pytest.mark.parametrize(("name", "more", "counts", "grid"), SIZES)
def test_official_sizes_have_official_keys_shapes_and_counts(
    name: str, more: dict[str, Any], counts: tuple[int, ...], grid: tuple[int, int]
) -> None:
    about, states = facts()
    with torch.device("meta"):
        codec = VqGan(**arguments(about[name]["configuration"], **more))
    found = [[key, list(value.shape), str(value.dtype)[6:]] for key, value in codec.state_dict().items()]
    assert found == [entry[:3] for entry in states[name]]
    by_part = about[name]["parameters_by_submodule"]
    assert {part: count(getattr(codec, part)) for part in by_part} == by_part
    assert tuple(by_part.values()) == counts and codec.grid == grid
    assert count(codec) == about[name]["parameters_total"] == sum(counts)


def test_ffhq_and_ithq_codecs_have_published_sizes() -> None:
    with torch.device("meta"):
        ffhq = VqGan(num_codes=1024)
        ithq = VqGan(256, 64, (1, 2, 4, 8), 2, (32,), 256, 128, 4096, "ema")
    assert count(ffhq) == 72_141_699
    parts = (ithq.encoder, ithq.decoder, ithq.quant_conv, ithq.post_quant_conv)
    assert tuple(map(count, parts)) == (25_724_608, 37_694_851, 32_896, 33_024)
    assert count(ithq) == 63_485_379 and ithq.grid == (32, 32)
    assert (len(ithq.encoder.state_dict()), len(ithq.decoder.state_dict())) == (128, 170)
    buffers = {key: tuple(value.shape) for key, value in ithq.quantize.state_dict().items()}
    assert buffers == {"embedding": (4096, 128), "cluster_size": (4096,), "embedding_avg": (4096, 128)}


@pytest.mark.parametrize(("layers", "parameters", "side"), [(2, 663_361, 62), (3, 2_765_633, 30)])
def test_discriminator_has_published_size(layers: int, parameters: int, side: int) -> None:
    with torch.device("meta"):
        judge = PatchDiscriminator(layers)
        assert judge(torch.zeros(2, 3, 256, 256)).shape == (2, 1, side, side)
    assert count(judge) == parameters


def test_perceptual_network_has_published_size() -> None:
    with torch.device("meta"):
        lpips = Lpips()
    assert count(lpips) == 14_716_160 and len(lpips.state_dict()) == 33
    assert {"lin4.model.1.weight", "net.slice5.28.bias", "scaling_layer.scale"} <= set(lpips.state_dict())


TOY = [[0.0, 0.0], [1.0, 0.0], [0.0, 1.0], [1.0, 1.0]]
TOY_LATENTS = [[[[0.2, 0.9], [0.4, 0.7]], [[0.1, 0.3], [0.8, 0.6]]]]
TOY_DZ = torch.tensor([0.05, -0.025, 0.1, -0.075, 0.025, 0.075, -0.05, -0.1])
TOY_DE = torch.tensor([-0.0125, -0.00625, 0.00625, -0.01875, -0.025, 0.0125, 0.01875, 0.025])


@pytest.mark.parametrize(("legacy", "dz", "de"), [(True, 1.0, 1.0), (False, 0.25, 4.0)])
def test_toy_code_book_has_recorded_loss_and_gradients(legacy: bool, dz: float, de: float) -> None:
    quantizer = VectorQuantizer(4, 2, 0.25, legacy)
    quantizer.embedding.weight.data.copy_(torch.tensor(TOY))
    latents = torch.tensor(TOY_LATENTS, requires_grad=True)
    output = quantizer(latents)
    torch.autograd.backward(output.loss)
    assert output.tokens.tolist() == [[0, 1, 2, 3]]
    assert float(output.loss.detach()) == pytest.approx(0.09375, abs=1e-7)
    assert torch.allclose(latents.grad.flatten(), TOY_DZ * dz, atol=1e-7)  # type: ignore[union-attr]
    assert torch.allclose(quantizer.embedding.weight.grad.flatten(), TOY_DE * de, atol=1e-7)  # type: ignore[union-attr]


def sine_fill(module: nn.Module) -> nn.Module:
    """Fill each parameter with 0.2 sin(1.7 i + 0.3 len(key)), plus 1 for weights of norms."""
    for key, parameter in module.named_parameters():
        place = torch.arange(parameter.numel(), dtype=torch.float64)
        values = 0.2 * torch.sin(1.7 * place + 0.3 * len(key)).view(parameter.shape)
        parameter.data.copy_(values + float(parameter.dim() == 1 and key.endswith("weight")))
    return module.eval()


def sine_images() -> Tensor:
    """Return x[b, c, p] = sin(0.01 (b + 1)(c + 1) p), `(2, 3, 32, 32)`."""
    item, colour, place = torch.arange(1.0, 3), torch.arange(1.0, 4), torch.arange(1024, dtype=torch.float64)
    phase = 0.01 * item.view(2, 1, 1) * colour.view(1, 3, 1) * place
    return phase.sin().float().view(2, 3, 32, 32)


@torch.no_grad()
def test_sine_filled_codec_gives_the_values_of_the_spec_sheet() -> None:
    codec = VqGan(32, 32, (1, 2, 2), 1, (8,), 64, 64, 16, legacy=True)
    sine_fill(codec)
    assert count(codec) == 1_080_995
    output = codec(sine_images())
    assert summary(output.latents) == pytest.approx([-17.038353, 0.887310, 1.018665], abs=2e-4)
    assert float(output.latents[0, 0, 0, 0]) == pytest.approx(-0.208005, abs=2e-5)
    assert float(output.latents[1, 63, 7, 7]) == pytest.approx(-0.269534, abs=2e-5)
    assert set(output.tokens.flatten().tolist()) == {8, 11, 14}
    assert (output.tokens[:, :16] == 11).all()
    assert float(output.loss) == pytest.approx(1.268133, abs=1e-5)
    codes = codec.quantize.vectors(output.tokens, 8, 8)
    assert float((codes - output.latents).square().mean()) == pytest.approx(1.014506, abs=1e-5)
    assert summary(output.images) == pytest.approx([387.553656, 0.364226, 0.480347], abs=2e-3)
    assert float(output.images[0, 0, 0, 0]) == pytest.approx(-0.498341, abs=2e-5)
    assert float(output.images[1, 2, 31, 31]) == pytest.approx(0.006725, abs=2e-5)


@torch.no_grad()
def test_sine_filled_discriminator_gives_the_values_of_the_spec_sheet() -> None:
    logits = sine_fill(PatchDiscriminator(2))(sine_images())
    assert logits.shape == (2, 1, 6, 6)
    assert summary(logits)[:2] == pytest.approx([15.561032, 0.444357], abs=2e-5)


def summary(values: Tensor) -> list[float]:
    wide = values.double()
    return [float(wide.sum()), float(wide.abs().mean()), float(wide.std())]


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def test_every_recorded_output_was_compared() -> None:
    for name in (TINY, GUMBEL):
        assert recorded(name).compared == set(recorded(name).tolerance), name
