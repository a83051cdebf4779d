"""A user's own rasters and the recipe for them: PLACE/S2_YYYYMMDD.tif, two places of three dates."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import rasterio
from rasterio.transform import Affine

from aef.data.chips import Chip
from aef.data.ingest.convert import convert_place
from aef.data.ingest.places import find_places
from aef.data.ingest.recipe import parse_recipe
from aef.data.ingest.report import Report

LEFT, TOP = 664_000.0, 5_612_000.0


def entries(**extra) -> dict:
    """GeoTIFFs PLACE/S2_YYYYMMDD.tif with four bands of reflectance and one of classes."""
    item = {
        "name": "s2",
        "glob": "*/S2_*.tif",
        "source": "sentinel2",
        "band_map": {"B2": 1, "B3": 2, "B4": 3, "B8": 4},
        "nodata": {"values": [0]},
        "valid": "all",
        "weight": {"var": "5", "in": [4, 5, 6]},
        "time": {"from": "file_name", "regex": r"_(?P<time>\d{8}T?\d*)\.tif"},
        **extra,
    }
    place = {"group_by": "^(?P<place>[^/]+)/", "bounds": {"input": "s2"}}
    return {"name": "mine", "licence": "CC0", "attribution": "me", "place": place, "inputs": [item]}


def scene(rng: np.random.Generator, side: int = 32) -> np.ndarray:
    bands = rng.integers(200, 4000, (4, side, side), dtype=np.uint16)
    return np.concatenate([bands, rng.integers(3, 10, (1, side, side), dtype=np.uint16)])


def write_scene(path: Path, array: np.ndarray, left: float = LEFT) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    profile = {"driver": "GTiff", "count": len(array), "dtype": array.dtype, "crs": "EPSG:32631"}
    transform = Affine(10, 0, left, 0, -10, TOP)
    with rasterio.open(path, "w", height=array.shape[1], width=array.shape[2], transform=transform, **profile) as file:
        file.write(array)


def write_folder(root: Path) -> Path:
    """Both places, a kilometre apart."""
    rng = np.random.default_rng(1)
    for number, place in enumerate(("north", "south")):
        for day in ("20200105", "20200206", "20200309"):
            write_scene(root / place / f"S2_{day}.tif", scene(rng), LEFT + 1000 * number)
    return root


def first_chip(recipe: dict, root: Path) -> tuple[Chip, Report]:
    """The chip of the first place of a folder, as `convert` makes it before it is written, and its report."""
    rule = parse_recipe(recipe)
    places, _ = find_places(rule, root)
    return convert_place(rule, places[0])
