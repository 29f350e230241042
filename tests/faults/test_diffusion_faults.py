"""Bad input to the diffusion path, by command: exit code 2, one message that helps, nothing half-written or lost."""

from __future__ import annotations

import json
import runpy
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from speech2image.app.cli import main
from speech2image.data.embeddings import read_embeddings, write_embeddings
from speech2image.hub.weights import read_weights, save_weights

TESTS = Path(__file__).parents[1]
RELEASED = runpy.run_path(str(TESTS / "smoke" / "test_import_diffusion.py"))
CORPORA = runpy.run_path(str(TESTS / "tiny_corpora.py"))
TINY = (
    "data.make.num_train_species=6",
    "data.make.num_test_species=4",
    "data.make.images_per_species=4",
    "data.make.captions_per_image=1",
    "data.max_captions=1",
    "data.root={root}/birds_of_the_faults",
)
SHORT = ("logger=none", "trainer.max_steps=1", "trainer.batch_size=4", "callbacks.sample_grid.every=0")
SMALL = (
    "generator.depth=1", "generator.dim=16", "generator.heads=2", "generator.num_steps=12", "sampler.steps=4",
    "codec.num_views=1",
)  # fmt: skip
DIFFUSION = (
    "train",
    "experiment=s2ivq_d_birds",
    "encoder=from_run",
    "encoder.run=fault_sen",
    "codec.run=fault_codec",
)
NO_NULL = ("generator.conditioning=modulation", "generator.null=none")
RUNS = {
    "fault_sen": ("experiment=sen_birds", "encoder.rnn_dim=16", "vision.embed_dim=32", "vision.pretrain_steps=1"),
    "fault_wide": ("experiment=sen_birds", "encoder.rnn_dim=24", "vision.embed_dim=48", "vision.pretrain_steps=1"),
    "fault_waves": (
        "experiment=speechclip_birds", "audio=wave_16k", "encoder.mel_dim=1", "encoder.small_dim=16",
        "encoder.embed_dim=32", "vision.embed_dim=32", "vision.width=4", "trainer.pool_batches=1",
    ),
    "fault_codec": ("experiment=codec_birds",),
    "fault_other": ("experiment=codec_birds", "seed=1"),
    "fault_diffusion": (*DIFFUSION[1:], *SMALL),
}  # fmt: skip


@pytest.fixture(scope="module")
def tiny(workplace: Path) -> tuple[str, ...]:
    return tuple(word.format(root=workplace) for word in TINY)


@pytest.fixture(scope="module")
def trained(workplace: Path, place: tuple[str, ...], tiny: tuple[str, ...]) -> Path:
    """The folder of all runs, one of each kind trained a single step."""
    for name, words in RUNS.items():
        assert main(["train", *words, f"name={name}", *SHORT, *tiny, *place]) == 0, name
    return workplace / "runs"


@pytest.fixture
def runs(trained: Path, tmp_path: Path) -> dict[str, Path]:
    """Copies of these runs that a test may spoil, by name."""
    for path in trained.glob("fault_*"):
        if path.name.split("-")[0] in RUNS:
            shutil.copytree(path, tmp_path / "runs" / path.name)
    return {path.name.split("-")[0]: path for path in (tmp_path / "runs").iterdir()}


