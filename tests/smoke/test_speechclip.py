"""SpeechCLIP through the commands: train, embed, evaluate; and what is said when files are missing."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from speech2image.data.embeddings import read_embeddings

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
