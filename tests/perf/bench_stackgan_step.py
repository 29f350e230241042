"""Time and memory of one StackGAN-v2 training step beside its textbook form.

The textbook form, written here, is what the paper describes read literally: nearest up-sampling
as a layer, conditions tiled and concatenated, norm and activation as separate layers, one forward
pass for each kind of image, one backward pass for each loss, discriminators not frozen in the
generator's step.  Both start from the same weights and take the same batches and draws, so their
losses must agree; times are interleaved, medians are printed.

Run: python tests/perf/bench_stackgan_step.py [--gf 16 --df 16 --stages 3 --batch 8 --steps 5]
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from speech2image.gan.discriminators import StackDiscriminator
from speech2image.gan.stackgan import StackGenerator
from speech2image.training.gan_module import GanModule
from speech2image.types import ImagePyramid

Step = Callable[[], dict[str, float]]


def _plain(layers: nn.Sequential, image_map: Tensor) -> Tensor:
    for layer in layers:
        image_map = layer(image_map)
    return image_map


def _joined(layers: nn.Sequential, condition: Tensor, image_map: Tensor) -> Tensor:
    tiled = condition[:, :, None, None].expand(-1, -1, *image_map.shape[2:])
    return _plain(layers, torch.cat([tiled, image_map], 1))


def _textbook_generator(
    net: Any, sentence: Tensor, noise: Tensor, eps: Tensor
) -> tuple[list[Tensor], Tensor, Tensor]:
    mu, logvar = net.ca_net(sentence)
    condition = mu + torch.exp(0.5 * logvar) * eps
    first = net.h_net1
    image_map = first.fc(torch.cat([condition, noise], 1)).view(-1, first.start_channels, 4, 4)
    for index in range(1, first.num_blocks + 1):
        image_map = _plain(getattr(first, f"upsample{index}"), image_map)
    images = [net.img_net1(image_map)]
    for stage in range(2, len(net.image_sizes) + 1):
        block = getattr(net, f"h_net{stage}")
        image_map = _joined(block.jointConv, condition, image_map)
        for residual in block.residual:
            image_map = image_map + _plain(residual.block, image_map)
        image_map = _plain(block.upsample, image_map)
        images.append(getattr(net, f"img_net{stage}")(image_map))
    return images, mu, logvar


def _textbook_judge(net: Any, image: Tensor, mu: Tensor) -> tuple[Tensor, Tensor]:
    code = image
    for name in (
        "img_code_s16",
        "img_code_s32",
        "img_code_s32_1",
        "img_code_s64",
        "img_code_s64_1",
        "img_code_s64_2",
    ):
        if hasattr(net, name):
            code = _plain(getattr(net, name), code)
    return net.logits(_joined(net.jointConv, mu, code)).flatten(), net.uncond_logits(code).flatten()


def _bce(logits: Tensor, target: float) -> Tensor:
    return F.binary_cross_entropy(torch.sigmoid(logits), torch.full_like(logits, target))


def textbook_step(generator: StackGenerator, judges: list[StackDiscriminator], batch: dict[str, Any]) -> Step:
    """Return the step in its textbook form; `batch` holds the draws too."""
    optimizers = [
        torch.optim.Adam(net.parameters(), lr=2e-4, betas=(0.5, 0.999)) for net in [*judges, generator]
    ]
    average = copy.deepcopy(list(generator.parameters()))

    def step() -> dict[str, float]:
        losses: dict[str, float] = {}
        fakes, mu, logvar = _textbook_generator(generator, batch["sentence"], batch["noise"], batch["eps"])
        for level, judge in enumerate(judges):
            judge.zero_grad()
            loss = torch.zeros(())
            kinds = (batch["real"].levels[level], 1.0, 1.0), (batch["wrong"].levels[level], 0.0, 1.0)
            for image, cond_target, uncond_target in (*kinds, (fakes[level].detach(), 0.0, 0.0)):
                cond, uncond = _textbook_judge(judge, image, mu.detach())
                loss = loss + _bce(cond, cond_target) + _bce(uncond, uncond_target)
            loss.backward()
            optimizers[level].step()
            losses[f"loss_d_{fakes[level].shape[-1]}"] = float(loss.detach())
        generator.zero_grad()
        total = -0.5 * 2.0 * torch.mean(1 + logvar - mu**2 - logvar.exp())
        for fake, judge in zip(fakes, judges, strict=True):
            cond, uncond = _textbook_judge(judge, fake, mu)
            total = total + _bce(cond, 1.0) + _bce(uncond, 1.0)
        total.backward()
        optimizers[-1].step()
        with torch.no_grad():
            for old, new in zip(average, generator.parameters(), strict=True):
                old.mul_(0.999).add_(new, alpha=0.001)
        losses["loss_g"] = float(total.detach())
        return losses

    return step


def our_step(generator: StackGenerator, judges: list[StackDiscriminator], batch: dict[str, Any]) -> Step:
    """Return the step of the suite."""
    module = GanModule(generator, judges).train()
    optimizers = module.configure_optimizers()

    def step() -> dict[str, float]:
        losses = module.optimise(batch, batch["noise"], batch["eps"], optimizers)
        return {name: float(value) for name, value in losses.items()}

    return step


def peak_mib(step: Step) -> float:
    """Return the most memory tensors of one step hold at once, above what lives between steps."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        step()
    assert record.profiler is not None
    events = [e for e in record.profiler.kineto_results.events() if e.name() == "[memory]"]
    live = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        live += event.nbytes()
        peak = max(peak, live)
    return peak / 2**20


