"""The pass over chips that takes statistics: block by block, by one process or several, with the same result."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from multiprocessing import get_context

import torch

from aef.data.chip_subset import Part
from aef.data.chips import Chip, ChipError, ChipFolder
from aef.data.moments import Moments, SourceStatistics
from aef.data.withheld import WithheldDates
from aef.sources import Registry

BLOCK = 16
"""Chips whose moments are joined before those of others, however many processes there are."""


@dataclass
class PartialStatistics:
    """Moments of some chips by source, the chips' places, and how many were skipped."""

    moments: dict[str, Moments] = field(default_factory=dict)
    places: set[str] = field(default_factory=set)
    skipped: int = 0

    def join(self, other: PartialStatistics) -> None:
        """Add the chips behind other partial statistics."""
        self.places |= other.places
        self.skipped += other.skipped
        for name, moments in other.moments.items():
            self.moments.setdefault(name, Moments(moments.source)).join(moments)

    def of_sources(self, registry: Registry) -> dict[str, SourceStatistics]:
        """Mean and deviation of every source of the chips, in the registry's order."""
        return {name: self.moments[name].result() for name in registry if name in self.moments}


@dataclass(frozen=True)
class StatisticsReader:
    """How chips are read for statistics: their sources, the weight of a pixel (`Statistics.of_chips`), the dates to
    leave out, and whether chips that break their contract are passed over."""

    registry: Registry
    weighting: str
    withheld: WithheldDates | None
    skip_bad: bool

    def read(
        self, chips: Iterable[Callable[[], Chip]], progress: Callable[[], None] = lambda: None
    ) -> PartialStatistics:
        """Moments of chips, each read when it is called for. Raises ChipError where one is bad and that is not passed over."""
        found = PartialStatistics()
        for read in chips:
            try:
                chip = read()
            except ChipError:
                if not self.skip_bad:
                    raise
                found.skipped += 1
                continue
            found.places.add(chip.place)
            for name, series in chip.sources.items():
                source = self.registry[name]
                if not source.classes:
                    moments = found.moments.setdefault(name, Moments(source))
                    moments.add(chip, series, self.weighting, self.withheld)
            progress()
        return found

    def read_parts(self, folder: ChipFolder, parts: Sequence[Part]) -> PartialStatistics:
        """Moments of some chips of a folder, every value of which is checked."""
        return self.read(partial(folder.read, index, sources, check_values=True) for index, sources in parts)


def read_in_blocks(
    folder: ChipFolder, reader: StatisticsReader, parts: Sequence[Part], workers: int
) -> Iterator[tuple[int, PartialStatistics]]:
    """Moments of all parts block by block, in order, and how many chips each took."""
    blocks = [parts[start : start + BLOCK] for start in range(0, len(parts), BLOCK)]
    if min(workers, len(blocks)) <= 1:
        yield from ((len(block), reader.read_parts(folder, block)) for block in blocks)
        return
    # Not forked: a process with running threads cannot be forked safely.
    start = get_context("forkserver")
    with ProcessPoolExecutor(min(workers, len(blocks)), start, _begin, (folder, reader)) as pool:
        yield from zip(map(len, blocks), pool.map(_in_worker, blocks), strict=True)


_work: tuple[ChipFolder, StatisticsReader] | None = None


def _begin(folder: ChipFolder, reader: StatisticsReader) -> None:
    global _work
    _work = folder, reader
    torch.set_num_threads(1)


def _in_worker(block: Sequence[Part]) -> PartialStatistics:
    assert _work is not None
    folder, reader = _work
    return reader.read_parts(folder, block)
