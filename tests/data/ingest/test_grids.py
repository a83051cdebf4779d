"""Geometry: whatever grid a raster lies on, its pixels land where they belong, and classes never blend."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import rasterio
import xarray
from rasterio.crs import CRS
from rasterio.transform import Affine
from rasterio.warp import transform as transform_points

from aef.data.ingest.convert import convert_place
from aef.data.ingest.grids import Grid, cell_grid, centre_of, chip_grid, overlap, resample, utm_of
from aef.data.ingest.places import find_places
from aef.data.ingest.recipe import parse_recipe

UTM31 = CRS.from_epsg(32631)
LEFT, TOP = 664_000.0, 5_612_000.0
"""A corner in Belgium; a ramp grows by one per metre to the east and to the south of it."""
CODES = np.array([11, 40, 255], np.uint8)

SOURCE = {
    "name": "ramps",
    "title": "position, in metres",
    "collections": ["synthetic"],
    "bands": [
        {"name": "east", "unit": "m", "valid_min": -5000, "valid_max": 5000},
        {"name": "south", "unit": "m", "valid_min": -5000, "valid_max": 5000},
    ],
    "role": "input",
    "native_resolution_m": 10,
    "frame_budget": 4,
}


def centres(transform: Affine, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    col, row = np.meshgrid(np.arange(width) + 0.5, np.arange(height) + 0.5)
    return (
        transform.a * col + transform.b * row + transform.c,
        transform.d * col + transform.e * row + transform.f,
    )


def ramps(crs: CRS, transform: Affine, height: int, width: int) -> np.ndarray:
    """East and south of the corner, in metres of UTM 31, at every pixel's centre: (2, h, w)."""
    x, y = centres(transform, height, width)
    east, north = transform_points(crs, UTM31, x.ravel(), y.ravel())
    return np.stack([np.asarray(east) - LEFT, TOP - np.asarray(north)]).reshape(2, height, width).astype(np.float32)


def classes(values: np.ndarray) -> np.ndarray:
    """A checkerboard of 120 m fields of three codes."""
    return CODES[(np.floor(values[0] / 120) + np.floor(values[1] / 120)).astype(int) % 3]


def around(crs: CRS, pixel: tuple[float, float], side: int = 60, turn_deg: float = 0.0, up: bool = False) -> Affine:
    """A grid of another CRS whose centre is 200 m inside the corner."""
    (x,), (y,) = transform_points(UTM31, crs, [LEFT + 300], [TOP - 300])
    transform = Affine.translation(x, y) @ Affine.rotation(turn_deg) @ Affine.scale(pixel[0], -pixel[1])
    if up:
        transform = transform @ Affine.scale(1, -1)
    return transform @ Affine.translation(-side / 2, -side / 2)


def write_geotiff(path: Path, array: np.ndarray, crs: CRS, transform: Affine, **tags: str) -> None:
    profile = {"driver": "GTiff", "count": len(array), "dtype": array.dtype, "crs": crs, "transform": transform}
    with rasterio.open(path, "w", height=array.shape[1], width=array.shape[2], **profile) as file:
        file.write(array)
        file.update_tags(**tags)


def recipe(bounds_input: str = "ramps", suffix: str = "tif", **extra):
    entries = {
        "name": "geometry",
        "sources": [SOURCE],
        "place": {"map": {"*": "here"}, "bounds": {"input": bounds_input}},
        "inputs": [
            {
                "name": "ramps",
                "glob": f"ramps*.{suffix}",
                "source": "ramps",
                "band_map": {"east": "1", "south": "2"},
                "nodata": {"nan": True},
                "accept": {"ranges": [[-5000, 5000]]},
                "valid": "all",
                "weight": "none",
                "time": {"from": "map", "map": {"here": "2020-06-01"}},
                "resample": "bilinear",
                **extra,
            }
        ],
        "labels": [
            {"name": "codes", "glob": "codes.tif", "var": "1", "codes": {11: "a", 40: "b", 255: "c"}, "ignore": [0]}
        ],
    }
    return parse_recipe(entries)


def convert_folder(root: Path, rule):
    chip, _ = convert_place(rule, find_places(rule, root)[0][0])
    return chip


