"""Where items of a catalogue lie, over the antimeridian too, where outlines are written in many ways."""

from __future__ import annotations

from typing import Any

import numpy as np

from aef.earthengine.grid import ChipGrid

Box = tuple[float, float, float, float]
"""West, south, east, north in degrees; over the antimeridian the east lies beyond 180."""

HALF_TURN = 180.0


def outline_of(grid: ChipGrid) -> Box:
    """The box around a chip."""
    lons, lats = grid.outline_degrees()
    if lons.max() - lons.min() > HALF_TURN:
        lons = np.where(lons < 0, lons + 360, lons)
    return float(lons.min()), float(lats.min()), float(lons.max()), float(lats.max())


def within_180(box: Box) -> list[Box]:
    """A box as one or, over the antimeridian, two that end there: not every catalogue takes another."""
    west, south, east, north = box
    if east <= 180:
        return [box]
    return [(west, south, 180.0, north), (-180.0, south, east - 360, north)]


def reaches(item: Any, box: Box) -> bool:
    """Whether an item may show something of a box."""
    west, south, east, north = _bounds(item)
    beside = any(west + turn <= box[2] and east + turn >= box[0] for turn in (-360, 0, 360))
    return (beside or _is_split(item)) and south <= box[3] and north >= box[1]


def located(item: Any, box: Box) -> Any:
    """The item, or in place of one over the antimeridian a copy whose outline is the box.

    odc-stac leaves out what lies elsewhere by its outline; the pixels know better.
    """
    if not _is_split(item):
        return item
    west, south, east, north = box
    copy = item.clone()
    copy.geometry = {
        "type": "Polygon",
        "coordinates": [[[west, south], [east, south], [east, north], [west, north], [west, south]]],
    }
    return copy


def _is_split(item: Any) -> bool:
    """Whether an item's box goes round the wrong side of the Earth, or has its west in the east."""
    west, _, east, _ = _bounds(item)
    return not 0 <= east - west <= HALF_TURN


def _bounds(item: Any) -> Box:
    numbers = [float(number) for number in item.bbox]
    (west, south), (east, north) = numbers[:2], numbers[len(numbers) // 2 :][:2]  # heights may stand between
    return west, south, east, north