@pytest.fixture
def accepted(place: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Any:
    """Run a command on the copied runs that must succeed; return its output."""

    def call(*words: str) -> str:
        capsys.readouterr()
        code = main([*words, *place, f"paths.runs={tmp_path / 'runs'}"])
        captured = capsys.readouterr()
        assert code == 0, captured.err
        return captured.out

    return call


@pytest.fixture
def refused(
    workplace: Path, place: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> Any:
    """Run a command that must be refused without leaving anything; return its message."""

    def call(*words: str) -> str:
        (tmp_path / "runs").mkdir(exist_ok=True)
        before = contents(tmp_path / "runs")
        capsys.readouterr()
        code = main([*words, *place, f"paths.runs={tmp_path / 'runs'}"])
        message = capsys.readouterr().err
        assert code == 2, message
        assert "Traceback" not in message and message.count("speech2image: ") == 1
        said = [line for line in message.splitlines() if not line.startswith(("encode", "embed", "paint"))]
        assert len(said[-1]) > 10 and said[-1].startswith("  "), "the last line says what to type"
        assert contents(tmp_path / "runs") == before, "nothing half-written"
        return message

    return call


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder; what is computed once and kept whole does not count, nor do locks, which are empty."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.suffix != ".lock" and not {"embeddings", "spoken"} & set(path.parts)
    }


# ---- released checkpoints ---------------------------------------------------------------------
def edited(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    state = torch.load(path, weights_only=True)
    for part in [key for key in ("model", "ema", "state_dict") if key in state]:
        change(state[part])
    torch.save(state, path)


def drop(state: dict[str, Any]) -> None:
    for name in [
        name for name in state if name.endswith(("blocks.1.attn.key.weight", "decoder.conv_in.weight"))
    ]:
        del state[name]


def add(state: dict[str, Any]) -> None:
    prefix = "transformer." * (2 if any(k.startswith("transformer.transformer") for k in state) else 1)
    name = (
        f"{prefix}blocks.0.surprise.weight"
        if any("blocks." in k for k in state)
        else "decoder.surprise.weight"
    )
    state[name] = torch.zeros(2)


@pytest.mark.parametrize(
    ("system", "spoil", "expected"),
    [
        ("s2ivq_d", lambda path: RELEASED["vqgan_file"](path), "is not a VQ-Diffusion transformer"),
        ("vqgan", lambda path: RELEASED["transformer_file"](path), "it looks like a VQ-Diffusion transformer"),
        ("s2ivq_d", lambda path: edited(path, drop), "missing: blocks.1.attn.key.weight"),
        ("s2ivq_d", lambda path: edited(path, add), "unknown: blocks.0.surprise.weight"),
        ("vqgan", lambda path: edited(path, drop), "decoder.conv_in.weight"),
        ("vqgan", lambda path: edited(path, add), "decoder.surprise.weight"),
        ("s2ivq_d", lambda path: path.write_bytes(path.read_bytes()[:-900]), "is damaged"),
        ("vqgan", lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]), "is damaged"),
        ("s2ivq_d", lambda path: path.unlink(), "no checkpoint"),
        ("s2ivq_d", lambda path: RELEASED["transformer_file"](path, 11), "11 codes of the network, 20 of the codec"),
    ],
    ids=["other system", "transformer as codec", "missing key", "extra key", "codec, missing key",
         "codec, extra key", "cut", "codec, cut", "absent", "other size"],
)  # fmt: skip
def test_released_checkpoint_that_does_not_fit_is_refused(
    system: str, spoil: Callable[[Path], Any], expected: str, refused: Any, accepted: Any, tmp_path: Path
) -> None:
    path = tmp_path / "released.ckpt"
    RELEASED["vqgan_file"](tmp_path / "codec.ckpt")
    words = ("import", "system=vqgan", f"checkpoint={tmp_path}/codec.ckpt", "data.image_px=32")
    codec_run = accepted(*words).strip().splitlines()[-1]
    if system == "vqgan":
        RELEASED["vqgan_file"](path)
    else:
        RELEASED["transformer_file"](path, 20)
    spoil(path)
    message = refused(
        "import", f"system={system}", f"checkpoint={path}", f"codec_run={codec_run}", "data.image_px=32"
    )
    assert expected in message and str(path.name) in message


# ---- our own weights and checkpoints ----------------------------------------------------------
def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def changed(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    tensors, meta = read_weights(path)
    change(tensors)
    save_weights(path, tensors, meta)


@pytest.mark.parametrize(
    ("spoil", "expected"),
    [
        (cut, "is damaged"),
        (lambda path: changed(path, lambda state: state.pop("generator.to_logits.1.bias")),
         "1 missing: generator.to_logits.1.bias"),
        (lambda path: changed(path, lambda state: state.update({"generator.more": torch.zeros(1)})),
         "1 unknown: generator.more"),
        (lambda path: changed(path, lambda state: state.update({"generator.to_logits.1.bias": torch.zeros(9)})),
         "1 of another shape: generator.to_logits.1.bias (9,), expected (256,)"),
        (lambda path: path.unlink(), "has no weights.safetensors"),
    ],
    ids=["cut", "missing", "extra", "size", "absent"],
)  # fmt: skip
@pytest.mark.parametrize("verb", ["generate", "evaluate"])
def test_weights_that_do_not_fit_are_refused(
    verb: str, spoil: Callable[[Path], Any], expected: str, refused: Any, runs: dict[str, Path]
) -> None:
    spoil(runs["fault_diffusion"] / "weights.safetensors")
    message = refused(verb, f"run={runs['fault_diffusion']}")
    assert expected in message and str(runs["fault_diffusion"].name) in message


def test_run_of_another_stage_is_refused(refused: Any, runs: dict[str, Path]) -> None:
    assert "is a run of stage 'codec', expected a trained generator" in refused("generate", "run=fault_codec")
    assert "is a run of stage 'encoder', expected a trained codec" in refused(
        "prepare", "codec=from_run", "codec.run=fault_sen"
    )


def test_changed_codec_is_refused_by_its_hash(refused: Any, runs: dict[str, Path]) -> None:
    other = runs["fault_other"] / "weights.safetensors"
    shutil.copy(other, runs["fault_codec"] / "weights.safetensors")
    expected = json.loads((runs["fault_diffusion"] / "run.json").read_text())["codec_fingerprint"]
    found = json.loads((runs["fault_other"] / "run.json").read_text())["codec_fingerprint"]
    message = refused("generate", "run=fault_diffusion")
    assert f"holds codec {found}" in message and f"trained with codec {expected}" in message


def test_checkpoint_of_another_run_is_not_continued(
    accepted: Any, refused: Any, runs: dict[str, Path], tiny: tuple[str, ...]
) -> None:
    words = (*DIFFUSION, *SMALL, *SHORT, *tiny, "name=fault_two")
    run = Path(accepted(*words).strip().splitlines()[-1])
    shutil.rmtree(run / "checkpoints")
    shutil.copytree(runs["fault_codec"] / "checkpoints", run / "checkpoints")
    about = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps({**about, "status": "running"}))
    message = refused(*words)
    assert f"is of the run {runs['fault_codec'].name}, expected {run.name}" in message
    assert "step_00000001" in message and "resume=never" in message


