"""What a run shows of itself on its way: figures of its first sample, and validations on what it never sees."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from traceback import clear_frames
from typing import TYPE_CHECKING, Any

import torch

from aef.data.batch import Batch
from aef.data.chips import ChipError
from aef.model.aef import Output
from aef.one_line import one_line
from aef.run import Run

from .deepspeed_engine import Engine
from .distributed import Ranks
from .figures import write_figure
from .log import Say, StepLog, read_validations

if TYPE_CHECKING:
    from .validation import Validation


class ValidationError(ValueError):
    """A validation that failed; one line that every rank knows."""


class Observer:
    """Looks at the model of a run between two steps; none of it changes the run.

    Args:
        data: folder of the chips.
        first_batch: gives the batch that figures show. Raises ChipError.
    """

    def __init__(
        self,
        run: Run,
        data: Path,
        engine: Engine,
        ranks: Ranks,
        log: StepLog,
        say: Say,
        first_batch: Callable[[], Batch],
    ) -> None:
        self.run, self.data, self.engine, self.ranks = run, data, engine, ranks
        self.log, self.say, self._first_batch = log, say, first_batch

    def draw_figure(self, step: int) -> None:
        """Inputs, target, reconstruction and embedding of the run's first sample: ``RUN/figures/step-….png``. Collective.

        A sample that cannot be read any more, does not fit into memory, or cannot be drawn costs the figure, not the run.
        """
        batch, why = None, None
        try:
            batch = self.engine.moved(self._first_batch())
        except ChipError as error:
            why = str(error)
        missing = next(filter(None, self.ranks.gather(why)), None)
        if batch is None or missing is not None:
            self.say(f"no figure of step {step}: {missing}")
            return
        output = self._forward(batch) if self.engine.stage == 3 else None  # there it needs every rank
        if self.ranks.is_first:
            self._draw(f"step {step}", lambda: write_figure(self.run, batch, output or self._forward(batch), step))

    def _forward(self, batch: Batch) -> Output:
        self.engine.model.eval()
        try:
            with torch.no_grad():
                return self.engine.model(batch)
        finally:
            self.engine.model.train()

    def validate(self, step: int) -> dict[str, Any]:
        """Measure the model on what it never sees, log it in ``validation.jsonl`` and draw all of them so far as
        ``RUN/figures/validation.png``. Collective.

        Raises:
            ValidationError: on every rank, where it failed; on the rank where it did, its cause is what failed.
        """
        failure: Exception | None = None

        def attempt(action: Callable[[], dict[str, Any]]) -> tuple[dict[str, Any], str | None]:
            nonlocal failure
            try:
                return action(), None
            except Exception as error:
                clear_frames(error.__traceback__)  # they hold what filled the memory
                failure = error
                return {}, _in_words(error)

        def measure() -> dict[str, Any]:
            return self.validation.measure(self.engine.model, step)

        if self.engine.stage == 3:
            # From here on a forward pass needs every rank.
            figures, why = attempt(measure)
            why = self.ranks.first_trouble(why)
            if why is None:
                _, why = self.ranks.on_first(lambda: attempt(lambda: self._log_validation(step, figures)))
        else:
            figures, why = self.ranks.on_first(
                lambda: attempt(lambda: self._log_validation(step, measure())), "validating", self.say
            )
        if why is not None:
            words = f"the validation of step {step} failed: {why}; train.validate_every=0 goes on without"
            raise ValidationError(words) from failure
        return figures

    def _log_validation(self, step: int, figures: dict[str, Any]) -> dict[str, Any]:
        """Log, say and draw what a validation measured. Rank 0 only."""
        from .curves import write_validation_figure
        from .validation import OF

        self.log.validation(step, figures)
        words = ", ".join(f"{name} {value:.3f}" for name, value in figures.items() if OF not in name)
        self.say(f"step {step}, validation: {words or 'nothing to measure'}")
        self._draw("validation", lambda: write_validation_figure(self.run, read_validations(self.run.path)))
        return figures

    def _draw(self, what: str, write: Callable[[], str | None]) -> None:
        """Write a figure, or say why not: it costs no run."""
        try:
            said = write()
        except Exception as error:
            said = f"no figure of {what}: {_in_words(error)}"
        if said:
            self.say(said)

    @cached_property
    def validation(self) -> Validation:
        """What measures; only runs that validate need the extra [eval] for it."""
        from .validation import Validation

        return Validation(self.run, self.data)


def _in_words(error: Exception) -> str:
    """An error in one line, with its type where the message alone is seldom one."""
    return one_line(error) if isinstance(error, ValueError | OSError) else f"{type(error).__name__}: {one_line(error)}"
