"""Configuration errors: all of them, in one message, with the nearest names."""

from __future__ import annotations

import dataclasses
import inspect
import typing
from typing import Any

import pytest
import yaml
from hydra.utils import get_class

from speech2image.app.cli import main
from speech2image.config import schema
from speech2image.config.build import build
from speech2image.config.compose import choices, conf_dir
from speech2image.config.root import ROOT_FIELDS, ROOT_HELP
from speech2image.config.runid import run_id
from speech2image.config.validate import check_config, check_fields
from speech2image.errors import ConfigError

#: Keys that are not the constructor's but the discriminator's, and arguments filled at build time.
ELSEWHERE = {
    "StackGenerator": {"df_dim"},
    "VqGan": {"disc_layers", "disc_width"},
    "DiffusionTransformer": {"sentence_scale", "use_words"},
}
FILLED = {"StackGenerator": {"sentence_dim"}}


def train(*overrides: str, capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    code = main(["train", *overrides])
    return code, capsys.readouterr().err


def test_all_problems_stand_in_one_message(capsys: pytest.CaptureFixture[str]) -> None:
    code, message = train(
        "seeed=3", "trainer.max_stpes=3", "trainer.batch_size=-1", "optim.lr=abc", "data.speak=festival",
        capsys=capsys,
    )  # fmt: skip
    assert code == 2
    assert "5 problems" in message
    for part in (
        "did you mean seed?",
        "did you mean trainer.max_steps?",
        "at least 2",
        "expected a number",
        "espeak",
    ):
        assert part in message
    assert "Traceback" not in message


@pytest.mark.parametrize(
    "target", ["os.system", "subprocess.run", "builtins.eval", "speech2image.__main__.script"]
)
def test_hostile_targets_are_refused(target: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, message = train(f"encoder._target_={target}", capsys=capsys)
    assert code == 2 and target in message
    with pytest.raises(ConfigError, match="may not be instantiated"):
        build({"_target_": target})


def test_unknown_experiment_names_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    code, message = train("experiment=sen_brids", capsys=capsys)
    assert code == 2 and "did you mean: sen_birds" in message


def test_unknown_verb_names_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["trian"]) == 2
    assert "did you mean 'train'?" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (("experiment=s2ivq_d_birds", "codec=vqgan_small"), "codec=from_run"),
        (("experiment=s2ivq_d_birds", "generator=stackgan_v2_small"), "generator=vq_diffusion_small"),
        (("experiment=stackgan_v2_birds", "stage=diffusion"), "cannot train a diffusion model"),
        (("experiment=codec_birds", "data.image_px=64"), "codec.image_px is 32 px"),
        (("experiment=codec_birds", "codec=none"), "codec=vqgan_small"),
        (("experiment=codec_birds", "stage=encoder"), "cannot train a speech encoder"),
        (("experiment=sen_birds", "encoder=none"), "encoder=sen_small"),
        (("experiment=sen_birds", "stage=difusion"), "expected one of: encoder, codec, gan, diffusion"),
    ],
)
def test_groups_must_fit_the_stage(
    overrides: tuple[str, ...], expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code, message = train(*overrides, capsys=capsys)
    assert code == 2 and expected in message, message


def test_schema_and_samplers_know_the_same_names() -> None:
    from speech2image.diffusion.samplers import SAMPLERS

    known = set(schema.VARIANTS["sampler"]) - {"from_run"}
    assert known == set(SAMPLERS)
    for name in known:
        fields = {item.name for item in dataclasses.fields(schema.VARIANTS["sampler"][name])}
        own = fields - {"name", "guidance_scale", "top_r", "top_k"}
        assert own <= set(inspect.signature(SAMPLERS[name]).parameters), name


def test_lone_word_is_explained(capsys: pytest.CaptureFixture[str]) -> None:
    code, message = train("sen_birds", capsys=capsys)
    assert code == 2 and "expected key=value" in message


def test_image_size_must_fit_the_generator(capsys: pytest.CaptureFixture[str]) -> None:
    code, message = train("experiment=stackgan_v2_birds", "generator.num_stages=2", capsys=capsys)
    assert code == 2 and "64 px" in message


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (("experiment=speechclip_flickr8k", "audio=s2igan"), "audio=wave_16k"),
        (("experiment=speechclip_birds", "encoder.mel_dim=1"), "audio=wave_16k"),
        (("experiment=sen_birds", "audio=wave_16k"), "audio=s2igan"),
        (("experiment=stackgan_v2_birds", "optim.clip_norm=1"), "leave it null"),
    ],
)
def test_speech_must_fit_the_encoder(
    words: tuple[str, ...], part: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code, message = train(*words, "validate_only=true", capsys=capsys)
    assert code == 2 and part in message


@pytest.mark.parametrize("value", [float("nan"), -0.5, 1.5, "x", None, True])
def test_numbers_out_of_range_are_found(value: object) -> None:
    assert check_fields({"lr": value}, schema.OptimConfig, "optim")


def test_booleans_are_no_integers() -> None:
    with pytest.raises(ConfigError, match="seed"):
        check_config({"seed": True}, ROOT_FIELDS["train"])


VARIANT_SCHEMAS = [
    (target, variant)
    for group in schema.VARIANTS.values()
    for target, variant in group.items()
    if target and target.startswith("speech2image.")
]


@pytest.mark.parametrize(
    ("target", "variant"), VARIANT_SCHEMAS, ids=lambda item: str(item).rsplit(".", 1)[-1]
)
def test_schema_fields_equal_constructor_arguments(target: str, variant: type) -> None:
    target_class = get_class(target)
    arguments = set(inspect.signature(target_class).parameters)
    name = target_class.__name__
    fields = {item.name for item in dataclasses.fields(variant)}
    assert fields - ELSEWHERE.get(name, set()) <= arguments
    required = {
        key
        for key, item in inspect.signature(target_class).parameters.items()
        if item.default is inspect.Parameter.empty
    }
    assert required <= fields | FILLED.get(name, set())


def test_every_schema_field_has_a_sentence() -> None:
    for group in schema.VARIANTS.values():
        for variant in group.values():
            for item in dataclasses.fields(variant):
                assert item.metadata["help"], f"{variant.__name__}.{item.name}"


def test_every_root_key_is_explained_and_present() -> None:
    for verb, fields in ROOT_FIELDS.items():
        root = yaml.safe_load((conf_dir() / f"{verb}.yaml").read_text())
        assert set(fields) == set(root) - {"defaults"} == set(ROOT_HELP[verb]), verb


@pytest.mark.parametrize("group", [group for group in schema.VARIANTS if choices(group)])
def test_every_group_file_fits_its_schema(group: str) -> None:
    for name in choices(group):
        node: dict[str, Any] = yaml.safe_load((conf_dir() / group / f"{name}.yaml").read_text())
        tag = node.get(schema.TAGS.get(group, "_target_"))
        variant = schema.VARIANTS[group][tag]
        keys = {item.name for item in dataclasses.fields(variant)}
        assert set(node) - {"_target_"} == keys, f"{group}/{name}"
        hints = typing.get_type_hints(variant)
        plain = {key: value for key, value in node.items() if key in hints and "${" not in str(value)}
        assert check_fields(plain, variant, group) == []


def test_run_name_ignores_paths_and_loggers_but_not_the_seed() -> None:
    config = {"seed": 0, "trainer": {"num_workers": 0, "max_steps": 5}, "paths": {"runs": "a"}, "logger": {}}
    same = {
        "seed": 0,
        "trainer": {"num_workers": 4, "max_steps": 5},
        "paths": {"runs": "b"},
        "logger": {"x": 1},
    }
    other = {"seed": 0, "trainer": {"num_workers": 0, "max_steps": 6}, "paths": {"runs": "a"}, "logger": {}}
    assert run_id("x", config) == run_id("x", same) != run_id("x", other)


@pytest.mark.parametrize("verb", sorted(ROOT_FIELDS))
def test_help_of_every_verb_explains_its_keys(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([verb, "--help"]) == 0
    page = capsys.readouterr().out
    assert all(key in page for key in ROOT_FIELDS[verb])


@pytest.mark.parametrize("seed", [-1, 2**32])
def test_a_seed_that_generators_do_not_take_is_refused(seed: int, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", f"seed={seed}", "validate_only=true"]) == 2
    assert f"seed: found {seed}, expected 0 to" in capsys.readouterr().err


def test_installed_tree_lists_every_folder_of_conf() -> None:
    import configparser

    setup = configparser.ConfigParser()
    setup.read(conf_dir().parent / "setup.cfg")
    listed = set(setup["options.data_files"])
    tree = conf_dir()
    folders = {path.parent.relative_to(tree.parent) for path in tree.rglob("*.yaml")}
    assert {f"share/speech2image/{folder}" for folder in folders} == listed


def test_pretraining_needs_a_classifier(capsys: pytest.CaptureFixture[str]) -> None:
    code, message = train("experiment=sen_birds", "loss.distinctive_weight=0", capsys=capsys)
    assert code == 2 and "vision.pretrain_steps" in message and "loss.distinctive_weight" in message
