"""The local journal, always written, and Weights & Biases, offline unless asked otherwise.

The journal is the truth: JSON lines keyed by step, appended and flushed.  wandb gets the same
scalars and the sample grids; no failure of wandb ever stops a run.
"""

from __future__ import annotations

import json
import os
import time
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from speech2image.errors import DataError


class Journal:
    """Append-only JSON lines of one run.

    Args:
        path: `journal.jsonl` of the run.
        resume_step: lines of later steps, written by a killed run, are dropped; None: keep all.
    """

    def __init__(self, path: Path, resume_step: int | None = None) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists() and resume_step is not None:
            _cut_after(path, resume_step)
        self._file = path.open("a", encoding="utf-8")

    def write(self, step: int, kind: str, **values: Any) -> None:
        """Append one line and hand it to the operating system.

        Raises:  DataError: the disk is full.
        """
        line = {"step": step, "time": round(time.time(), 3), "kind": kind, **values}
        try:
            self._file.write(json.dumps(line) + "\n")
            self._file.flush()
        except OSError as error:
            raise DataError(
                f"{self.path}: step {step} cannot be written ({error.strerror})",
                "Free space, then give the same command: the run continues from its checkpoint.",
            ) from None

    def close(self) -> None:
        """Sync to disk and close."""
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()


def _cut_after(path: Path, step: int) -> None:
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line)
        except (json.JSONDecodeError, KeyError, TypeError):
            continue  # a line cut by a kill
    temporary = path.with_suffix(".part")
    temporary.write_text("".join(line + "\n" for line in kept), encoding="utf-8")
    os.replace(temporary, path)


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