def displacement(chip) -> np.ndarray:
    """How far each observed pixel is from where its values say, in pixels of 10 m: (2, N)."""
    series = chip.sources["ramps"]
    x, y = centres(Affine(*chip.transform), chip.height, chip.width)
    east, north = transform_points(CRS.from_string(chip.crs), UTM31, x.ravel(), y.ravel())
    truth = np.stack([np.asarray(east) - LEFT, TOP - np.asarray(north)]).reshape(2, chip.height, chip.width)
    found = series.values[0].astype(np.float64)
    seen = np.broadcast_to(series.valid[0], found.shape)
    inner = seen & np.stack([erode(mask) for mask in seen])
    return (np.abs(found - truth) / 10)[inner]


def erode(mask: np.ndarray, px: int = 3) -> np.ndarray:
    """Pixels at least ``px`` from what was not observed: outermost pixels can only repeat the raster's last one."""
    inner = np.zeros_like(mask)
    views = [
        mask[dy : mask.shape[0] - 2 * px + dy, dx : mask.shape[1] - 2 * px + dx]
        for dy in range(2 * px + 1)
        for dx in range(2 * px + 1)
    ]
    inner[px:-px, px:-px] = np.logical_and.reduce(views)
    return inner


GRIDS = {
    "aligned": (UTM31, (10, 10), {}),
    "half a pixel off": (UTM31, (10.0, 10.0), {}),
    "20 m": (UTM31, (20, 20), {"side": 30}),
    "30 m": (UTM31, (30, 30), {"side": 20}),
    "degrees": (CRS.from_epsg(4326), (1.4e-4, 9e-5), {}),
    "neighbouring zone": (CRS.from_epsg(32632), (10, 10), {}),
    "EPSG:3035": (CRS.from_epsg(3035), (10, 10), {}),
    "rotated": (UTM31, (10, 10), {"turn_deg": 23.0}),
    "upside down": (UTM31, (10, 10), {"up": True}),
}


def grid_of(name: str) -> tuple[CRS, Affine, int]:
    crs, pixel, options = GRIDS[name]
    side = options.get("side", 60)
    if name == "aligned":
        return crs, Affine(10, 0, LEFT, 0, -10, TOP), side
    if name == "half a pixel off":
        return crs, Affine(10, 0, LEFT + 5, 0, -10, TOP + 5), side
    return crs, around(crs, pixel, **{"side": side, **options}), side


@pytest.mark.parametrize("name", GRIDS)
def test_a_raster_lands_within_a_tenth_of_a_pixel(tmp_path, name):
    crs, transform, side = grid_of(name)
    values = ramps(crs, transform, side, side)
    write_geotiff(tmp_path / "ramps.tif", values, crs, transform)
    write_geotiff(tmp_path / "codes.tif", classes(values)[None], crs, transform)
    chip = convert_folder(tmp_path, recipe())
    off = displacement(chip)
    assert chip.crs == "EPSG:32631" and len(off) > 1500
    assert off.max() < 0.1
    assert set(np.unique(chip.labels["codes"].values)) <= {0, *CODES.tolist()}


@pytest.mark.parametrize("name", ["degrees", "EPSG:3035", "rotated", "20 m", "30 m"])
def test_classes_come_from_the_nearest_pixel(tmp_path, name):
    """Away from field borders, the code is that of the true position."""
    crs, transform, side = grid_of(name)
    values = ramps(crs, transform, side, side)
    write_geotiff(tmp_path / "ramps.tif", values, crs, transform)
    write_geotiff(tmp_path / "codes.tif", classes(values)[None], crs, transform)
    chip = convert_folder(tmp_path, recipe())
    x, y = centres(Affine(*chip.transform), chip.height, chip.width)
    truth = np.stack([x - LEFT, TOP - y])
    reach = max(abs(transform.a), abs(transform.b)) * (111_000 if crs.is_geographic else 1)
    clear_of_borders = (np.abs((truth + 60) % 120 - 60) > reach).all(axis=0)
    found = chip.labels["codes"].values
    judged = clear_of_borders & (found > 0)
    assert judged.sum() > 100
    assert (found[judged] == classes(truth)[judged]).all()