# ---- codes ------------------------------------------------------------------------------------
@pytest.mark.parametrize("verb", ["train", "prepare"])
def test_codes_of_another_codec_are_refused_by_name(
    verb: str, refused: Any, runs: dict[str, Path], tiny: tuple[str, ...]
) -> None:
    mine, other = (
        json.loads((runs[name] / "run.json").read_text()) for name in ("fault_diffusion", "fault_other")
    )
    codes = Path(mine["data_folder"]) / "codes"
    good = codes / f"train_{mine['codec_fingerprint']}_1views"
    wrong = codes / f"train_{other['codec_fingerprint']}_1views"
    shutil.copytree(good, wrong)
    before = contents(codes)
    train = (*DIFFUSION, *SMALL, *SHORT, "name=fault_codes")
    words = {"train": train, "prepare": ("prepare", "codec=from_run", "codec.num_views=1")}[verb]
    try:
        message = refused(*words, *tiny, "codec.run=fault_other")
        assert contents(codes) == before
    finally:
        shutil.rmtree(wrong)
    assert (
        f"made by codec {mine['codec_fingerprint']}, expected codec {other['codec_fingerprint']}" in message
    )


# ---- conditions, steps, guidance --------------------------------------------------------------
def test_encoder_of_another_width_is_refused(refused: Any, runs: dict[str, Path], tmp_path: Path) -> None:
    run, wide = runs["fault_diffusion"], runs["fault_wide"]
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["encoder"]["run"] = wide.name
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    about = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps({**about, "encoder_run": wide.name}))
    for words in ((), ("text=a red bird",)):
        message = refused("generate", f"run={run}", *words)
        assert "gives 48 numbers an utterance" in message and "expects 32" in message


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("generator.conditioning=modulation", "generator.dim=24"), "condition_dim=32, modulation needs 2 * dim"),
        (("sampler.steps=0",), "sampler.steps: found 0"),
        (("sampler.steps=13",), "steps=13, but the schedule has 12 steps"),
        ((*NO_NULL, "loss.condition_dropout=0"), "guidance_scale=3.0, but this model was not trained"),
        ((*NO_NULL, "sampler.guidance_scale=1"), "condition_dropout is 0.1"),
        (("generator.num_tokens=99",), "generator.num_tokens=99, the codec has 256 codes"),
    ],
    ids=["width", "no steps", "too many steps", "guidance", "dropout", "codes"],
)  # fmt: skip
def test_parts_that_do_not_fit_are_refused_before_training(
    words: tuple[str, ...], expected: str, refused: Any, runs: dict[str, Path], tiny: tuple[str, ...]
) -> None:
    message = refused(*DIFFUSION, *SMALL, *SHORT, *tiny, "name=fault_parts", *words)
    assert expected in message


@pytest.mark.parametrize("verb", ["generate", "evaluate"])
@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("sampler.steps=0",), "sampler.steps: found 0"),
        (("sampler=halton", "sampler.steps=13"), "steps=13, but the schedule has 12 steps"),
    ],
    ids=["no steps", "too many"],
)
def test_steps_the_schedule_does_not_have_are_refused(
    verb: str, words: tuple[str, ...], expected: str, refused: Any, runs: dict[str, Path]
) -> None:
    assert expected in refused(verb, "run=fault_diffusion", *words)


