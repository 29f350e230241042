"""Training of a VQGAN codec: reconstruction, code book, and a patch discriminator that joins in later.

Here: one step with both optimizers, arranged so that each network is run once: the gradients of the
two kinds of loss meet at the painted image, where the adaptive weight mixes them.  Losses are in
`losses/codec.py` and `losses/perceptual.py`, networks in `codecs/`, counters in `module.py`.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from speech2image.codecs.code_map import code_usage, count_codes
from speech2image.codecs.codec import Codec
from speech2image.codecs.discriminator import PatchDiscriminator
from speech2image.codecs.quantizers import EmaQuantizer, GumbelQuantizer, gumbel_temperature
from speech2image.codecs.vqgan import Reconstruction, VqGan
from speech2image.errors import ConfigError
from speech2image.losses.codec import (
    DiscriminatorForm,
    adaptive_weight,
    discriminator_loss,
    generator_loss,
    reconstruction_loss,
)
from speech2image.losses.perceptual import Lpips, rename_vgg
from speech2image.training.ema import ExponentialMovingAverage
from speech2image.training.module import TrainingModule
from speech2image.training.ranks import is_first, share
from speech2image.training.synchronised import average_gradients, averaged, summed
from speech2image.weight_files import load_into, read_local_weights

VGG_URL = "https://download.pytorch.org/models/vgg16-397923af.pth"
VGG_SHA256 = "397923af"
LINEAR_URL = "https://github.com/richzhang/PerceptualSimilarity (lpips/weights/v0.1/vgg.pth)"


class CodecModule(TrainingModule):
    """Train a VQGAN.  Batches are dicts with `image` `(B, 3, S, S)` float in [-1, 1].

    Args:
        network: trained in place.
        discriminator: judges patches; None: no adversarial term.
        perceptual: frozen LPIPS network; None: no perceptual term.
        lr: learning rate (released: accumulation x devices x batch x 4.5e-6).
        lr_d: learning rate of the discriminator; None: `lr`.
        betas: Adam coefficients of both optimizers.
        weight_decay: L2 penalty of both optimizers.
        pixel: `l1` as published, or `l2`.
        perceptual_weight: weight of the perceptual distance.
        codebook_weight: weight of the quantizer's loss.
        disc_weight: factor on the adaptive weight.
        disc_start: steps before the discriminator joins in.
        disc_form: `hinge` or `vanilla`.
        revive_share: `ema` quantizer: codes chosen less often than this share of the mean move onto
            latents of the batch, and the first batch fills the code book; None: never.
        revive_every: steps between such checks.
        revive_until: last step of them; None: no end.
        ema_decay: weight of the past in an average of the network; None: no average.
        temperature: `gumbel` quantizer: temperature of the relaxation at a step.
        seed: root of all draws.
        schedule: learning-rate factor of the step.
    Raises:  ConfigError: options that need a network that is not there.
    Source:  Esser et al. 2021; taming `vqgan.py`, `vqperceptual.py`.  Differs: steps are batches, the
        discriminator sees the images the generator's step painted (there: painted again), and costs
        nothing before `disc_start`.
    """

    def __init__(
        self,
        network: VqGan,
        discriminator: PatchDiscriminator | None = None,
        perceptual: Lpips | None = None,
        lr: float = 4.5e-6,
        lr_d: float | None = None,
        betas: Sequence[float] = (0.5, 0.9),
        weight_decay: float = 0.0,
        pixel: Literal["l1", "l2"] = "l1",
        perceptual_weight: float = 1.0,
        codebook_weight: float = 1.0,
        disc_weight: float = 0.75,
        disc_start: int = 0,
        disc_form: DiscriminatorForm = "hinge",
        revive_share: float | None = None,
        revive_every: int = 10,
        revive_until: int | None = None,
        ema_decay: float | None = None,
        temperature: Callable[[int], float] = gumbel_temperature,
        seed: int = 0,
        schedule: Callable[[int], float] | None = None,
    ) -> None:
        super().__init__(seed=seed, schedule=schedule)
        if revive_share is not None and not isinstance(network.quantize, EmaQuantizer):
            raise ConfigError(
                f"revive_share={revive_share} needs an averaged code book, found {type(network.quantize).__name__}",
                "Set codec.quantizer=ema, or loss.revive_share=null.",
            )
        self.network, self.discriminator, self.perceptual = network, discriminator, perceptual
        self.lr, self.lr_d = lr, lr if lr_d is None else lr_d
        self.betas, self.weight_decay = (float(betas[0]), float(betas[1])), weight_decay
        self.pixel, self.perceptual_weight = pixel, perceptual_weight
        self.codebook_weight, self.disc_weight = codebook_weight, disc_weight
        self.disc_start, self.disc_form = disc_start, disc_form
        self.revive_share, self.revive_every, self.revive_until = revive_share, revive_every, revive_until
        self.temperature = temperature
        self.ema = None if ema_decay is None else ExponentialMovingAverage(network, ema_decay, warmup=True)
        self._code_counts: Tensor | None = None

    def configure_optimizers(self) -> list[Optimizer]:
        """Return Adam for the network and, where there is one, for the discriminator."""
        pairs: list[tuple[nn.Module, float]] = [(self.network, self.lr)]
        if self.discriminator is not None:
            pairs.append((self.discriminator, self.lr_d))
        return [
            torch.optim.Adam(
                part.parameters(), lr=lr, betas=self.betas, weight_decay=self.weight_decay, fused=True
            )
            for part, lr in pairs
        ]

    @property
    def adversarial(self) -> bool:
        """Whether the discriminator takes part in this step."""
        return self.discriminator is not None and self.train_step >= self.disc_start

    def training_step(self, batch: dict[str, Any], batch_idx: int = 0) -> None:
        """Train on one batch: network, then discriminator, then code book care and averages."""
        images: Tensor = batch["image"]
        optimizers = self.optimizers()
        optimizers = optimizers if isinstance(optimizers, list) else [optimizers]
        self._start_codebook(images)
        output: Reconstruction = self.network(images, self._gumbel(images))
        losses = self.network_backward(images, output)
        average_gradients(self.network.parameters())
        optimizers[0].step()
        optimizers[0].zero_grad(set_to_none=True)
        if self.adversarial:
            assert self.discriminator is not None
            losses["loss_d"] = self.discriminator_backward(images, output.images.detach())
            average_gradients(self.discriminator.parameters())
            optimizers[1].step()
            optimizers[1].zero_grad(set_to_none=True)
        self._revive(output.latents.detach())
        if self.ema is not None:
            self.ema.update()
        self._count(output.tokens)
        self.record(**losses)
        self.finish_step(len(images))

    def network_backward(self, images: Tensor, output: Reconstruction) -> dict[str, Tensor]:
        """Add the gradients of the autoencoder's loss and return its terms, weights applied.

        L = reconstruction + lambda * g + codebook_weight * quantizer loss, where lambda is `disc_weight`
        times the adaptive weight.  Both gradients are taken at the painted image, so perceptual network
        and discriminator are run backward once, and the decoder once.
        """
        painted = output.images.detach().requires_grad_()
        distances = None if self.perceptual is None else self.perceptual(images, painted)
        nll = reconstruction_loss(images, painted, distances, self.perceptual_weight, self.pixel)
        (gradient,) = torch.autograd.grad(nll, painted)
        losses = {"loss_reconstruction": nll.detach()}
        if distances is not None:
            losses["loss_perceptual"] = self.perceptual_weight * distances.detach().mean()
        if self.adversarial:
            term, adversarial_gradient = self._adversarial_gradient(painted)
            weight = self.disc_weight * self._adaptive_weight(output.images, gradient, adversarial_gradient)
            gradient = gradient + weight * adversarial_gradient
            losses |= {"loss_adversarial": weight * term, "adaptive_weight": weight}
        codebook = self.codebook_weight * output.loss
        losses["loss_codebook"] = codebook.detach()
        torch.autograd.backward([output.images, codebook], [gradient, None])
        return losses

    def discriminator_backward(self, images: Tensor, painted: Tensor) -> Tensor:
        """Add the gradients of the discriminator's loss and return it."""
        assert self.discriminator is not None
        loss = discriminator_loss(self.discriminator(images), self.discriminator(painted), self.disc_form)
        torch.autograd.backward(loss)
        return loss.detach()

    def _adversarial_gradient(self, painted: Tensor) -> tuple[Tensor, Tensor]:
        assert self.discriminator is not None
        term = generator_loss(self.discriminator(painted))
        (gradient,) = torch.autograd.grad(term, painted)
        return term.detach(), gradient

    def _adaptive_weight(self, painted: Tensor, reconstruction: Tensor, adversarial: Tensor) -> Tensor:
        """Carry both gradients one layer further, to the last convolution of the decoder."""
        weight = self.network.last_weight
        moved = [
            averaged(torch.autograd.grad(painted, weight, gradient, retain_graph=True)[0])
            for gradient in (reconstruction, adversarial)
        ]
        return adaptive_weight(*moved)

    def validation_step(self, batch: dict[str, Any], batch_idx: int = 0) -> None:
        """Measure one batch: `val_l1` on [-1, 1], and `val_psnr` in dB."""
        images: Tensor = batch["image"]
        network = self.inference_module()
        assert isinstance(network, VqGan)
        painted = network.paint_tokens(network.tokens(images), _grid(images, network)).clamp(-1.0, 1.0)
        psnr = 10.0 * (4.0 / (images - painted).square().mean()).log10()
        scores = {"val_l1": (images - painted).abs().mean(), "val_psnr": psnr}
        self.log_dict(scores, batch_size=len(images))

    def codec(self) -> Codec:
        """Return a frozen copy of what has been trained, averaged where an average is kept."""
        network = copy.deepcopy(self.inference_module())
        assert isinstance(network, VqGan)
        return Codec(network)

    def inference_module(self) -> nn.Module:
        """Return the network that goes into a run folder: the average where there is one."""
        return self.network if self.ema is None else self.ema.module

    # ---- code book ---------------------------------------------------------------------------
    def _start_codebook(self, images: Tensor) -> None:
        quantizer = self.network.quantize
        if isinstance(quantizer, GumbelQuantizer):
            quantizer.temperature = self.temperature(self.train_step)
        if self.revive_share is not None and self.train_step == 0:
            assert isinstance(quantizer, EmaQuantizer)
            with torch.no_grad():
                quantizer.revive(
                    self.network.latents(images), self.uniform_for_all("codec/start", self.network.num_codes)
                )

    def _revive(self, latents: Tensor) -> None:
        over = self.revive_until is not None and self.train_step > self.revive_until
        if self.revive_share is None or over or (self.train_step + 1) % self.revive_every:
            return
        assert isinstance(self.network.quantize, EmaQuantizer)
        moved = self.network.quantize.revive(
            latents, self.uniform_for_all("codec/revive", self.network.num_codes), self.revive_share
        )
        self.record(codes_revived=moved)

    def _gumbel(self, images: Tensor) -> Tensor | None:
        """Draw Gumbel noise for the whole batch, on the device, addressed by seed and step; return this rank's."""
        if not isinstance(self.network.quantize, GumbelQuantizer):
            return None
        height, width = _grid(images, self.network)
        generator = torch.Generator(self.device).manual_seed(int(self.rng("codec/gumbel").integers(2**62)))
        total = share().of * len(images)
        noise = torch.empty(total, self.network.num_codes, height, width, device=self.device)
        return -noise.exponential_(generator=generator)[share().rows(total)].log()

    def _count(self, tokens: Tensor) -> None:
        counts = count_codes(tokens, self.network.num_codes)
        self._code_counts = counts + (0 if self._code_counts is None else self._code_counts.to(counts.device))

    def flush_records(self) -> dict[str, float]:
        """Return the scalars, with the codes used since the last flush and their perplexity."""
        scalars = super().flush_records()
        if self._code_counts is not None:
            usage = code_usage(summed(self._code_counts))
            scalars |= {"codes_used": float(usage.used), "code_perplexity": usage.perplexity}
            self._code_counts = None
        return scalars

    # ---- checkpoint --------------------------------------------------------------------------
    def pending_records(self) -> dict[str, Any]:
        """Return what was recorded since the last flush, with the codes counted since."""
        counts = None if self._code_counts is None else summed(self._code_counts)
        return {**super().pending_records(), "code_counts": counts}

    def restore_records(self, pending: dict[str, Any]) -> None:
        """Take over what `pending_records` returned."""
        super().restore_records(pending)
        self._code_counts = pending["code_counts"] if is_first() else None

    def frozen_prefixes(self) -> tuple[str, ...]:
        """Leave out of checkpoints what is frozen: the perceptual network has its own file."""
        return ("perceptual.",)


