"""Count, mean and deviation of every band of a source, gathered chip by chip."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from aef.data.contract import Chip, SourceSeries
from aef.data.transform import transform
from aef.data.withheld import WithheldDates
from aef.sources import Source


@dataclass(frozen=True)
class SourceStatistics:
    """Mean and standard deviation of every band after the transform, and where they come from.

    ``count`` is the number of observations behind each band; a band that was never observed has count 0, mean 0 and
    standard deviation 1, and so passes through unscaled.
    """

    bands: tuple[str, ...]
    units: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    count: tuple[int, ...]
    collections: tuple[str, ...] = ()

    def completed_by(self, other: SourceStatistics) -> SourceStatistics:
        """These, with others of the same bands where a band was never observed here."""
        pairs = list(zip(self._by_band(), other._by_band(), strict=True))
        mean, std, count = zip(*(own if own[2] else others for own, others in pairs), strict=True)
        collections = tuple(dict.fromkeys((*self.collections, *other.collections)))
        return SourceStatistics(self.bands, self.units, mean, std, count, collections)

    def _by_band(self) -> Iterator[tuple[float, float, int]]:
        return zip(self.mean, self.std, self.count, strict=True)


class Moments:
    """Weighted count, mean and sum of squared deviations per band, merged chip by chip (Chan et al. 1979), float64."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self.weight = np.zeros(source.channels)
        self.mean = np.zeros(source.channels)
        self.square = np.zeros(source.channels)
        self.count = np.zeros(source.channels, np.int64)
        self.collections: set[str] = set()

    def add(self, chip: Chip, series: SourceSeries, weighting: str, withheld: WithheldDates | None) -> None:
        if series.collection:
            self.collections.add(series.collection)
        keep = np.ones(series.frames, np.bool_)
        if withheld is not None and series.time_ms is not None and self.source.time == "instant":
            keep = ~withheld.frames(chip.place, self.source.name, series.time_ms)
        # One frame at a time: a year of a chip in float64 would take eight times its memory.
        takes = [keep] if self.source.grid == "points" else [slice(i, i + 1) for i in np.flatnonzero(keep)]
        for take in takes:
            self._merge(series.values[take], series.valid[take], _weights(series, take, weighting))

    def _merge(self, values: np.ndarray, valid: np.ndarray, weights: np.ndarray | None) -> None:
        last = np.moveaxis(values, 1, -1)  # (..., C)
        y = transform(self.source, torch.from_numpy(np.ascontiguousarray(last))).numpy()
        observed = np.broadcast_to(np.moveaxis(valid, 1, -1), last.shape)
        importance = None if weights is None else np.broadcast_to(np.moveaxis(weights, 1, -1), last.shape)
        for band in range(self.source.channels):
            weight = None if importance is None else importance[..., band]
            self._merge_band(band, y[..., band], observed[..., band], weight)

    def _merge_band(self, band: int, y: np.ndarray, observed: np.ndarray, importance: np.ndarray | None) -> None:
        if importance is not None:
            observed = observed & (importance > 0)
        x = y[observed].astype(np.float64)
        if not x.size:
            return
        w = np.ones(x.size) if importance is None else importance[observed] / 255.0
        total = w.sum()
        mean = float((w * x).sum() / total)
        square = float((w * (x - mean) ** 2).sum())
        self._join_band(band, total, mean, square, x.size)

    def join(self, other: Moments) -> None:
        """Add the observations behind other moments of the same source."""
        self.collections |= other.collections
        for band in np.flatnonzero(other.weight).tolist():
            self._join_band(band, other.weight[band], other.mean[band], other.square[band], int(other.count[band]))

    def _join_band(self, band: int, total: float, mean: float, square: float, count: int) -> None:
        joint = self.weight[band] + total
        step = mean - self.mean[band]
        self.square[band] += square + step**2 * self.weight[band] * total / joint
        self.mean[band] += step * total / joint
        self.weight[band] = joint
        self.count[band] += count

    def result(self) -> SourceStatistics:
        std = np.sqrt(self.square / np.maximum(self.weight, 1e-300))
        # A constant band (one place of a coarse source) carries no scale: its z-score is 0 whatever the deviation.
        std = np.where(std > 1e-6 * np.maximum(np.abs(self.mean), 1e-6), std, 1.0)
        return SourceStatistics(
            self.source.band_names,
            self.source.units,
            tuple(map(float, self.mean)),
            tuple(map(float, std)),
            tuple(map(int, self.count)),
            tuple(sorted(self.collections)),
        )


def _weights(series: SourceSeries, take: slice | np.ndarray, weighting: str) -> np.ndarray | None:
    return series.weight[take] if weighting == "clear" and series.weight is not None else None
