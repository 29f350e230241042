"""Samplers on alphabets so small that the right distribution can be listed.

The predictor here is exact: Bayes' rule over all grids of a small joint distribution.  One-position grids must come
out in the data's distribution for every exact sampler and stride; grids of two positions must follow the chain that
is enumerated here; and samplers that reveal one position a call must give the joint distribution itself.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise, product

import pytest
import torch
from scipy.stats import chi2
from torch import Tensor

from speech2image.diffusion.chain import SkippingSampler, legacy_pairs
from speech2image.diffusion.process import posterior, start_log_probs, transition_prob
from speech2image.diffusion.purity import PuritySampler, released_counts
from speech2image.diffusion.reveal import CURVES, CurveSampler, choose_positions, halton_rank, purity, sharpen
from speech2image.diffusion.samplers import SAMPLERS, make_sampler
from speech2image.diffusion.schedule import MaskReplaceSchedule
from speech2image.errors import ConfigError

Draw = Callable[[str, tuple[int, ...]], Tensor]
COUNT = 20000


def draws(seed: int = 0) -> Draw:
    rng = torch.Generator().manual_seed(seed)
    return lambda stream, shape: torch.rand(shape, generator=rng)


def data(num_tokens: int, length: int) -> tuple[Tensor, Tensor]:
    """List all grids and give them correlated probabilities, `(n, L)` and `(n,)`."""
    grids = torch.tensor(list(product(range(num_tokens), repeat=length)))
    probs = (
        torch.rand(len(grids), generator=torch.Generator().manual_seed(1), dtype=torch.float64) ** 2 + 0.02
    )
    return grids, probs / probs.sum()


def exact_predictor(
    schedule: MaskReplaceSchedule, grids: Tensor, probs: Tensor
) -> Callable[[Tensor, Tensor], Tensor]:
    def predict(tokens: Tensor, t: Tensor) -> Tensor:
        move = schedule.marginal(t)
        weight = probs.expand(len(tokens), -1).clone()
        for grid in range(len(grids)):
            start = grids[grid].expand(len(tokens), -1)
            weight[:, grid] *= transition_prob(tokens, start, move, schedule.num_tokens).prod(1)
        one_hot = torch.nn.functional.one_hot(grids, schedule.num_tokens).double()
        marginals = torch.einsum("bn,nlk->bkl", weight / weight.sum(1, keepdim=True), one_hot)
        return marginals.log().clamp_min(-70.0).float()

    return predict


def assert_fits(tokens: Tensor, states: Tensor, probs: Tensor, level: float = 1e-4) -> None:
    """Chi-square of the grids drawn against their listed probabilities."""
    base = int(states.max()) + 1
    place = base ** torch.arange(states.shape[1])
    counts = torch.bincount((tokens * place).sum(1), minlength=base ** states.shape[1])
    found = counts[(states * place).sum(1)].double()
    assert found.sum() == len(tokens), "a grid that is not on the list"
    expected = probs * len(tokens)
    large = expected >= 5
    cells, wanted = found[large], expected[large]
    if (~large).any() and expected[~large].sum() > 1e-3:
        cells = torch.cat([cells, found[~large].sum()[None]])
        wanted = torch.cat([wanted, expected[~large].sum()[None]])
    p_value = chi2.sf(float(((cells - wanted) ** 2 / wanted).sum()), max(1, len(cells) - 1))
    assert p_value > level, f"chi-square p = {p_value:.2g}"


def chain_distribution(sampler: SkippingSampler, grids: Tensor, probs: Tensor) -> tuple[Tensor, Tensor]:
    """Enumerate the reverse chain: every state, its probability at the end."""
    schedule = sampler.schedule
    states = torch.tensor(list(product(range(schedule.num_tokens + 1), repeat=grids.shape[1])))
    start = torch.full((schedule.num_tokens + 1,), 0.0, dtype=torch.float64)
    masked = 1.0 if schedule.starts_masked else float(schedule.gamma_bar[-2])
    start[:-1], start[-1] = (1.0 - masked) / schedule.num_tokens, masked
    mass = start[states].prod(1)
    predict = exact_predictor(schedule, grids, probs)
    times = sampler.times()
    for t, s in pairwise(times):
        steps, ends = torch.full((len(states),), t), torch.full((len(states),), s)
        move = posterior(predict(states, steps), states, steps, schedule, ends).double().exp()
        move = move / move.sum(1, keepdim=True)
        rows = [move[:, states[:, i], i] for i in range(grids.shape[1])]
        mass = mass @ torch.stack(rows).prod(0)
    return states, mass


# ---- exact chains


@pytest.mark.parametrize("kind", ["released", "paper"])
@pytest.mark.parametrize("stride", [1, 2, 4, 10])
def test_strides_give_the_enumerated_distribution(kind: str, stride: int) -> None:
    schedule = MaskReplaceSchedule(3, 20, kind)
    grids, probs = data(3, 2)
    sampler = make_sampler("skipping", schedule, steps=20 // stride)
    assert isinstance(sampler, SkippingSampler)
    result = sampler.sample(exact_predictor(schedule, grids, probs), (COUNT, 2), draws(stride))
    assert result.calls == 20 // stride
    states, mass = chain_distribution(sampler, grids, probs)
    assert float(mass[(states == 3).any(1)].sum()) < 1e-12
    assert_fits(result.tokens, states, mass)


@pytest.mark.parametrize("name", ["skipping", "remask"])
@pytest.mark.parametrize("stride", [1, 2, 4, 10])
def test_every_state_on_the_way_follows_the_forward_process(name: str, stride: int) -> None:
    """With an exact prediction x_s must be distributed as data noised to step s: this is what strides get wrong."""
    schedule = MaskReplaceSchedule(4, 20)
    grids, probs = data(4, 1)
    options = {"rate": 0.2} if name == "remask" else {}
    sampler = make_sampler(name, schedule, steps=20 // stride, **options)
    frames = sampler.sample(
        exact_predictor(schedule, grids, probs), (COUNT, 1), draws(7), strip_frames=sampler.steps
    ).strip
    assert frames is not None and len(frames) == sampler.steps
    for frame, s in zip(frames, sampler.times()[1:], strict=True):
        move = schedule.marginal(torch.tensor([s]))
        states = torch.arange(5)[:, None]
        forward = torch.stack(
            [transition_prob(states.T, torch.full((1, 5), k), move, 4)[0] for k in range(4)]
        )
        assert_fits(frame, states, probs @ forward)


def test_the_released_fast_sampler_lags_behind_the_schedule() -> None:
    """Known: at stride 10 it enters t = 9 with 0.747 masks where the schedule has 0.091."""
    schedule = MaskReplaceSchedule(4, 100)
    grids, probs = data(4, 1)
    predict = exact_predictor(schedule, grids, probs)
    sampler = make_sampler("skipping", schedule, steps=10, legacy=True)
    frames = sampler.sample(predict, (COUNT, 1), draws(2), strip_frames=sampler.num_calls(1)).strip
    assert frames is not None and legacy_pairs(100, 9)[-2:] == [(9, 9), (0, 0)]
    share = (frames == 4).double().mean((1, 2)).tolist()
    assert share[-3] == pytest.approx(0.747, abs=0.01) and share[-2] == pytest.approx(0.663, abs=0.01)
    assert share[-1] == 0


def test_ancestral_walks_every_step() -> None:
    schedule = MaskReplaceSchedule(3, 12)
    grids, probs = data(3, 1)
    told: list[int] = []
    exact = exact_predictor(schedule, grids, probs)

    def predict(tokens: Tensor, t: Tensor) -> Tensor:
        told.append(int(t[0]))
        return exact(tokens, t)

    result = make_sampler("ancestral", schedule).sample(predict, (COUNT, 1), draws(3))
    assert told == list(range(11, -1, -1)) and result.calls == 12
    assert_fits(result.tokens, grids, probs)


@pytest.mark.parametrize("name", SAMPLERS)
def test_strips_show_what_the_network_held_likeliest_and_change_nothing(name: str) -> None:
    schedule = MaskReplaceSchedule(3, 12)
    predict = exact_predictor(schedule, *data(3, 2))
    seen: list[Tensor] = []

    def watched(tokens: Tensor, t: Tensor) -> Tensor:
        seen.append(predict(tokens, t))
        return seen[-1]

    sampler = make_sampler(name, schedule, **({"grid": (1, 2)} if name == "halton" else {}))
    plain = sampler.sample(predict, (50, 2), draws(3))
    found = sampler.sample(watched, (50, 2), draws(3), strip_frames=3)
    assert plain.strip is None and plain.guesses is None and torch.equal(plain.tokens, found.tokens)
    assert found.strip is not None and found.guesses is not None
    assert found.strip.shape == found.guesses.shape == (len(found.frame_calls), 50, 2)
    assert found.frame_calls[-1] == found.calls and torch.equal(found.strip[-1], found.tokens)
    for guess, call in zip(found.guesses, found.frame_calls, strict=True):
        assert torch.equal(guess, seen[call - 1].argmax(1))


# ---- revealing samplers


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("halton", {"steps": 3, "grid": (1, 3)}),
        ("purity", {"steps": 4, "rule": 1}),
        ("purity", {"steps": 4, "rule": 2}),
    ],
)
def test_one_position_a_call_gives_the_joint_distribution(name: str, options: dict[str, int]) -> None:
    schedule = MaskReplaceSchedule(3, 20)
    grids, probs = data(3, 3)
    result = make_sampler(name, schedule, **options).sample(
        exact_predictor(schedule, grids, probs), (COUNT, 3), draws(4)
    )
    assert_fits(result.tokens, grids, probs)


def test_all_positions_at_once_give_independent_ones() -> None:
    """One call cannot know how positions hang together: the product of the marginals comes out, and no more."""
    schedule = MaskReplaceSchedule(3, 20)
    grids, probs = data(3, 2)
    tokens = (
        make_sampler("confidence", schedule, steps=1, choice_temperature=0.0)
        .sample(exact_predictor(schedule, grids, probs), (COUNT, 2), draws(5))
        .tokens
    )
    table = probs.view(3, 3)
    assert_fits(tokens, grids, (table.sum(1)[:, None] * table.sum(0)[None]).flatten())
    with pytest.raises(AssertionError, match="chi-square"):
        assert_fits(tokens, grids, probs)


def test_confidence_reveals_the_surest_first_and_keeps_them() -> None:
    schedule = MaskReplaceSchedule(4, 10)
    sure = torch.tensor([0.97, 0.4, 0.9, 0.6])
    scores = torch.stack([sure, *[(1 - sure) / 3] * 3])[None].log().expand(6, -1, -1)

    def predict(tokens: Tensor, t: Tensor) -> Tensor:
        return start_log_probs(scores)

    fixed: Draw = lambda stream, shape: torch.full(shape, 0.999)
    sampler = make_sampler("confidence", schedule, steps=4, curve="linear", choice_temperature=0.0)
    strip = sampler.sample(predict, (6, 4), fixed, strip_frames=4).strip
    assert strip is not None
    assert [(frame[0] < 4).nonzero()[:, 0].tolist() for frame in strip] == [
        [0],
        [0, 2],
        [0, 2, 3],
        [0, 1, 2, 3],
    ]


@pytest.mark.parametrize("curve", CURVES)
@pytest.mark.parametrize(("steps", "length"), [(1, 16), (5, 16), (16, 16), (40, 16), (13, 1024), (8, 1)])
def test_plans_reveal_everything_and_something_each_time(curve: str, steps: int, length: int) -> None:
    sampler = make_sampler("halton", MaskReplaceSchedule(4, 50), steps=steps, curve=curve)
    assert isinstance(sampler, CurveSampler)
    plan = sampler.plan(length)
    assert sum(plan) == length and min(plan) >= 1 and len(plan) == min(steps, length)


def test_halton_order_is_spread_out() -> None:
    rank = halton_rank(16, 16)
    assert sorted(rank.tolist()) == list(range(256))
    first = (rank < 16).view(4, 4, 4, 4).any(3).any(1)
    assert first.sum() >= 14, "the first sixteen cells fall into almost all of the sixteen blocks"
    assert (halton_rank(2, 5) < 10).all() and halton_rank(1, 1).tolist() == [0]


def test_sharpening_follows_the_paper() -> None:
    probs = torch.tensor([[0.5, 0.25], [0.3, 0.25], [0.1, 0.25], [0.1, 0.25]])[None]
    score = purity(probs.log())
    assert score[0].tolist() == pytest.approx([1.0, 0.5])
    sharp = sharpen(probs.log(), score, 1.0).exp()[0, :, 0]
    assert sharp.tolist() == pytest.approx([0.694444, 0.25, 0.027778, 0.027778], abs=1e-6)


def test_positions_are_drawn_by_weight_and_only_once() -> None:
    weights = torch.tensor([0.5, 0.0, 0.3, 0.2]).expand(COUNT, -1)
    chosen = choose_positions(weights, 2, draws(6)("choice", (COUNT, 4)))
    assert (chosen != 1).all() and (chosen[:, 0] != chosen[:, 1]).all()
    # Without replacement the pair {0, 2} has 0.5 * 0.3 / 0.5 + 0.3 * 0.5 / 0.7.
    pair = ((chosen == 0).any(1) & (chosen == 2).any(1)).double().mean()
    assert float(pair) == pytest.approx(0.3 + 0.15 / 0.7, abs=0.012)


@pytest.mark.parametrize(
    ("length", "steps"), [(1024, 100), (1024, 50), (256, 100), (64, 100), (256, 16), (9, 25)]
)
def test_purity_counts_fit_the_grid(length: int, steps: int) -> None:
    sampler = PuritySampler(MaskReplaceSchedule(4, 100), steps=steps)
    counts = sampler.counts(length)
    assert len(counts) == steps - 1 and min(counts) >= 0 and sum(counts) <= length
    released = released_counts(steps)
    if length == 1024 and released is not None:
        assert counts[::-1] == released[1:]
    if steps == 100:
        assert sum(counts) == length


def test_half_speed_takes_199_calls() -> None:
    assert PuritySampler(MaskReplaceSchedule(4, 100), rule=1, per_call=5).num_calls(1024) == 199


# ---- the common interface


@pytest.mark.parametrize("name", SAMPLERS)
def test_every_sampler_keeps_the_contract(name: str) -> None:
    schedule = MaskReplaceSchedule(5, 10)
    grids, probs = data(5, 4)
    predict = exact_predictor(schedule, grids[::7], probs[::7] / probs[::7].sum())
    options = {} if name == "ancestral" else {"steps": 4}
    sampler = make_sampler(name, schedule, **options)
    seen: list[tuple[int, int]] = []
    first = sampler.sample(predict, (3, 4), draws(9), lambda done, total: seen.append((done, total)), 2)
    again = sampler.sample(predict, (3, 4), draws(9))
    assert first.tokens.dtype == torch.int64 and first.tokens.shape == (3, 4)
    assert int(first.tokens.min()) >= 0 and int(first.tokens.max()) < 5
    assert first.strip is not None and torch.equal(first.strip[-1], first.tokens) and len(first.strip) == 2
    assert again.strip is None and torch.equal(first.tokens, again.tokens)
    assert seen == [(call, first.calls) for call in range(1, first.calls + 1)]
    assert first.calls == sampler.num_calls(4)


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("steps", [0, 11, -3])
def test_impossible_numbers_of_steps_are_refused(name: str, steps: int) -> None:
    with pytest.raises(ConfigError, match=f"steps={steps}"):
        make_sampler(name, MaskReplaceSchedule(5, 10), steps=steps)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("ancestrl", {}, "unknown.*ancestral"),
        ("skipping", {"rule": 2}, "unknown option rule"),
        ("ancestral", {"steps": 5}, "all 10 steps"),
        ("confidence", {"curve": "square"}, "curve"),
        ("confidence", {"choice_temperature": -1.0}, "choice_temperature"),
        ("purity", {"rule": 3}, "rule=3"),
        ("remask", {"rate": 2.0}, "rate=2.0"),
    ],
)
def test_bad_options_are_named(name: str, options: dict[str, int], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make_sampler(name, MaskReplaceSchedule(5, 10), **options)


def test_remasking_refuses_schedules_that_replace() -> None:
    with pytest.raises(ConfigError, match="paper"):
        make_sampler("remask", MaskReplaceSchedule(5, 10, "paper"))


def test_halton_refuses_a_grid_of_another_size() -> None:
    sampler = make_sampler("halton", MaskReplaceSchedule(5, 10), steps=2, grid=(2, 3))
    with pytest.raises(ConfigError, match="2 x 3"):
        sampler.sample(lambda tokens, t: torch.zeros(1, 5, 4), (1, 4), draws())
