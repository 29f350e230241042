"""SpeechCLIP through Lightning: frozen towers, duplicate images, checkpoints, recall both ways."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset

from speech2image.errors import CheckpointError, ConfigError
from speech2image.losses.contrastive import MaskedContrastiveLoss, contrastive_loss
from speech2image.speech import towers
from speech2image.speech.cascaded import CascadedSpeechClip
from speech2image.speech.speechclip import SpeechClip
from speech2image.speech.towers import TowerSpec, build_network
from speech2image.training.encoder_module import EncoderModule
from speech2image.types import SpeechBatch
from speech2image.vision.branch import ConvBranch

NUM_IMAGES, BATCH, BANDS = 24, 16, 12


class NumberedTones(Dataset[dict[str, Any]]):
    """Image c is one colour and is spoken of as two bands; an image may come twice in a batch."""

    def __init__(self, num_batches: int, stream: int, repeats: bool = True) -> None:
        self.num_batches, self.stream, self.repeats = num_batches, stream, repeats
        self.colours = np.random.default_rng(0).uniform(-1, 1, (NUM_IMAGES, 3)).astype(np.float32)

    def __len__(self) -> int:
        return self.num_batches

    def __getitem__(self, step: int) -> dict[str, Any]:
        rng = np.random.default_rng((self.stream, step))
        ids = rng.integers(0, NUM_IMAGES, BATCH) if self.repeats else rng.permutation(NUM_IMAGES)[:BATCH]
        mel = rng.normal(0, 0.3, (BATCH, 24, BANDS)).astype(np.float32)
        mel[np.arange(BATCH), :12, ids % 6] += 2
        mel[np.arange(BATCH), 12:, 6 + ids // 6] += 2
        image = np.broadcast_to(self.colours[ids][:, :, None, None], (BATCH, 3, 16, 16))
        return {
            "speech": SpeechBatch(torch.from_numpy(mel), torch.full((BATCH,), 24)),
            "image": torch.from_numpy(image + rng.normal(0, 0.02, image.shape).astype(np.float32)),
            "class_id": torch.from_numpy(ids // 2),
            "image_index": torch.from_numpy(ids),
        }


def fit(module: EncoderModule, steps: int) -> pl.Trainer:
    trainer = pl.Trainer(
        max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0,
    )  # fmt: skip
    loaders = [DataLoader(NumberedTones(steps, 0), batch_size=None),
               DataLoader(NumberedTones(1, 1, repeats=False), batch_size=None)]  # fmt: skip
    trainer.fit(module, loaders[0], loaders[1])
    return trainer


def speechclip(**settings: Any) -> EncoderModule:
    torch.manual_seed(0)
    encoder = SpeechClip(
        "small", embed_dim=16, heads=2, mel_dim=BANDS, small_dim=16, small_layers=1, dropout=0.0
    )
    settings = {"objective": "speechclip", "lr": 5e-3, **settings}
    return EncoderModule(encoder, ConvBranch(16, width=8, image_px=16), **settings)


@pytest.fixture
def tiny_tower(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A HuBERT of two layers among the published ones, and the file of its weights."""
    spec = TowerSpec("none", dim=32, num_layers=2, heads=4, ff_dim=32, conv_dim=8)
    monkeypatch.setitem(towers.TOWERS, "hubert_tiny", spec)
    torch.manual_seed(0)
    torch.save(build_network(spec).state_dict(), tmp_path / "hubert_tiny.pth")
    return tmp_path / "hubert_tiny.pth"


def on_waves(weights: Path | None, **settings: Any) -> EncoderModule:
    torch.manual_seed(0)
    encoder = SpeechClip("hubert_tiny", weights, embed_dim=16, heads=2, dropout=0.0)
    return EncoderModule(encoder, ConvBranch(16, width=8, image_px=16), objective="speechclip", **settings)


def waves(samples: int = 2000) -> dict[str, Any]:
    batch = NumberedTones(1, 3)[0]
    lengths = torch.randint(800, samples, (BATCH,), generator=torch.Generator().manual_seed(0))
    noise = torch.randn(BATCH, samples, 1, generator=torch.Generator().manual_seed(1))
    return {**batch, "speech": SpeechBatch(noise, lengths)}


def scale_of(module: EncoderModule) -> float:
    assert module.criterion is not None
    return float(torch.as_tensor(module.criterion.scale).detach())


def test_speechclip_learns_to_match_in_both_directions() -> None:
    module = speechclip(criterion=MaskedContrastiveLoss(trainable=True), clip_norm=4.0)
    start = scale_of(module)
    scores = fit(module, 120).callback_metrics
    wanted = {f"{side}_{k}" for side in ("val_recall", "val_back_recall") for k in (1, 5, 10)}
    assert set(scores) == wanted | {"val_loss", "val_accuracy"}
    assert scores["val_recall_1"] > 0.5 and scores["val_back_recall_1"] > 0.5, "chance is 1 of 16"
    recorded = module.flush_records()
    assert set(recorded) == {"loss", "accuracy", "scale", "grad_norm"}
    assert scale_of(module) != start, "the temperature is learned"


