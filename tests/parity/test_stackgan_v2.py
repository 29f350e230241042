"""StackGAN-v2 and the Li et al. fork against recorded values of the released code.

Every output of the oracle is compared at the tolerance its file names; the last test sees to it.
"""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import pytest
import torch
from oracle import Oracle
from torch import Tensor, nn

from speech2image.gan.discriminators import StackDiscriminator
from speech2image.gan.stackgan import StackGenerator
from speech2image.losses.adversarial import binary_loss, discriminator_term, generator_term
from speech2image.losses.class_aware import class_aware_loss
from speech2image.losses.colour import COVARIANCE_FACTOR, colour_consistency, colour_statistics
from speech2image.losses.kl import kl_to_standard_normal
from speech2image.training import gan_module
from speech2image.training.ema import ExponentialMovingAverage
from speech2image.training.gan_module import GanModule
from speech2image.types import ImagePyramid

ORACLE = Oracle("stackgan_v2")
check, tensor = ORACLE.check, ORACLE.tensor
SIZES = (64, 128, 256)
COLOUR = 50.0
SUB = {0: 3, 1: 7, 2: 13}


def load(network: nn.Module, name: str, calibrated: bool = False) -> nn.Module:
    state = ORACLE.states(calibrated)[name]
    assert list(network.state_dict()) == list(state), "state keys and their order"
    network.load_state_dict(state)
    return network


def generator(calibrated: bool = False) -> StackGenerator:
    network = StackGenerator(sentence_dim=24, condition_dim=12, noise_dim=10, gf_dim=8)
    load(network, "G", calibrated)
    return network


def discriminator(pixels: int, calibrated: bool = False) -> StackDiscriminator:
    network = StackDiscriminator(pixels, df_dim=8, condition_dim=12)
    load(network, f"D{pixels}", calibrated)
    return network


def images(kind: str) -> tuple[Tensor, ...]:
    return tuple(tensor(f"{kind}_u8_{pixels}").float() / 127.5 - 1.0 for pixels in SIZES)


def batch(step: int = 0) -> dict[str, Any]:
    return {
        "sentence": tensor("text")[step],
        "real": ImagePyramid(images("real")),
        "wrong": ImagePyramid(images("wrong")),
        "class_id": tensor("class_labels"),
    }


def draws(step: int) -> tuple[Tensor, Tensor]:
    return tensor("z")[step], tensor("eps")[step]


def module(**options: Any) -> GanModule:
    return GanModule(generator(), [discriminator(pixels) for pixels in SIZES], **options).train()


def running_statistics(network: nn.Module) -> Tensor:
    return torch.cat([value.flatten() for key, value in network.state_dict().items() if "running" in key])


def gradient_norm(network: nn.Module) -> Tensor:
    return torch.sqrt(sum(p.grad.double().square().sum() for p in network.parameters()))  # type: ignore[union-attr]


def check_images(mode: str, painted: tuple[Tensor, ...]) -> None:
    for level, image in enumerate(painted):
        step = SUB[level]
        check(f"G/{mode}/img{level}/sub", image[:, :, ::step, ::step])
        check(f"G/{mode}/img{level}/mean", image.mean(dim=(2, 3)))
        check(f"G/{mode}/img{level}/std", image.double().std(dim=(2, 3), correction=0))


@pytest.mark.parametrize("mode", ["eval_rule", "train", "eval_cal"])
def test_generator_paints_recorded_images(mode: str) -> None:
    network = generator(calibrated=mode == "eval_cal").train(mode == "train")
    eps = tensor("eps")[0]
    noise = tensor("z")[1 if mode == "eval_cal" else 0]
    with torch.no_grad():
        output = network(tensor("text")[0], noise, eps)
    check_images(mode, output.images)
    if mode == "train":
        check("G/mu", output.mu)
        check("G/logvar", output.logvar)
        check("G/c_code", output.mu + torch.exp(0.5 * output.logvar) * eps)
        check("G/train/running_after", running_statistics(network))


@pytest.mark.parametrize("pixels", SIZES)
@pytest.mark.parametrize("mode", ["eval_rule", "train", "eval_cal"])
def test_discriminator_gives_recorded_logits_and_codes(mode: str, pixels: int) -> None:
    network = discriminator(pixels, calibrated=mode == "eval_cal").train(mode == "train")
    kind = "wrong" if mode == "eval_cal" else "real"
    with torch.no_grad():
        code = network.code(images(kind)[SIZES.index(pixels)])
        cond, uncond = network.judge(code, tensor("G/mu"))
    check(f"D{pixels}/{mode}/cond_logit", cond)
    check(f"D{pixels}/{mode}/uncond_logit", uncond)
    check(f"D{pixels}/{mode}/cond", torch.sigmoid(cond))
    check(f"D{pixels}/{mode}/uncond", torch.sigmoid(uncond))
    check(f"li/D{pixels}/{mode}/x_immediate_sub", code.flatten(1)[:, ::7])


