"""Which chip of a place a period is embedded from, known before any pixel is read.

A folder may hold one chip per place and period, as `aef download --periods A,B` makes them. A period is then embedded
from the chip that observed it, and not once more, extrapolated, from each of the others.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from aef.data.chips import ChipError, read_chip_header, read_frame_times
from aef.mapping.support import span_of
from aef.timecode import Period


class Ground(NamedTuple):
    """Where a chip lies: the name of its place, and its grid. Chips of equal grids show the same pixels."""

    place: str
    grid: tuple


@dataclass(frozen=True)
class ChipTimes:
    """Where a chip lies, and when the model's inputs saw it: ``times_ms`` (N,) sorted, of all inputs."""

    path: Path
    place: str
    grid: tuple
    times_ms: np.ndarray

    @property
    def span(self) -> Period | None:
        """From the first to just after the last frame; None without a frame."""
        return span_of([self.times_ms])

    def rank(self, period: Period) -> tuple[int, int, str]:
        """Lower is better: frames in the period, then nearness of their middles."""
        inside = (self.times_ms >= period.start_ms) & (self.times_ms < period.end_ms)
        span = self.span
        away = abs(sum(span) - sum(period)) if span else np.iinfo(np.int64).max
        return -int(inside.sum()), away, self.path.name

    def continues(self, other: ChipTimes) -> bool:
        """Whether both are one series of a place, cut by time: of one name, or never seen at the same time.

        `aef ingest` names a place after its folder, so that the years of one may have several names.
        """
        if self.place == other.place:
            return True
        own, theirs = self.span, other.span
        return (
            own is not None and theirs is not None and (own.end_ms <= theirs.start_ms or theirs.end_ms <= own.start_ms)
        )


def times_of(paths: Iterable[Path], among: Sequence[Path], inputs: Sequence[str]) -> list[ChipTimes]:
    """The times of some chips and of all that share a grid with one of them, in the order of ``among``, which holds both.

    Of the others only the header is read, which takes half as long: each of N processes that share a folder asks.
    """
    where = {path: read_ground(path) for path in among}
    grids = {where[path].grid for path in paths}
    return [read_times(path, inputs, ground) for path, ground in where.items() if ground.grid in grids]


def read_ground(path: str | os.PathLike) -> Ground:
    """What a chip's header says. A file that cannot be read has a grid of its own."""
    try:
        header = read_chip_header(path)
        grid = (*(header[key] for key in ("crs", "height", "width")), *header["transform"])
        return Ground(str(header["place"]), grid)
    except (ChipError, LookupError, TypeError):
        return _of_its_own(path)


def _of_its_own(path: str | os.PathLike) -> Ground:
    """No other chip is embedded in its place: whoever reads it says what is wrong with it."""
    return Ground("", (str(path),))


def read_times(path: str | os.PathLike, inputs: Iterable[str], ground: Ground | None = None) -> ChipTimes:
    """Where a chip lies, if that is not known yet, and its times. A file that cannot be read has a grid of its own and none."""
    path = Path(path)
    ground = ground or read_ground(path)
    try:
        times = read_frame_times(path, inputs)
    except (ChipError, LookupError, TypeError):
        return ChipTimes(path, *_of_its_own(path), np.zeros(0, np.int64))
    return ChipTimes(path, *ground, np.sort(np.concatenate([np.zeros(0, np.int64), *times.values()])))


def periods_by_chip(chips: Sequence[ChipTimes], periods: Sequence[Period]) -> Mapping[Path, list[Period]]:
    """The periods that are embedded from each chip: of the chips of one series, the one with most frames in a period."""
    grids: dict[tuple, list[ChipTimes]] = {}
    for chip in chips:
        grids.setdefault(chip.grid, []).append(chip)

    def is_best(chip: ChipTimes, period: Period) -> bool:
        others = (other for other in grids[chip.grid] if other is not chip and chip.continues(other))
        return all(chip.rank(period) < other.rank(period) for other in others)

    return {chip.path: [period for period in dict.fromkeys(periods) if is_best(chip, period)] for chip in chips}
