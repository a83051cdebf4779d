"""The embedding's own feature sets, beside the hand-made ones of `aef.evaluation.baselines`.

A year is judged as one vector; as four vectors of 91 days side by side, which keep apart what a year blends; and as the
series that the model decodes from twelve vectors of 30 days: a cloudless view in the sensor's standardised bands, where
a direction of the embedding weighs as much as what it changes in an image. Each per pixel and, as every baseline, over
a 3×3 window.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from aef.data.chips import Chip
from aef.evaluation.baselines import observed_sources, over_window, window_mean
from aef.mapping.trained_model import TrainedModel
from aef.timecode import DAY_MS, Period

EMBEDDING = "embedding"
"""How the names of our own feature sets begin; all others are baselines."""

QUARTERS, QUARTER_DAYS = 4, 91
QUARTERLY = f"{EMBEDDING}, {QUARTERS} of {QUARTER_DAYS} d"
MONTHS, MONTH_DAYS = 12, 30
DECODED = f"{EMBEDDING}, {MONTHS} of {MONTH_DAYS} d, decoded"
OURS = tuple(form for name in (EMBEDDING, QUARTERLY, DECODED) for form in (name, over_window(name)))


def quarters(year: Period) -> list[Period]:
    """Four consecutive periods of 91 days from the start of a year."""
    return _consecutive(year, QUARTERS, QUARTER_DAYS)


def _consecutive(year: Period, count: int, days: int) -> list[Period]:
    starts = [year.start_ms + k * days * DAY_MS for k in range(count)]
    return [Period(start, start + days * DAY_MS) for start in starts]


def decoded_source(model: TrainedModel, chips: Sequence[Chip]) -> str | None:
    """The first source that the model decodes and every chip holds as an input: what `DECODED` is a series of."""
    observed = observed_sources(chips, model.registry)
    return next((name for name in model.targets if name in observed), None)


def feature_sets(
    model: TrainedModel, chip: Chip, years: Sequence[Period], decoded: str | None
) -> dict[Period, dict[str, np.ndarray]]:
    """Every feature set of some years of a chip: a year and its quarters from one pass of the encoder over the frames
    of the year, the decoded series of a year from one more over the same frames: baselines see no other.

    Args:
        model, chip: the model need not know the chip.
        years: periods of a year.
        decoded: source of the decoded series; None: there is none.

    Returns:
        year → name → (64, h, w), (256, h, w) or (12 C, h, w).

    Raises:
        EmbeddingError: a year holds no frame, or `decoded` is not decoded.
    """
    sets: dict[Period, dict[str, np.ndarray]] = {}
    for year in dict.fromkeys(years):
        periods = [year, *quarters(year)]
        embedded = dict(zip(periods, model.embed_array(chip, periods, support=year)))
        fields = {EMBEDDING: embedded[year], QUARTERLY: np.concatenate([embedded[part] for part in quarters(year)])}
        if decoded is not None:
            months = _consecutive(year, MONTHS, MONTH_DAYS)
            requests = [((month.start_ms + month.end_ms) // 2, month) for month in months]
            series = model.reconstruct(chip, decoded, requests, standardized=True, support=year)
            fields[DECODED] = np.concatenate(series[:, model.scored(decoded)])
        sets[year] = {}
        for name, field in fields.items():
            sets[year] |= {name: field, over_window(name): window_mean(field)}
    return sets
