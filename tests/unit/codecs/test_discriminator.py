"""The patch discriminator: names, initial weights, and how far a patch reaches."""

from __future__ import annotations

import torch
from torch import nn

from speech2image.codecs.discriminator import PatchDiscriminator


def test_names_widths_and_initial_weights_are_the_published_ones() -> None:
    torch.manual_seed(0)
    judge = PatchDiscriminator(3, 64)
    names = {name.split(".")[1] for name, _ in judge.named_parameters()}
    assert names == {"0", "2", "3", "5", "6", "8", "9", "11"}
    widths = [layer.out_channels for layer in judge.main if isinstance(layer, nn.Conv2d)]
    assert widths == [64, 128, 256, 512, 1]
    wide = judge.main[8]
    assert isinstance(wide, nn.Conv2d) and wide.bias is None
    assert abs(float(wide.weight.detach().std()) - 0.02) < 1e-3
    assert (
        isinstance(judge.main[9], nn.BatchNorm2d)
        and abs(float(judge.main[9].weight.detach().mean()) - 1) < 0.01
    )


def test_a_logit_sees_seventy_pixels_with_three_layers() -> None:
    judge = PatchDiscriminator(3, 4).eval()
    images = torch.randn(1, 3, 160, 160, requires_grad=True)
    logits = judge(images)
    (gradient,) = torch.autograd.grad(logits[0, 0, 9, 9], images)
    rows = gradient[0].abs().sum(dim=(0, 2)).nonzero().flatten()
    assert int(rows.max() - rows.min()) + 1 == 70
