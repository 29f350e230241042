"""The diffusion transformer: its own form, null conditions, precision, memory, errors."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from speech2image.diffusion.blocks import GELU2, Attention
from speech2image.diffusion.compile import compile_blocks
from speech2image.diffusion.embeddings import ContentEmbedding, replace_null_words, sinusoid
from speech2image.diffusion.predictor import Predictor
from speech2image.diffusion.transformer import DiffusionCondition, DiffusionTransformer
from speech2image.errors import ConfigError
from speech2image.types import Condition

K, GRID, LENGTH = 11, (3, 4), 12
FORMS: dict[str, dict[str, Any]] = {
    "adaptive": {"conditioning": "adaptive", "condition_dim": 10, "words_dim": 6},
    "adaptive_sentence": {"conditioning": "adaptive", "condition_dim": 10, "timestep": "absolute"},
    "cross": {"conditioning": "cross", "words_dim": 6, "null": "learned", "num_null_words": 3},
    "class": {"conditioning": "class", "num_classes": 4, "mlp": "conv"},
    "class_row": {"conditioning": "class", "num_classes": 4, "null": "learned", "timestep": "absolute"},
    "modulation": {"conditioning": "modulation", "null": "learned", "mlp": "conv"},
}
ALL_FORMS = {**FORMS, "none": {"conditioning": "none", "activation": "gelu"}}


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def network(form: str, spread: float = 0.3, **options: Any) -> DiffusionTransformer:
    """A small network whose every parameter is off zero, so that every path shows."""
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(3)
        ours = DiffusionTransformer(K, GRID, 2, 16, 4, **{**ALL_FORMS[form], **options})
        for parameter in ours.parameters():
            parameter.add_(torch.randn(parameter.shape), alpha=spread)
    return ours.eval()


def batch(size: int = 4) -> tuple[Tensor, Tensor]:
    tokens = torch.arange(size * LENGTH).mul(7).remainder(K + 1).view(size, LENGTH)
    return tokens, torch.arange(size).mul(23).remainder(100)


def condition(form: str, size: int = 4) -> DiffusionCondition:
    sentence = draw(size, 32 if form == "modulation" else 10, seed=1)
    mask = torch.arange(5) < torch.tensor([5, 2, 4, 1] * size)[:size, None]
    words, class_id = draw(size, 5, 6, seed=2), torch.tensor([3, 0, 2, 1] * size)[:size]
    return DiffusionCondition(sentence, words, mask, class_id)


def select(given: DiffusionCondition, rows: slice) -> DiffusionCondition:
    fields = (given.sentence, given.words, given.mask, given.class_id, given.is_null)
    return DiffusionCondition(*(None if field is None else field[rows] for field in fields))


@pytest.mark.parametrize("form", ALL_FORMS)
def test_items_of_a_batch_do_not_see_each_other(form: str) -> None:
    ours, (tokens, t), given = network(form), batch(), condition(form)
    if ours.has_null:
        is_null = torch.tensor([False, True, False, True])
        given = DiffusionCondition(given.sentence, given.words, given.mask, given.class_id, is_null)
    with torch.no_grad():
        together = ours(tokens, t, given)
        alone = [ours(tokens[i : i + 1], t[i : i + 1], select(given, slice(i, i + 1))) for i in range(4)]
    assert together.shape == (4, K, LENGTH)
    torch.testing.assert_close(together, torch.cat(alone), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("form", FORMS)
def test_null_items_ignore_their_condition_and_only_theirs(form: str) -> None:
    ours, (tokens, t), given = network(form), batch(), condition(form)
    other = condition(form)
    other = DiffusionCondition(
        -2 * other.sentence, other.words.flip(0) + 1, other.mask.flip(0), (other.class_id + 1) % 4
    )
    is_null = torch.tensor([True, False, True, False])
    with torch.no_grad():
        plain = ours(tokens, t, given)
        null = ours(tokens, t, given.with_null(True))
        torch.testing.assert_close(ours(tokens, t, given.with_null(False)), plain)
        torch.testing.assert_close(ours(tokens, t, other.with_null(True)), null)
        mixed = ours(
            tokens, t, DiffusionCondition(given.sentence, given.words, given.mask, given.class_id, is_null)
        )
    assert (plain - null).abs().amax((1, 2)).min() > 1e-2
    torch.testing.assert_close(mixed, torch.where(is_null[:, None, None], null, plain))


@pytest.mark.parametrize("form", ALL_FORMS)
def test_every_parameter_learns(form: str) -> None:
    ours, (tokens, t), given = network(form), batch(), condition(form)
    if ours.has_null:
        is_null = torch.tensor([False, True, False, False])
        given = DiffusionCondition(given.sentence, given.words, given.mask, given.class_id, is_null)
    ours(tokens, t, given).square().sum().backward()
    still = [
        name
        for name, parameter in ours.named_parameters()
        # A bias of the keys shifts all scores of a query alike, so softmax takes it out again.
        if (parameter.grad is None or not parameter.grad.abs().sum() > 0) and not name.endswith("key.bias")
    ]
    assert not still


def test_adaptive_form_starts_as_identity_with_even_scores() -> None:
    ours = DiffusionTransformer(K, GRID, 3, 16, 4, **FORMS["adaptive"])
    tokens, t = batch()
    seen: list[Tensor] = []
    ours.to_logits.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    logits = ours(tokens, t, condition("adaptive"))
    assert torch.equal(logits, torch.zeros_like(logits)), "all codes are equally likely"
    plain = torch.nn.functional.layer_norm(ours.content_emb(tokens), (16,))
    torch.testing.assert_close(seen[0], plain)


@pytest.mark.parametrize("form", ["adaptive", "cross"])
def test_padding_words_do_not_matter(form: str) -> None:
    ours, (tokens, t), given = network(form), batch(), condition(form)
    noisy = torch.where(given.mask[..., None], given.words, 99.0)
    longer = torch.nn.functional.pad(noisy, (0, 0, 0, 7), value=-50.0)
    mask = torch.nn.functional.pad(given.mask, (0, 7))
    with torch.no_grad():
        plain = ours(tokens, t, given)
        padded = ours(tokens, t, DiffusionCondition(given.sentence, longer, mask))
        unmasked = ours(tokens, t, DiffusionCondition(given.sentence, given.words))
    torch.testing.assert_close(padded, plain, rtol=1e-4, atol=1e-5)
    assert (unmasked - plain)[1:].abs().amax((1, 2)).min() > 1e-3, "the mask is used"


def test_null_words_may_be_more_or_fewer_than_the_words() -> None:
    words, null = draw(2, 3, 4), draw(5, 4, seed=1)
    is_null = torch.tensor([True, False])
    joined, mask = replace_null_words(words, None, null, is_null)
    assert torch.equal(joined[0], null)
    assert torch.equal(joined[1, :3], words[1])
    assert mask is not None
    assert mask.tolist() == [[True] * 5, [True] * 3 + [False] * 2]
    joined, mask = replace_null_words(words, torch.ones(2, 3, dtype=torch.bool), null[:1], is_null)
    assert torch.equal(joined[0, :1], null[:1])
    assert mask is not None
    assert mask.tolist() == [[True, False, False], [True] * 3]
    assert replace_null_words(words, None, null[:3], is_null)[1] is None


@pytest.mark.parametrize("form", ALL_FORMS)
def test_bfloat16_stays_close_to_float32(form: str) -> None:
    ours, (tokens, t), given = network(form, spread=0.1), batch(), condition(form)
    with torch.no_grad():
        exact = ours(tokens, t, given).log_softmax(1)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            mixed = ours(tokens, t, given).float().log_softmax(1)
        whole = ours.to(torch.bfloat16)(tokens, t, given).float().log_softmax(1)
    spread = exact.std()
    assert (mixed - exact).square().mean().sqrt() < 0.02 * spread
    assert (whole - exact).square().mean().sqrt() < 0.03 * spread


@pytest.mark.parametrize("form", ["adaptive", "cross", "class"])
def test_recomputing_gives_the_same_gradients(form: str) -> None:
    tokens, t = batch()
    gradients = []
    for recompute in (False, True):
        ours = network(form, recompute=recompute)
        ours(tokens, t, condition(form)).square().sum().backward()
        gradients.append([p.grad for p in ours.parameters() if p.grad is not None])
    for plain, again in zip(*gradients, strict=True):
        torch.testing.assert_close(again, plain)


def test_recomputing_keeps_less_for_the_backward_pass() -> None:
    tokens, t = batch()
    kept = []
    for recompute in (False, True):
        sizes: list[int] = []
        ours = network("class", recompute=recompute)

        def pack(value: Tensor, sizes: list[int] = sizes) -> Tensor:
            sizes.append(value.numel())
            return value

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda value: value):
            ours(tokens, t, condition("class"))
        kept.append(sum(sizes))
    assert kept[1] < 0.35 * kept[0]


@pytest.mark.parametrize("form", ["adaptive", "modulation"])
def test_compiled_blocks_agree_and_keep_their_names(form: str) -> None:
    ours, (tokens, t), given = network(form), batch(), condition(form)
    names = list(ours.state_dict())
    with torch.no_grad():
        plain = ours(tokens, t, given)
        compiled = compile_blocks(ours, backend="aot_eager")(tokens, t, given)
    assert all(block._compiled_call_impl is not None for block in ours.blocks)
    torch.testing.assert_close(compiled, plain)
    assert list(ours.state_dict()) == names


def test_guidance_runs_both_sides_in_one_call() -> None:
    ours, (tokens, t), given = network("adaptive"), batch(), condition("adaptive")
    calls: list[int] = []
    ours.register_forward_pre_hook(lambda _, inputs: calls.append(len(inputs[0])))
    predictor = Predictor(ours, given.with_null(False), given.with_null(True), guidance_scale=3.0)
    guided = predictor(tokens, t)
    assert calls == [8]
    with torch.no_grad():
        log_c = ours(tokens, t, given).log_softmax(1)
        log_u = ours(tokens, t, given.with_null(True)).log_softmax(1)
    expected = (log_u + 3.0 * (log_c - log_u)).log_softmax(1).clamp(-70, 0)
    torch.testing.assert_close(guided, expected, rtol=1e-4, atol=1e-4)


def test_encoder_conditions_are_taken_over() -> None:
    sentence, words, mask = draw(2, 10), draw(2, 6, 5), torch.ones(2, 5, dtype=torch.bool)
    given = DiffusionCondition.from_encoder(Condition(sentence, words, mask))
    assert given.words is not None
    assert torch.equal(given.words, words.transpose(1, 2))
    tokens, t = batch(2)
    assert network("adaptive")(tokens, t, given).isfinite().all()
    assert DiffusionCondition.from_encoder(Condition(sentence)).words is None


def test_positions_follow_the_table_not_the_grid() -> None:
    quirky = ContentEmbedding(K, 16, 2, (8, 8))
    with torch.no_grad():
        quirky.height_emb.weight.copy_(torch.arange(8.0)[:, None] * torch.tensor([1.0, 0.0]))
        quirky.width_emb.weight.copy_(torch.arange(8.0)[:, None] * torch.tensor([0.0, 1.0]))
    assert quirky.positions().tolist() == [[i // 8, i % 8] for i in range(16)]


def test_small_formulas_have_the_sheets_values() -> None:
    activated = GELU2()(torch.tensor([1.0, -1.0]))
    torch.testing.assert_close(activated, torch.tensor([0.845795751, -0.154204235]))
    expected = [0.745113, 0.959425, 0.086071, 0.004000, -0.666938, -0.281963, 0.996289, 0.999992]
    torch.testing.assert_close(
        sinusoid(torch.tensor([1]), 8, 100)[0], torch.tensor(expected), rtol=0, atol=1e-6
    )


def test_attention_is_softmax_of_scaled_products() -> None:
    attention, content, source = Attention(8, 2, source_dim=6), draw(2, 3, 8), draw(2, 5, 6, seed=1)
    mask = torch.tensor([[True] * 5, [True, True, False, False, True]])
    key, query, value = attention.key(source), attention.query(content), attention.value(source)
    parts = []
    for head in (slice(0, 4), slice(4, 8)):
        products = torch.einsum("bld,bnd->bln", query[..., head], key[..., head]) / 2.0
        weights = products.masked_fill(~mask[:, None], -torch.inf).softmax(-1)
        parts.append(weights @ value[..., head])
    expected = attention.proj(torch.cat(parts, dim=-1))
    torch.testing.assert_close(attention(content, source, mask[:, None, None]), expected)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"conditioning": "words"}, "conditioning='words', expected one of adaptive, cross"),
        ({"conditioning": "adaptive"}, "condition_dim is missing"),
        ({"conditioning": "cross"}, "words_dim is missing"),
        ({"conditioning": "class"}, "num_classes is missing"),
        ({"conditioning": "modulation", "condition_dim": 16}, r"modulation needs 2 \* dim = 32"),
        (
            {"conditioning": "cross", "words_dim": 6, "null": "mean"},
            "null='mean', expected one of none, learned",
        ),
        ({"conditioning": "none", "mlp": "linear", "activation": "relu"}, "mlp='linear'.*activation='relu'"),
        ({"conditioning": "none", "timestep": "sine"}, "timestep='sine'"),
        ({"conditioning": "none", "table": (2, 4)}, "holds fewer positions"),
        ({"conditioning": "none", "heads": 3}, "dim=16, expected an even multiple of heads=3"),
        ({"conditioning": "none", "num_steps": 0}, "must be at least 1"),
    ],
)
def test_contradicting_arguments_are_refused_in_one_message(options: dict[str, Any], message: str) -> None:
    arguments = {"num_tokens": K, "grid": GRID, "depth": 2, "dim": 16, "heads": 4, **options}
    with pytest.raises(ConfigError, match=message):
        DiffusionTransformer(**arguments)


@pytest.mark.parametrize(
    ("form", "given", "message"),
    [
        ("adaptive", None, "needs condition.sentence, found none"),
        ("adaptive", DiffusionCondition(sentence=draw(4, 10)), "needs condition.words"),
        ("adaptive", DiffusionCondition(sentence=draw(4, 12)), "condition.sentence is 12 wide, expected 10"),
        ("cross", DiffusionCondition(words=draw(4, 5, 9)), "condition.words is 9 wide, expected 6"),
        ("class", DiffusionCondition(sentence=draw(4, 10)), "needs condition.class_id"),
        ("modulation", DiffusionCondition(sentence=draw(4, 16)), "is 16 wide, expected 32"),
    ],
)
def test_wrong_conditions_are_refused(form: str, given: DiffusionCondition | None, message: str) -> None:
    tokens, t = batch()
    with pytest.raises(ConfigError, match=message):
        network(form)(tokens, t, given)


def test_null_items_without_a_null_condition_are_refused() -> None:
    ours, (tokens, t) = network("cross", null="none"), batch()
    assert not ours.has_null
    with pytest.raises(ConfigError, match="this 'cross' network has no null condition"):
        ours(tokens, t, condition("cross").with_null(True))
    with pytest.raises(ConfigError, match="neither sentence, words nor labels"):
        DiffusionCondition().with_null(True)


def test_codes_of_another_grid_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"got 16 tokens an image, expected 12 \(a grid of 3x4\)"):
        network("none")(torch.zeros(1, 16, dtype=torch.int64), torch.zeros(1, dtype=torch.int64))


@pytest.mark.parametrize("width", [28, 1024])
def test_adaptive_form_hears_conditions_of_any_width_from_the_start(width: int) -> None:
    """With N(0, 0.02) a narrow condition would arrive at a tenth of its strength."""
    torch.manual_seed(0)
    fresh = DiffusionTransformer(16, (4, 4), 1, 64, 4, conditioning="adaptive", condition_dim=width)
    heard = fresh.vector_emb.sentence(torch.randn(256, width, generator=torch.Generator().manual_seed(1)))
    assert 0.8 < float(heard.std()) < 1.2


@pytest.mark.parametrize("form", ["adaptive", "cross", "class", "modulation"])
def test_fresh_parameters_are_drawn_as_named(form: str) -> None:
    """Released forms: N(0, 0.02); adaptive: N(0, 1/inputs) for matrices, N(0, 1/d) for tables; biases 0."""
    torch.manual_seed(0)
    dim = 128
    options = {**ALL_FORMS[form], "null": "learned", "mlp": "fc"} | (
        {"condition_dim": 2 * dim} if form in ("adaptive", "modulation") else {}
    )
    fresh = DiffusionTransformer(16, (4, 4), 1, dim, 4, **options)
    zeroed = {"blocks.0.steer", "final_steer", "to_logits.1"} if form == "adaptive" else set()
    for name, module in fresh.named_modules():
        if name in zeroed or not isinstance(module, (torch.nn.Linear, torch.nn.Embedding)):
            continue
        inputs = module.in_features if isinstance(module, torch.nn.Linear) else dim
        expected = inputs**-0.5 if form == "adaptive" else 0.02
        error = 5 / (2 * module.weight.numel()) ** 0.5
        assert module.weight.detach().std().item() == pytest.approx(expected, rel=error), name
        assert not isinstance(module, torch.nn.Linear) or not module.bias.any(), name
    for name in ("null_sentence", "null_words"):
        if hasattr(fresh, name):
            null = getattr(fresh, name)
            assert null.detach().std().item() == pytest.approx(0.02, rel=5 / (2 * null.numel()) ** 0.5), name
