"""Signals that ask a run to stop: remembered, so that the step under way ends well and a checkpoint is written."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType

ASKING = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)


class StopSignals:
    """Within the block, SIGTERM, SIGUSR1 (Slurm's early warning) and Ctrl-C are remembered in ``received``.

    A second Ctrl-C interrupts at once. Outside the main thread (some notebooks) nothing is installed.
    """

    def __init__(self) -> None:
        self.received: str | None = None
        self._before: dict[signal.Signals, object] = {}

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._remember) for number in ASKING}
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
