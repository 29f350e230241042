"""Check a composed configuration, all problems in one message, before torch is imported.

Three passes: each group against its dataclass (unknown keys, types, ranges, choices), targets
against the allow-list, and rules that cross groups.  `check_config` raises one `ConfigError`.
"""

from __future__ import annotations

import dataclasses
import math
import re
import types
import typing
from typing import Any

from speech2image.config.schema import TAGS, VARIANTS, MakeBirdsConfig, MakeDigitsConfig
from speech2image.errors import ConfigError, nearest_names

#: What a `_target_` may name, letter for letter, and the schema of its arguments; nothing else is ever built.
TARGETS: dict[str, type] = {
    name: schema
    for group, variants in VARIANTS.items()
    if group not in TAGS
    for name, schema in variants.items()
    if name is not None
}

_MAKERS: dict[str, type] = {"spoken_birds": MakeBirdsConfig, "spoken_digits": MakeDigitsConfig}


def refused_target(target: object) -> str | None:
    """Return why a `_target_` may not be built; None: it is listed, or there is none."""
    if target is None or (isinstance(target, str) and target in TARGETS):
        return None
    near = nearest_names(str(target)[:200], TARGETS, 1)
    listed = f"did you mean {near[0]}?" if near else f"listed: {', '.join(sorted(TARGETS))}"
    return f"{str(target)[:200]!r} may not be instantiated; {listed}"


def check_config(config: dict[str, Any], root_fields: dict[str, type | tuple[type, ...]]) -> None:
    """Check a resolved configuration.

    Args:
        config: plain containers, all interpolations resolved.
        root_fields: keys of the root that are not groups, with their types.

    Raises:
        ConfigError: lists every problem, with the nearest known name for unknown keys.
    """
    problems: list[str] = []
    for key, value in config.items():
        if key in VARIANTS:
            problems += _check_group(key, value)
        elif key in root_fields:
            expected = root_fields[key]
            if not isinstance(value, expected) or (isinstance(value, bool) and expected in (int, (int,))):
                problems.append(f"{key}: found {value!r}, expected {_type_name(expected)}")
        else:
            problems.append(_unknown(key, "", [*VARIANTS, *root_fields]))
    problems += check_targets(config)
    if not problems:
        problems += _check_across(config)
    if problems:
        lines = "\n".join(f"  - {problem}" for problem in problems)
        count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        raise ConfigError(
            f"{count} in the configuration:\n{lines}", "See every key with: speech2image <verb> --help"
        )


def _check_group(group: str, value: Any) -> list[str]:
    if value is None:
        value = {}
    if not isinstance(value, dict):
        return [f"{group}: found {value!r}, expected a group of keys"]
    variants = VARIANTS[group]
    tag = value.get(TAGS.get(group, "_target_"))
    if not isinstance(tag, str | None) or tag not in variants:
        known = [str(name) for name in variants if name]
        near = nearest_names(str(tag), known)
        hint = f"; did you mean {near[0]}?" if near else f"; known: {', '.join(known)}"
        return [f"{group}: no schema for {tag!r}{hint}"]
    rest = {key: item for key, item in value.items() if key != "_target_"}
    problems = check_fields(rest, variants[tag], group)
    if group == "data" and isinstance(value.get("make"), dict) and str(value.get("name")) in _MAKERS:
        problems += check_fields(value["make"], _MAKERS[str(value["name"])], "data.make")
    return problems


def check_fields(value: dict[str, Any], schema: type, path: str) -> list[str]:
    """Return the problems of one mapping against one dataclass."""
    hints = typing.get_type_hints(schema)
    fields = {item.name: item for item in dataclasses.fields(schema)}
    problems = []
    for key, item in value.items():
        where = f"{path}.{key}"
        if key not in fields:
            problems.append(_unknown(key, f"{path}.", list(fields)))
        elif dataclasses.is_dataclass(hints[key]):
            if isinstance(item, dict):
                problems += check_fields(item, typing.cast(type, hints[key]), where)
            else:
                problems.append(f"{where}: found {item!r}, expected a group of keys")
        else:
            problems += _check_value(item, hints[key], fields[key].metadata, where)
    missing = [name for name in fields if name not in value and not _has_default(fields[name])]
    return problems + [f"{path}.{name}: missing" for name in missing]


