"""Build objects from configuration nodes: only what `schema.py` lists, with values in its ranges.

Hydra's `instantiate` is not used: it imports whatever a `_target_` names, walks through attributes
(`torch.nn.parallel.distributed.os.system`), calls what it finds, and knows keys that change the call.
"""

from __future__ import annotations

import inspect
from importlib import import_module
from typing import Any

from speech2image.config.validate import TARGETS, check_fields, refused_target
from speech2image.errors import ConfigError


def build(node: dict[str, Any], **arguments: Any) -> Any:
    """Call what `node['_target_']` names with the other keys of `node` and `arguments`.

    Args:
        node: a group of a configuration, also of a run that somebody else trained.
        arguments: what configurations do not hold; not checked here.

    Raises:
        ConfigError: the target is not listed, or a key is unknown, of another type or out of range.
    """
    target = node.get("_target_")
    problem = refused_target(target)
    if problem is not None or not isinstance(target, str):
        raise ConfigError(f"_target_: {problem or 'none chosen'}")
    module, _, name = target.rpartition(".")
    given = {key: value for key, value in node.items() if key != "_target_"}
    problems = check_fields(given, TARGETS[target], name)
    if problems:
        raise ConfigError("\n".join(problems), "Take a configuration that this version wrote.")
    made: Any = getattr(import_module(module), name)
    try:
        inspect.signature(made).bind(**given, **arguments)
    except TypeError as error:
        raise ConfigError(f"cannot build {target}: {error}") from None
    return made(**given, **arguments)
