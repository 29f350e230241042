"""SpeechCLIP through the commands: train, embed, evaluate; and what is said when files are missing."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from speech2image.audio.read import read_wave
from speech2image.data.embeddings import read_embeddings
from speech2image.data.store import RaggedStore
from speech2image.hub.weights import read_weights
from speech2image.speech import towers
from speech2image.types import SpeechBatch

Command = Callable[..., tuple[int, str, str]]
TINY = (
    "data.make.num_train_species=6",
    "data.make.num_test_species=4",
    "data.make.images_per_species=3",
    "data.make.captions_per_image=2",
    "data.max_captions=2",
    "encoder.small_dim=16",
    "vision.width=4",
)


def test_trains_embeds_and_evaluates(command: Command, tmp_path: Path) -> None:
    words = ("train", "experiment=speechclip_birds", "debug=two_steps", *TINY)
    code, out, err = command(*words)
    assert code == 0, err
    run = Path(out.strip().splitlines()[-1])
    validations = [
        json.loads(line)
        for line in (run / "journal.jsonl").read_text().splitlines()
        if "val_recall_10" in line
    ]
    assert len(validations) == 2 and "val_back_recall_10" in validations[-1]
    code, out, err = command("embed", f"run={run}", "split=test", f"out={tmp_path}")
    assert code == 0, err
    sentences = read_embeddings(tmp_path / "test.safetensors").arrays["sentence"]
    assert sentences.shape == (24, 256)
    assert np.allclose(np.linalg.norm(sentences, axis=1), 1, atol=1e-5)
    code, out, err = command("evaluate", f"run={run}")
    assert code == 0, err
    metrics = {one["name"]: one for one in json.loads((run / "metrics.json").read_text())["metrics"]}
    assert {"recall@10", "recall/image_to_speech@10"} <= set(metrics)
    assert metrics["recall@10"]["count"] == 24 and metrics["recall/image_to_speech@10"]["count"] == 12


def test_stored_states_of_a_frozen_tower_are_prepared_once_and_trained_on(
    command: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    spec = towers.TowerSpec("hubert.pth", dim=32, num_layers=2, heads=4, ff_dim=48, conv_dim=16)
    monkeypatch.setitem(towers.TOWERS, "hubert_base", spec)
    torch.manual_seed(0)
    weights = tmp_path / "hubert.pth"
    torch.save(towers.build_network(spec).state_dict(), weights)
    audio = ("audio=states", "audio.tower=hubert_base", f"audio.weights_path={weights}")
    code, out, err = command("prepare", *TINY[:5], *audio)
    assert code == 0 and "states hubert_base" not in out, err
    folder = Path(out.strip().splitlines()[-1].split(": ")[-1])
    store = RaggedStore.open(folder / "mel")
    assert store.dtype == np.float16 and store.shapes[0, 1] == 3 * 32
    code, out, err = command("prepare", *TINY[:5], *audio)
    assert code == 0 and "already prepared, nothing to do" in out, err
    words = (
        "train", "experiment=speechclip_birds", "encoder=speechclip_base", f"encoder.weights_path={weights}",
        "encoder.embed_dim=32", "encoder.heads=4", "encoder.dropout=0", "vision.embed_dim=32", "vision.width=4",
        "debug=two_steps", *TINY[:5],
    )  # fmt: skip
    runs = []
    for source in (("audio=wave_16k", "encoder.source=wave"), (*audio, "encoder.source=states")):
        code, out, err = command(*words, *source)
        assert code == 0, err
        runs.append(run := Path(out.strip().splitlines()[-1]))
        assert sum('"loss"' in line for line in (run / "journal.jsonl").read_text().splitlines()) == 2
    info = [json.loads((one / "run.json").read_text()) for one in runs]
    assert Path(info[1]["data_folder"]) == folder, "training reads what was prepared"
    for row in (0, len(store) - 1):
        wave = torch.from_numpy(read_wave(Path(store.keys[row]), 16_000))[None, :, None]
        states = towers.SpeechTower("hubert_base", weights)(
            SpeechBatch(wave, torch.tensor([wave.shape[1]]))
        ).states
        expected = states[:, 0].permute(1, 0, 2).flatten(1).numpy()
        assert store[row].shape == expected.shape and np.allclose(store[row], expected, atol=4e-3)
    assert not [name for name in read_weights(run / "weights.safetensors")[0] if "encoder.network" in name]
    code, out, err = command("embed", f"run={run}", "split=test")
    assert code == 0, err
    torch.save(towers.build_network(spec).state_dict(), weights)
    code, out, err = command("prepare", *TINY[:5], *audio)
    assert code == 0 and "already prepared" not in out and str(folder) not in out, (
        "other weights, other states"
    )
    weights.unlink()
    code, _, err = command("prepare", *TINY[:5], *audio)
    assert code == 2 and str(weights) in err and "Fetch" in err


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("audio=states",), "stored states need audio=states, encoder.source=states"),
        (("audio=wave_16k", "encoder.source=states"), "stored states need audio=states, encoder.source=states"),
        (("audio=states", "encoder.source=states"), "audio.tower: found hubert_large, but encoder.tower is hubert_base"),
    ],
)  # fmt: skip
def test_states_that_do_not_fit_the_encoder_are_refused(
    words: tuple[str, ...], expected: str, command: Command
) -> None:
    code, _, err = command("train", "experiment=speechclip_birds", "encoder=speechclip_base", *words)
    assert code == 2 and expected in err


@pytest.mark.parametrize("experiment", ["speechclip_cub", "speechclip_flickr8k"])
def test_missing_files_are_named_before_anything_is_prepared(
    command: Command, experiment: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    code, _, err = command("train", f"experiment={experiment}", f"data.root={tmp_path}/nowhere")
    assert code == 2 and "Traceback" not in err
    if importlib.util.find_spec("open_clip") is None:
        assert "pip install 'speech2image[clip]'" in err
        monkeypatch.setattr("speech2image.training.encoder_checks.find_spec", lambda name: object())
        code, _, err = command("train", f"experiment={experiment}", f"data.root={tmp_path}/nowhere")
    assert code == 2 and "Traceback" not in err
    for part in ("hubert_fairseq_large_ll60k.pth", "clip_rn50x64.safetensors", "download.pytorch.org"):
        assert part in err
