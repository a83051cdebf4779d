"""A small chip that holds all nine gridded sources, random but lawful."""

from __future__ import annotations

import numpy as np
import pytest

from aef.data.chips import Chip, Label, SourceSeries, TextPoint
from aef.sources import BUILT_IN, Source
from aef.timecode import DAY_MS, parse_time

START = parse_time("2019-01-01")
MONTH_MS = 30 * DAY_MS
FRAMES = {"sentinel2": 12, "sentinel1": 8, "landsat": 5, "palsar2": 2}


def _times(rng: np.random.Generator, frames: int, days: int) -> np.ndarray:
    """Different hours, at least two apart: no twins."""
    return START + np.sort(rng.choice(days * 12, frames, replace=False)).astype(np.int64) * 7_200_000


def _values(rng: np.random.Generator, source: Source, shape: tuple[int, ...], dtype: str = "float32") -> np.ndarray:
    """Uniform between the middle fifth of each band's valid range: (T, C, ...)."""
    if source.classes:
        return rng.choice(source.classes, shape).astype("uint8")
    values = np.empty(shape, dtype)
    for i, band in enumerate(source.bands):
        low, high = max(band.valid_min, -30000), min(band.valid_max, 30000) if band.unit != "Pa" else 110000
        middle, reach = (low + high) / 2, (high - low) / 10
        values[:, i] = rng.uniform(middle - reach, middle + reach, values[:, i].shape) + (reach if middle == 0 else 0)
    return values


def _instants(rng, source: Source, frames: int, side: int, days: int) -> SourceSeries:
    valid = rng.random((frames, 1, side, side)) < 0.95
    weight = None
    if source.name == "sentinel1":
        # Two of four polarisations, and the angle.
        valid = np.broadcast_to(valid, (frames, 5, side, side)) & np.array([1, 1, 0, 0, 1], bool)[:, None, None]
    if source.name == "sentinel2":
        weight = np.where(rng.random((frames, 1, side, side)) < 0.5, 255, 0).astype(np.uint8)
    dtype = "uint16" if source.bands[0].unit in ("DN", "reflectance x 10000") else "float32"
    metadata = rng.uniform(-90, 90, (frames, len(source.metadata))).astype(np.float32)
    return SourceSeries(
        _values(rng, source, (frames, source.channels, side, side), dtype),
        valid,
        _times(rng, frames, days),
        weight=weight,
        metadata=metadata if source.metadata else None,
    )


def _coarse(rng, source: Source, months: int) -> SourceSeries:
    starts = START + np.arange(months, dtype=np.int64) * MONTH_MS
    in_degrees = source.name == "grace"
    return SourceSeries(
        _values(rng, source, (months, source.channels, 2, 2)),
        np.ones((months, 1, 2, 2), bool),
        starts,
        time_end_ms=starts + MONTH_MS,
        transform=(0.5, 0.0, 2.75, 0.0, -0.5, 45.5) if in_degrees else (9000.0, 0.0, 499000.0, 0.0, -9000.0, 5009000.0),
        crs="EPSG:4326" if in_degrees else None,
    )


def _footprints(rng, source: Source, side: int, months: int, per_month: int = 6) -> SourceSeries:
    count = months * per_month
    starts = START + np.repeat(np.arange(months, dtype=np.int64), per_month) * MONTH_MS
    return SourceSeries(
        _values(rng, source, (count, source.channels)),
        np.ones((count, 1), bool),
        starts,
        time_end_ms=starts + MONTH_MS,
        row=rng.integers(0, side, count).astype(np.int32),
        col=rng.integers(0, side, count).astype(np.int32),
    )


def _series(rng, source: Source, side: int, frames: dict[str, int], days: int) -> SourceSeries:
    months = max(1, days // 30)
    if source.grid == "points":
        series = _footprints(rng, source, side, min(months, 4))
    elif source.grid == "native":
        series = _coarse(rng, source, months)
    elif source.time == "static":
        shape = (1, source.channels, side, side)
        series = SourceSeries(_values(rng, source, shape), np.ones((1, 1, side, side), bool))
    elif source.time == "interval":
        years = START + np.array([-730, 400], np.int64) * DAY_MS
        shape = (2, source.channels, side, side)
        series = SourceSeries(
            _values(rng, source, shape), np.ones((2, 1, side, side), bool), years, time_end_ms=years + 365 * DAY_MS
        )
    else:
        series = _instants(rng, source, frames.get(source.name, 3), side, days)
    series.bands, series.units, series.collection = source.band_names, source.units, source.collections[0]
    series.native_resolution_m, series.licence = source.native_resolution_m, source.licence
    return series


def build_chip(
    name: str = "somewhere", *, side: int = 16, sources=tuple(BUILT_IN), frames=None, days: int = 365, registry=BUILT_IN
) -> Chip:
    """A chip of any sources. The same name gives the same chip."""
    rng = np.random.default_rng(list(name.encode()))
    wanted = {**FRAMES, **(frames or {})}
    return Chip(
        id=name,
        place=name.partition("@")[0],
        crs="EPSG:32631",
        transform=(10.0, 0.0, 500000.0, 0.0, -10.0, 5000000.0),
        height=side,
        width=side,
        lon=3.0,
        lat=45.15,
        sources={key: _series(rng, registry[key], side, wanted, days) for key in sources},
        labels={
            "crop": Label(
                rng.integers(0, 4, (side, side)).astype(np.uint8),
                legend={1: "maize", 2: "grass"},
                ignore=(0,),
                valid_start_ms=START,
                valid_end_ms=START + 365 * DAY_MS,
                fields=rng.integers(0, 9, (side, side)).astype(np.int32),
                licence="CC0-1.0",
            )
        },
        texts=[
            TextPoint(500035.0, 4999925.0, 25.0, START, START + 365 * DAY_MS, "a meadow", "gbif", "CC-BY-4.0"),
        ],
        synthetic=True,
        attributes={"seed": 1},
    )


@pytest.fixture
def make_chip():
    """`make_chip(name, side=16, sources=all nine, frames={source: T}, days=365, registry=BUILT_IN)` → `Chip`."""
    return build_chip


@pytest.fixture
def chip(make_chip):
    """One chip of all nine sources."""
    return make_chip("place")
