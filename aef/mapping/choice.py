"""Which chip of a place a period is embedded from, known before any pixel is read.

A folder may hold one chip per place and period, as `aef download --periods A,B` makes them. A period is then embedded from
the chip that observed it, and not once more, extrapolated, from each of the others.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from aef.data.chips import ChipError, read_chip_header, read_frame_times
from aef.mapping.support import span_of
from aef.timecode import Period


@dataclass(frozen=True)
class ChipTimes:
    """Where a chip lies, and when the model's inputs saw it.

    Attributes:
        ground: chips of equal ground show the same pixels of the same place.
        times_ms: (N,) sorted, of all inputs.
    """

    path: Path
    ground: tuple
    times_ms: np.ndarray

    @property
    def span(self) -> Period | None:
        return span_of([self.times_ms])

    def rank(self, period: Period) -> tuple[int, int, str]:
        """Lower is better: frames in the period, then nearness of their middles."""
        inside = (self.times_ms >= period.start_ms) & (self.times_ms < period.end_ms)
        span = self.span
        away = abs(sum(span) - sum(period)) if span else np.iinfo(np.int64).max
        return -int(inside.sum()), away, self.path.name


def read_times(path: str | os.PathLike, inputs: Iterable[str]) -> ChipTimes:
    """What a chip's header and times say. A file that cannot be read has ground of its own and no time."""
    path = Path(path)
    try:
        header, times = read_chip_header(path), read_frame_times(path, inputs)
        ground = tuple(header[key] for key in ("place", "crs", "height", "width")) + tuple(header["transform"])
    except (ChipError, LookupError, TypeError):  # whoever reads the chip says what is wrong with it
        return ChipTimes(path, (str(path),), np.zeros(0, np.int64))
    return ChipTimes(path, ground, np.sort(np.concatenate([np.zeros(0, np.int64), *times.values()])))


def periods_by_chip(chips: Sequence[ChipTimes], periods: Sequence[Period]) -> Mapping[Path, list[Period]]:
    """The periods that are embedded from each chip: of chips of one ground, the one that holds most frames of a period."""
    grounds: dict[tuple, list[ChipTimes]] = {}
    for chip in chips:
        grounds.setdefault(chip.ground, []).append(chip)
    chosen: dict[Path, list[Period]] = {chip.path: [] for chip in chips}
    for candidates in grounds.values():
        for period in dict.fromkeys(periods):
            chosen[min(candidates, key=lambda chip: chip.rank(period)).path].append(period)
    return chosen
