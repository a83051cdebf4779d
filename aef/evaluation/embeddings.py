"""The embedding's own feature sets, beside the hand-made ones of `aef.evaluation.features`.

A year is judged as one vector, and as four vectors of 91 days side by side, which keep apart what a year blends; each per
pixel and, as every baseline, over a 3×3 window.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from aef.evaluation.features import over_window, window_mean
from aef.timecode import DAY_MS, Period

EMBEDDING = "embedding"
"""How the names of our own feature sets begin; all others are baselines."""

QUARTERS, QUARTER_DAYS = 4, 91
QUARTERLY = f"{EMBEDDING}, {QUARTERS} of {QUARTER_DAYS} d"
OURS = (EMBEDDING, over_window(EMBEDDING), QUARTERLY, over_window(QUARTERLY))


def quarters(year: Period) -> list[Period]:
    """Four consecutive periods of 91 days from the start of a year."""
    starts = [year.start_ms + k * QUARTER_DAYS * DAY_MS for k in range(QUARTERS)]
    return [Period(start, start + QUARTER_DAYS * DAY_MS) for start in starts]


def periods_of(years: Sequence[Period]) -> list[Period]:
    """What must be embedded for `feature_sets` of some years, each period once."""
    return list(dict.fromkeys(period for year in years for period in (year, *quarters(year))))


def feature_sets(year: Period, embedded: dict[Period, np.ndarray]) -> dict[str, np.ndarray]:
    """Fields (64, h, w) by period → the four feature sets of a year: (64, h, w) and (256, h, w)."""
    whole, parts = embedded[year], np.concatenate([embedded[quarter] for quarter in quarters(year)])
    return dict(zip(OURS, (whole, window_mean(whole), parts, window_mean(parts))))
