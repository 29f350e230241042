"""CLIPScore: does an image fit its transcript in CLIP's joint space?

The two towers and what they read come from the caller (`vision/clip_tower.py`, `text/clip_text.py`);
here are the formula and the metric.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from speech2image.metrics.bootstrap import interval
from speech2image.metrics.protocol import Metric, Protocol, measured
from speech2image.metrics.ranking import Matrix

PROMPT = "A photo depicts "
"""What the paper puts before each caption."""


def clip_scores(images: Matrix, captions: Matrix) -> npt.NDArray[np.float64]:
    """Return 2.5 max(cos, 0) of paired rows of `(N, E)` embeddings, `(N,)`.

    Source:  Hessel et al. 2021, section 3.

    >>> clip_scores(np.array([[1.0, 0.0], [1.0, 0.0]]), np.array([[2.0, 0.0], [-1.0, 0.0]])).tolist()
    [2.5, 0.0]
    """
    left, right = (torch.as_tensor(x).detach().cpu().double() for x in (images, captions))
    values: npt.NDArray[np.float64] = (
        2.5 * torch.nn.functional.cosine_similarity(left, right, dim=1).clamp(min=0).numpy()
    )
    return values


def clip_score(
    images: Matrix, captions: Matrix, *, protocol: Protocol | None, name: str = "clip_score", note: str = "",
    groups: npt.ArrayLike | None = None, seed: int = 0,
) -> Metric:  # fmt: skip
    """Measure the mean CLIPScore of paired embeddings.

    Args:
        images: `(N, E)` of CLIP's image tower.
        captions: `(N, E)` of its text tower, of the transcripts with `PROMPT` before them.
        protocol: protocol of the number.
        name: `clip_score`, or with the name of a control behind it.
        note: one sentence for the reader.
        groups: `(N,)` what to resample together.
        seed: seed of the bootstrap.
    """
    spread = interval(clip_scores(images, captions), seed=seed, groups=groups)
    return measured(
        protocol, name, spread,
        count=spread.count, note=note, prompt=PROMPT,
    )  # fmt: skip
