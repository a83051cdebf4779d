"""What is being judged, and how far that is: stages whose steps are alike, so that what is left of one can be told."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")

Progress = Callable[[int, int, str], None]
"""Called with how many steps of a stage are done, of how many, and what the stage is."""


class Stages:
    """Counts the steps of one stage after the other, and says it.

    A place takes seconds, a split of the labels milliseconds on one machine and more than the place on another: a sum of
    both would tell nobody how long it takes.
    """

    def __init__(self, say: Progress = lambda done, total, stage: None) -> None:
        self._say, self._done, self._total, self._stage = say, 0, 0, ""

    def begin(self, stage: str, total: int) -> None:
        """A stage of so many steps begins."""
        self._done, self._total, self._stage = 0, total, stage
        self._say(0, total, stage)

    def each(self, items: Iterable[T]) -> Iterator[T]:
        """The items, each a step that is done once it is there."""
        for item in items:
            self.step()
            yield item

    def step(self) -> None:
        """One more step is done."""
        self._done += 1
        self._say(self._done, self._total, self._stage)
