"""`report runs=`: which folders names and patterns mean; and where encoders listen, from their weights."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType

import pytest
import torch

from speech2image.app.attention import attend, cls_weights, conv_gru_weights
from speech2image.app.report import find_folders
from speech2image.errors import DataError
from speech2image.speech.conv_gru import ConvGru
from speech2image.speech.speechclip import SpeechClip
from speech2image.types import SpeechBatch


@pytest.fixture
def home(make: ModuleType, corpus: list[dict[str, object]], tmp_path: Path) -> Path:
    """Three runs of one experiment, made on three days, and one of another."""
    home = tmp_path / "runs"
    for seed in range(3):
        folder = make.write_run(
            home / f"gan-0000000{seed}", corpus, "gan_birds", seed=seed, steps=20, size_px=16
        )
        about = json.loads((folder / "run.json").read_text())
        (folder / "run.json").write_text(json.dumps({**about, "created": f"2026-11-0{seed + 1}T00:00:00Z"}))
    make.write_run(home / "enc-00000009", corpus, "sen_birds", stage="encoder", steps=20)
    return home


@pytest.mark.parametrize(
    ("names", "found"),
    [
        (["all"], ["enc-00000009", "gan-00000000", "gan-00000001", "gan-00000002"]),
        (["gan_birds"], ["gan-00000002"]),
        (["gan_birds*"], ["gan-00000000", "gan-00000001", "gan-00000002"]),
        (["gan-0000000[01]"], ["gan-00000000", "gan-00000001"]),
        (["sen_birds", "gan-00000001", "*_birds"], ["enc-00000009", "gan-00000000", "gan-00000001", "gan-00000002"]),
    ],
)  # fmt: skip
def test_names_and_patterns_mean_runs(home: Path, names: list[str], found: list[str]) -> None:
    assert sorted(path.name for path in find_folders(names, home)) == found


def test_a_pattern_of_paths_is_found_wherever_it_is(home: Path, tmp_path: Path) -> None:
    assert len(find_folders([f"{home}/gan-*"], tmp_path / "elsewhere")) == 3


def test_names_that_mean_nothing_are_one_message(home: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        find_folders(["gan_bird", "gan_birds", "nothing*"], home)
    assert "gan_bird, nothing*" in caught.value.message and "gan_birds" in (caught.value.remedy or "")
    with pytest.raises(DataError, match="no run below"):
        find_folders(["all"], tmp_path / "empty")
    with pytest.raises(DataError, match="empty list"):
        find_folders([], home)


def _speech(num_frames: int, mel_dim: int) -> SpeechBatch:
    generator = torch.Generator().manual_seed(0)
    return SpeechBatch(torch.randn(1, num_frames, mel_dim, generator=generator), torch.tensor([num_frames]))


@torch.no_grad()
def test_weights_of_the_gru_pool_its_states() -> None:
    encoder = ConvGru(mel_dim=8, hidden_channels=4, out_channels=6, rnn_dim=5, rnn_layers=1, attention_dim=3,
                      attention_heads=2).eval()  # fmt: skip
    speech = _speech(93, 8)
    weights = conv_gru_weights(encoder, speech)
    assert len(weights) == int(encoder.encode(speech)[1][0]) and sum(weights) == pytest.approx(1.0, abs=1e-5)
    for head in encoder.att.att_heads:  # a head that wants one step only
        head.out.weight.zero_()
        head.hidden.weight.zero_()
    assert conv_gru_weights(encoder, speech) == pytest.approx([1 / len(weights)] * len(weights), abs=1e-6)


@torch.no_grad()
def test_weights_of_the_cls_token_are_what_its_layer_uses() -> None:
    torch.manual_seed(0)
    encoder = SpeechClip("small", embed_dim=12, heads=2, mel_dim=8, small_dim=16, small_layers=2).eval()
    speech = _speech(80, 8)
    weights = cls_weights(encoder, speech)
    assert 0.3 < sum(weights) < 1.0 and min(weights) >= 0.0, "the rest is what the token takes of itself"
    branch = encoder.parallel_branch
    sequence = encoder.audio_encoder(speech)[0][0]
    attention = branch.self_att.model.layers[0].self_attn
    dim = sequence.shape[1]
    stacked = torch.cat([branch.cls[0], sequence])
    query, key = (
        torch.nn.functional.linear(side, attention.in_proj_weight[start : start + dim],
                                   attention.in_proj_bias[start : start + dim]).reshape(len(side), 2, dim // 2)
        for side, start in ((stacked[:1], 0), (stacked, dim))
    )  # fmt: skip
    by_hand = torch.einsum("qhd,khd->hqk", query, key).div((dim // 2) ** 0.5).softmax(-1).mean(0)[0, 1:]
    assert weights == pytest.approx(by_hand.tolist(), abs=1e-6)


def test_a_run_without_weights_gives_nothing(home: Path) -> None:
    assert attend(home / "enc-00000009", {"u": Path("nowhere.wav")}) == {}
