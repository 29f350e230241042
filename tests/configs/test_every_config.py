"""Every file in conf/ composes, validates and builds; every experiment trains two steps."""

from __future__ import annotations

import json
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


@pytest.mark.parametrize(
    ("encoder", "vision", "parameters"),
    [("base", "clip_vit_b32", "101,854,861"), ("large", "clip_vit_l14", "329,083,033"),
     ("cascaded", "clip_rn50x64", "")],
)  # fmt: skip
def test_published_speechclip_towers_build(
    encoder: str, vision: str, parameters: str, command: Callable[..., tuple[int, str, str]]
) -> None:
    code, out, err = command(
        "train", "experiment=speechclip_flickr8k", f"encoder=speechclip_{encoder}", f"vision={vision}",
        "validate_only=true",
    )  # fmt: skip
    assert code == 0, err
    assert f"{parameters} parameters" in out and "image branch" in out


def test_published_text_network_builds(command: Callable[..., tuple[int, str, str]]) -> None:
    code, out, err = command("train", "experiment=vq_diffusion_text_cub", "validate_only=true")
    assert code == 0, err
    assert " 388,780,871 parameters" in out and " 63,428,096 parameters" in out


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_experiment_file_is_short_and_explained(experiment: str) -> None:
    from speech2image.config.compose import conf_dir

    lines = (conf_dir() / "experiment" / f"{experiment}.yaml").read_text().splitlines()
    assert len(lines) <= 30
    assert lines[1].startswith("# "), "the second line says what it is"


#: A small tower on the same waveforms, an image branch without CLIP's weights.
SMALL_WAVES = (
    "encoder=speechclip_small",
    "encoder.mel_dim=1",
    "encoder.small_dim=16",
    "vision=conv_branch",
)
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
    "speechclip_birds": ("encoder.small_dim=32", "vision.width=8"),
    "speechclip_digits": ("encoder.small_dim=32", "vision.width=8"),
    "speechclip_cub": SMALL_WAVES,
    "speechclip_flickr8k": SMALL_WAVES,
    "speechclip_cub_small": ("encoder.small_dim=32", "vision.width=8"),
    "speechclip_flickr8k_small": ("encoder.small_dim=32", "vision.width=8"),
}
#: A codec and a transformer small enough for two steps; sizes follow the codec instead of the publication.
SMALL_CODEC = (
    "codec.channels=8", "codec.latent_dim=8", "codec.code_dim=4", "codec.num_codes=16", "codec.norm_groups=4",
    "codec.num_res_blocks=1", "codec.disc_layers=1", "codec.disc_width=4",
)  # fmt: skip
SMALL_DIFFUSION = (
    "generator.num_tokens=null", "generator.grid=null", "generator.table=null", "generator.depth=2",
    "generator.dim=32", "generator.heads=2", "codec.num_views=2", "trainer.precision=32-true",
    "sampler=skipping", "sampler.steps=3",
)  # fmt: skip
OF_A_STUDY = [name for name in EXPERIMENTS if "_of_" in name]
DIFFUSION = [
    name for name in EXPERIMENTS if name.startswith(("s2ivq_d", "vq_diffusion")) and name not in OF_A_STUDY
]
CODECS = [name for name in EXPERIMENTS if name.startswith("codec")]
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


@pytest.mark.parametrize(
    "experiment",
    [
        name for name in EXPERIMENTS
        if name not in (*DIFFUSION, *OF_A_STUDY) and not name.startswith(("stackgan", "codec"))
    ],
)  # fmt: skip
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


@pytest.mark.parametrize(
    "experiment", [name for name in EXPERIMENTS if name.startswith("stackgan") and name not in OF_A_STUDY]
)
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


