"""Text points into chips: each chip gets the texts that lie on its pixels, in metres of its own CRS."""

from __future__ import annotations

import os
import zipfile
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
from rasterio.warp import transform as warp

from aef.data import shards
from aef.data.chips import ChipError, ChipFolder, TextPoint, read_chip, write_chip
from aef.data.contract import grid_position
from aef.sources import Registry
from aef.text.points import TextError, open_points

CELL_DEG = 0.1
"""Side of the coarse cells by which points find chips."""

COLUMNS = round(360 / CELL_DEG)
EDGE_POINTS = 9
"""Points on each edge of a chip that bound it: in degrees an edge is no straight line."""

GEOGRAPHIC = "EPSG:4326"
TEXT_FIELDS = ["uncertainty_m", "time_ms", "time_end_ms", "text", "source", "licence"]
CORPORA = ("wikipedia:", "gbif:")
"""Beginnings of ``source`` of the texts that attaching owns: it replaces them and leaves others alone."""


@dataclass(frozen=True)
class _Footprint:
    """Where a chip lies, without its arrays."""

    path: Path
    crs: str
    transform: tuple[float, ...]
    height: int
    width: int

    def bounds_deg(self) -> tuple[float, float, float, float]:
        """(west, south, east, north) of its outline; the east of one across the antimeridian lies beyond 180."""
        a, b, c, d, e, f = self.transform
        share = np.linspace(0, 1, EDGE_POINTS)
        zero, one = np.zeros(EDGE_POINTS), np.ones(EDGE_POINTS)
        row = np.concatenate((zero, one, share, share)) * self.height
        col = np.concatenate((share, share, zero, one)) * self.width
        lon, lat = map(np.asarray, warp(self.crs, GEOGRAPHIC, a * col + b * row + c, d * col + e * row + f))
        south, north = lat.min(), lat.max()
        # The pole of its hemisphere; a projection's other one may lie nowhere.
        pole = 90.0 if north > 0 else -90.0
        x, y = (np.asarray(one) for one in warp(GEOGRAPHIC, self.crs, [0.0], [pole]))
        if self.inside(x, y).any():
            return -180.0, min(south, pole), 180.0, max(north, pole)
        if lon.max() - lon.min() > 180:  # it lies across the antimeridian
            lon = np.where(lon < 0, lon + 360, lon)
        return lon.min(), south, lon.max(), north

    def inside(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        row, col = grid_position(self.transform, x, y)
        return (col >= 0) & (col < self.width) & (row >= 0) & (row < self.height)


def attach_points(
    points: str | os.PathLike,
    chips: str | os.PathLike,
    registry: Registry,
    *,
    on_chip: Callable[[Path], None] | None = None,
) -> dict[str, int]:
    """Write into every chip of a folder the texts that lie on it; what an earlier call wrote is replaced.

    Memory holds the points that lie on chips, not the file.

    Returns:
        Counts: chips, chips with texts, texts written, points that lie on no chip.

    Raises:
        TextError: not text points, or damaged ones. ChipError, FileNotFoundError: no chips, a damaged one, or one in a shard.
    """
    folder = ChipFolder(chips, registry)
    require_unpacked(folder)
    footprints = [_footprint(folder, index) for index in range(len(folder))]
    found, total, lost = _assign(points, footprints)
    counts: Counter[str] = Counter(chips=len(footprints), points=total, on_no_chip=lost)
    for number, footprint in enumerate(footprints):
        chip = read_chip(footprint.path, registry)
        texts = [text for text in chip.texts if not text.source.startswith(CORPORA)] + found.get(number, [])
        counts["texts"] += len(found.get(number, []))
        counts["chips_with_texts"] += bool(found.get(number))
        if texts != chip.texts:
            compress = _is_compressed(footprint.path)  # as its owner chose
            write_chip(footprint.path, replace(chip, texts=texts), registry, compress=compress)
        if on_chip:
            on_chip(footprint.path)
    return dict(counts)


def require_unpacked(folder: ChipFolder) -> None:
    """Raises ChipError where a chip of a folder lies in a shard."""
    packed = next((name for name in folder.files.names if shards.unpacked_name(name) != name), None)
    if packed is not None:
        raise ChipError("lies in a shard, which is only read: attach texts before packing", file=folder.path / packed)


def _is_compressed(path: Path) -> bool:
    with zipfile.ZipFile(path) as archive:
        return any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist())


