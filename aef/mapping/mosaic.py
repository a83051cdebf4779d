"""One map of many embedding fields: every pixel has the vector of one field, nothing is averaged.

A vector at the border of a chip lacks the neighbours beyond. Where fields overlap, a pixel is therefore taken from the
field in which it lies farthest from the border (`aef.mapping.windows` does so within a chip), of those that have a vector
there. Int8 codes are copied as they are.

    mosaic = plan_mosaic(field_files("FIELDS"), period="2019-01-01/2020-01-01")
    write_mosaic("map.tif", mosaic)
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from rasterio.crs import CRS
from rasterio.errors import CRSError
from rasterio.transform import Affine
from rasterio.warp import transform_bounds

from aef.mapping import files
from aef.mapping.field_choice import FieldChoiceError, choose_fields
from aef.mapping.field_file import Format, has_vector
from aef.mapping.quantize import NODATA
from aef.memory import memory_bytes
from aef.timecode import Period

if TYPE_CHECKING:
    import xarray

Box = tuple[float, float, float, float]
"""West, south, east, north in degrees."""

COPIES = 3
"""Memory that writing a map takes, in sizes of its codes: themselves, and what GDAL makes of them as the file is closed.
Measured with random codes, which do not compress: 3.1."""

SAME_PX = 1e-3
"""Parts of a pixel by which the grids of fields may differ: coordinates are rounded."""


class Tile(NamedTuple):
    """A field and where its first pixel lies in the map; it may begin before the map and end after it."""

    field: xarray.DataArray
    row: int
    col: int


@dataclass(frozen=True)
class Mosaic:
    """What a map is made of; nothing but headers has been read.

    Attributes:
        tiles: the fields, their values (band, y, x) on disk: int8 codes where the map has them, else float32 vectors.
        shape: (band, y, x) of the map.
        form: int8 where all fields are, else float.
    """

    tiles: tuple[Tile, ...]
    shape: tuple[int, int, int]
    form: Format
    crs: CRS
    transform: Affine
    bands: tuple[str, ...]
    tags: dict[str, str]

    def strip(self, top: int, bottom: int) -> np.ndarray:
        """The codes or vectors (band, rows, x) of rows [top, bottom).

        Raises:
            DamagedFieldError: the file of a field cannot be read to its end.
        """
        count, _, width = self.shape
        empty, dtype = (NODATA, np.int8) if self.form == "int8" else (np.nan, np.float32)
        strip = np.full((count, bottom - top, width), empty, dtype)
        taken = np.zeros(strip.shape[1:], np.int64)  # how deep inside its field lies what the strip has
        for field, row, col in self.tiles:
            first, last = max(row, top), min(row + field.sizes["y"], bottom)
            left, right = max(col, 0), min(col + field.sizes["x"], width)
            if first >= last or left >= right:
                continue
            rows, columns = slice(first - row, last - row), slice(left - col, right - col)
            values = field[:, rows, columns].values
            here = (slice(first - top, last - top), slice(left, right))
            depth = _depth(_from_end(field.sizes["y"])[rows], _from_end(field.sizes["x"])[columns])
            better = has_vector(values) & (depth > taken[here])
            np.copyto(strip[:, *here], values, where=better)
            np.copyto(taken[here], depth, where=better)
        return strip


def _from_end(side: int) -> np.ndarray:
    """Of each pixel along a side, which one from the nearer end it is: 1, 2, …, 2, 1."""
    ahead = np.arange(1, side + 1)
    return np.minimum(ahead, ahead[::-1])


def _depth(rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """How far pixels (y, x) lie from the nearest border and, of equals, along the other axis, as one number.

    By the first alone, fields that overlap would tie along the edge of the map, where all lie near one border.
    """
    return (np.minimum.outer(rows, columns) << 32) + np.maximum.outer(rows, columns)


def plan_mosaic(
    paths: Iterable[Path],
    *,
    period: str | Period | None = None,
    crs: str | None = None,
    bbox: Box | None = None,
) -> Mosaic:
    """Which fields make a map, and its grid: that of the fields, as far as they reach or the box does.

    Args:
        period: of the fields; None: they are of one.
        crs: only fields in this projection, such as EPSG:32631: a map has one.
        bbox: only this part, west, south, east, north in degrees.

    Raises:
        FieldChoiceError: fields of other periods, models, supports or left-out sources, in several projections or on
            several grids; none is there or in the box; or the map would need more memory than the machine has.
        DamagedFieldError, ValueError: a file is not an embedding field.
    """
    chosen = choose_fields(paths, period=period)
    told = {path: files.read_tags(path) for path in chosen}
    form: Format = "int8" if all(its_form == "int8" for its_form, _ in told.values()) else "float"
    fields = _of_one_projection({path: files.open_field(path, codes=form == "int8") for path in chosen}, crs)
    tags = {path: told[path][1] for path in fields}
    _require_one(tags)
    origins = _origins(fields)
    first = next(iter(fields.values()))
    top, left = (min(origin[axis] for origin in origins.values()) for axis in (0, 1))
    bottom = max(origins[path][0] + field.sizes["y"] for path, field in fields.items())
    right = max(origins[path][1] + field.sizes["x"] for path, field in fields.items())
    transform = files.transform_of(first)
    if bbox is not None:
        top, left, bottom, right = _inside(bbox, first.rio.crs, transform, (top, left, bottom, right))
    here = {
        path: Tile(field, origins[path][0] - top, origins[path][1] - left)
        for path, field in fields.items()
        if _reaches(field, origins[path], (top, left, bottom, right))
    }
    if not here:
        raise FieldChoiceError(f"no field lies in the box {','.join(f'{edge:g}' for edge in bbox or ())}")
    shape = (first.sizes["band"], bottom - top, right - left)
    _require_memory(shape, form, here.values())
    return Mosaic(
        tiles=tuple(here.values()),
        shape=shape,
        form=form,
        crs=first.rio.crs,
        transform=transform @ Affine.translation(left, top),
        bands=tuple(str(band) for band in first.band.values),
        tags=_origin([tags[path] for path in here]),
    )


def write_mosaic(
    path: str | os.PathLike, mosaic: Mosaic, *, on_rows: Callable[[int], None] = lambda count: None
) -> None:
    """Write a map as the GeoTIFF of an embedding field, atomically, some rows at a time.

    It is held in memory until it is closed (`_require_memory`), the fields are not.

    Args:
        on_rows: called with the number of rows that were written since the last call.

    Raises:
        DamagedFieldError: the file of a field cannot be read to its end.
        OSError: the disk is full or the folder cannot be written; an older file stays as it was.
    """
    height = mosaic.shape[1]
    grid = {"shape": mosaic.shape, "crs": mosaic.crs, "transform": mosaic.transform, "bands": mosaic.bands}
    with files.writing_strips(path, mosaic.form, tags=mosaic.tags, **grid) as write:  # type: ignore[arg-type]
        for top in range(0, height, files.STRIP_PX):
            bottom = min(top + files.STRIP_PX, height)
            write(top, mosaic.strip(top, bottom))
            on_rows(bottom - top)


# --- which fields make one map ---------------------------------------------------------------------------------------


def _of_one_projection(fields: dict[Path, xarray.DataArray], wanted: str | None) -> dict[Path, xarray.DataArray]:
    """The fields in the wanted projection, or all where they have one. Raises FieldChoiceError."""
    counts = Counter(str(field.rio.crs) for field in fields.values())
    known = ", ".join(f"{name} ({count})" for name, count in sorted(counts.items()))
    if wanted is not None:
        try:
            crs = CRS.from_user_input(wanted)
        except CRSError:
            raise FieldChoiceError(f"expected a projection like EPSG:32631, found {wanted!r}") from None
        fields = {path: field for path, field in fields.items() if field.rio.crs == crs}
        if not fields:
            raise FieldChoiceError(f"no field lies in {wanted}: there are fields in {known}")
    elif len(counts) > 1:
        raise FieldChoiceError(f"the fields lie in several projections, {known}: make one map of each, chosen by --crs")
    return fields


def _require_one(tags: dict[Path, dict[str, str]]) -> None:
    """Raises FieldChoiceError where fields state different periods or supports."""
    (first, expected), *others = tags.items()
    for path, told in others:
        for name in ("period", "support"):
            if told.get(name) != expected.get(name):
                how = "choose one by --period" if name == "period" else "embed one of them again with --support"
                raise FieldChoiceError(
                    f"{path}: its {name} is {told.get(name, 'none')}, that of {first.name} is "
                    f"{expected.get(name, 'none')}: a map has one: {how}"
                )


def _origins(fields: dict[Path, xarray.DataArray]) -> dict[Path, tuple[int, int]]:
    """Row and column of each field's first pixel on the grid of the first. Raises FieldChoiceError for another grid."""
    (path, first), *_ = fields.items()
    grid = files.transform_of(first)
    origins = {}
    for other, field in fields.items():
        its = files.transform_of(field)
        if field.sizes["band"] != first.sizes["band"]:
            raise FieldChoiceError(
                f"{other}: expected {first.sizes['band']} bands as in {path.name}, found {field.sizes['band']}"
            )
        if not np.allclose((its.a, its.b, its.d, its.e), (grid.a, grid.b, grid.d, grid.e), rtol=SAME_PX / 1000, atol=0):
            raise FieldChoiceError(
                f"{other}: expected pixels of {grid.a:g} x {abs(grid.e):g} as in {path.name}, found {its.a:g} x {abs(its.e):g}"
            )
        col, row = ~grid @ (its.c, its.f)
        if max(abs(col - round(col)), abs(row - round(row))) > SAME_PX:
            raise FieldChoiceError(
                f"{other}: its pixels lie between those of {path.name}, {col % 1:.2f} of a pixel east and {row % 1:.2f} "
                "south: make the chips on one grid (`aef ingest`: align: ten)"
            )
        origins[other] = (round(row), round(col))
    return origins