def _check_value(value: Any, hint: Any, meta: Any, where: str) -> list[str]:
    unit = f" {meta['unit']}" if meta.get("unit") else ""
    if meta.get("choices"):
        if value not in meta["choices"]:
            near = nearest_names(str(value), [str(choice) for choice in meta["choices"]], 1)
            hint_text = f"; did you mean {near[0]!r}?" if near else ""
            known = ", ".join("null" if choice is None else str(choice) for choice in meta["choices"])
            return [f"{where}: found {value!r}, expected one of: {known}{hint_text}"]
        return []
    if not _matches(value, hint):
        return [f"{where}: found {value!r}, expected {_type_name(hint)}"]
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        low, high = meta.get("low"), meta.get("high")
        if math.isnan(value) or (low is not None and value < low) or (high is not None and value > high):
            bounds = (
                f"{'' if low is None else f'at least {low:g}'}{' and ' if None not in (low, high) else ''}"
            )
            bounds += "" if high is None else f"at most {high:g}"
            return [f"{where}: found {value!r}{unit}, expected {bounds or 'a number'}{unit}"]
    return []


def _matches(value: Any, hint: Any) -> bool:
    origin = typing.get_origin(hint)
    if origin in (typing.Union, types.UnionType):
        return any(_matches(value, part) for part in typing.get_args(hint))
    if hint is Any:
        return True
    if hint is type(None):
        return value is None
    if hint is bool:
        return isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if hint is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    if origin is list:
        return isinstance(value, list) and all(_matches(item, typing.get_args(hint)[0]) for item in value)
    if origin is dict:
        return isinstance(value, dict)
    return isinstance(value, hint)


def check_groups(config: dict[str, Any], groups: tuple[str, ...]) -> list[str]:
    """Return the problems of some groups of a configuration, those that it has, and of every target in it."""
    present = [group for group in groups if config.get(group) is not None]
    return [problem for group in present for problem in _check_group(group, config[group])] + check_targets(
        config
    )


def check_targets(node: Any, path: str = "") -> list[str]:
    """Return the problems of every `_target_` in a configuration, however deep."""
    problems = []
    if isinstance(node, dict):
        for key, item in node.items():
            where = f"{path}.{key}" if path else str(key)
            refused = refused_target(item) if key == "_target_" else None
            if refused is not None:
                problems.append(f"{where}: {refused}")
            elif str(key).startswith("_") and key != "_target_":
                problems.append(f"{where}: keys that begin with _ are not taken")
            problems += check_targets(item, where)
    elif isinstance(node, list):
        for index, item in enumerate(node):
            problems += check_targets(item, f"{path}[{index}]")
    return problems


def _check_across(config: dict[str, Any]) -> list[str]:
    problems = []
    generator, data = config.get("generator") or {}, config.get("data") or {}
    if "base_px" in generator and data:
        largest = generator["base_px"] * 2 ** (generator["num_stages"] - 1)
        if largest != data["image_px"]:
            problems.append(
                f"data.image_px: found {data['image_px']} px, but the generator paints {largest} px "
                f"(generator.base_px {generator['base_px']} x 2^(num_stages {generator['num_stages']} - 1))"
            )
    loss = config.get("loss") or {}
    if not 0 <= config.get("seed", 0) < 2**32:
        problems.append(f"seed: found {config['seed']}, expected 0 to {2**32 - 1}")
    if "stage" in config:
        problems += _check_stage(config)
    if not re.fullmatch(r"\w[\w.+-]{0,150}", "name" if config.get("name") is None else str(config["name"])):
        problems.append(
            f"name: found {config['name'][:80]!r}, expected letters, digits and . _ + - (a folder is named so)"
        )
    pretrains = (config.get("vision") or {}).get("pretrain_steps", 0)
    if pretrains and not loss.get("distinctive_weight", 0):
        problems.append(
            f"vision.pretrain_steps: found {pretrains}, but this loss has no classifier of images "
            "(loss=s2igan with loss.distinctive_weight above 0)"
        )
    problems += _check_speech(config)
    betas = (config.get("optim") or {}).get("betas")
    if betas is not None and (len(betas) != 2 or not all(0 <= beta < 1 for beta in betas)):
        problems.append(f"optim.betas: found {betas!r}, expected two numbers in [0, 1)")
    return problems


#: Stage: (objectives that train it, what it trains, beginning of the generator's target).
_STAGES: dict[str, tuple[tuple[str | None, ...], str, str]] = {
    "encoder": (
        tuple(sorted(set(VARIANTS["loss"]) - {"codec", "stackgan_v2", "vq_diffusion"}, key=str)),
        "a speech encoder",
        "",
    ),
    "codec": (("codec",), "a codec", ""),
    "gan": (("stackgan_v2",), "a generator", "speech2image.gan."),
    "diffusion": (("vq_diffusion",), "a diffusion model", "speech2image.diffusion."),
}


