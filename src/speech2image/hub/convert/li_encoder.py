"""Released speech encoders of Li et al.: `epoch_<n>.pth`, `best.pth`, `latest.pth`.

A dictionary of `meta` and `state_dict`, or a plain state dict; our names are the same.  The
converted encoder pools as released (`mean_padded`): sums over valid steps divided by all steps.
"""

from __future__ import annotations

from pathlib import Path

from speech2image.hub.convert.converted import Converted, require, require_shapes
from speech2image.hub.weights import read_foreign

TARGET = "speech2image.speech.cnn_rnn.CnnRnn"


def convert(path: Path) -> Converted:
    """Read a released encoder.

    Returns: arguments and state of `CnnRnn`.
    Raises:  CheckpointError: another system, or sizes that contradict.
    """
    state = read_foreign(path)
    what = "Li et al. speech encoder"
    require(
        state, ["Conv.0.weight", "Conv.1.0.weight", "Conv.10.0.weight", "RNN.weight_ih_l0"], path, f"a {what}"
    )
    width = state["Conv.10.0.weight"].shape[0]
    mel_dim = state["Conv.1.0.weight"].shape[2]
    bidirectional = "RNN.weight_ih_l0_reverse" in state
    hidden = width // 2 if bidirectional else width
    expected: dict[str, tuple[int, ...]] = {
        "Conv.0.weight": (1,),
        "RNN.weight_ih_l0": (4 * hidden, width),
        "RNN.weight_hh_l0": (4 * hidden, hidden),
        "RNN.weight_ih_l0_reverse": (4 * hidden, width),
        "RNN.weight_hh_l0_reverse": (4 * hidden, hidden),
    }
    require_shapes(state, expected, path, what)
    arguments = {
        "mel_dim": mel_dim,
        "width": width,
        "bidirectional": bidirectional,
        "pool": "mean_padded",
        "step_frames": 64,
    }
    return Converted(TARGET, arguments, state)
