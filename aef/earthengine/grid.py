"""Where a chip lies: a snapped 10 m grid in the UTM zone of its centre, and the coarse products' cells under it."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import numpy as np
from pyproj import Transformer

from aef.data.chips import PIXEL_M

Affine = tuple[float, float, float, float, float, float]


def utm_crs(lon: float, lat: float) -> str:
    """The UTM zone of a point as ``EPSG:326zz`` (north) or ``EPSG:327zz`` (south); plain 6 degree zones."""
    zone = int((lon + 180) // 6) % 60 + 1
    return f"EPSG:{(32600 if lat >= 0 else 32700) + zone}"


@functools.cache
def to_utm(crs: str) -> Transformer:
    """From longitude and latitude to metres of a UTM zone."""
    return Transformer.from_crs("EPSG:4326", crs, always_xy=True)


@functools.cache
def to_degrees(crs: str) -> Transformer:
    """From metres of a UTM zone to longitude and latitude."""
    return Transformer.from_crs(crs, "EPSG:4326", always_xy=True)


@dataclass(frozen=True)
class ChipGrid:
    """A square of ``px`` pixels of 10 m whose upper left corner (``left``, ``top``) is a multiple of 10 m."""

    crs: str
    left: int
    top: int
    px: int

    @classmethod
    def around(cls, lon: float, lat: float, px: int) -> ChipGrid:
        """The chip centred on a point, snapped to the 10 m grid of its UTM zone (paper S1.1: the site's centroid)."""
        crs = utm_crs(lon, lat)
        x, y = to_utm(crs).transform(lon, lat)
        half = px * PIXEL_M / 2
        return cls(crs, round((x - half) / PIXEL_M) * 10, round((y + half) / PIXEL_M) * 10, px)

    @property
    def affine(self) -> Affine:
        """Column and row → metres: (a, b, c, d, e, f) of x = a col + b row + c, y = d col + e row + f."""
        return (PIXEL_M, 0.0, float(self.left), 0.0, -PIXEL_M, float(self.top))

    @property
    def bounds(self) -> tuple[float, float, float, float]:
        """left, bottom, right, top in metres of the chip's CRS."""
        side = self.px * PIXEL_M
        return (self.left, self.top - side, self.left + side, self.top)

    @property
    def centre_degrees(self) -> tuple[float, float]:
        """Longitude and latitude."""
        left, bottom, right, top = self.bounds
        return to_degrees(self.crs).transform((left + right) / 2, (bottom + top) / 2)

    def grown(self, margin_px: int) -> ChipGrid:
        """The grid with so many pixels more on every side."""
        side = int(margin_px * PIXEL_M)
        return ChipGrid(self.crs, self.left - side, self.top + side, self.px + 2 * margin_px)

    def outline_degrees(self, points: int = 9) -> tuple[np.ndarray, np.ndarray]:
        """Longitudes and latitudes along the chip's border."""
        left, bottom, right, top = self.bounds
        x, y = np.linspace(left, right, points), np.linspace(bottom, top, points)
        xs = np.concatenate((x, x, np.full(points, left), np.full(points, right)))
        ys = np.concatenate((np.full(points, bottom), np.full(points, top), y, y))
        return to_degrees(self.crs).transform(xs, ys)


@dataclass(frozen=True)
class NativeGrid:
    """The geographic grid of a coarse product: cells of ``step_deg`` from its upper left corner."""

    step_deg: float
    west: float
    north: float

    def under(self, chip: ChipGrid, margin: int = 0) -> tuple[Affine, int, int, tuple[int, int]]:
        """Cells whose centres surround a chip, so that values can be interpolated anywhere in it.

        Returns:
            The affine of the block of cells, its height and width, and the (row, col) of its first cell in the product.
        """
        lons, lats = chip.outline_degrees()
        if lons.max() - lons.min() > 180:  # the chip straddles the antimeridian: keep its eastern side's cells
            lons = lons[lons > 0]
        first_col = math.floor((lons.min() - self.west) / self.step_deg - 0.5) - margin
        last_col = math.floor((lons.max() - self.west) / self.step_deg + 0.5) + margin
        first_row = math.floor((self.north - lats.max()) / self.step_deg - 0.5) - margin
        last_row = math.floor((self.north - lats.min()) / self.step_deg + 0.5) + margin
        affine = (
            self.step_deg,
            0.0,
            round(self.west + first_col * self.step_deg, 9),
            0.0,
            -self.step_deg,
            round(self.north - first_row * self.step_deg, 9),
        )
        return affine, last_row - first_row + 1, last_col - first_col + 1, (first_row, first_col)
