"""`speech2image train`: train a speech encoder, a codec or a generator from a configuration."""

from __future__ import annotations

import copy
import math
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from speech2image.config.runid import run_id
from speech2image.errors import DataError, MissingPackageError, Speech2ImageError


def run(config: dict[str, Any]) -> Path | None:
    """Train what the configuration says, with `evaluate` also score it; print and return the run folder."""
    if config["validate_only"]:
        print("\n".join(describe_models(config)))
        return None
    folder = train(config)
    is_whole = (folder / "weights.safetensors").is_file()  # not of a run that a search stopped
    if config["evaluate"] and is_whole and _is_first():
        evaluate(folder, config)
    print(folder)
    return folder


def _is_first() -> bool:
    from speech2image.training import ranks

    return ranks.is_first()


def evaluate(folder: Path, config: dict[str, Any]) -> None:
    """Score a finished run under its corpus's own protocol, if that was not done yet."""
    from speech2image.app import evaluate as verb
    from speech2image.config.compose import compose

    if not (folder / "metrics.json").is_file():
        asked = compose("evaluate", [])
        verb.run({**asked, "run": str(folder), "paths": config["paths"]})


def after_sweep(
    folders: Sequence[Path], name: str, paths: dict[str, Any], unfinished: Sequence[tuple[str, str]] = ()
) -> None:
    """Lay the runs of a sweep side by side in one report; print where.

    Args:
        folders: its finished runs.
        name: the sweep's id, which names the folder of the report.
        paths: the group `paths`.
        unfinished: the jobs that did not finish, each with the reason.
    """
    from speech2image.app import report as verb
    from speech2image.config.compose import compose

    out = Path(paths["runs"]) / "reports" / name
    asked = {"runs": [str(folder) for folder in folders], "out": str(out), "paths": paths}
    verb.run({**compose("report", []), **asked}, unfinished)


def train(config: dict[str, Any]) -> Path:
    """Train one run to its end, with all ranks, continuing an unfinished one; return its folder.

    Raises:  Preempted: a signal asked to stop; the state is saved.
    """
    from speech2image.training import ranks
    from speech2image.training.costs import memory_given_back
    from speech2image.training.preemption import Preemption

    with Preemption(), ranks.together(config), memory_given_back():
        return _train(config)


def _train(config: dict[str, Any]) -> Path:
    import torch

    from speech2image.training import codec_fit, diffusion_fit, fit, gan_fit, ranks
    from speech2image.training.conditions import resolve_condition
    from speech2image.training.preemption import StopNow

    torch.set_float32_matmul_precision("high")
    config = copy.deepcopy(config)
    condition = resolve_condition(config)  # writes the encoder's run id into the configuration
    codec_run = diffusion_fit.resolve_codec(config)  # and this one the codec's
    name = run_id(config["name"], config)
    folder = Path(config["paths"]["runs"]) / name
    if fit.is_finished(folder):
        print(f"{name} is finished already; nothing to do (another seed makes another run: seed=1)")
        return folder
    if codec_run is not None and condition is not None:
        diffusion_fit.check_parts(config, condition, codec_run)
    is_new = not folder.exists() and ranks.is_first()
    ranks.by_first(lambda: _write_config(folder, config))
    try:
        if config["stage"] == "encoder":
            return fit.fit_encoder(config, name, folder)
        if config["stage"] == "codec":
            return codec_fit.fit_codec(config, name, folder)
        assert condition is not None
        if codec_run is not None:
            return diffusion_fit.fit_diffusion(config, name, folder, condition, codec_run)
        return gan_fit.fit_gan(config, name, folder, condition)
    except (Speech2ImageError, StopNow):
        if is_new and not (folder / "run.json").is_file():  # refused before the first step
            shutil.rmtree(folder, ignore_errors=True)
        raise


def _write_config(folder: Path, config: dict[str, Any]) -> None:
    from omegaconf import OmegaConf

    try:
        folder.mkdir(parents=True, exist_ok=True)
        temporary = folder / "config.yaml.part"
        temporary.write_text(OmegaConf.to_yaml(OmegaConf.create(config)))
        temporary.replace(folder / "config.yaml")
    except OSError as error:
        raise DataError(
            f"the run folder {folder} cannot be written: {error.strerror}", "Type: paths.runs=<folder>"
        ) from None


def describe_models(config: dict[str, Any]) -> list[str]:
    """Build every network on the meta device and return its sizes as lines."""
    import torch

    models: dict[str, Any] = {}
    with torch.device("meta"):
        if config["stage"] == "encoder":
            models = _encoder_models(config)
        elif config["stage"] == "codec":
            models = _codec_models(config)
        else:
            models = _generator_models(config)
    lines = []
    for name, model in models.items():
        if isinstance(model, MissingPackageError):
            lines.append(f"{name:<18}not built: {model.message}. {model.remedy}")
            continue
        count = sum(parameter.numel() for parameter in model.parameters())
        lines.append(f"{name:<18}{type(model).__name__:<20}{count:>14,} parameters  {_megabytes(count)}")
    lines.append(f"run name: {run_id(config['name'], config)}")
    return lines


def _encoder_models(config: dict[str, Any]) -> dict[str, Any]:
    from speech2image.training.runs import build_encoder, build_image_branch

    models: dict[str, Any] = {"speech encoder": build_encoder(config["encoder"])}
    if config["vision"]["_target_"] and "FeatureFile" not in config["vision"]["_target_"]:
        try:
            models["image branch"] = build_image_branch(config["vision"])
        except MissingPackageError as error:
            models["image branch"] = error
    return models


def _codec_models(config: dict[str, Any]) -> dict[str, Any]:
    from speech2image.training.runs import build_codec, build_patch_discriminator

    return {
        "codec": build_codec(config["codec"]),
        "discriminator": build_patch_discriminator(config["codec"]),
    }


def _generator_models(config: dict[str, Any]) -> dict[str, Any]:
    """Build generators for an encoder and a codec of the published sizes, where those are not said."""
    from speech2image.training.conditions import reads_captions
    from speech2image.training.runs import (
        build_discriminators,
        build_encoder,
        build_generator,
        build_transformer,
    )

    node, models = config["generator"], dict[str, Any]()
    if reads_captions(config["encoder"]):
        models["text encoder"] = build_encoder(config["encoder"])
    sizes = models["text encoder"] if models else None
    if config["stage"] == "gan":
        models["generator"] = build_generator(node, sizes.sentence_dim if sizes else 1024)
        for size, net in enumerate(build_discriminators(node)):
            models[f"discriminator {size}"] = net
        return models
    sentence_dim = sizes.sentence_dim if sizes else 1024
    if node["conditioning"] == "modulation":
        sentence_dim = 2 * node["dim"]
    words_dim = sizes.words_dim if sizes else 1024
    codes, grid = node["num_tokens"] or 256, node["grid"] or [8, 8]
    models["generator"] = build_transformer(node, codes, grid, sentence_dim, words_dim, 200)
    return models


def _megabytes(count: int) -> str:
    return f"{math.ceil(count * 4 / 1e6)} MB float32"
