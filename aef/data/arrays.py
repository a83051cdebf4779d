"""A chip from arrays in memory: time series in xarray, as notebooks and catalogue readers hold them.

chip = chip_from_xarray({"sentinel2": s2, "sentinel1": s1}, model.registry)
field = model.embed(chip, ("2019-01-01", "2020-01-01"))
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
import rioxarray  # noqa: F401  (registers the `rio` accessor)
import xarray
from rasterio.crs import CRS
from rasterio.transform import Affine, array_bounds
from rasterio.warp import transform as warp

from aef.data.chips import PIXEL_M, Chip, ChipError, SourceSeries, validate
from aef.data.contract import METRES_PER_DEGREE
from aef.data.ingest.grids import centre_of
from aef.data.plausibility import survey_chips, suspicious, wrong_scale
from aef.sources import Registry, Source

REGRID = "`aef ingest` puts rasters of any grid onto one"

DISTORTED = 0.05
"""Share by which a projection may stretch a pixel: UTM does by 0.001 at most, Europe's equal area by 0.02 or so, Web
Mercator by 1 / cos(latitude)."""


class SuspiciousValuesWarning(UserWarning):
    """What was observed looks like another unit or like swapped bands; `aef.data.plausibility` names the innocent causes."""


def chip_from_xarray(
    cubes: Mapping[str, xarray.DataArray],
    registry: Registry,
    *,
    crs: Any = None,
    id: str = "memory",
    place: str | None = None,
) -> Chip:
    """A chip of sources on one 10 m grid; `write_chip` stores it, `TrainedModel.embed` takes it as it is.

    Args:
        cubes: by name of the source, (time, band, y, x) in any order with coordinates of all four; (band, y, x) of a static
            source. Values in the unit of the source's entry. Not observed are NaN, the nodata value that the cube states
            (rioxarray's), and bands that it lacks. ``time`` is UTC; intervals have ``time_end`` along ``time`` too.
        registry: the model's (``model.registry``), or a folder's (`aef.settings_file.registry_of`).
        crs: of the coordinates, where the cubes do not state it themselves.
        place: what splits keep together; None: as ``id``.

    Raises:
        ChipError: a source, band, time or grid that is not as expected, coordinates of corners instead of centres, or
            values that cannot be in the source's unit.

    Warns:
        SuspiciousValuesWarning: values that look like another unit, or like swapped bands.
    """
    if not cubes:
        raise ChipError("expected a cube of one source at least, found none", field="sources")
    series, grids = {}, {}
    for name, cube in cubes.items():
        if name not in registry:
            raise ChipError(f"unknown source: known are {', '.join(registry)}", source=name)
        source = registry[name]
        if not isinstance(cube, xarray.DataArray):
            raise ChipError(f"expected an xarray.DataArray, found {type(cube).__name__}", source=name)
        if source.grid != "chip":
            raise ChipError(
                f"is not stored on the chip's grid ({source.grid}): `aef ingest` takes its files", source=name
            )
        _require_centres(cube, name)
        cube = _in_order(cube, source)
        grids[name] = (_crs_of(cube, crs, name), transform_of(cube), cube.sizes["y"], cube.sizes["x"])
        series[name] = _series(cube, source)
    first, (projection, affine, height, width) = next(iter(grids.items()))
    for name, (other, grid, *sides) in grids.items():
        if (other, sides) != (projection, [height, width]) or not np.allclose(grid, affine, rtol=0, atol=1e-3):
            raise ChipError(f"expected the grid of {first}, found another: {REGRID}", source=name)
    if not np.allclose((affine.a, affine.e), (PIXEL_M, -PIXEL_M), atol=1e-6):
        raise ChipError(f"expected pixels of 10 m, found {affine.a:g} x {-affine.e:g}: {REGRID}", field="transform")
    lon, lat = centre_of(array_bounds(height, width, affine), projection)
    _require_metres(projection, affine, height, width)
    chip = Chip(id, projection.to_string(), tuple(affine)[:6], height, width, lon, lat, series, place=place or id)
    validate(chip, registry)
    rows = survey_chips([chip], registry)
    if why := wrong_scale(rows):
        raise ChipError(why, field="values")
    for row in filter(suspicious, rows):
        warnings.warn(
            f"{row.source} {row.band}: median {row.median:.5g} {row.unit}: {row.suspicion}",
            SuspiciousValuesWarning,
            stacklevel=2,
        )
    return chip


def _in_order(cube: xarray.DataArray, source: Source) -> xarray.DataArray:
    """(time, band, y, x) with the entry's bands, times rising, north up and west left."""
    wanted = ("band", "y", "x") if source.time == "static" else ("time", "band", "y", "x")
    lacking = [name for name in wanted if name not in cube.dims or name not in cube.coords]
    if lacking or len(cube.dims) != len(wanted):
        raise ChipError(
            f"expected dimensions {', '.join(wanted)} with coordinates, found {', '.join(map(str, cube.dims))}"
            + (f" without {', '.join(lacking)}" if lacking else ""),
            source=source.name,
        )
    bands = [str(band) for band in cube.band.values]
    unknown = sorted(set(bands) - set(source.band_names))
    if unknown or len(set(bands)) < len(bands):
        raise ChipError(
            f"expected each of {', '.join(source.band_names)} once at most, found {', '.join(bands)}",
            source=source.name,
            field="bands",
        )
    cube = cube.assign_coords(band=bands).transpose(*wanted).sortby("y", ascending=False).sortby("x")
    return cube.sortby("time") if "time" in wanted else cube.expand_dims("time")


def _require_centres(cube: xarray.DataArray, name: str) -> None:
    """Raises ChipError where a cube's own transform says that its coordinates are those of corners (stackstac's default)."""
    stated = _stated_transform(cube)
    if stated is None:
        return
    for axis, first, size in (("x", stated.c, stated.a), ("y", stated.f, stated.e)):
        if axis not in cube.coords or not size:
            continue
        # Of a part of a grid the transform may be that of the whole: only the fraction of a pixel tells. One of pixels of
        # another size is left over from before the cube was resampled.
        pixels = (cube[axis].values.astype(np.float64) - first) / size
        apart = np.allclose(np.abs(np.diff(pixels)), 1, rtol=0, atol=1e-3)
        if len(pixels) > 1 and apart and np.allclose(pixels, np.round(pixels), rtol=0, atol=1e-3):
            raise ChipError(
                f"{axis} lies on the edges of pixels by the cube's own transform, expected centres: move it by half a pixel "
                "(stackstac: xy_coords='center')",
                source=name,
                field=axis,
            )


def _stated_transform(cube: xarray.DataArray) -> Affine | None:
    """What a cube says of its grid, if anything; `cube.rio.transform()` takes the origin from the coordinates instead."""
    mapping = cube.coords.get(cube.rio.grid_mapping)
    if mapping is not None and "GeoTransform" in mapping.attrs:
        return Affine.from_gdal(*map(float, mapping.attrs["GeoTransform"].split()))
    return Affine(*cube.attrs["transform"][:6]) if "transform" in cube.attrs else None


def _require_metres(crs: CRS, affine: Affine, height: int, width: int) -> None:
    """Raises ChipError where a pixel in the middle is not 10 m x 10 m on the ground."""
    if not crs.is_projected:
        raise ChipError(
            f"expected a projection in metres such as a UTM zone, found {crs.to_string()}: {REGRID}", field="crs"
        )
    x, y = affine @ (width / 2, height / 2)
    half = 500 * PIXEL_M
    sides = []
    for dx, dy in ((half, 0.0), (0.0, half)):
        (west, east), (south, north) = warp(crs, CRS.from_epsg(4326), [x - dx, x + dx], [y - dy, y + dy])
        if not np.isfinite((west, east, south, north)).all():
            raise ChipError(f"{crs.to_string()} does not reach {x:g}, {y:g}: {REGRID}", field="crs")
        across = ((east - west + 180) % 360 - 180) * math.cos(math.radians((south + north) / 2))
        sides.append(METRES_PER_DEGREE * math.hypot(across, north - south) / 1000)
    if max(abs(side / PIXEL_M - 1) for side in sides) > DISTORTED:
        raise ChipError(
            f"expected pixels of 10 m on the ground, found {sides[0]:.3g} x {sides[1]:.3g} m in {crs.to_string()}: {REGRID}",
            field="crs",
        )


def _crs_of(cube: xarray.DataArray, crs: Any, name: str) -> CRS:
    found = cube.rio.crs if crs is None else crs
    if found is None:
        raise ChipError("states no CRS: give crs=, like 'EPSG:32631'", source=name, field="crs")
    return CRS.from_user_input(found)


def transform_of(field: xarray.DataArray) -> Affine:
    """The affine transform of an array's grid, from its coordinates: the one it was made with may be of another grid.

    Along a side of one pixel, which has no distances, it is as the array was made.
    """
    stored = field.rio.transform()
    (x, width), (y, height) = (
        _first_and_step(field[axis].values, size) for axis, size in zip("xy", (stored.a, stored.e))
    )
    measured = Affine(width, 0.0, x - width / 2, 0.0, height, y - height / 2)
    # Differences of coordinates are rounded; the stored transform is exact.
    return stored if np.allclose(stored, measured, rtol=0, atol=1e-6) else measured


def _first_and_step(centres: np.ndarray, size: float) -> tuple[float, float]:
    """The first of an axis's pixel centres and the distance between them, or `size` where there is one pixel."""
    first, last = float(centres[0]), float(centres[-1])
    return first, (last - first) / (len(centres) - 1) if len(centres) > 1 else size


def _series(cube: xarray.DataArray, source: Source) -> SourceSeries:
    found, nodata = cube.values, cube.rio.nodata
    if found.dtype.kind not in "iuf":
        raise ChipError(f"expected numbers, found {found.dtype}", source=source.name, field="values")
    observed = np.isfinite(found) if nodata is None else np.isfinite(found) & (found != nodata)
    kind = np.dtype(np.float32) if found.dtype.kind == "f" else found.dtype
    shape = (len(found), source.channels, *found.shape[2:])
    values, valid = np.zeros(shape, kind), np.zeros(shape, bool)
    channels = [source.band_names.index(band) for band in cube.band.values]
    values[:, channels] = np.where(observed, found, 0)
    valid[:, channels] = observed
    static = source.time == "static"
    return SourceSeries(
        values=values,
        valid=valid,
        time_ms=None if static else _milliseconds(cube.time, source),
        time_end_ms=_milliseconds(cube.time_end, source) if "time_end" in cube.coords else None,
        bands=source.band_names,
        units=tuple(band.unit for band in source.bands),
        licence=source.licence,
        native_resolution_m=source.native_resolution_m,
    )


def _milliseconds(times: xarray.DataArray, source: Source) -> np.ndarray:
    """Epoch milliseconds, (T,) int64."""
    if times.dtype.kind != "M" or np.isnat(times.values).any():
        raise ChipError(
            f"expected times as NumPy's datetime64 without NaT, found {times.dtype}",
            source=source.name,
            field="time_ms",
        )
    return times.values.astype("datetime64[ms]").astype(np.int64)