def _footprint(folder: ChipFolder, index: int) -> _Footprint:
    header = folder.header(index)
    return _Footprint(folder.files[index], header["crs"], tuple(header["transform"]), header["height"], header["width"])


def _assign(points: str | os.PathLike, footprints: Sequence[_Footprint]) -> tuple[dict[int, list[TextPoint]], int, int]:
    """Texts of every chip, the number of points read, and of those on no chip. One point may lie on several chips."""
    chips_of = _index(footprints)
    cells = np.sort(np.fromiter(chips_of, np.int64, len(chips_of)))
    found: dict[int, list[TextPoint]] = defaultdict(list)
    total = lost = 0
    file = open_points(points)
    try:
        for group in range(file.num_row_groups):
            position = file.read_row_group(group, columns=["lon", "lat"])
            lon, lat = (position.column(name).to_numpy() for name in ("lon", "lat"))
            total += len(lon)
            used = np.zeros(len(lon), bool)
            on_chips = []
            for number, rows in _candidates(chips_of, cells, lon, lat):
                footprint = footprints[number]
                x, y = (np.asarray(one) for one in warp(GEOGRAPHIC, footprint.crs, lon[rows], lat[rows]))
                inside = footprint.inside(x, y)
                used[rows[inside]] = True
                on_chips.append((number, rows[inside], x[inside], y[inside]))
            lost += int((~used).sum())
            if used.any():  # texts are long, and most lie on no chip
                texts = file.read_row_group(group, columns=TEXT_FIELDS)
                for number, rows, x, y in on_chips:
                    found[number] += _text_points(texts, rows, x, y)
    except (pa.ArrowException, OSError) as error:
        raise TextError(f"{points}: damaged ({error}): write the text points again") from error
    return found, total, lost


def _cell(lon: np.ndarray, lat: np.ndarray) -> np.ndarray:
    """Number of the cell that holds a position; longitudes 360 degrees apart are one."""
    row, column = (np.floor(degrees / CELL_DEG).astype(np.int64) for degrees in (lat + 90, lon + 180))
    return row * COLUMNS + column % COLUMNS


def _index(footprints: Sequence[_Footprint]) -> dict[int, list[int]]:
    """Chips by the coarse cells that they touch."""
    chips_of: dict[int, list[int]] = defaultdict(list)
    for number, footprint in enumerate(footprints):
        west, south, east, north = footprint.bounds_deg()
        lon = np.arange(np.floor(west / CELL_DEG), np.floor(east / CELL_DEG) + 1) * CELL_DEG + CELL_DEG / 2
        lat = np.arange(np.floor(south / CELL_DEG), np.floor(north / CELL_DEG) + 1) * CELL_DEG + CELL_DEG / 2
        for cell in np.unique(_cell(*(grid.ravel() for grid in np.meshgrid(lon, lat)))).tolist():
            chips_of[cell].append(number)
    return chips_of


def _candidates(
    chips_of: dict[int, list[int]], cells: np.ndarray, lon: np.ndarray, lat: np.ndarray
) -> Iterator[tuple[int, np.ndarray]]:
    """(chip, rows of the points that may lie on it); ``cells`` are those of ``chips_of``, sorted."""
    found = _cell(lon, lat)
    near = np.flatnonzero(cells.searchsorted(found, side="right") > cells.searchsorted(found))
    rows_of: dict[int, list[int]] = defaultdict(list)
    for row in near.tolist():
        for number in chips_of[int(found[row])]:
            rows_of[number].append(row)
    return ((number, np.array(rows)) for number, rows in rows_of.items())


def _text_points(texts: pa.Table, rows: np.ndarray, x: np.ndarray, y: np.ndarray) -> list[TextPoint]:
    taken = texts.take(pa.array(rows)).to_pylist()
    return [TextPoint(float(px), float(py), **fields) for px, py, fields in zip(x, y, taken)]