def _check_stage(config: dict[str, Any]) -> list[str]:
    """Return the problems of groups that do not fit the stage."""
    stage, problems = config["stage"], []
    if stage not in _STAGES:
        return [f"stage: found {stage!r}, expected one of: {', '.join(_STAGES)}"]
    objectives, trained, target = _STAGES[stage]
    objective = (config.get("loss") or {}).get("objective")
    if objective not in objectives:
        problems.append(f"loss.objective: {objective!r} cannot train {trained} (stage={stage})")
    generator, encoder, codec = (
        str((config.get(group) or {}).get("_target_") or "") for group in ("generator", "encoder", "codec")
    )
    if target and not generator.startswith(target):
        example = "stackgan_v2" if stage == "gan" else "vq_diffusion_small"
        what = "none chosen" if not generator else f"found {generator}"
        problems.append(f"generator: {what}, but stage={stage} needs another (generator={example})")
    untold = not encoder and (config.get("generator") or {}).get("conditioning") in ("class", "none")
    if target and not untold and not encoder.startswith(("speech2image.training.", "speech2image.text.")):
        problems.append(
            f"encoder: stage={stage} takes its condition from a trained encoder (encoder=from_run)"
            " or from captions (encoder=clip_text)"
        )
    if stage == "encoder" and not encoder:
        problems.append("encoder: stage=encoder trains an encoder, none chosen (encoder=sen_small)")
    if stage == "encoder" and encoder.startswith("speech2image.text."):
        problems.append(
            "encoder: a text encoder is frozen, there is nothing to train (stage=diffusion or gan)"
        )
    if stage == "codec" and not codec.startswith("speech2image.codecs."):
        problems.append("codec: stage=codec trains a codec, none chosen (codec=vqgan_small)")
    if stage == "codec" and codec and config["codec"].get("image_px") != config["data"]["image_px"]:
        problems.append(
            f"data.image_px: found {config['data']['image_px']} px, but codec.image_px is"
            f" {config['codec'].get('image_px')} px"
        )
    if (config.get("encoder") or {}).get("lda_dim") and (config.get("loss") or {}).get("semantic_weight"):
        problems.append(
            "loss.semantic_weight: compares images with whole embeddings; with encoder.lda_dim take"
            " loss.prototype_weight"
        )
    if stage == "diffusion" and not codec.endswith(".CodecFromRun"):
        problems.append("codec: stage=diffusion takes its codes from a trained codec (codec=from_run)")
    return problems


def _check_speech(config: dict[str, Any]) -> list[str]:
    """Waveforms go to encoders that take them, frames to the others; clipping to who clips."""
    stage, encoder = config.get("stage"), config.get("encoder") or {}
    problems = []
    if stage == "encoder" and encoder.get("_target_"):
        group = config.get("audio") or {}
        audio, tower = group.get("name"), encoder.get("tower")
        if audio == "states" or encoder.get("source") == "states":
            return _check_states(group, encoder)
        takes_waves = tower is not None and (tower != "small" or encoder.get("mel_dim") == 1)
        if takes_waves and audio != "wave_16k":
            problems.append(f"audio: found {audio}, but this encoder takes waveforms (audio=wave_16k)")
        if not takes_waves and audio == "wave_16k":
            problems.append("audio: found wave_16k, but this encoder takes mel frames (audio=s2igan)")
    if stage == "gan" and (config.get("optim") or {}).get("clip_norm") is not None:
        problems.append("optim.clip_norm: stage=gan does not bound gradients; leave it null")
    return problems


def _check_states(audio: dict[str, Any], encoder: dict[str, Any]) -> list[str]:
    """Stored states go to encoders that read them, and are those of the tower the encoder names."""
    tower = encoder.get("tower")
    if tower is None or audio.get("name") != "states" or encoder.get("source") != "states":
        found = f"found {audio.get('name')} and encoder.source={encoder.get('source')}"
        return [
            f"audio: {found}; stored states need audio=states, encoder.source=states and a SpeechCLIP encoder"
        ]
    if tower != audio.get("tower"):
        return [f"audio.tower: found {audio.get('tower')}, but encoder.tower is {tower}"]
    return []


def _has_default(item: dataclasses.Field[Any]) -> bool:
    return item.default is not dataclasses.MISSING or item.default_factory is not dataclasses.MISSING


def _unknown(key: object, prefix: str, known: list[str]) -> str:
    near = nearest_names(str(key), known, 1)
    hint = f"; did you mean {prefix}{near[0]}?" if near else ""
    return f"{prefix}{key}: unknown key{hint}"


def _type_name(hint: Any) -> str:
    names = {int: "an integer", float: "a number", str: "a text", bool: "true or false", type(None): "null"}
    if hint in names:
        return names[hint]
    parts = hint if isinstance(hint, tuple) else typing.get_args(hint)
    if typing.get_origin(hint) is list:
        return "a list"
    if typing.get_origin(hint) is dict:
        return "a group of keys"
    return " or ".join(_type_name(part) for part in parts) or str(hint)
