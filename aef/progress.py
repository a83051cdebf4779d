"""Progress for people: a bar on a terminal; in a log file a line now and then."""

from __future__ import annotations

import math
import sys
import time
from types import TracebackType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import Progress as Bar

PLAIN_EVERY_S = 10.0
"""Time between two lines where there is no terminal."""


class Every:
    """True once in so many seconds, for a line now and then: ``if due(): print(…)``.

    Args:
        seconds: from one True to the next.
        at_once: whether the first call is one.
    """

    def __init__(self, seconds: float, *, at_once: bool = False) -> None:
        self.seconds = seconds
        self._last = -math.inf if at_once else time.monotonic()

    def __call__(self) -> bool:
        now = time.monotonic()
        if now - self._last < self.seconds:
            return False
        self._last = now
        return True


class Progress:
    """A progress bar with rate and time left on a terminal; elsewhere one plain line every `PLAIN_EVERY_S` seconds.

    Example::

        with Progress("ingest", total=len(places), unit="chip") as progress:
            for place in places:
                ...
                progress.advance(note=place)
    """

    def __init__(self, title: str, total: int = 0, unit: str = "item", *, alone: bool = True) -> None:
        """``alone``: no other process writes to this terminal, where bars would overwrite each other."""
        self.title, self.total, self.unit, self.done, self.stage = title, total, unit, 0, ""
        self._bar = terminal_bar(title, total) if alone and sys.stderr.isatty() else None
        self._started, self._due = time.monotonic(), Every(PLAIN_EVERY_S)

    def __enter__(self) -> Progress:
        if self._bar:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._bar:
            self._bar.stop()
        elif kind is None:
            self._print("")

    def reach(self, done: int, total: int, stage: str) -> None:
        """Set what is done of a stage, of how many; for work of several stages, whose pace says nothing of one another's:
        rate and time left are those of the stage."""
        if stage != self.stage:
            self.stage, self.done, self._started = stage, 0, time.monotonic()
            if self._bar:
                self._bar.reset(self._bar.task_ids[0], total=total)
        self.total = total
        if self._bar:
            self._bar.update(self._bar.task_ids[0], total=total)
        self.advance(done - self.done, stage)

    def advance(self, count: int = 1, note: str = "") -> None:
        """Count `count` finished items; `note` is shown beside them."""
        self.done += count
        if self._bar:
            self._bar.update(self._bar.task_ids[0], completed=self.done, note=note)
        elif self._due():
            self._print("" if note == self.stage else note)

    def _print(self, note: str) -> None:
        rate = self.done / max(time.monotonic() - self._started, 1e-9)
        left = f", {(self.total - self.done) / rate:.0f} s left" if rate and self.done < self.total else ""
        title = f"{self.title}, {self.stage}" if self.stage else self.title
        print(f"{title}: {self.done}/{self.total} {self.unit}s, {rate:.3g}/s{left} {note}".rstrip(), file=sys.stderr)


def terminal_bar(title: str, total: int, *, brief: bool = False) -> Bar:
    """A bar on standard error with one task, whose ``note`` stands at its end; not started yet.

    Args:
        brief: a narrow bar without times, beside a note that says much.
    """
    from rich import progress as rich
    from rich.console import Console

    bar = rich.Progress(
        rich.TextColumn(title),
        rich.BarColumn(bar_width=20 if brief else 40),
        rich.MofNCompleteColumn(),
        *([] if brief else [rich.TimeElapsedColumn(), rich.TimeRemainingColumn()]),
        rich.TextColumn("{task.fields[note]}"),
        console=Console(stderr=True),
        refresh_per_second=4,
    )
    bar.add_task(title, total=total, note="")
    return bar
