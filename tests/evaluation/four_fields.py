"""Three places of four fields in two classes: what a judgement is made of in the tests."""

import numpy as np

from aef.data.chips import Chip, Label, SourceSeries
from aef.timecode import DAY_MS, parse_time

START = parse_time("2018-01-01")
SIDE = 16


def a_chip(number: int) -> Chip:
    """Four fields in the quarters of a chip, two of each class; classes differ in their season."""
    rng = np.random.default_rng(number)
    rows, columns = np.indices((SIDE, SIDE)) // (SIDE // 2)
    fields = 1 + rows * 2 + columns
    classes = (fields % 2).astype(np.int32)
    days = np.arange(0, 360, 24)
    season = np.cos(2 * np.pi * (days[:, None, None] / 365 - 0.4 * classes))
    base = 1500 + 700 * season + 30 * rng.normal(size=(len(days), SIDE, SIDE))
    optical = np.stack([base * (1 + 0.2 * band) for band in range(5)], axis=1).astype(np.uint16)
    s2 = SourceSeries(
        values=optical,
        valid=np.ones((len(days), 1, SIDE, SIDE), bool),
        weight=np.full((len(days), 1, SIDE, SIDE), 255, np.uint8),
        time_ms=START + days.astype(np.int64) * DAY_MS,
    )
    valid = np.zeros((4, 5, SIDE, SIDE), bool)
    valid[:, :2] = True
    s1 = SourceSeries(
        values=np.where(valid, -10 + 2 * classes + rng.normal(size=valid.shape), 0).astype(np.float32),
        valid=valid,
        time_ms=START + np.arange(4, dtype=np.int64) * 80 * DAY_MS,
    )
    label = Label(classes, legend={0: "early", 1: "late"}, fields=fields.astype(np.int32))
    return Chip(
        f"c{number}", "EPSG:32631", (10.0, 0, 1000 * number, 0, -10.0, 0), SIDE, SIDE, 3, 51,
        {"sentinel2": s2, "sentinel1": s1}, labels={"crop": label},
    )  # fmt: skip
