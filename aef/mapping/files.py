"""Embedding fields as labelled arrays and as files: GeoTIFF (int8 or float, cloud-optimised), NetCDF."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import netCDF4
import numpy as np
import rioxarray  # noqa: F401  (registers the `rio` accessor)
import xarray
from rasterio.transform import Affine
from xarray.backends import NetCDF4DataStore
from xarray.core import indexing

from aef.atomic import writing
from aef.data.arrays import transform_of
from aef.data.chips import Chip
from aef.mapping.cog import writing_cog
from aef.mapping.field_file import SUFFIX, DamagedFieldError, Format, VectorsOnDisk, as_vectors, has_vector, opened
from aef.mapping.made_by import MadeBy
from aef.mapping.quantize import quantize
from aef.timecode import Period

FILE_TAGS = ("AREA_OR_POINT", "OVR_RESAMPLING_ALG", "dequantize", "vectors")
"""Tags of a file that are no attributes of its field."""

STRIP_PX = 256
"""Rows that are coded at once."""

WriteWindow = Callable[[slice, slice, np.ndarray], None]
"""Writes rows and columns of a map."""

UNIT = 0.02
"""Lengths that differ by more from 1 are not those of vectors of an embedding, coded or not."""


class NotUnitWarning(UserWarning):
    """Vectors that are written as codes of unit vectors and are none; one line."""


class OtherFieldError(ValueError):
    """A file that holds another field than the one expected in its place; one line."""


def as_data_array(
    vectors: np.ndarray,
    chip: Chip,
    periods: Sequence[Period],
    about: Sequence[Mapping[str, str | int]],
    made_by: MadeBy,
    *,
    single: bool,
) -> xarray.DataArray:
    """(period, band, y, x) vectors of a chip → a labelled array with pixel-centre coordinates, CRS and provenance.

    `about` tells of each period's frames (`Pass.about`). A single period and what it says are attributes; of several
    they are coordinates along `period`, which a selection of one keeps.
    """
    affine = Affine(*chip.transform)
    columns, rows = np.arange(chip.width) + 0.5, np.arange(chip.height) + 0.5
    field = xarray.DataArray(
        vectors,
        dims=("period", "band", "y", "x"),
        coords={
            "period": [str(period) for period in periods],
            "band": [f"A{band:02d}" for band in range(vectors.shape[1])],
            "y": affine.f + affine.e * rows,
            "x": affine.c + affine.a * columns,
        },
        name="embedding",
        attrs=chip_tags(chip, made_by),
    )
    if single:
        field = field.isel(period=0, drop=True).assign_attrs(period=str(periods[0]), **about[0])
    elif about:
        field = field.assign_coords({key: ("period", [of_period[key] for of_period in about]) for key in about[0]})
    return field.rio.write_crs(chip.crs).rio.write_transform(affine)


def chip_tags(chip: Chip, made_by: MadeBy) -> dict[str, str | int]:
    """What the field of a chip says of where it lies and what made it."""
    return {
        "long_name": "embedding field: one unit vector per pixel",
        "chip": chip.id,
        "place": chip.place,
        **made_by.tags,
        "synthetic": int(chip.synthetic),
    }


def write_field(path: str | os.PathLike, field: xarray.DataArray, form: Format = "int8") -> Path:
    """Write one field (band, y, x), atomically: ``int8`` GeoTIFF in the published code, ``float`` GeoTIFF or ``netcdf``.

    The int8 file is read back by `aef.mapping.dequantize` (or sign(q) (|q| / 127.5)² in any other tool); −128 is no
    data. Attributes become tags, and so do coordinates of no dimension, such as the period of a field selected from
    several.

    Raises:
        ValueError: an unknown format, a name whose suffix is not the format's, or a field of several periods.
        OSError: the disk is full or the folder cannot be written; an older file stays as it was.

    Warns:
        NotUnitWarning: as codes of unit vectors, vectors of another length (means, or only some of the bands).
    """
    if not isinstance(field, xarray.DataArray):
        raise TypeError(f"field: expected an embedding field as `embed` gives it, found {type(field).__name__}")
    if field.dims != ("band", "y", "x"):
        raise ValueError(f"expected a field of one period (band, y, x), found {field.dims}: select a period first")
    path = _named_for(path, form)
    tags = {**field.attrs, **{str(key): value.item() for key, value in field.coords.items() if not value.dims}}
    tags = {key: tags[key] for key in sorted(tags) if key not in ("spatial_ref", *FILE_TAGS)}
    if form == "netcdf":
        names = [name for name, value in field.coords.items() if not value.dims and name != "spatial_ref"]
        field = field.drop_vars(names).copy(deep=False)  # whose attributes are not the caller's
        field.attrs = {**tags, "vectors": _count(field.values)}
        with writing(path) as stream:
            stream.write(_as_netcdf(field.rio.write_transform(transform_of(field))))
        return path
    grid = {"crs": field.rio.crs, "transform": transform_of(field), "bands": [str(band) for band in field.band.values]}
    with writing_strips(path, form, shape=field.shape, tags=tags, **grid) as write:  # type: ignore[arg-type]
        for first in range(0, field.sizes["y"], STRIP_PX):
            write(first, field[:, first : first + STRIP_PX].values)
    return path


@contextmanager
def writing_strips(
    path: str | os.PathLike,
    form: Format,
    *,
    shape: tuple[int, int, int],
    crs: Any,
    transform: Any,
    bands: Sequence[str],
    tags: Mapping[str, object],
) -> Iterator[Callable[[int, np.ndarray], None]]:
    """A field's GeoTIFF, to be written some rows at a time: gives a function of the first row and (band, rows, x) vectors,
    or int8 codes, which an int8 file takes as they are.

    It appears once the block has ended well; only its codes are held in memory, not its vectors. Raises as `write_field`.
    """
    path = _named_for(path, form)
    dtype = np.dtype(np.int8 if form == "int8" else np.float32)
    vectors, off_unit = 0, 0.0
    with writing_cog(path, shape=shape, dtype=dtype, crs=crs, transform=transform, bands=bands) as file:

        def write(first: int, strip: np.ndarray) -> None:
            nonlocal vectors, off_unit
            vectors += _count(strip)
            if strip.dtype != np.int8:
                lengths = np.linalg.norm(strip, axis=0)
                off_unit = max(off_unit, float(np.max(np.abs(lengths - 1), initial=0.0, where=np.isfinite(lengths))))
                strip = quantize(strip) if form == "int8" else strip.astype(np.float32, copy=False)
            file.write(strip, window=((first, first + strip.shape[1]), (0, strip.shape[2])))

        yield write
        code = {"dequantize": "sign(q) * (abs(q) / 127.5) ** 2"} if form == "int8" else {}
        file.update_tags(**{key: str(value) for key, value in sorted(tags.items())}, vectors=str(vectors), **code)
    if form == "int8" and off_unit > UNIT:
        warnings.warn(
            f"{path}: expected unit vectors of all bands, found lengths that differ from 1 by up to {off_unit:.2f}: "
            "normalise them, or write them as float",
            NotUnitWarning,
            stacklevel=4,
        )


def _named_for(path: str | os.PathLike, form: str) -> Path:
    """The path of a file, if its name is one of the format. Raises ValueError."""
    if form not in SUFFIX:
        raise ValueError(f"unknown format {form!r}: expected {', '.join(SUFFIX)}")
    path = Path(path)
    if path.suffix.lower() != SUFFIX[form]:
        raise ValueError(f"{path}: expected a name that ends in {SUFFIX[form]} for the format {form}")
    return path


def _count(values: np.ndarray) -> int:
    """Pixels of (band, y, x) codes or vectors that have a vector."""
    return int(has_vector(values).sum())


def origin_tags(field: xarray.DataArray) -> dict[str, str]:
    """What a map that is made of one field says of it: its place, time and model, as far as the field states them."""
    names = ("place", "period", "support", "model_version", "model_weights")
    return {name: str(field.attrs[name]) for name in names if name in field.attrs}


def write_geotiff(
    path: str | os.PathLike,
    values: np.ndarray,
    field: xarray.DataArray,
    *,
    bands: Sequence[str],
    tags: Mapping[str, str] | None = None,
) -> None:
    """Write (band, y, x) float32 values on the grid of a field as a GeoTIFF, atomically.

    Raises:
        OSError: the disk is full or the folder cannot be written.
    """
    _, height, width = values.shape
    with writing_map(path, field, bands=bands, dtype=values.dtype, tags=tags) as write:
        write(slice(0, height), slice(0, width), values)


@contextmanager
def writing_map(
    path: str | os.PathLike,
    field: xarray.DataArray,
    *,
    bands: Sequence[str],
    dtype: np.typing.DTypeLike = np.float32,
    nodata: float | None = None,
    tags: Mapping[str, str] | None = None,
    palette: Mapping[int, tuple[int, int, int, int]] | None = None,
) -> Iterator[WriteWindow]:
    """A GeoTIFF on the grid of a field, to be written window by window: gives a function of rows, columns and values.

    Values are (y, x), or (band, y, x) of several bands; they become ``dtype``. The file appears once the block has ended
    well, and is held in memory until then. No data is ``nodata``, or NaN of floats; ``palette`` has colours of codes.

    Raises:
        OSError: the disk is full or the folder cannot be written.
    """
    shape = (len(bands), field.sizes["y"], field.sizes["x"])
    grid = {"crs": field.rio.crs, "transform": transform_of(field), "nodata": nodata}
    with writing_cog(path, shape=shape, dtype=np.dtype(dtype), bands=bands, **grid) as file:  # type: ignore[arg-type]

        def write(rows: slice, columns: slice, values: np.ndarray) -> None:
            file.write(
                np.asarray(values, dtype).reshape(len(bands), *values.shape[-2:]),
                window=((rows.start, rows.stop), (columns.start, columns.stop)),
            )

        yield write
        file.update_tags(**(tags or {}))
        if palette:
            file.write_colormap(1, palette)


def _as_netcdf(field: xarray.DataArray) -> memoryview:
    """The bytes of a NetCDF file: made in memory, as the library names neither the file nor a full disk."""
    file = netCDF4.Dataset("field.nc", "w", memory=1)
    field.to_dataset(name="embedding").dump_to_store(NetCDF4DataStore(file))
    return file.close()


def read_field(path: str | os.PathLike) -> xarray.DataArray:
    """Read a field that `write_field` wrote, or one of the published product, as (band, y, x) float32 with north up.

    int8 codes are dequantised; float vectors of other programs (Earth Engine writes 64 bits) may have a no-data value.

    Raises:
        FileNotFoundError: there is no such file.
        DamagedFieldError: it cannot be opened or read to its end.
        ValueError: not an embedding field.
    """
    return open_field(path).load()


def open_field(path: str | os.PathLike, *, codes: bool = False) -> xarray.DataArray:
    """`read_field` of a file that may be larger than memory: its vectors are read when they are indexed, and not kept.

    `aef.mapping.field_windows.windows` goes through them; ``field[:, 100:200, 300:500].values`` reads that part, and
    ``field.values`` all of them. With ``codes`` an int8 file gives its codes as they are. Raises as `read_field` does.
    """
    path = Path(path)
    with opened(path) as file:
        if isinstance(file, xarray.Dataset):
            about = (file.set_coords("spatial_ref") if "spatial_ref" in file else file)["embedding"]
            coords = {str(name): (of.dims, of.values, of.attrs) for name, of in about.coords.items()}
            return _on_disk(path, about.shape, coords, about.attrs)
        affine, south_up = file.transform, file.transform.e > 0
        if south_up:  # as the published files are
            affine = affine @ Affine(1, 0, 0, 0, -1, file.height)
        coords = {
            "band": ("band", [name or f"A{band:02d}" for band, name in enumerate(file.descriptions)], {}),
            "y": ("y", affine.f + affine.e * (np.arange(file.height) + 0.5), {}),
            "x": ("x", affine.c + affine.a * (np.arange(file.width) + 0.5), {}),
        }
        codes = codes and file.dtypes[0] == "int8"
        field = _on_disk(path, (file.count, *file.shape), coords, file.tags(), south_up=south_up, codes=codes)
        field.encoding["preferred_chunks"] = _blocks(file, south_up)
        # In place, as a copy of the field would be read.
        return field.rio.write_crs(file.crs, inplace=True).rio.write_transform(affine, inplace=True)


def _on_disk(
    path: Path,
    shape: tuple[int, ...],
    coords: Mapping[str, tuple],
    tags: Mapping[str, Any],
    *,
    south_up: bool = False,
    codes: bool = False,
) -> xarray.DataArray:
    return xarray.DataArray(
        indexing.LazilyIndexedArray(VectorsOnDisk(path, shape, south_up=south_up, codes=codes)),
        dims=("band", "y", "x"),
        coords=coords,
        name="embedding",
        attrs={key: value for key, value in tags.items() if key not in FILE_TAGS},
    )


def _blocks(file: Any, south_up: bool) -> dict[str, tuple[int, ...]]:
    """The sides of a file's blocks along y and x, from north to south and west to east."""
    sides = {
        axis: (*[block] * (size // block), *([size % block] if size % block else []))
        for axis, size, block in zip("yx", file.shape, file.block_shapes[0])
    }
    return {"y": sides["y"][::-1] if south_up else sides["y"], "x": sides["x"]}


def read_tags(path: str | os.PathLike) -> tuple[Format, dict[str, str]]:
    """The format of a field's file and its tags, without its values. Raises as `read_field` does."""
    with opened(Path(path)) as file:
        if isinstance(file, xarray.Dataset):
            return "netcdf", {key: str(value) for key, value in file["embedding"].attrs.items()}
        return "int8" if file.dtypes[0] == "int8" else "float", file.tags()


def is_there(path: str | os.PathLike, form: Format, made_by: MadeBy, support: Period | None = None) -> bool:
    """Whether a file holds a whole field in this format by this maker. One that is damaged or cut short counts as absent.

    Raises:
        OtherFieldError: it holds a field of another model, with other sources left out, from another support or in
            another format.
        ValueError: it is not an embedding field.
    """
    path = Path(path)
    if not path.exists():
        return False
    try:
        its_form, tags = read_tags(path)
        if "vectors" not in tags:
            _count_vectors(path)  # GDAL opens a file that is cut within its tags
        difference = (
            f"expected format {form}, found {its_form}" if its_form != form else made_by.difference(tags, support)
        )
        if difference:
            raise OtherFieldError(f"{path}: holds another field: {difference}")
        # GDAL reads a block that was never written as no data.
        return str(_count_vectors(path)) == tags.get("vectors")
    except DamagedFieldError:
        return False


def _count_vectors(path: Path) -> int:
    """Pixels of a field's file that have a vector, read a block at a time. Raises DamagedFieldError."""
    with opened(path) as file:
        if isinstance(file, xarray.Dataset):
            return _count(file["embedding"].values)
        blocks = (file.read(window=window) for _, window in file.block_windows(1))
        return sum(map(_count, blocks))


def preview(path: str | os.PathLike, most_px: int = 512) -> np.ndarray:
    """Vectors (band, y, x) of every n-th pixel of a field's file, so that no side is longer. Raises as `read_field` does."""
    with opened(Path(path)) as file:
        if isinstance(file, xarray.Dataset):
            field = file["embedding"]
            step = -(-max(field.sizes["y"], field.sizes["x"]) // most_px)
            return field[:, ::step, ::step].values
        step = -(-max(file.height, file.width) // most_px)
        values = file.read(out_shape=(file.count, -(-file.height // step), -(-file.width // step)))
        south_up, nodata = file.transform.e > 0, file.nodata
    return as_vectors(values[:, ::-1] if south_up else values, nodata)