@pytest.mark.parametrize("rivals", ["other_image", "other_class"])
def test_loss_leaves_out_pairs_of_the_same_image_or_class(rivals: str) -> None:
    module, batch = speechclip(rivals=rivals).eval(), NumberedTones(1, 5)[0]
    terms, image, sentence = module.loss_terms(batch)
    ids = {"other_image": batch["image_index"], "other_class": batch["class_id"]}
    assert len(ids[rivals].unique()) < BATCH
    assert torch.allclose(terms["loss"], contrastive_loss(sentence, image, ids[rivals]))
    assert not torch.allclose(terms["loss"], contrastive_loss(sentence, image, None))


def test_recall_goes_by_image_or_by_class() -> None:
    images = torch.eye(6)
    sentences = functional.normalize(images.roll(1, 0) + 0.5 * images, dim=1)
    batch = {"class_id": torch.arange(6) // 2, "image_index": torch.arange(6)}
    terms = {"loss": torch.tensor(0.0), "accuracy": torch.tensor(0.0)}
    for rivals, expected in (("other_image", 0.0), ("other_class", 0.5)):
        module = speechclip(rivals=rivals)
        module.loss_terms = lambda batch: (terms, images, sentences)  # type: ignore[method-assign]
        module.validation_step(batch)
        scores = module.retrieval_scores()
        assert scores["val_recall_1"].item() == scores["val_back_recall_1"].item() == expected


def test_published_adam_is_the_default() -> None:
    group = speechclip().configure_optimizers()[0].param_groups[0]
    assert (group["betas"], group["weight_decay"]) == ((0.9, 0.999), 1e-6)


def test_gradients_are_bounded() -> None:
    module = speechclip(clip_norm=1e-3)
    module.configure_optimizers = lambda: [torch.optim.SGD(module.parameters(), lr=1.0)]  # type: ignore[method-assign]
    before = [parameter.detach().clone() for parameter in module.parameters()]
    fit(module, 1)
    moved = [new.detach() - old for old, new in zip(before, module.parameters(), strict=True)]
    assert torch.stack([step.norm() for step in moved]).norm() == pytest.approx(1e-3, rel=1e-2)


def test_frozen_tower_is_neither_trained_nor_saved(tiny_tower: Path) -> None:
    module = on_waves(tiny_tower)
    module.setup("fit")
    trained = {id(p) for group in module.configure_optimizers()[0].param_groups for p in group["params"]}
    assert not trained & {id(p) for p in module.encoder.audio_encoder.encoder.parameters()}  # type: ignore[union-attr]
    module.train()
    assert not module.encoder.audio_encoder.encoder.network.training  # type: ignore[union-attr]
    module.optimizers = lambda use_pl_optimizer=True: module.configure_optimizers()  # type: ignore[method-assign]
    module.train_step = 5
    state = module.checkpoint_state()
    assert not [name for name in state["module"] if ".network." in name]
    assert "encoder.audio_encoder.weightedsum_layer.weights" in state["module"]
    with torch.no_grad():
        module.encoder.parallel_branch.linear_proj.weight.add_(0.1)  # type: ignore[union-attr]
    changed = module.checkpoint_state()
    other = on_waves(tiny_tower)
    other.load_checkpoint_state(changed)
    batch = waves()
    assert other.train_step == 5
    assert torch.equal(other.eval().loss_terms(batch)[0]["loss"], module.eval().loss_terms(batch)[0]["loss"])


def test_waves_are_cut_to_the_published_window_in_training_only(tiny_tower: Path) -> None:
    module = on_waves(tiny_tower)
    speech = SpeechBatch(torch.randn(2, 110_000, 1), torch.tensor([110_000, 5000]))
    cut = module._augment(speech)
    assert cut.features.shape == (2, 102_400, 1) and cut.lengths.tolist() == [102_400, 5000]
    assert torch.equal(cut.features[1, :5000], speech.features[1, :5000])


def test_random_frozen_networks_are_refused(tiny_tower: Path) -> None:
    with pytest.raises(CheckpointError, match=r"encoder\.weights_path"):
        on_waves(None).setup("fit")
    cascaded = CascadedSpeechClip("hubert_tiny", tiny_tower, text_dim=64, text_layers=1, vocab_size=20)
    module = EncoderModule(cascaded, ConvBranch(64, width=8, image_px=16), objective="speechclip")
    with pytest.raises(CheckpointError, match=r"encoder\.clip_path"):
        module.setup("fit")


@pytest.mark.parametrize(
    ("branch", "part"), [(None, "vision=clip_rn50x64"), (ConvBranch(20, width=8), r"encoder\.embed_dim=20")]
)
def test_image_sides_that_do_not_fit_are_refused(branch: nn.Module | None, part: str) -> None:
    encoder = SpeechClip("small", embed_dim=16, heads=2, mel_dim=BANDS, small_dim=16, small_layers=1)
    with pytest.raises(ConfigError, match=part):
        EncoderModule(encoder, branch, objective="speechclip")
