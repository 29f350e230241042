"""Released systems by name: which files they come in and how to build our networks from them.

`import` calls `load_released`; the converters of `convert/` infer sizes from each file.  Writing a
run folder from the result is the command's business.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import nn

from speech2image.errors import CheckpointError, nearest_names
from speech2image.hub.convert import li_encoder, sen, speechclip, stackgan_v2
from speech2image.hub.convert.converted import Converted
from speech2image.hub.weights import compare_state, fill_module


@dataclass(frozen=True)
class ReleasedSystem:
    """A published system whose files can be imported.

    Attributes:
        name: what `system=` takes.
        stage: `encoder` or `gan`, the kind of run it becomes.
        main: role of the file that `checkpoint=` names.
        roles: role to converter.
        companions: role to the name of the file beside the main one.
    """

    name: str
    stage: str
    main: str
    roles: Mapping[str, Callable[[Path], Converted]]
    companions: Mapping[str, str]


@dataclass(frozen=True)
class ReleasedNetwork:
    """One imported network in evaluation mode, with the arguments it was built from."""

    role: str
    file: Path
    target: str
    arguments: dict[str, Any]
    module: nn.Module
    dropped: tuple[str, ...]


SYSTEMS: dict[str, ReleasedSystem] = {
    system.name: system
    for system in (
        ReleasedSystem(
            "stackgan_v2",
            "gan",
            "generator",
            {
                "generator": stackgan_v2.convert_generator,
                "discriminator_64": stackgan_v2.convert_discriminator,
                "discriminator_128": stackgan_v2.convert_discriminator,
                "discriminator_256": stackgan_v2.convert_discriminator,
            },
            {
                "discriminator_64": "netD0.pth",
                "discriminator_128": "netD1.pth",
                "discriminator_256": "netD2.pth",
            },
        ),
        ReleasedSystem("li_encoder", "encoder", "encoder", {"encoder": li_encoder.convert}, {}),
        ReleasedSystem("speechclip", "encoder", "encoder", {"encoder": speechclip.convert}, {}),
        ReleasedSystem(
            "sen",
            "encoder",
            "encoder",
            {
                "encoder": sen.convert,
                "image_head": sen.convert_image_model,
                "classifier": sen.convert_class_model,
            },
            {"image_head": "best_image_model.pth", "classifier": "best_class_model.pth"},
        ),
    )
}
"""Importable systems by name."""


def load_released(system: str, checkpoint: Path) -> dict[str, ReleasedNetwork]:
    """Build the networks of a released system from its main file and the companions beside it.

    Args:
        system: a name of `SYSTEMS`.
        checkpoint: the main file, e.g. `netG_210000.pth`; companions with their released names in
            the same folder are imported too, others are left out.

    Returns: role to network.
    Raises:  CheckpointError: unknown system, damaged or foreign file, or parts that do not belong
        together.
    """
    if system not in SYSTEMS:
        near = nearest_names(system, SYSTEMS) or sorted(SYSTEMS)
        raise CheckpointError(
            f"there is no importable system '{system}'",
            f"Use system={' or system='.join(near)} (all: {', '.join(sorted(SYSTEMS))}).",
        )
    known = SYSTEMS[system]
    files = {known.main: checkpoint}
    for role, name in known.companions.items():
        beside = checkpoint.parent / name
        if beside.is_file():
            files[role] = beside
    networks = {role: _build(role, path, known.roles[role](path)) for role, path in files.items()}
    _check_together(networks)
    return networks


def build_converted(converted: Converted, origin: Path) -> nn.Module:
    """Return our network with the released weights, in evaluation mode.

    Raises:  CheckpointError: names or shapes that the inferred network does not have.
    """
    module_name, class_name = converted.target.rsplit(".", 1)
    make = getattr(import_module(module_name), class_name)
    with torch.device("meta"):  # sizes inferred from a few tensors may ask for many others
        compare_state(make(**converted.arguments), converted.state, str(origin))
    network: nn.Module = make(**converted.arguments)
    fill_module(network, converted.state, str(origin))
    return network.eval()


def _build(role: str, path: Path, converted: Converted) -> ReleasedNetwork:
    module = build_converted(converted, path)
    return ReleasedNetwork(role, path, converted.target, converted.arguments, module, converted.dropped)


def _check_together(networks: Mapping[str, ReleasedNetwork]) -> None:
    problems = []
    generator = networks.get("generator")
    for role, network in networks.items():
        if role.startswith("discriminator_"):
            if role != f"discriminator_{network.arguments['image_px']}":
                problems.append(f"{network.file.name} is for {network.arguments['image_px']} pixels")
            if generator and network.arguments["condition_dim"] != generator.arguments["condition_dim"]:
                problems.append(
                    f"{network.file.name} has condition_dim {network.arguments['condition_dim']}, the"
                    f" generator {generator.arguments['condition_dim']}"
                )
    if problems:
        raise CheckpointError(
            "the files do not belong together: " + "; ".join(problems),
            "Put the netD0.pth, netD1.pth and netD2.pth of the same training beside netG, or none.",
        )
