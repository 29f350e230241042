"""The parallel form of SpeechCLIP beyond its recorded numbers, which are in tests/parity."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from speech2image.errors import ConfigError
from speech2image.losses.contrastive import MaskedContrastiveLoss
from speech2image.speech import towers
from speech2image.speech.small_tower import SmallTower
from speech2image.speech.speechclip import ParallelBranch, SpeechClip
from speech2image.speech.towers import TowerSpec
from speech2image.types import SpeechBatch

SPEC = TowerSpec("none", dim=32, num_layers=2, heads=4, ff_dim=48, conv_dim=16)


@pytest.fixture(autouse=True)
def _tiny_tower(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(towers.TOWERS, "tiny", SPEC)
    torch.manual_seed(0)


def small(**settings: Any) -> SpeechClip:
    return SpeechClip("small", embed_dim=24, heads=4, mel_dim=8, small_dim=16, small_layers=2, **settings)


def mel(*lengths: int) -> SpeechBatch:
    return SpeechBatch(torch.randn(len(lengths), max(lengths), 8), torch.tensor(lengths))


def test_condition_has_unit_sentences_and_masked_words() -> None:
    model, batch = small().eval(), mel(80, 41)
    condition = model(batch)
    assert condition.words is not None and condition.mask is not None
    assert condition.sentence.shape == (2, model.sentence_dim) == (2, 24)
    assert condition.words.shape == (2, model.words_dim, 20) and condition.mask.sum(1).tolist() == [20, 11]
    assert torch.allclose(condition.sentence.norm(dim=1), torch.ones(2))
    assert (condition.words[1, :, 11:] == 0).all() and condition.words[1, :, 10].abs().min() > 0


@pytest.mark.parametrize("tower", ["small", "tiny"])
def test_sentence_does_not_depend_on_the_batch(tower: str) -> None:
    if tower == "small":
        model, batch = small().eval(), mel(80, 33)
    else:
        model = SpeechClip("tiny", embed_dim=24, heads=4).eval()
        batch = SpeechBatch(torch.randn(2, 4000, 1), torch.tensor([4000, 1700]))
    short = SpeechBatch(batch.features[1:, : int(batch.lengths[1])], batch.lengths[1:])
    assert torch.allclose(model(batch).sentence[1], model(short).sentence[0], atol=1e-5)


def test_stored_states_and_waveforms_agree() -> None:
    whole = SpeechClip("tiny", embed_dim=24, heads=4).eval()
    stored = SpeechClip("tiny", source="states", embed_dim=24, heads=4).eval()
    trained = {k: v for k, v in whole.state_dict().items() if not k.startswith("audio_encoder.encoder.")}
    stored.load_state_dict(trained)
    batch = SpeechBatch(torch.randn(2, 3000, 1), torch.tensor([3000, 3000]))
    states = whole.audio_encoder.encoder(batch).states
    features = states.permute(1, 2, 0, 3).flatten(2)
    assert features.shape[2] == stored.mel_dim
    given = SpeechBatch(features, torch.full((2,), features.shape[1]))
    assert torch.allclose(stored(given).sentence, whole(batch).sentence, atol=1e-6)


def test_only_the_head_trains_on_a_frozen_tower() -> None:
    model = SpeechClip("tiny", embed_dim=24, heads=4).train()
    loss = MaskedContrastiveLoss(trainable=True)
    batch = SpeechBatch(torch.randn(3, 2000, 1), torch.tensor([2000, 1000, 800]))
    image = torch.nn.functional.normalize(torch.randn(3, 24), dim=1)
    loss(model(batch).sentence, image, torch.arange(3)).backward()
    trained = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert trained == {name for name, _ in model.named_parameters() if "audio_encoder.encoder" not in name}
    assert not model.audio_encoder.encoder.training and model.parallel_branch.training


def test_small_tower_trains_along_and_learns_pairs() -> None:
    model, loss = small(dropout=0.0), MaskedContrastiveLoss(trainable=True)
    batch, image = mel(40, 36, 40, 30), torch.nn.functional.normalize(torch.randn(4, 24), dim=1)
    optimizer = torch.optim.Adam([*model.parameters(), *loss.parameters()], lr=2e-3)
    values = []
    for _ in range(40):
        value = loss(model(batch).sentence, image, torch.arange(4))
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        values.append(value.item())
    untouched = [name for name, p in model.named_parameters() if p.grad is None]
    assert {name.rsplit(".", 1)[0].rsplit(".", 1)[-1] for name in untouched} <= {"predict", "encoder"}
    assert values[-1] < 0.1 * values[0]
    found = model.eval()(batch).sentence @ image.T
    assert found.argmax(dim=1).tolist() == [0, 1, 2, 3]


def test_published_normalisation_follows_the_tower() -> None:
    with torch.device("meta"):
        found = {
            name: SpeechClip(name, source="states").audio_encoder.weightedsum_layer.normalise
            for name in ("hubert_base", "hubert_large", "wavlm_large")
        }
        forced = SpeechClip("hubert_base", source="states", normalise_states=True)
    assert found == {"hubert_base": False, "hubert_large": True, "wavlm_large": True}
    assert forced.audio_encoder.weightedsum_layer.normalise


def test_a_tower_can_be_given_already_built() -> None:
    tower = SmallTower(8, dim=16, num_layers=2)
    model = SpeechClip(tower, embed_dim=8, heads=2)
    assert model.audio_encoder.encoder is tower and model.words_dim == 16


def test_what_cannot_be_built_is_refused() -> None:
    with pytest.raises(ConfigError, match="divide"):
        ParallelBranch(30, 8, heads=4)
    with pytest.raises(ConfigError, match="source"):
        SpeechClip("tiny", source="file")
    with pytest.raises(ConfigError, match="hubert_large"):
        SpeechClip("hubert_larg")
