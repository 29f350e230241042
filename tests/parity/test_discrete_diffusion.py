"""Schedule, posterior, loss terms, truncation and purity prior against recorded values of the released code.

The loss is compared on the recorded scores of the `vq_diffusion_*` oracles; the networks that make those scores
are compared in their own file.  Every output of the oracles is compared at the tolerance its file names.
"""

from __future__ import annotations

import copy
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from oracle import Oracle
from torch import Tensor

from speech2image.diffusion.chain import legacy_pairs
from speech2image.diffusion.posterior_kl import posterior_terms
from speech2image.diffusion.process import (
    LOG_MIN,
    forward_log_probs,
    gumbel,
    posterior,
    start_log_probs,
    true_posterior,
)
from speech2image.diffusion.purity import PuritySampler, position_weights, released_counts
from speech2image.diffusion.reveal import purity, reveal, sharpen
from speech2image.diffusion.schedule import MaskReplaceSchedule
from speech2image.diffusion.truncate import guide, top_k, top_r
from speech2image.diffusion.variational import VariationalLoss

NETWORKS = (
    "vq_diffusion_selfcross_fc",
    "vq_diffusion_selfcross_conv_abs",
    "vq_diffusion_selfcondition_class",
    "vq_diffusion_selfcondition_s2i",
)


recorded = cache(Oracle)


def with_mask_row(log_p: Tensor) -> Tensor:
    """Append the row of -70 that the released code carries along."""
    return F.pad(log_p, (0, 0, 0, 1), value=LOG_MIN)


# ---- mask_replace_schedule


@pytest.mark.parametrize(
    "case", recorded("mask_replace_schedule").spec["cases"], ids=lambda case: case["prefix"][:-1]
)
def test_schedule_equals_the_released_tables(case: dict[str, Any]) -> None:
    schedule = MaskReplaceSchedule(case["K"], case["T"])
    t = torch.arange(case["T"])
    tables = dict(zip(("at", "bt", "ct"), schedule.step(t), strict=True))
    everything = torch.cat([t, torch.tensor([-1])])
    tables |= dict(zip(("att", "btt", "ctt"), schedule.marginal(everything), strict=True))
    arrays = recorded("mask_replace_schedule").arrays
    for name, table in tables.items():
        relative = 1e-6 if name in ("bt", "btt") else 1e-9
        np.testing.assert_allclose(table.numpy(), arrays[case["prefix"] + name], rtol=relative, atol=0)
    for name, log_table in schedule.released_logs().items():
        bound = 1e-5 if name.endswith("bt") else 2e-6
        assert log_table.dtype == torch.float32
        np.testing.assert_allclose(log_table.numpy(), arrays[case["prefix"] + name], rtol=0, atol=bound)
    compared = {case["prefix"] + name for name in (*tables, *schedule.released_logs())}
    assert compared == {name for name in arrays if name.startswith(case["prefix"])}


# ---- discrete_posterior

ORACLE = "discrete_posterior"


def posterior_case() -> tuple[MaskReplaceSchedule, Tensor, Tensor, Tensor]:
    schedule = MaskReplaceSchedule(12, 100)
    return schedule, *(recorded(ORACLE).tensor(name) for name in ("x0", "xt", "t"))


def one_hot_log(tokens: Tensor) -> Tensor:
    return F.one_hot(tokens, 13).transpose(1, 2).float().clamp_min(1e-30).log()


def test_forward_distributions_equal_the_released_ones() -> None:
    schedule, x0, x_t, t = posterior_case()
    recorded(ORACLE).check(
        "q_pred_one_timestep", forward_log_probs(one_hot_log(x_t), schedule.step(t), leak=True)
    )
    recorded(ORACLE).check("q_pred_onehot_x0", forward_log_probs(one_hot_log(x0), schedule.marginal(t)))
    recorded(ORACLE).check(
        "q_pred_onehot_xt", forward_log_probs(one_hot_log(x_t), schedule.marginal(t), leak=True)
    )
    recorded(ORACLE).check(
        "q_pred_log_x0", forward_log_probs(recorded(ORACLE).tensor("log_x0"), schedule.marginal(t))
    )


@pytest.mark.parametrize("watched", [False, True], ids=["in_place", "autograd"])
@pytest.mark.parametrize("transposed", [False, True], ids=["class_major", "position_major"])
def test_posterior_equals_the_released_one(watched: bool, transposed: bool) -> None:
    schedule, x0, x_t, t = posterior_case()
    for name in ("log_x0", "log_x0_b"):
        log_p = recorded(ORACLE).tensor(name)[:, :-1].contiguous()
        if transposed:
            log_p = log_p.transpose(1, 2).contiguous().transpose(1, 2)
        before = log_p.clone()
        recorded(ORACLE).check(
            f"q_posterior_{name}", posterior(log_p.requires_grad_(watched), x_t, t, schedule)
        )
        assert torch.equal(before, log_p.detach()), "the prediction itself is left alone"
    recorded(ORACLE).check("q_posterior_onehot_x0", true_posterior(x0, x_t, t, schedule))


