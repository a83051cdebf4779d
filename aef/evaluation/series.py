"""What every predictor sees: the clear observations of one source at one place, on one scale.

All predictors, a trained model included, are judged on the same pixels of the same frames. Values go through the
source's registry transform and a z-score with the mean and deviation of all clear pixels of all places, clipped at six
deviations, so that errors of different bands and places add up.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from aef.data.chips import Chip, SourceSeries
from aef.data.transform import transform
from aef.sources import Source

CLIP = 6.0


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
        """Pooled over every clear pixel. Raises NothingClearError where there is none."""
        pixels = [np.moveaxis(place.values, 1, -1)[place.clear] for place in series]
        pooled = np.concatenate(pixels) if pixels else np.zeros((0, 1))
        if not len(pooled):
            raise NothingClearError("no clear pixel at any place: nothing to compare")
        wide = pooled.astype(np.float64)
        return cls(wide.mean(axis=0), np.maximum(wide.std(axis=0), 1e-12))

    def standardize(self, values: np.ndarray) -> np.ndarray:
        """(..., B, h, w) on the transform's scale → z-scores clipped at six deviations."""
        z = (values - self.mean[:, None, None]) / self.std[:, None, None]
        return np.clip(z, -CLIP, CLIP).astype(np.float32)

    def apply(self, series: ClearSeries) -> ClearSeries:
        """The series with standardised values."""
        return ClearSeries(series.place, series.times_ms, self.standardize(series.values), series.clear)


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
