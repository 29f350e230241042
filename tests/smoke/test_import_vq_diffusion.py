"""Released VQ-Diffusion files with codec and text tower inside, and S2IVQ-D's three files, paint after import."""

from __future__ import annotations

import json
import runpy
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from speech2image.codecs.vqgan import VqGan
from speech2image.config.schema_encoder import SpeechClipConfig
from speech2image.diffusion.schedule import MaskReplaceSchedule
from speech2image.diffusion.transformer import DiffusionTransformer
from speech2image.speech import towers
from speech2image.speech.speechclip import SpeechClip
from speech2image.text.clip_text import ClipTextEncoder

Command = Callable[..., tuple[int, str, str]]
TESTS = Path(__file__).parents[1]
SPEECHCLIP = runpy.run_path(str(TESTS / "unit" / "hub" / "test_convert_speechclip.py"))
LOOKUP = torch.tensor([0, 1, 2, 3, 4, 5, 6, 0, 1, 2, 3, 4, 5, 6, 0, 1, 2, 3, 4, 5])
FEW = ("sampler=skipping", "sampler.steps=3")
VOCABULARY = "bpe_simple_vocab_16e6.txt.gz"


def codec_state() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    network = VqGan(
        image_px=32, channels=32, channel_mult=(1, 1, 1, 1), num_res_blocks=1, attn_px=(4,), latent_dim=8,
        code_dim=6, num_codes=20,
    )  # fmt: skip
    state = {}
    for name, value in network.state_dict().items():
        halves = {"encoder": "enc", "quant_conv": "enc", "decoder": "dec", "post_quant_conv": "dec"}
        for half in [halves[name.split(".")[0]]] if name.split(".")[0] in halves else ["enc", "dec"]:
            state[f"content_codec.{half}.{name}"] = value
    return state


def released_file(path: Path, text: ClipTextEncoder | None, with_codec: bool = True, **form: Any) -> Any:
    """Write a file as the released training loop does: stale live values, averages, codec and tower inside."""
    torch.manual_seed(1)
    network = DiffusionTransformer(7, (4, 4), 2, 32, 16, **form)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    if form["conditioning"] == "modulation":
        labels = {"emb.weight": (100, 32), "linear.weight": (64, 32), "linear.bias": (64,)}
        extra = {f"blocks.{n}.ln2.{key}": torch.zeros(*size) for n in (0, 1) for key, size in labels.items()}
    else:
        extra = {}
    ema = {f"transformer.{key}": value for key, value in (network.state_dict() | extra).items()}
    ema |= MaskReplaceSchedule(7).released_logs()
    ema |= {"Lt_history": torch.zeros(100), "Lt_count": torch.zeros(100)}
    if text is not None:
        tower = {f"condition_emb.{key}": value.half() for key, value in text.model.state_dict().items()}
        ema |= {**tower, "empty_text_embed": ema.pop("transformer.null_words").double()}
    live = {f"transformer.{key}": torch.zeros_like(value) for key, value in ema.items()}
    torch.save({"last_epoch": 1, "model": live | (codec_state() if with_codec else {}), "ema": ema}, path)
    torch.save(LOOKUP, path.parent / "taming_vqvae_7.pt")
    return network.eval()


@pytest.fixture
def corpus(tiny_cub: Path) -> tuple[str, ...]:
    return (
        "data=cub200", f"data.root={tiny_cub}", "data.max_captions=1", "data.speak=espeak", "data.image_px=32"
    )  # fmt: skip


@pytest.fixture
def vocabulary(place: tuple[str, ...], tiny_clip: tuple[str, ...]) -> Path:
    """The short vocabulary where the published one is looked for."""
    weights = Path(place[3].split("=")[1])
    weights.mkdir(exist_ok=True)
    source = next(word.split("=")[1] for word in tiny_clip if "vocabulary_path" in word)
    return Path(shutil.copy(source, weights / VOCABULARY))


def manifest(out: str) -> list[dict[str, Any]]:
    folder = Path(out.strip().splitlines()[-1])
    return [json.loads(line) | {"folder": folder} for line in (folder / "manifest.jsonl").open()]


def first_image(lines: list[dict[str, Any]]) -> np.ndarray:
    return np.asarray(Image.open(lines[0]["folder"] / lines[0]["file"]))


def test_text_file_with_everything_inside_paints(
    command: Command, tmp_path: Path, corpus: tuple[str, ...], vocabulary: Path,
    monkeypatch: pytest.MonkeyPatch, place: tuple[str, ...],
) -> None:  # fmt: skip
    from speech2image.training.runs import load_encoder, load_transformer, open_run

    torch.manual_seed(2)
    text = ClipTextEncoder(
        vocabulary_path=vocabulary, vocabulary_sha256=None, vocab_size=519, width=64, layers=2, embed_dim=48
    )
    network = released_file(
        tmp_path / "cub.pth", text, conditioning="cross", words_dim=64, null="learned", num_null_words=77
    )
    said = ("system=vq_diffusion", f"checkpoint={tmp_path}/cub.pth", *corpus)
    code, out, err = command("import", *said)
    assert code == 2 and "7 codes of the network, 20 of the codec" in err and "code_map=" in err
    code, out, err = command("import", *said, f"code_map={tmp_path}/taming_vqvae_7.pt")
    assert code == 0, err
    run = open_run(out.strip().splitlines()[-1], Path(place[2].split("=")[1]), "diffusion")
    assert run.info["words_dim"] == 64 and run.config["generator"]["num_null_words"] == 77
    mine = load_transformer(run)
    assert all(torch.equal(value, mine.state_dict()[name]) for name, value in network.state_dict().items())
    code, _, err = command("generate", f"run={run.path}", "text=a red bird")
    assert code == 2 and f"{VOCABULARY} has sha256" in err and "Traceback" not in err
    monkeypatch.setattr("speech2image.text.clip_text.ClipTokenizer", unchecked_tokenizer)
    encoder = load_encoder(open_run(run.info["encoder_run"], run.path.parent, "encoder"))[0]
    assert (encoder(["a red bird"]).words - text(["a red bird"]).words).abs().max() < 2e-3, "half precision"
    painted = {}
    for words in ("a red bird", "bird"):
        code, out, err = command(
            "generate", f"run={run.path}", f"text={words}", "sampler.guidance_scale=2", *FEW
        )
        assert code == 0, err
        lines = manifest(out)
        assert lines[0]["caption"] == words and lines[0]["wave"] is None
        painted[words] = first_image(lines)
    assert painted["bird"].shape == (32, 32, 3)
    code, out, err = command("generate", f"run={run.path}", "split=test", "num_images=4", *FEW)
    assert code == 0, err
    generated = manifest(out)
    assert len(generated) == 24 and all(line["caption"] and line["wave"] is None for line in generated)
    code, _, err = command("generate", f"run={run.path}", f"speech={tmp_path}/none.wav")
    assert code == 2 and "reads captions, it hears no speech" in err