@pytest.mark.parametrize("pixels", SIZES)
def test_discriminator_loss_terms_and_gradient_match(pixels: int) -> None:
    trained = module()
    output = trained.generator(batch()["sentence"], *draws(0))
    level = SIZES.index(pixels)
    pictures = {"real": images("real")[level], "wrong": images("wrong")[level], "fake": output.images[level]}
    targets = {"real": (True, True), "wrong": (False, True), "fake": (False, False)}
    judge = discriminator(pixels).train()
    for kind, picture in pictures.items():
        cond, uncond = judge(picture.detach(), output.mu.detach())
        check(f"loss/D{pixels}/{kind}_cond", binary_loss(cond, targets[kind][0]))
        check(f"loss/D{pixels}/{kind}_uncond", binary_loss(uncond, targets[kind][1]))
    check(f"loss/D{pixels}/total", trained.discriminator_backward(level, batch(), output))
    check(f"loss/D{pixels}/grad_norm", gradient_norm(trained.discriminators[level]))


def test_generator_loss_terms_match() -> None:
    painter = generator().train()
    output = painter(batch()["sentence"], *draws(0))
    for level, pixels in enumerate(SIZES):
        judge = discriminator(pixels).train()
        code = judge.code(output.images[level])
        cond, uncond = judge.judge(code, output.mu)
        check(f"loss/G/cond{pixels}", binary_loss(cond, True))
        check(f"loss/G/uncond{pixels}", binary_loss(uncond, True))
        aware = class_aware_loss(code.flatten(1), tensor("class_labels"))
        check(f"li/loss/G/class_aware{pixels}", aware)
    mean, covariance = colour_statistics(output.images[2])
    check("loss/color/mean2", mean)
    check("loss/color/cov2", covariance)
    for name, larger in (("2", 2), ("1", 1)):
        mean_term, covariance_term = colour_consistency(output.images[larger], output.images[larger - 1])
        check(f"loss/G/like_mu{name}", COLOUR * mean_term)
        check(f"loss/G/like_cov{name}", COLOUR * COVARIANCE_FACTOR * covariance_term)
    kl = kl_to_standard_normal(output.mu, output.logvar)
    check("loss/G/kl_raw", kl)
    check("loss/G/kl_weighted", 2.0 * kl)


@pytest.mark.parametrize(("prefix", "weight"), [("", 0.0), ("li/", 1.0)], ids=["original", "li_et_al"])
def test_generator_total_and_gradient_match(prefix: str, weight: float) -> None:
    trained = module(colour_weight=COLOUR, class_aware_weight=weight)
    output = trained.generator(batch()["sentence"], *draws(0))
    losses = trained.generator_backward(batch(), output)
    check(f"{prefix}loss/G/total", losses["loss_g"])
    check(f"{prefix}loss/G/grad_norm", gradient_norm(trained.generator))
    assert all(p.grad is None for p in trained.discriminators.parameters()), "D stays out of the G step"


@pytest.mark.parametrize("shared", [False, True], ids=["one_by_one", "shared_pass"])
@pytest.mark.parametrize(("prefix", "weight"), [("", 0.0), ("li/", 1.0)], ids=["original", "li_et_al"])
def test_two_training_steps_match_in_both_forms(
    prefix: str, weight: float, shared: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gan_module, "SHARED_PASS_RATIO", 0 if shared else math.inf)
    compare_two_steps(prefix, weight)


def compare_two_steps(prefix: str, weight: float) -> None:
    trained = module(class_aware_weight=weight)
    optimizers = trained.configure_optimizers()
    for step in range(2):
        losses = trained.optimise(batch(step), *draws(step), optimizers)
        for level, pixels in enumerate(SIZES):
            check(f"{prefix}steps/{step}/errD{level}", losses[f"loss_d_{pixels}"])
        check(f"{prefix}steps/{step}/kl", losses["loss_kl"])
        check(f"{prefix}steps/{step}/errG", losses["loss_g"])
    check(f"{prefix}steps/G_params", summary(trained.generator))
    if not prefix:
        check("steps/G_ema", summary(trained.ema.module))
        check("steps/ema_ca_bias", trained.ema.module.get_parameter("ca_net.fc.bias"))
        check("steps/param_ca_bias", trained.generator.ca_net.fc.bias)
        check("steps/G_running_after", running_statistics(trained.generator))
        assert torch.equal(running_statistics(trained.ema.module), running_statistics(trained.generator))


