"""Full, read-only and slow disks: training goes on, one message, saved again when there is space, never claimed."""

from __future__ import annotations

import os
import resource
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from speech2image.errors import CheckpointError, Preempted
from speech2image.training import checkpoint
from speech2image.training.callbacks import CheckpointWriter, JournalWriter
from speech2image.training.checkpoint import load_newest
from speech2image.training.journal import Journal
from speech2image.training.loggers import WandbLogger
from speech2image.training.module import TrainingModule
from speech2image.training.preemption import Preemption

STEPS = 12


class Line(TrainingModule):
    """Fits a line; big enough that its checkpoint does not fit on a full disk."""

    def __init__(self) -> None:
        super().__init__(seed=1)
        torch.manual_seed(0)
        self.network = nn.Linear(64, 64)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.network.parameters(), lr=1e-3)

    def training_step(self, batch: dict[str, Tensor], batch_idx: int = 0) -> None:
        optimizer: Any = self.optimizers()
        loss = nn.functional.dropout(self.network(batch["x"])).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        self.record(loss=loss)
        self.finish_step(len(batch["x"]))


class Batches(Dataset[dict[str, Tensor]]):
    def __getitem__(self, step: int) -> dict[str, Tensor]:
        return {"x": torch.full((2, 64), step / STEPS)}


class At(pl.Callback):
    """Do something when a step begins."""

    def __init__(self, **actions: Callable[[], object]) -> None:
        self.actions = {int(name.removeprefix("step_")): action for name, action in actions.items()}

    def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, batch_idx: int) -> None:
        self.actions.get(module.train_step, lambda: None)()


def train(folder: Path, *before: pl.Callback, every: int = 2, keep: int = 2) -> CheckpointWriter:
    """Train or continue a line in `folder`; journal and checkpoints as a session has them."""
    module = Line()
    state, message = load_newest(folder / "checkpoints", "line")
    if message is not None:
        print(message)
    if state is not None:
        module.load_checkpoint_state(state)
    journal = Journal(folder / "journal.jsonl", state["journal_bytes"] if state else 0)
    off = WandbLogger("disabled", "", None, "line", folder, {})
    writer = CheckpointWriter(folder / "checkpoints", every, keep, "line", journal)
    trainer = pl.Trainer(
        max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, callbacks=[*before, JournalWriter(journal, off, 2, STEPS, False), writer],
    )  # fmt: skip
    steps = range(module.train_step, STEPS)
    trainer.fit(module, DataLoader(Batches(), batch_size=None, sampler=steps))  # type: ignore[arg-type]
    journal.close()
    return writer


def steps_saved(folder: Path) -> list[int]:
    return sorted(int(path.stem.removeprefix("step_")) for path in (folder / "checkpoints").glob("*.ckpt"))


@contextmanager
def files_of_at_most(size: int) -> Iterator[Callable[[], None]]:
    """No file of this process may grow beyond `size` bytes, until the function given is called."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run nothing happened to."""
    folder = tmp_path_factory.mktemp("whole")
    train(folder)
    assert steps_saved(folder) == [10, 12]
    return folder


def ends_as(whole: Path, folder: Path) -> bool:
    journals = [(run / "journal.jsonl").read_bytes() for run in (whole, folder)]
    states = [load_newest(run / "checkpoints", "line")[0] for run in (whole, folder)]
    weights = [state["module"]["network.weight"] for state in states if state is not None]
    return journals[0] == journals[1] and len(weights) == 2 and torch.equal(*weights)