def test_divergence_equals_the_released_one() -> None:
    schedule, x0, x_t, t = posterior_case()
    log_x0 = recorded(ORACLE).tensor("log_x0")[:, :-1]
    kl, _ = posterior_terms(log_x0, x0, x_t, t, schedule)
    recorded(ORACLE).check("multinomial_kl", kl)
    likelihood = posterior(log_x0, x_t, t, schedule).gather(1, x0[:, None])[:, 0]
    recorded(ORACLE).check("log_categorical", likelihood)


def test_every_output_of_the_posterior_oracle_is_compared() -> None:
    text = Path(__file__).read_text()
    made = ("q_posterior_log_x0", "q_posterior_log_x0_b", "log_x0", "log_x0_b")
    assert all(f'"{name}"' in text for name in recorded(ORACLE).spec["tolerance"] if name not in made)


# ---- the training loss, on recorded scores


def loss_case(oracle: str) -> tuple[VariationalLoss, dict[str, Tensor]]:
    configuration = recorded(oracle).spec["constructor"]
    inputs = {name: recorded(oracle).tensor(name) for name in ("logits", "x0", "xt", "t")}
    schedule = MaskReplaceSchedule(inputs["logits"].shape[1], len(recorded(oracle).arrays["Lt_history"]))
    weight = configuration["mask_weight"]
    loss = VariationalLoss(
        schedule,
        aux_weight=configuration["auxiliary_loss_weight"],
        adaptive=configuration["adaptive_auxiliary_loss"],
        mask_weight=(weight[0], weight[1]),
    )
    return loss.train(), inputs


@pytest.mark.parametrize("oracle", NETWORKS)
def test_loss_terms_equal_the_released_ones(oracle: str) -> None:
    loss, inputs = loss_case(oracle)
    x0, x_t, t = inputs["x0"], inputs["xt"], inputs["t"]
    log_p = start_log_probs(inputs["logits"])
    recorded(oracle).check("predict_start", with_mask_row(log_p))
    model = posterior(log_p, x_t, t, loss.schedule)
    recorded(oracle).check("log_model_prob", model)
    recorded(oracle).check("log_true_prob", true_posterior(x0, x_t, t, loss.schedule))
    recorded(oracle).check("decoder_nll", -model.gather(1, x0[:, None])[:, 0].sum(1))
    kl, nll = posterior_terms(inputs["logits"], x0, x_t, t, loss.schedule)
    weight = torch.where(x_t == loss.schedule.mask_index, *loss.mask_weight)
    recorded(oracle).check("kl", (kl * weight).sum(1))
    recorded(oracle).check("kl_aux", (nll * weight).sum(1))


@pytest.mark.parametrize("draw", ["uniform", "importance"])
@pytest.mark.parametrize("oracle", NETWORKS)
def test_loss_and_history_equal_the_released_ones(oracle: str, draw: str) -> None:
    loss, inputs = loss_case(oracle)
    if draw == "importance":
        loss.Lt_history.copy_(recorded(oracle).tensor("Lt_history"))
        loss.Lt_count.copy_(recorded(oracle).tensor("Lt_count"))
    t = inputs["t"]
    step_prob = loss.step_probs()[t]
    recorded(oracle).check(f"{draw}/pt", step_prob)
    terms = loss(inputs["logits"], inputs["x0"], inputs["xt"], t, step_prob)
    recorded(oracle).check(f"{draw}/vb_loss", terms["per_sample"])
    recorded(oracle).check(f"{draw}/loss", terms["loss"])
    check_history(oracle, draw, loss, t, terms["kl"])


def check_history(oracle: str, draw: str, loss: VariationalLoss, t: Tensor, kl: Tensor) -> None:
    """Where a step comes twice, the recorded history knows the last sample only; ours takes the mean."""
    before = loss.Lt_history.clone()
    twice = recorded(oracle).spec["steps_drawn_twice_in_the_batch"]["steps"]
    last = [i for i in range(len(t)) if t[i] not in t[i + 1 :]]
    whole = copy.deepcopy(loss)
    whole.observe(t, kl)
    recorded(oracle).check(f"{draw}/Lt_count_after", whole.Lt_count)
    loss.observe(t[last], kl[last])
    recorded(oracle).check(f"{draw}/Lt_history_after", loss.Lt_history)
    once = torch.ones(len(before), dtype=torch.bool)
    once[twice] = False
    assert torch.equal(whole.Lt_history[once], loss.Lt_history[once])
    for step in twice:
        mean = 0.1 * (kl[t == step] ** 2).mean() + 0.9 * before[step]
        torch.testing.assert_close(whole.Lt_history[step], mean)