def _inside(bbox: Box, crs: CRS, grid: Affine, whole: tuple[int, int, int, int]) -> tuple[int, int, int, int]:
    """What a box of degrees leaves of rows and columns (top, left, bottom, right). Raises FieldChoiceError."""
    west, south, east, north = bbox
    if not (-180 <= west < east <= 180 and -90 <= south < north <= 90):
        raise FieldChoiceError(
            f"the box {west:g},{south:g},{east:g},{north:g} must be WEST,SOUTH,EAST,NORTH in degrees"
        )
    x_min, y_min, x_max, y_max = transform_bounds("EPSG:4326", crs, *bbox, densify_pts=21)
    if not np.isfinite((x_min, y_min, x_max, y_max)).all():  # the projection does not reach there
        return 0, 0, 0, 0
    (left, top), (right, bottom) = ~grid @ (x_min, y_max), ~grid @ (x_max, y_min)
    return (
        max(whole[0], int(np.floor(top))),
        max(whole[1], int(np.floor(left))),
        min(whole[2], int(np.ceil(bottom))),
        min(whole[3], int(np.ceil(right))),
    )


def _reaches(field: xarray.DataArray, origin: tuple[int, int], extent: tuple[int, int, int, int]) -> bool:
    """Whether a field has pixels in rows and columns (top, left, bottom, right)."""
    (row, col), (top, left, bottom, right) = origin, extent
    return max(row, top) < min(row + field.sizes["y"], bottom) and max(col, left) < min(col + field.sizes["x"], right)


