"""Opening rasters: NetCDF, HDF5, Zarr, GeoTIFF (anything GDAL reads) and .npy behind one small interface.

A `Raster` hands out one plane (h, w) of one variable at one step at a time, as stored; nothing is masked, scaled or
decoded unless the recipe says so.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
import xarray
from rasterio.crs import CRS
from rasterio.errors import RasterioError
from rasterio.transform import Affine

from aef.data.ingest.grids import Grid, parse_crs
from aef.data.ingest.schema import Input, LabelRule, Layout

BLOCK_BYTES = 1 << 20
"""Consecutive steps of a variable are read together up to this size: fewer reads, little memory."""

Y_NAMES, X_NAMES = ("y", "lat", "latitude"), ("x", "lon", "longitude")
ARRAY_SUFFIXES = (".npy",)
DATASET_SUFFIXES = (".nc", ".nc4", ".cdf", ".h5", ".hdf5", ".he5", ".zarr")


DAMAGE = (
    OSError,
    ValueError,
    TypeError,
    KeyError,
    IndexError,
    AttributeError,
    RuntimeError,
    MemoryError,
    RasterioError,
)
"""What libraries raise on files that are cut short or altered."""


class RasterError(ValueError):
    """A file cannot be read as the recipe says; one line naming file and variable."""


class Raster:
    """One opened file. ``steps`` is the length of its time axis (1 without one), ``grid`` its geometry, if it has any."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.steps = 1
        self.grid: Grid | None = None
        self.tags: dict[str, str] = {}
        self.variables: tuple[str, ...] = ()

    def __enter__(self) -> Raster:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Release the file."""

    def read(self, variable: str, step: int) -> np.ndarray:
        """One plane (h, w) in the stored type. Raises RasterError."""
        self.require(variable)
        try:
            return self._plane(variable, step)
        except RasterError:
            raise
        except DAMAGE as error:
            raise self.refuse(f"{variable}, step {step}: cannot be read: {_one_line(error)}") from error

    def _plane(self, variable: str, step: int) -> np.ndarray:
        raise NotImplementedError

    def coordinate(self, name: str) -> np.ndarray:
        """A one-dimensional variable, such as times or product ids."""
        raise self.refuse(f"has no variable {name}")

    def refuse(self, why: str) -> RasterError:
        return RasterError(f"{self.path}: {why}")

    def require(self, variable: str) -> None:
        if variable not in self.variables:
            raise self.refuse(f"has no variable {variable!r}: known are {', '.join(self.variables[:40])}")


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
        return _GdalFile(path, rule)
    except RasterError:
        raise
    except DAMAGE as error:
        raise RasterError(f"{path}: cannot be opened: {_one_line(error)}") from error


def _one_line(error: BaseException) -> str:
    return " ".join(str(error.__cause__ or error).split())[:200] or type(error).__name__


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
        self._data = _open_dataset(path, getattr(rule, "decode", "raw") == "cf")
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
        return _view(block, self._view, self, variable)

    def coordinate(self, name: str) -> np.ndarray:
        if name not in self._data.variables:
            return super().coordinate(name)
        return np.asarray(self._data[name].values)


def _view(block: np.ndarray, view: str, raster: Raster, variable: str) -> np.ndarray:
    if not view:
        return block
    wanted = np.dtype(view)
    if wanted.itemsize != block.dtype.itemsize:
        raise raster.refuse(f"{variable} is {block.dtype} and cannot be viewed as {view}: sizes differ")
    return np.ascontiguousarray(block).view(wanted)


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
        return _view(plane, self._view, self, variable)

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


# --- GDAL ------------------------------------------------------------------------------------------------------------


@lru_cache(maxsize=8)
def _gdal_dataset(path: Path, changed_ns: int) -> rasterio.DatasetReader:
    """An opened file, kept for its next reader: GDAL decodes all bands of an interleaved block at once."""
    with rasterio.Env():  # GDAL's remarks go to the log, not to the terminal
        return rasterio.open(path)


class _GdalFile(Raster):
    """A GeoTIFF or anything else that GDAL opens, its bands named by the recipe, by the file, or by number."""

    def __init__(self, path: Path, rule: Input | LabelRule | None) -> None:
        super().__init__(path)
        self._data = _gdal_dataset(path, path.stat().st_mtime_ns)
        self.tags = dict(self._data.tags())
        self._view = getattr(rule, "dtype_view", "")
        stated = getattr(rule, "crs", "")
        crs = parse_crs(stated) if stated else self._data.crs
        if crs is not None:
            self.grid = Grid(crs, self._data.transform, self._data.height, self._data.width)
        described = tuple(d or "" for d in self._data.descriptions)
        if rule is not None and rule.layout:
            self._index = self._lay_out(rule.layout, described)
            self.steps = max(len(bands) for bands in self._index.values())
        else:
            self._index = {name: [k + 1] for k, name in enumerate(self._names(rule, described))}
        self.variables = tuple(self._index)

    def _names(self, rule: Input | LabelRule | None, described: tuple[str, ...]) -> tuple[str, ...]:
        count = self._data.count
        if rule is not None and rule.bands:
            if len(rule.bands) != count:
                raise self.refuse(f"has {count} bands, the recipe names {len(rule.bands)}")
            return rule.bands
        named = all(described) and len(set(described)) == count and count > 1
        return described if named else tuple(str(k + 1) for k in range(count))

    def _lay_out(self, layout: Layout, described: tuple[str, ...]) -> dict[str, list[int]]:
        width, tail, count = len(layout.per_step), len(layout.static_tail), self._data.count
        steps, rest = divmod(count - tail, width)
        if rest or steps < 1 or (layout.n_time != "infer" and steps != layout.n_time):
            wanted = "any number" if layout.n_time == "infer" else layout.n_time
            raise self.refuse(f"has {count} bands: expected {wanted} of steps of {width} bands and a tail of {tail}")
        index = {
            name: [(k * width + at if layout.order == "time_major" else at * steps + k) + 1 for k in range(steps)]
            for at, name in enumerate(layout.per_step)
        }
        index.update({name: [steps * width + at + 1] for at, name in enumerate(layout.static_tail)})
        for name, bands in index.items():
            found = re.sub(r"_\d+$", "", described[bands[-1] - 1]) if described[bands[-1] - 1] != name else name
            if found and found != name:
                raise self.refuse(f"band {bands[-1]} is called {found}, the recipe's layout says {name}")
        return index

    def _plane(self, variable: str, step: int) -> np.ndarray:
        bands = self._index[variable]
        with rasterio.Env():
            plane = self._data.read(bands[step if len(bands) > 1 else 0])
        return _view(plane, self._view, self, variable)


def geojson_outline(path: Path) -> tuple[tuple[float, float, float, float], str]:
    """Bounds and CRS (degrees where the file names none) of a GeoJSON geometry, feature or collection."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        name = content.get("crs", {}).get("properties", {}).get("name", "EPSG:4326")
        points = np.array(list(_points(content)), np.float64)
    except (OSError, ValueError, AttributeError) as error:
        raise RasterError(f"{path}: cannot be read as GeoJSON: {error}") from None
    if not len(points):
        raise RasterError(f"{path}: holds no coordinates")
    (left, bottom), (right, top) = points.min(axis=0), points.max(axis=0)
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
