"""Speech towers at toy size: states, masks, files, and what stands in for a tower."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from speech2image.errors import CheckpointError, ConfigError, DataError
from speech2image.speech import towers
from speech2image.speech.small_tower import SmallTower
from speech2image.speech.stored_states import StatesFrontEnd, StatesInput
from speech2image.speech.towers import SpeechTower, TowerSpec, random_windows
from speech2image.types import SpeechBatch

TINY: dict[str, Any] = {"dim": 32, "num_layers": 2, "heads": 4, "ff_dim": 48, "conv_dim": 16}
FORMS = {
    "base": TowerSpec("none", **TINY),
    "large": TowerSpec("none", **TINY, layer_norm=True, normalise_wave=True, conv_bias=True),
    "gated": TowerSpec("none", **TINY, gated_bias=True),
}


@pytest.fixture(autouse=True)
def _tiny_forms(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, spec in FORMS.items():
        monkeypatch.setitem(towers.TOWERS, name, spec)


def tower(name: str, **settings: Any) -> SpeechTower:
    torch.manual_seed(0)
    built = SpeechTower(name, **settings)
    for parameter in built.parameters():  # biases and scales off their trivial starts
        parameter.add_(0.05 * torch.randn_like(parameter))
    return built


def waves(*lengths: int) -> SpeechBatch:
    features = torch.randn(len(lengths), max(lengths), 1, generator=torch.Generator().manual_seed(1))
    return SpeechBatch(features, torch.tensor(lengths))


def alone(batch: SpeechBatch, item: int) -> SpeechBatch:
    length = int(batch.lengths[item])
    return SpeechBatch(batch.features[item : item + 1, :length], batch.lengths[item : item + 1])


@pytest.mark.parametrize("form", FORMS)
def test_states_are_the_input_of_the_first_layer_and_every_output(form: str) -> None:
    built, batch = tower(form), waves(4000)
    seen: list[Tensor] = []
    layers: Any = built.network.encoder.transformer.layers  # type: ignore[union-attr]
    layers[0].register_forward_pre_hook(lambda module, given: seen.append(given[0]))
    found = built(batch)
    assert found.states.shape == (3, 1, 12, 32) and found.lengths.tolist() == [12]
    assert torch.equal(found.states[0], seen[0])
    given = batch.features[:, :, 0]
    if FORMS[form].normalise_wave:
        given = torch.nn.functional.layer_norm(given, given.shape[-1:])
    network: Any = built.network
    expected, _ = network.extract_features(given)
    for state, layer in zip(found.states[1:], expected, strict=True):
        assert torch.allclose(state, layer, atol=1e-5)


def test_last_norm_of_the_large_form_is_not_applied() -> None:
    built, batch = tower("large"), waves(4000)
    before = built(batch).states
    norm: Any = built.network.encoder.transformer.layer_norm  # type: ignore[union-attr]
    norm.weight.data.mul_(3)
    assert torch.equal(built(batch).states, before)


@pytest.mark.parametrize("form", FORMS)
def test_padding_changes_nothing(form: str) -> None:
    built, batch = tower(form), waves(4000, 1500, 400)
    together = built(batch)
    assert together.lengths.tolist() == [12, 4, 1]
    batch.features[1, 1500:] = 9.0
    assert torch.equal(built(batch).states, together.states)
    for item, frames in enumerate(together.lengths.tolist()):
        single = built(alone(batch, item)).states
        assert torch.allclose(together.states[:, item, :frames], single[:, 0], atol=2e-5)


def test_released_lengths_depend_on_the_batch() -> None:
    built, batch = tower("base", legacy_len=True), waves(4000, 1500)
    found = built(batch)
    assert found.lengths.tolist() == [12, 5]
    single = built(alone(batch, 1)).states
    assert (found.states[:, 1, :4] - single[:, 0]).abs().max() > 1e-4


def test_tower_stays_frozen_and_in_evaluation_mode() -> None:
    built = torch.nn.Sequential(tower("base")).train()
    assert built.training and not any(module.training for module in built[0].modules())
    assert not any(parameter.requires_grad for parameter in built.parameters())
    assert not built[0](waves(800)).states.requires_grad


# ---- files --------------------------------------------------------------------------------------
def published_file(folder: Path, form: str) -> Path:
    """Write the weights as torchaudio's files have them, the weight norm in its older names."""
    old = {"parametrizations.weight.original0": "weight_g", "parametrizations.weight.original1": "weight_v"}
    state = {}
    for name, value in tower(form).network.state_dict().items():
        for new, before in old.items():
            name = name.replace(new, before)
        state[name] = value.clone()
    assert any(name.endswith("conv.weight_g") for name in state)
    torch.save(state, folder / "tower.pth")
    return folder / "tower.pth"