def test_guidance_without_a_null_condition_is_refused(
    accepted: Any, refused: Any, runs: dict[str, Path], tiny: tuple[str, ...]
) -> None:
    plain = (*NO_NULL, "loss.condition_dropout=0", "sampler.guidance_scale=1", "name=fault_plain")
    accepted(*DIFFUSION, *SMALL, *SHORT, *tiny, *plain)
    for verb in ("generate", "evaluate"):
        message = refused(verb, "run=fault_plain", "sampler.guidance_scale=3")
        assert "guidance_scale=3, but this model was not trained with a null condition" in message


def test_strip_of_a_negative_number_of_states_is_refused(refused: Any, runs: dict[str, Path]) -> None:
    assert "strip: found -1" in refused("generate", "run=fault_diffusion", "strip=-1")


# ---- utterances -------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("seconds", "expected"),
    [(0.02, "320 samples are 20 ms, shorter than"), (61.0, "61.0 s long, longer than the limit of 60 s")],
    ids=["short", "long"],
)
def test_utterances_a_tower_cannot_hear_are_refused(
    seconds: float, expected: str, refused: Any, runs: dict[str, Path], tmp_path: Path
) -> None:
    run = runs["fault_diffusion"]
    about = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps({**about, "encoder_run": runs["fault_waves"].name}))
    CORPORA["write_sound"](tmp_path / "said.wav", 3, seconds=seconds)
    message = refused("generate", f"run={run}", f"speech={tmp_path / 'said.wav'}")
    assert expected in message and str(tmp_path / "said.wav") in message
    root = CORPORA["make_cub"](tmp_path / "cub")
    wave = root / "CUB_200_2011/audio/001.Bird_1/Bird_1_0001_0.wav"
    CORPORA["write_sound"](wave, 3, seconds=seconds)
    words = (
        "prepare",
        "data=cub200",
        f"data.root={root}",
        "data.speak=null",
        "data.image_px=32",
        "audio=wave_16k",
    )
    message = refused(*words, f"paths.cache={tmp_path / 'cache'}")
    assert expected in message and "Bird_1_0001_0.wav" in message


def test_recording_of_ten_samples_is_painted_where_frames_are_made_of_it(
    accepted: Any, runs: dict[str, Path], tmp_path: Path
) -> None:
    CORPORA["write_sound"](tmp_path / "said.wav", 3, seconds=0.0007)
    out = accepted("generate", f"run={runs['fault_diffusion']}", f"speech={tmp_path / 'said.wav'}")
    assert len(list(Path(out.strip().splitlines()[-1]).glob("said_*.png"))) == 1


# ---- losses that are no numbers ---------------------------------------------------------------
def test_training_stops_at_a_loss_that_is_no_number_and_goes_on_from_before(
    accepted: Any, runs: dict[str, Path], tiny: tuple[str, ...], place: tuple[str, ...], tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    path = runs["fault_sen"] / "embeddings" / "train.safetensors"
    kept = read_embeddings(path)
    sentences = kept.arrays["sentence"].copy()
    sentences[13] = 3e38  # a number as it stands, none once it is scaled
    write_embeddings(path, kept.keys, {"sentence": sentences}, kept.meta)
    words = (
        *DIFFUSION, *SMALL, *SHORT, *tiny, "name=fault_nan", "trainer.max_steps=6", "trainer.log_every=6",
        "callbacks.checkpoint.every=1", "callbacks.checkpoint.keep=9",
    )  # fmt: skip
    code = main([*words, *place, f"paths.runs={tmp_path / 'runs'}"])
    err = capsys.readouterr().err
    assert code == 2 and "Traceback" not in err
    assert (
        "training stopped at or before step" in err and "loss is nan" in err and "Try a lower optim.lr" in err
    )
    (run,) = (tmp_path / "runs").glob("fault_nan-*")
    saved = sorted((run / "checkpoints").glob("step_*.ckpt"))
    assert saved and len(saved) < 6 and not (run / "weights.safetensors").exists()
    assert not list(run.rglob("*.part"))
    state = torch.load(saved[-1], weights_only=True)
    assert state["train_step"] == len(saved)
    assert all(value.isfinite().all() for value in state["module"].values() if value.is_floating_point())
    assert json.loads((run / "run.json").read_text())["status"] == "running"
    write_embeddings(path, kept.keys, kept.arrays, kept.meta)  # the cause is mended
    assert f"continuing from step {len(saved)}" in accepted(*words)
    assert json.loads((run / "run.json").read_text())["status"] == "finished"
