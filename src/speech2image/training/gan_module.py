"""Training of stacked GANs: discriminators in turn, then the generator, once each a step.

Here: the step of StackGAN-v2 with its loss terms as options, arranged so that the same numbers cost
less time and memory (separate backward passes, frozen discriminators, gradients freed early).
Losses are in `losses/`, networks in `gan/`, the average in `ema.py`, counters in `module.py`.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from speech2image.errors import ConfigError
from speech2image.gan.augment import translate
from speech2image.gan.discriminators import StackDiscriminator
from speech2image.gan.stackgan import StackGenerator, StackOutput
from speech2image.losses.adversarial import ImageKind, discriminator_term, generator_term
from speech2image.losses.class_aware import class_aware_loss
from speech2image.losses.colour import COVARIANCE_FACTOR, colour_consistency
from speech2image.losses.kl import kl_to_standard_normal
from speech2image.losses.matching import matching_loss, prototype_loss
from speech2image.training.ema import ExponentialMovingAverage
from speech2image.training.module import TrainingModule
from speech2image.training.ranks import share
from speech2image.training.synchronised import average_gradients, gather_rows

SHARED_PASS_RATIO = 8
"""Discriminators with more weights than this many times the batch's image values see all kinds at once
(measured: a quarter faster at the published width and batch 4, no gain and more memory for narrow ones)."""


class GanModule(TrainingModule):
    """Train a stacked generator against one discriminator per image size.

    Batches are dicts: `sentence` `(B, D)`, `real` and `wrong` (`ImagePyramid` with the generator's
    sizes), and, for the class-aware and semantic terms, `class_id` `(B,)`; `speech_embedding` `(B, E)`
    replaces the sentence in the semantic term.

    Args:
        generator: trained in place.
        discriminators: one for each size of the generator, smallest first.
        noise_dim: width of the noise; None: the generator's.
        lr: learning rate.
        lr_d: learning rate of the discriminators; None: `lr`.
        betas: Adam coefficients of every optimizer.
        weight_decay: L2 penalty of every optimizer.
        ema_decay: weight of the past in the average of the generator.
        ema_warmup: let a short run average faster at the start.
        ema_buffers: `copy` the live batch-norm statistics into the average (published) or `average` them.
        uncond_weight: weight of the unconditional adversarial terms.
        kl_weight: weight of the divergence of the condition from a standard normal.
        colour_weight: weight of colour consistency between neighbouring sizes.
        class_aware_weight: weight of the class-aware term of Li et al. at each size (their fork: 1).
        semantic_weight: weight of matching the largest fake image to the speech embedding.  A branch built
            for smaller images resizes it, and then cannot be fooled by fine texture.
        semantic_gamma: sharpness of that matching.
        prototype_weight: weight of finding the class of the same image among `prototypes`.
        prototypes: `(classes, E)` mean speech embedding of each training class.
        translate_ratio: largest shift of the images that discriminators see, a share of their side; 0: none.
        image_branch: frozen image encoder `(B, 3, H, W) -> (B, E)`, needed for the semantic term.
        reset_live_to_ema_every: overwrite the live generator by its average every so many steps
            (released code: 2,000; Li et al.: 5,000); None: never.
        seed: root of the noise.
        schedule: learning-rate factor of the step.
    Raises:  ConfigError: sizes of generator and discriminators differ, or the image branch is missing.
    Source:  StackGAN-v2 `trainer.py` `condGANTrainer`; Li et al. fork; S2IGAN semantic consistency.
             Differs: live weights are never overwritten unless asked.
    """

    def __init__(
        self,
        generator: StackGenerator,
        discriminators: Sequence[StackDiscriminator],
        noise_dim: int | None = None,
        lr: float = 2e-4,
        lr_d: float | None = None,
        betas: Sequence[float] = (0.5, 0.999),
        weight_decay: float = 0.0,
        ema_decay: float = 0.999,
        ema_warmup: bool = False,
        ema_buffers: Literal["copy", "average"] = "copy",
        uncond_weight: float = 1.0,
        kl_weight: float = 2.0,
        colour_weight: float = 0.0,
        class_aware_weight: float = 0.0,
        semantic_weight: float = 0.0,
        semantic_gamma: float = 10.0,
        prototype_weight: float = 0.0,
        prototypes: Tensor | None = None,
        translate_ratio: float = 0.0,
        image_branch: nn.Module | None = None,
        reset_live_to_ema_every: int | None = None,
        seed: int = 0,
        schedule: Callable[[int], float] | None = None,
    ) -> None:
        super().__init__(seed=seed, schedule=schedule)
        _check_networks(
            generator, discriminators, noise_dim, semantic_weight + prototype_weight, image_branch
        )
        self.generator, self.discriminators = generator, nn.ModuleList(discriminators)
        self.image_branch = image_branch.requires_grad_(False).eval() if image_branch is not None else None
        self.ema = ExponentialMovingAverage(generator, ema_decay, ema_buffers, ema_warmup)
        self.lr, self.lr_d = lr, lr if lr_d is None else lr_d
        self.betas, self.weight_decay = (float(betas[0]), float(betas[1])), weight_decay
        self.uncond_weight, self.kl_weight, self.colour_weight = uncond_weight, kl_weight, colour_weight
        self.class_aware_weight = class_aware_weight
        self.semantic_weight, self.semantic_gamma = semantic_weight, semantic_gamma
        self.reset_live_to_ema_every = reset_live_to_ema_every
        if prototype_weight and prototypes is None:
            raise ConfigError(
                f"prototype_weight is {prototype_weight}, but there are no prototypes to compare with",
                "Give the mean speech embedding of each class, or set prototype_weight=0.",
            )
        self.prototype_weight, self.translate_ratio = prototype_weight, translate_ratio
        self.register_buffer("prototypes", prototypes, persistent=False)

    def configure_optimizers(self) -> list[Optimizer]:
        """Return one Adam for each discriminator, smallest first, and last the generator's."""
        return [
            torch.optim.Adam(
                network.parameters(), lr=lr, betas=self.betas, weight_decay=self.weight_decay, fused=True
            )
            for network, lr in (*((d, self.lr_d) for d in self.discriminators), (self.generator, self.lr))
        ]

    def train(self, mode: bool = True) -> GanModule:
        """Set the mode; a frozen image branch stays in evaluation mode."""
        super().train(mode)
        if self.image_branch is not None:
            self.image_branch.eval()
        return self

    def discriminator(self, level: int) -> StackDiscriminator:
        """Return the discriminator of one size, 0 the smallest."""
        network = self.discriminators[level]
        assert isinstance(network, StackDiscriminator)
        return network

    def training_step(self, batch: dict[str, Any], batch_idx: int = 0) -> None:
        """Train on one batch: draw noise, step every optimizer once, average, count."""
        size = batch["sentence"].shape[0]
        noise = self.normal("noise", size, self.generator.noise_dim)
        eps = self.normal("condition", size, self.generator.condition_dim)
        optimizers = self.optimizers()
        assert isinstance(optimizers, list)
        self.record(**self.optimise(batch, noise, eps, optimizers))
        self.finish_step(size)
        every = self.reset_live_to_ema_every
        if every and self.train_step % every == 0:
            self.ema.copy_to_live()

    def optimise(
        self, batch: dict[str, Any], noise: Tensor, eps: Tensor, optimizers: Sequence[Any]
    ) -> dict[str, Tensor]:
        """Update discriminators, generator and average once, with the given draws.

        Args:
            batch: see the class.
            noise: `(B, Z)`.
            eps: `(B, C)`.
            optimizers: in the order of `configure_optimizers`.
        Returns: every loss term by name, detached, weights applied.
        """
        output = self.generator(batch["sentence"], noise, eps)
        losses: dict[str, Tensor] = {}
        for level, optimizer in enumerate(optimizers[:-1]):
            losses[f"loss_d_{output.images[level].shape[-1]}"] = self.discriminator_backward(
                level, batch, output
            )
            average_gradients(self.discriminator(level).parameters())
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        losses |= self.generator_backward(batch, output)
        average_gradients(self.generator.parameters())
        optimizers[-1].step()
        optimizers[-1].zero_grad(set_to_none=True)
        self.ema.update()
        return losses

    def discriminator_backward(self, level: int, batch: dict[str, Any], output: StackOutput) -> Tensor:
        """Add the gradients of one discriminator's loss and return the loss.

        Each kind of image is normalised by its own statistics.  Wide networks see all kinds in one pass,
        because reading their weights is what costs; others take one kind after the other, forward and
        backward, so that only one graph is in memory at a time.  The gradients are the same.
        """
        discriminator, mu = self.discriminator(level), output.mu.detach()
        images: dict[ImageKind, Tensor] = {
            "real": batch["real"].levels[level],
            "wrong": batch["wrong"].levels[level],
            "fake": output.images[level].detach(),
        }
        images = {kind: self._augment(image, f"{kind}_{level}") for kind, image in images.items()}
        num_weights = sum(parameter.numel() for parameter in discriminator.parameters())
        if num_weights > SHARED_PASS_RATIO * images["real"].numel():
            groups = [list(zip(images, discriminator.judge_kinds(list(images.values()), mu), strict=True))]
        else:
            groups = ([(kind, discriminator(image, mu))] for kind, image in images.items())  # type: ignore[assignment]
        total = torch.zeros((), device=mu.device)
        for group in groups:
            terms = [discriminator_term(kind, *logits, self.uncond_weight) for kind, logits in group]
            loss = torch.stack(terms).sum()
            torch.autograd.backward(loss)
            total = total + loss.detach()
        return total

    def generator_backward(self, batch: dict[str, Any], output: StackOutput) -> dict[str, Tensor]:
        """Add the gradients of the generator's loss and return its terms and their sum `loss_g`.

        Every image is first a leaf: each discriminator's graph is freed before the next is built, and one
        backward pass through the generator ends the step.
        """
        images = [image.detach().requires_grad_() for image in output.images]
        mu = output.mu.detach().requires_grad_()
        losses: dict[str, Tensor] = {}
        with _frozen(self.discriminators):
            for level, image in enumerate(images):
                losses |= self._judge_fake(level, image, mu, batch)
        if self.colour_weight:
            losses["loss_colour"] = self._colour_backward(images)
        if self.semantic_weight or self.prototype_weight:
            losses |= self._semantic_backward(images[-1], batch)
        kl = self.kl_weight * kl_to_standard_normal(output.mu, output.logvar)
        losses["loss_kl"] = kl.detach()
        torch.autograd.backward(
            [*output.images, output.mu, kl], [*(image.grad for image in images), mu.grad, None]
        )
        losses["loss_g"] = torch.stack(list(losses.values())).sum()
        return losses

    def _judge_fake(self, level: int, image: Tensor, mu: Tensor, batch: dict[str, Any]) -> dict[str, Tensor]:
        discriminator, pixels = self.discriminator(level), image.shape[-1]
        code = discriminator.code(self._augment(image, f"painted_{level}"))
        cond, uncond = discriminator.judge(code, mu)
        term = generator_term(cond, uncond, self.uncond_weight)
        losses = {f"loss_g_{pixels}": term.detach()}
        if self.class_aware_weight:
            codes, class_ids = gather_rows(code.flatten(1)), gather_rows(batch["class_id"])
            aware = self.class_aware_weight * class_aware_loss(codes, class_ids)
            losses[f"loss_class_aware_{pixels}"] = aware.detach()
            term = term + aware
        torch.autograd.backward(term)
        return losses

    def _augment(self, images: Tensor, stream: str) -> Tensor:
        """Shift the images of one kind and level at random, differently at every step."""
        if not self.translate_ratio:
            return images
        most = max(1, round(self.translate_ratio * images.shape[-1]))
        own, total = share(), share().of * len(images)
        offsets = self.rng(f"translate/{stream}").integers(-most, most + 1, (total, 2))[own.rows(total)]
        return translate(images, torch.from_numpy(offsets).to(images.device))

    def _colour_backward(self, images: Sequence[Tensor]) -> Tensor:
        total = torch.zeros((), device=images[0].device)
        for smaller, larger in itertools.pairwise(images):
            mean_term, covariance_term = colour_consistency(larger, smaller)
            term = self.colour_weight * (mean_term + COVARIANCE_FACTOR * covariance_term)
            torch.autograd.backward(term)
            total = total + term.detach()
        return total

    def _semantic_backward(self, image: Tensor, batch: dict[str, Any]) -> dict[str, Tensor]:
        assert self.image_branch is not None
        seen, terms = self.image_branch(image), {}
        if self.semantic_weight:
            speech = gather_rows(batch.get("speech_embedding", batch["sentence"]))
            ids = gather_rows(batch["class_id"]) if "class_id" in batch else None
            to_speech, to_image = matching_loss(gather_rows(seen), speech, ids, self.semantic_gamma)
            terms["loss_semantic"] = self.semantic_weight * (to_speech + to_image)
        if self.prototype_weight:
            assert isinstance(self.prototypes, Tensor)
            found = prototype_loss(seen, self.prototypes, batch["class_id"], self.semantic_gamma)
            terms["loss_prototype"] = self.prototype_weight * found
        torch.autograd.backward(list(terms.values()))
        return {name: term.detach() for name, term in terms.items()}

    def frozen_prefixes(self) -> tuple[str, ...]:
        """Leave out of checkpoints what is frozen: the image branch lies in its encoder's run."""
        return ("image_branch.",)

    def inference_module(self) -> nn.Module:
        """Return the averaged generator."""
        return self.ema.module


