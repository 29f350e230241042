"""The codec step inside Lightning: its gradients written out, counts, revival, checkpoints, learning."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from short_fit import fit_up_to
from torch import Tensor, nn
from torchvision.models import vgg16

from speech2image.codecs.discriminator import PatchDiscriminator
from speech2image.codecs.vqgan import VqGan
from speech2image.errors import CheckpointError, ConfigError
from speech2image.losses.perceptual import Lpips
from speech2image.training.codec_module import CodecModule, load_perceptual

SMALL: dict[str, Any] = {"channels": 8, "num_res_blocks": 1, "latent_dim": 8, "code_dim": 4, "num_codes": 12, "norm_groups": 4}  # fmt: skip


def _images(index: int = 0) -> Tensor:
    """Two-coloured squares: 4 x 4 patches that are all light or all dark, in one colour an image."""
    seed = torch.Generator().manual_seed(index)
    colour = torch.rand(4, 3, 1, 1, generator=seed) * 0.8 + 0.2
    light = (torch.rand(4, 1, 4, 4, generator=seed) > 0.5).float() * 2 - 1
    return nn.functional.interpolate(light, scale_factor=4.0) * colour


def _module(quantizer: Any = "ema", discriminator: bool = False, **options: Any) -> CodecModule:
    torch.manual_seed(5)
    network = VqGan(16, channel_mult=(1, 2), attn_px=(), patch_px=2, quantizer=quantizer, **SMALL)
    judge = PatchDiscriminator(1, 4) if discriminator else None
    return CodecModule(network, judge, **{"lr": 1e-3, **options})


def _fit(module: CodecModule, steps: int) -> CodecModule:
    return fit_up_to(module, steps, lambda step: {"image": _images(step)})


def _equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return all(torch.equal(one[name], other[name]) for name in one)


def _grads(network: nn.Module) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in network.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("quantizer", ["vector", "gumbel", "ema"])
def test_two_steps_train_both_networks_and_record_every_term(quantizer: Any) -> None:
    module = _module(quantizer, discriminator=True)
    before = copy.deepcopy(module.state_dict())
    _fit(module, 2)
    assert (module.train_step, module.images_seen) == (2, 8)
    changed = {
        name.split(".")[1]
        for name, value in module.state_dict().items()
        if not torch.equal(value, before[name])
    }
    assert changed == {"encoder", "decoder", "quantize", "quant_conv", "post_quant_conv", "main"}
    scalars = module.flush_records()
    terms = {"loss_reconstruction", "loss_codebook", "loss_adversarial", "loss_d", "adaptive_weight"}
    assert set(scalars) == terms | {"codes_used", "code_perplexity"}
    assert 1 <= scalars["code_perplexity"] <= scalars["codes_used"] <= 12
    assert all(p.grad is None for p in module.parameters()) and "codes_used" not in module.flush_records()


def test_gradients_are_those_of_the_sum_written_out() -> None:
    """L = nll + lambda g + weight * vq, lambda from gradients at the last convolution; one graph."""
    torch.manual_seed(1)
    lpips = Lpips()
    module = _module(
        "vector", discriminator=True, perceptual=lpips, perceptual_weight=0.5, codebook_weight=0.8
    )
    assert module.discriminator is not None
    images = _images()
    losses = module.network_backward(images, module.network(images))
    found = _grads(module.network)
    assert not _grads(module.discriminator) and not _grads(lpips)
    module.zero_grad()
    output = module.network(images)
    nll = (images - output.images).abs().mean() + 0.5 * lpips(images, output.images).mean()
    g = -module.discriminator(output.images).mean()
    last = module.network.decoder.conv_out.weight
    norms = [torch.autograd.grad(term, last, retain_graph=True)[0].norm() for term in (nll, g)]
    weight = 0.75 * (norms[0] / (norms[1] + 1e-4)).detach()
    torch.autograd.backward(nll + weight * g + 0.8 * output.loss)
    expected = _grads(module.network)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.allclose(found[name], value, rtol=1e-3, atol=1e-6), name
    assert float(losses["adaptive_weight"]) == pytest.approx(float(weight), rel=1e-4)
    assert float(losses["loss_reconstruction"]) == pytest.approx(float(nll), rel=1e-5)


def test_discriminator_joins_in_at_its_step_and_not_before() -> None:
    module = _module("vector", discriminator=True, disc_start=2)
    assert module.discriminator is not None
    before = copy.deepcopy(module.discriminator.state_dict())
    _fit(module, 2)
    assert _equal(before, module.discriminator.state_dict()), "its batch-norm statistics too"
    assert "loss_d" not in module.flush_records()
    _fit(module, 3)
    assert not _equal(before, module.discriminator.state_dict())
    assert {"loss_d", "adaptive_weight"} <= set(module.flush_records())


OPTIONS: list[dict[str, Any]] = [
    {"quantizer": "ema", "revive_share": 0.5, "revive_every": 1, "ema_decay": 0.9, "discriminator": True},
    {"quantizer": "gumbel"},
]


@pytest.mark.parametrize("options", OPTIONS, ids=["ema", "gumbel"])
def test_resumed_run_equals_an_unbroken_one(options: dict[str, Any]) -> None:
    whole = _fit(_module(seed=3, **options), 4)
    state = copy.deepcopy(_fit(_module(seed=3, **options), 2).checkpoint_state())
    second = _module(seed=3, **options)
    second.load_checkpoint_state(state)
    _fit(second, 4)
    assert second.train_step == 4 and _equal(whole.state_dict(), second.state_dict())
    other = _fit(_module(seed=4, **options), 4)
    assert not _equal(whole.state_dict(), other.state_dict()), "its draws are those of the seed"


def test_perceptual_network_is_left_out_of_checkpoints() -> None:
    module = _fit(_module(perceptual=Lpips()), 1)
    state = module.checkpoint_state()
    assert not any("perceptual" in name for name in state["module"])
    restored = _module(perceptual=Lpips())
    restored.load_checkpoint_state(state)
    assert restored.perceptual is not None and not restored.train().perceptual.training  # type: ignore[union-attr]
    assert _equal(restored.network.state_dict(), module.network.state_dict())


def test_codec_is_a_frozen_copy_and_the_network_trains_on() -> None:
    module = _fit(_module(ema_decay=0.5), 2)
    codec = module.codec()
    assert module.ema is not None and _equal(codec.network.state_dict(), module.ema.module.state_dict())
    before = codec.fingerprint()
    _fit(module, 3)
    assert codec.fingerprint() == before != module.codec().fingerprint()
    assert all(p.requires_grad for p in module.network.parameters())


def test_gumbel_temperature_follows_the_step() -> None:
    module = _fit(_module("gumbel", temperature=lambda step: 2.0 - step), 2)
    assert module.network.quantize.temperature == 1.0


def test_small_codec_learns_to_paint_with_all_its_codes() -> None:
    module = _module(lr=5e-3, betas=(0.9, 0.99), revive_share=0.1, revive_every=5)
    images = _images(5000)
    first = float((module.codec().decode(module.codec().encode(images)) - images).abs().mean())
    _fit(module, 300)
    codec = module.codec()
    last = float((codec.decode(codec.encode(images)) - images).abs().mean())
    assert last < 0.35 * first, (first, last)
    module.flush_records()
    _fit(module, 310)
    assert module.flush_records()["codes_used"] >= 10


def test_validation_measures_what_the_codec_paints() -> None:
    module, seen = _module(ema_decay=0.5), {}
    module.log_dict = lambda scores, **_: seen.update(scores)  # type: ignore[method-assign, assignment, misc]
    images = _images(7)
    module.validation_step({"image": images})
    codec = module.codec()
    gap = codec.decode(codec.encode(images)) - images
    assert float(seen["val_l1"]) == pytest.approx(float(gap.abs().mean()))
    assert float(seen["val_psnr"]) == pytest.approx(float(10 * (4 / gap.square().mean()).log10()))


def test_revival_needs_an_averaged_code_book() -> None:
    with pytest.raises(ConfigError, match="found VectorQuantizer"):
        _module("vector", revive_share=0.1)


def test_perceptual_weights_come_from_local_files(tmp_path: Path) -> None:
    torch.manual_seed(0)
    trunk, linear, whole = tmp_path / "vgg16.pth", tmp_path / "vgg.pth", tmp_path / "lpips.pth"
    source = Lpips()
    torch.save(vgg16(weights=None).state_dict(), trunk)
    torch.save({k: v for k, v in source.state_dict().items() if k.startswith("lin")}, linear)
    torch.save(
        {"state_dict": {f"loss.perceptual_loss.{k}": v for k, v in source.state_dict().items()}}, whole
    )
    assert _equal(source.state_dict(), load_perceptual(whole).state_dict())
    with pytest.raises(CheckpointError, match=r"expected 397923af"):
        load_perceptual(trunk, linear)
    from speech2image.weight_files import file_sha256

    built = load_perceptual(trunk, linear, sha256=file_sha256(trunk), linear_sha256=file_sha256(linear)[:12])
    assert torch.equal(built.state_dict()["lin3.model.1.weight"], source.state_dict()["lin3.model.1.weight"])
    expected = torch.load(trunk, weights_only=True)["features.28.weight"]
    assert torch.equal(built.state_dict()["net.slice5.28.weight"], expected)
    with pytest.raises(CheckpointError, match=r"missing net\.slice1\.0\.weight"):
        load_perceptual(linear)
