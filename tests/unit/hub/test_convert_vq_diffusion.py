"""Released VQ-Diffusion and S2IVQ-D files: nesting, averages, quirks, what is dropped, what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from fill import fill
from torch import Tensor

from speech2image.diffusion.schedule import MaskReplaceSchedule
from speech2image.diffusion.transformer import DiffusionCondition, DiffusionTransformer
from speech2image.errors import CheckpointError
from speech2image.hub.convert.vq_diffusion import convert, convert_s2ivq_d, read_parts
from speech2image.hub.released import build_converted

ORACLES = Path(__file__).parents[2] / "parity" / "oracles"
NAMES = {
    "text": "vq_diffusion_selfcross_fc",
    "text_abs": "vq_diffusion_selfcross_conv_abs",
    "class": "vq_diffusion_selfcondition_class",
    "speech": "vq_diffusion_selfcondition_s2i",
}
#: Real names of an f16 codec with five levels: 256 pixels become 16x16 codes.
CODEC_SPEC = [
    *((f"enc.encoder.down.{level}.block.0.conv1.weight", (2, 2, 3, 3)) for level in range(5)),
    ("enc.quant_conv.weight", (3, 2, 1, 1)),
    ("enc.quantize.embedding.weight", (6, 3)),
    ("dec.decoder.conv_in.weight", (2, 3, 3, 3)),
    ("dec.post_quant_conv.weight", (3, 3, 1, 1)),
    ("dec.quantize.embedding.weight", (6, 3)),
]


def official(name: str) -> dict[str, Tensor]:
    """The oracle's network in the names of its file."""
    spec = json.loads((ORACLES / f"{NAMES[name]}.json").read_text())["state"]
    import numpy as np

    with np.load(ORACLES / f"{NAMES[name]}.npz") as arrays:
        kept = {key.removeprefix("kept/"): arrays[key] for key in arrays.files if key.startswith("kept/")}
    return {key: torch.from_numpy(value.copy()) for key, value in fill(spec, kept).items()}


def codec_state() -> dict[str, Tensor]:
    values = fill([(name, shape, "float32", "weight") for name, shape in CODEC_SPEC])
    state = {f"content_codec.{name}": torch.from_numpy(value) for name, value in values.items()}
    state["content_codec.dec.quantize.embedding.weight"] = state[
        "content_codec.enc.quantize.embedding.weight"
    ].clone()
    return state


def nested(state: dict[str, Tensor], codec: dict[str, Tensor] | None = None) -> dict[str, Any]:
    """A file as the released training loop writes it: live values stale, averages right."""
    stale = {f"transformer.{name}": torch.full_like(value, 0.5) for name, value in state.items()}
    optimizer = {"state": {0: {"step": 3, "exp_avg": torch.zeros(2)}}, "param_groups": [{"lr": 1e-4}]}
    return {
        "last_epoch": 9,
        "last_iter": 99,
        "model": {**(codec or {}), **stale},
        "ema": state,
        "clip_grad_norm": {"start_iteration": 0, "max_norm": 0.5},
        "optimizer_and_scheduler": {"none": {"optimizer": optimizer}},
    }


def write(folder: Path, content: Any) -> Path:
    torch.save(content, folder / "last.pth")
    return folder / "last.pth"


def recorded(name: str) -> tuple[Tensor, Tensor, DiffusionCondition, Tensor, float]:
    import numpy as np

    with np.load(ORACLES / f"{NAMES[name]}.npz") as arrays:
        xt, t, given, logits = (torch.from_numpy(arrays[key]) for key in ("xt", "t", "cond", "logits"))
    if name == "class":
        condition = DiffusionCondition(class_id=given)
    elif name == "speech":
        condition = DiffusionCondition(sentence=given[:, 0])
    else:
        condition = DiffusionCondition(words=given)
    bounds = json.loads((ORACLES / f"{NAMES[name]}.json").read_text())["tolerance"]["logits"]
    return xt, t, condition, logits, bounds["suggested_atol"]


@pytest.mark.parametrize("nest", ["training", "ema", "model", "data_parallel", "safetensors"])
@pytest.mark.parametrize("name", NAMES)
def test_imported_networks_reproduce_the_oracle(tmp_path: Path, name: str, nest: str) -> None:
    state = official(name)
    prefixed = {f"transformer.{key}": value for key, value in state.items()}
    contents: dict[str, Callable[[], Any]] = {
        "training": lambda: nested(state),
        "ema": lambda: state,
        "model": lambda: {"model": prefixed},
        "data_parallel": lambda: {"model": {f"module.{key}": value for key, value in prefixed.items()}},
        "safetensors": lambda: state,
    }
    if nest == "safetensors":
        from safetensors.torch import save_file

        path = tmp_path / "pruned.safetensors"
        save_file(state, path)
    else:
        path = write(tmp_path, contents[nest]())
    read = convert_s2ivq_d if name == "speech" else convert
    converted = read(path, heads=4, activation="gelu" if name == "text_abs" else "gelu2")
    assert converted.arguments["grid"] == (4, 4)
    assert converted.arguments["num_steps"] == 100
    ours = build_converted(converted, path)
    xt, t, condition, logits, bound = recorded(name)
    with torch.no_grad():
        assert (ours(xt, t, condition) - logits).abs().max() <= bound


