"""Find the Hydra tree, make overrides tolerant, and turn Hydra's complaints into ours.

A plain `key=value` is passed on as `++key=value`: unknown keys then reach `validate.py`, which
reports all of them together with every other problem.  Group choices are checked here, so that an
unknown experiment is answered with the nearest names.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from speech2image.config.overrides import HYDRA_GROUPS, flags_first, group_problem, word_problems
from speech2image.errors import ConfigError, Speech2ImageError, nearest_names

_FLAGS_WITH_VALUE = ("--cfg", "-c", "--package", "-p", "--info", "-i")


def conf_dir() -> Path:
    """Return the Hydra tree: $SPEECH2IMAGE_CONF, the repository's `conf/`, or the installed copy."""
    candidates = [
        Path(os.environ["SPEECH2IMAGE_CONF"]) if "SPEECH2IMAGE_CONF" in os.environ else None,
        Path(__file__).resolve().parents[3] / "conf",
        Path(sys.prefix) / "share" / "speech2image" / "conf",
    ]
    for candidate in candidates:
        if candidate is not None and (candidate / "train.yaml").is_file():
            return candidate
    looked = ", ".join(str(candidate) for candidate in candidates if candidate)
    raise ConfigError(
        f"the configuration tree was not found; looked in: {looked}",
        "Set SPEECH2IMAGE_CONF to the folder that holds train.yaml.",
    )


def choices(group: str) -> list[str]:
    """Return the option names of a group, sorted."""
    # Hydra brings `basic`, which `app/launch.py` replaces by ours.
    built_in = ["basic"] if group == "hydra/launcher" else []
    return sorted([*built_in, *(path.stem for path in (conf_dir() / group).glob("*.yaml"))])


def prepare_overrides(arguments: Sequence[str]) -> list[str]:
    """Check group choices and let unknown keys through to validation.

    Raises:
        ConfigError: a word that is no override, or an option a group does not have.
    """
    tree, prepared, problems = conf_dir(), [], word_problems(arguments)
    if problems:
        raise ConfigError("\n".join(problems), "See: speech2image <verb> --help")
    previous = ""
    for argument in arguments:
        key, equals, value = argument.partition("=")
        plain = key.lstrip("+~")
        previous, flag = argument, previous
        if argument.startswith(("-", "~")) or flag in _FLAGS_WITH_VALUE:
            prepared.append(argument)
        elif not equals:
            problems.append(f"{argument!r}: found a lone word, expected key=value")
        elif plain in HYDRA_GROUPS:
            problem = group_problem(plain, value, choices(plain))
            problems += [] if problem is None else [problem]
            prepared.append(argument)
        elif (tree / plain).is_dir():
            problems += [
                _unknown_choice(plain, name) for name in _names(value) if not _has(tree, plain, name)
            ]
            prepared.append(argument)
        elif key != plain or (
            plain.startswith("hydra") and not plain.startswith(("hydra.launcher.", "hydra.sweeper."))
        ):
            prepared.append(argument)
        else:
            prepared.append(f"++{argument}")
    if problems:
        raise ConfigError("\n".join(problems), "See the choices with: speech2image <verb> --help")
    return prepared


def is_sweep(arguments: Sequence[str]) -> bool:
    """Return whether a command starts jobs: `-m`, or one job given to another launcher than `basic`."""
    shows = any(argument in ("--cfg", "-c", "--info", "-i") for argument in arguments)
    return not shows and any(
        argument in ("-m", "--multirun")
        or (argument.startswith("hydra/launcher=") and argument != "hydra/launcher=basic")
        or argument.startswith("hydra/sweeper=")
        for argument in arguments
    )


def _names(value: str) -> list[str]:
    return [name for name in value.strip("[]").split(",") if name and name != "null"]


def _has(tree: Path, group: str, name: str) -> bool:
    if group.startswith("hydra/") and group != "hydra/launcher":  # launchers of others keep no records
        return True
    return name in choices(group)


def _unknown_choice(group: str, name: str) -> str:
    known = choices(group)
    near = nearest_names(name, known)
    hint = f"did you mean: {', '.join(near)}?" if near else f"known: {', '.join(known)}"
    return f"{group}={name}: there is no such {group}; {hint}"


def compose(verb: str, overrides: Sequence[str]) -> dict[str, Any]:
    """Return the configuration of a verb as plain containers: what one command needs to call another."""
    import hydra
    from hydra.core.global_hydra import GlobalHydra

    prepared = prepare_overrides(overrides)
    if GlobalHydra.instance().is_initialized():
        return to_plain(hydra.compose(verb, prepared))
    with hydra.initialize_config_dir(str(conf_dir()), version_base="1.3"):
        return to_plain(hydra.compose(verb, prepared))


def to_plain(config: Any) -> dict[str, Any]:
    """Return a composed configuration as plain containers, all interpolations resolved.

    Raises: ConfigError: an interpolation leads nowhere.
    """
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    try:
        plain = OmegaConf.to_container(config, resolve=True, throw_on_missing=False)
    except OmegaConfBaseException as error:
        raise _refusal(error, "<verb>") from None
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}


def _refusal(error: Exception, verb: str) -> ConfigError:
    """Return the first lines of what Hydra or OmegaConf said."""
    lines = [line[:300] for line in str(error).splitlines() if line.strip()]
    return ConfigError("\n".join(lines[:4]), f"See: speech2image {verb} --help")


def run_hydra(verb: str, arguments: Sequence[str], task: Callable[[dict[str, Any]], Any]) -> None:
    """Compose `<verb>.yaml` with the overrides and call `task` with plain, resolved containers.

    `--cfg job`, `--info`, `-m` and the rest of Hydra's own flags work as everywhere.  Jobs of a sweep are called by
    their launcher, which hears their errors.

    Raises:
        ConfigError: Hydra could not compose; the message is Hydra's first lines.
    """
    import hydra
    from hydra.errors import HydraException
    from omegaconf import DictConfig
    from omegaconf.errors import OmegaConfBaseException

    prepared, sweeps = prepare_overrides(arguments), is_sweep(arguments)
    if sweeps and not {"-m", "--multirun"} & set(prepared):
        prepared.append("--multirun")
    failures: list[Speech2ImageError] = []
    os.environ["HYDRA_FULL_ERROR"] = "1"  # errors reach us instead of Hydra's printer

    @hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name=verb)
    def call(config: DictConfig) -> Any:
        try:
            return task(to_plain(config))
        except ValueError as error:  # a bug of ours, not of the composition: keep its traceback
            raise RuntimeError(str(error)) from error
        except Speech2ImageError as error:
            if sweeps:
                raise
            failures.append(error)  # Hydra would print its own sentence before ours
            return None

    saved = sys.argv
    sys.argv = [f"speech2image {verb}", *flags_first(prepared)]
    try:
        call()
    except (HydraException, OmegaConfBaseException, ValueError) as error:
        raise _refusal(error, verb) from None
    except SystemExit as end:  # `--version` and `--hydra-help` have said all
        if end.code:
            raise
    except RecursionError:
        raise ConfigError("these words are nested too deeply", f"See: speech2image {verb} --help") from None
    finally:
        sys.argv = saved
    if failures:
        raise failures[0]
