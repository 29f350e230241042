"""The space of a search as it is typed, and the same space as a wandb sweep."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("optuna", reason="the extra 'search' is not installed")

from speech2image.app.search_space import Dimension, read_space
from speech2image.app.wandb_sweep import sweep_config, write_sweep
from speech2image.errors import ConfigError
from speech2image.training.study import SearchSettings

SCHEMA = json.loads((Path(__file__).parent / "wandb_sweep_schema.json").read_text())
CONFIG = {"logger": {"wandb": {"project": "p", "entity": None}}, "trainer": {"val_every": 50}}
ALL_FORMS = (
    "experiment=sen_birds", "++optim.lr=tag(log,interval(1e-5,1e-2))", "++generator.depth=range(1,9,2)",
    "++optim.weight_decay=interval(0,0.5)", "++trainer.batch_size=tag(log,int(interval(4,256)))", "++a=int(interval(2,7))",
    "loss=s2igan,li_et_al", "++b=range(0.0,1.0,0.25)", "++c=null,true,3,0.5", "++seed=7", "++d=[1,2]",
)  # fmt: skip


def only(word: str) -> Dimension:
    return read_space([word]).dimensions[0]


@pytest.mark.parametrize(("word", "expected"), [
    ("++optim.lr=interval(0.1,1)", Dimension("optim.lr", "++", low=0.1, high=1)),
    ("x=int(interval(1,8))", Dimension("x", low=1, high=8, is_int=True)),
    ("x=tag(log,int(interval(1,8)))", Dimension("x", low=1, high=8, is_int=True, is_log=True)),
    ("x=range(1,10,3)", Dimension("x", low=1, high=7, step=3, is_int=True)),
    ("x=range(10,1,-3)", Dimension("x", low=4, high=10, step=3, is_int=True)),
    ("x=range(0.0,1.0,0.25)", Dimension("x", low=0.0, high=0.75, step=0.25)),
    ("+x=choice(a,b,a)", Dimension("x", "+", ("a", "b"))),
    ("x=range(3,4)", Dimension("x", choices=("3",))),
    ("x=shuffle(choice(c,a,b))", Dimension("x", choices=("a", "b", "c"))),
    ("x=null,true,'a b',[1,2]", Dimension("x", choices=("null", "True", "'a b'", "[1,2]"))),
])  # fmt: skip
def test_word_is_read_as_a_dimension(word: str, expected: Dimension) -> None:
    assert only(word) == expected
    expected.distribution()


def test_space_keeps_the_other_words_and_a_later_word_replaces() -> None:
    space = read_space(["++seed=1,2", "++lr=interval(0.0,1.0)", "++name=x", "++seed=5"])
    assert [dimension.key for dimension in space.dimensions] == ["lr"]
    assert set(space.fixed) == {"++name=x", "++seed=5"}
    assert space.words({"lr": 0.123456789})[-1] == "++lr=0.123457"


def test_corners_are_the_ends_of_every_dimension() -> None:
    corners = read_space(["++a=x,y,z", "++b=interval(0.5,2)", "++c=range(1,9,2)"]).corners()
    assert corners == [{"a": "x", "b": 0.5, "c": 1}, {"a": "z", "b": 2.0, "c": 7}]


def test_words_of_a_point_are_read_by_hydra_as_its_values() -> None:
    from hydra.core.override_parser.overrides_parser import OverridesParser

    parser = OverridesParser.create()
    for value in (1e-5, 0.001, 123456.7, 1.0):
        word = Dimension("x", low=0, high=1).word(value)
        assert parser.parse_override(word).value() == pytest.approx(value, rel=1e-5)
        assert isinstance(parser.parse_override(word).value(), float)


@pytest.mark.parametrize(("words", "said"), [
    (["++seed=1"], "nothing is varied"), ([], "nothing is varied"),
    (["++lr=interval(2,1)"], "low < high"), (["++lr=tag(log,interval(0,1))"], "0 < low"),
])  # fmt: skip
def test_space_that_cannot_be_searched_is_an_error(words: list[str], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        read_space(words)


def test_grid_of_an_interval_of_floats_says_what_to_type() -> None:
    space = read_space(["++lr=interval(0.0,1.0)", "++seed=1,2"])
    with pytest.raises(ConfigError, match="no end") as error:
        space.grid()
    assert "lr=choice(" in error.value.remedy
    assert (
        len(read_space(["++a=range(0.0,1.0,0.25)", "++b=int(interval(1,3))", "++c=x,y"]).grid()) == 4 * 3 * 2
    )


# ---- export -----------------------------------------------------------------------------------
def exported(tmp_path: Path, **settings: Any) -> dict[str, Any]:
    import yaml

    path = tmp_path / "wandb.yaml"
    write_sweep(path, read_space(ALL_FORMS), SearchSettings(**settings), 12, CONFIG)
    found: dict[str, Any] = yaml.safe_load(path.read_text())
    return found


@pytest.mark.parametrize("sampler", ["tpe", "random"])
@pytest.mark.parametrize("pruner", ["median", "none"])
def test_export_is_valid_under_wandbs_own_schema(tmp_path: Path, sampler: str, pruner: str) -> None:
    import jsonschema

    found = exported(tmp_path, sampler=sampler, pruner=pruner)
    jsonschema.Draft7Validator(SCHEMA).validate(found)
    assert ("early_terminate" in found) == (pruner != "none")
    assert found["method"] == {"tpe": "bayes", "random": "random"}[sampler]
    assert found["command"][:5] == ["${env}", "${program}", "train", "experiment=sen_birds", "seed=7"]
    broken = {**found, "parameters": {"lr": {"min": 0.1}}}
    assert not jsonschema.Draft7Validator(SCHEMA).is_valid(broken)  # the schema is one that can say no


def test_exported_parameters_are_the_space(tmp_path: Path) -> None:
    found = exported(tmp_path, warmup_steps=120)["parameters"]
    assert found["optim.lr"] == {"distribution": "log_uniform_values", "min": 1e-5, "max": 1e-2}
    assert found["optim.weight_decay"] == {"distribution": "uniform", "min": 0.0, "max": 0.5}
    assert found["generator.depth"] == {"values": [1, 3, 5, 7]}
    assert found["a"] == {"distribution": "int_uniform", "min": 2, "max": 7}
    assert found["loss"] == {"values": ["s2igan", "li_et_al"]}
    assert found["c"] == {"values": ["null", "True", 3, 0.5]}
    spread = found["trainer.batch_size"]["values"]
    assert spread[0] == 4 and spread[-1] == 256 and len(spread) <= 16
    assert all(isinstance(value, int) for value in spread)
    assert exported(tmp_path, warmup_steps=120)["early_terminate"]["min_iter"] == 2


def test_export_logs_where_agents_need_it_unless_the_command_says_otherwise() -> None:
    assert "logger=online" in sweep_config(read_space(["++a=1,2"]), SearchSettings(), 1, CONFIG)["command"]
    command = sweep_config(read_space(["++a=1,2", "logger=offline"]), SearchSettings(), 1, CONFIG)["command"]
    assert "logger=offline" in command and "logger=online" not in command


def test_export_of_a_metric_that_wandb_never_sees_is_an_error() -> None:
    with pytest.raises(ConfigError, match="what training logs"):
        sweep_config(read_space(["++a=1,2"]), SearchSettings(metric="fid"), 1, CONFIG)
