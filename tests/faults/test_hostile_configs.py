"""Targets, resolvers, tags and keys of Hydra that would run something or write somewhere else: refused in words."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from speech2image.app.cli import main
from speech2image.config.build import build
from speech2image.config.validate import TARGETS, check_targets
from speech2image.errors import ConfigError, DataError, Speech2ImageError
from speech2image.safe.records import read_json, read_yaml

GROUPS = (
    "encoder",
    "vision",
    "generator",
    "codec",
    "data",
    "loss",
    "optim",
    "trainer",
    "callbacks",
    "logger",
    "sampler",
)
HOSTILE = (
    "os.system", "posix.system", "subprocess.Popen", "builtins.eval", "builtins.exec", "hydra.utils.instantiate",
    "torch.nn.parallel.distributed.os.system", "torch.optim.lr_scheduler.types.FunctionType", "torch.nn.Linear",
    "speech2image.app.train.shutil.rmtree", "speech2image.training.runs.os.remove", "speech2image.app.cli.main",
    "speech2image.data.whole.write_whole", "speech2image.speech.conv_gru.ConvGru.__init__", "torch.load", "", " ",
)  # fmt: skip


def refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """Run a command that must be answered with one message and exit code 2."""
    capsys.readouterr()
    code, said = main(words), capsys.readouterr().err
    assert code == 2, f"{words}: {code} {said}"
    assert said.startswith("speech2image: ") and "Traceback" not in said
    return said


@pytest.mark.parametrize("group", GROUPS)
def test_targets_from_the_command_line(group: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert "_target_" in refused(["train", f"{group}._target_=os.system", f"+{group}.command=true"], capsys)
    nested = refused(
        ["train", f"+{group}.inner={{_target_: os.system, _args_: [true], _partial_: true}}"], capsys
    )
    assert "may not be instantiated" in nested and "_args_" in nested


@pytest.mark.parametrize("target", HOSTILE)
def test_only_listed_targets_are_built(target: str) -> None:
    with pytest.raises(ConfigError, match="_target_"):
        build({"_target_": target, "command": "true"})
    assert check_targets({"a": [{"b": {"_target_": target}}]})


def test_every_listed_target_exists_and_is_ours() -> None:
    import importlib

    for target in TARGETS:
        module, _, name = target.rpartition(".")
        assert module.startswith("speech2image.")
        assert isinstance(getattr(importlib.import_module(module), name), type)


@pytest.mark.parametrize("key", ["_args_", "_partial_", "_recursive_", "_convert_", "__init__"])
def test_keys_that_change_the_call_are_refused(key: str) -> None:
    with pytest.raises(ConfigError, match=key):
        build({"_target_": "speech2image.speech.conv_gru.ConvGru", "mel_dim": 40, key: True})


def test_sizes_of_a_configuration_are_bounded_where_it_is_built() -> None:
    with pytest.raises(ConfigError, match="at most"):
        build({"_target_": "speech2image.speech.conv_gru.ConvGru", "rnn_dim": 10**9})


# ---- Hydra ------------------------------------------------------------------------------------
HYDRA = (
    "hydra.launcher._target_=os.system", "++hydra.launcher._target_=os.system", "+hydra.sweeper.x._target_=os.system",
    "hydra.sweeper._target_=os.system", "hydra.sweeper.params={hydra.launcher._target_:os.system}",
    "+hydra.callbacks.x._target_=os.system", "hydra.callbacks={x:{_target_:os.system}}", "hydra.searchpath=[file:///tmp]",
    "hydra.run.dir=/tmp/elsewhere", "hydra.sweep.dir=/tmp/elsewhere", "hydra.output_subdir=../x", "hydra.job.chdir=true",
    "hydra/job_logging=default", "+hydra.job_logging.handlers.x={class: os.system}", "hydra.hydra_logging.version=1",
    "hydra.job.env_set.PATH=/tmp", "hydra={launcher:{_target_:os.system}}", "+encoder@hydra.callbacks.x=sen_small",
    "hydra/launcher=../../../tmp/evil", "hydra/launcher=submitit_evil", "hydra/sweeper=evil", "hydra/env=default",
    "--experimental-rerun=evil.pickle", "--experimental-rer=evil.pickle", "--config-dir=/tmp", "-cd=/tmp", "--config-path=/tmp",
    "--config-name=evil", "--shell-completion=install=bash",
)  # fmt: skip


@pytest.mark.parametrize("word", HYDRA)
def test_hydra_itself_cannot_be_told_to_run_or_write(
    word: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    refused(["train", word, "validate_only=true"], capsys)
    refused(["train", "-m", word, "seed=0,1", "validate_only=true"], capsys)
    assert not list(tmp_path.iterdir())


def test_the_rerun_of_hydra_would_have_run_a_pickle(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    class Harm:
        def __reduce__(self) -> tuple[Any, tuple[str]]:
            return os.mkdir, (str(tmp_path / "canary"),)

    (tmp_path / "config.pickle").write_bytes(pickle.dumps(Harm()))
    refused(["train", f"--experimental-rerun={tmp_path / 'config.pickle'}"], capsys)
    refused(["train", "--experimental-rerun", f"{tmp_path / 'config.pickle'}"], capsys)
    assert not (tmp_path / "canary").exists()
    script = tmp_path / "naive.py"
    script.write_text("import hydra\nhydra.main(version_base='1.3', config_path=None)(print)()\n")
    command = [sys.executable, str(script), "--experimental-rerun", str(tmp_path / "config.pickle")]
    subprocess.run(command, check=False, capture_output=True, cwd=tmp_path, timeout=120)
    assert (tmp_path / "canary").is_dir(), "Hydra alone runs it, so the test above can fail"


@pytest.mark.parametrize("name", ["../evil", "/tmp/evil", "a/b", "", "..", "-x", "a\nb"])
def test_names_of_runs_stay_below_the_runs(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert "name" in refused(["train", f"name={json.dumps(name)}", "validate_only=true"], capsys)


# ---- records of a run that somebody sent ------------------------------------------------------
BOMB = "a: &a [x, x]\n" + "".join(
    f"{chr(98 + n)}: &{chr(98 + n)} [*{chr(97 + n)}, *{chr(97 + n)}]\n" for n in range(24)
)
YAMLS = (
    BOMB, "[" * 5000, "{a: " * 5000, "!!python/object/apply:os.system [true]", "!!python/name:os.system", "a: !!python/tuple [1]",
    "a: " + "9" * 5000, "2001-99-99", "? [1]\n: 2", "<<: 3", "!!int x", "!!float x", "!!timestamp x", "!!binary é", "- " * 300_000,
    "a: !!omap [1]", "\x00", "a: 1_" + "0" * 6000, "!!set {[1]: 2}", "&a [*a]", "x" * 3_000_000,
)  # fmt: skip


@pytest.mark.parametrize("number", range(len(YAMLS)))
def test_hostile_yaml_is_a_value_error(number: int) -> None:
    try:
        read_yaml(YAMLS[number])
    except ValueError:
        return
    assert len(YAMLS[number]) < 6100, "short oddities may be read, bombs not"


def test_json_that_nests_is_a_value_error() -> None:
    for text in ("[" * 100_000, '{"a":' * 100_000, "9" * 5000, "\ud800", ""):
        with pytest.raises(ValueError, match=r".*"):
            read_json(text)


@pytest.fixture
def received(painted_run: dict[str, Path], tmp_path: Path) -> Path:
    """A copy of a trained GAN and its encoder, as another person would send them."""
    shutil.copytree(painted_run["eval_sen"], tmp_path / "runs" / painted_run["eval_sen"].name)
    return Path(shutil.copytree(painted_run["eval_gan"], tmp_path / "runs" / painted_run["eval_gan"].name))


def _edited(run: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    config = yaml.safe_load((run / "config.yaml").read_text())
    edit(config)
    (run / "config.yaml").write_text(yaml.safe_dump(config))


def _commands(run: Path, place: tuple[str, ...]) -> list[list[str]]:
    places = [word for word in place if not word.startswith("paths.runs")]
    runs = [f"paths.runs={run.parent}", *places]
    return [
        ["generate", f"run={run}", "text=a red bird", *runs],
        ["evaluate", f"run={run}", *runs],
        ["generate", f"run={run}", *runs],
    ]


EDITS: dict[str, Callable[[dict[str, Any]], object]] = {
    "target": lambda config: config["generator"].update(_target_="os.system"),
    "our own function as target": lambda config: config["encoder"].update(
        _target_="speech2image.app.train.shutil.rmtree", path="/tmp/none", run=None
    ),
    "nested target": lambda config: config["generator"].update(
        gf_dim={"_target_": "os.system", "_args_": ["true"]}
    ),
    "partial": lambda config: config["generator"].update(_partial_=True),
    "huge": lambda config: config["generator"].update(gf_dim=10**9),
    "other network": lambda config: config["generator"].update(gf_dim=512),
    "resolver": lambda config: config["generator"].update(gf_dim="${oc.env:HOME}"),
    "group is a list": lambda config: config.update(generator=[1, 2]),
    "data elsewhere": lambda config: config["data"].update(name="../x"),
}


@pytest.mark.parametrize("edit", EDITS)
def test_configuration_of_a_received_run_is_checked(
    edit: str, received: Path, place: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    _edited(received, EDITS[edit])
    for words in _commands(received, place):
        if (edit, words[0]) != (
            "other network",
            "evaluate",
        ):  # a fine network; the painted images suffice to score
            refused(words, capsys)


@pytest.mark.parametrize("text", ["!!python/object/apply:os.mkdir ['canary']", BOMB, "[" * 9000, "a: [", ""])
def test_yaml_of_a_received_run_runs_nothing(
    text: str, received: Path, place: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    (received / "config.yaml").write_text(text)
    for words in _commands(received, place)[:2]:
        refused(words, capsys)
    assert not (tmp_path / "canary").exists()


def test_folders_of_a_received_run_do_not_lead_out(
    received: Path, place: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    private = tmp_path / "private"
    private.mkdir()
    (private / "holiday.png").write_bytes(b"precious")
    shutil.rmtree(received / "generated")
    (received / "generated").symlink_to(private)
    for words in _commands(received, place):
        assert "leads out of the run" in refused(words, capsys)
    (received / "generated").unlink()
    (received / "generated").mkdir()
    (received / "generated" / "test").symlink_to(private)
    for words in _commands(received, place):
        assert "leads out of the run" in refused(words, capsys)
    assert [path.name for path in private.iterdir()] == ["holiday.png"]


def test_painting_into_a_folder_leaves_other_pictures_alone(
    received: Path, place: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, above = tmp_path / "mine", tmp_path / "above.png"
    out.mkdir()
    (out / "holiday.png").write_bytes(b"precious")
    above.write_bytes(b"precious")
    lines = [{"file": "../above.png"}, {"file": str(above)}, {"file": "old_0.png"}, {"file": 3}]
    (out / "manifest.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + "[" * 9000)
    (out / "old_0.png").write_bytes(b"of an earlier call")
    assert main([*_commands(received, place)[0], f"out={out}"]) == 0
    assert (out / "holiday.png").exists() and above.exists() and not (out / "old_0.png").exists()


def test_numbers_in_run_json_are_bounded(received: Path) -> None:
    from speech2image.training.runs import read_run

    info = json.loads((received / "run.json").read_text())
    for key, value in (
        ("sentence_dim", 10**12), ("num_tokens", -1), ("grid", [10**9, 1]), ("grid", "ab"), ("run_id", ["a"]), ("stage", {}),
        ("num_classes", 1.5), ("encoder_run", 3),
    ):  # fmt: skip
        (received / "run.json").write_text(json.dumps({**info, key: value}))
        with pytest.raises(DataError, match=key):
            read_run(received)
    assert issubclass(DataError, Speech2ImageError)
