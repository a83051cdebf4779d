"""What a run says: one JSON object per optimiser step, events beside it, and progress for people."""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from aef.atomic import writing
from aef.progress import Every, terminal_bar

if TYPE_CHECKING:
    from .tensorboard import Scalars

LOG_FILE, EVENTS_FILE, VALIDATION_FILE = "log.jsonl", "events.jsonl", "validation.jsonl"
Say = Callable[[str], None]
"""Tells the user one line of news."""

TERMS = ("loss", "reconstruction", "uniformity", "consistency", "text")


class StepLog:
    """``RUN/log.jsonl``, one object per applied optimiser step; ``RUN/validation.jsonl``; and ``RUN/events.jsonl``:
    skipped steps with their chips, checkpoints, resumes, signals. Lines are written whole, so that a killed run leaves
    at most one broken last line.

    Args:
        run: the run's folder.
        tensorboard: write the numbers of steps and validations as TensorBoard events too.

    Raises:
        ModuleNotFoundError: TensorBoard is wanted and not installed.
    """

    def __init__(self, run: Path, *, tensorboard: bool = False) -> None:
        self.path, self.events, self.validations = run / LOG_FILE, run / EVENTS_FILE, run / VALIDATION_FILE
        self._scalars: Scalars | None = None
        if tensorboard:
            from .tensorboard import Scalars

            self._scalars = Scalars(run)

    def write(self, record: Mapping[str, Any]) -> None:
        """Append one step. Raises ValueError for a number that JSON does not know (NaN, infinity)."""
        self._append(self.path, record)
        if self._scalars:
            self._scalars.add("train", record)

    def event(self, kind: str, **fields: Any) -> None:
        self._append(self.events, {"time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), "event": kind, **fields})

    def validation(self, step: int, figures: Mapping[str, Any]) -> None:
        record = {"step": step, **figures}
        self._append(self.validations, record)
        if self._scalars:
            self._scalars.add("validation", record)

    def close(self) -> None:
        """Let go of what is open; the files stay readable without it."""
        if self._scalars:
            self._scalars.close()

    def cut_back(self, step: int) -> int:
        """Drop every step and validation after ``step``, and broken last lines, that of the events too; returns how many
        steps went. Atomic."""
        _cut_back(self.events)
        _cut_back(self.validations, step)
        return _cut_back(self.path, step)

    @staticmethod
    def _append(path: Path, record: Mapping[str, Any]) -> None:
        line = json.dumps(record, allow_nan=False) + "\n"
        try:
            with open(path, "a", encoding="utf-8") as stream:
                stream.write(line)
        except OSError as error:
            # A full disk is reported by the stream, which does not know its name.
            error.filename = str(path)
            raise


def _cut_back(path: Path, step: float = math.inf) -> int:
    if not path.exists():
        return 0
    lines = path.read_text(encoding="utf-8").splitlines()
    kept = [line for line in lines if (record := _parse(line)) is not None and record["step"] <= step]
    if len(kept) < len(lines):
        with writing(path, "w") as stream:
            stream.writelines(line + "\n" for line in kept)
    return len(lines) - len(kept)


def _parse(line: str) -> dict[str, Any] | None:
    try:
        record = json.loads(line)
    except ValueError:
        return None
    return record if isinstance(record, dict) and isinstance(record.get("step"), int) else None


def read_log(run: Path) -> list[dict[str, Any]]:
    """Every complete line of a run's log."""
    return _read(run / LOG_FILE)


def read_validations(run: Path) -> list[dict[str, Any]]:
    """Every complete line of a run's validations."""
    return _read(run / VALIDATION_FILE)


def read_events(run: Path) -> list[dict[str, Any]]:
    """Every complete line of a run's events."""
    return _read(run / EVENTS_FILE)


def _read(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    records = (_parse(line) for line in path.read_text(encoding="utf-8").splitlines())
    return [record for record in records if record is not None]


class Display:
    """Progress of a run: a bar with loss terms, frames/s, data-wait share and time left on a terminal; elsewhere plain
    lines, one every ``PLAIN_EVERY_S`` seconds and at the first and last step."""

    PLAIN_EVERY_S = 15.0
    SMOOTHING = 0.1
    """Weight of the newest step in the displayed rates."""

    def __init__(self, total: int, *, quiet: bool = False) -> None:
        self.total, self.quiet = total, quiet
        self._bar: Any = None
        self._due = Every(self.PLAIN_EVERY_S, at_once=True)
        self._step_s: float | None = None

    def __enter__(self) -> Display:
        if not self.quiet and sys.stderr.isatty():
            self._bar = terminal_bar("train", self.total, brief=True)
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._bar:
            self._bar.stop()
            self._bar = None

    def step(self, record: Mapping[str, Any], step_s: float) -> None:
        """Show one finished step."""
        self._step_s = step_s if self._step_s is None else (1 - self.SMOOTHING) * self._step_s + self.SMOOTHING * step_s
        if self.quiet:
            return
        step = record["step"]
        note = self._note(record)
        if self._bar:
            self._bar.update(self._bar.task_ids[0], completed=step, note=note)
            return
        if self._due() or step == self.total:
            print(f"step {step}/{self.total}  {note}", file=sys.stderr, flush=True)

    def say(self, text: str) -> None:
        """One line of news, above the bar or as it is."""
        if self.quiet:
            return
        if self._bar:
            self._bar.console.print(text, highlight=False, markup=False)
        else:
            print(text, file=sys.stderr, flush=True)

    def _note(self, record: Mapping[str, Any]) -> str:
        terms = [f"{name} {record[name]:.4f}" for name in TERMS if record.get(name) is not None]
        left = (self.total - record["step"]) * (self._step_s or 0.0)
        terms += [
            f"{record['frames_per_s']:.0f} frames/s",
            f"data wait {record['data_wait']:.0%}",
            f"{duration(left)} left",
        ]
        return "  ".join(terms) + (f"  skipped {record['skipped']}" if record["skipped"] else "")


def duration(seconds: float) -> str:
    """41 s, 12 min, 3 h 05 min, 2 d 4 h."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes:02d} min"
    return f"{hours // 24} d {hours % 24} h"
