"""Hand-made features that embeddings have to beat, from the same chips, frames and masks as the model sees.

Every function takes the clear observations of one source at one place (standardised `ClearSeries`) inside a year and
gives a field (D, h, w). A feature set stacks them over sources.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import reduce
from itertools import compress
from operator import add

import numpy as np

from aef.data.chips import Chip
from aef.evaluation.predictors import harmonic_coefficients, linear
from aef.evaluation.probes import ProbeError
from aef.evaluation.series import ClearSeries, Scale, clear_series
from aef.sources import Registry, Source
from aef.timecode import Period

RAW_STEPS = 12
SEASONS = 4
HARMONICS = 3


def annual_statistics(series: ClearSeries, period: Period) -> np.ndarray:
    """Mean and standard deviation of each band: (2 B, h, w). 0 where a pixel has no clear observation."""
    mean, deviation = _moments(series)
    return np.concatenate([mean, deviation])


def seasonal_composites(series: ClearSeries, period: Period) -> np.ndarray:
    """Mean of each quarter of the period: (4 B, h, w). A quarter without a clear observation gets the annual mean."""
    annual, _ = _moments(series)
    quarter = (series.times_ms - period.start_ms) * SEASONS // period.length_ms
    fields = []
    for number in range(SEASONS):
        part = series.without(quarter != number)
        mean, _ = _moments(part)
        fields.append(np.where(part.clear.any(axis=0), mean, annual))
    return np.concatenate(fields)


def harmonic_features(series: ClearSeries, period: Period) -> np.ndarray:
    """Intercept and three annual harmonics per pixel and band, lightly ridged: (7 B, h, w)."""
    coefficients = harmonic_coefficients(series, HARMONICS)  # (h, w, K, B)
    return np.moveaxis(coefficients.reshape(*coefficients.shape[:2], -1), -1, 0).astype(np.float32)


def raw_series(series: ClearSeries, period: Period) -> np.ndarray:
    """The bands at twelve equal steps of the period, linear between clear observations: (12 B, h, w)."""
    predict = linear(series)
    middles = period.start_ms + (2 * np.arange(RAW_STEPS) + 1) * period.length_ms // (2 * RAW_STEPS)
    return np.concatenate([predict(int(time_ms)) for time_ms in middles]).astype(np.float32)


FEATURES: dict[str, Callable[[ClearSeries, Period], np.ndarray]] = {
    "annual mean and s.d.": annual_statistics,
    "seasonal composites": seasonal_composites,
    "harmonic": harmonic_features,
    "raw series": raw_series,
}
"""The feature sets of observations, each available per pixel and over a 3×3 window."""


def _moments(series: ClearSeries) -> tuple[np.ndarray, np.ndarray]:
    clear = series.clear[:, None]
    count = np.maximum(clear.sum(axis=0), 1)
    mean = (series.values * clear).sum(axis=0) / count
    variance = (np.square(series.values - mean) * clear).sum(axis=0) / count
    return mean.astype(np.float32), np.sqrt(variance).astype(np.float32)


def coordinates(chip: Chip) -> np.ndarray:
    """Eastings and northings of the pixel centres: (2, h, w). What a probe gets from position alone."""
    a, b, c, d, e, f = chip.transform
    column, row = np.meshgrid(np.arange(chip.width) + 0.5, np.arange(chip.height) + 0.5)
    return np.stack([a * column + b * row + c, d * column + e * row + f])


def over_window(name: str) -> str:
    """The name of a feature set averaged by `window_mean`."""
    return f"{name}, 3×3"


def window_mean(field: np.ndarray) -> np.ndarray:
    """Mean over the 3×3 window around each pixel, of what lies inside the chip: (D, h, w) → (D, h, w)."""
    padded = np.pad(field, ((0, 0), (1, 1), (1, 1)))
    inside = np.pad(np.ones(field.shape[1:], field.dtype), 1)
    height, width = field.shape[1:]
    shifted = [(slice(None), slice(i, i + height), slice(j, j + width)) for i in range(3) for j in range(3)]
    return reduce(add, (padded[s] for s in shifted)) / reduce(add, (inside[s[1:]] for s in shifted))


def observed_sources(chips: Sequence[Chip], registry: Registry) -> dict[str, tuple[str, ...]]:
    """Input sources on the chip's grid that every chip holds, with their bands observed in at least half of the frames;
    a source without such a band, or of which a chip holds no frame, is left out."""
    common: dict[str, np.ndarray] | None = None
    for chip in chips:
        held = registry if common is None else common
        sources = [name for name in held if registry[name].role == "input" and name in chip.sources]
        seen = {name: _often_observed(chip, registry[name]) for name in sources}
        common = seen if common is None else {name: common[name] & bands for name, bands in seen.items()}
    bands = {name: tuple(compress(registry[name].band_names, keep)) for name, keep in (common or {}).items()}
    return {name: names for name, names in bands.items() if names}


def _often_observed(chip: Chip, source: Source) -> np.ndarray:
    """Bands of a source that are observed in at least half of a chip's frames: (C,) bool."""
    seen = np.any(chip.sources[source.name].valid, axis=(2, 3))  # (T, C or 1)
    return np.broadcast_to(seen, (len(seen), source.channels)).sum(axis=0) / max(len(seen), 1) >= 0.5


def baseline_fields(
    chips: Sequence[Chip], registry: Registry, period_of: Callable[[Chip], Period]
) -> Iterator[dict[str, np.ndarray]]:
    """Every feature set of one chip after the other, standardised over all of them: name → (D, h, w).

    A source without a clear pixel at any chip is left out. Chips are gone through four times (`aef.data.on_demand`), and
    fields are made as they are asked for.

    Raises:
        ProbeError: the chips share no input source that shows a clear pixel.
    """
    bands = observed_sources(chips, registry)

    def observed(chip: Chip) -> dict[str, ClearSeries]:
        return {name: clear_series(chip, registry[name], bands=chosen) for name, chosen in bands.items()}

    scales = Scale.of_each(chips, observed)
    if chips and not scales:
        raise ProbeError("the chips share no input source with a clear pixel: no baseline can be computed")
    for chip in chips:
        yield _fields(
            chip, {name: scales[name].apply(s) for name, s in observed(chip).items() if name in scales}, period_of(chip)
        )


def _fields(chip: Chip, observed: Mapping[str, ClearSeries], period: Period) -> dict[str, np.ndarray]:
    """Every feature set of a chip, of standardised observations by source."""
    fields = {"coordinates": coordinates(chip).astype(np.float64)}
    inside = [
        series.without((series.times_ms < period.start_ms) | (series.times_ms >= period.end_ms))
        for series in observed.values()
    ]
    for name, feature in FEATURES.items():
        fields[name] = np.concatenate([feature(series, period) for series in inside])
        fields[over_window(name)] = window_mean(fields[name])
    return fields