def test_published_weights_are_read(tmp_path: Path) -> None:
    path = published_file(tmp_path, "large")
    built, source = SpeechTower("large", path), tower("large")
    assert built.pretrained and not source.pretrained
    assert torch.equal(built(waves(900)).states, source(waves(900)).states)
    again = SpeechTower("large")
    again.load_state_dict(built.state_dict())
    assert again.pretrained


def test_files_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    path = published_file(tmp_path, "large")
    with pytest.raises(CheckpointError, match="no weights of speech tower base: unknown .*and 14 more"):
        SpeechTower("base", path)
    with pytest.raises(CheckpointError, match="sha256"):
        SpeechTower("large", path, sha256="00")
    with pytest.raises(CheckpointError, match=r"nothing is downloaded[\s\S]*download.pytorch.org"):
        SpeechTower("large", tmp_path / "absent.pth")
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match="damaged"):
        SpeechTower("large", path)
    with pytest.raises(ConfigError, match="hubert_base"):
        SpeechTower("hubert_bas")


@pytest.mark.parametrize("lengths", [(4000, 399), (16_000 * 61,)])
def test_utterances_out_of_range_are_refused(lengths: tuple[int, ...]) -> None:
    with pytest.raises(DataError, match=r"400 samples .*60 s.*found"):
        tower("base")(waves(*lengths))


def test_features_in_place_of_waveforms_are_refused() -> None:
    with pytest.raises(ConfigError, match="waveforms"):
        tower("base")(SpeechBatch(torch.randn(1, 500, 40), torch.tensor([500])))


# ---- windows ------------------------------------------------------------------------------------
def test_windows_are_cut_inside_each_utterance() -> None:
    features = torch.arange(90.0).reshape(3, 30, 1)
    batch, starts = SpeechBatch(features, torch.tensor([30, 12, 5])), set()
    for seed in range(200):
        cut = random_windows(batch, np.random.default_rng(seed), 10)
        assert cut.lengths.tolist() == [10, 10, 5] and cut.features.shape == (3, 10, 1)
        first = cut.features[:, 0, 0].int().tolist()
        assert 0 <= first[0] < 20 and 30 <= first[1] < 32 and first[2] == 60
        assert cut.features[0, :, 0].diff().eq(1).all()
        starts.add(first[0])
    assert starts == set(range(20))
    assert random_windows(batch, np.random.default_rng(0), 30) is batch


# ---- stored states ------------------------------------------------------------------------------
def test_stored_states_are_the_towers(tmp_path: Path) -> None:
    path, batch = published_file(tmp_path, "base"), waves(2000, 900)
    front_end = StatesFrontEnd("base", str(path))
    stored = [front_end(alone(batch, item).features[0, :, 0].numpy()) for item in (0, 1)]
    assert front_end.mel_dim == 96 and stored[0].shape == (6, 96) and stored[0].dtype == np.float32
    padded = torch.nn.utils.rnn.pad_sequence([torch.from_numpy(part) for part in stored], batch_first=True)
    found = StatesInput(3, 32)(SpeechBatch(padded, torch.tensor([6, 2])))
    expected = SpeechTower("base", path)(batch)
    assert found.lengths.tolist() == expected.lengths.tolist() == [6, 2]
    for item, frames in enumerate((6, 2)):
        assert torch.allclose(found.states[:, item, :frames], expected.states[:, item, :frames], atol=2e-5)
    with pytest.raises(ConfigError, match="96"):
        StatesInput(3, 32)(SpeechBatch(torch.randn(1, 4, 64), torch.tensor([4])))


