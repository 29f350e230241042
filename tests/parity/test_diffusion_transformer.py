"""The diffusion transformers against recorded values of VQ-Diffusion and S2IVQ-D.

Scores, posteriors, loss terms and gradients of four small networks; six more from the spec sheet's sine rule; names,
shapes and counts at the published sizes, without memory.
"""

from __future__ import annotations

import gzip
import json
import math
from functools import cache
from typing import Any

import pytest
import torch
from fill import fill
from oracle import FOLDER, Oracle
from torch import Tensor

from speech2image.diffusion.process import posterior, start_log_probs, true_posterior
from speech2image.diffusion.schedule import MaskReplaceSchedule
from speech2image.diffusion.transformer import DEAD_KEYS, DiffusionCondition, DiffusionTransformer
from speech2image.diffusion.variational import VariationalLoss

CROSS = ("vq_diffusion_selfcross_fc", "vq_diffusion_selfcross_conv_abs")
CLASS, SPEECH = "vq_diffusion_selfcondition_class", "vq_diffusion_selfcondition_s2i"
ORACLES = (*CROSS, CLASS, SPEECH)
FACTS: dict[str, Any] = json.loads((FOLDER / "full_size_facts.json").read_text())["configurations"]
FULL_SIZES = [name for name in FACTS if not name.startswith("codec")]


recorded = cache(Oracle)


def sizes(constructor: dict[str, Any], form: str, grid: tuple[int, int]) -> dict[str, Any]:
    """Translate an official configuration into the arguments of our class."""
    block = constructor["transformer_config"]["params"]
    content = constructor["content_emb_config"]["params"]
    arguments: dict[str, Any] = {
        "num_tokens": content["num_embed"],
        "grid": grid,
        "table": tuple(content["spatial_size"]),
        "depth": block["n_layer"],
        "dim": block["n_embd"],
        "heads": block["n_head"],
        "conditioning": form,
        "num_steps": constructor["diffusion_step"],
        "mlp": "conv" if block.get("mlp_type") == "conv_mlp" else "fc",
        "mlp_ratio": block["mlp_hidden_times"],
        "activation": block["block_activate"].lower(),
        "timestep": "absolute" if block["timestep_type"].endswith("abs") else "learned",
    }
    if form == "cross":
        arguments["words_dim"] = block["condition_dim"]
    if form == "class":
        arguments["num_classes"] = block["class_number"]
    return arguments


def form_of(name: str) -> str:
    return "cross" if name in CROSS else "class" if name == CLASS else "modulation"


def is_dead(form: str, key: str) -> bool:
    return form in DEAD_KEYS and DEAD_KEYS[form].fullmatch(key) is not None


def network(name: str) -> DiffusionTransformer:
    """Build the oracle's network with the weights of the fill rule; our names are those below `transformer.`."""
    kept = {
        key.removeprefix("kept/"): value
        for key, value in recorded(name).arrays.items()
        if key.startswith("kept/")
    }
    official = fill(recorded(name).spec["state"], kept)
    below = {key.removeprefix("transformer."): v for key, v in official.items() if key.startswith("transf")}
    form = form_of(name)
    ours = DiffusionTransformer(**sizes(recorded(name).spec["constructor"], form, (4, 4)))
    state = {key: torch.from_numpy(v) for key, v in below.items() if not is_dead(form, key)}
    assert list(ours.state_dict()) == list(state), "state keys and their order"
    ours.load_state_dict(state)
    return ours


def condition(name: str) -> DiffusionCondition:
    given = recorded(name).tensor("cond")
    if name in CROSS:
        return DiffusionCondition(words=given)
    return DiffusionCondition(class_id=given) if name == CLASS else DiffusionCondition(sentence=given[:, 0])


def scores(name: str) -> Tensor:
    return network(name)(recorded(name).tensor("xt"), recorded(name).tensor("t"), condition(name))


def with_mask_row(log_p: Tensor) -> Tensor:
    return torch.nn.functional.pad(log_p, (0, 0, 0, 1), value=-70.0)


@pytest.mark.parametrize("name", ORACLES)
def test_scores_and_posteriors_match(name: str) -> None:
    xt, t, x0 = (recorded(name).tensor(key) for key in ("xt", "t", "x0"))
    with torch.no_grad():
        logits = scores(name)
    recorded(name).check("logits", logits)
    log_p = start_log_probs(logits)
    recorded(name).check("predict_start", with_mask_row(log_p))
    schedule = MaskReplaceSchedule(logits.shape[1], recorded(name).spec["constructor"]["diffusion_step"])
    recorded(name).check("log_model_prob", posterior(log_p, xt, t, schedule))
    recorded(name).check("log_true_prob", true_posterior(x0, xt, t, schedule))