class _frozen:
    """Take networks out of differentiation for a while; gradients still flow through them."""

    def __init__(self, networks: nn.Module) -> None:
        self.networks = networks

    def __enter__(self) -> None:
        self.networks.requires_grad_(False)

    def __exit__(self, *_: object) -> None:
        self.networks.requires_grad_(True)


def _check_networks(
    generator: StackGenerator,
    discriminators: Sequence[StackDiscriminator],
    noise_dim: int | None,
    semantic_weight: float,
    image_branch: nn.Module | None,
) -> None:
    sizes = tuple(discriminator.image_px for discriminator in discriminators)
    if sizes != generator.image_sizes:
        raise ConfigError(
            f"the discriminators judge {sizes} pixels, the generator paints {generator.image_sizes}",
            "Give one discriminator for each size of the generator, smallest first.",
        )
    for discriminator in discriminators:
        if discriminator.condition_dim != generator.condition_dim:
            raise ConfigError(
                f"the discriminator for {discriminator.image_px} pixels expects conditions of "
                f"{discriminator.condition_dim} numbers, the generator gives {generator.condition_dim}",
                f"Set condition_dim={generator.condition_dim} on both.",
            )
    if noise_dim is not None and noise_dim != generator.noise_dim:
        raise ConfigError(
            f"noise_dim is {noise_dim}, the generator was built for {generator.noise_dim}",
            f"Set noise_dim={generator.noise_dim}.",
        )
    if semantic_weight and image_branch is None:
        raise ConfigError(
            f"semantic_weight is {semantic_weight}, but there is no image branch to compare with",
            "Name a trained encoder run with an image branch, or set semantic_weight=0.",
        )