def summary(network: nn.Module) -> Tensor:
    """Return sum, sum of absolute values, first and last element of every parameter, in stored order."""
    assert [name for name, _ in network.named_parameters()] == ORACLE.spec["param_names"]
    rows = [p.detach().contiguous().flatten().double() for p in network.parameters()]
    return torch.stack([torch.stack([row.sum(), row.abs().sum(), row[0], row[-1]]) for row in rows])


def test_moving_average_matches() -> None:
    live = nn.ParameterList([tensor("ema_start")])
    average = ExponentialMovingAverage(live, decay=0.999)
    for weights in tensor("ema_params"):
        with torch.no_grad():
            live[0].copy_(weights)
        average.update()
        assert torch.equal(live[0], weights), "live weights are never overwritten"
    check("ema/after_two", average.module.get_parameter("0"))


# ---- facts of the published size, measured on the released code ---------------------------------
G_PARTS = {
    "ca_net": 524_800, "h_net1": 20_074_240, "img_net1": 1_728,
    "h_net2": 480_384, "img_net2": 864, "h_net3": 157_248, "img_net3": 432,
}  # fmt: skip
D_FACTS = {64: (5_723_906, 29, 2_816), 128: (18_834_178, 41, 5_888), 256: (71_269_122, 53, 12_032)}


@cache
def published(part: int) -> nn.Module:
    """Build a network of published size without drawing its weights: 0 the generator, else a size of D."""
    with torch.device("meta"):
        network = StackGenerator() if part == 0 else StackDiscriminator(part)
    network = network.to_empty(device="cpu").eval()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            module.reset_running_stats()
        for parameter in module.parameters(recurse=False):
            wave = 0.02 * torch.sin(0.37 * torch.arange(parameter.numel(), dtype=torch.float64) + 1.0)
            is_scale = isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d) and parameter is module.weight
            parameter.data.copy_((wave + is_scale).float().view_as(parameter))
    return network


def test_published_generator_has_the_released_counts() -> None:
    network = published(0)
    assert {n: sum(p.numel() for p in m.parameters()) for n, m in network.named_children()} == {
        name: G_PARTS[name] for name, _ in network.named_children()
    }
    assert sum(p.numel() for p in network.parameters()) == 21_239_696
    assert sum(b.numel() for b in network.buffers()) == 71_121
    state = network.state_dict()
    assert len(state) == 107
    assert state["h_net1.fc.0.weight"].shape == (32768, 228)
    assert state["ca_net.fc.weight"].shape == (512, 1024)
    ups = [tuple(state[f"h_net1.upsample{i}.1.weight"].shape) for i in (1, 2, 3, 4)]
    assert ups == [(2 * c, 2 * c, 3, 3) for c in (512, 256, 128, 64)]
    assert state["h_net2.jointConv.0.weight"].shape == (128, 192, 3, 3)
    assert state["h_net3.jointConv.0.weight"].shape == (64, 160, 3, 3)


def test_published_discriminators_have_the_released_counts() -> None:
    total = 0
    for pixels, (parameters, entries, statistics) in D_FACTS.items():
        with torch.device("meta"):
            network = StackDiscriminator(pixels)
        assert sum(p.numel() for p in network.parameters()) == parameters
        assert len(network.state_dict()) == entries
        assert sum(b.numel() for b in network.buffers() if b.is_floating_point()) == statistics
        total += parameters
    assert total == 95_827_206


@cache
def fingerprint() -> tuple[list[Tensor], tuple[Tensor, ...], Tensor]:
    network = published(0)
    noise = torch.sin(0.1 * torch.arange(200, dtype=torch.float64)).float().view(2, 100)
    sentence = torch.cos(0.05 * torch.arange(2048, dtype=torch.float64)).float().view(2, 1024)
    maps: list[Tensor] = []
    hooks = [
        network.get_submodule(f"h_net{stage}").register_forward_hook(lambda *args: maps.append(args[2]))
        for stage in (1, 2, 3)
    ]
    with torch.no_grad():
        output = network(sentence, noise)
    for hook in hooks:
        hook.remove()
    return maps, output.images, output.mu


