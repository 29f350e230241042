"""Captions through CLIP's text side: what words and sentences are, padding, files, freezing."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

from speech2image.errors import CheckpointError
from speech2image.text.clip_text import ClipTextEncoder
from speech2image.text.clip_transformer import ClipText

CAPTIONS = ["a red bird", "bird"]


@pytest.fixture
def options(tiny_clip: tuple[str, ...]) -> dict[str, Any]:
    pairs = dict(word.removeprefix("encoder.").split("=") for word in tiny_clip)
    named = {key: Path(value) for key, value in pairs.items() if key.endswith("_path")}
    sizes = {key: int(pairs[key]) for key in ("vocab_size", "width", "layers", "embed_dim")}
    return {**named, **sizes, "vocabulary_sha256": None}


def test_words_are_unit_states_and_the_sentence_is_the_projected_end(options: dict[str, Any]) -> None:
    encoder = ClipTextEncoder(**options)
    found = encoder(CAPTIONS)
    assert found.words.shape == (2, 64, 77) and found.mask.all()
    assert torch.allclose(found.words.norm(dim=1), torch.ones(2, 77), atol=1e-5)
    tokens = torch.from_numpy(encoder.tokenizer(CAPTIONS))
    for row, length in enumerate((5, 3)):
        expected = encoder.model.encode_tokens(tokens[row : row + 1, :length])
        assert torch.allclose(found.sentence[row], functional.normalize(expected, dim=1)[0], atol=1e-5)


def test_without_padding_words_end_with_the_text(options: dict[str, Any]) -> None:
    whole, short = (
        ClipTextEncoder(**options)(CAPTIONS),
        ClipTextEncoder(**options, read_padding=False)(CAPTIONS),
    )
    assert short.mask.tolist() == [[True] * 5, [True] * 3 + [False] * 2]
    assert torch.allclose(short.words[0], whole.words[0, :, :5], atol=1e-6)
    assert torch.allclose(short.words[1, :, :3], whole.words[1, :, :3], atol=1e-6)
    assert not short.words[1, :, 3:].any() and torch.allclose(short.sentence, whole.sentence, atol=1e-6)


def test_a_caption_is_encoded_alike_in_any_company(options: dict[str, Any]) -> None:
    encoder = ClipTextEncoder(**options)
    alone, together = encoder(CAPTIONS[:1]), encoder(CAPTIONS)
    assert torch.allclose(alone.words[0], together.words[0], atol=1e-6)
    assert not torch.allclose(together.sentence[0], together.sentence[1], atol=1e-2)


def test_encoder_is_frozen(options: dict[str, Any]) -> None:
    outer = nn.Sequential(ClipTextEncoder(**options)).train()
    assert not any(module.training for module in outer[0].modules())
    assert not any(parameter.requires_grad for parameter in outer.parameters())


def test_files_are_compared_and_missing_ones_named(options: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"has sha256 .* expected 00ff"):
        ClipTextEncoder(**options, sha256="00ff")
    with pytest.raises(CheckpointError, match="no weight file at") as caught:
        ClipTextEncoder(**{**options, "weights_path": tmp_path / "clip.safetensors"})
    assert "open_clip_model.safetensors" in caught.value.remedy
    with pytest.raises(CheckpointError, match=r"token_embedding.weight is \(519, 64\), expected \(600, 64\)"):
        ClipTextEncoder(**{**options, "vocab_size": 600})
    absent = ClipTextEncoder(**{**options, "vocabulary_path": tmp_path / "words.gz"})
    with pytest.raises(CheckpointError, match="vocabulary: no file at"):
        absent(CAPTIONS)


@pytest.mark.skipif(importlib.util.find_spec("open_clip") is None, reason="open_clip_torch is absent")
def test_equal_to_open_clip_with_the_published_vocabulary() -> None:
    from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg
    from open_clip.tokenizer import SimpleTokenizer

    torch.manual_seed(0)
    vision = CLIPVisionCfg(layers=1, width=64, image_size=32, patch_size=16)
    theirs = CLIP(64, vision, CLIPTextCfg(width=128, heads=2, layers=3), quick_gelu=True).eval()
    ours = ClipTextEncoder(width=128, layers=3, embed_dim=64)
    names = ours.model.state_dict()
    ours.model.load_state_dict({key: value for key, value in theirs.state_dict().items() if key in names})
    captions = ["this bird's wings aren't red; 2 ½ of them", "a naïve “quoted” bird — №5", "", "long " * 90]
    tokens = SimpleTokenizer()(captions)
    assert torch.equal(torch.from_numpy(ours.tokenizer(captions)), tokens)
    with torch.no_grad():
        found = ours(captions)
        assert torch.allclose(found.sentence, theirs.encode_text(tokens, normalize=True), atol=1e-5)


def test_text_transformer_gives_one_state_a_token() -> None:
    text = ClipText(40, 64, 2)
    tokens = torch.randint(40, (2, 6))
    states = text.token_states(tokens)
    assert states.shape == (2, 6, 64)
    assert torch.allclose(states[:, -1] @ text.text_projection, text.encode_tokens(tokens), atol=1e-5)
