"""Embedding fields as labelled arrays and as files: GeoTIFF (int8 or float), NetCDF."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import netCDF4
import numpy as np
import rasterio
import rioxarray  # noqa: F401  (registers the `rio` accessor)
import xarray
from rasterio.io import MemoryFile
from rasterio.transform import Affine
from xarray.backends import NetCDF4DataStore

from aef.atomic import writing
from aef.data.chips import Chip
from aef.mapping.field import MadeBy
from aef.mapping.quantize import NODATA, dequantize, quantize
from aef.timecode import Period

Format = Literal["int8", "float", "netcdf"]
SUFFIX: dict[str, str] = {"int8": ".tif", "float": ".tif", "netcdf": ".nc"}


class DamagedFieldError(ValueError):
    """A file that cannot be opened or read to its end; one line."""


class OtherFieldError(ValueError):
    """A file that holds another field than the one expected in its place; one line."""


def as_data_array(
    vectors: np.ndarray, chip: Chip, periods: Sequence[Period], sources: Sequence[str], made_by: MadeBy, *, single: bool
) -> xarray.DataArray:
    """(period, band, y, x) vectors of a chip → a labelled array with pixel-centre coordinates, CRS and provenance."""
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
        attrs={
            "long_name": "embedding field: one unit vector per pixel",
            "chip": chip.id,
            "place": chip.place,
            "sources": ", ".join(sources),
            **made_by.tags,
            "synthetic": int(chip.synthetic),
        },
    )
    if single:
        field = field.isel(period=0, drop=True)
        field.attrs["period"] = str(periods[0])
    return field.rio.write_crs(chip.crs).rio.write_transform(affine)


def write_field(path: str | os.PathLike, field: xarray.DataArray, form: Format = "int8") -> Path:
    """Write one field (band, y, x), atomically: ``int8`` GeoTIFF in the published code, ``float`` GeoTIFF or ``netcdf``.

    The int8 file is read back by `aef.mapping.dequantize` (or sign(q) (|q| / 127.5)² in any other tool); −128 is no data.

    Raises:
        ValueError: an unknown format, a name whose suffix is not the format's, or a field of several periods.
        OSError: the disk is full or the folder cannot be written; an older file stays as it was.
    """
    if form not in SUFFIX:
        raise ValueError(f"unknown format {form!r}: expected {', '.join(SUFFIX)}")
    if field.dims != ("band", "y", "x"):
        raise ValueError(f"expected a field of one period (band, y, x), found {field.dims}: select a period first")
    path = Path(path)
    if path.suffix.lower() != SUFFIX[form]:
        raise ValueError(f"{path}: expected a name that ends in {SUFFIX[form]} for the format {form}")
    if form == "netcdf":
        with writing(path) as stream:
            stream.write(_as_netcdf(field))
        return path
    values, tags = field.values.astype(np.float32), {key: str(value) for key, value in field.attrs.items()}
    if form == "int8":
        values = quantize(field.values)
        tags["dequantize"] = "sign(q) * (abs(q) / 127.5) ** 2"
    write_geotiff(path, values, field, descriptions=[str(band) for band in field.band.values], tags=tags)
    return path


def write_geotiff(
    path: str | os.PathLike,
    values: np.ndarray,
    field: xarray.DataArray,
    *,
    descriptions: Sequence[str],
    tags: Mapping[str, str] | None = None,
) -> None:
    """Write (band, y, x) int8 codes or float32 values on the grid of a field as a GeoTIFF, atomically.

    It is made in memory: what GDAL fails to write as it closes a file is logged, not raised.

    Raises:
        OSError: the disk is full or the folder cannot be written.
    """
    bands, height, width = values.shape
    codes = values.dtype == np.int8
    with MemoryFile() as memory:
        with memory.open(
            driver="GTiff",
            width=width,
            height=height,
            count=bands,
            dtype=values.dtype,
            crs=field.rio.crs,
            transform=field.rio.transform(),
            nodata=NODATA if codes else float("nan"),
            compress="zstd",
            predictor=2 if codes else 3,
            interleave="pixel",
        ) as file:
            file.write(values)
            file.descriptions = tuple(descriptions)
            file.update_tags(**(tags or {}))
        with writing(path) as stream:
            stream.write(memory.getbuffer())


def _as_netcdf(field: xarray.DataArray) -> memoryview:
    """The bytes of a NetCDF file: made in memory, as the library names neither the file nor a full disk."""
    file = netCDF4.Dataset("field.nc", "w", memory=1)
    field.to_dataset(name="embedding").dump_to_store(NetCDF4DataStore(file))
    return file.close()


def read_field(path: str | os.PathLike) -> xarray.DataArray:
    """Read a field that `write_field` wrote, int8 codes dequantised, as (band, y, x) float32.

    Raises:
        FileNotFoundError: there is no such file.
        DamagedFieldError: it cannot be opened or read to its end.
        ValueError: not an embedding field.
    """
    path = Path(path)
    with _opened(path) as file:
        if isinstance(file, xarray.Dataset):
            return (file.set_coords("spatial_ref") if "spatial_ref" in file else file)["embedding"].load()
        values, tags = file.read(), file.tags()
        names = [name or f"A{band:02d}" for band, name in enumerate(file.descriptions)]
        affine, crs = file.transform, file.crs
    if values.dtype == np.int8:
        values = dequantize(values)
    rows, columns = np.arange(values.shape[1]) + 0.5, np.arange(values.shape[2]) + 0.5
    field = xarray.DataArray(
        values,
        dims=("band", "y", "x"),
        coords={"band": names, "y": affine.f + affine.e * rows, "x": affine.c + affine.a * columns},
        name="embedding",
        attrs={key: value for key, value in tags.items() if key not in ("AREA_OR_POINT", "dequantize")},
    )
    return field.rio.write_crs(crs).rio.write_transform(affine)


def read_tags(path: str | os.PathLike) -> tuple[Format, dict[str, str]]:
    """The format of a field's file and its tags, without its values. Raises as `read_field` does."""
    with _opened(Path(path)) as file:
        if isinstance(file, xarray.Dataset):
            return "netcdf", {key: str(value) for key, value in file["embedding"].attrs.items()}
        return "int8" if file.dtypes[0] == "int8" else "float", file.tags()