@pytest.mark.parametrize("draw", ["uniform", "importance"])
@pytest.mark.parametrize("oracle", NETWORKS)
def test_gradient_reaches_the_scores_as_in_the_released_code(oracle: str, draw: str) -> None:
    """The last parameter of every network is the bias of its scores, so its gradient is ours summed."""
    loss, inputs = loss_case(oracle)
    logits = inputs["logits"].requires_grad_()
    step_prob = recorded(oracle).tensor(f"{draw}/pt")
    loss(logits, inputs["x0"], inputs["xt"], inputs["t"], step_prob)["loss"].backward()
    assert recorded(oracle).spec["parameters_in_order"][-1] == "transformer.to_logits.1.bias"
    found = float(logits.grad.sum((0, 2)).norm())
    expected = float(recorded(oracle).arrays[f"{draw}/grad_norms"][-1])
    assert abs(found - expected) <= recorded(oracle).spec["tolerance"][f"{draw}/grad_norms"]["suggested_atol"]


# ---- truncation

CUT = "truncation"


def test_truncation_equals_the_released_one() -> None:
    log_p = recorded(CUT).tensor("trunc/log_probs")[:, :-1]
    for r in (0.85, 0.5):
        recorded(CUT).check(f"trunc/top{r}r", with_mask_row(top_r(log_p, r)))
    for k in (3, 7):
        recorded(CUT).check(f"trunc/top{k}p", with_mask_row(top_k(log_p, k)))


def test_guidance_equals_the_released_one() -> None:
    cond, uncond = (recorded(CUT).tensor(f"guidance/{name}")[:, :-1] for name in ("cond", "uncond"))
    for scale in (1, 3, 5):
        guided = guide(cond, uncond, scale)
        recorded(CUT).check(f"guidance/scale{scale}", with_mask_row(guided))
        recorded(CUT).check(f"guidance/scale{scale}_then_top0.85r", with_mask_row(top_r(guided, 0.85)))


@pytest.mark.parametrize("case", ["rule0", "t0"])
def test_plain_step_equals_the_released_one(case: str) -> None:
    schedule = MaskReplaceSchedule(14, 100)
    t = recorded(CUT).tensor("prior/t")
    scores = posterior(
        recorded(CUT).tensor("prior/log_x0")[:, :-1],
        recorded(CUT).tensor("prior/xt"),
        t * (case != "t0"),
        schedule,
    )
    recorded(CUT).check(f"prior/{case}/scores", scores)
    recorded(CUT).check(
        f"prior/{case}/x_next", (scores + gumbel(recorded(CUT).tensor("prior/uniform"))).argmax(1)
    )


@pytest.mark.parametrize("case", ["rule1", "rule2_w0", "rule2_w1", "rule2_w3"])
def test_purity_step_equals_the_released_one(case: str) -> None:
    options = recorded(CUT).spec["prior_cases"][case]
    log_p, x_t = recorded(CUT).tensor("prior/log_x0")[:, :-1], recorded(CUT).tensor("prior/xt")
    weights = position_weights(log_p, x_t == 14, options["prior_rule"])
    recorded(CUT).check(f"prior/{case}/position_weights", weights)
    sharp = sharpen(log_p, purity(log_p), options["prior_weight"]) if options["prior_rule"] == 2 else log_p
    recorded(CUT).check(f"prior/{case}/scores", with_mask_row(sharp))
    drawn = (with_mask_row(sharp) + gumbel(recorded(CUT).tensor("prior/uniform"))).argmax(1)
    positions, before = recorded(CUT).tensor("prior/positions"), recorded(CUT).tensor("prior/sampled_before")
    sampler = PuritySampler(
        MaskReplaceSchedule(14, 100), rule=options["prior_rule"], per_call=options["prior_ps"]
    )
    rows, after = [], before.clone()
    for sample, drawn_tokens in enumerate(drawn):
        count = sampler.calls(recorded(CUT).spec["configuration"]["to_sample"] - int(before[sample]))[0]
        assert count == options["n_drawn_per_sample"][sample]
        after[sample] += count
        rows.append(reveal(x_t[sample][None], drawn_tokens[None], positions[sample][None, :count]))
    recorded(CUT).check(f"prior/{case}/x_next", torch.cat(rows))
    recorded(CUT).check(f"prior/{case}/sampled_after", after)


def test_released_step_lists_are_reproduced() -> None:
    for name, listed in recorded(CUT).spec["n_sample_lists"].items():
        num_steps = int(name.split("_")[0][1:])
        counts = released_counts(num_steps, 10 if "<=10" in name else 1024)
        assert counts == listed["list"] and sum(counts) == listed["sum"]
    for skip, pairs in recorded(CUT).spec["fast_sampling_pairs"].items():
        assert legacy_pairs(100, int(skip)) == [tuple(pair) for pair in pairs]
