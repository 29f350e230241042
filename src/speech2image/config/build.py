"""Build objects from configuration nodes: the only caller of Hydra's `instantiate`.

A `_target_` outside the allow-list of `validate.py` is refused before anything is imported.
"""

from __future__ import annotations

from typing import Any

from speech2image.config.validate import ALLOWED_TARGETS, target_allowed
from speech2image.errors import ConfigError


def build(node: dict[str, Any], **arguments: Any) -> Any:
    """Instantiate `node['_target_']` with the other keys of `node` and `arguments`.

    Raises:
        ConfigError: the target is not allowed, or does not exist.
    """
    from hydra.errors import InstantiationException
    from hydra.utils import instantiate

    target = node.get("_target_")
    if not target_allowed(target):
        allowed = ", ".join(f"{prefix}*" for prefix in ALLOWED_TARGETS)
        raise ConfigError(f"{target!r} may not be instantiated", f"Allowed targets: {allowed}")
    try:
        return instantiate(node, **arguments, _recursive_=False, _convert_="all")
    except InstantiationException as error:
        cause = error.__cause__
        if cause is not None and not isinstance(cause, (ImportError, AttributeError)):
            raise cause from None
        raise ConfigError(f"cannot build {target}: {str(error).splitlines()[0]}") from None
