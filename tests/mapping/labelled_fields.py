"""Small embedding fields, half water and half wood, and labels on them."""

import csv
import json

import numpy as np
from rasterio.warp import transform as warp
from rasterio.warp import transform_geom

from aef.data.chips import Chip
from aef.mapping.files import as_data_array
from aef.mapping.made_by import MadeBy
from aef.timecode import parse_period

YEAR, NEXT = parse_period("2019-01-01/2020-01-01"), parse_period("2020-01-01/2021-01-01")
CRS, LEFT, TOP, SIDE = "EPSG:32631", 500_000.0, 5_600_000.0, 12
WATER, WOOD = np.eye(8)[0], np.eye(8)[1]


def chip(number=0):
    x = LEFT + number * 1000
    (lon,), (lat,) = warp(CRS, "EPSG:4326", [x + SIDE * 5], [TOP - SIDE * 5])
    return Chip(f"c{number}", CRS, (10.0, 0.0, x, 0.0, -10.0, TOP), SIDE, SIDE, lon, lat, {})


def field(number=0, period=YEAR, noise=0.05):
    """Water in the western half, wood in the eastern one."""
    directions = np.where(np.arange(SIDE) < SIDE // 2, WATER[:, None], WOOD[:, None])[:, None]
    vectors = directions + noise * np.random.default_rng(number).normal(size=(8, SIDE, SIDE))
    vectors = (vectors / np.linalg.norm(vectors, axis=0)).astype(np.float32)
    return as_data_array(vectors[None], chip(number), [period], [{"sources": "sentinel2"}], MadeBy("v"), single=True)


def degrees(row, col, number=0):
    """The middle of a pixel."""
    (lon,), (lat,) = warp(CRS, "EPSG:4326", [LEFT + number * 1000 + 10 * col + 5], [TOP - 10 * row - 5])
    return lon, lat


def points(path, places):
    """A CSV of (row, col, class, number of the field)."""
    with open(path, "w", newline="") as stream:
        table = csv.writer(stream)
        table.writerow(("Longitude", "lat", "cover"))
        table.writerows((*degrees(row, col, number), label) for row, col, label, number in places)
    return path


def box(rows, columns, number=0):
    """The outline of rows and columns of pixels, in degrees."""
    x, y = LEFT + number * 1000, TOP
    west, east, north, south = x + 10 * columns[0], x + 10 * columns[1], y - 10 * rows[0], y - 10 * rows[1]
    ring = [[west, south], [east, south], [east, north], [west, north], [west, south]]
    return transform_geom(CRS, "EPSG:4326", {"type": "Polygon", "coordinates": [ring]})


def geojson(path, areas):
    features = [{"type": "Feature", "properties": {"cover": label}, "geometry": geometry} for geometry, label in areas]
    path.write_text(json.dumps({"type": "FeatureCollection", "features": features}))
    return path
