"""Rasters on their own grid, and what reading them on another grid gives."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
from pyproj import Transformer


@functools.cache
def transformer(source: str, target: str) -> Transformer:
    return Transformer.from_crs(source, target, always_xy=True)


@dataclass(frozen=True)
class Grid:
    """A pixel grid: x = a col + c, y = e row + f (no rotation)."""

    crs: str
    affine: tuple[float, float, float, float, float, float]
    height: int
    width: int

    @classmethod
    def of_request(cls, grid: dict) -> Grid:
        t, size = grid["affineTransform"], grid["dimensions"]
        affine = (t["scaleX"], t.get("shearX", 0), t["translateX"], t.get("shearY", 0), t["scaleY"], t["translateY"])
        return cls(grid["crsCode"], tuple(map(float, affine)), int(size["height"]), int(size["width"]))

    def centres(self) -> tuple[np.ndarray, np.ndarray]:
        a, _, c, _, e, f = self.affine
        x, y = c + a * (np.arange(self.width) + 0.5), f + e * (np.arange(self.height) + 0.5)
        return np.meshgrid(x, y)


@functools.lru_cache(1024)
def positions(target: Grid, own: Grid) -> tuple[np.ndarray, np.ndarray]:
    """Fractional rows and columns of one grid at the pixel centres of another."""
    x, y = target.centres()
    if target.crs != own.crs:
        x, y = transformer(target.crs, own.crs).transform(x, y)
    a, _, c, _, e, f = own.affine
    return (y - f) / e, (x - c) / a


@dataclass(frozen=True)
class Raster:
    """One band: values and mask on a grid."""

    grid: Grid
    values: np.ndarray
    mask: np.ndarray

    def read(self, target: Grid, bilinear: bool) -> tuple[np.ndarray, np.ndarray]:
        row, col = positions(target, self.grid)
        return self._bilinear(row - 0.5, col - 0.5) if bilinear else self._nearest(row, col)

    def _pick(self, row: np.ndarray, col: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        height, width = self.values.shape
        inside = (row >= 0) & (row < height) & (col >= 0) & (col < width)
        row, col = np.clip(row, 0, height - 1), np.clip(col, 0, width - 1)
        return self.values[row, col], self.mask[row, col] & inside

    def _nearest(self, row: np.ndarray, col: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return self._pick(np.floor(row + 1e-9).astype(int), np.floor(col + 1e-9).astype(int))

    def _bilinear(self, row: np.ndarray, col: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        row, col = np.round(row, 6), np.round(col, 6)
        top, left = np.floor(row).astype(int), np.floor(col).astype(int)
        down, right = row - top, col - left
        total, seen = np.zeros(row.shape), np.ones(row.shape, bool)
        for dy, dx, share in (
            (0, 0, (1 - down) * (1 - right)),
            (0, 1, (1 - down) * right),
            (1, 0, down * (1 - right)),
            (1, 1, down * right),
        ):
            values, mask = self._pick(top + dy, left + dx)
            total += np.where(share > 0, values * share, 0)
            seen &= mask | (share == 0)
        return total, seen
