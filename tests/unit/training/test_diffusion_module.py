"""Training of discrete diffusion: the step written out, resume to the bit, null items, numbers that are none."""

from __future__ import annotations

import copy
import warnings
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor

from speech2image.diffusion.process import sample_marginal
from speech2image.diffusion.schedule import MaskReplaceSchedule
from speech2image.diffusion.transformer import DiffusionTransformer
from speech2image.diffusion.variational import VariationalLoss
from speech2image.errors import ConfigError, TrainingError
from speech2image.training.callbacks import CheckpointWriter
from speech2image.training.checkpoint import load_newest
from speech2image.training.datamodule import SpeechImageData
from speech2image.training.diffusion_module import DiffusionModule, scaled_condition

K, GRID, D, T = 7, (3, 2), 5, 10


class CodesOfSteps(torch.utils.data.Dataset[dict[str, Any]]):
    """Batches whose first token is told by the sentence."""

    def __init__(self, poison: int | None = None) -> None:
        self.poison = poison

    def __len__(self) -> int:
        return 10_000

    def __getitem__(self, step: int) -> dict[str, Any]:
        torch_rng = torch.Generator().manual_seed(step)
        tokens = torch.randint(K, (8, GRID[0] * GRID[1]), generator=torch_rng)
        tokens[:, 1:] = tokens[:, :1]
        sentence = torch.nn.functional.one_hot(tokens[:, 0] % D, D).float()
        if step == self.poison:
            sentence[0, 0] = float("nan")
        return {"tokens": tokens, "sentence": sentence}


def module(seed: int = 0, form: str = "adaptive", **options: Any) -> DiffusionModule:
    torch.manual_seed(seed)
    network = DiffusionTransformer(
        K, GRID, 2, 16, 2, conditioning=form, condition_dim=D if form == "adaptive" else None, num_steps=T
    )
    return DiffusionModule(network, VariationalLoss(MaskReplaceSchedule(K, T)), seed=seed, lr=3e-3, **options)


def fit(
    trained: DiffusionModule, steps: int, precision: Any = "32-true", poison: int | None = None,
    callbacks: list[pl.Callback] | None = None,
) -> DiffusionModule:  # fmt: skip
    data = SpeechImageData(CodesOfSteps(poison), None, trained.train_step, steps)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pl.Trainer(
            max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False, precision=precision,
            enable_progress_bar=False, enable_model_summary=False, limit_val_batches=0,
            callbacks=callbacks or [],
        ).fit(trained, datamodule=data)  # fmt: skip
    return trained


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


def test_step_is_the_one_written_out() -> None:
    trained, plain = module(seed=2, condition_dropout=0.5, clip_norm=0.01), module(seed=2)
    optimizer = torch.optim.AdamW(plain.network.parameters(), lr=3e-3, betas=(0.9, 0.96), weight_decay=0.045)
    batch = CodesOfSteps()[0]
    uniform = {
        name: torch.from_numpy(plain.rng(f"diffusion/{name}").random(shape, dtype="float32"))
        for name, shape in (("step", (8,)), ("noise", (8, 6, 2)), ("null", (8,)))
    }
    t, prob = plain.loss.sample_steps(uniform["step"])
    x_t = sample_marginal(batch["tokens"], t, plain.loss.schedule, uniform["noise"])
    nulls = uniform["null"] < 0.5
    assert 0 < int(nulls.sum()) < 8
    logits = plain.network(x_t, t, scaled_condition(batch["sentence"], 5**0.5, nulls))
    terms = plain.loss(logits, batch["tokens"], x_t, t, prob)
    terms["loss"].backward()
    torch.nn.utils.clip_grad_norm_(plain.network.parameters(), 0.01)
    optimizer.step()
    fit(trained, 1)
    for mine, its in zip(plain.network.parameters(), trained.network.parameters(), strict=True):
        torch.testing.assert_close(mine, its, atol=1e-6, rtol=1e-5)
    assert float(trained.flush_records()["loss"]) == pytest.approx(float(terms["loss"]), rel=1e-5)
    assert int(trained.loss.Lt_count.sum()) == 8


@pytest.mark.parametrize("form", ["adaptive", "none"])
def test_resumed_run_equals_an_unbroken_one(form: str) -> None:
    options = {"condition_dropout": 0.2} if form == "adaptive" else {}
    whole = fit(module(3, form, ema_decay=0.9, **options), 6)
    state = copy.deepcopy(fit(module(3, form, ema_decay=0.9, **options), 3).checkpoint_state())
    second = module(5, form, ema_decay=0.9, **options)
    second.seed = 3
    second.load_checkpoint_state(state)
    fit(second, 6)
    assert second.train_step == 6 and same(whole.state_dict(), second.state_dict())
    assert not same(whole.state_dict(), fit(module(4, form, ema_decay=0.9, **options), 6).state_dict())


def test_it_learns_what_the_sentence_says() -> None:
    trained = module(1, ema_decay=0.9)
    fit(trained, 30)
    first = trained.flush_records()["nats_per_token"]
    fit(trained, 300)
    trained.flush_records()
    fit(trained, 330)
    assert trained.flush_records()["nats_per_token"] < 0.5 * first


def test_bf16_stays_close_and_its_loss_is_full_precision() -> None:
    full, half = fit(module(6), 3), fit(module(6), 3, precision="bf16-mixed")
    assert half.flush_records()["loss"] == pytest.approx(full.flush_records()["loss"], rel=0.05)
    assert all(parameter.dtype == torch.float32 for parameter in half.network.parameters())


def test_null_items_hear_nothing() -> None:
    network = module(7).network.eval()
    torch.nn.init.normal_(network.to_logits[1].weight)
    torch.nn.init.normal_(network.final_steer.weight)
    tokens, t = torch.full((2, 6), K), torch.zeros(2, dtype=torch.int64)
    sentence = torch.eye(5)[:2]
    null = torch.tensor([True, True])
    told = network(tokens, t, scaled_condition(sentence))
    untold = network(tokens, t, scaled_condition(sentence, None, null))
    torch.testing.assert_close(untold[0], untold[1])
    assert not torch.allclose(told[0], told[1], atol=1e-2)


def test_condition_dropout_needs_a_null_condition() -> None:
    with pytest.raises(ConfigError, match=r"'none' network .* has no null condition"):
        module(form="none", condition_dropout=0.1)


@pytest.mark.parametrize("every", [1, 2])
def test_a_loss_that_is_no_number_stops_the_run_and_keeps_the_last_good_state(
    tmp_path: Path, every: int
) -> None:
    with pytest.raises(TrainingError, match=r"stopped at or before step 6: loss is nan") as caught:
        fit(module(8), 9, poison=5, callbacks=[CheckpointWriter(tmp_path, every, keep=2)])
    assert "optim.lr" in caught.value.remedy
    state, damaged = load_newest(tmp_path)
    assert state is not None and not damaged and state["train_step"] == 6 - every
    assert all(value.isfinite().all() for value in state["module"].values() if value.is_floating_point())


def test_flush_names_every_term_that_is_no_number() -> None:
    trained = module(9)
    trained.record(
        loss_kl=torch.tensor(float("inf")), loss=torch.tensor(1.0), nats=torch.tensor(float("nan"))
    )
    with pytest.raises(TrainingError, match=r"loss_kl is inf"):
        trained.flush_records()