@pytest.mark.parametrize("history", ["uniform", "importance"])
@pytest.mark.parametrize("name", ORACLES)
def test_loss_terms_and_gradients_match(name: str, history: str) -> None:
    constructor = recorded(name).spec["constructor"]
    ours = network(name)
    loss = VariationalLoss(
        MaskReplaceSchedule(ours.num_tokens, constructor["diffusion_step"]),
        constructor["auxiliary_loss_weight"],
        constructor["adaptive_auxiliary_loss"],
        tuple(constructor["mask_weight"]),
    )
    if history == "importance":
        loss.Lt_history.copy_(recorded(name).tensor("Lt_history"))
        loss.Lt_count.copy_(recorded(name).tensor("Lt_count"))
    xt, t, x0 = (recorded(name).tensor(key) for key in ("xt", "t", "x0"))
    step_prob = loss.step_probs()[t]
    recorded(name).check(f"{history}/pt", step_prob)
    terms = loss(ours(xt, t, condition(name)), x0, xt, t, step_prob)
    recorded(name).check(f"{history}/vb_loss", terms["per_sample"])
    recorded(name).check(f"{history}/loss", terms["loss"][None])
    first = t == 0
    kl, nll, aux = (recorded(name).tensor(key) for key in ("kl", "decoder_nll", "kl_aux"))
    for key, value, other in (("kl", terms["kl"], nll), ("kl_aux", terms["auxiliary"], nll)):
        recorded(name).check(key, torch.where(first, kl if key == "kl" else aux, value))
        recorded(name).check("decoder_nll", torch.where(first, value, other))
    loss.observe(t, terms["kl"])
    # Steps drawn twice are averaged here; the released code lets one of the two overwrite the other.
    once = torch.ones(len(loss.Lt_history), dtype=torch.bool)
    once[recorded(name).spec["steps_drawn_twice_in_the_batch"]["steps"]] = False
    recorded(name).check(f"{history}/Lt_history_after", loss.Lt_history, once)
    recorded(name).check(f"{history}/Lt_count_after", loss.Lt_count)
    terms["loss"].backward()
    norms = {f"transformer.{key}": p.grad.norm() for key, p in ours.named_parameters() if p.grad is not None}
    assert len(norms) == len(list(ours.parameters())), "no parameter of ours is dead"
    order = recorded(name).spec["parameters_in_order"]
    assert set(order) - set(norms) == set(recorded(name).spec["parameters_without_gradient"])
    recorded(name).check(
        f"{history}/grad_norms", torch.stack([norms.get(key, torch.zeros(())) for key in order])
    )


def test_label_free_branch_matches_and_mixes_with_labels() -> None:
    ours, xt, t = network(CLASS), recorded(CLASS).tensor("xt"), recorded(CLASS).tensor("t")
    labels = recorded(CLASS).tensor("cond")
    beyond = torch.full_like(labels, 10)
    with torch.no_grad():
        recorded(CLASS).check("logits_null", ours(xt, t, DiffusionCondition(class_id=labels).with_null(True)))
        recorded(CLASS).check("logits_null", ours(xt, t, DiffusionCondition(class_id=beyond)))
        is_null = torch.tensor([True, False, False, True, False])
        mixed = ours(xt, t, DiffusionCondition(class_id=labels, is_null=is_null))
    logits, null = recorded(CLASS).tensor("logits"), recorded(CLASS).tensor("logits_null")
    assert (logits - null).abs().amax((1, 2)).min() > 0.05, "the two branches differ everywhere"
    expected = torch.where(is_null[:, None, None], null, logits)
    torch.testing.assert_close(mixed, expected, rtol=0, atol=1.7e-4)


#: Spec sheet VQ-Diffusion, section 1.4: parameters, sum, mean abs, std, and three probes of `(2, 10, 16)` scores.
SINE: dict[str, tuple[dict[str, Any], int, tuple[float, ...]]] = {
    "text": (
        {"conditioning": "cross", "words_dim": 32},
        162_634,
        (-28.462381, 2.482221, 2.794937, 0.330763, -3.402022, 3.968495),
    ),
    "text_abs": (
        {"conditioning": "cross", "words_dim": 32, "timestep": "absolute"},
        160_074,
        (-28.478082, 2.474172, 2.787892, 0.301480, -3.382657, 3.934725),
    ),
    "class": (
        {"conditioning": "class", "num_classes": 10, "table": (8, 8), "mlp": "conv"},
        662_090,
        (-2.614466, 1.176427, 1.577824, -0.593634, 0.211724, 0.226685),
    ),
    "class_null": (
        {"conditioning": "class", "num_classes": 10, "table": (8, 8), "mlp": "conv"},
        662_090,
        (-1.552482, 1.149127, 1.512772, -0.369373, 0.271105, 0.036817),
    ),
    "unconditional": (
        {"conditioning": "none", "table": (8, 8), "mlp": "conv"},
        644_426,
        (-0.322069, 1.100511, 1.418002, -0.400622, 0.213106, 0.089472),
    ),
    "speech": (
        {"conditioning": "modulation", "table": (8, 8), "mlp": "conv"},
        # The sheet counts the dead label norms: two blocks of a 10 x 64 table and a 64 to 128 layer.
        662_090 - 2 * (10 * 64 + 64 * 128 + 128),
        (-2.962348, 1.217913, 1.624061, -0.490765, 0.203490, 0.216403),
    ),
}


