"""Options that let short runs hear the speech: each changes exactly what it says."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import Dataset

from speech2image.errors import ConfigError
from speech2image.gan.augment import translate
from speech2image.gan.discriminators import StackDiscriminator
from speech2image.gan.stackgan import StackGenerator
from speech2image.losses.matching import prototype_loss
from speech2image.speech.conv_gru import ConvGru
from speech2image.training.encoder_module import EncoderModule
from speech2image.training.gan_module import GanModule
from speech2image.training.teachers import fit_on_classes
from speech2image.vision.branch import ConvBranch


def test_prototype_loss_is_the_cross_entropy_over_all_classes() -> None:
    prototypes = 3.0 * torch.eye(4)
    seen = 0.5 * torch.eye(4)[:2]
    right = prototype_loss(seen, prototypes, torch.tensor([0, 1]), gamma=2.0)
    wrong = prototype_loss(seen, prototypes, torch.tensor([2, 3]), gamma=2.0)
    scores = torch.tensor([2.0, 0.0, 0.0, 0.0])
    assert right.item() == pytest.approx((torch.logsumexp(scores, 0) - 2.0).item(), rel=1e-6)
    assert wrong.item() == pytest.approx(torch.logsumexp(scores, 0).item(), rel=1e-6)


def test_sentence_scale_is_a_factor_on_the_sentence() -> None:
    plain = StackGenerator(6, condition_dim=4, noise_dim=3, gf_dim=4, num_stages=1, base_px=16).eval()
    scaled = StackGenerator(6, 4, 3, 4, 1, base_px=16, sentence_scale=5.0).eval()
    scaled.load_state_dict(plain.state_dict())
    sentence, noise = torch.randn(2, 6), torch.randn(2, 3)
    assert torch.equal(scaled(sentence, noise).mu, plain(5.0 * sentence, noise).mu)
    assert not torch.allclose(scaled(sentence, noise).mu, plain(sentence, noise).mu)


def test_prototype_weight_without_prototypes_is_refused() -> None:
    generator = StackGenerator(6, 4, 3, 4, 1, base_px=16)
    critic = StackDiscriminator(16, df_dim=4, condition_dim=4)
    with pytest.raises(ConfigError, match="no prototypes"):
        GanModule(generator, [critic], prototype_weight=1.0, image_branch=ConvBranch(6, 4, 16))


def encoder_module(**settings: Any) -> EncoderModule:
    torch.manual_seed(0)
    encoder = ConvGru(hidden_channels=4, out_channels=4, rnn_dim=3, rnn_layers=1, attention_dim=4)
    return EncoderModule(encoder, ConvBranch(6, width=4, image_px=16), num_classes=5, **settings)


def test_distinctive_forms_are_what_they_say() -> None:
    unit = torch.nn.functional.normalize(torch.randn(7, 6), dim=1)
    linear = encoder_module(distinctive_scale=4.0)
    assert linear.classifier is not None
    weight, bias = linear.classifier.weight, linear.classifier.bias
    assert torch.allclose(linear.class_logits(unit), 4.0 * unit @ weight.T + bias, atol=1e-6)
    cosine = encoder_module(distinctive_scale=4.0, distinctive_form="cosine")
    assert cosine.classifier is not None
    cosines = torch.nn.functional.cosine_similarity(unit[:, None], cosine.classifier.weight[None], dim=2)
    assert torch.allclose(cosine.class_logits(unit), 4.0 * cosines, atol=1e-6)


def test_distinctive_loss_of_the_module_uses_scale_and_form() -> None:
    ids = torch.tensor([0, 1, 2])
    unit = torch.nn.functional.normalize(torch.randn(3, 6), dim=1)
    for form in ("linear", "cosine"):
        module = encoder_module(distinctive_scale=3.0, distinctive_form=form)
        terms, _, _ = module._s2igan(unit, unit.flip(0), ids)
        expected = sum(
            torch.nn.functional.cross_entropy(module.class_logits(side), ids) for side in (unit, unit.flip(0))
        )
        assert terms["loss_distinctive"].item() == pytest.approx(float(expected), rel=1e-6)


class _Colours(Dataset[dict[str, Any]]):
    """Class c has its own bright channel; the last has none."""

    def __getitem__(self, step: int) -> dict[str, Any]:
        ids = torch.from_numpy(np.random.default_rng(step).integers(0, 4, 16))
        image = torch.randint(0, 60, (16, 3, 16, 16), dtype=torch.uint8)
        for place, c in enumerate(ids.tolist()):
            image[place, c : c + 1] += 150
        return {"image": image, "class_id": ids}


def test_fit_on_classes_teaches_branch_and_classifier() -> None:
    module = encoder_module(distinctive_scale=10.0, distinctive_form="cosine")
    branch, classifier = module.image_branch, module.classifier
    assert branch is not None and classifier is not None
    networks = nn.ModuleList([branch, classifier])
    before = [parameter.clone() for parameter in module.encoder.parameters()]
    right = fit_on_classes(
        lambda images: module.class_logits(branch(images)), networks, _Colours(), 60, torch.device("cpu")
    )
    assert right > 0.9  # chance: a quarter
    assert all(torch.equal(a, b) for a, b in zip(before, module.encoder.parameters(), strict=True))


def test_translation_moves_whole_pixels_and_passes_gradients() -> None:
    images = torch.randn(2, 3, 4, 5, requires_grad=True)
    moved = translate(images, torch.tensor([[1, 0], [-2, 9]]))
    assert torch.equal(moved[0, :, :3], images[0, :, 1:])
    assert not moved[0, :, 3].any()
    assert not moved[1].any()  # nine columns to the left: nothing is left of it
    moved.sum().backward()  # type: ignore[no-untyped-call]
    assert images.grad is not None
    assert images.grad[0, :, 0].abs().sum() == 0
    assert (images.grad[0, :, 1:] == 1).all()


def test_translation_changes_what_discriminators_see_and_nothing_else() -> None:
    found = []
    for ratio in (0.0, 0.25):
        torch.manual_seed(0)
        generator = StackGenerator(6, 4, 3, 4, 1, base_px=16)
        module = GanModule(generator, [StackDiscriminator(16, 4, 4)], translate_ratio=ratio)
        image = torch.randn(8, 3, 16, 16)
        seen = module._augment(image, "real_0")
        assert torch.equal(seen, module._augment(image, "real_0"))  # addressed by the step
        found.append(torch.equal(seen, image))
    assert found == [True, False]
