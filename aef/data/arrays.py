"""A chip from arrays in memory: time series in xarray, as notebooks and catalogue readers hold them.

chip = chip_from_xarray({"sentinel2": s2, "sentinel1": s1}, model.registry)
field = model.embed(chip, ("2019-01-01", "2020-01-01"))
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import rioxarray  # noqa: F401  (registers the `rio` accessor)
import xarray
from rasterio.crs import CRS
from rasterio.transform import Affine, array_bounds

from aef.data.chips import PIXEL_M, Chip, ChipError, SourceSeries, validate
from aef.data.ingest.grids import centre_of
from aef.data.plausibility import survey_chips, wrong_scale
from aef.sources import Registry, Source

REGRID = "`aef ingest` puts rasters of any grid onto one"


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
        ChipError: a source, band, time or grid that is not as expected, or values that cannot be in the source's unit.
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
    chip = Chip(id, projection.to_string(), tuple(affine)[:6], height, width, lon, lat, series, place=place or id)
    validate(chip, registry)
    if why := wrong_scale(survey_chips([chip], registry)):
        raise ChipError(why, field="values")
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
