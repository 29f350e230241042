"""The cascaded form of SpeechCLIP: keywords, their gradients, and CLIP's text transformer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from speech2image.errors import CheckpointError, ConfigError
from speech2image.speech.cascaded import (
    CascadedBranch,
    CascadedSpeechClip,
    ClipText,
    KeywordNorm,
    VectorQuantizer,
    special_columns,
)
from speech2image.types import SpeechBatch


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def model(**settings: Any) -> CascadedSpeechClip:
    sizes: dict[str, Any] = {
        "num_keywords": 3,
        "vocab_size": 30,
        "text_dim": 64,
        "text_layers": 2,
        "mel_dim": 8,
    }
    return CascadedSpeechClip("small", **{**sizes, **settings})


def mel(*lengths: int) -> SpeechBatch:
    return SpeechBatch(torch.randn(len(lengths), max(lengths), 8), torch.tensor(lengths))


def test_condition_and_keywords_have_their_shapes() -> None:
    encoder, batch = model(embed_dim=48).eval(), mel(60, 30)
    condition, rows = encoder(batch), encoder.keywords(batch)
    assert condition.sentence.shape == (2, encoder.sentence_dim) == (2, 48)
    assert torch.allclose(condition.sentence.norm(dim=1), torch.ones(2))
    assert rows.shape == (2, 3) and not set(rows.flatten().tolist()) & {0, 2, 3}
    again = encoder(SpeechBatch(batch.features[1:, :30], batch.lengths[1:]))
    assert torch.allclose(condition.sentence[1], again.sentence[0], atol=1e-5)


def test_sentence_in_inference_is_that_of_its_keywords() -> None:
    encoder, batch = model().eval(), mel(60, 30)
    rows, text = encoder.keywords(batch), encoder.clip.model
    assert isinstance(text, ClipText)
    borders = torch.tensor([[2, 3]]).expand(2, -1)
    tokens = torch.cat([borders[:, :1], rows, borders[:, 1:]], dim=1)
    expected = functional.normalize(text.encode_tokens(tokens), dim=1)
    assert torch.allclose(encoder(batch).sentence, expected, atol=1e-5)


def test_gradient_passes_the_choice_and_leaves_clip_alone() -> None:
    encoder = model().train()
    encoder(mel(60, 30, 20)).sentence[:, 0].sum().backward()
    branch_gradients = [p.grad for p in encoder.cascaded_branch.parameters()]
    assert all(g is not None and g.abs().sum() > 0 for g in branch_gradients[:3])
    assert not any(p.requires_grad for p in encoder.clip.parameters())
    assert not any(module.training for module in encoder.clip.model.modules())


def test_quantizer_is_hard_forward_and_soft_backward() -> None:
    quantizer, scores = VectorQuantizer(0.5, (0,)), torch.randn(4, 2, 6, requires_grad=True)
    probe = torch.randn(6)
    found = quantizer.train()(scores)
    assert torch.allclose(found.choices, functional.one_hot(found.columns, 6).float(), atol=1e-6)
    (gradient,) = torch.autograd.grad((found.choices * probe).sum(), scores)
    soft = (scores.index_fill(-1, torch.tensor([0]), -torch.inf) / 0.5).softmax(-1)
    (expected,) = torch.autograd.grad((soft * probe).sum(), scores)
    assert torch.allclose(gradient, expected, atol=1e-6)
    assert not quantizer.eval()(scores).choices.requires_grad


def test_keyword_norm_treats_every_keyword_and_dimension_by_itself() -> None:
    norm, keywords = KeywordNorm(3, 5).train(), torch.randn(16, 3, 5) * 4 + 2
    found = norm(keywords)
    assert torch.allclose(found.mean(0), torch.zeros(3, 5), atol=1e-5)
    assert torch.allclose(found.std(0, correction=0), torch.ones(3, 5), atol=1e-3)
    table = torch.randn(20, 5)
    norm.start_from(table)
    assert torch.allclose(norm(keywords).mean(0), table.mean(0).expand(3, -1), atol=1e-5)


def test_only_keywords_ask_changes_nothing() -> None:
    branch, sequence, lengths = CascadedBranch(16, 8, 2).eval(), torch.randn(2, 7, 16), torch.tensor([7, 4])
    attention = branch.self_att
    stacked = torch.cat([branch.cls.expand(2, -1, -1), sequence], dim=1)
    padding = torch.arange(9) >= (lengths + 2)[:, None]
    everyone, _ = attention.multihead_attn_layer(stacked, stacked, stacked, key_padding_mask=padding)
    expected = attention.attentionBlock_Norm(everyone + stacked)[:, :2]
    assert torch.allclose(attention(stacked, padding, 2), expected, atol=1e-6)
    found, _ = branch(sequence, lengths, torch.randn(12, 8))
    assert found.shape == (2, 2, 8)


# ---- text transformer ---------------------------------------------------------------------------
def by_hand(text: ClipText, tokens: Tensor) -> Tensor:
    """CLIP's text transformer with plain matrix products over all 77 positions."""
    padded = functional.pad(tokens, (0, 77 - tokens.shape[1]))
    states = text.token_embedding.weight[padded] + text.positional_embedding
    for block in text.transformer.resblocks:  # type: ignore[union-attr]
        normed: Tensor = block.ln_1(states)
        heads: int = block.attn.num_heads
        projected = normed @ block.attn.in_proj_weight.T + block.attn.in_proj_bias
        query, key, value = (
            part.unflatten(2, (heads, -1)).transpose(1, 2) for part in projected.chunk(3, dim=2)
        )
        scores = query @ key.transpose(2, 3) / query.shape[-1] ** 0.5
        scores = scores + torch.full((77, 77), -torch.inf).triu(1)
        mixed = (scores.softmax(-1) @ value).transpose(1, 2).flatten(2)
        states = states + mixed @ block.attn.out_proj.weight.T + block.attn.out_proj.bias
        wide = block.ln_2(states) @ block.mlp.c_fc.weight.T + block.mlp.c_fc.bias
        states = (
            states + wide / (1 + torch.exp(-1.702 * wide)) @ block.mlp.c_proj.weight.T + block.mlp.c_proj.bias
        )
    return text.ln_final(states)[:, tokens.shape[1] - 1] @ text.text_projection


