"""Moments of many chips, block by block, by one process or several with the same result."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from multiprocessing import get_context
from typing import Any

import torch

from aef.data.chips import Chip, ChipError, ChipFolder
from aef.data.draw import Part
from aef.data.moments import Moments, SourceStatistics
from aef.data.withheld import WithheldDates
from aef.sources import Registry

BLOCK = 16
"""Chips whose moments are joined before those of others, however many processes there are."""


@dataclass
class Found:
    """Moments of some chips, their places, and how many were skipped."""

    moments: dict[str, Moments] = field(default_factory=dict)
    seen: set[str] = field(default_factory=set)
    skipped: int = 0

    def join(self, other: Found) -> None:
        self.seen |= other.seen
        self.skipped += other.skipped
        for name, moments in other.moments.items():
            self.moments.setdefault(name, Moments(moments.source)).join(moments)

    def origin(self) -> dict[str, Any]:
        return {"places": sorted(self.seen), "skipped": self.skipped}

    def sources(self, registry: Registry) -> dict[str, SourceStatistics]:
        return {name: self.moments[name].result() for name in registry if name in self.moments}


@dataclass(frozen=True)
class Plan:
    """How chips are read for statistics."""

    registry: Registry
    weighting: str
    withheld: WithheldDates | None
    skip_bad: bool

    def gather(self, readers: Iterable[Callable[[], Chip]], progress: Callable[[], None] = lambda: None) -> Found:
        found = Found()
        for read in readers:
            try:
                chip = read()
            except ChipError:
                if not self.skip_bad:
                    raise
                found.skipped += 1
                continue
            found.seen.add(chip.place)
            for name, series in chip.sources.items():
                source = self.registry[name]
                if not source.classes:
                    moments = found.moments.setdefault(name, Moments(source))
                    moments.add(chip, series, self.weighting, self.withheld)
            progress()
        return found

    def block(self, folder: ChipFolder, parts: Sequence[Part]) -> Found:
        return self.gather(partial(folder.read, index, sources, check_values=True) for index, sources in parts)


def in_blocks(folder: ChipFolder, plan: Plan, parts: Sequence[Part], workers: int) -> Iterator[tuple[int, Found]]:
    """Moments of all parts block by block, in order, and how many chips each took."""
    blocks = [parts[start : start + BLOCK] for start in range(0, len(parts), BLOCK)]
    if min(workers, len(blocks)) <= 1:
        yield from ((len(block), plan.block(folder, block)) for block in blocks)
        return
    # Not forked: a process with running threads cannot be forked safely.
    start = get_context("forkserver")
    with ProcessPoolExecutor(min(workers, len(blocks)), start, _begin, (folder, plan)) as pool:
        yield from zip(map(len, blocks), pool.map(_in_worker, blocks), strict=True)


_work: tuple[ChipFolder, Plan] | None = None


def _begin(folder: ChipFolder, plan: Plan) -> None:
    global _work
    _work = folder, plan
    torch.set_num_threads(1)


def _in_worker(block: Sequence[Part]) -> Found:
    assert _work is not None
    folder, plan = _work
    return plan.block(folder, block)
