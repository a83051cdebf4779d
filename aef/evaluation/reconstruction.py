"""Reconstruction of withheld dates: predictors and models judged on frames that nobody has seen.

The error of a date is the mean L1 over its clear pixels and bands, on standardised values (`aef.evaluation.series`);
the table averages over the dates of a place, then over places. Withheld dates and their twins (frames within an hour)
are hidden from every predictor and from a model's encoder.
"""

from __future__ import annotations

import csv
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np

from aef.atomic import writing
from aef.data.chips import Chip
from aef.data.on_demand import OnDemand
from aef.data.withheld import MINUTE_MS, WithheldDates, near
from aef.evaluation.predictors import PREDICTORS, linear
from aef.evaluation.series import ClearSeries, Scale, cells, clear_pixels, clear_series, to_scale
from aef.mapping.trained_model import TrainedModel
from aef.sources import Registry, Source
from aef.timecode import DAY_MS, Period, format_time

SAME_SCENE_MS = MINUTE_MS
"""Frames of two sources so close in time are products of one acquisition, as Sentinel-2 at levels 1C and 2A."""

ORACLE = "linear + the frame's true offset (oracle)"


@dataclass
class WithheldTable:
    """Mean error by predictor and place: ``errors[name][place]`` is a list with one number per date."""

    errors: dict[str, dict[str, list[float]]] = field(default_factory=dict)

    def add(self, name: str, place: str, error: float) -> None:
        """Note the error of one more date."""
        self.errors.setdefault(name, {}).setdefault(place, []).append(error)

    def place(self, name: str, place: str) -> float:
        """Mean over the dates of a place."""
        return float(np.mean(self.errors[name][place]))

    def mean(self, name: str) -> float:
        """Mean over dates, then over places."""
        return float(np.mean([self.place(name, place) for place in self.errors[name]]))


@dataclass(frozen=True)
class WithheldTask:
    """What is judged: the withheld frames of one source at some places.

    Attributes:
        chips: the places; one at a time is looked at (`OnDemand`).
        source: whose frames are withheld.
        hidden: every date that no predictor may see, the judged ones among them.
        judged: the dates to report on (a subset of `hidden`).
        bands: the bands that count; empty: all.
        cell_px: pixels of the chip's grid per pixel of the product (a 20 m product: 2).
    """

    chips: Sequence[Chip]
    source: Source
    hidden: WithheldDates
    judged: WithheldDates
    bands: tuple[str, ...] = ()
    cell_px: int = 1

    @cached_property
    def scale(self) -> Scale:
        """Of the clear observations of all places. Raises NothingClearError where there are none."""
        return Scale.of(OnDemand(self.chips, self.observed))

    def observed(self, chip: Chip) -> ClearSeries:
        """A place's clear observations, not yet standardised."""
        return clear_series(chip, self.source, bands=self.bands, cell_px=self.cell_px)

    def frames(self, series: ClearSeries) -> tuple[np.ndarray, np.ndarray]:
        """Of a place's frames: which are hidden (T,) bool, and the indices of the judged ones, twins not counted.

        A frame without a clear pixel has no error and is not judged.
        """
        hidden = self.hidden.frames(series.place, self.source.name, series.times_ms)
        exact = WithheldDates(self.judged.dates(), twin_ms=2000)
        judged = exact.frames(series.place, self.source.name, series.times_ms) & series.clear.any(axis=(1, 2))
        return hidden, np.flatnonzero(judged)


def naive_table(task: WithheldTask) -> WithheldTable:
    """Every naive predictor, and the oracle that knows the frame's mean offset, on the judged dates."""
    table = WithheldTable()
    for chip in task.chips:
        add_naive(table, task, task.scale.apply(task.observed(chip)))
    return table


def add_naive(table: WithheldTable, task: WithheldTask, series: ClearSeries) -> None:
    """Note the errors of the naive predictors at one place, whose observations are standardised."""
    hidden, judged = task.frames(series)
    seen = series.without(hidden)
    predictors = {name: build(seen) for name, build in PREDICTORS.items()}
    interpolate = linear(seen)
    for index in judged:
        time_ms, truth, clear = int(series.times_ms[index]), series.values[index], series.clear[index]
        for name, predict in predictors.items():
            table.add(name, series.place, l1(predict(time_ms), truth, clear))
        guess = interpolate(time_ms)
        offset = (truth - guess)[:, clear].mean(axis=1)
        table.add(ORACLE, series.place, l1(guess + offset[:, None, None], truth, clear))


