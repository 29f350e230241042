"""Training of speech encoders by images: the recipes of Li et al., of S2IGAN and of SpeechCLIP.

Here: one module for all, which computes the losses, steps one Adam and, in validation, measures
recall between speech and images.  Losses are in `losses/`, networks in `speech/` and `vision/`,
counters and checkpoints in `module.py`; numbers for tables come from `metrics/`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional
from torchmetrics.retrieval import RetrievalHitRate

from speech2image.audio.augment import spec_augment
from speech2image.errors import ConfigError
from speech2image.losses.contrastive import MaskedContrastiveLoss
from speech2image.losses.distill import distillation, normalised_l1
from speech2image.losses.matching import (
    distinctive_loss,
    joint_embedding_loss,
    matching_loss,
    retrieval_accuracy,
)
from speech2image.speech.stored_states import StatesInput
from speech2image.speech.towers import FRAME_SAMPLES, PUBLISHED_WINDOW, SpeechTower, random_windows
from speech2image.text.clip_transformer import ClipText
from speech2image.training.encoder_checks import check_networks
from speech2image.training.module import TrainingModule
from speech2image.training.ranks import share
from speech2image.training.synchronised import average_gradients, gather_rows
from speech2image.types import SpeechBatch
from speech2image.vision.clip_tower import ClipTower
from speech2image.vision.teacher import require_pretrained

RECALL_KS = (1, 5, 10)
#: Frozen networks that every session reads from their own files; and the key that names the file.
FROZEN: dict[type[nn.Module], str] = {
    SpeechTower: "encoder.weights_path",
    ClipText: "encoder.clip_path",
    ClipTower: "vision.weights_path",
}


class AdamDefaults(NamedTuple):
    """Adam as a recipe published it."""

    betas: tuple[float, float]
    weight_decay: float


PUBLISHED_ADAM = {
    "li_et_al": AdamDefaults((0.9, 0.999), 1e-5),
    "s2igan": AdamDefaults((0.95, 0.999), 1e-3),
    "speechclip": AdamDefaults((0.9, 0.999), 1e-6),
}


class EncoderModule(TrainingModule):
    """Train a speech encoder so that its sentence lies where the image lies.

    Batches are dicts: `speech` (`SpeechBatch`), `class_id` `(B,)`, and `image` `(B, 3, H, W)` in
    [-1, 1] or, for `li_et_al`, `teacher` `(B, F)` features instead; `speechclip` looks at
    `image_index` `(B,)` too.

    Args:
        encoder: `SpeechBatch` to `Condition`, trained.
        image_branch: `s2igan`: image encoder trained along, images to `(B, D)`; `li_et_al`: any
            network with `features`, frozen here, or None where batches carry `teacher`;
            `speechclip`: a frozen CLIP tower, or a branch that is trained along.
        objective: `li_et_al`, `s2igan` or `speechclip`.
        num_classes: classes of the shared classifier of `s2igan`; unused without it.
        diff_weight: `li_et_al`, joint embedding of different classes.
        same_weight: `li_et_al`, joint embedding within a class.
        l1_weight: `li_et_al`, normalised L1.
        distill_weight: `li_et_al`, distillation.
        temperature: `li_et_al`, softening of the teacher.
        direction: `li_et_al`, see `joint_embedding_loss`.
        l1_per: `li_et_al`, see `normalised_l1`.
        distill_reduction: `li_et_al`, see `distillation`.
        match_weight: `s2igan`, both matching terms.
        distinctive_weight: `s2igan`, both classification terms; 0: no classifier is made.
        distinctive_scale: `s2igan`, factor on the unit embeddings before the classifier (published: 1).
            Entries of a unit vector are about 1/sqrt(D); sqrt(D) lets short runs tell classes apart.
        distinctive_form: `s2igan`, `linear` classifier as published, or `cosine`: unit weights, no bias,
            so that only directions of the embedding tell classes apart and all of them are used.
        gamma: `s2igan`, inverse temperature of the matching terms.
        mask_same_class: `s2igan`, other items of the class do not compete.
        criterion: `speechclip`, its loss; None: with the published fixed temperature.
        rivals: `speechclip`, pairs of another image compete (`other_image`, as published), or only
            pairs of another class (`other_class`); recall counts accordingly.
        clip_norm: largest norm of the gradient; None: no limit.
        lr: learning rate of Adam.
        betas: Adam's; None: as published for the objective.
        weight_decay: L2 penalty; None: as published for the objective.
        num_time_masks: SpecAugment, stretches of time blanked in training.
        max_time_frames: SpecAugment, longest stretch.
        num_freq_masks: SpecAugment, groups of bands blanked.
        max_freq_bands: SpecAugment, widest group.
        mask_fill: SpecAugment, value of what is blanked.
        seed: root of every draw.
        schedule: learning-rate factor as a function of `train_step`; None: constant.

    Raises: ConfigError: unknown objective, or networks that do not fit it or each other.
    Source: Li et al. 2020, section 3.1; S2IGAN, section 3.1; Shih et al. 2022 (SpeechCLIP), sections
        3.2 to 4.1, waveforms cut to 102,400 samples in training; references in the losses.  Differs:
        same classes are masked by the class numbers of the corpus.
    """

    def __init__(
        self,
        encoder: nn.Module,
        image_branch: nn.Module | None = None,
        objective: str = "s2igan",
        num_classes: int = 0,
        diff_weight: float = 1.0,
        same_weight: float = 0.1,
        l1_weight: float = 5.0,
        distill_weight: float = 1000.0,
        temperature: float = 2.0,
        direction: str = "column",
        l1_per: str = "batch",
        distill_reduction: str = "mean",
        match_weight: float = 1.0,
        distinctive_weight: float = 1.0,
        distinctive_scale: float = 1.0,
        distinctive_form: str = "linear",
        gamma: float = 10.0,
        mask_same_class: bool = True,
        criterion: MaskedContrastiveLoss | None = None,
        rivals: str = "other_image",
        clip_norm: float | None = None,
        lr: float = 1e-3,
        betas: Sequence[float] | None = None,
        weight_decay: float | None = None,
        num_time_masks: int = 0,
        max_time_frames: int = 0,
        num_freq_masks: int = 0,
        max_freq_bands: int = 0,
        mask_fill: float = 0.0,
        seed: int = 0,
        schedule: Callable[[int], float] | None = None,
    ) -> None:
        super().__init__(seed=seed, schedule=schedule)
        classifies = objective == "s2igan" and distinctive_weight > 0
        check_networks(encoder, image_branch, objective, num_classes if classifies else None)
        published = PUBLISHED_ADAM[objective]
        self.objective, self.lr = objective, lr
        self.betas = published.betas if betas is None else (float(betas[0]), float(betas[1]))
        self.weight_decay = published.weight_decay if weight_decay is None else weight_decay
        self.pairs = {"diff_weight": diff_weight, "same_weight": same_weight, "direction": direction}
        self.l1_weight, self.distill_weight, self.temperature = l1_weight, distill_weight, temperature
        self.l1_per, self.distill_reduction = l1_per, distill_reduction
        self.match_weight, self.distinctive_weight, self.gamma = match_weight, distinctive_weight, gamma
        self.distinctive_scale, self.distinctive_form = distinctive_scale, distinctive_form
        self.mask_same_class, self.mask_fill = mask_same_class, mask_fill
        self.rivals, self.clip_norm = rivals, clip_norm
        self.criterion = (criterion or MaskedContrastiveLoss()) if objective == "speechclip" else None
        self.masks = (num_time_masks, max_time_frames, num_freq_masks, max_freq_bands)
        self.encoder, self.image_branch = encoder, image_branch
        dim: Any = encoder.sentence_dim
        self.classifier = nn.Linear(dim, num_classes) if classifies else None
        if objective == "li_et_al" and image_branch is not None:
            image_branch.requires_grad_(False).eval()
        self._seen: list[dict[str, Tensor]] = []

    # ---- Lightning ---------------------------------------------------------------------------
    def setup(self, stage: str) -> None:
        """Refuse to train on frozen networks whose weights were never loaded."""
        if stage == "fit":
            require_pretrained(self.image_branch)
            for part in self.modules():
                require_pretrained(part, FROZEN.get(type(part), "vision.weights_path"))

    def train(self, mode: bool = True) -> EncoderModule:
        """Set the mode; a frozen teacher stays in evaluation mode."""
        super().train(mode)
        if self.objective == "li_et_al" and self.image_branch is not None:
            self.image_branch.eval()
        return self

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        """Return one Adam over everything that is trained."""
        trained = [parameter for parameter in self.parameters() if parameter.requires_grad]
        return [
            torch.optim.Adam(
                trained, lr=self.lr, betas=self.betas, weight_decay=self.weight_decay, fused=True
            )
        ]

    def training_step(self, batch: dict[str, Any], batch_idx: int = 0) -> None:
        """Train on one batch and count it."""
        optimizer: Any = self.optimizers()
        optimizer.zero_grad(set_to_none=True)
        terms, _, _ = self.loss_terms({**batch, "speech": self._augment(batch["speech"])})
        self.manual_backward(terms["loss"])
        trained = [parameter for parameter in self.parameters() if parameter.requires_grad]
        average_gradients(trained)
        if self.clip_norm is not None:
            terms["grad_norm"] = nn.utils.clip_grad_norm_(trained, self.clip_norm)
        optimizer.step()
        self.record(**terms)
        self.finish_step(len(batch["class_id"]))

    def validation_step(self, batch: dict[str, Any], batch_idx: int = 0) -> None:
        """Collect the embeddings of one batch, its loss and its in-batch accuracy."""
        terms, image, sentence = self.loss_terms(batch)
        weight = torch.ones(len(image), device=image.device)
        self._seen.append(
            {
                "image": image,
                "sentence": sentence,
                "id": self._ids(batch),
                "val_loss": terms["loss"] * weight,
                "val_accuracy": terms["accuracy"] * weight,
            }
        )

    def on_validation_epoch_end(self) -> None:
        """Log recall over everything collected, mean loss and mean accuracy."""
        if self._seen:
            self.log_dict(self.retrieval_scores())
        self._seen = []

    # ---- arithmetic --------------------------------------------------------------------------
    def loss_terms(self, batch: dict[str, Any]) -> tuple[dict[str, Tensor], Tensor, Tensor]:
        """Return the loss terms of a batch by name, and its two embeddings.

        Args: batch: see the class.
        Returns: scalars (`loss` is their weighted sum, `accuracy` has no gradient), image features
            `(B, D)` and sentences `(B, D)`; in training those of all ranks, which the losses compare.
        """
        whole = gather_rows if self.training else _own_rows
        sentence = whole(self.encoder(batch["speech"]).sentence.float())
        class_ids = whole(batch["class_id"])
        if self.objective == "li_et_al":
            return self._li_et_al(whole(self._teach(batch).float()), sentence, class_ids)
        assert self.image_branch is not None
        if self.objective == "speechclip":
            return self._speechclip(whole(self._see(batch["image"])), sentence, whole(self._ids(batch)))
        return self._s2igan(whole(self.image_branch(batch["image"]).float()), sentence, class_ids)

    def _li_et_al(
        self, image: Tensor, sentence: Tensor, class_ids: Tensor
    ) -> tuple[dict[str, Tensor], Tensor, Tensor]:
        terms = {
            "loss_jel": joint_embedding_loss(image, sentence, class_ids, **self.pairs),  # type: ignore[arg-type]
            "loss_l1": normalised_l1(sentence, image, self.l1_per),
            "loss_distill": distillation(sentence, image, self.temperature, self.distill_reduction),
        }
        weighted = self.l1_weight * terms["loss_l1"] + self.distill_weight * terms["loss_distill"]
        accuracy = retrieval_accuracy(image, sentence.detach())
        return {"loss": terms["loss_jel"] + weighted, **terms, "accuracy": accuracy}, image, sentence

    def _s2igan(
        self, image: Tensor, sentence: Tensor, class_ids: Tensor
    ) -> tuple[dict[str, Tensor], Tensor, Tensor]:
        ids = class_ids if self.mask_same_class else None
        to_speech, to_image = matching_loss(image, sentence, ids, self.gamma)
        terms = {"loss_match": to_speech + to_image}
        loss = self.match_weight * terms["loss_match"]
        if self.classifier is not None:
            logits = self.class_logits(image), self.class_logits(sentence)
            own, spoken = distinctive_loss(*logits, class_ids)
            terms["loss_distinctive"] = own + spoken
            loss = loss + self.distinctive_weight * terms["loss_distinctive"]
        unit = functional.normalize(sentence.detach(), dim=1)
        accuracy = retrieval_accuracy(unit, functional.normalize(image.detach(), dim=1), class_ids)
        return {"loss": loss, **terms, "accuracy": accuracy}, image, sentence

    def _speechclip(
        self, image: Tensor, sentence: Tensor, ids: Tensor
    ) -> tuple[dict[str, Tensor], Tensor, Tensor]:
        assert self.criterion is not None
        terms = {"loss": self.criterion(sentence, image, ids)}
        terms["accuracy"] = retrieval_accuracy(sentence.detach(), image.detach(), ids)
        if self.criterion.temperature is not None:
            terms["scale"] = torch.as_tensor(self.criterion.scale).detach()
        return terms, image, sentence

    def _see(self, images: Tensor) -> Tensor:
        """Return image embeddings; a frozen tower keeps nothing for a backward pass."""
        assert self.image_branch is not None
        trained = any(parameter.requires_grad for parameter in self.image_branch.parameters())
        with torch.set_grad_enabled(trained and torch.is_grad_enabled()):
            return self.image_branch(images).float()

    def _ids(self, batch: dict[str, Any]) -> Tensor:
        """Return what tells pairs apart, `(B,)`: classes, or images as SpeechCLIP published."""
        by_image = self.objective == "speechclip" and self.rivals == "other_image"
        return batch["image_index" if by_image else "class_id"]

    def class_logits(self, embedding: Tensor) -> Tensor:
        """Return the shared classifier's logits `(B, classes)` of unit embeddings `(B, D)`."""
        assert self.classifier is not None
        if self.distinctive_form == "cosine":
            directions = functional.normalize(self.classifier.weight, dim=1)
            return self.distinctive_scale * functional.linear(embedding, directions)
        return self.classifier(self.distinctive_scale * embedding)

    def _teach(self, batch: dict[str, Any]) -> Tensor:
        if "teacher" in batch:
            return batch["teacher"]
        if self.image_branch is None:
            raise ConfigError(
                "objective li_et_al has no teacher: no image network, and no features in the batch",
                "Choose a teacher: vision=class_teacher, or vision=feature_file with its files.",
            )
        features: Any = self.image_branch.features
        with torch.no_grad():
            return features(batch["image"])

    def _augment(self, speech: SpeechBatch) -> SpeechBatch:
        if speech.features.shape[2] == 1:
            return random_windows(speech, self.rng("window"), share=share())
        if any(isinstance(part, StatesInput) for part in self.encoder.modules()):
            speech = random_windows(speech, self.rng("window"), PUBLISHED_WINDOW // FRAME_SAMPLES, share())
        if not any(self.masks):
            return speech
        rng = self.rng("spec_augment")
        blanked = spec_augment(
            speech.features, speech.lengths, rng, *self.masks, fill=self.mask_fill, share=share()
        )
        return SpeechBatch(blanked, speech.lengths)

    def retrieval_scores(self) -> dict[str, Tensor]:
        """Return recall at 1, 5 and 10, mean loss and accuracy of what was collected.

        A hit: one of the k images nearest to a sentence (cosine) has its class (`speechclip` with
        rivals `other_image`: is its image).  `speechclip` has the way back, too: one of the k
        sentences nearest to an image.
        """
        seen = {name: torch.cat([part[name] for part in self._seen]) for name in self._seen[0]}
        images = functional.normalize(seen["image"], dim=1)
        scores = functional.normalize(seen["sentence"], dim=1) @ images.T
        values = {name: seen[name].mean() for name in ("val_loss", "val_accuracy")}
        values |= _recalls(scores, seen["id"], "val_recall")
        if self.objective == "speechclip":
            values |= _recalls(scores.T, seen["id"], "val_back_recall")
        return values

    # ---- checkpoint --------------------------------------------------------------------------
    def frozen_prefixes(self) -> tuple[str, ...]:
        """Return the prefixes of what every session reads from its own file."""
        return tuple(f"{name}." for name, part in self.named_modules() if type(part) in FROZEN)

    # ---- results -----------------------------------------------------------------------------
    def inference_module(self) -> nn.Module:
        """Return the speech encoder."""
        return self.encoder


def _own_rows(rows: Tensor) -> Tensor:
    return rows


def _recalls(scores: Tensor, ids: Tensor, name: str) -> dict[str, Tensor]:
    """Return `<name>_<k>` of square scores; only the nearest ten of a query enter torchmetrics."""
    best, places = scores.topk(min(max(RECALL_KS), len(scores)), dim=1)
    right = ids[places] == ids[:, None]
    queries = torch.arange(len(scores), device=scores.device)[:, None].expand_as(places)
    values = {}
    for k in RECALL_KS:
        recall = RetrievalHitRate(empty_target_action="neg", top_k=k).to(scores.device)
        recall.update(best.flatten(), right.flatten(), queries.flatten())
        values[f"{name}_{k}"] = recall.compute()
    return values