def test_pixel_is_point_is_read_as_the_centre(tmp_path):
    """The tie point of a pixel-is-point file is the centre of its first pixel, not its corner."""
    transform = Affine(10, 0, LEFT, 0, -10, TOP)
    values = ramps(UTM31, transform, 60, 60)
    tie_point = Affine(10, 0, LEFT + 5, 0, -10, TOP - 5)
    with rasterio.Env(GTIFF_POINT_GEO_IGNORE=True):
        write_geotiff(tmp_path / "ramps.tif", values, UTM31, tie_point, AREA_OR_POINT="Point")
    write_geotiff(tmp_path / "codes.tif", classes(values)[None], UTM31, transform)
    chip = convert_folder(tmp_path, recipe())
    assert (chip.transform[2], chip.transform[5]) == (LEFT, TOP)
    assert displacement(chip).max() < 0.1


@pytest.mark.parametrize("ascending", [True, False])
@pytest.mark.parametrize("kind", ["nc", "zarr"])
@pytest.mark.parametrize("coordinates", ["centre", "corner"])
def test_coordinate_arrays_give_the_grid(tmp_path, ascending, kind, coordinates):
    transform = Affine(10, 0, LEFT, 0, -10, TOP)
    values = ramps(UTM31, transform, 60, 60)
    offset = 5 if coordinates == "centre" else 0
    x, y = LEFT + offset + 10 * np.arange(60), TOP - offset - 10 * np.arange(60)
    data = xarray.Dataset(
        {name: (("y", "x"), plane) for name, plane in zip(("1", "2"), values)}, {"y": y, "x": x}, {"crs": "EPSG:32631"}
    )
    if ascending:
        # A corner belongs to the pixel above it once rows run north.
        data = data.isel(y=slice(None, None, -1)).assign_coords(y=y[::-1] - (0 if coordinates == "centre" else 10))
    path = tmp_path / f"ramps.{kind}"
    data.to_zarr(path, consolidated=False) if kind == "zarr" else data.to_netcdf(path)
    write_geotiff(tmp_path / "codes.tif", classes(values)[None], UTM31, transform)
    chip = convert_folder(tmp_path, recipe(suffix=kind, coordinates=coordinates))
    assert displacement(chip).max() < 0.1


def test_uneven_coordinates_are_refused(tmp_path):
    x = LEFT + np.array([0, 10, 20, 35.0])
    data = xarray.Dataset(
        {"1": (("y", "x"), np.ones((4, 4)))}, {"y": TOP - 10 * np.arange(4.0), "x": x}, {"crs": "EPSG:32631"}
    )
    data.to_netcdf(tmp_path / "ramps.nc")
    with pytest.raises(ValueError, match="x is not evenly spaced"):
        convert_folder(tmp_path, recipe(suffix="nc"))


def test_copies_of_20_metre_pixels_keep_every_value():
    source = Grid(UTM31, Affine(20, 0, LEFT, 0, -20, TOP), 5, 5)
    target = Grid(UTM31, Affine(10, 0, LEFT, 0, -10, TOP), 10, 10)
    values = np.arange(25, dtype=np.uint16).reshape(1, 5, 5)
    found, seen = resample(values, np.ones((1, 5, 5), bool), source, target, "nearest")
    assert found.dtype == np.uint16 and seen.all()
    assert (found[0] == values[0].repeat(2, 0).repeat(2, 1)).all()


@pytest.mark.parametrize("method", ["nearest", "bilinear", "area"])
def test_what_was_not_observed_takes_no_part(method):
    """A fill value of 9999 under a mask leaves no trace, whatever the method and wherever the grids lie."""
    source = Grid(UTM31, Affine(10, 0, LEFT + 3, 0, -10, TOP - 4), 40, 40)
    target = Grid(UTM31, Affine(30, 0, LEFT + 30, 0, -30, TOP - 30), 10, 10)
    values = np.full((1, 40, 40), 7.0, np.float32)
    observed = np.ones((1, 40, 40), bool)
    values[0, 10:18, 10:18], observed[0, 10:18, 10:18] = 9999, False
    found, seen = resample(values, observed, source, target, method)
    assert found[seen] == pytest.approx(7.0)
    assert (~seen).any() and (found[~seen] == 0).all()


