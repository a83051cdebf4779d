"""Embedding fields as labelled arrays and as files: GeoTIFF (int8 or float), NetCDF."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import rasterio
import rioxarray  # noqa: F401  (registers the `rio` accessor)
import xarray
from rasterio.transform import Affine

from aef.data.chips import Chip
from aef.mapping.quantize import NODATA, quantize
from aef.timecode import Period

Format = Literal["int8", "float", "netcdf"]
SUFFIX: dict[str, str] = {"int8": ".tif", "float": ".tif", "netcdf": ".nc"}


def as_data_array(
    vectors: np.ndarray, chip: Chip, periods: Sequence[Period], sources: Sequence[str], version: str, *, single: bool
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
            "model_version": version,
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
        ValueError: an unknown format, or a field of several periods.
    """
    if form not in SUFFIX:
        raise ValueError(f"unknown format {form!r}: expected {', '.join(SUFFIX)}")
    if field.dims != ("band", "y", "x"):
        raise ValueError(f"expected a field of one period (band, y, x), found {field.dims}: select a period first")
    path = Path(path)
    # GDAL chooses its driver by the suffix, so the temporary name keeps it.
    temporary = path.with_name(f".{path.stem}.{os.getpid()}.tmp{path.suffix}")
    try:
        if form == "netcdf":
            field.to_netcdf(temporary)
        else:
            _write_geotiff(temporary, field, form)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return path


def _write_geotiff(path: Path, field: xarray.DataArray, form: Format) -> None:
    values = quantize(field.values) if form == "int8" else field.values.astype(np.float32)
    nodata = NODATA if form == "int8" else float("nan")
    bands, height, width = values.shape
    with rasterio.open(
        path,
        "w",
        driver="GTiff",
        width=width,
        height=height,
        count=bands,
        dtype=values.dtype,
        crs=field.rio.crs,
        transform=field.rio.transform(),
        nodata=nodata,
        compress="zstd",
        predictor=2 if form == "int8" else 3,
        interleave="pixel",
    ) as file:
        file.write(values)
        file.descriptions = tuple(str(band) for band in field.band.values)
        file.update_tags(**{key: str(value) for key, value in field.attrs.items()})
        if form == "int8":
            file.update_tags(dequantize="sign(q) * (abs(q) / 127.5) ** 2")


def read_field(path: str | os.PathLike) -> xarray.DataArray:
    """Read a field that `write_field` wrote, int8 codes dequantised, as (band, y, x) float32.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: not an embedding field.
    """
    from aef.mapping.quantize import dequantize

    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such embedding field")
    if path.suffix == ".nc":
        with xarray.open_dataset(path) as dataset:
            if "embedding" not in dataset:
                raise ValueError(f"{path}: holds no variable `embedding`: not an embedding field")
            return (
                dataset.set_coords("spatial_ref")["embedding"].load()
                if "spatial_ref" in dataset
                else dataset["embedding"].load()
            )
    with rasterio.open(path) as file:
        values, tags = file.read(), file.tags()
        names = [name or f"A{band:02d}" for band, name in enumerate(file.descriptions)]
        affine, crs = file.transform, file.crs
    if values.dtype == np.int8:
        values = dequantize(values)
    elif values.dtype != np.float32:
        raise ValueError(
            f"{path}: expected int8 codes or float32 vectors, found {values.dtype}: not an embedding field"
        )
    rows, columns = np.arange(values.shape[1]) + 0.5, np.arange(values.shape[2]) + 0.5
    field = xarray.DataArray(
        values,
        dims=("band", "y", "x"),
        coords={"band": names, "y": affine.f + affine.e * rows, "x": affine.c + affine.a * columns},
        name="embedding",
        attrs={key: value for key, value in tags.items() if key not in ("AREA_OR_POINT", "dequantize")},
    )
    return field.rio.write_crs(crs).rio.write_transform(affine)
