"""Cloud-optimised GeoTIFFs, written strip by strip and atomically."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from rasterio.io import MemoryFile

from aef.atomic import writing
from aef.mapping.quantize import NODATA

BLOCK_PX = 256
"""Side of a tile: of 64 int8 bands it is 4 MB before compression, which is what reading one pixel costs."""


@contextmanager
def writing_cog(
    path: str | os.PathLike,
    *,
    shape: tuple[int, int, int],
    dtype: np.dtype,
    crs: Any,
    transform: Any,
    bands: Sequence[str],
    nodata: float | None = None,
) -> Iterator[Any]:
    """A rasterio file of (band, y, x) int8 codes, uint8 or float32 values to write into; it appears once the block has
    ended well. No data is −128, ``nodata`` or NaN.

    It is made in memory: what GDAL fails to write as it closes a file is logged, not raised, and the layout of a COG is
    known at the end only. Overviews hold every second, fourth, … pixel: the mean of codes is not the code of the mean.

    Raises:
        OSError: the disk is full or the folder cannot be written.
    """
    count, height, width = shape
    if nodata is None:
        nodata = NODATA if np.dtype(dtype) == np.int8 else float("nan")
    floating = np.dtype(dtype).kind == "f"
    with MemoryFile() as memory:
        with memory.open(
            driver="COG",
            width=width,
            height=height,
            count=count,
            dtype=dtype,
            crs=crs,
            transform=transform,
            nodata=nodata,
            compress="zstd",
            predictor="floating_point" if floating else "standard",
            blocksize=BLOCK_PX,
            overview_resampling="nearest",
            bigtiff="if_safer",
        ) as file:
            file.descriptions = tuple(bands)
            yield file
        with writing(path) as stream:
            stream.write(memory.getbuffer())
