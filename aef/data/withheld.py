"""Dates that training must not see, so that reconstruction can be judged on them (`withheld` in `aef.config`)."""

from __future__ import annotations

import csv
import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from aef.data.chips import ChipError, ChipFolder, read_frame_times
from aef.timecode import DAY_MS, format_time, parse_time

MINUTE_MS = 60_000
TWIN_MS = 60 * MINUTE_MS
"""Frames of a source within an hour of each other are twins: they show the same scene."""


class WithheldError(ValueError):
    """A list of withheld dates cannot be read; one line naming file, line and reason."""


def near(times_ms: np.ndarray, wanted_ms: np.ndarray, within_ms: int) -> np.ndarray:
    """Which of ``times_ms`` (T,) lie at most ``within_ms`` from any of the sorted ``wanted_ms``: (T,) bool."""
    if not len(wanted_ms):
        return np.zeros(len(times_ms), np.bool_)
    after = np.searchsorted(wanted_ms, times_ms)
    left = np.abs(times_ms - wanted_ms[np.maximum(after - 1, 0)])
    right = np.abs(times_ms - wanted_ms[np.minimum(after, len(wanted_ms) - 1)])
    return np.minimum(left, right) <= within_ms


class WithheldDates:
    """Dates per place, and per source where the list names one, that no input, target or statistic may contain.

    A date stands for its frame and that frame's twins. Where the list names no source the date applies to every source
    with acquisition times: a second sensor that passed within the hour would give the withheld scene away.
    """

    def __init__(self, dates_ms: Mapping[tuple[str, str], list[int]], twin_ms: int = TWIN_MS) -> None:
        self._dates = {key: np.array(sorted(times), np.int64) for key, times in dates_ms.items()}
        self.twin_ms = twin_ms

    @classmethod
    def read(cls, path: str | os.PathLike, subset: str | None = None, *, twin_ms: int = TWIN_MS) -> WithheldDates:
        """Read a CSV with columns ``place`` and ``time_utc`` (ISO, UTC) and, if it likes, ``source``.

        With ``subset`` only the rows whose column ``set`` holds that word: dates to report on, or to tune on.

        Raises:
            FileNotFoundError: there is no such file.
            WithheldError: a column is missing, a time cannot be read, or no row is of the subset.
        """
        path = Path(path)
        dates: dict[tuple[str, str], list[int]] = {}
        with open(path, newline="", encoding="utf-8-sig") as stream:
            rows = csv.DictReader(stream)
            try:
                missing = {"place", "time_utc"} - set(rows.fieldnames or ())
                if missing:
                    raise WithheldError(
                        f"{path}: line 1: expected columns place and time_utc, missing {', '.join(sorted(missing))}"
                    )
                for row in rows:
                    if subset is not None and row.get("set") != subset:
                        continue
                    key = (row["place"] or "", row.get("source") or "")
                    dates.setdefault(key, []).append(parse_time(row["time_utc"] or ""))
            except (csv.Error, UnicodeDecodeError, ValueError, OverflowError) as error:
                if isinstance(error, WithheldError):
                    raise
                raise WithheldError(f"{path}: line {rows.line_num}: {error}") from error
        if subset is not None and not dates:
            raise WithheldError(f"{path}: no row has {subset!r} in its column `set`")
        return cls(dates, twin_ms)

    def dates(self) -> dict[tuple[str, str], list[int]]:
        """The listed dates by (place, source or "")."""
        return {key: times.tolist() for key, times in self._dates.items()}

    @property
    def sources(self) -> frozenset[str]:
        """The sources that the list names."""
        return frozenset(source for _, source in self._dates if source)

    @property
    def places(self) -> frozenset[str]:
        return frozenset(place for place, _ in self._dates)

    def __len__(self) -> int:
        return sum(map(len, self._dates.values()))

    def frames(self, place: str, source: str, times_ms: np.ndarray) -> np.ndarray:
        """Which frames of a place's source are withheld: times (T,) int64 → (T,) bool."""
        mask = np.zeros(len(times_ms), np.bool_)
        for key in {(place, source), (place, "")} & self._dates.keys():
            mask |= near(times_ms, self._dates[key], self.twin_ms)
        return mask

    def describe_unmatched(self, folder: ChipFolder) -> str | None:
        """One line on the dates that no frame of a folder lies near, or None. Reads times, no pixels.

        A list may be of more places than a folder; but a mistyped place, or a day without its time of day, which means
        midnight, looks the same.
        """
        instant = [name for name, source in folder.registry.items() if source.time == "instant"]
        met = {key: np.zeros(len(times), np.bool_) for key, times in self._dates.items()}
        for index in folder.where(self.places).tolist():
            try:
                frames = read_frame_times(folder.files[index], instant)
            except ChipError:
                continue  # whoever reads the chip says what is wrong with it
            place = folder.places()[index] or ""
            for name, times in frames.items():
                for key in {(place, name), (place, "")} & met.keys():
                    met[key] |= near(self._dates[key], np.sort(times), self.twin_ms)
        idle = [(*key, int(time)) for key, times in self._dates.items() for time in times[~met[key]]]
        if not idle:
            return None
        place, source, time = idle[0]
        first = " ".join(filter(None, (place, source, format_time(time))))
        return (
            f"{len(idle)} of {len(self)} dates have no frame of {folder.path} within {self.twin_ms / MINUTE_MS:g} minutes and withhold "
            f"nothing: the first is {first}{' (a day alone means its midnight, UTC)' * (time % DAY_MS == 0)}"
        )
