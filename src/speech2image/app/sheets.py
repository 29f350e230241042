"""Contact sheet and strip of a folder of painted images; the images themselves are in `generate.py`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np


class Sheets:
    """The first images of a request, and the states of their chains."""

    num_images, num_strips = 64, 12

    def __init__(self) -> None:
        self.images: list[np.ndarray] = []
        self.strip: np.ndarray | None = None

    def add(self, images: np.ndarray, painted: Any) -> None:
        """Keep of a batch `(B, H, W, 3)` uint8 and its `Painted` what there is room for."""
        from speech2image.images.grid import contact_sheet, to_uint8

        self.images += list(images[: max(0, self.num_images - len(self.images))])
        if painted.strip is None:
            return
        frames = [to_uint8(frame[: self.num_strips]) for frame in painted.strip]
        cells = [frame[row] for row in range(len(frames[0])) for frame in frames]
        last = painted.frame_calls[-1]
        labels = [f"{call} of {last}" for call in painted.frame_calls] * len(frames[0])
        self.strip = contact_sheet(cells, len(frames), labels, max(96, images.shape[1]))

    def write(self, out: Path) -> set[str]:
        """Write the sheets; return their names."""
        from speech2image.images.grid import contact_sheet, write_png

        sheets = {"contact_sheet.png": contact_sheet(self.images, min(8, len(self.images)))}
        if self.strip is not None:
            sheets["strip.png"] = self.strip
        for name, sheet in sheets.items():
            write_png(out / name, sheet)
        return set(sheets)
