"""The main road, end to end, on a tiny corpus: prepare, train, embed, generate, evaluate, report."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

Command = Callable[..., tuple[int, str, str]]
TINY = (
    "data.make.num_train_species=8",
    "data.make.num_test_species=6",
    "data.make.images_per_species=4",
    "data.make.captions_per_image=2",
    "data.max_captions=1",
    "data.root={root}/birds_of_the_pipeline",
    "logger=none",
)
SMALL_GAN = ("generator.gf_dim=4", "generator.df_dim=4", "generator.condition_dim=8", "generator.noise_dim=8")
SHORT = ("trainer.max_steps=4", "trainer.batch_size=8", "trainer.val_every=2", "trainer.log_every=1",
         "callbacks.checkpoint.every=2", "callbacks.sample_grid.every=2")  # fmt: skip


@pytest.fixture(scope="module")
def tiny(workplace: Path) -> tuple[str, ...]:
    return tuple(word.format(root=workplace) for word in TINY)


@pytest.fixture(scope="module")
def made(workplace: Path, place: tuple[str, ...], tiny: tuple[str, ...]) -> dict[str, Path]:
    """An encoder and a generator trained four steps."""
    from speech2image.app.cli import main
    from speech2image.app.train import train as _  # noqa: F401  (imported early: slow)

    assert main(["train", "experiment=sen_birds", "name=pipe_sen", *tiny, *SHORT, *place]) == 0
    assert main(
        ["train", "experiment=stackgan_v2_birds", "name=pipe_gan", "encoder.run=pipe_sen", *tiny, *SHORT, *SMALL_GAN, *place]
    ) == 0  # fmt: skip
    runs = {
        path.parent.name.split("-")[0]: path.parent for path in (workplace / "runs").glob("pipe_*/run.json")
    }
    return runs


def last_path(out: str) -> Path:
    return Path(out.strip().splitlines()[-1])


def test_prepare_does_nothing_the_second_time(
    command: Command, tiny: tuple[str, ...], made: dict[str, Path]
) -> None:
    code, out, err = command("prepare", "data=spoken_birds", *tiny[:-1], "verify=true")
    assert code == 0, err
    assert "already prepared, nothing to do" in out
    assert "hash it was written with" in out


def test_run_folder_holds_what_the_house_says(made: dict[str, Path]) -> None:
    for run in made.values():
        info = json.loads((run / "run.json").read_text())
        assert info["status"] == "finished" and info["train_step"] == 4
        assert {"config.yaml", "journal.jsonl", "weights.safetensors", "checkpoints"} <= {
            p.name for p in run.iterdir()
        }
        steps = [json.loads(line)["step"] for line in (run / "journal.jsonl").read_text().splitlines()]
        assert steps == sorted(steps)
    assert len(list((made["pipe_gan"] / "samples").glob("step_*.png"))) == 2


def test_a_finished_run_is_not_trained_again(
    command: Command, tiny: tuple[str, ...], made: dict[str, Path]
) -> None:
    before = (made["pipe_sen"] / "weights.safetensors").stat().st_mtime_ns
    code, out, err = command("train", "experiment=sen_birds", "name=pipe_sen", *tiny, *SHORT)
    assert code == 0, err
    assert "finished already" in out
    assert (made["pipe_sen"] / "weights.safetensors").stat().st_mtime_ns == before


def test_embed_writes_named_arrays(command: Command, made: dict[str, Path], tmp_path: Path) -> None:
    from speech2image.data.embeddings import read_embeddings

    code, _out, err = command("embed", f"run={made['pipe_sen']}", f"out={tmp_path}")
    assert code == 0, err
    found = read_embeddings(tmp_path / "test.safetensors")
    assert found.arrays["sentence"].shape == (len(found.keys), 256)
    assert np.allclose(np.linalg.norm(found.arrays["sentence"], axis=1), 1, atol=1e-4)


@pytest.mark.parametrize("sound", ["mono_8k", "stereo_44k", "uint8", "float"])
def test_generate_takes_a_wav_of_any_rate_and_channel_count(
    command: Command, made: dict[str, Path], tmp_path: Path, sound: str
) -> None:
    import soundfile

    rate, channels, subtype = {
        "mono_8k": (8000, 1, "PCM_16"), "stereo_44k": (44100, 2, "PCM_24"), "uint8": (16000, 1, "PCM_U8"),
        "float": (48000, 1, "FLOAT"),
    }[sound]  # fmt: skip
    wave = 0.3 * np.sin(np.linspace(0, 2000, 2 * rate))
    soundfile.write(tmp_path / "hello.wav", np.stack([wave] * channels, axis=1), rate, subtype=subtype)
    code, _out, err = command(
        "generate",
        f"run={made['pipe_gan']}",
        f"speech={tmp_path}/hello.wav",
        "num_images=3",
        f"out={tmp_path}/out",
    )
    assert code == 0, err
    lines = [json.loads(line) for line in (tmp_path / "out" / "manifest.jsonl").read_text().splitlines()]
    assert [line["sample"] for line in lines] == [0, 1, 2]
    images = [np.asarray(Image.open(tmp_path / "out" / line["file"])) for line in lines]
    assert images[0].shape == (32, 32, 3)
    assert not np.array_equal(images[0], images[1]), "each image has its own noise"


def test_generate_speaks_a_text_first_and_repeats_itself(
    command: Command, made: dict[str, Path], tmp_path: Path
) -> None:
    pictures = []
    for name in ("a", "b"):
        code, out, err = command(
            "generate",
            f"run={made['pipe_gan']}",
            "text=a red bird with a white belly",
            f"out={tmp_path / name}",
        )
        assert code == 0, err
        assert last_path(out) == tmp_path / name
        pictures.append(next((tmp_path / name).glob("*_0.png")).read_bytes())
    assert pictures[0] == pictures[1]


def test_evaluate_and_report(command: Command, made: dict[str, Path], tmp_path: Path) -> None:
    code, out, err = command("evaluate", f"run={made['pipe_sen']}")
    assert code == 0, err
    assert "recall@10" in out
    code, out, err = command("evaluate", f"run={made['pipe_gan']}")
    assert code == 0, err
    metrics = json.loads(last_path(out).read_text())
    assert metrics["protocol"] == "spoken_birds"
    names = {metric["name"] for metric in metrics["metrics"]}
    assert {"fid", "kid", "inception_score", "attribute_accuracy/mean", "shuffled_speech/mean"} <= names
    code, out, err = command(
        "report", f"runs=[{made['pipe_sen']},{made['pipe_gan']}]", f"out={tmp_path}/report"
    )
    assert code == 0, err
    page = last_path(out).read_text()
    assert "pipe_gan" in page and "<audio" in page


def test_inception_scores_without_weights_are_one_clear_error(
    command: Command, made: dict[str, Path]
) -> None:
    code, _out, err = command("evaluate", f"run={made['pipe_gan']}", "protocol=clean")
    assert code == 2
    for part in ("6726825d", "https://", "weights"):
        assert part in err
    assert "Traceback" not in err


def test_a_killed_run_continues_and_ends_the_same(
    workplace: Path, place: tuple[str, ...], tiny: tuple[str, ...], made: dict[str, Path]
) -> None:
    """Two steps, an interruption between steps, then the rest: the weights equal four steps in one go."""
    from safetensors.numpy import load_file

    from speech2image.app.cli import main
    from speech2image.training import callbacks

    words = [
        "train",
        "experiment=stackgan_v2_birds",
        "encoder.run=pipe_sen",
        *tiny,
        *SHORT,
        *SMALL_GAN,
        *place,
    ]
    original = callbacks.CheckpointWriter.on_train_batch_start

    class Killed(BaseException):
        pass

    def killed(self: object, trainer: object, module: object, *rest: object) -> None:
        original(self, trainer, module, *rest)  # type: ignore[arg-type]
        if module.train_step == 3:  # type: ignore[attr-defined]
            raise Killed

    callbacks.CheckpointWriter.on_train_batch_start = killed  # type: ignore[method-assign, assignment]
    try:
        with pytest.raises(Killed):
            main([*words, "name=pipe_killed"])
    finally:
        callbacks.CheckpointWriter.on_train_batch_start = original  # type: ignore[method-assign]
    assert main([*words, "name=pipe_killed"]) == 0
    run = next((workplace / "runs").glob("pipe_killed-*"))
    whole, resumed = (load_file(folder / "weights.safetensors") for folder in (made["pipe_gan"], run))
    assert whole.keys() == resumed.keys()
    for name, value in whole.items():
        assert np.array_equal(value, resumed[name]), name
    steps = [json.loads(line)["step"] for line in (run / "journal.jsonl").read_text().splitlines()]
    assert steps == [1, 2, 3, 4], "no gap and no repeat"


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (("generate", "run=nothing_here"), ("run=nothing_here", "Known:")),
        (("generate",), ("which run?",)),
        (("evaluate", "run=pipe_gan", "protocol=spoken_bird"), ("spoken_birds",)),
        (("embed", "run=pipe_gan"), ("expected a trained encoder",)),
        (("generate", "run=pipe_gan", "speech=/no/such/file.wav"), ("no such file",)),
        (("generate", "run=pipe_gan", "text=a bird", "voice=elvis"), ("Voices:",)),
        (("import", "system=stackgan"), ("did you mean stackgan_v2?",)),
        (("import", "system=stackgan_v2", "checkpoint=/no/such.pth"), ("/no/such.pth",)),
        (("prepare", "data=cub200", "data.root=/no/such/folder"), ("/no/such/folder", "CUB_200_2011")),
        (("report", "runs=[nothing_here]"), ("nothing_here",)),
        (("train", "experiment=stackgan_v2_digits", "encoder.run=no_such_encoder"), ("no_such_encoder",)),
    ],
)
def test_bad_input_gets_one_clear_message(
    command: Command, made: dict[str, Path], words: tuple[str, ...], parts: tuple[str, ...], tmp_path: Path
) -> None:
    code, out, err = command(*words)
    assert code == 2, out
    assert all(part in err for part in parts), err
    assert "Traceback" not in err


def test_a_run_folder_that_cannot_be_written_is_one_clear_error(
    tiny: tuple[str, ...], made: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    from speech2image.app.cli import main

    home = made["pipe_gan"].parents[1]
    code = main(
        ["train", "experiment=sen_birds", *tiny, *SHORT, f"paths.runs={blocked}", f"paths.cache={home / 'cache'}",
         f"paths.data={home / 'data'}"]
    )  # fmt: skip
    assert code == 2
    assert "cannot be written" in capsys.readouterr().err


@pytest.mark.parametrize("prefix", ["", "module."])
def test_an_imported_released_checkpoint_paints(
    command: Command, made: dict[str, Path], tmp_path: Path, prefix: str
) -> None:
    import torch

    from speech2image.gan.discriminators import StackDiscriminator
    from speech2image.gan.stackgan import StackGenerator

    nets = {
        "netG_210000.pth": StackGenerator(256, condition_dim=8, noise_dim=6, gf_dim=4, num_stages=2),
        "netD0.pth": StackDiscriminator(64, df_dim=4, condition_dim=8),
        "netD1.pth": StackDiscriminator(128, df_dim=4, condition_dim=8),
    }
    for name, net in nets.items():
        torch.save({prefix + key: value for key, value in net.state_dict().items()}, tmp_path / name)
    code, out, err = command(
        "import", "system=stackgan_v2", f"checkpoint={tmp_path}/netG_210000.pth", f"encoder_run={made['pipe_sen']}",
        f"discriminators=[{tmp_path}/netD0.pth,{tmp_path}/netD1.pth]", f"name=imported{len(prefix)}",
    )  # fmt: skip
    assert code == 0, err
    run = last_path(out)
    code, out, err = command(
        "generate", f"run={run}", "text=a blue bird", f"out={tmp_path}/out", "condition=mean"
    )
    assert code == 0, err
    picture = np.asarray(Image.open(next((tmp_path / "out").glob("*_0.png"))))
    assert picture.shape == (128, 128, 3)
    info = json.loads((run / "run.json").read_text())
    assert info["status"] == "imported" and set(info["parameters"]) == {
        "generator", "discriminators.0", "discriminators.1",
    }  # fmt: skip


def test_an_imported_speech_encoder_embeds(command: Command, tiny: tuple[str, ...], tmp_path: Path) -> None:
    import torch

    from speech2image.data.embeddings import read_embeddings
    from speech2image.speech.cnn_rnn import CnnRnn

    net = CnnRnn(width=64, pool="mean_padded")
    torch.save({"meta": {"epoch": 1}, "state_dict": net.state_dict()}, tmp_path / "epoch_1.pth")
    data = [word for word in tiny if word.startswith("data.")]
    code, out, err = command(
        "import", "system=li_et_al", f"checkpoint={tmp_path}/epoch_1.pth", "data=spoken_birds", *data
    )
    assert code == 0, err
    code, out, err = command("embed", f"run={last_path(out)}", "split=test", f"out={tmp_path}")
    assert code == 0, err
    assert read_embeddings(tmp_path / "test.safetensors").arrays["sentence"].shape[1] == 64


def test_generator_is_told_discriminant_directions_of_whole_embeddings(made: dict[str, Path]) -> None:
    from speech2image.training.painting import GanPainter, make_painter
    from speech2image.training.runs import load_discriminant, load_generator, read_run

    run = read_run(made["pipe_gan"])
    discriminant = load_discriminant(run)
    assert discriminant is not None
    assert (run.info["embedding_dim"], run.info["sentence_dim"]) == (256, 7), (
        "eight classes, seven directions"
    )
    sentences = torch.nn.functional.normalize(
        torch.randn(2, 256, generator=torch.Generator().manual_seed(0)), dim=1
    )
    request = {"seed": 3, "condition": "mean", "strip": 0, "sampler": {"name": "from_run"}}
    painted = make_painter(run, request, torch.device("cpu"))(sentences, [("a", 0), ("b", 0)]).images
    plain = GanPainter(load_generator(run), 3, samples_condition=False)
    assert torch.equal(painted, plain(discriminant(sentences), [("a", 0), ("b", 0)]).images)


def test_a_sweep_scores_every_job_and_ends_in_one_report(
    command: Command, workplace: Path, tiny: tuple[str, ...], made: dict[str, Path]
) -> None:
    code, out, err = command(
        "train", "-m", "experiment=stackgan_v2_birds", "name=swept", "evaluate=true", "seed=0,1", "encoder.run=pipe_sen",
        *tiny, *SHORT, *SMALL_GAN,
    )  # fmt: skip
    assert code == 0, err
    runs = sorted((workplace / "runs").glob("swept-*"))
    assert len(runs) == 2
    for run in runs:
        assert json.loads((run / "metrics.json").read_text())["protocol"] == "spoken_birds"
        info = json.loads((run / "run.json").read_text())
        assert info["train_cpu_seconds"] > 0 and 50 < info["peak_memory_mb"] < 50_000
    page = last_path(out)
    assert page.parent.parent == workplace / "runs" / "reports" and page.name == "index.html"
    text = page.read_text()
    assert all(run.name in text for run in runs)
