"""SpecAugment: what is blanked lies inside the utterance and depends on the generator alone."""

from __future__ import annotations

import numpy as np
import torch

from speech2image.audio.augment import spec_augment

LENGTHS = torch.tensor([50, 30, 1])


def blanked(seed: int = 0, **counts: int) -> torch.Tensor:
    features = torch.ones(3, 60, 10)
    result = spec_augment(features, LENGTHS, np.random.default_rng(seed), **counts, fill=-7.0)
    assert (features == 1).all()
    return result == -7.0


def test_time_masks_are_stretches_inside_the_utterance() -> None:
    widths = []
    for seed in range(300):
        hit = blanked(seed, num_time_masks=1, max_time_frames=8)
        assert (hit == hit[:, :, :1]).all()
        for row, length in zip(hit[:, :, 0], LENGTHS, strict=True):
            assert not row[length:].any()
            edges = row.int().diff(prepend=torch.zeros(1), append=torch.zeros(1)).abs().sum()
            assert edges in (0, 2)
        widths.append(int(hit[0, :, 0].sum()))
        assert hit[2].sum() == 0
    assert set(widths) == set(range(9))


def test_band_masks_cover_all_valid_frames() -> None:
    seen = torch.zeros(10, dtype=torch.bool)
    for seed in range(100):
        hit = blanked(seed, num_freq_masks=2, max_freq_bands=3)
        assert (hit[0, :50] == hit[0, :1]).all()
        assert not hit[0, 50:].any()
        assert hit[0, 0].sum() <= 6
        seen |= hit[0, 0]
    assert seen.all()


def test_the_same_generator_repeats_the_same_masks() -> None:
    counts = {"num_time_masks": 2, "max_time_frames": 9, "num_freq_masks": 1, "max_freq_bands": 4}
    assert (blanked(3, **counts) == blanked(3, **counts)).all()
    assert (blanked(3, **counts) != blanked(4, **counts)).any()


def test_no_masks_change_nothing() -> None:
    assert not blanked().any()
