"""S2IGAN's speech embedding network: front end, both branches and losses against recorded values."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from oracle import Oracle
from torch import Tensor, nn

from speech2image.audio.features import FRONT_ENDS, make_front_end
from speech2image.audio.read import resample_wave
from speech2image.losses.matching import distinctive_loss, matching_loss
from speech2image.speech.conv_gru import ConvGru
from speech2image.types import SpeechBatch
from speech2image.vision.branch import ConvBranch, InceptionBranch

ORACLE = Oracle("s2igan_sen")
check, ARRAYS = ORACLE.check, ORACLE.arrays


def state(network: str, calibrated: bool = False) -> dict[str, Tensor]:
    return ORACLE.states(calibrated)[network]


def encoder(calibrated: bool, pool: str = "attention") -> ConvGru:
    module = ConvGru(mask_attention=False, pool=pool)
    weights = state("speech_encoder", calibrated)
    if pool == "mean":
        weights = {key: value for key, value in weights.items() if not key.startswith("att.")}
    assert list(module.state_dict()) == list(weights)
    module.load_state_dict(weights)
    return module


# ---- speech branch ------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("mode", "calibrated", "training", "pool"),
    [
        ("eval_rule", False, False, "attention"),
        ("eval_cal", True, False, "attention"),
        ("train", False, True, "attention"),
        ("mean_pool", True, False, "mean"),
    ],
)
def test_encoder_gives_the_recorded_embeddings(
    mode: str, calibrated: bool, training: bool, pool: str
) -> None:
    module = encoder(calibrated, pool).train(training)
    batch = SpeechBatch(torch.from_numpy(ARRAYS["mel"]), torch.from_numpy(ARRAYS["lengths"]))
    with torch.no_grad():
        states, steps = module.encode(batch)
        if training:
            named = module.state_dict().items()
            after = [v.numpy() for k, v in named if k.endswith(("running_mean", "running_var"))]
            check("sen/train/running_after", np.concatenate(after))
        check(f"sen/{mode}/before_normalise", module.pool_states(states, steps))
        check(f"sen/{mode}/embedding", module(batch).sentence)
        if mode in ("train", "eval_cal"):
            check(f"sen/{mode}/rnn_sub", states[:, :, ::32])
            check(f"sen/{mode}/steps", steps)
            check(f"sen/{mode}/attention_sub", module.att(states, None)[..., ::32])


def test_sizes_are_the_published_ones() -> None:
    module = ConvGru()
    counts = {name: sum(p.numel() for p in part.parameters()) for name, part in module.named_children()}
    assert counts == {
        "Conv1": 15_424,
        "Conv2": 49_280,
        "bnorm1": 128,
        "bnorm2": 256,
        "rnn": 6_696_960,
        "att": 263_296,
    }
    assert sum(p.numel() for p in ConvGru(hidden_channels=50).parameters()) == 7_011_190


@pytest.mark.parametrize(("frames", "steps"), [(300, 72), (211, 49), (64, 13), (40, 7), (16, 1), (15, 1)])
def test_steps_follow_the_published_lengths(frames: int, steps: int) -> None:
    module = ConvGru(rnn_dim=4, rnn_layers=1).eval()
    with torch.no_grad():
        condition = module(SpeechBatch(torch.randn(1, frames, 40), torch.tensor([frames])))
    assert condition.words is not None
    assert condition.words.shape == (1, 8, steps)


def sin_filled() -> ConvGru:
    module = ConvGru(mask_attention=False).eval()
    for owner in module.modules():
        for name, parameter in owner.named_parameters(recurse=False):
            wave = 0.02 * torch.sin(0.37 * torch.arange(parameter.numel(), dtype=torch.float64) + 1)
            is_norm = isinstance(owner, nn.BatchNorm1d) and name == "weight"
            parameter.data.copy_((wave + is_norm).reshape(parameter.shape).float())
    return module


def test_encoder_fingerprint_matches_and_shows_the_padding_effect() -> None:
    module = sin_filled()
    mel = torch.sin(0.017 * torch.arange(2 * 200 * 40, dtype=torch.float64)).reshape(2, 200, 40).float()
    mel[1, 150:] = 0
    alone = SpeechBatch(mel[1:, :150], torch.tensor([150]))
    with torch.no_grad():
        together = module(SpeechBatch(mel, torch.tensor([200, 150]))).sentence
        single = module(alone).sentence
        module.mask_attention = True
        masked = module(SpeechBatch(mel, torch.tensor([200, 150]))).sentence
    expected = {
        "first": (together[0], [-0.0391224, 0.03807937, 0.01677197, -0.03638633]),
        "second": (together[1], [-0.03905165, 0.03798362, 0.01661855, -0.0365698]),
        "alone": (single[0], [-0.03906035, 0.03797692, 0.01662048, -0.03656785]),
    }
    for name, (found, values) in expected.items():
        assert found[:4].tolist() == pytest.approx(values, abs=1e-7), name
    assert (together[1] - single[0]).abs().max() > 5e-6
    assert torch.allclose(masked[1], single[0], atol=1e-7)


# ---- image branch -------------------------------------------------------------------------------
def test_inception_trunk_gives_the_recorded_features() -> None:
    branch = InceptionBranch()
    weights = state("image_trunk")
    own = [key for key in branch.state_dict() if not key.startswith("L1.")]
    assert own == list(weights)
    branch.load_state_dict(weights, strict=False)
    trunk = sum(p.numel() for name, p in branch.named_parameters() if not name.startswith("L1."))
    assert (trunk, sum(p.numel() for p in branch.L1.parameters())) == (21_785_568, 2_098_176)
    branch.train()
    with torch.no_grad():
        features = branch.features(torch.from_numpy(ARRAYS["picture_u8"]).float() / 127.5 - 1)
    check("image_trunk/features", features)


def test_linear_image_encoder_matches() -> None:
    class GivenFeatures(ConvBranch):
        def features(self, images: Tensor) -> Tensor:
            return images

    branch = GivenFeatures(embed_dim=32)
    branch.L1 = nn.Linear(48, 32)
    branch.L1.load_state_dict({k.removeprefix("L1."): v for k, v in state("image_encoder").items()})
    check("image_encoder/embedding", branch(torch.from_numpy(ARRAYS["image_feature"])))


# ---- losses -------------------------------------------------------------------------------------
def test_losses_and_gradients_match() -> None:
    class_ids, labels = torch.from_numpy(ARRAYS["class_ids"]), torch.from_numpy(ARRAYS["labels"])
    for name, ids in (("match_repeats", class_ids), ("match_no_ids", None)):
        image = torch.from_numpy(ARRAYS["image_emb"]).requires_grad_()
        audio = torch.from_numpy(ARRAYS["audio_emb"]).requires_grad_()
        image_rows, speech_rows = matching_loss(image, audio, ids)
        (image_rows + speech_rows).backward()
        assert image.grad is not None and audio.grad is not None
        check(f"loss/{name}/image_rows", image_rows)
        check(f"loss/{name}/speech_rows", speech_rows)
        check(f"loss/{name}/grad_image", image.grad)
        if ids is not None:
            check(f"loss/{name}/grad_audio", audio.grad)
    classifier = nn.Linear(32, 11)
    classifier.load_state_dict({k.removeprefix("L1."): v for k, v in state("classifier").items()})
    image, audio = torch.from_numpy(ARRAYS["image_emb"]), torch.from_numpy(ARRAYS["audio_emb"])
    logits = classifier(image)
    image_term, speech_term = distinctive_loss(logits, classifier(audio), labels)
    check("loss/distinctive/logits_image", logits)
    check("loss/distinctive/image", image_term)
    check("loss/distinctive/audio", speech_term)
    match = matching_loss(image, audio, class_ids)
    check("loss/total", match[0] + match[1] + image_term + speech_term)


def test_matching_fixture_matches() -> None:
    k = torch.arange(12, dtype=torch.float64).reshape(3, 4)
    image, speech = torch.sin(0.9 * k), torch.sin(0.4 * k + 1)
    plain = [value.item() for value in matching_loss(image, speech)]
    masked = [value.item() for value in matching_loss(image, speech, torch.tensor([0, 1, 0]))]
    assert plain == pytest.approx([8.022386, 7.740104], abs=1e-6)
    assert masked == pytest.approx([7.701099, 7.701267], abs=1e-6)


# ---- front end ----------------------------------------------------------------------------------
def test_front_end_matches() -> None:
    wave = ARRAYS["wave_i16"].astype(np.float32) / 32768
    front_end = FRONT_ENDS["s2igan"]
    check("mel/logmel", front_end(wave))
    check("mel/power", front_end.filter_bank().double() @ front_end.power(wave))
    check("mel/filter_bank", front_end.filter_bank())
    newer = make_front_end("s2igan", edges="zeros", even_bins=False)
    check("mel/logmel_librosa011", newer(wave))
    check("mel/filter_bank_librosa011", newer.filter_bank())


def test_resampled_recording_gives_nearly_the_recorded_features() -> None:
    """The oracle calls this array informational: it depends on the version of another resampler.

    Bands at the old half rate hold only what the filter lets through, near the floor of 1e-6, and
    standardisation blows that up; a wrong filter is off by 3.5 there, an exact one in float64 by 5e-5.
    """
    wave = ARRAYS["wave_i16"].astype(np.float32) / 32768
    resampled = resample_wave(wave, 16_000, 22_050)
    check("mel/resampled_length", np.asarray(len(resampled)))
    difference = np.abs(FRONT_ENDS["s2igan"](resampled) - ARRAYS["mel/logmel_from_16k_resampled"])
    assert difference.max() < 5e-3
    assert np.sqrt((difference**2).mean()) < 3e-4


def test_front_end_fixture_matches() -> None:
    t = np.arange(22_050) / 22_050
    wave = 0.5 * np.sin(2 * math.pi * 440 * t) + 0.1 * np.sin(2 * math.pi * 2000 * t)
    front_end = make_front_end("s2igan", even_bins=False)  # the sheet measured with true bins
    log_mel = torch.log(front_end.filter_bank().double() @ front_end.power(wave) + 1e-6)
    assert log_mel.shape == (40, 101)
    found = [log_mel.min().item(), log_mel.max().item(), log_mel.mean().item()]
    assert found == pytest.approx([-13.8155, 3.8849, -11.59753], abs=1e-4)
    assert front_end(wave)[:3, 0].tolist() == pytest.approx([6.3739, 4.2300, -0.1710], abs=2e-4)


def test_every_output_of_the_oracle_is_compared() -> None:
    source = Path(__file__).read_text()
    for name in ORACLE.tolerance:
        generic = name if name.startswith("mel/") else name.split("/")[-1]
        assert generic in source, name
