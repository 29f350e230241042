"""The patch discriminator of VQGAN training: one logit for every patch of an image."""

from __future__ import annotations

from torch import Tensor, nn


class PatchDiscriminator(nn.Module):
    """Strided convolutions that judge overlapping patches.

    Args:
        num_layers: strided layers after which a patch is judged; 2 in the f16/16384 codec, 3 by default
            in taming.
        width: channels of the first layer; each layer doubles them, up to eight times.
    Source:  pix2pix (Isola et al. 2017), appendix 6.1.2; taming `discriminator/model.py`
        `NLayerDiscriminator`.
    """

    def __init__(self, num_layers: int = 3, width: int = 64) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(3, width, 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
        before = width
        for number in range(1, num_layers + 1):
            after = width * min(2**number, 8)
            stride = 2 if number < num_layers else 1
            layers += [
                nn.Conv2d(before, after, 4, stride=stride, padding=1, bias=False),
                nn.BatchNorm2d(after),
                nn.LeakyReLU(0.2),
            ]
            before = after
        layers.append(nn.Conv2d(before, 1, 4, stride=1, padding=1))
        self.main = nn.Sequential(*layers)
        self.main.apply(_initialise)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits `(B, 1, H', W')` of images `(B, 3, H, W)` in [-1, 1]; high is real."""
        return self.main(images)


def _initialise(layer: nn.Module) -> None:
    if isinstance(layer, nn.Conv2d):
        nn.init.normal_(layer.weight, 0.0, 0.02)
    elif isinstance(layer, nn.BatchNorm2d):
        nn.init.normal_(layer.weight, 1.0, 0.02)
        nn.init.zeros_(layer.bias)