def test_text_transformer_equals_all_positions_by_hand() -> None:
    text = ClipText(40, 128, 2, 96, (0, 5, 6))
    tokens = torch.tensor([[5, 9, 11, 6], [5, 1, 30, 6]])
    assert torch.allclose(text.encode_tokens(tokens), by_hand(text, tokens), atol=1e-5)
    keywords = text.token_embedding(tokens[:, 1:3])
    assert torch.allclose(text.encode_keywords(keywords), by_hand(text, tokens), atol=1e-5)


def clip_file(folder: Path, vocab: int) -> Path:
    text = ClipText(vocab, 64, 2)
    state: dict[str, Tensor] = {name: value.half() for name, value in text.state_dict().items()}
    torch.save({**state, "visual.proj": torch.zeros(3), "logit_scale": torch.tensor(4.6)}, folder / "clip.pt")
    return folder / "clip.pt"


def test_clip_weights_and_vocabulary_are_read(tmp_path: Path) -> None:
    path, ids = clip_file(tmp_path, 49408), np.array([0, 320, 537, 49406, 49407])
    np.save(tmp_path / "words.npy", np.stack([ids, np.arange(5)[::-1]], axis=1))
    encoder = model(clip_path=path, vocabulary_path=tmp_path / "words.npy")
    table = torch.load(path)["token_embedding.weight"].float()
    text = encoder.clip.model
    assert isinstance(text, ClipText) and text.special == (0, 3, 4)
    assert encoder.cascaded_branch.vector_quantizer.forbidden == [0, 3, 4]
    assert torch.equal(text.token_embedding.weight, table[torch.from_numpy(ids)])
    start = encoder.cascaded_branch.bn_layer.bn_layer.bias.reshape(64, 3)
    assert torch.allclose(start, table[torch.from_numpy(ids)].mean(0)[:, None].expand(-1, 3), atol=1e-6)


def test_vocabularies_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="49407"):
        special_columns([0, 1, 49406])
    np.save(tmp_path / "flat.npy", np.arange(4))
    with pytest.raises(CheckpointError, match=r"expected int64 \(V, 2\)"):
        model(vocabulary_path=tmp_path / "flat.npy")
    with pytest.raises(CheckpointError, match="cannot be read"):
        model(vocabulary_path=tmp_path / "absent.npy")
    np.save(tmp_path / "words.npy", np.array([[0, 1], [49406, 1], [49407, 1]]))
    with pytest.raises(CheckpointError, match="has 50 tokens"):
        model(clip_path=clip_file(tmp_path, 50), vocabulary_path=tmp_path / "words.npy")
    with pytest.raises(CheckpointError, match="token_embedding"):
        model(clip_path=clip_file(tmp_path, 50))
