"""Weights & Biases, offline unless asked otherwise.

The journal (`journal.py`) is the truth.  wandb gets the same scalars and the sample grids; no failure of wandb
ever stops a run.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import time
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from speech2image.training.wandb_files import (
    journal_history,
    read_records,
    require_answer,
    sample_grids,
    within,
)


class WandbLogger:
    """A wandb run with the id of ours; no failure of wandb or the network stops a run or holds it up for long.

    Online needs an answer of the server within `ANSWER_S` and a started run within `INIT_S`; else the run is logged
    offline.  The end waits `FINISH_S` for the upload.  Whatever fails is said in one warning that names the command
    which uploads the run from its journal later.

    Args:
        mode: `offline`, `online` or `disabled`.
        project: project name.
        entity: team or user, or None.
        run_id: our run id, so that a resumed run is the same dashboard run.
        folder: run folder; wandb's files go below it.
        config: resolved configuration shown in the dashboard.
        about: further arguments of `wandb.init`: group, job_type, tags, notes.

    Attributes:
        mode: what it is: `offline` also where online could not be had, `disabled` where nothing could.
        next_step: first step that the run does not hold yet: 0 but for one that is continued online.
    """

    ANSWER_S, INIT_S, FINISH_S, DISK_S = 5.0, 15.0, 15.0, 3.0

    def __init__(
        self, mode: str, project: str, entity: str | None, run_id: str, folder: Path, config: dict[str, Any],
        about: Mapping[str, Any] | None = None,
    ) -> None:  # fmt: skip
        self.mode, self.next_step, self._run = "disabled", 0, None
        self._folder, self._run_id = folder, run_id
        self._steps: set[int] = set()
        if mode == "disabled":
            return
        os.environ.setdefault("WANDB_SILENT", "true")  # nor does wandb ask for a key then
        arguments = {
            "project": project, "entity": entity, "id": run_id, "name": run_id, "dir": str(folder), "config": config,
            **(about or {}),
        }  # fmt: skip
        reason: Exception | None = None
        for asked in ("online", "offline") if mode == "online" else ("offline",):
            try:
                self._run = self._start(asked, arguments)
            except Exception as error:  # noqa: BLE001  wandb down, no disk, no login: training goes on
                reason = reason or error
                continue
            # wandb's `step` stays 0 until the first record; `starting_step` is what the server said.
            self.mode, self.next_step = asked, max(self._run.step, getattr(self._run, "starting_step", 0))
            break
        if reason is not None:
            self._warn(f"wandb is {'off' if self._run is None else 'offline'} for this run: {_short(reason)}")

    def _start(self, mode: str, arguments: dict[str, Any]) -> Any:
        import wandb

        known = getattr(wandb.Settings, "model_fields", {})
        limits = {"init_timeout": self.INIT_S, "finish_timeout": self.FINISH_S, "finish_timeout_raises": True}
        settings = wandb.Settings(**{key: limit for key, limit in limits.items() if key in known})
        if mode == "online":
            require_answer(str(wandb.setup().settings.base_url), self.ANSWER_S)
        return wandb.init(
            mode=mode,  # type: ignore[arg-type]
            resume="allow" if mode == "online" else None, settings=settings, **arguments,
        )  # fmt: skip

    def catch_up(self, last_step: int) -> None:
        """Tell wandb what the run's journal and sample grids hold and it does not, up to a step; once, at the start.

        A continued run's offline files are then whole, and those of earlier sessions, which `wandb sync` would
        upload over each other, are removed.
        """
        if self._run is None:
            return
        grids = sample_grids(self._folder, last_step)
        history = journal_history(self._folder, last_step)
        for step in sorted({*history, *grids}):
            self.log(step, history.get(step, {}))
            if step in grids:
                self.log_picture(step, "samples", grids[step])
        if self.mode == "offline" and self._run is not None:
            mine = Path(self._run.dir).parent
            for earlier in mine.parent.glob(f"offline-run-*-{self._run_id}"):
                if earlier.name != mine.name:
                    shutil.rmtree(earlier, ignore_errors=True)

    def log(self, step: int, values: dict[str, float]) -> None:
        """Log scalars at our own step."""
        self._log(step, lambda: values)

    def log_image(self, step: int, name: str, image: np.ndarray) -> None:
        """Log one image, `(H, W, 3)` uint8."""
        self._log(step, lambda: {name: _image(image)})

    def log_picture(self, step: int, name: str, path: Path) -> None:
        """Log the picture of a file."""
        self._log(step, lambda: {name: _image(str(path))})

    @property
    def place(self) -> str | None:
        """Folder of an offline run, address of an online one; None: wandb is off."""
        if self._run is None:
            return None
        return str(self._run.url or Path(self._run.dir).parent)

    def summarise(self, make: Callable[[], Mapping[str, Any]]) -> None:
        """Set summary values, which a second call overwrites; `make` may make media and may fail."""
        self._call(lambda: self._run.summary.update(dict(make())))

    def close(self, exit_code: int = 0) -> None:
        """Finish the wandb run, within `FINISH_S` and a little; look whether its records reached the disk."""
        if self._run is None:
            return
        run, folder, self._run = self._run, Path(self._run.dir).parent, None
        try:
            within(self.FINISH_S + 5, lambda: run.finish(exit_code), "wandb's end")
        except Exception as error:  # noqa: BLE001  as above
            self._give_up(error)
            return
        if not self._reached_disk(folder):
            self._warn(f"wandb's files in {folder} lack records of this run (is the disk full?)")

    def _reached_disk(self, folder: Path) -> bool:
        """Return whether all records are in the file; wandb writes the last ones after it says it is done."""
        end = time.monotonic() + self.DISK_S
        while not _is_whole(folder, self._steps):
            if time.monotonic() > end:
                return False
            time.sleep(0.02)
        return True

    def _log(self, step: int, make: Callable[[], dict[str, Any]]) -> None:
        if self._run is None or step < self.next_step:
            return
        self._steps.add(step)
        self._call(lambda: self._run.log(make(), step=step))

    def _call(self, action: Callable[[], Any]) -> None:
        if self._run is None:
            return
        try:
            action()
        except Exception as error:  # noqa: BLE001  as above
            run, self._run = self._run, None
            with contextlib.suppress(Exception):
                within(self.FINISH_S + 5, lambda: run.finish(1), "wandb's end")
            self._give_up(error)

    def _give_up(self, error: Exception) -> None:
        """Say so, and end wandb's service: the next run of this process starts another, and its own end is quiet."""
        self.mode = "disabled"
        self._warn(f"wandb failed and is off from here: {_short(error)}")
        with contextlib.suppress(Exception):
            import wandb

            within(self.FINISH_S + 5, wandb.teardown, "wandb's end")

    def _warn(self, what: str) -> None:
        home = self._folder if self._folder.name == self._run_id else self._folder.parent
        later = f"speech2image report runs=[{home}] logger=online"
        warnings.warn(
            f"{what}. Training is not touched, its journal holds everything; to upload it later type: {later}",
            stacklevel=3,
        )


def _image(content: Any) -> Any:
    import wandb

    return wandb.Image(content)


def _short(error: Exception) -> str:
    """Return the first line of a message: wandb's go on with what its server said."""
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")


def _is_whole(folder: Path, steps: set[int]) -> bool:
    """Return whether the `.wandb` file of a finished run ends as it should and holds every step."""
    try:
        from wandb.proto import wandb_internal_pb2 as protocol

        path = next(folder.glob("run-*.wandb"))
        kinds = [
            protocol.Record.FromString(record).WhichOneof("record_type") for record in read_records(path)
        ]
    except Exception:  # noqa: BLE001  another wandb with other files: nothing is known
        return True
    return kinds.count("history") >= len(steps) and "exit" in kinds
