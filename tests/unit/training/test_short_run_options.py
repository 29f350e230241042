"""Options that let short runs hear the speech: each changes exactly what it says."""

from __future__ import annotations

import pytest
import torch

from speech2image.errors import ConfigError
from speech2image.gan.discriminators import StackDiscriminator
from speech2image.gan.stackgan import StackGenerator
from speech2image.losses.matching import prototype_loss
from speech2image.training.gan_module import GanModule
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
