"""SpeechCLIP: front end, layer sum, branch, loss, retrieval and sizes against recorded values."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fill import fill
from oracle import Oracle
from torch import Tensor, nn
from torch.nn import functional

from speech2image.losses.contrastive import MaskedContrastiveLoss, contrastive_loss
from speech2image.metrics.protocol import get_protocol
from speech2image.metrics.retrieval import recall_at_k
from speech2image.speech.cascaded import CascadedSpeechClip, ClipText, KeywordNorm, VectorQuantizer
from speech2image.speech.speechclip import ParallelBranch, SpeechClip, WeightedSum
from speech2image.speech.towers import SpeechTower, conv_length, legacy_length, normalise_waves

ORACLE = Oracle("speechclip_parallel_head")
check, ARRAYS = ORACLE.check, ORACLE.arrays
SPEC = ORACLE.spec
CASES = ("uniform", "weighted")


class Head(nn.Module):
    """What the oracle fixes, in the released names."""

    def __init__(self) -> None:
        super().__init__()
        self.audio_encoder = nn.Module()
        self.audio_encoder.weightedsum_layer = WeightedSum(5, normalise=True)
        self.criterion = MaskedContrastiveLoss(0.07, trainable=True)
        self.parallel_branch = ParallelBranch(32, 24, heads=4, ff_dim=64)


def head(case: str) -> Head:
    module = Head().eval()
    kept = {name.removeprefix("kept/"): value for name, value in ARRAYS.items() if name.startswith("kept/")}
    state = {name: torch.from_numpy(value) for name, value in fill(SPEC["state"], kept).items()}
    ours = {name: value for name, value in state.items() if name in module.state_dict()}
    assert sorted(set(state) - set(ours)) == [
        f"criterion.{n}" for n in ("eye_mat", "eye_mat_fl", "neg_eye_mat")
    ]
    module.load_state_dict(ours)
    if case == "weighted":
        layer_sum: Any = module.audio_encoder.weightedsum_layer
        layer_sum.weights.data.copy_(torch.from_numpy(ARRAYS["layer_weights"]))
    return module


# ---- front end ----------------------------------------------------------------------------------
def test_front_end_matches() -> None:
    lengths = torch.from_numpy(ARRAYS["wav_len"])
    parts = np.split(ARRAYS["frontend/wav"], np.cumsum(ARRAYS["wav_len"])[:-1])
    waves = nn.utils.rnn.pad_sequence([torch.from_numpy(part) for part in parts], batch_first=True)
    check("frontend/padded_wav", normalise_waves(waves + 0.0, lengths))
    waves[1, 800:] = 7.0  # what lies beyond an item must not matter
    check("frontend/padded_wav", normalise_waves(waves, lengths))
    padding = torch.arange(waves.shape[1]) >= lengths[:, None]
    check("frontend/padding_mask", padding.long())
    check("frame_len", legacy_length(lengths, ARRAYS["hidden_states"].shape[2]))


def test_frames_are_the_convolutions_not_a_rounded_share() -> None:
    samples = torch.tensor([16_000, 102_400])
    assert conv_length(samples).tolist() == [49, 319]
    assert legacy_length(samples, 1000).tolist() == [50, 320]
    lengths = torch.arange(400, 4000, 7)
    layers = [(10, 5), (3, 2), (3, 2), (3, 2), (3, 2), (2, 2), (2, 2)]
    for length, frames in zip(lengths.tolist(), conv_length(lengths).tolist(), strict=True):
        wave = torch.zeros(1, 1, length)
        for kernel, stride in layers:
            wave = functional.max_pool1d(wave, kernel, stride)
        assert wave.shape[2] == frames


# ---- head ---------------------------------------------------------------------------------------
@pytest.mark.parametrize("case", CASES)
def test_head_gives_the_recorded_values_and_gradients(case: str) -> None:
    module = head(case)
    states, frames = torch.from_numpy(ARRAYS["hidden_states"]), torch.from_numpy(ARRAYS["frame_len"])
    layer_sum: Any = module.audio_encoder.weightedsum_layer
    summed = layer_sum(states)
    check(f"{case}/weighted_sum", summed)
    plain = WeightedSum(5, normalise=False)
    plain.load_state_dict(layer_sum.state_dict())
    check(f"{case}/weighted_sum_no_normalisation", plain(states))
    result = module.parallel_branch(summed, frames)
    check(f"{case}/branch_out", result.sentence)
    valid = [result.states[item, :count] for item, count in enumerate(frames.tolist())]
    check(f"{case}/last_hidden_valid", torch.cat(valid))
    audio = functional.normalize(result.sentence, dim=1)
    image = functional.normalize(torch.from_numpy(ARRAYS["image_features"]), dim=1)
    check(f"{case}/audio_embedding", audio)
    check(f"{case}/image_embedding", image)
    loss = module.criterion(audio, image, torch.from_numpy(ARRAYS["ids"]))
    check(f"{case}/loss", loss)
    loss.backward()
    parameters = dict(module.named_parameters())
    assert sorted(parameters) == sorted(SPEC["parameters_in_order"])
    assert sum(p.numel() for p in parameters.values()) == SPEC["parameter_count"]
    norms = [parameters[name].grad for name in SPEC["parameters_in_order"]]
    check(f"{case}/grad_norms", np.array([float(g.norm()) for g in norms if g is not None]))


@pytest.mark.parametrize("case", CASES)
def test_head_in_inference_gives_the_same(case: str) -> None:
    module = head(case)
    frames = torch.from_numpy(ARRAYS["frame_len"])
    with torch.no_grad():  # torch takes fused kernels here
        layer_sum: Any = module.audio_encoder.weightedsum_layer
        sentence, _ = module.parallel_branch(layer_sum(torch.from_numpy(ARRAYS["hidden_states"])), frames)
    check(f"{case}/branch_out", sentence)


def test_sine_filled_branch_matches_the_fixture() -> None:
    n, b, t, d = (torch.arange(size, dtype=torch.float64) for size in (3, 2, 5, 64))
    n, b, t, d = torch.meshgrid(n, b, t, d, indexing="ij")
    states = torch.sin(0.1 * (n + 1) * (b + 1) + 0.05 * (t + 1) * (d + 1)).float()
    layer_sum, plain = WeightedSum(3, normalise=True), WeightedSum(3, normalise=False)
    for module in (layer_sum, plain):
        module.weights.data = torch.tensor([0.1, -0.2, 0.3])
    branch = ParallelBranch(64, 32, heads=8, ff_dim=128).eval()
    assert count(branch) == 35_744
    for name, parameter in branch.named_parameters():
        place = torch.arange(parameter.numel(), dtype=torch.float64)
        is_scale = parameter.dim() == 1 and name.endswith("weight")
        wave = 0.2 * torch.sin(1.7 * place + 0.3 * len(name)) + is_scale
        parameter.data.copy_(wave.reshape(parameter.shape))
    with torch.no_grad():
        summed, raw = layer_sum(states), plain(states)
        sentence, _ = branch(summed, torch.tensor([5, 3]))
    assert summed.sum().item() == pytest.approx(0.000011, abs=2e-4)
    assert summed.abs().mean().item() == pytest.approx(0.873650, abs=2e-6)
    assert summed.std().item() == pytest.approx(0.989500, abs=2e-6)
    found = [summed[0, 0, 0], summed[1, 4, 63], raw[0, 0, 0], raw[1, 4, 63]]
    assert [value.item() for value in found] == pytest.approx(
        [-0.986479, -1.049242, 0.253707, -0.640001], abs=2e-6
    )
    assert raw.sum().item() == pytest.approx(112.099448, abs=1e-4)
    assert sentence.sum().item() == pytest.approx(-0.986540, abs=2e-5)
    assert sentence.abs().mean().item() == pytest.approx(0.678057, abs=2e-6)
    assert sentence.std().item() == pytest.approx(0.763106, abs=2e-6)
    corners = [sentence[0, 0], sentence[0, 31], sentence[1, 0], sentence[1, 31]]
    assert [value.item() for value in corners] == pytest.approx(
        [-1.085491, -0.537874, -1.147991, -0.627402], abs=5e-6
    )
    unit = functional.normalize(sentence, dim=1)
    assert unit[:, 0].tolist() == pytest.approx([-0.264524, -0.257583], abs=2e-6)


# ---- loss ---------------------------------------------------------------------------------------
@pytest.mark.parametrize("variant", SPEC["loss_variants"])
def test_loss_variants_and_gradients_match(variant: str) -> None:
    settings = SPEC["loss_variants"][variant]
    first, second = (torch.from_numpy(ARRAYS[f"loss/{side}"]).requires_grad_() for side in "ab")
    ids = torch.from_numpy(ARRAYS["loss/ids"]) if settings["ids"] else None
    directions = {"a_to_b": "forward", "b_to_a": "backward"}
    if variant in directions:
        loss = contrastive_loss(first, second, ids, 1 / 0.07, direction=directions[variant])
    else:
        trainable = settings.get("temperature_trainable", False)
        module = MaskedContrastiveLoss(
            settings.get("temperature", 0.07),
            trainable,
            settings.get("margin", 0.0),
            settings.get("dcl", False),
        )
        loss = module(first, second, ids)
    loss.backward()
    check(f"loss/{variant}", loss)
    assert first.grad is not None and second.grad is not None
    check(f"loss/{variant}/grad_a", first.grad)
    check(f"loss/{variant}/grad_b", second.grad)
    if f"loss/{variant}/grad_temperature" in ARRAYS:
        assert module.temperature is not None and module.temperature.grad is not None
        check(f"loss/{variant}/grad_temperature", module.temperature.grad)


def test_loss_fixture_matches() -> None:
    i, j = torch.meshgrid(torch.arange(4.0), torch.arange(3.0), indexing="ij")
    first = functional.normalize(torch.sin(1 + i + 2 * j), dim=1)
    second = functional.normalize(torch.cos(0.5 * i + j), dim=1)
    ids, repeated = torch.arange(4), torch.tensor([5, 6, 5, 7])

    def loss(given: Tensor, **settings: Any) -> float:
        return MaskedContrastiveLoss(**settings)(first, second, given).item()

    assert loss(ids) == pytest.approx(5.278431, abs=2e-6)
    assert loss(repeated) == pytest.approx(5.008549, abs=2e-6)
    assert loss(repeated, margin=0.1) == pytest.approx(5.079118, abs=2e-6)
    assert loss(repeated, decoupled=True) == pytest.approx(3.640836, abs=2e-6)
    learned = MaskedContrastiveLoss(trainable=True)
    learned(first, second, repeated).backward()
    assert learned.temperature is not None and learned.temperature.grad is not None
    assert learned.temperature.item() == pytest.approx(2.6592600, abs=1e-6)
    assert learned.temperature.grad.item() == pytest.approx(4.746134, abs=2e-5)


# ---- retrieval ----------------------------------------------------------------------------------
def percent(scores: np.ndarray, query_ids: np.ndarray, gallery_ids: np.ndarray) -> list[float]:
    """Recall of queries against a gallery, given their scores: axes of the gallery stand for its items."""
    ks = tuple(k for k in SPEC["retrieval"]["recall_at"] if k <= len(gallery_ids))
    found = recall_at_k(
        scores, np.eye(len(gallery_ids)), query_ids, gallery_ids, protocol=get_protocol("offline"), ks=ks
    )
    return [100 * found[f"recall@{k}"].value for k in ks]


def test_retrieval_matches_in_both_directions() -> None:
    scores = ARRAYS["retrieval/similarity"].astype(np.float64)
    images, spoken = ARRAYS["retrieval/image_ids"], ARRAYS["retrieval/audio_ids"]
    to_image, to_speech = percent(scores.T, spoken, images), percent(scores, images, spoken)
    expected = SPEC["retrieval"]
    assert to_image == pytest.approx(list(expected["audio_to_image_percent"].values()), abs=1e-5)
    assert to_speech == pytest.approx(list(expected["image_to_audio_percent"].values()), abs=1e-5)
    mean = np.mean([to_image, to_speech], axis=0)
    assert mean.tolist() == pytest.approx(list(expected["mean_percent"].values()), abs=1e-5)


def test_retrieval_fixture_matches() -> None:
    scores = np.array([[0.9, 0.1], [0.2, 0.3], [0.8, 0.7], [0.1, 0.95]])
    spoken, images = np.array([0, 0, 1, 1]), np.array([0, 1])
    assert percent(scores, spoken, images)[0] == 50
    assert percent(scores.T, images, spoken)[0] == 100


# ---- cascaded -----------------------------------------------------------------------------------
def test_keyword_norm_fixture_matches() -> None:
    norm = KeywordNorm(2, 3).eval()
    for legacy, expected in ((True, [[1, 3, 2], [2, 1, 3]]), (False, [[1, 2, 3], [1, 2, 3]])):
        norm.start_from(torch.tensor([[0.0, 1, 2], [2.0, 3, 4]]), legacy)
        assert norm(torch.zeros(1, 2, 3))[0].tolist() == expected


def test_quantizer_fixture_matches() -> None:
    scores = torch.tensor([[[0.9, 0.1, 0.8, 0.7, 0.3, 0.25], [0.2, 0.5, 0.1, 0.9, 0.4, 0.45]]])
    found = VectorQuantizer().eval()(scores)
    assert found.columns.tolist() == [[4, 1]]
    assert found.code_perplexity.item() == pytest.approx(2.0, abs=1e-5)
    assert found.prob_perplexity.item() == pytest.approx(2.999253, abs=2e-6)
    assert found.diversity_loss.item() == pytest.approx(0.500125, abs=2e-6)


# ---- published sizes ----------------------------------------------------------------------------
def count(module: nn.Module, trainable: bool = False) -> int:
    return sum(p.numel() for p in module.parameters() if p.requires_grad or not trainable)


@pytest.mark.parametrize(
    ("tower", "embed_dim", "branch", "layers", "learned", "total"),
    [
        ("hubert_base", 512, 7_483_904, 13, False, 7_483_917),
        ("hubert_large", 768, 13_386_496, 25, True, 13_386_522),
        ("hubert_large", 1024, 13_648_896, 25, True, 13_648_922),
    ],
)
def test_parallel_models_have_the_published_sizes(
    tower: str, embed_dim: int, branch: int, layers: int, learned: bool, total: int
) -> None:
    with torch.device("meta"):
        model, loss = SpeechClip(tower, embed_dim=embed_dim), MaskedContrastiveLoss(trainable=learned)
    assert count(model.parallel_branch) == branch
    assert model.audio_encoder.weightedsum_layer.weights.shape == (layers,)
    assert count(model, trainable=True) + count(loss) == total


@pytest.mark.parametrize(
    ("tower", "text_dim", "vocab", "branch", "total", "clip", "visual"),
    [
        ("hubert_base", 512, 8112, 2_771_968, 2_771_981, 130_133_761, 87_849_216),
        ("hubert_large", 768, 8112, 5_008_128, 5_008_154, 395_901_185, 303_966_208),
        ("hubert_large", 768, 19_787, 5_008_128, 5_008_154, 404_867_585, 303_966_208),
    ],
)
def test_cascaded_models_have_the_published_sizes(
    tower: str, text_dim: int, vocab: int, branch: int, total: int, clip: int, visual: int
) -> None:
    with torch.device("meta"):
        model = CascadedSpeechClip(tower, text_dim=text_dim, vocab_size=vocab)
        loss = MaskedContrastiveLoss(trainable=tower == "hubert_large")
    assert count(model.cascaded_branch) == branch
    assert count(model, trainable=True) + count(loss) == total
    assert count(model.clip) == clip - visual - 1  # one learned scale, which encoders have no use for


def test_xlarge_text_side_has_the_published_size() -> None:
    with torch.device("meta"):
        sizes = [count(ClipText(vocab, 1024, 12)) for vocab in (4894, 8112)]
    assert sizes == [577_675_969 - 420_380_352 - 1, 580_971_201 - 420_380_352 - 1]


@pytest.mark.parametrize(("name", "total"), [("hubert_base", 94_370_944), ("hubert_large", 315_434_112)])
def test_speech_towers_have_the_published_sizes(name: str, total: int) -> None:
    with torch.device("meta"):
        tower = SpeechTower(name)
    assert count(tower) == total and count(tower, trainable=True) == 0


def test_every_output_of_the_oracle_is_compared() -> None:
    source = Path(__file__).read_text()
    for name in ORACLE.tolerance:
        assert (
            name in source or name.split("/")[-1] in source or name.split("/")[1] in SPEC["loss_variants"]
        ), name
