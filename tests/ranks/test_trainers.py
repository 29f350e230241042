"""One rank and two train the same: losses of every trainer, gradients in float64, checkpoints across, shards."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from speech2image.training.checkpoint import load_newest

TRAINERS = (
    "gan", "gan_shared_pass", "diffusion", "encoder_sen", "encoder_li_et_al", "encoder_speechclip",
    "codec_vector", "codec_gumbel", "codec_ema",
)  # fmt: skip
HALVED = ("gan", "diffusion", "encoder_sen", "codec_ema")
Steps = list[dict[str, float]]
NEAR = 1e-6
"""Largest difference of a loss, in parts of it where it is above 1."""


def largest_gap(one: Steps, other: Steps) -> float:
    """Return how far two records of the same steps are apart in any loss."""
    assert len(one) == len(other) > 0
    assert all(a.keys() == b.keys() for a, b in zip(one, other, strict=True))
    return max(
        abs(a[name] - b[name]) / max(1.0, abs(a[name]))
        for a, b in zip(one, other, strict=True)
        for name in a
        if name.startswith("loss")
    )


@pytest.mark.parametrize("name", TRAINERS)
def test_two_ranks_have_the_losses_of_one(name: str, played: Any) -> None:
    alone = played.of("trainers", 1)[name]["steps"]
    together = played.of("trainers", 2)[name]["steps"]
    assert alone[0] != alone[-1], "it trains"
    assert largest_gap(alone, together) < NEAR
    assert together == played.of("trainers", 2, rank=1)[name]["steps"], "every rank records the same"


@pytest.mark.parametrize("name", ["codec_vector", "codec_gumbel", "codec_ema"])
def test_code_usage_counts_the_codes_of_all_ranks(name: str, played: Any) -> None:
    alone, together = (played.of("trainers", n)[name]["steps"] for n in (1, 2))
    assert [step["codes_used"] for step in alone] == [step["codes_used"] for step in together]


def test_averaged_gradients_are_those_of_the_whole_batch(played: Any) -> None:
    alone, together = played.of("gradients", 1), played.of("gradients", 2)
    assert alone.keys() == together.keys() and len(alone) == 11
    for what, values in alone.items():
        assert values.keys() == together[what].keys() and values
        scale = max(float(value.abs().max()) for value in values.values())
        assert scale > 1e-6, what
        for name, value in values.items():
            assert float((value - together[what][name]).abs().max()) < 1e-12 * max(1.0, scale), (what, name)


@pytest.mark.parametrize("name", HALVED)
@pytest.mark.parametrize("ranks", [1, 2])
def test_checkpoint_of_one_number_of_ranks_continues_with_the_other(
    ranks: int, name: str, played: Any
) -> None:
    whole = played.of("trainers", 1)[name]["steps"]
    rest = played.of("second_half", ranks)[name]
    assert largest_gap(whole[-len(rest) :], rest) < NEAR
    found = load_newest(played.folder / f"{name}-whole-of-{ranks}")[0]
    assert found is not None
    assert (found["train_step"], found["images_seen"]) == (len(whole), 8 * len(whole))


def test_shards_train_like_whole_weights_and_leave_the_same_checkpoint(played: Any) -> None:
    result = played.of("sharded", 2)
    assert result["share"] < 0.55
    whole = played.of("trainers", 1)["diffusion"]["steps"]
    assert largest_gap(whole, result["whole"]) < NEAR
    for half in ("continued", "back"):  # whole weights become shards, and shards whole weights
        assert len(result[half]) == len(whole) // 2
        assert largest_gap(whole[len(whole) // 2 :], result[half]) < NEAR
    ours = load_newest(played.folder / "diffusion-whole-of-1")[0]
    sharded = load_newest(played.folder / "diffusion-sharded")[0]
    assert ours is not None and sharded is not None
    assert ours["module"].keys() == sharded["module"].keys()
    for name, value in ours["module"].items():
        assert type(sharded["module"][name]) is torch.Tensor
        torch.testing.assert_close(sharded["module"][name], value, rtol=0, atol=1e-4)
    moments = [state["optimizers"][0]["state"] for state in (ours, sharded)]
    assert _shapes(moments[0]) == _shapes(moments[1])


def _shapes(state: dict[int, dict[str, Any]]) -> dict[int, dict[str, torch.Size]]:
    return {
        number: {k: v.shape for k, v in entry.items() if torch.is_tensor(v)}
        for number, entry in state.items()
    }
