"""The GAN step inside Lightning: counts, average, options, checkpoints, errors."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from short_fit import fit_up_to
from torch import Tensor, nn

from speech2image.errors import ConfigError
from speech2image.gan.discriminators import StackDiscriminator
from speech2image.gan.stackgan import StackGenerator
from speech2image.losses.matching import matching_loss
from speech2image.training.gan_module import GanModule
from speech2image.types import ImagePyramid


class _Branch(nn.Module):
    image_px = 16

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(48, 6)
        self.norm = nn.BatchNorm1d(6)

    def forward(self, images: Tensor) -> Tensor:
        return self.norm(self.layer(nn.functional.adaptive_avg_pool2d(images, 4).flatten(1)))


def _batch(index: int = 0) -> dict[str, Any]:
    seed = torch.Generator().manual_seed(index)
    levels = [[torch.rand(4, 3, px, px, generator=seed) * 2 - 1 for px in (16, 32)] for _ in range(2)]
    return {
        "sentence": torch.randn(4, 6, generator=seed),
        "real": ImagePyramid(tuple(levels[0])),
        "wrong": ImagePyramid(tuple(levels[1])),
        "class_id": torch.tensor([0, 1, 0, 2]),
    }


def _module(**options: Any) -> GanModule:
    torch.manual_seed(5)
    generator = StackGenerator(6, 5, 4, gf_dim=4, num_stages=2, num_residual=1, base_px=16)
    return GanModule(generator, [StackDiscriminator(px, 2, 5) for px in (16, 32)], **options)


def _fit(module: GanModule, steps: int) -> GanModule:
    """Train up to `train_step == steps` of the suite's counter on batches addressed by it."""
    return fit_up_to(module, steps, _batch)


def _weights(module: nn.Module) -> list[Tensor]:
    return [p.detach().clone() for p in module.parameters()]


def _equal(one: list[Tensor], other: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_a_step_counts_once_averages_once_and_records_every_term() -> None:
    module = _module(colour_weight=1.0, class_aware_weight=1.0)
    before = _weights(module.generator), [_weights(d) for d in module.discriminators]
    _fit(module, 3)
    assert (module.train_step, module.images_seen, int(module.ema.num_updates)) == (3, 12, 3)
    assert not _equal(before[0], _weights(module.generator))
    assert not any(_equal(b, _weights(d)) for b, d in zip(before[1], module.discriminators, strict=True))
    scalars = module.flush_records()
    terms = {"loss_g_16", "loss_g_32", "loss_class_aware_16", "loss_class_aware_32", "loss_colour", "loss_kl"}
    assert set(scalars) == terms | {"loss_g", "loss_d_16", "loss_d_32"}
    assert scalars["loss_g"] == pytest.approx(sum(scalars[name] for name in terms), rel=1e-5)
    assert all(p.requires_grad for p in module.discriminators.parameters())
    assert all(p.grad is None for p in module.parameters())


def test_inference_module_is_the_average_not_the_live_generator() -> None:
    module = _fit(_module(), 2)
    painter = module.inference_module()
    assert isinstance(painter, StackGenerator) and not painter.training
    assert not _equal(_weights(painter), _weights(module.generator))


def test_resumed_run_equals_an_unbroken_one() -> None:
    whole = _fit(_module(seed=3, ema_warmup=True), 4)
    first = _fit(_module(seed=3, ema_warmup=True), 2)
    state = copy.deepcopy(first.checkpoint_state())
    second = _module(seed=3, ema_warmup=True)
    second.load_checkpoint_state(state)
    _fit(second, 4)
    assert second.train_step == 4 and second.images_seen == 16
    assert _equal(list(whole.state_dict().values()), list(second.state_dict().values()))


def test_noise_depends_on_seed_and_step_only() -> None:
    assert not _equal(_weights(_fit(_module(seed=1), 1)), _weights(_fit(_module(seed=2), 1)))
    assert _equal(_weights(_fit(_module(seed=1), 1)), _weights(_fit(_module(seed=1), 1)))


def test_live_weights_return_to_the_average_only_when_asked() -> None:
    module = _fit(_module(reset_live_to_ema_every=2), 2)
    assert _equal(_weights(module.generator), _weights(module.inference_module()))
    module = _fit(_module(reset_live_to_ema_every=3), 4)
    assert not _equal(_weights(module.generator), _weights(module.inference_module()))


def test_semantic_term_reaches_the_generator_only() -> None:
    torch.manual_seed(1)
    branch = _Branch()
    module = _module(semantic_weight=2.0, image_branch=branch).train()
    frozen = copy.deepcopy(branch.state_dict())
    batch = _batch()
    noise = torch.randn(4, 4)
    output = module.generator(batch["sentence"], noise)
    losses = module.generator_backward(batch, output)
    terms = matching_loss(branch(output.images[-1]), batch["sentence"], batch["class_id"], 10.0)
    assert float(losses["loss_semantic"]) == pytest.approx(2.0 * float(sum(terms)), rel=1e-5)
    assert all(p.grad is None for p in branch.parameters())
    assert all(torch.equal(frozen[k], v) for k, v in branch.state_dict().items()), "and stays as it was"
    without = _module().train()
    without.generator_backward(batch, without.generator(batch["sentence"], noise))
    for name, parameter in module.generator.img_net2.named_parameters():
        assert not torch.allclose(parameter.grad, without.generator.img_net2.get_parameter(name).grad)  # type: ignore[arg-type]


def test_checkpoint_leaves_the_frozen_branch_out() -> None:
    module = _fit(_module(semantic_weight=1.0, image_branch=_Branch()), 1)
    state = module.checkpoint_state()
    assert not any("image_branch" in name for name in state["module"])
    assert any(name.startswith("ema.module.") for name in state["module"])
    restored = _module(semantic_weight=1.0, image_branch=_Branch())
    restored.load_checkpoint_state(state)
    assert _equal(_weights(restored.generator), _weights(module.generator))


def test_learning_rates_follow_the_schedule() -> None:
    module = _module(lr=1e-3, lr_d=4e-3, weight_decay=0.1, schedule=lambda step: 0.5**step)
    _fit(module, 2)
    groups = [optimizer.param_groups[0] for optimizer in module._raw_optimizers()]
    assert [group["lr"] for group in groups] == pytest.approx([1e-3, 1e-3, 2.5e-4])
    assert {group["weight_decay"] for group in groups} == {0.1}


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda g: GanModule(g, [StackDiscriminator(16, 2, 5)]), r"judge \(16,\) pixels"),
        (
            lambda g: GanModule(g, [StackDiscriminator(px, 2, 7) for px in (16, 32)]),
            "expects conditions of 7",
        ),
        (
            lambda g: GanModule(g, [StackDiscriminator(px, 2, 5) for px in (16, 32)], noise_dim=9),
            "noise_dim is 9",
        ),
        (
            lambda g: GanModule(g, [StackDiscriminator(px, 2, 5) for px in (16, 32)], semantic_weight=1.0),
            "no image branch",
        ),
    ],
)
def test_networks_that_do_not_fit_are_refused(build: Any, words: str) -> None:
    generator = StackGenerator(6, 5, 4, gf_dim=4, num_stages=2, base_px=16)
    with pytest.raises(ConfigError, match=words):
        build(generator)