def test_published_generator_gives_the_recorded_fingerprint() -> None:
    maps, painted, mu = fingerprint()
    assert [tuple(m.shape) for m in maps] == [(2, 64, 64, 64), (2, 32, 128, 128), (2, 16, 256, 256)]
    assert [tuple(i.shape) for i in painted] == [(2, 3, p, p) for p in SIZES]
    recorded = [
        (7.2311e-04, 1.965633e-02), (-3.425742e-05, 7.222080e-03), (-1.087455e-04, 7.169944e-03),
        (-1.028398e-04, 7.549323e-03), (6.464092e-04, 7.134656e-05), (4.378282e-04, 6.401681e-05),
        (1.646479e-04, 4.735037e-04),
    ]  # fmt: skip
    for found, (mean, std) in zip((mu, *maps, *painted), recorded, strict=True):
        assert float(found.double().mean()) == pytest.approx(mean, rel=1e-4)
        assert float(found.double().std()) == pytest.approx(std, rel=1e-4)
    corner = painted[0][0, 0, 0, :3].tolist()
    assert corner == pytest.approx([1.000175e-04, 2.57191e-04, 2.579939e-04], rel=1e-4)


@pytest.mark.parametrize(
    ("pixels", "cond", "uncond"),
    [
        (64, (0.49594477, 0.49601397), 0.49443173),
        (128, (0.49613988, 0.49606511), 0.49557605),
        (256, (0.49594158, 0.49605972), 0.49742141),
    ],
)
def test_published_discriminator_gives_the_recorded_fingerprint(
    pixels: int, cond: tuple[float, float], uncond: float
) -> None:
    _, painted, mu = fingerprint()
    with torch.no_grad():
        found_cond, found_uncond = published(pixels)(painted[SIZES.index(pixels)], mu)
    assert torch.sigmoid(found_cond).tolist() == pytest.approx(cond, rel=1e-4)
    assert float(torch.sigmoid(found_uncond)[0]) == pytest.approx(uncond, rel=1e-4)


def test_closed_form_losses() -> None:
    undecided = torch.zeros(3)
    level = sum(discriminator_term(kind, undecided, undecided) for kind in ("real", "wrong", "fake"))
    assert float(level) == pytest.approx(6 * math.log(2), abs=1e-6)
    assert 3 * float(generator_term(undecided, undecided)) == pytest.approx(4.158883, abs=1e-6)
    assert float(kl_to_standard_normal(torch.full((2, 3), 0.5), torch.zeros(2, 3))) == pytest.approx(0.125)
    assert float(kl_to_standard_normal(torch.zeros(2, 3), torch.ones(2, 3))) == pytest.approx(
        0.359141, abs=1e-6
    )
    half, zero = torch.full((2, 3, 8, 8), 0.5), torch.zeros(2, 3, 4, 4)
    assert [float(term) for term in colour_consistency(half, zero)] == [0.25, 0.0]
    mean, covariance = colour_statistics((torch.arange(48) / 48).view(1, 3, 4, 4))
    assert mean[0].tolist() == pytest.approx([0.15625, 0.4895833, 0.8229167], abs=1e-6)
    assert covariance.flatten().tolist() == pytest.approx([0.00922309] * 9, abs=1e-7)
    features = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 2.0]])
    assert float(class_aware_loss(features, torch.tensor([0, 0, 1, 1]))) == 0.0
    assert float(class_aware_loss(features, torch.tensor([0, 1, 0, 1]))) == pytest.approx(0.40625)


def test_every_output_of_the_oracle_is_compared() -> None:
    """Nothing of the oracle is left out; comparisons that ran elsewhere are repeated here."""
    if set(ORACLE.spec["outputs"]) - ORACLE.compared:
        for mode in ("eval_rule", "train", "eval_cal"):
            test_generator_paints_recorded_images(mode)
            for pixels in SIZES:
                test_discriminator_gives_recorded_logits_and_codes(mode, pixels)
        for pixels in SIZES:
            test_discriminator_loss_terms_and_gradient_match(pixels)
        for prefix, weight in (("", 0.0), ("li/", 1.0)):
            test_generator_total_and_gradient_match(prefix, weight)
            compare_two_steps(prefix, weight)
        test_generator_loss_terms_match()
        test_moving_average_matches()
    assert sorted(set(ORACLE.spec["outputs"]) - ORACLE.compared) == []
