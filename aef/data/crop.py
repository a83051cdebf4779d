"""A square window of a chip, of any of its grids: pixels, coarse native cells, footprints."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from aef.data.chips import PIXEL_M, Chip, ChipError, SourceSeries
from aef.data.contract import METRES_PER_DEGREE, grid_position
from aef.sources import Source


class Crop(NamedTuple):
    """``side_px`` pixels from (``row``, ``col``) of the chip; what lies outside the chip is not valid."""

    row: int
    col: int
    side_px: int

    @classmethod
    def draw(cls, rng: np.random.Generator, height: int, width: int, side_px: int, jitter: bool) -> Crop:
        """Anywhere inside the chip (or around it, where it is smaller); centred without ``jitter``."""
        return cls(_draw_offset(rng, height, side_px, jitter), _draw_offset(rng, width, side_px, jitter), side_px)

    def slices(self, height: int, width: int) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
        """Where the crop lies in the chip, and where that part lies in the crop."""
        rows, in_rows = _overlap(self.row, self.side_px, height)
        cols, in_cols = _overlap(self.col, self.side_px, width)
        return (rows, cols), (in_rows, in_cols)

    def cut(self, array: np.ndarray, frames: np.ndarray | slice) -> np.ndarray:
        """Frames of a (T, C, H, W) array inside the crop, (n, side, side, C); a view where that is possible."""
        (rows, cols), (in_rows, in_cols) = self.slices(*array.shape[2:])
        part = np.moveaxis(array[:, :, rows, cols][frames], 1, -1)
        if part.shape[1:3] == (self.side_px, self.side_px):
            return part
        whole = np.zeros((part.shape[0], self.side_px, self.side_px, part.shape[3]), array.dtype)
        whole[:, in_rows, in_cols] = part
        return whole


def _draw_offset(rng: np.random.Generator, extent_px: int, side_px: int, jitter: bool) -> int:
    spare = extent_px - side_px
    return int(rng.integers(min(spare, 0), max(spare, 0) + 1)) if jitter else spare // 2


def _overlap(start: int, side: int, extent: int) -> tuple[slice, slice]:
    low, high = max(start, 0), min(start + side, extent)
    return slice(low, high), slice(low - start, high - start)


# --- coarse grids ----------------------------------------------------------------------------------------------------


def cells_across(source: Source, side_px: int) -> int:
    """g: how many cells of a coarse source's own size lie along the crop's side, at least 1."""
    return min(max(1, round(side_px * PIXEL_M / source.native_resolution_m)), side_px)


def cut_native(
    chip: Chip, source: Source, series: SourceSeries, frame: int, crop: Crop
) -> tuple[np.ndarray, np.ndarray]:
    """One frame of a native grid on g x g cells that cover the crop.

    Values are taken at each cell's centre, bilinearly (paper S1) unless the source asks for the nearest; a cell that no
    valid native cell surrounds is not valid.

    Returns:
        values (g, g, C) float32 (own type where nearest), valid (g, g, C or 1) bool.
    """
    count = cells_across(source, crop.side_px)
    centre = (np.arange(count) + 0.5) * crop.side_px / count
    a, b, c, d, e, f = chip.transform
    col, row = np.meshgrid(crop.col + centre, crop.row + centre)  # (g, g)
    x, y = a * col + b * row + c, d * col + e * row + f
    native_col, native_row = _native_pixels(chip, source, series, x, y)
    values, valid = series.values[frame], np.broadcast_to(series.valid[frame], series.values[frame].shape)
    if source.resampling == "nearest" or source.classes:
        return _nearest(values, valid, native_row, native_col)
    return _bilinear(values, valid, native_row, native_col)


def _native_pixels(
    chip: Chip, source: Source, series: SourceSeries, x: np.ndarray, y: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Metres of the chip's grid → fractional column and row of the native grid (centres at +0.5)."""
    assert series.transform is not None
    if series.crs not in (None, chip.crs):
        if series.crs == "EPSG:4326":
            x, y = _degrees(chip, x, y)
            x = _turned(series, x)
        else:
            x, y = _reproject(chip, source, series, x, y)
    try:
        row, col = grid_position(series.transform, x, y)
    except ZeroDivisionError as error:
        raise ChipError(str(error), source=source.name, field="transform") from None
    return col, row


