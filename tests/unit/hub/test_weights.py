"""Reading foreign states: nesting, prefixes, old counters, odd dtypes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from speech2image.errors import CheckpointError
from speech2image.hub.systems import recognise
from speech2image.hub.weights import fill_module, read_foreign, read_weights, save_weights

STATE = {"0.weight": torch.arange(6.0).reshape(2, 3), "0.bias": torch.ones(2)}


@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("nest", [None, "state_dict", "model", "ema"])
def test_nesting_and_prefix_are_taken_off(tmp_path: Path, prefix: str, nest: str | None) -> None:
    state = {prefix + name: value for name, value in STATE.items()}
    content = state if nest is None else {"epoch": 3, "score": np.float32(0.5), nest: state}
    torch.save(content, tmp_path / "x.pth")
    found = read_foreign(tmp_path / "x.pth")
    assert list(found) == list(STATE)
    assert all(torch.equal(found[name], value) for name, value in STATE.items())


def test_a_module_prefix_on_some_names_only_stays(tmp_path: Path) -> None:
    torch.save({"module.a": torch.zeros(1), "b": torch.zeros(1)}, tmp_path / "x.pth")
    assert set(read_foreign(tmp_path / "x.pth")) == {"module.a", "b"}


def test_foreign_safetensors_are_read(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    save_file({f"module.{name}": value for name, value in STATE.items()}, tmp_path / "x.safetensors")
    assert set(read_foreign(tmp_path / "x.safetensors")) == set(STATE)


def test_missing_counters_become_zero_and_other_gaps_do_not() -> None:
    module = nn.BatchNorm1d(2)
    module.num_batches_tracked.fill_(7)
    state = {name: value + 1 for name, value in module.state_dict().items() if "tracked" not in name}
    fill_module(module, state, "here")
    assert module.num_batches_tracked.item() == 0
    assert module.weight.tolist() == [2.0, 2.0]
    del state["weight"]
    with pytest.raises(CheckpointError, match="here does not fit BatchNorm1d. Tensors 1 missing: weight"):
        fill_module(module, state, "here")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.int64, torch.bool])
def test_types_and_shared_memory_survive_saving(tmp_path: Path, dtype: torch.dtype) -> None:
    value = torch.tensor([[0, 1], [1, 1]]).to(dtype)
    state = {"a": value, "b": value, "c": value.t(), "empty": value[:0], "scalar": value[0, 1]}
    digest = save_weights(tmp_path / "deep" / "w.safetensors", state, {"b": 1, "a": "text"})
    found, meta = read_weights(tmp_path / "deep" / "w.safetensors")
    assert meta == {"a": "text", "b": 1}
    assert all(torch.equal(found[name], state[name]) and found[name].dtype == dtype for name in state)
    assert digest == save_weights(tmp_path / "again.safetensors", state, {"a": "text", "b": 1})


def test_unknown_states_are_not_named() -> None:
    assert recognise(["a", "b"]) is None
    assert recognise(["module.ca_net.fc.weight", "module.h_net1.fc.0.weight"]) == (
        "a StackGAN-v2 (or S2IGAN) generator netG"
    )


def test_equal_weights_are_equal_files(tmp_path: Path) -> None:
    state = {"b": torch.rand(3), "a": torch.zeros(5, dtype=torch.int64), "ü": torch.ones(2, 2)}
    files = [
        tmp_path / f"{number}.safetensors" for number in range(16)
    ]  # two keys in an order of chance: 2^-15
    for file in files:
        save_weights(file, state, {"step": 1, "name": "é"})
    assert len({file.read_bytes() for file in files}) == 1
    assert read_weights(files[0])[1] == {"step": 1, "name": "é"}
    assert torch.equal(read_weights(files[0])[0]["b"], state["b"])
