"""The one owner of the signals that ask a run to stop: SIGTERM, SIGUSR1 and SIGUSR2.

While a run trains the handlers only set a flag, which `callbacks.CheckpointWriter` asks for at every step boundary:
it saves there and calls `give_way`.  Ctrl-C does the same while a run trains; a second one ends it at once.  Before the
first step there is nothing to save, and a signal ends the run as Ctrl-C does in Python.
"""

from __future__ import annotations

import os
import signal
import subprocess
import threading
from types import FrameType, TracebackType
from typing import Any, NoReturn, Self

from speech2image.errors import Interrupted, Preempted
from speech2image.training import ranks

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
WORKER_GRACE_S = 30
"""Seconds that a loader process outlives a SIGTERM, so that the step it feeds ends and is saved."""


class StopNow(BaseException):
    """A signal came while nothing was trained yet; no `except Exception` of a reader may take it for damage."""


class Preemption:
    """Own the signals from `__enter__` to `__exit__`; in other threads than the main one it owns nothing.

    SIGTERM ends the run (a cancelled job stays cancelled; a preempted one is requeued by SLURM itself).  SIGUSR1 and
    SIGUSR2 say that the time limit is near: after the save the handler that was there before (submitit's) is called,
    and without one, in a SLURM job, the job is put back into the queue.
    """

    def __init__(self) -> None:
        self._signal: signal.Signals | None = None
        self._earlier: dict[signal.Signals, Any] = {}
        self._training = False
        self._given_way = False

    @property
    def asked(self) -> bool:
        """Whether a signal has asked this process to stop."""
        return self._signal is not None

    def __enter__(self) -> Self:
        global _active
        self._outer, _active = _active, self
        if threading.current_thread() is threading.main_thread():
            self._earlier = {number: signal.getsignal(number) for number in SIGNALS}
            self.claim()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        global _active
        was_training = self._training
        _active, self._training = (
            self._outer,
            True,
        )  # from here on, no second signal breaks what is being ended
        try:
            # Code in C turns a StopNow that reaches it into errors of its own, which say nothing of the files it read.
            if isinstance(error, StopNow) or (error is not None and self.asked and not was_training):
                self.give_way("before the first step; what was prepared is kept")
            if error is None and self.asked:
                self.give_way("after the run was finished")
        finally:
            for number, handler in self._earlier.items():
                signal.signal(number, signal.SIG_DFL if handler is None else handler)

    def claim(self) -> None:
        """Install the handlers, also over those that Lightning puts before ours."""
        for number in SIGNALS if self._earlier else ():
            signal.signal(number, self._handle)

    def start_training(self) -> None:
        """From here on signals only set the flag.

        Raises:  StopNow: one came already.
        """
        self._training = True
        if self.asked:
            raise StopNow
        # In the main thread; a run in the background of a shell has Ctrl-C ignored, and it stays so.
        if self._earlier and signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
            self._earlier[signal.SIGINT] = signal.getsignal(signal.SIGINT)
            signal.signal(signal.SIGINT, self._interrupt)

    def give_way(self, when: str) -> NoReturn:
        """End the run after its state was saved: hand the signal on, or ask SLURM for another turn.

        Args:    when: where the run was stopped and what is saved, in words.
        Raises:  Preempted, Interrupted.
        """
        name = self._signal.name if self._signal is not None else "a signal to another rank"
        if not self._given_way and ranks.is_first():
            self._given_way = True
            self._ask_for_another_turn()
        kind, name = (Interrupted, "Ctrl-C") if self._signal is signal.SIGINT else (Preempted, name)
        raise kind(f"stopped by {name} {when}", "The same command continues.")

    def _ask_for_another_turn(self) -> None:
        if self._signal not in (signal.SIGUSR1, signal.SIGUSR2):
            return
        earlier = self._earlier.get(self._signal)
        if callable(earlier) and earlier is not signal.default_int_handler:
            earlier(self._signal, None)
        elif job := slurm_job():
            try:
                done = subprocess.run(
                    ["scontrol", "requeue", job], capture_output=True, text=True, timeout=30, check=False
                )
                said = done.stderr.strip() if done.returncode else "requeued"
            except (OSError, subprocess.TimeoutExpired) as error:
                said = str(error)
            print(f"SLURM job {job}: {said}", flush=True)

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self._signal = signal.SIGINT
        os.write(2, b"\nspeech2image: stopping at the end of this step; Ctrl-C again stops at once\n")

    def _handle(self, number: int, frame: FrameType | None) -> None:
        is_first_signal, self._signal = not self.asked, signal.Signals(number)
        if is_first_signal and not self._training:
            raise StopNow


_active = Preemption()  # owns nothing: fit called without the command


def active() -> Preemption:
    """Return the owner of the signals at this time."""
    return _active


def slurm_job() -> str | None:
    """Return the SLURM job, or array task, of this process as `scontrol` takes it; None: it is in none."""
    array, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    return f"{array}_{task}" if array and task else os.environ.get("SLURM_JOB_ID") or None


def outlive_signals(worker: int) -> None:
    """Let a loader process, which SLURM signals too, live until its trainer has saved and ends it.

    Args:    worker: its number, which `DataLoader` passes.
    """
    signal.signal(signal.SIGTERM, lambda *_: signal.alarm(WORKER_GRACE_S))
    for number in (signal.SIGUSR1, signal.SIGUSR2, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
