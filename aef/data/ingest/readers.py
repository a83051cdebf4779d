"""Opening rasters: NetCDF, HDF5, Zarr, GeoTIFF (anything GDAL reads) and .npy behind one small interface.

A `Raster` hands out one plane (h, w) of one variable at one step at a time, as stored; nothing is masked, scaled or
decoded unless the recipe says so.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import xarray
from rasterio.crs import CRS
from rasterio.transform import Affine

from aef.data.ingest.gdal_file import GdalFile
from aef.data.ingest.grids import Grid, parse_crs
from aef.data.ingest.raster import DAMAGE, Raster, RasterError, view_as, viewed
from aef.data.ingest.schema import Input, LabelRule
from aef.one_line import one_line

__all__ = ["Raster", "RasterError", "geojson_outline", "open_raster"]

BLOCK_BYTES = 1 << 20
"""Consecutive steps of a variable are read together up to this size: fewer reads, little memory."""

Y_NAMES, X_NAMES = ("y", "lat", "latitude"), ("x", "lon", "longitude")
ARRAY_SUFFIXES = (".npy",)
DEGREES = "EPSG:4326"
DATASET_SUFFIXES = (".nc", ".nc4", ".cdf", ".h5", ".hdf5", ".he5", ".zarr")


def open_raster(path: Path, rule: Input | LabelRule | None = None, extent: Grid | None = None) -> Raster:
    """Open a file as ``rule`` describes it.

    Args:
        path: the file (or the .zarr folder).
        rule: bands, layout, axes and so on; None for tags and coordinates only.
        extent: outline for files that carry no georeference of their own.

    Raises:
        RasterError: the file cannot be opened or does not look as described.
    """
    suffix = path.suffix.lower()
    try:
        if suffix in ARRAY_SUFFIXES or (rule is not None and rule.axes):
            return _ArrayFile(path, rule, extent)
        if suffix in DATASET_SUFFIXES:
            return _Dataset(path, rule)
        return GdalFile(path, rule)
    except RasterError:
        raise
    except DAMAGE as error:
        raise RasterError(f"{path}: cannot be opened: {one_line(error.__cause__ or error)}") from error


# --- xarray ----------------------------------------------------------------------------------------------------------


def _open_dataset(path: Path, decode: bool) -> xarray.Dataset:
    options: dict[str, Any] = {"mask_and_scale": decode, "cache": False}
    if path.suffix == ".zarr":
        return xarray.open_dataset(path, engine="zarr", chunks=None, consolidated=False, **options)
    return xarray.open_dataset(path, **options)


class _Dataset(Raster):
    """NetCDF or Zarr with coordinates."""

    def __init__(self, path: Path, rule: Input | LabelRule | None) -> None:
        super().__init__(path)
        self._decoded = getattr(rule, "decode", "raw") == "cf"
        self._data = _open_dataset(path, self._decoded)
        self.tags = {str(k): str(v) for k, v in self._data.attrs.items()}
        self._select = dict(rule.select) if rule else {}
        self._view = getattr(rule, "dtype_view", "")
        self._blocks: dict[str, tuple[int, np.ndarray]] = {}
        self._y, self._x = (self._axis(names) for names in (Y_NAMES, X_NAMES))
        if self._y and self._x:
            self.variables = tuple(str(n) for n, v in self._data.data_vars.items() if {self._y, self._x} <= set(v.dims))
            self._time = self._time_axis()
            self.steps = self._data.sizes[self._time] if self._time else 1
            self.grid = self._find_grid(rule)

    def close(self) -> None:
        self._data.close()

    def _axis(self, names: Sequence[str]) -> str | None:
        return next((str(dim) for dim in self._data.dims if str(dim).lower() in names), None)

    def _time_axis(self) -> str | None:
        others = {
            str(dim)
            for name in self.variables
            for dim in self._data[name].dims
            if dim not in (self._y, self._x) and dim not in self._select
        }
        if len(others) > 1:
            raise self.refuse(f"has several axes besides y and x ({', '.join(sorted(others))}): add select")
        return others.pop() if others else None

    def _find_grid(self, rule: Input | LabelRule | None) -> Grid | None:
        stated = getattr(rule, "crs", "")
        crs = parse_crs(stated) if stated else self._find_crs()
        if crs is None or self._y not in self._data.coords or self._x not in self._data.coords:
            return None
        x, dx = self._spacing(self._x, rule)
        y, dy = self._spacing(self._y, rule)
        half = 0.5 if getattr(rule, "coordinates", "centre") == "centre" else 0.0
        return Grid(
            crs,
            Affine(dx, 0, x - half * dx, 0, dy, y - half * dy),
            self._data.sizes[self._y],
            self._data.sizes[self._x],
        )

    def _find_crs(self) -> CRS | None:
        """From the grid mapping variable, or the attribute ``crs``."""
        for array in (self._data[name] for name in self.variables):
            mapping = array.encoding.get("grid_mapping") or array.attrs.get("grid_mapping")
            if mapping in self._data.variables:
                attributes = self._data[mapping].attrs
                wkt = attributes.get("crs_wkt") or attributes.get("spatial_ref")
                return parse_crs(wkt) if wkt else None
        stated = self._data.attrs.get("crs")
        return parse_crs(stated) if isinstance(stated, str) else None

    def _spacing(self, name: str | None, rule: Input | LabelRule | None) -> tuple[float, float]:
        values = np.asarray(self._data[name].values, np.float64)
        if len(values) == 1:
            size = getattr(rule, "pixel_m", None)
            if not size:
                raise self.refuse(f"has a single {name}, so its pixel size is unknown: add pixel_m")
            return float(values[0]), size if name == self._x else -size
        steps = np.diff(values)
        mean = (values[-1] - values[0]) / (len(values) - 1)
        if np.abs(steps - mean).max() > 1e-3 * abs(mean):
            raise self.refuse(f"{name} is not evenly spaced: steps of {steps.min():g} to {steps.max():g}")
        return float(values[0]), float(mean)

    def _plane(self, variable: str, step: int) -> np.ndarray:
        first, block = self._blocks.get(variable, (0, np.empty((0, 0, 0))))
        if not first <= step < first + len(block):
            first, block = step, self._load(variable, step)
            self._blocks[variable] = first, block
        return block[step - first]

    def _load(self, variable: str, step: int) -> np.ndarray:
        array = self._data[variable].variable
        for dim, label in self._select.items():
            if dim not in array.dims:
                continue
            labels = [str(v) for v in self._data[dim].values] if dim in self._data.coords else []
            if label not in labels and not label.isdigit():
                raise self.refuse(f"{dim} has no {label!r}: known are {', '.join(labels)}")
            array = array.isel({dim: labels.index(label) if label in labels else int(label)})
        if self._time in array.dims:
            plane = array.sizes[self._y] * array.sizes[self._x] * array.dtype.itemsize
            count = max(1, BLOCK_BYTES // max(plane, 1))
            array = array.isel({self._time: slice(step, step + count)}).transpose(self._time, self._y, self._x)
            block = array.values
        else:
            block = array.transpose(self._y, self._x).values[None]
        return view_as(block, self._view, self, variable)

    def coordinate(self, name: str) -> np.ndarray:
        if name not in self._data.variables:
            return super().coordinate(name)
        return np.asarray(self._data[name].values)

    def _stored(self, variable: str, step: int) -> np.dtype:
        return self._data[variable].dtype

    def scaling(self, variable: str, step: int) -> tuple[float, float]:
        scale, offset = self._stated(variable, "scale_factor"), self._stated(variable, "add_offset")
        return (scale or [1.0])[0], (offset or [0.0])[0]

    def nodata(self, variable: str, step: int) -> tuple[float, ...]:
        values = self._stated(variable, "_FillValue") + self._stated(variable, "missing_value")
        return viewed(values, self._data[variable].dtype, self._view)

    def _stated(self, variable: str, name: str) -> list[float]:
        """Numbers of an attribute; none where the library has applied it already. Raises RasterError."""
        value = () if self._decoded else self._data[variable].attrs.get(name, ())
        try:
            return [float(number) for number in np.atleast_1d(value)]
        except (TypeError, ValueError):
            raise self.refuse(f"{variable}: its attribute {name} is no number: {str(value)[:40]!r}") from None


# --- plain arrays ----------------------------------------------------------------------------------------------------


class _ArrayFile(Raster):
    """An array without coordinates, .npy or one array of an HDF5 file; the recipe names its ``axes``."""

    def __init__(self, path: Path, rule: Input | LabelRule | None, extent: Grid | None) -> None:
        super().__init__(path)
        self._data: xarray.Dataset | None = None
        if rule is None or not rule.axes:
            raise self.refuse("is a plain array: the recipe must name its axes, like [time, y, x, band]")
        if path.suffix in ARRAY_SUFFIXES:
            self._array: Any = np.load(path, mmap_mode="r", allow_pickle=False)
        else:
            self._data = xarray.open_dataset(path, mask_and_scale=False, decode_times=False, cache=False)
            if rule.array not in self._data.variables:
                raise self.refuse(f"has no array {rule.array!r}: known are {', '.join(map(str, self._data.variables))}")
            self._array = self._data[rule.array].variable
        shape = self._array.shape
        if len(shape) != len(rule.axes):
            raise self.refuse(f"has {len(shape)} axes {shape}, the recipe names {len(rule.axes)}")
        size = dict(zip(rule.axes, shape))
        self._axes, self._view = rule.axes, getattr(rule, "dtype_view", "")
        self._block: tuple[int, np.ndarray] = (0, np.empty((0, 0, 0, 0)))
        self.steps = size.get("time", 1)
        self.variables = rule.bands or tuple(str(k + 1) for k in range(size.get("band", 1)))
        if len(self.variables) != size.get("band", 1):
            raise self.refuse(f"has {size.get('band', 1)} bands, the recipe names {len(self.variables)}")
        if extent is not None:
            left, bottom, right, top = extent.bounds
            transform = Affine((right - left) / size["x"], 0, left, 0, (bottom - top) / size["y"], top)
            self.grid = Grid(extent.crs, transform, size["y"], size["x"])

    def close(self) -> None:
        if self._data is not None:
            self._data.close()

    def _plane(self, variable: str, step: int) -> np.ndarray:
        first, block = self._block
        if not first <= step < first + block.shape[0]:
            first, block = self._block = step, self._load(step)
        plane = block[step - first, self.variables.index(variable)]
        return view_as(plane, self._view, self, variable)

    def _stored(self, variable: str, step: int) -> np.dtype:
        return self._array.dtype

    def _load(self, step: int) -> np.ndarray:
        """Consecutive steps of all bands, (T, C, h, w)."""
        size = dict(zip(self._axes, self._array.shape))
        bytes_a_step = self._array.dtype.itemsize * int(np.prod([n for axis, n in size.items() if axis != "time"]))
        count = max(1, BLOCK_BYTES // bytes_a_step)
        part = self._array[tuple(slice(step, step + count) if axis == "time" else slice(None) for axis in self._axes)]
        block = np.asarray(part.values if isinstance(part, xarray.Variable) else part)
        missing = [axis for axis in ("time", "band") if axis not in self._axes]
        block = block[(None,) * len(missing)]
        order = [*missing, *self._axes]
        return block.transpose([order.index(axis) for axis in ("time", "band", "y", "x")])

    def coordinate(self, name: str) -> np.ndarray:
        if self._data is None or name not in self._data.variables:
            return super().coordinate(name)
        return np.asarray(self._data[name].values)


def geojson_outline(path: Path) -> tuple[tuple[float, float, float, float], str]:
    """Bounds and CRS (degrees where the file names none) of a GeoJSON geometry, feature or collection."""
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
        name = content.get("crs", {}).get("properties", {}).get("name", DEGREES)
        points = np.array(list(_points(content)), np.float64)
    except (OSError, ValueError, AttributeError) as error:
        raise RasterError(f"{path}: cannot be read as GeoJSON: {error}") from None
    if not len(points):
        raise RasterError(f"{path}: holds no coordinates")
    (left, bottom), (right, top) = points.min(axis=0), points.max(axis=0)
    if right - left > 180 and name == DEGREES:  # over the antimeridian
        points[points[:, 0] < 0, 0] += 360
        left, right = points[:, 0].min(), points[:, 0].max()
    return (left, bottom, right, top), name


def _points(content: Any):
    if isinstance(content, dict):
        for key in ("features", "geometry", "geometries", "coordinates"):
            yield from _points(content.get(key, ()))
    elif isinstance(content, list) and content and isinstance(content[0], int | float):
        yield content[0], content[1]
    elif isinstance(content, list | tuple):
        for item in content:
            yield from _points(item)