def sine_condition(name: str) -> DiffusionCondition:
    sample = torch.arange(1.0, 3.0, dtype=torch.float64)
    if name.startswith("text"):
        word, width = torch.arange(1.0, 8.0), torch.arange(1.0, 33.0)
        words = torch.sin(0.1 * sample[:, None, None] * word[:, None] * width)
        return DiffusionCondition(words=words.float())
    if name == "speech":
        vector = torch.sin(0.07 * sample[:, None] * torch.arange(1.0, 129.0)).float()
        return DiffusionCondition(sentence=torch.nn.functional.normalize(vector))
    labels = torch.tensor([10, 10] if name == "class_null" else [2, 5])
    return DiffusionCondition(class_id=labels)


@pytest.mark.parametrize("name", SINE)
def test_sine_filled_networks_match_the_sheet(name: str) -> None:
    arguments, count, expected = SINE[name]
    ours = DiffusionTransformer(10, (4, 4), depth=2, dim=64, heads=4, num_steps=10, **arguments)
    assert sum(p.numel() for p in ours.parameters()) == count
    with torch.no_grad():
        for key, parameter in ours.named_parameters():
            index = torch.arange(parameter.numel(), dtype=torch.float64)
            value = 0.2 * torch.sin(1.7 * index + 0.3 * len(key))
            value = value + float(parameter.ndim == 1 and key.endswith("weight"))
            parameter.copy_(value.view_as(parameter))
        sample, place = torch.arange(2)[:, None], torch.arange(16)
        logits = ours((3 * sample + 5 * place) % 11, torch.tensor([3, 7]), sine_condition(name)).double()
    probes = (logits[0, 0, 0], logits[1, 9, 15], logits[0, 4, 7])
    found = [logits.sum(), logits.abs().mean(), logits.std(), *probes]
    # Single scores differ by up to 2.8e-5 between float32 and float64, the two moments by 2e-6.
    for value, target, slack in zip(found, expected, (2e-4, 4e-6, 4e-6, 3e-5, 3e-5, 3e-5), strict=True):
        assert value.item() == pytest.approx(target, abs=slack)


@cache
def full_states() -> dict[str, list[tuple[str, list[int], str, str]]]:
    return json.loads(gzip.decompress((FOLDER / "full_size_facts.state.json.gz").read_bytes()))


def full_network(name: str) -> DiffusionTransformer:
    form = {"cub200_en": "modulation", "imagenet": "class"}.get(name, "cross")
    side = math.isqrt(FACTS[name]["configuration"]["transformer_config"]["params"]["content_seq_len"])
    extra = {"null": "learned", "num_null_words": 77} if name == "ithq" else {}
    with torch.device("meta"):
        return DiffusionTransformer(**sizes(FACTS[name]["configuration"], form, (side, side)), **extra)


@pytest.mark.parametrize("name", FULL_SIZES)
def test_published_sizes_have_the_released_names_shapes_and_counts(name: str) -> None:
    ours, facts = full_network(name), FACTS[name]
    prefix = "transformer."
    official = {key: shape for key, shape, _, _ in full_states()[name] if key.startswith(prefix)}
    live = {key: s for key, s in official.items() if not is_dead(ours.conditioning, key.removeprefix(prefix))}
    found = {f"{prefix}{key}": list(value.shape) for key, value in ours.state_dict().items()}
    if name == "ithq":
        assert found.pop("transformer.null_words") == [77, 512]
        assert facts["parameters_by_submodule"]["empty_text_embed"] == 77 * 512
    assert found == live
    assert list(found) == list(live)
    dead = [math.prod(official[key]) for key in set(official) - set(live) if not key.endswith("mask")]
    assert sum(dead) == facts.get("parameters_never_used", 0)
    masks = [math.prod(official[key]) for key in set(official) - set(live) if key.endswith("mask")]
    assert sum(masks) == facts["buffer_elements_of_unused_attention_masks"]
    text = facts["parameters_by_submodule"].get("condition_emb", 0)
    assert sum(p.numel() for p in ours.parameters()) + sum(dead) + text == facts["parameters_total"]
    parts = {"transformer.content_emb": ours.content_emb, "transformer.to_logits": ours.to_logits}
    for part, module in parts.items():
        assert sum(p.numel() for p in module.parameters()) == facts["parameters_by_submodule"][part]


def count(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def test_unconditional_faces_and_guided_coco_have_the_published_counts() -> None:
    with torch.device("meta"):
        ffhq = DiffusionTransformer(
            1024, (16, 16), 20, 512, 16, conditioning="none", table=(32, 32), mlp="conv"
        )
        text: dict[str, Any] = {"conditioning": "cross", "words_dim": 512}
        coco = DiffusionTransformer(2887, (32, 32), 19, 1024, 16, **text)
        tuned = DiffusionTransformer(2887, (32, 32), 19, 1024, 16, null="learned", num_null_words=77, **text)
    assert count(ffhq) == 411_185_664
    assert count(ffhq.blocks[0]) == 20_505_088
    assert count(ffhq.content_emb) == 557_568
    assert count(ffhq.to_logits) == 526_336
    assert count(coco) == 388_780_871
    assert count(tuned) == 388_820_295
