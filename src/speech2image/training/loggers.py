"""Weights & Biases, offline unless asked otherwise.

The journal (`journal.py`) is the truth.  wandb gets the same scalars and the sample grids; no failure of wandb
ever stops a run.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np


class WandbLogger:
    """A wandb run with the id of ours; every call survives a broken wandb.

    Args:
        mode: `offline`, `online` or `disabled`.
        project: project name.
        entity: team or user, or None.
        run_id: our run id, so that a resumed run is the same dashboard run.
        folder: run folder; wandb's files go below it.
        config: resolved configuration shown in the dashboard.
        about: further arguments of `wandb.init`: group, job_type, tags, notes.
    """

    def __init__(
        self, mode: str, project: str, entity: str | None, run_id: str, folder: Path, config: dict[str, Any],
        about: Mapping[str, Any] | None = None,
    ) -> None:  # fmt: skip
        self._run: Any = None
        if mode == "disabled":
            return
        os.environ.setdefault("WANDB_SILENT", "true")
        try:
            import wandb

            self._run = wandb.init(
                mode=mode,  # type: ignore[arg-type]
 project=project, entity=entity, id=run_id, name=run_id, dir=str(folder),
                config=config, resume="allow" if mode == "online" else None, **(about or {}),
            )  # fmt: skip
        except Exception as error:  # noqa: BLE001  wandb down, no disk, no login: training goes on
            warnings.warn(f"wandb is off for this run: {error}", stacklevel=2)

    def log(self, step: int, values: dict[str, float]) -> None:
        """Log scalars at our own step."""
        self._call(lambda: self._run.log(values, step=step))

    def log_image(self, step: int, name: str, image: np.ndarray) -> None:
        """Log one image, `(H, W, 3)` uint8."""

        def send() -> None:
            import wandb

            self._run.log({name: wandb.Image(image)}, step=step)

        self._call(send)

    def log_picture(self, step: int, name: str, path: Path) -> None:
        """Log the picture of a file."""

        def send() -> None:
            import wandb

            self._run.log({name: wandb.Image(str(path))}, step=step)

        self._call(send)

    @property
    def place(self) -> str | None:
        """Folder of an offline run, address of an online one; None: wandb is off."""
        if self._run is None:
            return None
        return str(self._run.url or Path(self._run.dir).parent)

    @property
    def next_step(self) -> int:
        """First step that a run continued online does not hold yet; 0 for a new one."""
        return 0 if self._run is None else int(self._run.step)

    def summarise(self, make: Callable[[], Mapping[str, Any]]) -> None:
        """Set summary values, which a second call overwrites; `make` may make media and may fail."""
        self._call(lambda: self._run.summary.update(dict(make())))

    def close(self) -> None:
        """Finish the wandb run."""
        self._call(lambda: self._run.finish())

    def _call(self, action: Any) -> None:
        if self._run is None:
            return
        try:
            action()
        except Exception as error:  # noqa: BLE001  as above
            warnings.warn(f"wandb failed and is off from here: {error}", stacklevel=2)
            self._run = None