def test_everything_that_is_not_taken_is_listed(tmp_path: Path) -> None:
    for name, read, dead in (("text", convert, "attn2.mask"), ("speech", convert_s2ivq_d, "ln2.")):
        state, codec = official(name), codec_state()
        converted = read(write(tmp_path, nested(state, codec)), heads=4, grid=(4, 4))
        assert len(converted.dropped) == len(set(converted.dropped))
        taken = {f"transformer.{key}" for key in converted.state}
        listed = {key for key in converted.dropped if not key.startswith("content_codec.")}
        assert taken | listed == set(state)
        assert not taken & listed
        unused = {key for key in listed if key.startswith("transformer.")}
        assert unused == {key for key in state if dead in key and key.startswith("transformer.")}
        assert {"Lt_history", "Lt_count", "log_at", "log_cumprod_ct"} <= listed


def test_the_position_table_quirk_is_found_from_the_codec(tmp_path: Path) -> None:
    ours = DiffusionTransformer(5, (16, 16), 1, 16, 4, conditioning="none", table=(32, 32), mlp="conv")
    state = {f"transformer.{key}": value for key, value in ours.state_dict().items()}
    state |= MaskReplaceSchedule(5).released_logs()
    for codec, table in ((codec_state(), (32, 32)), (None, (32, 32))):
        arguments = convert(write(tmp_path, nested(state, codec)), heads=4).arguments
        assert (arguments["grid"], arguments["table"]) == ((16, 16), table)
    wide = convert(write(tmp_path, state), heads=4, grid=(32, 32))
    assert wide.arguments["grid"] == wide.arguments["table"]
    eight = {key: v for key, v in codec_state().items() if ".down.4." not in key}
    assert convert(write(tmp_path, nested(state, eight)), heads=4).arguments["grid"] == (32, 32)


def test_learned_empty_text_becomes_the_null_words(tmp_path: Path) -> None:
    state = official("text")
    state["empty_text_embed"] = torch.linspace(-1, 1, 140, dtype=torch.float64).view(7, 20)
    tower = {
        "condition_emb.ln_final.weight": torch.ones(20),
        "condition_emb.text_projection": torch.ones(2).half(),
    }
    path = write(tmp_path, nested({**state, **tower}))
    converted = convert(path, heads=4)
    ours = build_converted(converted, path)
    assert ours.has_null
    xt, t, condition, logits, bound = recorded("text")
    empty = state["empty_text_embed"].float().expand(len(xt), 7, 20)
    with torch.no_grad():
        null = ours(xt, t, condition.with_null(True))
        assert torch.equal(null, ours(xt, t, DiffusionCondition(words=empty)))
        assert (ours(xt, t, condition) - logits).abs().max() <= bound
    assert set(tower) <= set(converted.dropped)
    assert set(read_parts(path).text) == {"ln_final.weight", "text_projection"}


def test_thousand_and_one_labels_mean_a_learned_null(tmp_path: Path) -> None:
    form: dict[str, Any] = {"conditioning": "class", "table": (8, 8), "mlp": "conv"}
    for options in ({"num_classes": 1000, "null": "learned"}, {"num_classes": 1000}):
        ours = DiffusionTransformer(5, (4, 4), 1, 8, 4, **form, **options)
        torch.nn.init.ones_(ours.blocks[0].ln2.linear.bias)
        state = {f"transformer.{key}": value for key, value in ours.state_dict().items()}
        converted = convert(write(tmp_path, {**state, **MaskReplaceSchedule(5).released_logs()}), heads=4)
        assert {key: converted.arguments[key] for key in options} == options
        assert ("null" in converted.arguments) == ("null" in options)


def test_the_codec_inside_is_handed_on(tmp_path: Path) -> None:
    codec = codec_state()
    parts = read_parts(write(tmp_path, nested(official("speech"), codec)))
    assert parts.averaged
    assert len(parts.codec) == len(codec) - 1, "the code book comes twice"
    expected = codec["content_codec.enc.quantize.embedding.weight"]
    assert torch.equal(parts.codec["quantize.embedding.weight"], expected)
    assert "decoder.conv_in.weight" in parts.codec
    codec["content_codec.dec.quantize.embedding.weight"] += 1
    with pytest.raises(CheckpointError, match=r"copy of quantize\.embedding\.weight differ"):
        read_parts(write(tmp_path, nested(official("speech"), codec)))


