"""The file of an embedding field, opened: its header at once, its vectors when they are indexed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np
import rasterio
import xarray
from xarray.backends import BackendArray
from xarray.core import indexing

from aef.mapping.quantize import NODATA, dequantize

Format = Literal["int8", "float", "netcdf"]
SUFFIX: dict[str, str] = {"int8": ".tif", "float": ".tif", "netcdf": ".nc"}

DECODED_PX = 2**16
"""Pixels that are decoded at once, which needs several arrays of the size of the result."""


class DamagedFieldError(ValueError):
    """A file that cannot be opened or read to its end; one line."""


@contextmanager
def opened(path: Path) -> Iterator[Any]:
    """The file of an embedding field, as a dataset of xarray's (NetCDF) or of rasterio's.

    Raises:
        FileNotFoundError: there is no such file.
        DamagedFieldError: it cannot be opened, or not be read within the block.
        ValueError: not an embedding field.
    """
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
                if file.dtypes[0] not in ("int8", "float32", "float64"):
                    difference = f"expected int8 codes or floating-point vectors, found {file.dtypes[0]}"
                    raise ValueError(f"{path}: {difference}: not an embedding field")
                if file.count < 2:  # such as a map of similarity
                    raise ValueError(f"{path}: expected a band per component, found one band: not an embedding field")
                yield file
    except (OSError, RuntimeError) as error:  # as GDAL's and NetCDF's libraries report a file that is cut short
        why = " ".join(str(error).split())[:120]
        raise DamagedFieldError(f"{path}: is damaged or not an embedding field ({why}): make it again") from error


class VectorsOnDisk(BackendArray):
    """The vectors (band, y, x) of a field's file, north up; what is indexed is read, all else stays on disk.

    The file is opened anew each time: none stays open, and what GDAL keeps of its blocks goes with it. With ``codes``
    its int8 codes are given as they are.
    """

    def __init__(self, path: Path, shape: tuple[int, ...], *, south_up: bool, codes: bool) -> None:
        self.path, self.shape, self.south_up, self.codes = path, shape, south_up, codes
        self.dtype = np.dtype(np.int8 if codes else np.float32)

    def __getitem__(self, key: indexing.ExplicitIndexer) -> np.ndarray:
        return indexing.explicit_indexing_adapter(key, self.shape, indexing.IndexingSupport.BASIC, self._read)

    def _read(self, key: tuple[int | slice, ...]) -> np.ndarray:
        chosen = [
            range(size)[one] if isinstance(one, slice) else range(size)[one : one + 1]
            for one, size in zip(key, self.shape)
        ]
        vectors = (
            self._vectors(*chosen) if all(map(len, chosen)) else np.empty([len(one) for one in chosen], self.dtype)
        )
        return vectors[tuple(slice(None) if isinstance(one, slice) else 0 for one in key)]

    def _vectors(self, bands: range, rows: range, columns: range) -> np.ndarray:
        (top, bottom), (left, right) = ((min(one), max(one) + 1) for one in (rows, columns))
        with opened(self.path) as file:
            if isinstance(file, xarray.Dataset):
                values, nodata = (
                    file["embedding"][bands.start : bands.stop : bands.step, top:bottom, left:right].values,
                    None,
                )
            else:
                height = self.shape[1]
                window = ((height - bottom, height - top) if self.south_up else (top, bottom), (left, right))
                values, nodata = file.read([band + 1 for band in bands], window=window), file.nodata
        if self.south_up:
            values = values[:, ::-1]
        values = values[:, :: rows.step, :: columns.step]
        return values if self.codes else as_vectors(values, nodata)


def has_vector(values: np.ndarray) -> np.ndarray:
    """Which pixels (y, x) of int8 codes or of float vectors (band, y, x) have a vector."""
    return (values != NODATA if values.dtype == np.int8 else np.isfinite(values)).all(axis=0)


def as_vectors(values: np.ndarray, nodata: float | None) -> np.ndarray:
    """What a file holds (band, y, x) → float32 vectors, NaN where there are none. Raises ValueError as `dequantize` does."""
    if values.dtype != np.int8:
        if nodata is not None:
            values[values == nodata] = np.nan
        return values.astype(np.float32, copy=False)
    vectors = np.empty(values.shape, np.float32)
    step = max(1, DECODED_PX // max(values.shape[2], 1))
    for first in range(0, values.shape[1], step):
        vectors[:, first : first + step] = dequantize(values[:, first : first + step])
    return vectors
