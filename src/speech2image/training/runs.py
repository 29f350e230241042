"""Run folders: create, find, open, and load the models they hold."""

from __future__ import annotations

import json
import os
import platform
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from speech2image import __version__
from speech2image.codecs.code_map import CodeMap
from speech2image.codecs.codec import Codec
from speech2image.codecs.discriminator import PatchDiscriminator
from speech2image.codecs.vqgan import VqGan
from speech2image.config.build import build
from speech2image.config.validate import check_groups
from speech2image.diffusion.schedule import MaskReplaceSchedule
from speech2image.diffusion.transformer import DiffusionTransformer
from speech2image.errors import CheckpointError, ConfigError, DataError, nearest_names
from speech2image.gan.discriminators import StackDiscriminator
from speech2image.gan.stackgan import StackGenerator
from speech2image.hub.weights import check_header, fill_module, read_weights
from speech2image.safe.records import read_json, read_yaml
from speech2image.speech.discriminant import Discriminant
from speech2image.training.run_records import MAX_INFO_BYTES, record_problems

#: Groups of a run's configuration that are read again when it is used.
_BUILT = ("data", "audio", "encoder", "vision", "generator", "codec", "loss", "sampler")


@dataclass
class Run:
    """One run folder: its path, its `run.json` and its configuration."""

    path: Path
    info: dict[str, Any]
    config: dict[str, Any]

    @property
    def stage(self) -> str:
        """Return `encoder`, `gan`, `codec` or `diffusion`."""
        return str(self.info["stage"])

    @property
    def weights(self) -> Path:
        """Return the file of the finished weights."""
        return self.path / "weights.safetensors"


def write_info(folder: Path, info: dict[str, Any]) -> None:
    """Write `run.json` whole or not at all.

    Raises:  DataError: the disk is full or read-only.
    """
    temporary = folder / "run.json.part"
    try:
        with temporary.open("w") as file:
            file.write(json.dumps(info, indent=1) + "\n")
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, folder / "run.json")
    except OSError as error:
        raise DataError(
            f"{folder / 'run.json'} cannot be written: {error.strerror or error}",
            "Free space or make the folder writable, then give the same command: the run continues.",
        ) from None


def new_info(run_id: str, stage: str, name: str, corpus: str) -> dict[str, Any]:
    """Return the first form of a run's `run.json`."""

    versions = {
        "speech2image": __version__,
        "python": platform.python_version(),
        **{name: version(name) for name in ("torch", "torchvision", "torchaudio", "pytorch-lightning")},
    }
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"{os.cpu_count()} CPU cores"
    return {
        "run_id": run_id,
        "stage": stage,
        "experiment": name,
        "corpus": corpus,
        "status": "running",
        "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "train_seconds": 0.0,
        "train_cpu_seconds": 0.0,
        "train_step": 0,
        "machine": f"{platform.machine()}, {device}",
        "versions": versions,
        "command": " ".join(sys.argv).replace(" ++", " "),  # compose.py adds the plus signs
    }


#: What a run of a stage is called in messages.
STAGES = {
    "encoder": "a trained encoder",
    "gan": "a trained generator",
    "codec": "a trained codec",
    "diffusion": "a trained generator",
}
#: Stages whose runs paint images from sentences.
GENERATORS = ("gan", "diffusion")


def open_run(path: str | Path | None, runs: Path, stage: str | Sequence[str] | None = None) -> Run:
    """Open a run by its folder, its id, or the name of its experiment (the newest one).

    Args:
        path: see above; `<experiment>:seed=<n>` is the newest one of that seed.
        runs: folder of all runs.
        stage: the stage it must have, or several that would do; None: any.

    Raises:
        DataError: no such run, or a run of another stage; names the runs that would do.
    """
    stages = (stage,) if isinstance(stage, str) else tuple(stage or STAGES)
    if path is not None:  # the others need not be read: a report of n runs would read n² of them
        for place in (Path(path), runs / path):
            if (place / "run.json").is_file() and (run := read_run(place)).stage in stages:
                return run if stage is None else check_run(run)
    everything = all_runs(runs)
    known = [run for run in everything if run.stage in stages]
    listing = ", ".join(str(run.path) for run in known[:8]) or f"none below {runs}/"
    what = "a run" if stage is None else STAGES[stages[0]]
    if path is None:
        raise DataError(f"run: which run? found null, expected the folder of {what}", f"Known: {listing}")
    folder = Path(path)
    if not (folder / "run.json").is_file():
        folder = _by_name(str(path), everything, runs) or folder
    if not (folder / "run.json").is_file():
        near = nearest_names(str(path), [str(run.path) for run in known], 1)
        hint = f"Did you mean {near[0]}? " if near else ""
        missing = (
            "no finished or running run of that name and seed"
            if ":seed=" in str(path)
            else "no run.json there"
        )
        raise DataError(f"run={path}: {missing}", f"{hint}Known: {listing}")
    run = read_run(folder)
    if stage is not None and run.stage not in stages:
        raise DataError(f"run={path} is a run of stage {run.stage!r}, expected {what}", f"Known: {listing}")
    return run if stage is None else check_run(run)