def _degrees(chip: Chip, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Metres → degrees by a tangent plane at the chip's centre: off by far less than a cell that needs it."""
    a, b, c, d, e, f = chip.transform
    middle_col, middle_row = chip.width / 2, chip.height / 2
    east = x - (a * middle_col + b * middle_row + c)
    north = y - (d * middle_col + e * middle_row + f)
    lat = chip.lat + north / METRES_PER_DEGREE
    return chip.lon + east / (METRES_PER_DEGREE * np.cos(np.radians(chip.lat))), lat


def _turned(series: SourceSeries, lon: np.ndarray) -> np.ndarray:
    """Longitudes as the native grid counts them: from 0 to 360, or on over the antimeridian."""
    assert series.transform is not None
    a, b, c, *_ = series.transform
    middle = c + a * series.values.shape[3] / 2 + b * series.values.shape[2] / 2
    return np.where(np.abs(lon - middle) > 180, middle + (lon - middle + 180) % 360 - 180, lon)


def _reproject(
    chip: Chip, source: Source, series: SourceSeries, x: np.ndarray, y: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    try:
        from rasterio.crs import CRS
        from rasterio.warp import transform
    except ImportError:
        raise ChipError(
            f"a native grid in {series.crs} beside a chip in {chip.crs} needs rasterio: pip install 'aef-engine[geo]'",
            source=source.name,
            field="crs",
            file=chip.id,
        ) from None
    east, north = transform(chip.crs, series.crs, x.ravel(), y.ravel())
    found = np.reshape(east, x.shape)
    if CRS.from_user_input(series.crs).is_geographic:
        found = _turned(series, found)
    return found, np.reshape(north, y.shape)


def _nearest(values: np.ndarray, valid: np.ndarray, row: np.ndarray, col: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    height, width = values.shape[1:]
    inside = (row >= 0) & (row < height) & (col >= 0) & (col < width)
    at = (np.clip(np.floor(row), 0, height - 1).astype(int), np.clip(np.floor(col), 0, width - 1).astype(int))
    found = np.moveaxis(values[:, at[0], at[1]], 0, -1)
    return found, np.moveaxis(valid[:, at[0], at[1]], 0, -1) & inside[..., None]


def _bilinear(values: np.ndarray, valid: np.ndarray, row: np.ndarray, col: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Weighted mean of the valid ones among the four neighbours; the border cell reaches to its outer edge."""
    height, width = values.shape[1:]
    inside = (row >= 0) & (row <= height) & (col >= 0) & (col <= width)
    r, c = np.clip(row - 0.5, 0, height - 1), np.clip(col - 0.5, 0, width - 1)
    top, left = np.floor(r).astype(int), np.floor(c).astype(int)
    total = np.zeros((values.shape[0], *row.shape))
    weight = np.zeros_like(total)
    for i, share_r in ((top, 1 - (r - top)), (np.minimum(top + 1, height - 1), r - top)):
        for j, share_c in ((left, 1 - (c - left)), (np.minimum(left + 1, width - 1), c - left)):
            w = share_r * share_c * valid[:, i, j]
            # where, not a product: an unobserved value may be NaN.
            total += np.where(w > 0, w * np.where(w > 0, values[:, i, j], 0).astype(np.float64), 0)
            weight += w
    observed = (weight > 0) & inside
    mean = np.where(observed, total / np.where(weight > 0, weight, 1), 0).astype(np.float32)
    return np.moveaxis(mean, 0, -1), np.moveaxis(observed, 0, -1)


# --- footprints ------------------------------------------------------------------------------------------------------


def cut_points(series: SourceSeries, points: np.ndarray, crop: Crop) -> tuple[np.ndarray, np.ndarray]:
    """Footprints on the crop's pixels: values (side, side, C), valid (side, side, C or 1). Of several footprints in one
    pixel the last stays."""
    assert series.row is not None and series.col is not None
    row, col = series.row[points] - crop.row, series.col[points] - crop.col
    values = np.zeros((crop.side_px, crop.side_px, series.values.shape[1]), series.values.dtype)
    valid = np.zeros((crop.side_px, crop.side_px, series.valid.shape[1]), np.bool_)
    values[row, col] = series.values[points]
    valid[row, col] = series.valid[points]
    return values, valid


def points_inside(series: SourceSeries, crop: Crop) -> np.ndarray:
    """Which footprints lie in the crop, (N,) bool."""
    assert series.row is not None and series.col is not None
    row, col = series.row - crop.row, series.col - crop.col
    return (row >= 0) & (row < crop.side_px) & (col >= 0) & (col < crop.side_px)