def changed(name: str, **changes: Tensor | None) -> dict[str, Tensor]:
    state = {**official(name), **{key: value for key, value in changes.items() if value is not None}}
    return {key: value for key, value in state.items() if changes.get(key, value) is not None}


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("text", {"transformer.to_logits.1.weight": None}, r"it has no transformer\.to_logits\.1\.weight"),
        ("text", {"log_at": None}, "it has no log_at"),
        ("text", {"log_bt": None}, "schedule is not the released one, 1 of 8 tables differ: log_bt"),
        ("text", {"log_cumprod_ct": torch.zeros(101)}, "1 of 8 tables differ: log_cumprod_ct"),
        ("text", {"generator.weight": torch.zeros(2)}, r"1 tensors of no known part: generator\.weight"),
        (
            "text",
            {"transformer.to_logits.0.bias": torch.full((48,), torch.nan)},
            "1 values that are not finite",
        ),
        (
            "text",
            {"transformer.blocks.0.attn2.mask": torch.zeros(1, 1, 15, 15)},
            "15 tokens an image do not form",
        ),
    ],
)
def test_damaged_files_are_refused(
    tmp_path: Path, name: str, changes: dict[str, Tensor | None], message: str
) -> None:
    with pytest.raises(CheckpointError, match=message):
        convert(write(tmp_path, changed(name, **changes)), heads=4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"transformer.blocks.1.attn1.key.weight": None}, r"1 missing: blocks\.1\.attn1\.key\.weight"),
        (
            {"transformer.blocks.1.attn9.key.weight": torch.zeros(2)},
            r"1 unknown: blocks\.1\.attn9\.key\.weight",
        ),
        ({"transformer.blocks.1.attn1.key.bias": torch.zeros(4)}, r"of another shape: .*key\.bias \(4,\)"),
    ],
)
def test_missing_and_extra_tensors_are_listed(
    tmp_path: Path, changes: dict[str, Tensor | None], message: str
) -> None:
    path = write(tmp_path, changed("text", **changes))
    with pytest.raises(CheckpointError, match=message):
        build_converted(convert(path, heads=4), path)


def test_wrong_systems_are_named(tmp_path: Path) -> None:
    untrained = official("speech")
    for key, value in untrained.items():
        if key.endswith("ln2.linear.bias"):
            value.zero_()
    with pytest.raises(CheckpointError, match=r"S2IVQ-D .*\n.*system=s2ivq_d"):
        convert(write(tmp_path, untrained), heads=4)
    with pytest.raises(CheckpointError, match=r"VQ-Diffusion text network.*\n.*system=vq_diffusion"):
        convert_s2ivq_d(write(tmp_path, official("text")), heads=4)
    with pytest.raises(CheckpointError, match="width 40 is no multiple of 16 heads"):
        convert(write(tmp_path, official("class")))
    gan = {"ca_net.fc.weight": torch.zeros(2, 2), "h_net1.fc.0.weight": torch.zeros(2, 2)}
    with pytest.raises(CheckpointError, match="looks like a StackGAN-v2"):
        convert(write(tmp_path, gan))


def test_averages_must_cover_the_model(tmp_path: Path) -> None:
    content = nested(official("text"))
    content["ema"] = changed("text", **{"transformer.to_logits.1.bias": None, "extra": torch.zeros(1)})
    with pytest.raises(
        CheckpointError, match=r"1 tensors missing \(.*to_logits\.1\.bias\), 1 unknown \(extra\)"
    ):
        convert(write(tmp_path, content), heads=4)


class Hostile:
    """Would create a file when unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.target,))


def test_hostile_and_cut_files_run_nothing(tmp_path: Path) -> None:
    trap = tmp_path / "ran"
    path = write(tmp_path, {**nested(official("text")), "extra": Hostile(trap)})
    with pytest.raises(CheckpointError, match="was not opened"):
        convert(path, heads=4)
    assert not trap.exists()
    path = write(tmp_path, nested(official("text")))
    content = bytearray(path.read_bytes())
    weight = official("text")["transformer.blocks.2.mlp.0.weight"].numpy().tobytes()
    content[content.index(weight) + 100] ^= 4
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="the checksum of its part"):
        convert(path, heads=4)
    path.write_bytes(content[:-4000])
    with pytest.raises(CheckpointError, match="is damaged"):
        convert(path, heads=4)
    with pytest.raises(CheckpointError, match="there is no checkpoint"):
        convert(tmp_path / "absent.pth")