def test_full_disk_is_said_once_and_saved_again_when_there_is_space(
    whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with files_of_at_most(10_000) as free:
        at_five: list[list[int]] = []
        train(tmp_path, At(step_5=lambda: at_five.append(steps_saved(tmp_path)), step_7=free))
    said = capsys.readouterr().err
    assert at_five == [[]], "nothing is claimed while nothing is there"
    assert said.count("NOT SAVED: checkpoint of step 2 could not be written") == 1
    assert "File too large" in said and said.count("saved again, at step") == 1
    assert not list(tmp_path.rglob("*.part")) and ends_as(whole, tmp_path)


def test_journal_waits_in_memory_while_the_disk_is_full(
    whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with files_of_at_most(100) as free:
        train(tmp_path, At(step_9=free))
    said = capsys.readouterr().err
    assert said.count("journal.jsonl cannot be written (File too large)") >= 1
    assert "saved again" in said and ends_as(whole, tmp_path)


def test_a_run_that_could_save_nothing_to_its_end_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with files_of_at_most(10_000):
        writer = train(tmp_path)
    assert isinstance(writer.failure, CheckpointError) and steps_saved(tmp_path) == []
    assert capsys.readouterr().err.count("NOT SAVED") == 1


def test_folder_that_cannot_be_made_is_tried_again(
    whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The same for root, whom permissions do not stop: a file is in the way."""
    (tmp_path / "checkpoints").write_text("in the way")
    train(tmp_path, At(step_8=(tmp_path / "checkpoints").unlink))
    said = capsys.readouterr().err
    assert said.count("NOT SAVED") == 1 and "saved again" in said and ends_as(whole, tmp_path)


@pytest.mark.skipif(os.geteuid() == 0, reason="permissions do not stop root")
def test_read_only_folder_is_said_once(
    whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "checkpoints"
    folder.mkdir(mode=0o500)
    train(tmp_path, At(step_8=lambda: folder.chmod(0o700)))
    said = capsys.readouterr().err
    assert said.count("NOT SAVED") == 1 and "Permission denied" in said and ends_as(whole, tmp_path)


def test_last_whole_checkpoint_outlives_failed_saves(tmp_path: Path, whole: Path) -> None:
    writers: list[Callable[[], None]] = []

    def fill() -> None:
        manager = files_of_at_most(10_000)
        manager.__enter__()
        writers.append(lambda: manager.__exit__(None, None, None) and None)

    try:
        train(tmp_path, At(step_5=fill), keep=1)
    finally:
        writers[0]()
    assert steps_saved(tmp_path) == [4]
    state, message = load_newest(tmp_path / "checkpoints", "line")
    assert state is not None and message is None, "it is whole"
    train(tmp_path, keep=1)
    assert steps_saved(tmp_path) == [12] and ends_as(whole, tmp_path)


@pytest.mark.parametrize("step", [0, 1, 4, STEPS - 1])
def test_a_step_that_a_stop_calls_saved_is_saved(whole: Path, tmp_path: Path, step: int) -> None:
    """Also the step before the first one, and the one at which a run continues."""
    for _ in range(2):  # the second time nothing was trained since the first stop
        with (
            pytest.raises(Preempted, match=f"at step {step}, which is saved in") as stop,
            Preemption() as owner,
        ):
            owner.start_training()
            train(tmp_path, At(**{f"step_{step}": lambda: os.kill(os.getpid(), 15)}))
        assert str(tmp_path / "checkpoints") in stop.value.message and steps_saved(tmp_path)[-1] == step
    train(tmp_path)
    assert ends_as(whole, tmp_path) and 0 not in steps_saved(tmp_path)


def test_a_signal_on_a_full_disk_claims_no_save(tmp_path: Path) -> None:
    def ask() -> None:
        os.kill(os.getpid(), 15)

    with (
        pytest.raises(CheckpointError, match="stopped by a signal at step 5: checkpoint of step 5 could not"),
        Preemption() as owner,
        files_of_at_most(10_000),
    ):
        owner.start_training()
        train(tmp_path, At(step_5=ask))
    assert steps_saved(tmp_path) == []


def test_disk_that_returns_other_bytes_is_no_save(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Read back before the rename: what the disk says counts, not what was sent."""
    checkpoint.save_checkpoint(tmp_path, 1, {"train_step": 1})
    sync = os.fsync

    def damage_after_sync(handle: int) -> None:
        sync(handle)
        if (tmp_path / "step_00000002.part").exists():
            with (tmp_path / "step_00000002.part").open("r+b") as file:
                file.seek(40)
                file.write(b"?")

    monkeypatch.setattr(os, "fsync", damage_after_sync)
    with pytest.raises(CheckpointError, match="returns other bytes"):
        checkpoint.save_checkpoint(tmp_path, 2, {"train_step": 2}, keep=1)
    assert [path.name for path in tmp_path.iterdir()] == ["step_00000001.ckpt"]


def test_slow_disk_is_said_once_with_what_to_type(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sync = os.fsync
    monkeypatch.setattr(os, "fsync", lambda handle: (time.sleep(0.05), sync(handle))[1])
    monkeypatch.setattr(CheckpointWriter, "SLOW_S", 0.2)
    train(tmp_path)
    said = capsys.readouterr().err
    assert said.count("the disk is slow") == 1
    assert "% of the time so far" in said and "Type: callbacks.checkpoint.every=" in said


@pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("mount"), reason="only root may mount a small disk")
def test_a_truly_full_file_system(whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small, ballast = tmp_path / "small", tmp_path / "small" / "ballast"
    small.mkdir()
    if os.system(f"mount -t tmpfs -o size=512k tmpfs {small} 2>/dev/null"):
        pytest.skip("this system lets nobody mount a tmpfs")
    try:
        ballast.write_bytes(bytes(440 * 1024))
        train(small, At(step_7=ballast.unlink))
        said = capsys.readouterr().err
        assert said.count("NOT SAVED") == 1 and "No space left on device" in said and "saved again" in said
        assert ends_as(whole, small)
    finally:
        os.system(f"umount {small}")
