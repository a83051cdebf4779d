"""Grids and resampling: from any raster's grid to a chip's 10 m UTM grid.

Masks come first: a value that was not observed never takes part in an average. Classes and flags are taken from the
nearest pixel; everything else is interpolated or averaged, as the recipe says. Warps are exact (no approximated
transformer), so that a pixel lands within a tenth of itself.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from rasterio.crs import CRS
from rasterio.enums import Resampling
from rasterio.errors import CRSError
from rasterio.transform import Affine
from rasterio.warp import reproject, transform_bounds
from rasterio.warp import transform as transform_points

Method = Literal["nearest", "bilinear", "area"]
_GDAL = {"nearest": Resampling.nearest, "bilinear": Resampling.bilinear, "area": Resampling.average}

PIXEL_M = 10.0
SNAP_PX = 1e-3
"""Grids that agree to a thousandth of a pixel are the same grid: no warp, values stay as they are."""


SCATTERED = 4
"""An outline this many times larger than what lies in it is not one place."""


@dataclass(frozen=True)
class Grid:
    """A raster's geometry: CRS, affine transform of the pixel corners, size in pixels."""

    crs: CRS
    transform: Affine
    height: int
    width: int

    @property
    def bounds(self) -> tuple[float, float, float, float]:
        """Left, bottom, right, top of the pixels' outline, in the grid's CRS."""
        cols, rows = np.meshgrid([0, self.width], [0, self.height])
        xs, ys = apply(self.transform, cols, rows)
        return float(xs.min()), float(ys.min()), float(xs.max()), float(ys.max())

    def bounds_in(self, crs: CRS) -> tuple[float, float, float, float]:
        return self.bounds if same_crs(self.crs, crs) else transform_bounds(self.crs, crs, *self.bounds, densify_pts=21)


