"""Li et al.: front end, encoder and losses against recorded values of the released code."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from oracle import Oracle

from speech2image.audio.features import FRONT_ENDS, decibel, make_front_end
from speech2image.losses.distill import distillation, normalised_l1
from speech2image.losses.matching import joint_embedding_loss, retrieval_accuracy
from speech2image.metrics.protocol import get_protocol
from speech2image.metrics.retrieval import class_accuracy
from speech2image.speech.cnn_rnn import CnnRnn
from speech2image.types import SpeechBatch

ORACLE = Oracle("li_speech_encoder")
check, ARRAYS = ORACLE.check, ORACLE.arrays
WEIGHTS = {"readme": (0.1, 5.0, 1000.0), "defaults": (1.0, 1.0, 1.0)}


def encoder(calibrated: bool = False) -> CnnRnn:
    state = ORACLE.states(calibrated)["encoder"]
    module = CnnRnn(pool="mean_padded")
    assert list(module.state_dict()) == list(state)
    module.load_state_dict(state)
    return module


def speech() -> SpeechBatch:
    mel = torch.from_numpy(ARRAYS["mel_q"].astype(np.float32) * 0.5).transpose(1, 2)
    return SpeechBatch(mel.contiguous(), torch.from_numpy(ARRAYS["n_frames"]))


def running(module: torch.nn.Module) -> np.ndarray:
    named = module.state_dict().items()
    return np.concatenate([v.numpy() for k, v in named if k.endswith(("running_mean", "running_var"))])


# ---- encoder ------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("mode", "calibrated", "training"),
    [("eval_rule", False, False), ("eval_cal", True, False), ("train", False, True)],
)
def test_encoder_gives_the_recorded_words_and_sentences(mode: str, calibrated: bool, training: bool) -> None:
    batch = speech()
    with torch.no_grad():
        module = encoder(calibrated).train(training)
        condition = module(batch)
        if training:
            check("enc/train/running_after", running(module))
            module = encoder(calibrated).train()
        maps = module.convolve(batch.features)
    assert condition.words is not None
    check(f"enc/{mode}/words_emb_sub", condition.words[:, ::16])
    check(f"enc/{mode}/sent_emb", condition.sentence)
    check(f"enc/{mode}/conv_sub", maps[:, ::64])


def test_encoder_has_the_published_size() -> None:
    count = {flag: CnnRnn(bidirectional=flag) for flag in (True, False)}
    conv = sum(p.numel() for p in count[True].Conv.parameters())
    rnn = sum(p.numel() for p in count[True].RNN.parameters())
    assert (conv, rnn) == (5_369_858, 6_299_648)
    assert sum(p.numel() for p in count[False].parameters()) == 13_766_658
    assert len(count[True].state_dict()) == 61


def test_frames_shrink_as_published() -> None:
    module = CnnRnn(width=16).eval()
    frames, found = torch.zeros(1, 1, 40, 2048), []
    for layer in module.Conv:
        frames = layer(frames)
        found.append(frames.shape[3])
    assert found == [2048, 2048, 2048, 1024, 512, 256, 256, 128, 64, 64, 32]


def sin_fill(module: torch.nn.Module) -> None:
    for owner in module.modules():
        for name, parameter in owner.named_parameters(recurse=False):
            wave = 0.02 * torch.sin(0.37 * torch.arange(parameter.numel(), dtype=torch.float64) + 1)
            is_norm = isinstance(owner, torch.nn.modules.batchnorm._BatchNorm) and name == "weight"
            parameter.data.copy_((wave + is_norm).reshape(parameter.shape).float())


def test_encoder_fingerprint_matches() -> None:
    module = CnnRnn(pool="mean_padded").eval()
    sin_fill(module)
    k = torch.arange(2 * 40 * 2048, dtype=torch.float64).reshape(2, 40, 2048)
    mel = (-40 + 40 * torch.sin(0.013 * k)).float().transpose(1, 2)
    with torch.no_grad():
        condition = module(SpeechBatch(mel, torch.tensor([32, 11]) * 64))
    words, sentence = condition.words, condition.sentence
    assert words is not None
    assert words.mean().item() == pytest.approx(3.894922e-03, rel=2e-4)
    assert words.std().item() == pytest.approx(3.827749e-02, rel=2e-4)
    assert sentence.std().item() == pytest.approx(3.473214e-02, rel=2e-4)
    assert sentence[1, :4].tolist() == pytest.approx(
        [1.175914e-03, 1.222959e-02, -6.654828e-03, 6.704989e-03], abs=5e-6
    )
    assert sentence.norm(dim=1).tolist() == pytest.approx([1.512027, 0.462799], rel=1e-4)
    assert (words[1, :, 11:] == 0).all()
    assert torch.allclose(sentence, words.sum(2) / 32, atol=1e-6)


# ---- losses -------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", WEIGHTS)
def test_losses_and_gradient_match(name: str) -> None:
    image, labels = torch.from_numpy(ARRAYS["fea_image"]), torch.from_numpy(ARRAYS["labels"])
    audio = torch.from_numpy(ARRAYS["fea_audio"]).requires_grad_()
    same, l1_weight, distill_weight = WEIGHTS[name]
    jel = joint_embedding_loss(image, audio, labels, 1.0, same)
    l1, distill = normalised_l1(audio, image), distillation(audio, image)
    loss = jel + l1_weight * l1 + distill_weight * distill
    loss.backward()
    check(f"loss/{name}/loss", loss)
    check(f"loss/{name}/loss_jel", jel)
    check(f"loss/{name}/loss_l1", l1)
    check(f"loss/{name}/loss_distill", distill)
    assert audio.grad is not None
    check(f"loss/{name}/grad_audio", audio.grad)
    check(f"loss/{name}/accuracy_percent", 100 * retrieval_accuracy(image, audio.detach()))


def test_joint_embedding_with_roles_swapped_differs_as_recorded() -> None:
    image, audio = (torch.from_numpy(ARRAYS[name]) for name in ("fea_image", "fea_audio"))
    check(
        "loss/jel_roles_swapped",
        joint_embedding_loss(audio, image, torch.from_numpy(ARRAYS["labels"])),
    )


def test_joint_embedding_fixture_tells_directions_apart() -> None:
    image = torch.arange(12, dtype=torch.float64).reshape(4, 3) / 10
    audio = torch.tensor([[1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 1]], dtype=torch.float64)
    labels = torch.tensor([0, 0, 1, 2])
    values = [
        joint_embedding_loss(image, audio, labels, direction=direction).item()
        for direction in ("column", "row", "both")
    ]
    assert values == pytest.approx([0.558125, 0.588125, 0.573125], abs=1e-9)
    assert retrieval_accuracy(image, audio).item() == 0.25


def test_total_fixture_matches() -> None:
    k = torch.arange(4 * 1024, dtype=torch.float32).reshape(4, 1024)  # the fixture's own precision
    audio, image = torch.sin(0.3 * k), torch.cos(0.2 * k).abs()
    labels = torch.tensor([0, 1, 1, 2])
    jel = joint_embedding_loss(image, audio, labels).item()
    l1, distill = normalised_l1(audio, image).item(), distillation(audio, image).item()
    assert (jel, l1) == (pytest.approx(1.700329, abs=1e-6), pytest.approx(0.01802337, abs=1e-8))
    assert distill == pytest.approx(0.00024115, abs=1e-8)
    assert distillation(audio, image, reduction="batchmean").item() == pytest.approx(0.246939, abs=1e-6)
    assert jel + 5 * l1 + 1000 * distill == pytest.approx(2.031597, abs=1e-5)


def test_class_retrieval_matches() -> None:
    scores = class_accuracy(
        ARRAYS["eval_audio"],
        ARRAYS["eval_image"],
        ARRAYS["eval_labels"],
        protocol=get_protocol("offline"),
        top_k=3,
    )
    check("eval/class_accuracy_percent", np.asarray(100 * scores["class_accuracy"].value))
    check("eval/ap_topk_percent", np.asarray(100 * scores["ap@3"].value))


# ---- front end ----------------------------------------------------------------------------------
def test_front_end_matches() -> None:
    wave = ARRAYS["wave_i16"].astype(np.float32) / 32768
    front_end = FRONT_ENDS["li_et_al"]
    mel = front_end(wave)
    assert mel.dtype == np.float32
    padded = np.full((front_end.pad_frames or 0, 40), front_end.pad_value, np.float32)
    padded[: len(mel)] = mel
    check("mel/n_frames", np.asarray(len(mel)))
    check("mel/logmel", padded[: len(mel) + 9].T)
    check("mel/pad_value_check", np.array([padded[len(mel) :].min(), padded[len(mel) :].max()]))
    cut = make_front_end("li_et_al", max_frames=100)(wave)
    check("mel/logmel_target100", cut.T)
    check("mel/n_frames_target100", np.asarray(len(cut)))
    check("mel/logspec_sub", decibel(front_end.power(wave)).numpy()[::5, ::3])
    check("mel/filter_bank", front_end.filter_bank())
    newer = make_front_end("li_et_al", edges="zeros")(wave)
    check("mel/logmel_zero_padded_frames", newer[:3].T)


def test_front_end_fixture_matches() -> None:
    t = np.arange(16_000) / 16_000
    wave = 0.5 * np.sin(2 * math.pi * 440 * t) + 0.1 * np.sin(2 * math.pi * 2000 * t)
    mel = FRONT_ENDS["li_et_al"](wave)
    assert mel.shape == (101, 40)
    assert (mel.min(), mel.max()) == (-80.0, 0.0)
    assert mel.mean() == pytest.approx(-68.454117, abs=2e-4)
    assert make_front_end("li_et_al", edges="zeros")(wave).mean() == pytest.approx(-68.426483, abs=2e-4)
    assert mel[50, :6].tolist() == pytest.approx([-80, -80, -76.5038, -65.4848, -3.5890, 0.0], abs=2e-4)
    assert mel[0, :4].tolist() == pytest.approx([-30.5556, -29.2177, -26.4821, -21.4536], abs=2e-4)
    bank = FRONT_ENDS["li_et_al"].filter_bank()
    assert bank.sum().item() == pytest.approx(1.000093, abs=2e-6)
    assert bank.max().item() == pytest.approx(0.01354222, abs=1e-8)
    assert (bank.sum(1) > 0).all()


def test_every_output_of_the_oracle_is_compared() -> None:
    source = Path(__file__).read_text()
    for name in ORACLE.tolerance:
        parts = name.split("/")
        generic = name if parts[0] == "mel" or parts[0] == "eval" else parts[-1]
        assert generic in source, name
