"""Make launchers and sweepers of ours known to Hydra, without a second package on the path."""

from __future__ import annotations

import sys
from types import ModuleType

#: Hydra takes launchers and sweepers from packages below `hydra_plugins` only.
HOME = "hydra_plugins.speech2image"


def register_plugin(plugin: type) -> str:
    """Make a launcher or sweeper known to Hydra; return its `_target_`, `hydra_plugins.speech2image.<name>`."""
    from hydra.core.plugins import Plugins

    plugins = Plugins.instance()  # first: Hydra then looks for installed plugins
    if "hydra_plugins" not in sys.modules:
        sys.modules["hydra_plugins"] = ModuleType("hydra_plugins")
    home = sys.modules.setdefault(HOME, ModuleType(HOME))
    plugin.__module__ = HOME
    setattr(home, plugin.__name__, plugin)
    plugins.register(plugin)
    return f"{HOME}.{plugin.__name__}"
