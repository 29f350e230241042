"""The diffusion road, end to end, on a tiny corpus: encoder, codec, diffusion, generate, evaluate, report."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

Command = Callable[..., tuple[int, str, str]]
TINY = (
    "data.make.num_train_species=8",
    "data.make.num_test_species=6",
    "data.make.images_per_species=4",
    "data.make.captions_per_image=2",
    "data.max_captions=1",
    "data.root={root}/birds_of_the_diffusion",
    "logger=none",
)
SHORT = ("trainer.max_steps=4", "trainer.batch_size=8", "trainer.val_every=2", "trainer.log_every=1",
         "callbacks.checkpoint.every=2", "callbacks.sample_grid.every=2")  # fmt: skip
SMALL = (
    "generator.depth=2",
    "generator.dim=32",
    "generator.heads=2",
    "generator.num_steps=12",
    "sampler.steps=4",
)


@pytest.fixture(scope="module")
def tiny(workplace: Path) -> tuple[str, ...]:
    return tuple(word.format(root=workplace) for word in TINY)


@pytest.fixture(scope="module")
def made(workplace: Path, place: tuple[str, ...], tiny: tuple[str, ...]) -> dict[str, Path]:
    """An encoder, a codec and a diffusion model trained four steps; codec and encoder are found by `auto`."""
    from speech2image.app.cli import main

    for words in (
        ("experiment=sen_birds", "name=road_sen", "vision.pretrain_steps=2"),
        ("experiment=codec_birds", "name=road_codec"),
        (
            "experiment=s2ivq_d_birds",
            "name=road_diffusion",
            "encoder.run=road_sen",
            "codec.run=road_codec",
            *SMALL,
        ),
    ):
        assert main(["train", *words, *tiny, *SHORT, *place]) == 0
    return {
        path.parent.name.split("-")[0]: path.parent for path in (workplace / "runs").glob("road_*/run.json")
    }


def last_path(out: str) -> Path:
    return Path(out.strip().splitlines()[-1])


def images(folder: Path) -> dict[str, np.ndarray]:
    return {
        path.name: np.asarray(Image.open(path)) for path in folder.glob("*.png") if "sheet" not in path.name
    }


def test_run_folders_are_like_all_others(made: dict[str, Path]) -> None:
    for name in ("road_codec", "road_diffusion"):
        run = made[name]
        info = json.loads((run / "run.json").read_text())
        assert info["status"] == "finished" and info["train_step"] == 4
        assert {"config.yaml", "journal.jsonl", "weights.safetensors", "checkpoints"} <= {
            path.name for path in run.iterdir()
        }
        assert len(list((run / "samples").glob("step_*.png"))) == 2
    info = json.loads((made["road_diffusion"] / "run.json").read_text())
    codec = json.loads((made["road_codec"] / "run.json").read_text())
    assert info["codec_run"] == codec["run_id"] and info["codec_fingerprint"] == codec["codec_fingerprint"]
    assert (info["num_tokens"], info["grid"]) == (256, [8, 8])
    stores = list((Path(info["data_folder"]) / "codes").glob("[!.]*"))
    assert [store.name for store in stores] == [f"train_{info['codec_fingerprint']}_8views"]


def test_prepare_encodes_what_training_reads(
    command: Command, made: dict[str, Path], tiny: tuple[str, ...]
) -> None:
    words = ("prepare", "codec=from_run", "codec.run=road_codec", *tiny[:-1])
    code, out, err = command(*words)
    assert code == 0 and "already prepared, nothing to do" in out, err
    info = json.loads((made["road_diffusion"] / "run.json").read_text())
    folder = Path(info["data_folder"]) / "codes" / f"train_{info['codec_fingerprint']}_8views"
    assert f"images x 8 views of 8 x 8 codes by {made['road_codec'].name}" in out and str(folder) in out
    code, out, err = command(*words, "codec.num_views=2")
    assert code == 0 and "already prepared" not in out, err
    code, out, err = command(*words, "codec.num_views=2", "verify=true")
    assert code == 0 and "already prepared" in out and "has the hash" in out, err
    code, _, err = command("prepare", "codec=vqgan_small", *tiny[:-1])
    assert code == 2 and "codec=from_run" in err


def test_samples_are_functions_of_seed_and_utterance(
    command: Command, made: dict[str, Path], tmp_path: Path
) -> None:
    run = f"run={made['road_diffusion']}"
    folders = []
    for number, words in enumerate(
        [("max_utterances=3",), ("max_utterances=3", "num_images=2"), ("max_utterances=3", "seed=5")]
    ):
        code, out, err = command("generate", run, f"out={tmp_path / str(number)}", *words)
        assert code == 0, err
        folders.append(images(last_path(out)))
    first, two, other = folders
    assert len(first) == 3 and len(two) == 6 and (tmp_path / "0" / "manifest.jsonl").is_file()
    assert all(np.array_equal(image, two[name]) for name, image in first.items()), "neighbours change nothing"
    assert any(not np.array_equal(image, other[name]) for name, image in first.items())


@pytest.mark.parametrize(
    "sampler",
    [
        ("sampler=ancestral",),
        ("sampler=skipping", "sampler.steps=3", "sampler.guidance_scale=2"),
        ("sampler=purity", "sampler.steps=3", "sampler.top_r=0.86"),
        ("sampler=confidence", "sampler.steps=3"),
        ("sampler=halton", "sampler.steps=3", "sampler.top_k=5"),
        ("sampler=remask", "sampler.steps=6"),
        ("sampler.steps=2",),
    ],
    ids=lambda words: words[0],
)
def test_every_sampler_paints(
    sampler: tuple[str, ...], command: Command, made: dict[str, Path], tmp_path: Path
) -> None:
    code, out, err = command(
        "generate", f"run={made['road_diffusion']}", f"out={tmp_path}", "max_utterances=2", *sampler
    )
    assert code == 0, err
    assert {image.shape for image in images(last_path(out)).values()} == {(32, 32, 3)}


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("sampler=skipping", "sampler.steps=13"), "the schedule has 12 steps"),
        (("sampler=skipping", "sampler.steps=0"), "sampler.steps: found 0"),
        (("sampler=ancestral", "sampler.steps=3"), "ancestral takes all 12 steps"),
        (("sampler=skiping",), "did you mean: skipping"),
    ],
)
def test_wrong_samplers_are_explained(
    words: tuple[str, ...], expected: str, command: Command, made: dict[str, Path], tmp_path: Path
) -> None:
    code, _, err = command("generate", f"run={made['road_diffusion']}", f"out={tmp_path / 'x'}", *words)
    assert code == 2 and expected in err and "Traceback" not in err
    assert not (tmp_path / "x").exists()


def test_spoken_text_is_painted(command: Command, made: dict[str, Path]) -> None:
    code, out, err = command("generate", f"run={made['road_diffusion']}", "text=a red bird", "num_images=2")
    assert code == 0, err
    assert len(images(last_path(out))) == 2


def test_codes_of_a_changed_codec_are_refused(
    command: Command, made: dict[str, Path], tmp_path: Path
) -> None:
    runs = tmp_path / "runs"
    shutil.copytree(made["road_diffusion"].parent, runs, ignore=shutil.ignore_patterns("wandb"))
    codec = runs / made["road_codec"].name
    from speech2image.hub.weights import read_weights, save_weights

    tensors, meta = read_weights(codec / "weights.safetensors")
    tensors["network.decoder.conv_out.bias"] = tensors["network.decoder.conv_out.bias"] + 1
    save_weights(codec / "weights.safetensors", tensors, meta)
    from speech2image.app.cli import main

    run = runs / made["road_diffusion"].name
    code = main(["generate", f"run={run}", "text=a red bird", f"paths.runs={runs}", f"out={tmp_path / 'x'}"])
    assert code == 2 and not (tmp_path / "x").exists()


def test_all_kinds_are_evaluated_and_reported_side_by_side(
    command: Command, made: dict[str, Path], tmp_path: Path
) -> None:
    for name, metric in (
        ("road_codec", "codec_accuracy/mean"),
        ("road_diffusion", "attribute_accuracy/mean"),
    ):
        code, out, err = command("evaluate", f"run={made[name]}")
        assert code == 0, err
        metrics = json.loads(last_path(out).read_text())["metrics"]
        assert metric in {entry["name"] for entry in metrics}
    runs = ",".join(str(run) for run in made.values())
    code, out, err = command("report", f"runs=[{runs}]", f"out={tmp_path / 'page'}")
    assert code == 0, err
    page = (tmp_path / "page" / "index.html").read_text()
    assert "Codecs" in page and "Generators" in page and "road_diffusion" in page
    assert "generator runs" in (tmp_path / "page" / "table.md").read_text()


@pytest.mark.parametrize("form", ["words", "class", "nothing"])
def test_other_conditions_train_and_paint(
    command: Command, made: dict[str, Path], tiny: tuple[str, ...], form: str
) -> None:
    words = {
        "words": ("generator.use_words=true", "encoder.run=road_sen", "loss.condition_dropout=0.5"),
        "class": ("generator.conditioning=class", "encoder=none"),
        "nothing": ("generator.conditioning=none", "encoder=none", "loss.condition_dropout=0"),
    }[form]
    kept = made["road_sen"] / "embeddings" / "train_words"
    assert form != "words" or not kept.exists(), "runs that read sentences left no words"
    code, out, err = command(
        "train", "experiment=s2ivq_d_birds", f"name=told_{form}", "codec.run=road_codec", *words, *tiny, *SHORT,
        *SMALL, "sampler.guidance_scale=1",
    )  # fmt: skip
    if form == "class":
        assert code == 0, err
        run = last_path(out)
        code, _, err = command("generate", f"run={run}", "split=test")
        assert code == 2 and "6 classes of spoken_birds were never told to" in err
        code, out, err = command("generate", f"run={run}", "class_id=1", "num_images=2")
        assert code == 0 and len(images(last_path(out))) == 2, err
        return
    assert code == 0, err
    run = last_path(out)
    assert form != "words" or (kept / "store.json").exists()
    code, out, err = command("generate", f"run={run}", "split=test", "max_utterances=3")
    assert code == 0 and len(images(last_path(out))) == 3, err


def test_every_sampler_keeps_results_of_its_own_and_the_report_compares_them(
    command: Command, made: dict[str, Path], tmp_path: Path
) -> None:
    run = tmp_path / "runs" / "road"
    shutil.copytree(
        made["road_diffusion"], run, ignore=shutil.ignore_patterns("wandb", "generated", "metrics*")
    )
    code, out, err = command("evaluate", f"run={run}")
    assert code == 0, err
    code, out, err = command("evaluate", "-m", f"run={run}", "sampler=halton,skipping", "sampler.steps=2,4")
    assert code == 0, err
    assert sorted(path.name for path in run.glob("metrics*.json")) == [
        "metrics-halton-2.json", "metrics-halton-4.json", "metrics-skipping-2.json", "metrics.json",
    ]  # fmt: skip
    assert sorted(path.name for path in (run / "generated").iterdir()) == [
        "test", "test-halton-2", "test-halton-4", "test-skipping-2",
    ]  # fmt: skip
    pictures = [images(run / "generated" / name) for name in ("test", "test-halton-4", "test-halton-2")]
    assert len(pictures[0]) == len(pictures[1]) and any(
        not np.array_equal(image, pictures[2][name]) for name, image in pictures[1].items()
    )
    details = json.loads((run / "metrics-halton-2.json").read_text())["details"]
    assert details["is_default_sampler"] is False
    assert details["sampling"]["network_calls"] == 2 and details["sampling"]["seconds_per_image"] > 0
    assert (
        details["sampling"]["sampler"] | {"steps": 2, "guidance_scale": 3.0} == details["sampling"]["sampler"]
    )
    pages = []
    for name in ("page", "again"):
        code, out, err = command("report", f"runs={run}", f"out={tmp_path / name}")
        assert code == 0, err
        pages.append(last_path(out).parent)
    text = (pages[0] / "index.html").read_text()
    assert "Quality against steps" in text and 'class="whisker c1"' in text
    rows = [line for line in (pages[0] / "table.md").read_text().splitlines() if line.startswith("| halton")]
    assert len(rows) == 2
    figure = pages[0] / "quality_against_steps_road_diffusion.png"
    assert Image.open(figure).width > 800
    assert figure.read_bytes() == (pages[1] / figure.name).read_bytes(), "the figure is stable"


def test_strip_shows_states_on_the_way(command: Command, made: dict[str, Path], tmp_path: Path) -> None:
    run = f"run={made['road_diffusion']}"
    for name, words in {"plain": (), "strip": ("strip=3",)}.items():
        code, _, err = command(
            "generate",
            run,
            f"out={tmp_path / name}",
            "max_utterances=2",
            "sampler=halton",
            "sampler.steps=6",
            *words,
        )
        assert code == 0, err
    sheet = np.asarray(Image.open(tmp_path / "strip" / "strip.png"))
    assert sheet.shape[1] == 3 * 98 + 2 and sheet.shape[0] == 2 * (96 + 14 + 2) + 2
    last = sheet[2:98:3, 2 + 2 * 98 : 98 + 2 * 98 : 3]
    painted = images(tmp_path / "strip")
    painted.pop("strip.png")
    assert any(np.array_equal(last, image) for image in painted.values()), "the last state is the image"
    first = sheet[2:98:3, 2:98:3]
    assert first.mean() > last.mean(), "what is not settled is paler"
    plain = images(tmp_path / "plain")
    assert all(np.array_equal(image, plain[name]) for name, image in painted.items()), (
        "looking changes nothing"
    )


@pytest.mark.parametrize("words", [("sampler=halton",), ("sampler.steps=4",)])
def test_samplers_of_an_encoder_are_refused(
    words: tuple[str, ...], command: Command, made: dict[str, Path]
) -> None:
    code, _, err = command("evaluate", f"run={made['road_sen']}", *words)
    assert code == 2 and "has no sampler" in err and not (made["road_sen"] / "metrics.json").exists()
