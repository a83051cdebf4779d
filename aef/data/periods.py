"""Random support and valid periods (paper S2.1-S2.3; docs/data.md gives the reasons).

The paper asks only that a valid period be longer than four days. Lengths here are half uniform, a quarter log-uniform
and a quarter the whole support: at 8 days about half of the periods hold no other clear frame, at 30 days few do, and
both the short and the annual summary have to be learned.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from aef.config import DataConfig
from aef.timecode import DAY_MS, Period


class TargetTime(NamedTuple):
    """When a target was taken, which its period must cover: a time, and of an interval source ``overlap_ms`` of the interval around it."""

    time_ms: int
    interval: Period | None = None
    overlap_ms: int = 0

    def covered_by(self, period: Period) -> bool:
        return period.contains(self.time_ms) and (
            self.interval is None or overlap(period, self.interval) >= self.overlap_ms
        )


def overlap(one: Period, other: Period) -> int:
    """Common length of two periods, milliseconds."""
    return max(0, min(one.end_ms, other.end_ms) - max(one.start_ms, other.start_ms))


@dataclass(frozen=True)
class PeriodLaw:
    """How valid periods are drawn. Lengths lie in (``min_ms``, the length of what they are drawn in]."""

    min_ms: int
    uniform: float
    log_uniform: float
    beyond_ms: int

    @classmethod
    def of(cls, config: DataConfig) -> PeriodLaw:
        return cls(
            round(config.period_min_days * DAY_MS),
            config.period_uniform,
            config.period_log_uniform,
            round(config.period_beyond_days * DAY_MS),
        )

    def draw_length(self, rng: np.random.Generator, limit_ms: int) -> int:
        """A length in (min, limit]; the limit itself where that is no longer than the minimum."""
        kind, share = rng.random(), 1.0 - rng.random()  # share in (0, 1]
        if limit_ms <= self.min_ms or kind >= self.uniform + self.log_uniform:
            return limit_ms
        if kind < self.uniform:
            return min(self.min_ms + math.ceil((limit_ms - self.min_ms) * share), limit_ms)
        return min(max(round(self.min_ms * (limit_ms / self.min_ms) ** share), self.min_ms + 1), limit_ms)

    def draw_covering(self, rng: np.random.Generator, support: Period, time: TargetTime) -> Period:
        """A period that covers a target's time, inside the support or, if allowed, up to ``beyond_ms`` outside."""
        length = self.draw_length(rng, support.length_ms)
        if length == support.length_ms:
            return support
        length = max(length, time.overlap_ms)
        earliest = max(support.start_ms - self.beyond_ms, time.time_ms - length + 1)
        latest = min(support.end_ms + self.beyond_ms - length, time.time_ms)
        if time.interval is not None:
            earliest = max(earliest, time.interval.start_ms + time.overlap_ms - length)
            latest = min(latest, time.interval.end_ms - time.overlap_ms)
        start = int(rng.integers(earliest, latest + 1))
        return Period(start, start + length)

    def draw_within(self, rng: np.random.Generator, bounds: Period, *, beyond: bool = True) -> Period:
        """A period inside the bounds or, if ``beyond``, one that intersects them and reaches up to ``beyond_ms`` outside."""
        length = self.draw_length(rng, bounds.length_ms)
        reach = self.beyond_ms if beyond and length < bounds.length_ms else 0
        earliest = max(bounds.start_ms - reach, bounds.start_ms - length + 1)
        latest = min(bounds.end_ms + reach - length, bounds.end_ms - 1)
        start = int(rng.integers(earliest, latest + 1))
        return Period(start, start + length)


def draw_support(rng: np.random.Generator, times_ms: np.ndarray, length_ms: int) -> Period:
    """A support period of ``length_ms`` that holds at least one of the frames, or all where they span less than it.

    It starts anywhere, so that it is aligned neither to the calendar (paper: about a year) nor to a chip's first frame:
    at inference it follows neither.

    Args:
        times_ms: (T,) int64, sorted, T at least 1.
    """
    ends = (int(times_ms[0]), int(times_ms[-1]) + 1 - length_ms)
    start = int(rng.integers(min(ends), max(ends) + 1))
    inside = np.searchsorted(times_ms, [start, start + length_ms])
    if inside[0] == inside[1]:
        # A gap longer than the support: move to a frame.
        start = int(rng.choice(times_ms)) - int(rng.integers(0, length_ms))
    return Period(start, start + length_ms)


def draw_shared(
    rng: np.random.Generator, law: PeriodLaw, support: Period, times: list[TargetTime], count: int
) -> list[Period]:
    """One period per target, from ``count`` shared ones (0: each its own).

    Each shared period is drawn around another of the targets' times; every target then takes any of those that cover
    its own, and a period of its own where none does.
    """
    if not count:
        return [law.draw_covering(rng, support, time) for time in times]
    order = rng.permutation(len(times))
    shared = [law.draw_covering(rng, support, times[order[i % len(order)]]) for i in range(count)] if times else []
    chosen = []
    for time in times:
        fitting = [period for period in shared if time.covered_by(period)]
        chosen.append(fitting[int(rng.integers(len(fitting)))] if fitting else law.draw_covering(rng, support, time))
    return chosen