def unchecked_tokenizer(path: Path, sha256: str) -> Any:
    """The tokenizer for a short vocabulary, whose hash is not the published one."""
    from speech2image.text.tokenizer import ClipTokenizer

    return ClipTokenizer(path, None)


def test_text_file_without_tower_or_codec_says_what_is_missing(
    command: Command, tmp_path: Path, corpus: tuple[str, ...]
) -> None:
    path = tmp_path / "bare.pth"
    released_file(path, None, with_codec=False, conditioning="cross", words_dim=512)
    code, _, err = command("import", "system=vq_diffusion", f"checkpoint={path}", *corpus)
    assert code == 2 and "its file holds none" in err and "system=vqgan" in err
    released_file(path, None, conditioning="cross", words_dim=512)
    code, out, err = command(
        "import",
        "system=vq_diffusion",
        f"checkpoint={path}",
        *corpus,
        f"code_map={tmp_path}/taming_vqvae_7.pt",
    )
    assert code == 0, err
    code, _, err = command("generate", f"run={out.strip().splitlines()[-1]}", "text=a bird")
    assert code == 2 and "no weight file at" in err and "clip_vit_b32.safetensors" in err, err


def test_class_file_paints_classes_and_refuses_foreign_ones(
    command: Command, tmp_path: Path, corpus: tuple[str, ...]
) -> None:
    path = tmp_path / "imagenet.pth"
    released_file(path, None, conditioning="class", num_classes=12, mlp="conv")
    code, out, err = command(
        "import",
        "system=vq_diffusion",
        f"checkpoint={path}",
        *corpus,
        f"code_map={tmp_path}/taming_vqvae_7.pt",
    )
    assert code == 0, err
    run = out.strip().splitlines()[-1]
    for number in (3, 11):
        code, out, err = command("generate", f"run={run}", f"class_id={number}", "num_images=2", *FEW)
        assert code == 0, err
        assert [line["class_id"] for line in manifest(out)] == [number, number]
    for words, part in (
        (("class_id=12",), "expected 0 .. 11"),
        (("class_id=1", "text=a bird"), "text and class_id were given together"),
        (("text=a bird",), "hears no speech and reads no text"),
        (("split=test",), "were never told to"),
    ):
        code, _, err = command("generate", f"run={run}", *words)
        assert code == 2 and part in err and "Traceback" not in err, err


def test_s2ivq_d_paints_what_an_imported_speechclip_hears(
    command: Command, tmp_path: Path, corpus: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, spec in SPEECHCLIP["FORMS"].items():
        monkeypatch.setitem(towers.TOWERS, name, spec)
    tower = SpeechClipConfig.__dataclass_fields__["tower"]  # a published tower would take a gigabyte here
    choices = (*tower.metadata["choices"], "hubert_tiny")
    monkeypatch.setattr(tower, "metadata", {**tower.metadata, "choices": choices})
    source = SPEECHCLIP["shaken"](SpeechClip("hubert_tiny", embed_dim=64, ff_dim=96))
    file = SPEECHCLIP["write_checkpoint"](
        tmp_path / "epoch_1.ckpt", SPEECHCLIP["released_state"](source, large=False)
    )
    code, out, err = command("import", "system=speechclip", f"checkpoint={file}", *corpus)
    assert code == 0, err
    encoder = out.strip().splitlines()[-1]
    code, out, err = command("embed", f"run={encoder}", "split=test")
    assert code == 0 and "6 utterances x 64" in out, err
    assert not (Path(encoder) / "embeddings" / "test_words").exists(), "sentences are all that was asked for"
    path = tmp_path / "sta.pth"
    released_file(path, None, conditioning="modulation", mlp="conv")
    code, out, err = command(
        "import", "system=s2ivq_d", f"checkpoint={path}", f"encoder_run={encoder}", *corpus,
        f"code_map={tmp_path}/taming_vqvae_7.pt",
    )  # fmt: skip
    assert code == 0, err
    run = out.strip().splitlines()[-1]
    code, out, err = command("generate", f"run={run}", "split=test", *FEW)
    assert code == 0, err
    lines = manifest(out)
    assert len(lines) == 6 and Path(lines[0]["wave"]).is_file()
    code, out, err = command("generate", f"run={run}", f"speech={lines[0]['wave']}", *FEW)
    assert code == 0, err
    assert first_image(manifest(out)).shape == (32, 32, 3)
