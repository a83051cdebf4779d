"""Times of frames: from coordinates, tags, siblings, file names, product ids or a map, to epoch milliseconds."""

from __future__ import annotations

import json
import re
from calendar import monthrange
from collections.abc import Sequence
from datetime import UTC, datetime
from glob import escape
from pathlib import Path

import numpy as np

from aef.data.ingest.schema import DURATION, Input, TimeRule
from aef.timecode import DAY_MS, parse_time

HOUR_MS = 3_600_000
NOON_MS = DAY_MS // 2
DEFAULT_STEP = {"day": "P1D", "month": "P1M"}


def shift(time_ms: int, duration: str, count: int = 1) -> int:
    """A time moved by ``count`` ISO 8601 durations; months and years follow the calendar."""
    parts = {name: int(value or 0) for name, value in DURATION.fullmatch(duration).groupdict().items()}  # type: ignore[union-attr]
    months = (12 * parts["years"] + parts["months"]) * count
    if months:
        moment = datetime.fromtimestamp(time_ms / 1000, UTC)
        index = moment.year * 12 + moment.month - 1 + months
        year, month = index // 12, index % 12 + 1
        # The 31st of a shorter month is its last day.
        moved = moment.replace(year=year, month=month, day=min(moment.day, monthrange(year, month)[1]))
        time_ms += round((moved - moment).total_seconds() * 1000)
    return time_ms + (parts["days"] * DAY_MS + parts["hours"] * HOUR_MS) * count


def texts_to_ms(values: Sequence[object] | np.ndarray) -> list[int]:
    """ISO texts, or numpy datetimes, to epoch milliseconds. Raises ValueError."""
    array = np.asarray(values)
    if array.dtype.kind == "M":
        if (missing := np.isnat(array)).any():
            raise ValueError(f"{int(missing.sum())} of {array.size} times are missing (NaT)")
        return [int(x) for x in array.astype("datetime64[ms]").astype(np.int64).ravel()]
    return [parse_time(str(value)) for value in array.ravel()]


class FrameTimes:
    """Start (and, for intervals, end) of every step of one file.

    Args:
        item: the input whose ``time`` says where they come from.
        place: name of the place, for ``map`` rules.
        interval: whether the source's frames are intervals.
    """

    def __init__(self, item: Input, place: str, interval: bool) -> None:
        assert item.time is not None
        self.item, self.rule, self.place, self.interval = item, item.time, place, interval
        step = self.rule.step if isinstance(self.rule.step, str) else self.rule.step.get(place, "")
        self.step = step or DEFAULT_STEP.get(self.rule.precision, "")

    def of(self, raster, path: Path, relative: str, root: Path) -> tuple[list[int], list[int] | None]:
        """Times of the steps of a file. Raises ValueError naming what was looked for."""
        starts = self._stamps(raster, relative, root)
        if self.rule.precision == "month":
            # Stamped in its middle or at its end, it is the same month.
            starts = [shift(time, "P1D", 1 - datetime.fromtimestamp(time / 1000, UTC).day) for time in starts]
        if len(starts) > 1 and self.rule.anchor == "end":
            raise ValueError(
                f"anchor: end says that one time of a file is that of its last step; here are {len(starts)} times, each the start "
                "of its own step"
            )
        if len(starts) == 1 and raster.steps > 1:
            starts = self._unroll(starts[0], raster.steps, relative)
        if len(starts) != raster.steps:
            raise ValueError(f"expected {raster.steps} times, found {len(starts)} (time: from {self.rule.source})")
        if self.rule.precision != "ms":
            starts = [time - time % DAY_MS for time in starts]
        if not self.interval:
            # Known to the day only: noon is never more than half a day off.
            return [time + NOON_MS * (self.rule.precision == "day") for time in starts], None
        if not self.step:
            raise ValueError("its source has intervals: time needs a step like P1D or P1M, or precision day or month")
        return starts, [shift(time, self.step) for time in starts]

    def _unroll(self, stamp: int, steps: int, relative: str) -> list[int]:
        """One stamp per file: the first step's, or with ``anchor: end`` the last step's."""
        if not self.step:
            raise ValueError(f"{steps} steps but one time: time needs a step like P8D or P1M")
        first = 0 if self.rule.anchor == "start" else 1 - steps
        times = [shift(stamp, self.step, first + k) for k in range(steps)]
        self._check_end(times, relative)
        return times

    def _check_end(self, times: list[int], relative: str) -> None:
        """Where the regex also names the ``end``, the steps must reach it (give or take its last day)."""
        found = re.search(self.rule.regex, relative) if self.rule.source == "file_name" else None
        named = found.groupdict().get("end") if found else None
        if named is None:
            return
        reached, wanted = shift(times[-1], self.step), parse_time(named)
        if not wanted - DAY_MS <= reached <= wanted + DAY_MS:
            moment = datetime.fromtimestamp(reached / 1000, UTC)
            raise ValueError(
                f"{len(times)} steps of {self.step} end at {moment:%Y-%m-%d}, but the file name says {named}"
            )

    def _stamps(self, raster, relative: str, root: Path) -> list[int]:
        rule = self.rule
        if rule.source == "coord":
            times = texts_to_ms(raster.coordinate(rule.var))
        elif rule.source == "tag":
            times = [parse_time(_tag(raster.tags, rule.tag))]
        elif rule.source == "file_name":
            times = [parse_time(_match(rule.regex, relative))]
        elif rule.source == "product_id":
            times = [parse_time(_match(rule.regex, str(name))) for name in raster.coordinate(rule.var)]
        elif rule.source == "map":
            if self.place not in rule.map:
                raise ValueError(f"time: map has no place {self.place}")
            times = [parse_time(rule.map[self.place])]
        else:
            times = _sibling_times(rule, self.place, root)
        if rule.index:
            if max(rule.index) >= len(times):
                raise ValueError(f"time: index {max(rule.index)} is beyond the {len(times)} times found")
            times = [times[k] for k in rule.index]
        return times


def _tag(tags: dict[str, str], name: str) -> str:
    if name not in tags:
        raise ValueError(f"has no tag {name}: known are {', '.join(tags) or 'none'}")
    return tags[name]


def _match(regex: str, text: str) -> str:
    found = re.search(regex, text)
    if not found:
        raise ValueError(f"time: regex {regex!r} does not match {text!r}")
    groups = found.groupdict()
    return groups.get("time") or groups.get("start") or ""


def _sibling_times(rule: TimeRule, place: str, root: Path) -> list[int]:
    from aef.data.ingest.readers import open_raster

    found = sorted(root.glob(rule.glob.format(place=escape(place))))
    if len(found) != 1:
        raise ValueError(f"time: expected one sibling {rule.glob.format(place=place)}, found {len(found)}")
    if found[0].suffix == ".json":
        return texts_to_ms(json.loads(found[0].read_text(encoding="utf-8-sig")))
    with open_raster(found[0]) as sibling:
        return [parse_time(_tag(sibling.tags, rule.tag))] if rule.tag else texts_to_ms(sibling.coordinate(rule.var))
