"""Shapes, options and errors of the generator and its discriminators."""

from __future__ import annotations

import pytest
import torch

from speech2image.errors import ConfigError
from speech2image.gan.discriminators import StackDiscriminator
from speech2image.gan.stackgan import StackGenerator


def _generator(**options: int) -> StackGenerator:
    sizes = {"sentence_dim": 6, "condition_dim": 5, "noise_dim": 4, "gf_dim": 4} | options
    return StackGenerator(**sizes)  # type: ignore[arg-type]


@pytest.mark.parametrize("base_px", [16, 32, 64])
@pytest.mark.parametrize("num_stages", [1, 2, 3])
def test_images_double_from_the_base_size(base_px: int, num_stages: int) -> None:
    generator = _generator(base_px=base_px, num_stages=num_stages)
    sizes = tuple(base_px * 2**k for k in range(num_stages))
    output = generator(torch.randn(3, 6), torch.randn(3, 4))
    assert generator.image_sizes == sizes
    assert [tuple(image.shape) for image in output.images] == [(3, 3, px, px) for px in sizes]
    assert all(float(image.detach().abs().max()) <= 1 for image in output.images)
    assert output.mu.shape == output.logvar.shape == (3, 5)


def test_no_eps_means_the_mean_condition() -> None:
    generator = _generator(num_stages=1, base_px=16).eval()
    sentence, noise = torch.randn(2, 6), torch.randn(2, 4)
    at_mean = generator.generate(sentence, noise)[0]
    assert torch.equal(at_mean, generator.generate(sentence, noise, torch.zeros(2, 5))[0])
    assert not torch.equal(at_mean, generator.generate(sentence, noise, torch.ones(2, 5))[0])
    assert not at_mean.requires_grad


def test_sentence_and_noise_both_reach_the_image() -> None:
    generator = _generator(num_stages=2, base_px=16).eval()
    sentence = torch.randn(2, 6, requires_grad=True)
    noise = torch.randn(2, 4, requires_grad=True)
    generator(sentence, noise).images[1].square().sum().backward()
    for given in (sentence, noise):
        assert given.grad is not None and bool((given.grad.abs().sum(1) > 0).all())


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"base_px": 48}, "base_px is 48"),
        ({"num_stages": 4}, "num_stages is 4"),
        ({"gf_dim": 6}, "gf_dim is 6"),
    ],
)
def test_wrong_sizes_name_the_option_and_a_remedy(options: dict[str, int], words: str) -> None:
    with pytest.raises(ConfigError, match=words) as caught:
        _generator(**options)
    assert caught.value.remedy.startswith("Set ")


@pytest.mark.parametrize("image_px", [16, 32, 64, 128, 256])
def test_discriminator_judges_every_size(image_px: int) -> None:
    judge = StackDiscriminator(image_px, df_dim=2, condition_dim=5)
    image, mu = torch.randn(2, 3, image_px, image_px), torch.randn(2, 5)
    cond, uncond = judge(image, mu)
    assert cond.shape == uncond.shape == (2,)
    assert judge.code(image).shape == (2, 16, 4, 4)


def test_unconditional_logit_ignores_the_condition() -> None:
    judge = StackDiscriminator(16, df_dim=2, condition_dim=5).eval()
    image = torch.randn(2, 3, 16, 16)
    one, other = judge(image, torch.zeros(2, 5)), judge(image, torch.ones(2, 5))
    assert torch.equal(one[1], other[1]) and not torch.equal(one[0], other[0])


@pytest.mark.parametrize("image_px", [32, 128])
def test_judging_kinds_together_equals_separate_calls(image_px: int) -> None:
    torch.manual_seed(0)
    together, apart = (StackDiscriminator(image_px, 2, 5).double() for _ in range(2))
    apart.load_state_dict(together.state_dict())
    kinds = [torch.randn(3, 3, image_px, image_px).double() * (k + 1) for k in range(3)]
    mu = torch.randn(3, 5).double()
    found = together.judge_kinds(kinds, mu)
    wanted = [apart(image, mu) for image in kinds]
    for mine, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(mine, theirs)
    sum((cond + 2 * uncond).square().sum() for cond, uncond in found).backward()  # type: ignore[union-attr]
    sum((cond + 2 * uncond).square().sum() for cond, uncond in wanted).backward()  # type: ignore[union-attr]
    for (name, mine), theirs in zip(together.named_parameters(), apart.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-8, atol=1e-10, msg=name)
    for mine, theirs in zip(together.buffers(), apart.buffers(), strict=True):
        torch.testing.assert_close(mine, theirs)


def test_unknown_discriminator_size_is_refused() -> None:
    with pytest.raises(ConfigError, match="48 pixels"):
        StackDiscriminator(48)
