"""What is counted on the meta device, against products worked out by hand and against a real step."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from speech2image.config.compose import compose
from speech2image.diffusion.transformer import DiffusionCondition
from speech2image.training.diffusion_fit import make_module
from speech2image.training.runs import build_discriminators, build_generator
from speech2image.training.step_counts import SENTENCE_DIM, WORDS_DIM, count_step


def plan_of(experiment: str, *words: str) -> dict[str, Any]:
    return compose("train", [f"experiment={experiment}", *words])


def test_published_diffusion_step_counts_six_flops_a_weight_and_token() -> None:
    counts = count_step(plan_of("s2ivq_d_cub"), 4, 400)
    assert counts.trained == counts.averaged == 493_130_190  # the published network without its dead weights
    assert counts.flops == pytest.approx(6 * 493e6 * 4 * 256, rel=0.05)
    assert counts.forward_flops / counts.flops == pytest.approx(1 / 3, abs=0.005)
    assert counts.num_norms == 0 and counts.missing == []


def test_counts_grow_with_images_and_operations_do_not() -> None:
    few, many = (count_step(plan_of("s2ivq_d_birds"), images, 400) for images in (2, 8))
    assert many.flops == pytest.approx(4 * few.flops, rel=0.02)
    assert many.num_ops == few.num_ops
    assert 3 < many.activation_bytes / few.activation_bytes < 4.2


def test_real_forward_pass_has_the_counted_flops() -> None:
    config = plan_of("s2ivq_d_birds", "generator.depth=2")
    told = config["encoder"]["lda_dim"]
    module = make_module(config, 256, [8, 8], told, WORDS_DIM)
    tokens, t = torch.zeros(3, 64, dtype=torch.int64), torch.zeros(3, dtype=torch.int64)
    plain = sdpa_kernel(SDPBackend.MATH), torch.backends.mkldnn.flags(enabled=False)  # kernels torch counts
    with plain[0], plain[1], FlopCounterMode(display=False) as counter, torch.no_grad():
        module.network(tokens, t, DiffusionCondition(sentence=torch.zeros(3, told)))
    counts = count_step(config, 3, 400)
    assert counts.forward_flops == pytest.approx(counter.get_total_flops(), rel=1e-6)


def test_gan_counts_painting_judging_and_being_judged() -> None:
    config = plan_of("stackgan_v2_cub_small")
    counts = count_step(config, 2, 400)
    paint = build_generator(config["generator"], SENTENCE_DIM)
    judges = build_discriminators(config["generator"])
    expected = sum(value.numel() for part in (paint, *judges) for value in part.parameters())
    assert counts.trained == expected
    assert counts.averaged == sum(value.numel() for value in paint.parameters())
    # generator forward and backward; each judge on three kinds forward and backward, and once more for painting
    assert counts.flops > 6 * counts.forward_flops
    assert counts.num_norms > 20


def test_recurrent_layers_count_their_products_and_frozen_networks_no_norms() -> None:
    counts = count_step(plan_of("sen_birds"), 4, 200)
    recurrent = plan_of("sen_birds")["encoder"]
    steps, units = 48, recurrent["rnn_dim"]
    # backward 2, forward 1: hidden to gates, both directions, at every step
    floor = 3 * 2 * 2 * 4 * steps * 3 * units * units * recurrent["rnn_layers"]
    assert counts.flops > floor
    assert 2 * steps < counts.num_ops < 40 * steps
    assert (
        count_step(plan_of("sen_cub"), 2, 200).num_norms == 4
    )  # Inception is frozen: only the encoder's two


def test_half_precision_moves_fewer_bytes() -> None:
    full, half = (
        count_step(plan_of("s2ivq_d_birds", f"trainer.precision={precision}"), 2, 400)
        for precision in ("32-true", "bf16-mixed")
    )
    moved = [sum(times * size for (_, size), times in counts.ops.items()) for counts in (full, half)]
    assert half.flops == full.flops and 0.5 < moved[1] / moved[0] < 1.0