def _by_name(name: str, known: list[Run], runs: Path) -> Path | None:
    """Return the run of this id, else the newest one of an experiment of this name (and seed)."""
    if (runs / name / "run.json").is_file():
        return runs / name
    experiment, _, seed = name.partition(":seed=")
    found = [
        run.path
        for run in known
        if run.info.get("experiment") == experiment and (not seed or str(run.config.get("seed")) == seed)
    ]
    return found[-1] if found else None


def read_run(folder: Path) -> Run:
    """Read the records of one run folder.

    Raises:
        DataError: `run.json` or `config.yaml` is missing or damaged.
    """
    try:
        info = read_json((folder / "run.json").read_bytes(), MAX_INFO_BYTES)
        config = read_yaml((folder / "config.yaml").read_text(encoding="utf-8"))
        problems = record_problems(info, config)
        if problems:
            raise ValueError("; ".join(problems))
    except (OSError, ValueError) as error:
        raise DataError(f"{folder} is no readable run folder: {error}") from None
    return Run(folder, info, config)


def check_links(folder: Path) -> None:
    """Refuse a run whose folders lead somewhere else: what is written into them would be written there.

    Raises:  DataError: names the link.
    """
    written = [folder / name for name in ("generated", "embeddings", "published")]
    for path in (*written, *(folder / "generated").glob("*"), folder / "weights.safetensors"):
        if path.is_symlink() and not path.resolve().is_relative_to(folder.resolve()):
            raise DataError(
                f"{path} is a link that leads out of the run, to {path.resolve()}",
                "Put the files themselves there, or delete the link.",
            )


def check_run(run: Run) -> Run:
    """Return `run` after its configuration was checked as one that is typed: targets, types, ranges.

    Runs come from others too; what they name is built, and what they say is how large it becomes.

    Raises:  DataError: all problems in one message.
    """
    check_links(run.path)
    problems = check_groups(run.config, _BUILT)
    if problems:
        listed = "\n".join(f"  - {problem}" for problem in problems[:20])
        raise DataError(
            f"{run.path / 'config.yaml'} is not what this version trains with:\n{listed}",
            "Take the run as it was made; a run of another version needs that version.",
        )
    return run


def all_runs(runs: Path) -> list[Run]:
    """Return the readable runs below `runs`, oldest first."""
    return sorted(_readable(runs), key=lambda run: str(run.info.get("created", "")))


def _readable(runs: Path) -> Iterator[Run]:
    for path in sorted(runs.glob("*/run.json")):
        try:
            yield read_run(path.parent)
        except DataError:
            continue


def _weights_of(run: Run) -> Path:
    if not run.weights.is_file():
        raise CheckpointError(
            f"{run.path} has no {run.weights.name}: the run is {run.info.get('status', 'unfinished')} "
            f"at step {run.info.get('train_step', 0)}",
            "Finish it: give its train command again, it continues.",
        )
    return run.weights


def load_encoder(run: Run) -> tuple[nn.Module, nn.Module | None]:
    """Return the speech encoder of a run and its image branch (None: it has none), in eval mode."""

    def make() -> nn.ModuleDict:
        parts = nn.ModuleDict({"encoder": build_encoder(run.config["encoder"])})
        if run.info.get("has_image_branch"):
            parts["image_branch"] = build_image_branch(run.config["vision"])
        return parts

    parts = _filled(run, make)
    return parts["encoder"], dict(parts.items()).get("image_branch")


def build_encoder(config: dict[str, Any]) -> nn.Module:
    """Build the speech encoder of a configuration, published towers without their weight files."""
    return build(config | {key: None for key in ("weights_path", "clip_path") if key in config})


def build_image_branch(config: dict[str, Any]) -> nn.Module:
    """Build the image branch or frozen teacher network of an encoder run, weights not yet loaded."""
    return build({**config, "weights_path": None} if "weights_path" in config else config)


def build_generator(config: dict[str, Any], sentence_dim: int) -> StackGenerator:
    """Build the generator of a configuration for embeddings of size `sentence_dim`."""
    node = {key: value for key, value in config.items() if key != "df_dim"}
    generator: StackGenerator = build(node, sentence_dim=sentence_dim)
    return generator


def build_discriminators(config: dict[str, Any]) -> list[StackDiscriminator]:
    """Build one discriminator for each stage of the generator, smallest first."""
    sizes = [config["base_px"] * 2**stage for stage in range(config["num_stages"])]
    return [StackDiscriminator(size, config["df_dim"], config["condition_dim"]) for size in sizes]


def load_generator(run: Run) -> StackGenerator:
    """Return the generator of a run (moving average), in eval mode."""
    sentence_dim = _told(run, "sentence_dim")
    parts = _filled(
        run, lambda: nn.ModuleDict({"generator": build_generator(run.config["generator"], sentence_dim)})
    )
    return cast(StackGenerator, parts["generator"])


