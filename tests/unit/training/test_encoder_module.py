"""Encoder training through Lightning on a world where what is said is what is seen."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from speech2image.errors import CheckpointError, ConfigError
from speech2image.speech.cnn_rnn import CnnRnn
from speech2image.speech.conv_gru import ConvGru
from speech2image.training.encoder_module import EncoderModule
from speech2image.types import SpeechBatch
from speech2image.vision.branch import ConvBranch
from speech2image.vision.convnet import ConvNet
from speech2image.vision.teacher import TorchvisionTeacher

NUM_CLASSES, BATCH = 8, 16


class ColouredWords(Dataset[dict[str, Any]]):
    """Class c sounds as band c and looks like colour c; item = batch."""

    def __init__(self, num_batches: int, stream: int, with_teacher: bool = False) -> None:
        self.num_batches, self.stream, self.with_teacher = num_batches, stream, with_teacher
        self.colours = np.random.default_rng(0).uniform(-1, 1, (NUM_CLASSES, 3)).astype(np.float32)

    def __len__(self) -> int:
        return self.num_batches

    def __getitem__(self, step: int) -> dict[str, Any]:
        rng = np.random.default_rng((self.stream, step))
        ids = rng.integers(0, NUM_CLASSES, BATCH)
        mel = rng.normal(0, 0.3, (BATCH, 64, 40)).astype(np.float32)
        mel[np.arange(BATCH), :, ids * 4] += 2
        image = self.colours[ids][:, :, None, None] + rng.normal(0, 0.1, (BATCH, 3, 16, 16))
        batch = {
            "speech": SpeechBatch(torch.from_numpy(mel), torch.from_numpy(rng.integers(40, 65, BATCH))),
            "image": torch.from_numpy(image.astype(np.float32)).clamp(-1, 1),
            "class_id": torch.from_numpy(ids),
        }
        if self.with_teacher:
            own = np.random.default_rng(1).uniform(0, 1, (NUM_CLASSES, 128)).astype(np.float32)
            batch["teacher"] = torch.from_numpy(own[ids])
        return batch


def fit(module: EncoderModule, steps: int, with_teacher: bool = False) -> pl.Trainer:
    trainer = pl.Trainer(
        max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0,
    )  # fmt: skip
    loaders = [
        DataLoader(ColouredWords(n, s, with_teacher), batch_size=None) for n, s in ((steps, 0), (4, 1))
    ]
    trainer.fit(module, loaders[0], loaders[1])
    return trainer


def sen(**settings: Any) -> EncoderModule:
    torch.manual_seed(0)
    encoder = ConvGru(hidden_channels=16, out_channels=16, rnn_dim=16, rnn_layers=1, attention_dim=8)
    settings = {"num_classes": NUM_CLASSES, "lr": 5e-3, **settings}
    return EncoderModule(encoder, ConvBranch(32, width=8, image_px=16), **settings)


def li(teacher: nn.Module | None = None, **settings: Any) -> EncoderModule:
    torch.manual_seed(0)
    return EncoderModule(CnnRnn(width=128, step_frames=16), teacher, objective="li_et_al", **settings)


class Teacher(ConvNet):
    """A frozen trunk with batch statistics that must not move."""

    def __init__(self) -> None:
        super().__init__(width=8, image_px=16, feature_dim=128)


def test_s2igan_learns_to_match() -> None:
    module = sen()
    trainer = fit(module, 60)
    scores = trainer.callback_metrics
    assert set(scores) == {"val_loss", "val_accuracy", "val_recall_1", "val_recall_5", "val_recall_10"}
    assert scores["val_recall_1"] > 0.9
    assert scores["val_accuracy"] > 0.9
    assert module.train_step == 60 and module.images_seen == 60 * BATCH
    recorded = module.flush_records()
    assert set(recorded) == {"loss", "loss_match", "loss_distinctive", "accuracy"}


def test_li_et_al_learns_from_given_features() -> None:
    module = li(lr=3e-3)
    scores = fit(module, 100, with_teacher=True).callback_metrics
    assert scores["val_recall_1"] > 0.9
    assert {"loss_jel", "loss_l1", "loss_distill"} < set(module.flush_records())


def test_li_et_al_uses_and_freezes_its_teacher() -> None:
    teacher = Teacher()
    module = li(teacher)
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    fit(module, 3)
    assert all(torch.equal(before[name], value) for name, value in teacher.state_dict().items())
    module.train()
    assert not teacher.training and module.encoder.training
    assert module.image_branch is teacher and module.inference_module() is module.encoder


def test_features_in_the_batch_take_the_place_of_the_teacher() -> None:
    batch = ColouredWords(1, 0, with_teacher=True)[0]
    _, image, _ = li(Teacher()).loss_terms(batch)
    assert torch.equal(image, batch["teacher"])


def test_loss_is_the_weighted_sum_of_its_terms() -> None:
    batch = ColouredWords(1, 0)[0]
    terms, _, _ = li(Teacher(), l1_weight=3.0, distill_weight=7.0).loss_terms(batch)
    expected = terms["loss_jel"] + 3 * terms["loss_l1"] + 7 * terms["loss_distill"]
    assert torch.allclose(terms["loss"], expected)
    terms, _, _ = sen(match_weight=0.5, distinctive_weight=2.0).loss_terms(batch)
    assert torch.allclose(terms["loss"], 0.5 * terms["loss_match"] + 2 * terms["loss_distinctive"])


def test_without_the_distinctive_loss_there_is_no_classifier() -> None:
    module = sen(distinctive_weight=0.0, num_classes=0)
    assert module.classifier is None
    assert set(module.loss_terms(ColouredWords(1, 0)[0])[0]) == {"loss", "loss_match", "accuracy"}


def test_published_adam_is_the_default() -> None:
    for module, betas, decay in ((sen(), (0.95, 0.999), 1e-3), (li(), (0.9, 0.999), 1e-5)):
        group = module.configure_optimizers()[0].param_groups[0]
        assert (group["betas"], group["weight_decay"]) == (betas, decay)
    group = sen(betas=[0.5, 0.9], weight_decay=0.0).configure_optimizers()[0].param_groups[0]
    assert (group["betas"], group["weight_decay"]) == ((0.5, 0.9), 0.0)


def test_recall_counts_classes_among_the_nearest() -> None:
    module = li()
    images = torch.eye(12)
    sentences = images.roll(1, 0) + 0.5 * images
    ids = torch.arange(12) // 2
    terms: dict[str, Tensor] = {"loss": torch.tensor(2.0), "accuracy": torch.tensor(0.25)}
    module.loss_terms = lambda batch: (terms, images, sentences)  # type: ignore[method-assign]
    module.validation_step({"class_id": ids})
    scores = module.retrieval_scores()
    nearest = (sentences @ images.T).argmax(1)
    assert scores["val_recall_1"].item() == pytest.approx((ids[nearest] == ids).float().mean().item())
    assert scores["val_recall_5"].item() == 1.0
    assert (scores["val_loss"].item(), scores["val_accuracy"].item()) == (2.0, 0.25)


def test_masking_depends_on_the_step_and_leaves_validation_alone() -> None:
    masks = {"num_time_masks": 2, "max_time_frames": 20, "num_freq_masks": 1, "max_freq_bands": 8}
    module, batch = sen(**masks), ColouredWords(1, 0)[0]
    first, again = module._augment(batch["speech"]), module._augment(batch["speech"])
    module.train_step = 1
    later = module._augment(batch["speech"])
    assert torch.equal(first.features, again.features)
    assert not torch.equal(first.features, later.features)
    plain = sen().eval().loss_terms(batch)[0]["loss"]
    assert torch.equal(plain, module.eval().loss_terms(batch)[0]["loss"])


def test_state_survives_a_checkpoint() -> None:
    module = sen()
    fit(module, 3)
    other = sen()
    other.load_checkpoint_state(module.checkpoint_state())
    assert other.train_step == 3
    batch = ColouredWords(1, 2)[0]
    assert torch.equal(other.eval().loss_terms(batch)[0]["loss"], module.eval().loss_terms(batch)[0]["loss"])


def test_a_batch_of_one_trains() -> None:
    batch = ColouredWords(1, 0)[0]
    speech = SpeechBatch(batch["speech"].features[:1], batch["speech"].lengths[:1])
    single = {"speech": speech, "image": batch["image"][:1], "class_id": batch["class_id"][:1]}
    for module in (sen(), li(Teacher())):
        loss = module.train().loss_terms(single)[0]["loss"]
        loss.backward()
        assert torch.isfinite(loss)


def test_networks_that_do_not_fit_are_refused() -> None:
    encoder = ConvGru(rnn_dim=16, rnn_layers=1)
    cases: list[tuple[dict[str, Any], str]] = [
        ({"image_branch": None}, "conv_branch"),
        ({"image_branch": ConvBranch(48, 8)}, "vision.embed_dim=32"),
        ({"image_branch": ConvBranch(32, 8)}, "num_classes"),
        ({"image_branch": ConvBranch(32, 8), "objective": "li_et_al"}, "frozen teacher"),
        ({"image_branch": ConvNet(8, feature_dim=40), "objective": "li_et_al"}, "encoder.width=40"),
        ({"image_branch": None, "objective": "clip"}, "s2igan"),
    ]
    for arguments, found in cases:
        with pytest.raises(ConfigError, match=found):
            EncoderModule(encoder, **arguments)
    with pytest.raises(ConfigError, match="class_teacher"):
        li().loss_terms(ColouredWords(1, 0)[0])


def test_training_against_random_frozen_weights_is_refused() -> None:
    module = EncoderModule(CnnRnn(width=512), TorchvisionTeacher("resnet18"), objective="li_et_al")
    with pytest.raises(CheckpointError, match="random weights"):
        module.setup("fit")