def _networks(options: argparse.Namespace) -> tuple[StackGenerator, list[StackDiscriminator]]:
    torch.manual_seed(0)
    generator = StackGenerator(options.sentence, gf_dim=options.gf, num_stages=options.stages)
    return generator.train(), [StackDiscriminator(px, options.df).train() for px in generator.image_sizes]


def _batch(options: argparse.Namespace, sizes: tuple[int, ...]) -> dict[str, Any]:
    seed = torch.Generator().manual_seed(1)

    def pictures() -> ImagePyramid:
        return ImagePyramid(
            tuple(torch.rand(options.batch, 3, px, px, generator=seed) * 2 - 1 for px in sizes)
        )

    def normal(width: int) -> Tensor:
        return torch.randn(options.batch, width, generator=seed)

    return {
        "sentence": normal(options.sentence), "noise": normal(100), "eps": normal(128),
        "real": pictures(), "wrong": pictures(),
    }  # fmt: skip


def main() -> None:
    """Measure, compare losses, print one table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    defaults = {"gf": 16, "df": 16, "stages": 3, "batch": 8, "steps": 5, "sentence": 1024, "threads": 2}
    for name, value in defaults.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    builders = {"textbook": textbook_step, "speech2image": our_step}
    networks = _networks(options)
    batch = _batch(options, networks[0].image_sizes)
    steps = {name: build(*copy.deepcopy(networks), batch) for name, build in builders.items()}
    first = {name: step() for name, step in steps.items()}
    for name, value in first["textbook"].items():
        assert abs(value - first["speech2image"][name]) < 2e-3 * max(1.0, abs(value)), (name, first)
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(options.steps):
        for name, step in steps.items():
            start = time.perf_counter()
            step()
            seconds[name].append(time.perf_counter() - start)
    median = {name: statistics.median(values) for name, values in seconds.items()}
    memory = {name: peak_mib(step) for name, step in steps.items()}
    print(
        f"StackGAN-v2 step, {options.stages} stage(s), gf {options.gf}, df {options.df}, batch {options.batch}"
    )
    for name in steps:
        print(f"  {name:13s} {median[name] * 1e3:8.1f} ms   {memory[name]:8.1f} MiB of tensors")
    print(
        f"  {median['textbook'] / median['speech2image']:.2f}x faster, "
        f"{memory['speech2image'] / memory['textbook']:.2f}x the memory"
    )


if __name__ == "__main__":
    main()
