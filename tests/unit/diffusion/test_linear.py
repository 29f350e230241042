"""The two kernels of a linear layer give one answer, forward and backward."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from speech2image.diffusion import linear
from speech2image.diffusion.linear import TokenLinear, _OneDnnLinear, _pays
from speech2image.diffusion.transformer import DiffusionCondition, DiffusionTransformer

onednn = pytest.mark.skipif(linear._ONEDNN is None, reason="this build of torch has no oneDNN")


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(5)


def _gradients(
    form: Callable[[Tensor, Tensor, Tensor | None], Tensor], inputs: tuple[Tensor, Tensor, Tensor | None]
) -> list[Tensor]:
    leaves = [None if value is None else value.clone().requires_grad_() for value in inputs]
    product = form(*leaves)  # type: ignore[arg-type]
    weights = torch.linspace(-1, 1, product.numel(), dtype=product.dtype).view_as(product).sin()
    (product * weights).sum().backward()
    return [product.detach(), *(leaf.grad for leaf in leaves if leaf is not None and leaf.grad is not None)]


@onednn
@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize("shape", [(2, 70, 48), (130, 33)])
def test_onednn_follows_float64(shape: tuple[int, ...], with_bias: bool, generator: torch.Generator) -> None:
    content, weight = torch.randn(shape, generator=generator), torch.randn(37, shape[-1], generator=generator)
    bias = torch.randn(37, generator=generator) if with_bias else None
    exact_inputs = (content.double(), weight.double(), None if bias is None else bias.double())
    exact = _gradients(nn.functional.linear, exact_inputs)
    found = _gradients(_OneDnnLinear.apply, (content, weight, bias))
    assert len(found) == (4 if with_bias else 3)
    for value, wanted in zip(found, exact, strict=True):
        scale = float(wanted.abs().max())
        torch.testing.assert_close(value.double(), wanted, atol=1e-5 * max(scale, 1.0), rtol=0)


@onednn
def test_onednn_reads_any_memory_order(generator: torch.Generator) -> None:
    content = torch.randn(48, 70, generator=generator).t().requires_grad_()
    weight = torch.randn(37, 48, generator=generator, requires_grad=True)
    product = _OneDnnLinear.apply(content, weight, None)
    torch.testing.assert_close(product, content @ weight.t(), atol=1e-4, rtol=1e-5)
    gradient = torch.randn(37, 70, generator=generator).t()
    for_content, for_weight = torch.autograd.grad(product, (content, weight), gradient)
    torch.testing.assert_close(for_content, gradient @ weight, atol=1e-4, rtol=1e-5)
    torch.testing.assert_close(for_weight, gradient.t() @ content, atol=1e-4, rtol=1e-5)


def test_onednn_is_left_alone_where_it_does_not_apply(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear, "_ONEDNN", object())
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
    many, weight = torch.zeros(2, 64, 8), torch.zeros(4, 8)
    assert _pays(many, weight)
    assert not _pays(torch.zeros(2, 8), weight), "few rows"
    assert not _pays(torch.zeros(8), weight), "a single row"
    assert not _pays(many.double(), weight.double())
    assert not _pays(many.to("meta"), weight)
    with torch.autocast("cpu", torch.bfloat16):
        assert not _pays(many, weight)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    assert not _pays(many, weight)


def test_layer_has_the_state_and_the_first_values_of_a_linear_layer() -> None:
    torch.manual_seed(3)
    plain = nn.Linear(6, 5)
    torch.manual_seed(3)
    ours = TokenLinear(6, 5)
    assert list(ours.state_dict()) == list(plain.state_dict())
    assert torch.equal(ours.weight, plain.weight)
    assert torch.equal(ours.bias, plain.bias)


@onednn
def test_network_gives_the_same_with_both_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    net = DiffusionTransformer(23, (8, 8), 2, 32, 4, conditioning="cross", words_dim=12)
    tokens, t = torch.randint(24, (2, 64)), torch.tensor([3, 70])
    condition = DiffusionCondition(words=torch.randn(2, 7, 12))

    def run(pays: bool) -> list[Tensor]:
        monkeypatch.setattr(linear, "_pays", lambda *_: pays)
        twin = copy.deepcopy(net)
        scores = twin(tokens, t, condition)
        scores.logsumexp(1).square().sum().backward()
        return [scores.detach(), *(value.grad for value in twin.parameters() if value.grad is not None)]

    plain, fast = run(False), run(True)
    assert len(plain) == len(fast) > 40
    for value, wanted in zip(fast, plain, strict=True):
        torch.testing.assert_close(value, wanted, atol=1e-5 * float(wanted.abs().max()) + 1e-6, rtol=1e-4)
