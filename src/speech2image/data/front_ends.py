"""The front end of a configuration: mel frames, waveforms, or the hidden states of a frozen tower.

Here the group `audio` becomes the callable that preparing, batching and embedding use.  Recipes are in
`audio/features.py`, the tower's states in `speech/stored_states.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from speech2image.audio.features import FrontEnd, make_front_end
from speech2image.errors import ConfigError
from speech2image.speech.stored_states import StatesFrontEnd

AnyFrontEnd = FrontEnd | StatesFrontEnd
#: Name of the group `audio` that stores hidden states.
STATES = "states"
#: Stands for the group `audio` where captions are read and nothing is heard.
CAPTIONS = {"name": "captions"}


def front_end_of(audio: Mapping[str, Any]) -> AnyFrontEnd | None:
    """Return the front end of a group `audio`; None for `CAPTIONS`.

    Args:    audio: `name`; for `states` also `tower`, `weights_path` and `sha256` (null: that of the file).
    Raises:  ConfigError: an unknown name, or states without a tower.  CheckpointError: no weight file to take the
        hash of.
    """
    if audio["name"] == CAPTIONS["name"]:
        return None
    if audio["name"] != STATES:
        return make_front_end(audio["name"])
    if not audio.get("tower") or not audio.get("weights_path"):
        raise ConfigError(
            f"audio=states: found tower {audio.get('tower')} and weights_path {audio.get('weights_path')}",
            "Type: audio.tower=hubert_large audio.weights_path=<its file>",
        )
    return StatesFrontEnd.of_file(audio["tower"], Path(audio["weights_path"]), audio.get("sha256"))
