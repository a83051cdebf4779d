"""Chips with a series of frames, one or more a place."""

import numpy as np

from aef.data.chips import Chip, SourceSeries, write_chip
from aef.sources import BUILT_IN
from aef.timecode import DAY_MS, parse_time

YEAR = "2018-01-01/2019-01-01"


def a_series(name, number, side=8, count=6, start="2018-01-03", days=60):
    source = BUILT_IN[name]
    shape = (count, source.channels, side, side)
    low, high, kind = (100, 3000, np.uint16) if name == "sentinel2" else (0, 5, np.float32)
    values = np.random.default_rng(number).uniform(low, high, shape).astype(kind)
    times = parse_time(start) + np.arange(count) * days * DAY_MS
    return SourceSeries(values, np.ones((count, 1, side, side), bool), times)


def a_place(folder, number, starts, name="p{}_{}", count=12, place="p{}"):
    """One chip per start date, each of a year of frames of the same ground, and the place's number in its name."""
    for start in starts:
        sources = {"sentinel2": a_series("sentinel2", number, count=count, start=start, days=360 // count)}
        chip = Chip(
            name.format(number, start[:4]), "EPSG:32631", (10.0, 0, 500_000 + 100 * number, 0, -10.0, 5_700_000), 8, 8, 3.0,
            51.0, sources, place=place.format(number),
        )  # fmt: skip
        write_chip(folder / f"{chip.id}.npz", chip, BUILT_IN)
    return folder