def test_stored_states_of_long_utterances_are_cut(tmp_path: Path) -> None:
    front_end = StatesFrontEnd("base", str(published_file(tmp_path, "base")), max_frames=7)
    assert front_end(waves(9000).features[0, :, 0].numpy()).shape == (7, 96)


# ---- small tower --------------------------------------------------------------------------------
@pytest.mark.parametrize(("mel_dim", "lengths", "steps"), [(40, (61, 30, 1), 16), (1, (3000, 900, 1), 11)])
def test_small_tower_does_not_depend_on_the_batch(mel_dim: int, lengths: tuple[int, ...], steps: int) -> None:
    torch.manual_seed(0)
    built = SmallTower(mel_dim, dim=16, num_layers=2).eval()
    features = torch.randn(3, max(lengths), mel_dim)
    batch = SpeechBatch(features, torch.tensor(lengths))
    together = built(batch)
    assert together.states.shape == (3, 3, steps, 16)
    for item in range(3):
        single = built(alone(batch, item))
        count = int(single.lengths[0])
        assert count == int(together.lengths[item]) == single.states.shape[2]
        assert torch.allclose(together.states[:, item, :count], single.states[:, 0], atol=1e-5)


@pytest.mark.parametrize("mel_dim", [8, 1])
def test_masked_prediction_learns_from_speech_alone(mel_dim: int) -> None:
    torch.manual_seed(0)
    built = SmallTower(mel_dim, dim=32, num_layers=2, dropout=0.0)
    if mel_dim == 1:
        place = torch.arange(6400)[None, :, None] / 16_000
        pitch = torch.tensor([200.0, 800.0, 1600.0, 3200.0])[:, None, None]
        batch = SpeechBatch(torch.sin(2 * torch.pi * pitch * place), torch.full((4,), 6400))
    else:
        batch = SpeechBatch(torch.randn(4, 1, mel_dim).expand(-1, 64, -1), torch.tensor([64, 64, 50, 40]))
    optimizer = torch.optim.Adam(built.parameters(), lr=3e-3)
    losses = []
    for step in range(60):
        loss = built.masked_prediction_loss(batch, np.random.default_rng(step))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert np.mean(losses[-5:]) < 0.5 * np.mean(losses[:5])


def test_hidden_steps_do_not_reach_the_prediction() -> None:
    torch.manual_seed(0)
    built, rng = SmallTower(8, dim=16, num_layers=1), np.random.default_rng(0)
    batch = SpeechBatch(torch.randn(1, 64, 8), torch.tensor([64]))
    built.masked_prediction_loss(batch, rng, share=4.0, span=4).backward()  # hides every step
    assert all(p.grad is None or p.grad.abs().max() == 0 for p in built.convolutions.parameters())
    built.masked_prediction_loss(batch, rng).backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in built.convolutions.parameters())


@pytest.mark.parametrize("mel_dim", [40, 1])
@pytest.mark.parametrize("length", [1, 319, 320, 321, 4099])
def test_masked_prediction_takes_any_length(mel_dim: int, length: int) -> None:
    torch.manual_seed(0)
    batch = SpeechBatch(torch.randn(2, length, mel_dim), torch.tensor([length, max(1, length // 3)]))
    loss = SmallTower(mel_dim, dim=16, num_layers=1).masked_prediction_loss(batch, np.random.default_rng(0))
    assert loss.isfinite() and loss > 0


def test_small_tower_that_cannot_be_built_is_refused() -> None:
    with pytest.raises(ConfigError, match="multiple of the heads"):
        SmallTower(dim=30, heads=4)
    with pytest.raises(ConfigError, match=r"encoder.mel_dim=12"):
        SmallTower(40, dim=16)(SpeechBatch(torch.randn(1, 9, 12), torch.tensor([9])))