def load_discriminant(run: Run) -> Discriminant | None:
    """Return the projection of sentences that the generator of a run was told; None: it was told all."""
    if run.info.get("embedding_dim") is None:
        return None
    sizes = _told(run, "embedding_dim"), _told(run, "sentence_dim")
    parts = _filled(run, lambda: nn.ModuleDict({"discriminant": Discriminant(*sizes)}))
    return cast(Discriminant, parts["discriminant"])


# ---- codecs and diffusion ---------------------------------------------------------------------
def build_codec(config: dict[str, Any]) -> VqGan:
    """Build the codec network of a configuration."""
    network: VqGan = build({key: value for key, value in config.items() if not key.startswith("disc_")})
    return network


def build_patch_discriminator(config: dict[str, Any]) -> PatchDiscriminator:
    """Build the discriminator that trains a codec."""
    return PatchDiscriminator(config["disc_layers"], config["disc_width"])


def load_codec(run: Run) -> Codec:
    """Return the codec of a run, frozen, with its reduced code book where it has one."""

    def make() -> nn.ModuleDict:
        parts = nn.ModuleDict({"network": build_codec(run.config["codec"])})
        if run.info.get("num_reduced"):
            parts["code_map"] = CodeMap(run.config["codec"]["num_codes"], _told(run, "num_reduced"))
        return parts

    parts = _filled(run, make)
    code_map = parts["code_map"] if run.info.get("num_reduced") else None
    return Codec(parts["network"], code_map)  # type: ignore[arg-type]


def build_transformer(
    config: dict[str, Any], num_tokens: int, grid: Sequence[int], sentence_dim: int | None,
    words_dim: int | None = None, num_classes: int | None = None,
) -> DiffusionTransformer:  # fmt: skip
    """Build the transformer of a configuration for a codec and an encoder.

    Args:
        config: the group `generator`; its `num_tokens` and `grid` may be null: the codec's.
        num_tokens: alphabet of the codec.
        grid: rows and columns of its codes.
        sentence_dim: size of the encoder's embeddings, where the form reads them.
        words_dim: width of its words, where the form reads them.
        num_classes: classes of the corpus, where the form reads them.
    Raises:  ConfigError: the configuration is for another codec.
    """
    problems = []
    if config["num_tokens"] not in (None, num_tokens):
        problems.append(f"generator.num_tokens={config['num_tokens']}, the codec has {num_tokens} codes")
    if config["grid"] is not None and tuple(config["grid"]) != tuple(grid):
        problems.append(f"generator.grid={config['grid']}, the codec's is {list(grid)}")
    if problems:
        raise ConfigError("; ".join(problems), "Take another codec (codec.run=…), or set these keys to null.")
    form = config["conditioning"]
    ours = ("sentence_scale", "use_words")
    node = {key: value for key, value in config.items() if key not in ours}
    told: dict[str, Any] = {}
    if form in ("adaptive", "modulation"):
        told["condition_dim"] = sentence_dim
    if form == "cross" or (form == "adaptive" and config.get("use_words")):
        told["words_dim"] = words_dim
    if form == "class":
        told["num_classes"] = num_classes
    transformer: DiffusionTransformer = build({**node, "num_tokens": num_tokens, "grid": list(grid)}, **told)
    return transformer


def build_schedule(config: dict[str, Any], num_tokens: int) -> MaskReplaceSchedule:
    """Build the noise schedule of a whole configuration of stage `diffusion`."""
    return MaskReplaceSchedule(num_tokens, config["generator"]["num_steps"], config["loss"]["schedule"])


def load_transformer(run: Run) -> DiffusionTransformer:
    """Return the transformer of a diffusion run (moving average), in eval mode."""
    info = run.info
    num_tokens = _told(run, "num_tokens")

    def make() -> nn.ModuleDict:
        network = build_transformer(
            run.config["generator"], num_tokens, info["grid"], info.get("sentence_dim"), info.get("words_dim"),
            info.get("num_classes"),
        )  # fmt: skip
        return nn.ModuleDict({"generator": network})

    return cast(DiffusionTransformer, _filled(run, make)["generator"])


def _told(run: Run, key: str) -> int:
    """Return a size that `run.json` says."""
    if not run.info.get(key):
        raise DataError(f"{run.path / 'run.json'} does not say {key}", "Take the run as it was made.")
    return int(run.info[key])


def _filled(run: Run, make: Callable[[], nn.ModuleDict]) -> nn.ModuleDict:
    """Return named parts with the run's weights, which may hold others beside; frozen.

    The parts are made without memory first and compared with the names, shapes and types in the file's
    header: a configuration that asks for another network, or a huge one, costs nothing.
    """
    check_run(run)
    with torch.device("meta"):
        planned = make()
    check_header(_weights_of(run), planned)
    parts = make()
    tensors, _ = read_weights(_weights_of(run))
    wanted = {key: value for key, value in tensors.items() if key.split(".")[0] in parts}
    fill_module(parts, wanted, str(run.weights))
    parts.eval().requires_grad_(False)
    return parts