@pytest.mark.parametrize("method", ["nearest", "bilinear", "area"])
def test_a_raster_that_lies_elsewhere_gives_nothing(method):
    chip = Grid(UTM31, Affine(10, 0, LEFT, 0, -10, TOP), 32, 32)
    for code, far in ((32601, Affine(10, 0, LEFT, 0, -10, TOP)), (4326, Affine(1e-4, 0, -175, 0, -1e-4, -18))):
        source = Grid(CRS.from_epsg(code), far, 40, 40)
        values, observed = resample(np.ones((2, 40, 40)), np.ones((2, 40, 40), np.bool_), source, chip, method)
        assert values.shape == (2, 32, 32) and not observed.any()


@pytest.mark.parametrize("method", ["nearest", "bilinear", "area"])
def test_longitudes_from_0_to_360_give_the_same_values(method):
    degrees = CRS.from_epsg(4326)
    chip = chip_grid((-93.5, 42, -93.49, 42.01), degrees, "ten", 32)
    ramp = np.arange(400.0)[None, None] + np.zeros((1, 400, 1))
    seen = np.ones(ramp.shape, np.bool_)
    found = [
        resample(ramp, seen, Grid(degrees, Affine(1e-4, 0, west, 0, -1e-4, 42.03), 400, 400), chip, method)
        for west in (-93.52, 266.48)
    ]
    assert found[0][1].all() and np.allclose(found[0][0], found[1][0], atol=1e-3)


def test_cells_are_means_of_their_area():
    """120 rows make three cells of 500 m; the 40 m that 104 columns leave over are no cell."""
    rng = np.random.default_rng(0)
    chip = Grid(UTM31, Affine(10, 0, LEFT, 0, -10, TOP), 120, 104)
    values = rng.normal(size=(1, 120, 104)).astype(np.float32)
    cells = cell_grid(chip, 500)
    found, seen = resample(values, np.ones((1, 120, 104), bool), chip, cells, "area")
    assert found.shape == (1, 3, 2) and seen.all()
    assert found[0, 0, 1] == pytest.approx(values[0, :50, 50:100].mean(), abs=1e-5)
    assert found[0, 2, 0] == pytest.approx(values[0, 100:, :50].mean(), abs=1e-5)


def test_the_chip_lies_in_the_zone_of_its_centre():
    assert utm_of(5.999, 50).to_epsg() == 32631 and utm_of(6.001, 50).to_epsg() == 32632
    assert utm_of(-179.9, -10).to_epsg() == 32701 and utm_of(180, 10).to_epsg() == 32660
    west = chip_grid((699_000, 6_075_000, 701_000, 6_077_000), CRS.from_epsg(32616), "ten", None)
    assert west.crs.to_epsg() == 32617


@pytest.mark.parametrize(("west", "lon"), [(-180, 175), (-180, -0.001), (0, -93.5), (0, 5), (170, -175)])
def test_a_raster_in_degrees_reaches_every_chip_that_lies_on_it(west, lon):
    degrees = CRS.from_epsg(4326)
    file = Grid(degrees, Affine(0.1, 0, west, 0, -0.1, 90), 1800, 360 * 10 if west <= 0 else 200)
    chip = chip_grid((lon, 40, lon + 0.01, 40.01), degrees, "ten", None)
    assert overlap(file, chip)
    assert not overlap(Grid(degrees, Affine(0.1, 0, lon + 1, 0, -0.1, 90), 1800, 100), chip)


def test_longitudes_from_0_to_360_lie_in_the_zone_of_their_meridian():
    degrees = CRS.from_epsg(4326)
    outline = (266.5, 42.0, 266.51, 42.01)
    grid = chip_grid(outline, degrees, "ten", None)
    assert grid == chip_grid((-93.5, 42.0, -93.49, 42.01), degrees, "ten", None)
    assert centre_of(outline, degrees)[0] == pytest.approx(-93.495)


def test_crop_keeps_the_middle():
    grid = chip_grid((LEFT, TOP - 1000, LEFT + 1000, TOP), UTM31, "ten", 64)
    assert (grid.height, grid.width) == (64, 64)
    assert (grid.transform.c, grid.transform.f) == (LEFT + 180, TOP - 180)