def model_table(
    task: WithheldTask, model: TrainedModel, *, period_days: Sequence[float] = (8, 30, 120, 365)
) -> WithheldTable:
    """A trained model on the judged dates, each decoded from a valid period of `period_days` around it.

    The encoder sees every frame of the support except the hidden ones, of any input source.
    """
    table = WithheldTable()
    for chip in task.chips:
        add_model(table, task, model, chip, task.scale.apply(task.observed(chip)), period_days)
    return table


def add_model(
    table: WithheldTable,
    task: WithheldTask,
    model: TrainedModel,
    chip: Chip,
    series: ClearSeries,
    period_days: Sequence[float],
) -> None:
    """Note the errors of a model at one place, whose observations are standardised."""
    chosen = [task.source.band_names.index(band) for band in (task.bands or task.source.band_names)]
    _, judged = task.frames(series)
    # All periods around a date are served by one pass of the encoder.
    pairs = [(index, days) for index in judged for days in period_days]
    requests = [_around(int(series.times_ms[index]), days) for index, days in pairs]
    decoded = model.reconstruct(chip, task.source.name, requests, without_ms=hidden_times(task.hidden, chip))
    guesses = task.scale.standardize(cells(to_scale(task.source, decoded)[:, chosen], task.cell_px))
    for (index, days), guess in zip(pairs, guesses):
        table.add(f"model, {days:g} d", series.place, l1(guess, series.values[index], series.clear[index]))


def _around(time_ms: int, days: float) -> tuple[int, Period]:
    half = round(days * DAY_MS / 2)
    return time_ms, Period(time_ms - half, time_ms + half)


def hidden_times(hidden: WithheldDates, chip: Chip) -> Mapping[str, Sequence[int]]:
    """Per source, the frames of a chip that an encoder must not see."""
    times = {name: moments for name, series in chip.sources.items() if (moments := series.moment_ms) is not None}
    return {name: t[hidden.frames(chip.place, name, t)].tolist() for name, t in times.items()}


def l1(guess: np.ndarray, truth: np.ndarray, clear: np.ndarray) -> float:
    """Mean absolute difference over clear pixels and bands: (B, h, w), (B, h, w), (h, w). NaN where nothing is clear."""
    return float(np.abs(guess - truth)[:, clear].mean()) if clear.any() else float("nan")


def choose_dates(
    chips: Iterable[Chip], registry: Registry, *, every: int = 5, sources: Collection[str] = ()
) -> list[tuple[str, str, int]]:
    """Dates worth withholding: of each place's first input source, or of some `sources` that it holds, every fifth frame
    that is more than half clear.

    A date is withheld from all chips of its place, so the first of them chooses: together they could withhold every date.
    Frames of other sources within `SAME_SCENE_MS` are withheld too: another product of the scene would show it.

    Returns (place, source, time in epoch ms) rows.
    """
    rows = []
    places: set[str] = set()
    for chip in chips:
        if chip.place in places:
            continue
        places.add(chip.place)
        names = [name for name in registry if registry[name].role == "input" and name in chip.sources]
        names = [name for name in names if name in sources] if sources else names[:1]
        listed: dict[tuple[str, int], None] = {}
        for name in names:
            series = chip.sources[name]
            bands = np.flatnonzero(np.broadcast_to(series.valid.any(axis=(0, 2, 3)), series.values.shape[1])).tolist()
            clear = np.flatnonzero(clear_pixels(series, bands).mean(axis=(1, 2)) > 0.5)
            assert series.time_ms is not None
            chosen = series.time_ms[clear[every // 2 :: every]]
            listed |= dict.fromkeys((name, int(time_ms)) for time_ms in chosen)
            for other, its in chip.sources.items():
                if other != name and registry[other].time == "instant" and its.time_ms is not None:
                    shown = its.time_ms[near(its.time_ms, chosen, SAME_SCENE_MS)]
                    listed |= dict.fromkeys((other, int(time_ms)) for time_ms in shown)
        rows += [(chip.place, *row) for row in listed]
    return rows


def write_dates(path: Path, rows: Sequence[tuple[str, str, int]]) -> int:
    """Write (place, source, time) rows as the CSV that ``data.withheld`` names; returns how many."""
    with writing(path, "w") as stream:
        lines = csv.writer(stream, lineterminator="\n")
        lines.writerow(("place", "source", "time_utc"))
        lines.writerows((place, source, format_time(time_ms)) for place, source, time_ms in rows)
    return len(rows)
