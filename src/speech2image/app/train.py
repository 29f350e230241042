"""`speech2image train`: train a speech encoder or a generator from a configuration."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

from speech2image.config.runid import run_id
from speech2image.errors import ConfigError, DataError


def run(config: dict[str, Any]) -> None:
    """Train what the configuration says and print the run folder."""
    if config["stage"] not in ("encoder", "gan"):
        raise ConfigError(f"stage: found {config['stage']!r}, expected 'encoder' or 'gan'")
    if config["validate_only"]:
        print("\n".join(describe_models(config)))
        return
    folder = train(config)
    print(folder)


def train(config: dict[str, Any]) -> Path:
    """Train one run to its end, continuing an unfinished one; return its folder."""
    import torch

    from speech2image.training import fit

    torch.set_float32_matmul_precision("high")
    config = copy.deepcopy(config)
    condition = fit.resolve_condition(config)  # writes the encoder's run id into the configuration
    name = run_id(config["name"], config)
    folder = Path(config["paths"]["runs"]) / name
    if fit.is_finished(folder):
        print(f"{name} is finished already; nothing to do (another seed makes another run: seed=1)")
        return folder
    _write_config(folder, config)
    if config["stage"] == "encoder":
        return fit.fit_encoder(config, name, folder)
    assert condition is not None
    return fit.fit_gan(config, name, folder, condition)


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

    from speech2image.config.build import build
    from speech2image.training.runs import build_discriminators, build_generator, build_image_branch

    models: dict[str, Any] = {}
    with torch.device("meta"):
        if config["stage"] == "encoder":
            models["speech encoder"] = build(config["encoder"])
            if config["vision"]["_target_"] and "FeatureFile" not in config["vision"]["_target_"]:
                models["image branch"] = build_image_branch(config["vision"])
        else:
            models["generator"] = build_generator(config["generator"], 1024)
            for size, net in enumerate(build_discriminators(config["generator"])):
                models[f"discriminator {size}"] = net
    lines = []
    for name, model in models.items():
        count = sum(parameter.numel() for parameter in model.parameters())
        lines.append(f"{name:<18}{type(model).__name__:<20}{count:>14,} parameters  {_megabytes(count)}")
    lines.append(f"run name: {run_id(config['name'], config)}")
    return lines


def _megabytes(count: int) -> str:
    return f"{math.ceil(count * 4 / 1e6)} MB float32"
