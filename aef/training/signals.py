"""Signals that ask a run to stop: remembered, so that the step under way ends well and a checkpoint is written."""

from __future__ import annotations

import signal
import threading
from contextlib import suppress
from pathlib import Path
from types import FrameType, TracebackType
from typing import NoReturn

from aef.run import RunError

from .log import StepLog, read_events
from .run_lock import RunLock

STOPPED = 75
"""Exit code of a run that a signal stopped and that can go on: BSD's EX_TEMPFAIL, try again."""

ASKING = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)


class StopSignals:
    """Within the block, SIGTERM, SIGUSR1 (Slurm's early warning) and Ctrl-C are remembered in ``received``.

    A second Ctrl-C interrupts at once. Outside the main thread (some notebooks) nothing is installed.
    """

    NUMBERS: tuple[signal.Signals, ...] = ASKING

    def __init__(self) -> None:
        self.received: str | None = None
        self._before: dict[signal.Signals, object] = {}

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._remember) for number in self.NUMBERS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]
        self._before = {}

    def _remember(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self.received == "SIGINT":
            raise KeyboardInterrupt
        self.received = signal.Signals(number).name


class StopsAtOnce(StopSignals):
    """Within the block, while there is nothing to save yet, SIGTERM and SIGUSR1 raise SystemExit with ``STOPPED``,
    which puts a job back into its queue. Ctrl-C interrupts, as ever."""

    NUMBERS = (signal.SIGTERM, signal.SIGUSR1)

    def _remember(self, number: int, frame: FrameType | None) -> NoReturn:
        self.received = signal.Signals(number).name
        raise SystemExit(STOPPED)


def stopped_early(run: Path, received: str) -> None:
    """Write into ``events.jsonl`` that a signal stopped a run before it took a step, as of the last one that it had
    taken; nothing where another training is at work there, whose events these are."""
    with suppress(RunError):
        lock = RunLock(run, lambda words: None, wait_s=0)
        step = max((event["step"] for event in read_events(run)), default=0)
        StepLog(run).event("stopped", step=step, signal=received)
        lock.release()
