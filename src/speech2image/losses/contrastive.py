"""The contrastive loss of SpeechCLIP: pairs against all other pairs of a batch, duplicates left out.

Here: the function, readable beside its equation, and the module that holds the temperature.  Other
losses between speech and images are in `matching.py`.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from speech2image.errors import ConfigError

CLIP_LIMIT = 100.0


def contrastive_loss(
    first: Tensor,
    second: Tensor,
    ids: Tensor | None = None,
    scale: Tensor | float = 1 / 0.07,
    margin: float = 0.0,
    decoupled: bool = False,
    direction: str = "both",
) -> Tensor:
    """Ask each row of one side for its row of the other among all rows with another id.

    Args:
        first: `(B, D)` unit vectors, e.g. of speech.
        second: `(B, D)` unit vectors; row i belongs to row i of `first`.
        ids: `(B,)` int64: other rows of the same id are no rivals; None: all are.
        scale: inverse temperature on the cosines.
        margin: taken from the scaled logits of matching rows.
        decoupled: leave the matching row out of its own denominator, too; every row then needs a rival.
        direction: `first` asks `second` (`forward`), the reverse (`backward`), or their mean (`both`).

    Returns: scalar, float32: with S = scale A Bᵀ - margin I and rivals m_ij,
        L = mean_i(-S_ii + log Σ_j m_ij e^{S_ij}), averaged with the same of Sᵀ.
    Raises:  ConfigError: unknown direction.
    Source:  SpeechCLIP, `losses.py: MaskedContrastiveLoss`.  Differs: a log-sum-exp that cannot
        overflow, any batch size.
    """
    if direction not in ("both", "forward", "backward"):
        raise ConfigError(f"contrastive direction is {direction!r}", "Use both, forward or backward.")
    scores = scale * first.float() @ second.float().T
    own = torch.eye(len(scores), dtype=torch.bool, device=scores.device)
    scores = scores - margin * own
    rivals = ~own if ids is None else ids[:, None] != ids[None, :]
    inside = rivals if decoupled else rivals | own
    masked = scores.masked_fill(~inside, -torch.inf)
    matching = scores.diagonal()
    terms = []
    if direction in ("both", "forward"):
        terms.append((masked.logsumexp(dim=1) - matching).mean())
    if direction in ("both", "backward"):
        terms.append((masked.logsumexp(dim=0) - matching).mean())
    return torch.stack(terms).mean()


class MaskedContrastiveLoss(nn.Module):
    """`contrastive_loss` with a fixed or a learned temperature.

    Args:
        temperature: where the temperature starts; the published base models stay there.
        trainable: learn ln(1 / temperature), as the published large models do.
        margin: see `contrastive_loss`.
        decoupled: see `contrastive_loss`.
        max_scale: highest inverse temperature in use, CLIP's 100; inf: none, as released.

    Raises: ConfigError: a temperature that is not positive.
    """

    def __init__(
        self,
        temperature: float = 0.07,
        trainable: bool = False,
        margin: float = 0.0,
        decoupled: bool = False,
        max_scale: float = CLIP_LIMIT,
    ) -> None:
        super().__init__()
        if temperature <= 0 or max_scale <= 0:
            raise ConfigError(
                f"temperature {temperature} and max_scale {max_scale} must be positive",
                "Type: loss.temperature=0.07",
            )
        self.margin, self.decoupled, self.max_scale = margin, decoupled, max_scale
        self.fixed_scale = 1 / temperature
        start = torch.tensor(math.log(1 / temperature))
        self.temperature = nn.Parameter(start) if trainable else None

    @property
    def scale(self) -> Tensor | float:
        """Return the inverse temperature, exp of the learned parameter."""
        if self.temperature is None:
            return self.fixed_scale
        return self.temperature.clamp(max=math.log(self.max_scale)).exp()

    def forward(self, first: Tensor, second: Tensor, ids: Tensor | None = None) -> Tensor:
        """Return the loss of unit vectors `(B, D)` and `(B, D)` with row ids `(B,)`, scalar."""
        return contrastive_loss(first, second, ids, self.scale, self.margin, self.decoupled)
