"""Help pages made from the schema: every key, its default, its meaning."""

from __future__ import annotations

import dataclasses
import typing
from typing import Any

from speech2image.config.compose import choices, conf_dir
from speech2image.config.root import ROOT_HELP
from speech2image.config.schema import VARIANTS, MakeBirdsConfig, MakeDigitsConfig
from speech2image.config.schema_launcher import LAUNCHERS


def verb_help(verb: str, line: str) -> str:
    """Return the help page of one verb."""
    tree = conf_dir()
    groups = [group for group in VARIANTS if f"- {group}:" in (tree / f"{verb}.yaml").read_text()]
    parts = [
        f"speech2image {verb}: {line}",
        "",
        f"usage: speech2image {verb} [key=value ...] [--cfg job]",
        "",
    ]
    parts += ["keys:"]
    parts += [f"  {key:<24} {text}" for key, text in ROOT_HELP[verb].items()]
    if (tree / f"{verb}.yaml").read_text().find("- experiment:") >= 0:
        parts += ["", "experiments (experiment=NAME):"]
        parts += [f"  {name:<24} {_first_comment(name)}" for name in choices("experiment")]
    for group in groups:
        parts += ["", f"{group} ({group}={' | '.join(choices(group))}):"]
        for schema, tag in {schema: tag for tag, schema in VARIANTS[group].items()}.items():
            if len(VARIANTS[group]) > 1 and dataclasses.fields(schema):
                parts.append(f"  {str(tag).rsplit('.', 1)[-1]}: {(schema.__doc__ or '').splitlines()[0]}")
            parts += _fields(schema, group)
        if group == "protocol":
            from speech2image.metrics.protocols import PROTOCOLS

            parts += [
                "  what each fixes (split, counts, real set, networks, preparation) is written into metrics.json:"
            ]
            parts += [f"  {name:<24} {found.title}" for name, found in sorted(PROTOCOLS.items())]
        if group == "data":
            parts += _fields(MakeBirdsConfig, "data.make", " (spoken_birds)")
            parts += _fields(MakeDigitsConfig, "data.make", " (spoken_digits)")
    if verb in _SWEPT:
        parts += ["", *_sweep_help(verb)]
    return "\n".join(parts)


#: Verbs that are worth many jobs.
_SWEPT = ("train", "evaluate", "generate", "embed")


def _sweep_help(verb: str) -> list[str]:
    lines = [
        f"sweeps: speech2image {verb} -m key=value,value ... runs every combination; the same command continues",
        "  hydra/launcher=basic here one after the other, joblib several at a time, slurm on a cluster (one job too)",
        "  speech2image collect [sweep=latest] [wait=true]   how far the jobs are, and their report",
    ]
    for name, schema in LAUNCHERS.items():
        lines += _fields(schema, "hydra.launcher", f" ({name})")
    return lines


def _fields(schema: type, path: str, suffix: str = "") -> list[str]:
    hints = typing.get_type_hints(schema)
    lines: list[str] = []
    for item in dataclasses.fields(schema):
        if dataclasses.is_dataclass(hints[item.name]):
            lines += _fields(typing.cast(type, hints[item.name]), f"{path}.{item.name}", suffix)
            continue
        meta = item.metadata
        text = meta["help"] + suffix
        if meta.get("choices"):
            names = "|".join("null" if choice is None else str(choice) for choice in meta["choices"])
            text += f" [{names}]"
        unit = f" {meta['unit']}" if meta.get("unit") else ""
        lines.append(f"  {f'{path}.{item.name}={_shown(item)}{unit}':<44} {text}")
    return lines


def _shown(item: dataclasses.Field[Any]) -> str:
    value: Any = item.default
    factory: Any = item.default_factory
    if value is dataclasses.MISSING and factory is not dataclasses.MISSING:
        value = factory()
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _first_comment(name: str) -> str:
    lines = (conf_dir() / "experiment" / f"{name}.yaml").read_text().splitlines()
    comments = [line[1:].strip() for line in lines if line.startswith("#") and "@package" not in line]
    return comments[0] if comments else ""