def is_there(path: str | os.PathLike, form: Format, made_by: MadeBy) -> bool:
    """Whether a file holds a whole field in this format by this maker. One that is damaged or has gaps counts as absent.

    Raises:
        OtherFieldError: it holds a field of another model, with other sources left out or in another format.
        ValueError: it is not an embedding field.
    """
    path = Path(path)
    if not path.exists():
        return False
    try:
        found, tags = read_tags(path)
        difference = f"expected format {form}, found {found}" if found != form else made_by.difference(tags)
        if difference:
            raise OtherFieldError(f"{path}: holds another field: {difference}")
        # A model gives every pixel a vector; GDAL reads a block that was never written as no data.
        return bool(np.isfinite(read_field(path).values).all())
    except DamagedFieldError:
        return False


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """The file of an embedding field, as a dataset of xarray's (NetCDF) or of rasterio's."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such embedding field")
    try:
        if path.suffix.lower() == SUFFIX["netcdf"]:
            with xarray.open_dataset(path, engine="netcdf4") as dataset:
                if "embedding" not in dataset:
                    raise ValueError(f"{path}: holds no variable `embedding`: not an embedding field")
                yield dataset
        else:
            with rasterio.open(path) as file:
                if file.dtypes[0] not in ("int8", "float32"):
                    found = f"expected int8 codes or float32 vectors, found {file.dtypes[0]}"
                    raise ValueError(f"{path}: {found}: not an embedding field")
                yield file
    except (OSError, RuntimeError) as error:  # as GDAL's and NetCDF's libraries report a file that is cut short
        why = " ".join(str(error).split())[:120]
        raise DamagedFieldError(f"{path}: is damaged or not an embedding field ({why}): make it again") from error
