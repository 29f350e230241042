"""Every file in conf/ composes, validates and builds; every experiment trains two steps."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from speech2image.config.compose import choices

EXPERIMENTS = choices("experiment")
#: Overrides that make `spoken_birds` tiny.
TINY_BIRDS = (
    "data.make.num_train_species=6",
    "data.make.num_test_species=4",
    "data.make.images_per_species=3",
    "data.make.captions_per_image=2",
    "data.max_captions=1",
)


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_experiment_composes_validates_and_builds(
    experiment: str, command: Callable[..., tuple[int, str, str]]
) -> None:
    code, out, err = command("train", f"experiment={experiment}", "validate_only=true")
    assert code == 0, err
    assert "parameters" in out and f"run name: {experiment}-" in out


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_experiment_file_is_short_and_explained(experiment: str) -> None:
    from speech2image.config.compose import conf_dir

    lines = (conf_dir() / "experiment" / f"{experiment}.yaml").read_text().splitlines()
    assert len(lines) <= 30
    assert lines[1].startswith("# "), "the second line says what it is"


#: What makes an experiment small enough for two steps on one core; the rest stays as it is.
REDUCED = {
    "li_et_al_cub": (
        "encoder.width=64",
        "vision=class_teacher",
        "vision.feature_dim=64",
        "vision.train_steps=2",
    ),
    "li_et_al_birds": ("encoder.width=64", "vision.feature_dim=64", "vision.train_steps=2"),
    "sen_cub": ("encoder.rnn_dim=32", "vision=conv_branch", "vision.embed_dim=64"),
    "sen_flickr8k": ("encoder.rnn_dim=32", "vision=conv_branch", "vision.embed_dim=64"),
}
SMALL_GAN = ("generator.gf_dim=4", "generator.df_dim=4", "generator.condition_dim=8", "generator.noise_dim=8")


def corpus_overrides(experiment: str, tiny_flickr: Path, tiny_cub: Path) -> tuple[str, ...]:
    if experiment.endswith(("_cub", "_cub_small")):
        return (f"data.root={tiny_cub}", "data.speak=espeak", "data.max_captions=1", "data.image_px=64")
    if "flickr8k" in experiment:
        return (f"data.root={tiny_flickr}", "data.image_px=64")
    if "digits" in experiment:
        return ("data.max_captions=1",)
    return TINY_BIRDS


def stages_of(overrides: tuple[str, ...]) -> tuple[str, ...]:
    """Three stages end at 64 pixels when they start at 16."""
    return ("generator.base_px=16",) if "data.image_px=64" in overrides else ()


@pytest.mark.parametrize("experiment", [name for name in EXPERIMENTS if not name.startswith("stackgan")])
def test_encoder_experiment_trains_two_steps(
    experiment: str, command: Callable[..., tuple[int, str, str]], tiny_flickr: Path, tiny_cub: Path
) -> None:
    corpus = corpus_overrides(experiment, tiny_flickr, tiny_cub)
    code, out, err = command(
        "train", f"experiment={experiment}", "debug=two_steps", *corpus, *REDUCED.get(experiment, ())
    )
    assert code == 0, err
    run = Path(out.strip().splitlines()[-1])
    assert (run / "weights.safetensors").is_file()
    assert [line for line in (run / "journal.jsonl").read_text().splitlines() if '"loss"' in line]


@pytest.mark.parametrize("experiment", [name for name in EXPERIMENTS if name.startswith("stackgan")])
def test_generator_experiment_trains_two_steps(
    experiment: str, command: Callable[..., tuple[int, str, str]], tiny_flickr: Path, tiny_cub: Path
) -> None:
    corpus = corpus_overrides(experiment, tiny_flickr, tiny_cub)
    dataset = experiment.removeprefix("stackgan_v2_").removesuffix("_small").removesuffix("_long")
    code, out, err = command(
        "train",
        f"experiment=sen_{dataset}",
        "debug=two_steps",
        *corpus,
        *REDUCED.get(f"sen_{dataset}", ()),
        "seed=7",
    )
    assert code == 0, err
    encoder = Path(out.strip().splitlines()[-1])
    code, out, err = command(
        "train", f"experiment={experiment}", "debug=two_steps", *corpus, *stages_of(corpus), *SMALL_GAN,
        f"encoder.run={encoder}",
    )  # fmt: skip
    assert code == 0, err
    run = Path(out.strip().splitlines()[-1])
    assert (run / "weights.safetensors").is_file()
    assert sorted(path.name for path in (run / "samples").iterdir()) == [
        "step_00000001.png",
        "step_00000002.png",
    ]
