"""Words that Hydra or OmegaConf trip over end in one message of ours, or in what they ask for."""

from __future__ import annotations

import pytest

from speech2image.app.cli import main
from speech2image.config.compose import compose
from speech2image.errors import ConfigError


def refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    capsys.readouterr()
    code, said = main(words), capsys.readouterr().err
    assert code == 2, f"{words}: {code} {said}"
    assert said.startswith("speech2image: ") and "Traceback" not in said and len(said) < 5000
    return said


@pytest.mark.parametrize("value", ["${a}", "${oc.env:NO_SUCH_VARIABLE}", "${oc.decode:'[1'}", "${..}"])
def test_interpolations_that_lead_nowhere(value: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert "optim.schedule" in refused(["train", f"optim.schedule={value}"], capsys)


def test_a_command_that_calls_another_hears_of_interpolations() -> None:
    with pytest.raises(ConfigError, match="Interpolation key 'a' not found"):
        compose("train", ["optim.schedule=${a}"])


def test_a_list_where_a_corpus_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert "data.name: found [1, 2]" in refused(["train", "data=spoken_birds", "data.name=[1,2]"], capsys)


@pytest.mark.parametrize("word", ["paths={}", "{}=1", "seed={}", "{}", "experiment={}", "hydra/launcher={}"])
def test_words_longer_than_any_file_name(word: str, capsys: pytest.CaptureFixture[str]) -> None:
    for letters in ("A" * 19_000, "Aé" * 100):
        refused(["train", word.format(letters)], capsys)


@pytest.mark.parametrize("flag", ["--version", "--hydra-help"])
def test_flags_of_hydra_that_only_show_end_well(flag: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", flag]) == 0
    assert "Hydra" in capsys.readouterr().out