def apply(transform: Affine, cols: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Coordinates of (fractional) pixel positions."""
    t = transform
    return t.a * cols + t.b * rows + t.c, t.d * cols + t.e * rows + t.f


def moved(transform: Affine, cols: float, rows: float) -> Affine:
    """The same pixels, counted from another corner."""
    x, y = apply(transform, np.asarray(cols), np.asarray(rows))
    return Affine(transform.a, transform.b, float(x), transform.d, transform.e, float(y))


def parse_crs(text: str) -> CRS:
    """A CRS from WKT, PROJ or EPSG:n text. Raises ValueError."""
    try:
        return CRS.from_user_input(text)
    except CRSError as error:
        raise ValueError(f"not a coordinate reference system: {str(text)[:60]!r} ({error})") from None


def same_crs(a: CRS, b: CRS) -> bool:
    """Equal, or the same UTM zone on ETRS89 and WGS 84, between which GDAL applies no shift."""
    if a == b:
        return True
    codes = {a.to_epsg(), b.to_epsg()}
    return any(codes == {25800 + zone, 32600 + zone} for zone in range(28, 39))


def utm_of(lon: float, lat: float) -> CRS:
    """The WGS 84 / UTM zone that holds a point (without the exceptions of Norway and Svalbard)."""
    zone = min(max(math.floor((lon + 180) / 6) + 1, 1), 60)
    return CRS.from_epsg((32600 if lat >= 0 else 32700) + zone)


def centre_of(bounds: tuple[float, float, float, float], crs: CRS) -> tuple[float, float]:
    """Longitude (-180 to 180) and latitude of an outline's centre."""
    x, y = (bounds[0] + bounds[2]) / 2, (bounds[1] + bounds[3]) / 2
    lon, lat = transform_points(crs, CRS.from_epsg(4326), [x], [y])
    return lon[0] if abs(lon[0]) <= 180 else (lon[0] + 180) % 360 - 180, lat[0]


def chip_grid(
    bounds: tuple[float, float, float, float], crs: CRS, align: Literal["ten", "file"], crop_px: int | None
) -> Grid:
    """The 10 m grid, in the UTM zone of the centre, that covers an outline.

    ``align`` ``ten`` puts the origin on multiples of 10 m, ``file`` on the outline's upper left corner.
    """
    utm = utm_of(*centre_of(bounds, crs))
    left, bottom, right, top = bounds if same_crs(crs, utm) else transform_bounds(crs, utm, *bounds, densify_pts=21)
    if align == "ten":
        left_px, top_px = math.floor(left / PIXEL_M + SNAP_PX), math.ceil(top / PIXEL_M - SNAP_PX)
        left, top = left_px * PIXEL_M, top_px * PIXEL_M
    width = max(math.ceil((right - left) / PIXEL_M - SNAP_PX), 1)
    height = max(math.ceil((top - bottom) / PIXEL_M - SNAP_PX), 1)
    if crop_px:
        col, row = max((width - crop_px) // 2, 0), max((height - crop_px) // 2, 0)
        left, top = left + col * PIXEL_M, top - row * PIXEL_M
        width, height = min(width, crop_px), min(height, crop_px)
    return Grid(utm, Affine(PIXEL_M, 0, left, 0, -PIXEL_M, top), height, width)


def joined(grids: Sequence[Grid]) -> Grid | None:
    """One outline around all grids, a whole number of the first one's pixels larger than it: the first itself where the
    others reach no further. None where most of it would be empty."""
    first = grids[0]
    boxes = [grid.bounds_in(first.crs) for grid in dict.fromkeys(grids)]
    left, bottom, right, top = first.bounds
    dx, dy = (right - left) / first.width, (top - bottom) / first.height
    west, south = (
        max(math.ceil((at - min(box[k] for box in boxes)) / d - SNAP_PX), 0)
        for at, k, d in ((left, 0, dx), (bottom, 1, dy))
    )
    east, north = (
        max(math.ceil((max(box[k] for box in boxes) - at) / d - SNAP_PX), 0)
        for at, k, d in ((right, 2, dx), (top, 3, dy))
    )
    if not (west or south or east or north):
        return first
    width, height = first.width + west + east, first.height + south + north
    covered = sum((box[2] - box[0]) * (box[3] - box[1]) for box in boxes)
    if width * dx * height * dy > SCATTERED * covered:
        return None
    return Grid(first.crs, Affine(dx, 0, left - west * dx, 0, -dy, top + north * dy), height, width)


def overlap(file: Grid, chip: Grid) -> bool:
    """Whether a raster of any size reaches a chip."""
    # The chip is the small one: a UTM zone cannot express the outline of a continent.
    try:
        left, bottom, right, top = chip.bounds_in(file.crs)
    except CRSError:
        return False  # so far away that the file's projection cannot express it
    west, south, east, north = file.bounds
    if right < left:  # in degrees, over the antimeridian
        right += 360
    turns = (-360, 0, 360) if file.crs.is_geographic else (0,)
    return bottom < north and south < top and any(left + turn < east and west < right + turn for turn in turns)


def cell_grid(target: Grid, cell_m: float) -> Grid:
    """Square cells of ``cell_m`` that cover a chip from its upper left corner: the grid of a coarse source whose files
    hold it resampled to fine pixels."""
    # A sliver of less than a tenth of a cell gets none of its own.
    height, width = (max(math.ceil(n * PIXEL_M / cell_m - 0.1), 1) for n in (target.height, target.width))
    t = target.transform
    return Grid(target.crs, Affine(cell_m, 0, t.c, 0, -cell_m, t.f), height, width)


def _offset(source: Grid, target: Grid) -> tuple[int, int, int] | None:
    """Row and column of the target's corner in the source, and how many target pixels a source pixel spans along a
    side, if the grids are aligned; None otherwise."""
    a, b = source.transform, target.transform
    if not same_crs(source.crs, target.crs) or a.b or a.d or a.a <= 0 or a.e >= 0:
        return None
    factor = a.a / b.a
    if abs(a.e / b.e - factor) > 1e-6 or round(factor) < 1 or abs(factor - round(factor)) > 1e-6:
        return None
    col, row = (b.c - a.c) / b.a, (b.f - a.f) / b.e
    if max(abs(col - round(col)), abs(row - round(row))) > SNAP_PX:
        return None
    return round(row), round(col), round(factor)


def copies(source: Grid, target: Grid, method: Method) -> bool:
    """Whether bringing planes to another grid gives their values as they are, in their own type."""
    aligned = _offset(source, target)
    return method == "nearest" or (aligned is not None and aligned[2] == 1)


def resample(
    values: np.ndarray, observed: np.ndarray, source: Grid, target: Grid, method: Method
) -> tuple[np.ndarray, np.ndarray]:
    """Bring planes to another grid.

    Args:
        values: (B, h, w), any type.
        observed: (B, h, w) bool; what is False takes no part.
        source, target: their grid and the wanted one.
        method: nearest keeps values as they are; bilinear and area give float32, unless the pixels are the same.

    Returns:
        (B, H, W) values, 0 where nothing was observed, and (B, H, W) bool. With bilinear a pixel is observed if its
        nearest source pixel is, with area if half of it that lies on the raster is.
    """
    aligned = _offset(source, target)
    if aligned and copies(source, target, method):
        return _copy(values, observed, target, *aligned)
    if method == "nearest":
        found = _warp(values, source, target, Resampling.nearest, 0)
        seen = _warp(observed.astype(np.uint8), source, target, Resampling.nearest, 0).astype(np.bool_)
        return np.where(seen, found, 0).astype(values.dtype), seen
    if not overlap(source, target):  # nor is there a raster that holds both
        shape = (len(values), target.height, target.width)
        return np.zeros(shape, np.float32), np.zeros(shape, np.bool_)
    masked = np.where(observed, values, np.float32(np.nan)).astype(np.float32)
    share = observed.astype(np.float32)
    if method == "area":
        masked, share, source = _enclose(masked, share, source, target)
        share = _warp(share, source, target, Resampling.average, np.nan)
    else:
        share = _warp(share, source, target, Resampling.nearest, 0.0)
    found = _warp(masked, source, target, _GDAL[method], np.nan)
    seen = (share >= 0.5) & np.isfinite(found)
    return np.where(seen, found, 0).astype(np.float32), seen


def _positions(source: Grid, target: Grid) -> tuple[np.ndarray, np.ndarray]:
    """Columns and rows of a raster at which points of the target lie."""
    cols, rows = np.meshgrid(np.linspace(0, target.width, 9), np.linspace(0, target.height, 9))
    xs, ys = transform_points(target.crs, source.crs, *apply(target.transform, cols.ravel(), rows.ravel()))
    xs = np.asarray(xs)
    if source.crs.is_geographic:
        west, _, east, _ = source.bounds
        xs = (xs - (west + east) / 2 + 180) % 360 - 180 + (west + east) / 2
    return apply(~source.transform, xs, np.asarray(ys))


def cut(file: Grid, chip: Grid, margin_px: int) -> Grid:
    """The part of a raster that lies under a chip, with so many pixels around it."""
    col, row = _positions(file, chip)
    left, top = (max(math.floor(float(at.min())) - margin_px, 0) for at in (col, row))
    right, bottom = (
        min(math.ceil(float(at.max())) + margin_px, most) for at, most in ((col, file.width), (row, file.height))
    )
    return Grid(file.crs, moved(file.transform, left, top), bottom - top, right - left)


def _enclose(masked: np.ndarray, share: np.ndarray, source: Grid, target: Grid) -> tuple[np.ndarray, np.ndarray, Grid]:
    """Surround a raster with unknown pixels up to the target's outline: GDAL averages no cell that reaches beyond the
    raster, however little."""
    col, row = _positions(source, target)
    left, top = (max(math.ceil(-float(at.min())) + 1, 0) for at in (col, row))
    right = max(math.ceil(float(col.max())) + 1 - source.width, 0)
    bottom = max(math.ceil(float(row.max())) + 1 - source.height, 0)
    border = ((0, 0), (top, bottom), (left, right))
    wider = Grid(
        source.crs,
        moved(source.transform, -left, -top),
        source.height + top + bottom,
        source.width + left + right,
    )
    return (
        np.pad(masked, border, constant_values=np.nan),
        np.pad(share, border, constant_values=np.nan),
        wider,
    )


def _copy(
    values: np.ndarray, observed: np.ndarray, target: Grid, row: int, col: int, factor: int
) -> tuple[np.ndarray, np.ndarray]:
    """Aligned grids: cut out, and repeat every pixel ``factor`` times along each side, exactly."""
    rows = (np.arange(target.height) + row) // factor
    cols = (np.arange(target.width) + col) // factor
    inside_rows = (rows >= 0) & (rows < values.shape[1])
    inside_cols = (cols >= 0) & (cols < values.shape[2])
    at = np.ix_(rows.clip(0, values.shape[1] - 1), cols.clip(0, values.shape[2] - 1))
    seen = observed[:, at[0], at[1]] & inside_rows[:, None] & inside_cols
    return np.where(seen, values[:, at[0], at[1]], 0).astype(values.dtype), seen


def _warp(planes: np.ndarray, source: Grid, target: Grid, method: Resampling, fill: float) -> np.ndarray:
    """GDAL's warp with an exact transformer; ``fill`` where the source does not reach."""
    kind = planes.dtype if planes.dtype.kind == "f" or planes.dtype.itemsize <= 4 else np.dtype(np.float64)
    if kind == np.int8 or kind.kind == "b":
        kind = np.dtype(np.int16)
    warped = np.full((len(planes), target.height, target.width), fill, kind)
    nodata = {"src_nodata": np.nan, "dst_nodata": np.nan} if isinstance(fill, float) and math.isnan(fill) else {}
    reproject(
        planes.astype(kind),
        warped,
        src_transform=source.transform,
        src_crs=source.crs,
        dst_transform=target.transform,
        dst_crs=target.crs,
        resampling=method,
        tolerance=0.0,
        init_dest_nodata=bool(nodata),
        UNIFIED_SRC_NODATA="NO",
        XSCALE=None if method != Resampling.bilinear else 1,
        YSCALE=None if method != Resampling.bilinear else 1,
        **nodata,
    )
    return warped
