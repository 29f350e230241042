"""Released checkpoints, written as their projects write them, reproduce the recorded outputs.

The files are made from the fill rule of the oracles: with and without `module.`, with and without
batch-norm counters, nested as Li et al. nest them.  Full training-mode and loss parity is tested
beside the models.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from oracle import Oracle

from speech2image.errors import CheckpointError
from speech2image.hub.released import ReleasedNetwork, load_released
from speech2image.types import SpeechBatch

SUB = {64: 3, 128: 7, 256: 13}


recorded = cache(Oracle)


def write_stackgan(folder: Path, calibrated: bool, prefix: str, counters: bool = True) -> Path:
    names = {"G": "netG_210000.pth", "D64": "netD0.pth", "D128": "netD1.pth", "D256": "netD2.pth"}
    for net, state in recorded("stackgan_v2").states(calibrated, prefix).items():
        kept = {k: v for k, v in state.items() if counters or not k.endswith("num_batches_tracked")}
        torch.save(kept, folder / names[net])
    return folder / "netG_210000.pth"


def check_generator(network: ReleasedNetwork, mode: str) -> None:
    arrays = recorded("stackgan_v2").arrays
    text, eps = (torch.from_numpy(arrays[key][0]) for key in ("text", "eps"))
    noise = torch.from_numpy(arrays["z"][1 if mode == "eval_cal" else 0])
    with torch.no_grad():
        output = network.module(text, noise, eps)
    recorded("stackgan_v2").check("G/mu", output.mu)
    recorded("stackgan_v2").check("G/logvar", output.logvar)
    for index, image in enumerate(output.images):
        step = SUB[image.shape[-1]]
        recorded("stackgan_v2").check(f"G/{mode}/img{index}/sub", image[:, :, ::step, ::step])
        recorded("stackgan_v2").check(f"G/{mode}/img{index}/mean", image.double().mean(dim=(2, 3)))
        recorded("stackgan_v2").check(
            f"G/{mode}/img{index}/std", image.double().std(dim=(2, 3), unbiased=False)
        )


@pytest.mark.parametrize(
    ("mode", "prefix", "counters"),
    [("eval_rule", "module.", True), ("eval_cal", "module.", True), ("eval_cal", "", False)],
)
def test_stackgan_checkpoints_reproduce_the_oracle(
    tmp_path: Path, mode: str, prefix: str, counters: bool
) -> None:
    arrays, spec = recorded("stackgan_v2").arrays, recorded("stackgan_v2").spec
    path = write_stackgan(tmp_path, mode == "eval_cal", prefix, counters)
    networks = load_released("stackgan_v2", path)
    sizes = spec["constructor"]
    assert networks["generator"].arguments == {
        "sentence_dim": sizes["TEXT_DIMENSION"],
        "condition_dim": sizes["EMBEDDING_DIM"],
        "noise_dim": sizes["Z_DIM"],
        "gf_dim": sizes["GF_DIM"],
        "num_stages": sizes["BRANCH_NUM"],
        "num_residual": sizes["R_NUM"],
        "base_px": 64,
    }
    check_generator(networks["generator"], mode)
    mu = torch.from_numpy(arrays["G/mu"])
    for size in (64, 128, 256):
        network = networks[f"discriminator_{size}"]
        assert network.arguments == {"image_px": size, "df_dim": 8, "condition_dim": 12}
        kind = "wrong" if mode == "eval_cal" else "real"
        image = torch.from_numpy(arrays[f"{kind}_u8_{size}"]).float() / 127.5 - 1
        with torch.no_grad():
            conditional, unconditional = network.module(image, mu)
        recorded("stackgan_v2").check(f"D{size}/{mode}/cond_logit", conditional)
        recorded("stackgan_v2").check(f"D{size}/{mode}/uncond_logit", unconditional)


def test_discriminators_in_the_wrong_places_are_refused_together(tmp_path: Path) -> None:
    path = write_stackgan(tmp_path, False, "module.")
    swapped = (tmp_path / "netD0.pth").read_bytes()
    (tmp_path / "netD0.pth").write_bytes((tmp_path / "netD2.pth").read_bytes())
    (tmp_path / "netD2.pth").write_bytes(swapped)
    with pytest.raises(CheckpointError, match=r"netD0\.pth is for 256 pixels; netD2\.pth is for 64 pixels"):
        load_released("stackgan_v2", path)


def test_one_stage_generator_is_inferred(tmp_path: Path) -> None:
    first = ("ca_net.", "h_net1.", "img_net1.")
    state = {k: v for k, v in recorded("stackgan_v2").states()["G"].items() if k.startswith(first)}
    torch.save(state, tmp_path / "netG_1.pth")
    network = load_released("stackgan_v2", tmp_path / "netG_1.pth")["generator"]
    assert network.arguments["num_stages"] == 1
    assert network.module.image_sizes == (64,)


@pytest.mark.parametrize("nested", [True, False])
@pytest.mark.parametrize("mode", ["eval_rule", "eval_cal"])
def test_li_encoder_reproduces_the_oracle(tmp_path: Path, mode: str, nested: bool) -> None:
    arrays = recorded("li_speech_encoder").arrays
    state = recorded("li_speech_encoder").states(mode == "eval_cal", "" if nested else "module.")["encoder"]
    nest = {"meta": {"epoch": 3, "best": np.float64(0.5)}, "state_dict": state, "optimizer": {"lr": 1e-3}}
    torch.save(nest if nested else state, tmp_path / "best.pth")
    network = load_released("li_encoder", tmp_path / "best.pth")["encoder"]
    assert network.arguments == {
        "mel_dim": 40,
        "width": 1024,
        "bidirectional": True,
        "pool": "mean_padded",
        "step_frames": 64,
    }
    mel = torch.from_numpy(arrays["mel_q"].astype(np.float32) * 0.5).transpose(1, 2).contiguous()
    with torch.no_grad():
        condition = network.module(SpeechBatch(mel, torch.from_numpy(arrays["n_frames"])))
    recorded("li_speech_encoder").check(f"enc/{mode}/sent_emb", condition.sentence)
    recorded("li_speech_encoder").check(f"enc/{mode}/words_emb_sub", condition.words[:, ::16])


@pytest.mark.parametrize("mode", ["eval_rule", "eval_cal"])
def test_sen_reproduces_the_oracle_with_its_heads(tmp_path: Path, mode: str) -> None:
    arrays = recorded("s2igan_sen").arrays
    found = recorded("s2igan_sen").states(mode == "eval_cal", "module.")
    torch.save(found["speech_encoder"], tmp_path / "best_audio_model.pth")
    torch.save(found["image_encoder"], tmp_path / "best_image_model.pth")
    torch.save(found["classifier"], tmp_path / "best_class_model.pth")
    networks = load_released("sen", tmp_path / "best_audio_model.pth")
    encoder = networks["encoder"]
    assert encoder.arguments["rnn_layers"] == 2
    assert encoder.arguments["hidden_channels"] == 64
    speech = SpeechBatch(torch.from_numpy(arrays["mel"]), torch.from_numpy(arrays["lengths"]))
    with torch.no_grad():
        recorded("s2igan_sen").check(f"sen/{mode}/embedding", encoder.module(speech).sentence)
        embedding = networks["image_head"].module(torch.from_numpy(arrays["image_feature"]))
        embedding = torch.nn.functional.normalize(embedding)
        recorded("s2igan_sen").check("image_encoder/embedding", embedding)
        logits = networks["classifier"].module(torch.from_numpy(arrays["image_emb"]))
        recorded("s2igan_sen").check("loss/distinctive/logits_image", logits)


def test_sen_runs_without_its_companions(tmp_path: Path) -> None:
    torch.save(recorded("s2igan_sen").states()["speech_encoder"], tmp_path / "best_audio_model.pth")
    assert set(load_released("sen", tmp_path / "best_audio_model.pth")) == {"encoder"}