def _require_memory(shape: tuple[int, int, int], form: Format, tiles: Iterable[Tile]) -> None:
    """Raises FieldChoiceError for a map that the machine cannot hold while it is written."""
    needed, there = COPIES * int(np.prod(shape, dtype=np.int64)) * (1 if form == "int8" else 4), memory_bytes()
    if there is not None and needed > there:
        _, height, width = shape
        held = sum(tile.field.sizes["y"] * tile.field.sizes["x"] for tile in tiles)
        raise FieldChoiceError(
            f"a map of {height:,} x {width:,} px needs {needed / 1e9:,.1f} GB of memory, this machine has "
            f"{there / 1e9:,.1f}; the fields together have {held / (height * width):.1%} of its pixels: "
            "choose a part of it by --bbox"
        )


def _origin(tags: Sequence[dict[str, str]]) -> dict[str, str]:
    """What the map says of its fields: what they agree in, all their sources, and how many they are."""
    first = tags[0]
    same = ("long_name", "period", "support", "model_version", "model_weights", "left_out", "unobserved")
    sources = sorted({name for told in tags for name in told.get("sources", "").split(", ") if name})
    synthetic = sorted({told["synthetic"] for told in tags if "synthetic" in told})
    return {
        **{name: first[name] for name in same if name in first},
        **({"sources": ", ".join(sources)} if sources else {}),
        **({"synthetic": synthetic[-1]} if synthetic else {}),
        "fields": str(len(tags)),
    }
