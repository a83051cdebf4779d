"""Snapped grids of chips, cells of coarse sources around them, and where land is."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyproj import Geod

from aef.earthengine.grid import ChipGrid, NativeGrid, utm_crs
from aef.earthengine.land import is_land

GEOD = Geod(ellps="WGS84")


@settings(deadline=None, max_examples=50)
@given(st.floats(-179.9, 179.9), st.floats(-80, 83.9), st.sampled_from((16, 128)))
def test_a_chip_is_snapped_to_ten_metres_in_the_zone_of_its_centre(lon, lat, px):
    grid = ChipGrid.around(lon, lat, px)
    assert grid.crs == utm_crs(lon, lat) and grid.left % 10 == 0 and grid.top % 10 == 0
    found = grid.centre_degrees
    _, _, off = GEOD.inv(lon, lat, *found)
    assert off < 7.2  # half a pixel's diagonal


@pytest.mark.parametrize(
    ("lon", "lat", "crs"),
    [(8.5, 47, "EPSG:32632"), (-180, -1, "EPSG:32701"), (179.99, 1, "EPSG:32660"), (6, 0, "EPSG:32632")],
)
def test_a_point_lies_in_its_utm_zone(lon, lat, crs):
    assert utm_crs(lon, lat) == crs


def test_native_cells_surround_the_chip():
    grid = ChipGrid.around(8.5, 47.1, 128)
    affine, height, width, (row, col) = NativeGrid(0.1, -180.05, 90.05).under(grid)
    lons, lats = grid.outline_degrees()
    assert affine[2] + 0.05 <= lons.min() and affine[2] + 0.1 * (width - 0.5) >= lons.max()
    assert affine[5] - 0.05 >= lats.max() and affine[5] - 0.1 * (height - 0.5) <= lats.min()
    assert math.isclose(affine[2], -180.05 + 0.1 * col) and math.isclose(affine[5], 90.05 - 0.1 * row)


def test_land_mask_knows_continents_seas_and_islands():
    land = {
        "Iowa": (-93.5, 42),
        "Zurich": (8.54, 47.37),
        "Manaus": (-60, -3.1),
        "Oahu": (-157.95, 21.45),
        "Svalbard": (16, 78.5),
        "Madagascar": (47, -19),
        "Tasmania": (146.5, -42),
    }
    sea = {
        "Atlantic": (-35, 30),
        "Pacific": (-150, 0),
        "Indian Ocean": (80, -20),
        "North Sea": (3, 56),
        "Gulf of Mexico": (-90, 25.5),
    }
    assert all(is_land(*p) for p in land.values()), [n for n, p in land.items() if not is_land(*p)]
    assert not any(is_land(*p) for p in sea.values()), [n for n, p in sea.items() if is_land(*p)]


def test_the_share_of_land_is_that_of_the_earth():
    rng = np.random.default_rng(0)
    lat = np.degrees(np.arcsin(rng.uniform(-1, 1, 100_000)))
    share = is_land(rng.uniform(-180, 180, 100_000), lat).mean()
    assert 0.285 < share < 0.32  # 29 % and the cells that coasts touch