@pytest.mark.parametrize("experiment", CODECS)
def test_codec_experiment_trains_two_steps(
    experiment: str, command: Callable[..., tuple[int, str, str]], tiny_flickr: Path, tiny_cub: Path
) -> None:
    corpus = corpus_overrides(experiment, tiny_flickr, tiny_cub)
    code, out, err = command(
        "train", f"experiment={experiment}", "debug=two_steps", *corpus, *SMALL_CODEC, "loss.disc_weight=0.5"
    )
    assert code == 0, err
    run = Path(out.strip().splitlines()[-1])
    assert (run / "weights.safetensors").is_file()
    assert len(list((run / "samples").iterdir())) == 2
    last = [line for line in (run / "journal.jsonl").read_text().splitlines() if '"loss_d"' in line][-1]
    assert '"codes_used"' in last


@pytest.mark.parametrize("experiment", DIFFUSION)
def test_diffusion_experiment_trains_two_steps(
    experiment: str, command: Callable[..., tuple[int, str, str]], tiny_flickr: Path, tiny_cub: Path,
    tiny_clip: tuple[str, ...],
) -> None:  # fmt: skip
    corpus = corpus_overrides(experiment, tiny_flickr, tiny_cub)
    dataset = next(part for part in reversed(experiment.split("_")) if part not in ("small", "words"))
    data = {"birds": "spoken_birds", "digits": "spoken_digits", "cub": "cub200"}.get(dataset, dataset)
    image_px = next((word.split("=")[1] for word in corpus if word.startswith("data.image_px")), "32")
    reads_text = "_text_" in experiment
    places: dict[str, str] = {}
    for role, *made in (
        ("encoder.run", f"experiment=sen_{dataset}", "encoder.rnn_dim=32", "vision=conv_branch", "vision.embed_dim=64",
         "vision.pretrain_steps=2", "loss.distinctive_weight=1"),
        ("codec.run", "experiment=codec_birds", f"data={data}", *SMALL_CODEC, f"codec.image_px={image_px}",
         f"codec.patch_px={int(image_px) // 4}"),
    ):  # fmt: skip
        if role == "encoder.run" and reads_text:
            continue
        code, out, err = command("train", *made, "debug=two_steps", *corpus, "seed=8")
        assert code == 0, err
        places[role] = out.strip().splitlines()[-1]
    code, out, err = command(
        "train", f"experiment={experiment}", "debug=two_steps", *corpus, *SMALL_DIFFUSION,
        *(f"{role}={place}" for role, place in places.items()), *(tiny_clip if reads_text else ()),
    )  # fmt: skip
    assert code == 0, err
    run = Path(out.strip().splitlines()[-1])
    assert (run / "weights.safetensors").is_file()
    assert len(list((run / "samples").iterdir())) == 2
    assert '"nats_per_token"' in (run / "journal.jsonl").read_text()


@pytest.mark.parametrize("experiment", OF_A_STUDY)
def test_study_experiment_finds_encoder_and_codec_of_its_seed(
    experiment: str, command: Callable[..., tuple[int, str, str]]
) -> None:
    method, encoder = experiment.split("_of_")
    dataset = method.rsplit("_", 1)[-1]
    corpus = corpus_overrides(experiment, Path(), Path())
    name = f"{encoder}_{dataset}"
    parts = {"encoder": (name, REDUCED.get(name, ("encoder.rnn_dim=32", "vision.embed_dim=64")))}
    if method.startswith("s2ivq_d"):
        parts["codec"] = (f"codec_{dataset}", SMALL_CODEC)
    ids: dict[tuple[str, int], str] = {}
    for role, (name, reduced) in parts.items():
        for seed in (12, 11):  # the newest is not the wanted one
            code, out, err = command(
                "train", f"experiment={name}", "debug=two_steps", *corpus, *reduced, f"seed={seed}"
            )
            assert code == 0, err
            ids[role, seed] = Path(out.strip().splitlines()[-1]).name
    small = SMALL_DIFFUSION if "codec" in parts else SMALL_GAN
    code, out, err = command(
        "train", f"experiment={experiment}", "debug=two_steps", *corpus, *small, "seed=12"
    )
    assert code == 0, err
    run = Path(out.strip().splitlines()[-1])
    info = json.loads((run / "run.json").read_text())
    assert {f"{role}_run": info[f"{role}_run"] for role in parts} == {
        f"{role}_run": ids[role, 12] for role in parts
    }