def load_perceptual(
    path: Path | str,
    linear_path: Path | str | None = None,
    sha256: str | None = None,
    linear_sha256: str | None = None,
    legacy_dropout: bool = False,
) -> Lpips:
    """Return the perceptual network with weights from local files.

    Args:
        path: all 33 tensors in one file, or torchvision's `vgg16` (then with `linear_path`).
        linear_path: the five linear layers, `lpips/weights/v0.1/vgg.pth`.
        sha256: expected hash of `path`, or its beginning; None: torchvision's for a file of that kind,
            else not compared.
        linear_sha256: the same for `linear_path`.
        legacy_dropout: see `Lpips`.
    Raises:  CheckpointError: a file is missing, damaged, of another hash, or lacks tensors.
    """
    what = "LPIPS (VGG16)"
    expected = sha256 or (VGG_SHA256 if linear_path is not None else None)
    state, _ = read_local_weights(path, what, VGG_URL, expected)
    prefix = "loss.perceptual_loss."
    if any(name.startswith(prefix) for name in state):
        state = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
    if linear_path is not None:
        linear, _ = read_local_weights(linear_path, "LPIPS linear layers", LINEAR_URL, linear_sha256)
        state = rename_vgg(state) | {name: value for name, value in linear.items() if name.startswith("lin")}
    network = Lpips(legacy_dropout)
    constants = {k: v for k, v in network.state_dict().items() if k.startswith("scaling_layer.")}
    load_into(network, {**constants, **state}, path, what)
    return network


def _grid(images: Tensor, network: VqGan) -> tuple[int, int]:
    return images.shape[2] // network.factor, images.shape[3] // network.factor
