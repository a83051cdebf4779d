"""What every predictor sees: the clear observations of one source at one place, on one scale.

All predictors, a trained model included, are judged on the same pixels of the same frames. Values go through the
source's registry transform and a z-score with the mean and deviation of all clear pixels of all places, clipped at six
deviations, so that errors of different bands and places add up.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch

from aef.data.chips import Chip, SourceSeries
from aef.data.transform import transform
from aef.sources import Source

CLIP = 6.0
T = TypeVar("T")


class NothingClearError(ValueError):
    """No pixel of a source was seen clear at any place; one line."""


@dataclass(frozen=True)
class ClearSeries:
    """T frames of one source at one place: ``values`` (T, B, h, w) float32, ``clear`` (T, h, w) bool, ``times_ms`` (T,)."""

    place: str
    times_ms: np.ndarray
    values: np.ndarray
    clear: np.ndarray

    def without(self, hidden: np.ndarray) -> ClearSeries:
        """The series without the frames where `hidden` (T,) is True."""
        return ClearSeries(self.place, self.times_ms[~hidden], self.values[~hidden], self.clear[~hidden])


@dataclass(frozen=True)
class Scale:
    """Mean and standard deviation per band, over the clear pixels of all places."""

    mean: np.ndarray
    std: np.ndarray

    @classmethod
    def of(cls, series: Iterable[ClearSeries]) -> Scale:
        """Pooled over every clear pixel of series that can be gone through twice. Raises NothingClearError where there is
        none."""
        scales = cls.of_each(series, lambda place: {"": place})
        if not scales:
            raise NothingClearError("no clear pixel at any place: nothing to compare")
        return scales[""]

    @classmethod
    def of_each(cls, items: Iterable[T], series_of: Callable[[T], Mapping[str, ClearSeries]]) -> dict[str, Scale]:
        """The scale of each of several series per item, by name; a series without a clear pixel has none.

        Items, say chips, are gone through twice, and the series of one are in memory at a time: deviations are from the
        mean that is known by then, as in a table of all pixels (one band to the last bit but one).
        """
        counts: Counter[str] = Counter()
        sums: dict[str, np.ndarray] = {}
        squares: dict[str, np.ndarray] = {}
        for item in items:
            for name, series in series_of(item).items():
                for pixels in _clear_values(series):
                    counts[name] += len(pixels)
                    sums[name] = _plus(sums.get(name), pixels)
        means = {name: total / counts[name] for name, total in sums.items()}
        for item in items:
            for name, series in series_of(item).items():
                for pixels in _clear_values(series):
                    squares[name] = _plus(squares.get(name), np.square(pixels - means[name]))
        return {
            name: cls(means[name], np.maximum(np.sqrt(total / counts[name]), 1e-12)) for name, total in squares.items()
        }

    def standardize(self, values: np.ndarray) -> np.ndarray:
        """(..., B, h, w) on the transform's scale → z-scores clipped at six deviations."""
        z = (values - self.mean[:, None, None]) / self.std[:, None, None]
        return np.clip(z, -CLIP, CLIP).astype(np.float32)

    def apply(self, series: ClearSeries) -> ClearSeries:
        """The series with standardised values."""
        return ClearSeries(series.place, series.times_ms, self.standardize(series.values), series.clear)


def _clear_values(series: ClearSeries) -> Iterator[np.ndarray]:
    """The clear pixels of each frame that has some: (P, B) float64."""
    for values, clear in zip(series.values, series.clear):
        if clear.any():
            yield np.ascontiguousarray(np.moveaxis(values, 0, -1)[clear], np.float64)


def _plus(total: np.ndarray | None, rows: np.ndarray) -> np.ndarray:
    """A sum (B,) and the next rows (P, B), in their order, as NumPy adds the rows of one large table."""
    return (rows if total is None else np.concatenate([total[None], rows])).sum(axis=0)


def clear_series(chip: Chip, source: Source, *, bands: Sequence[str] = (), cell_px: int = 1) -> ClearSeries:
    """The observations of a chip's source after its registry transform, not yet standardised.

    A pixel is clear where all chosen bands are valid and its loss weight is positive. With ``cell_px`` > 1 cells of
    that many pixels a side are averaged (a 20 m product on the 10 m grid: 2), and a cell is clear where all its pixels
    are. Where it is not clear it holds 0: a chip may hold NaN there, which no sum with a weight of 0 would lose.

    Raises:
        ValueError: the chip lacks the source, or the source lacks a band.
    """
    if source.name not in chip.sources:
        raise ValueError(f"chip {chip.id}: holds no source {source.name}; it holds {', '.join(chip.sources)}")
    chosen = [_index(source, band) for band in (bands or source.band_names)]
    series = chip.sources[source.name]
    assert series.time_ms is not None
    scaled = to_scale(source, series.values)[:, chosen]
    clear = clear_pixels(series, chosen)
    if cell_px > 1:
        scaled, clear = cells(scaled, cell_px), cells(clear.astype(np.float32), cell_px) == 1
    return ClearSeries(chip.place, series.time_ms, np.where(clear[:, None], scaled, np.float32(0)), clear)


def clear_pixels(series: SourceSeries, bands: Sequence[int]) -> np.ndarray:
    """(T, H, W) bool: every chosen band observed, and not weighted out."""
    valid = series.valid if series.valid.shape[1] == 1 else series.valid[:, list(bands)]
    clear = np.all(valid, axis=1)
    return clear if series.weight is None else clear & (series.weight[:, 0] > 0)


def to_scale(source: Source, values: np.ndarray) -> np.ndarray:
    """Stored values (T, C, H, W) → the registry transform's scale, float32."""
    # Torch knows few unsigned types.
    wide = torch.from_numpy(np.ascontiguousarray(np.moveaxis(values, 1, -1)).astype(np.float32))
    return np.moveaxis(transform(source, wide).numpy(), -1, 1)


def cells(values: np.ndarray, cell_px: int) -> np.ndarray:
    """Mean over cells of `cell_px` pixels a side: (..., H, W) → (..., H/cell, W/cell). Raises ValueError on a remainder."""
    *leading, height, width = values.shape
    if height % cell_px or width % cell_px:
        raise ValueError(f"expected sides that are multiples of {cell_px} px, found {height} x {width}")
    return values.reshape(*leading, height // cell_px, cell_px, width // cell_px, cell_px).mean(axis=(-3, -1))


def _index(source: Source, band: str) -> int:
    if band not in source.band_names:
        raise ValueError(f"source {source.name}: has no band {band}; it has {', '.join(source.band_names)}")
    return source.band_names.index(band)
