"""Windows of a chip: pixels, coarse cells, footprints."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from aef.data.chips import ChipError
from aef.data.crop import Crop, cells_across, cut_native, cut_points, points_inside
from aef.sources import BUILT_IN


def draw(seed, height, width, side, jitter=True):
    return Crop.draw(np.random.default_rng(seed), height, width, side, jitter)


def test_a_jittered_crop_reaches_every_position_of_the_chip():
    rows = {draw(seed, 20, 16, 16).row for seed in range(200)}
    assert rows == {0, 1, 2, 3, 4}
    assert {draw(seed, 20, 16, 16).col for seed in range(50)} == {0}


def test_a_small_chip_lies_anywhere_inside_its_crop():
    rows = {draw(seed, 12, 12, 16).row for seed in range(200)}
    assert rows == {-4, -3, -2, -1, 0}


def test_without_jitter_the_crop_is_the_centre():
    assert draw(0, 20, 16, 16, jitter=False) == Crop(2, 0, 16)
    assert draw(0, 10, 16, 16, jitter=False) == Crop(-3, 0, 16)


@pytest.mark.parametrize(("row", "col"), [(0, 0), (3, 5), (-3, 2), (6, -5), (-20, 0)])
def test_cut_pixels_are_those_of_the_chip_and_zero_outside(row, col):
    array = np.arange(1, 2 * 3 * 10 * 12 + 1, dtype=np.uint16).reshape(2, 3, 10, 12)
    cut = Crop(row, col, 8).cut(array, np.array([1, 0]))
    assert cut.shape == (2, 8, 8, 3) and cut.dtype == np.uint16
    for y in range(8):
        for x in range(8):
            inside = 0 <= row + y < 10 and 0 <= col + x < 12
            expected = array[[1, 0], :, row + y, col + x] if inside else 0
            assert (cut[:, y, x] == expected).all()


def test_a_run_of_frames_inside_the_chip_is_a_view():
    array = np.zeros((4, 3, 10, 12), np.float32)
    assert np.shares_memory(Crop(1, 2, 8).cut(array, slice(1, 3)), array)


# --- coarse grids ----------------------------------------------------------------------------------------------------


def test_a_coarse_source_covers_the_crop_with_cells_of_about_its_own_size():
    assert cells_across(BUILT_IN["era5_land"], 128) == 1
    assert cells_across(BUILT_IN["glo30"], 16) == 5


def ramp(chip, transform, shape=(40, 40)):
    """A native grid whose value at its cells' centres is x + 2 y in metres from the chip's corner, divided by 100."""
    series = chip.sources["grace"]
    a, _, c, _, e, f = transform
    row, col = np.meshgrid(np.arange(shape[0]) + 0.5, np.arange(shape[1]) + 0.5, indexing="ij")
    x, y = a * col + c - chip.transform[2], e * row + f - chip.transform[5]
    series.values = np.broadcast_to(((x + 2 * y) / 100).astype(np.float32), (12, 1, *shape)).copy()
    series.valid = np.ones((12, 1, *shape), bool)
    series.transform, series.crs = transform, None
    return series


def finer(source, resolution_m):
    return dataclasses.replace(source, native_resolution_m=resolution_m)


def test_bilinear_cells_reproduce_a_plane(make_chip):
    chip = make_chip("a")
    series = ramp(chip, (50.0, 0.0, 499500.0, 0.0, -50.0, 5000500.0))
    source = finer(BUILT_IN["grace"], 40.0)
    crop = Crop(0, 0, 16)
    values, valid = cut_native(chip, source, series, 3, crop)
    assert values.shape == (4, 4, 1) and valid.all()
    centre = (np.arange(4) + 0.5) * 40
    expected = (centre[None, :] - 2 * centre[:, None]) / 100
    assert np.allclose(values[..., 0], expected, atol=1e-4)


def test_an_upside_down_native_grid_gives_the_same_cells(make_chip):
    chip = make_chip("a")
    source, crop = finer(BUILT_IN["grace"], 40.0), Crop(2, -1, 16)
    upright = cut_native(chip, source, ramp(chip, (50.0, 0.0, 499500.0, 0.0, -50.0, 5000500.0)), 0, crop)
    reversed_ = cut_native(chip, source, ramp(chip, (50.0, 0.0, 499500.0, 0.0, 50.0, 4998500.0)), 0, crop)
    assert np.allclose(upright[0], reversed_[0], atol=1e-4)


def test_an_unobserved_native_cell_does_not_spread(make_chip):
    chip = make_chip("a")
    series = ramp(chip, (50.0, 0.0, 499500.0, 0.0, -50.0, 5000500.0))
    series.values[:, :, 10, 10] = np.nan
    series.valid[:, :, 10, 10] = False
    values, valid = cut_native(chip, finer(BUILT_IN["grace"], 40.0), series, 0, Crop(0, 0, 16))
    assert valid.all() and np.isfinite(values).all()
    series.valid[:] = False
    assert not cut_native(chip, BUILT_IN["grace"], series, 0, Crop(0, 0, 16))[1].any()


def test_a_crop_outside_the_native_grid_is_not_valid(make_chip):
    chip = make_chip("a")
    series = ramp(chip, (50.0, 0.0, 600000.0, 0.0, -50.0, 5000500.0))
    assert not cut_native(chip, BUILT_IN["grace"], series, 0, Crop(0, 0, 16))[1].any()


def test_nearest_cells_keep_their_codes_and_type(make_chip):
    chip = make_chip("a")
    series = ramp(chip, (50.0, 0.0, 500000.0, 0.0, -50.0, 5000000.0), shape=(4, 4))
    series.values = np.arange(12 * 16).reshape(12, 1, 4, 4).astype(np.uint8)
    source = dataclasses.replace(finer(BUILT_IN["grace"], 40.0), resampling="nearest")
    values, valid = cut_native(chip, source, series, 0, Crop(0, 0, 16))
    assert values.dtype == np.uint8 and valid.all()
    assert values[..., 0].tolist() == [[0, 1, 2, 2], [4, 5, 6, 6], [8, 9, 10, 10], [8, 9, 10, 10]]


def test_a_native_grid_in_degrees_is_found_where_it_lies(make_chip):
    """The chip's centre is at 3.0 E, 45.15 N, between the centres of two cells at 3.0 E, 45.25 N and 44.75 N."""
    chip = make_chip("a")
    series = chip.sources["grace"]
    series.values = np.array([[1.0, 2], [3, 4]], np.float32)[None, None].repeat(12, 0)
    series.valid = np.ones((12, 1, 2, 2), bool)
    values, valid = cut_native(chip, BUILT_IN["grace"], series, 0, Crop(0, 0, 16))
    assert valid.all() and values[0, 0, 0] == pytest.approx(1 + 2 * (45.25 - 45.15) / 0.5, abs=0.02)


@pytest.mark.parametrize("crs", ["EPSG:4326", "OGC:CRS84"])
@pytest.mark.parametrize("turn", [-360, 360])
def test_longitudes_that_are_counted_from_0_to_360_are_the_same_places(make_chip, crs, turn):
    if crs != "EPSG:4326":
        pytest.importorskip("rasterio")
    chip = make_chip("a")
    series = chip.sources["grace"]
    series.crs = crs
    values, valid = cut_native(chip, BUILT_IN["grace"], series, 0, Crop(0, 0, 16))
    a, b, c, *rest = series.transform
    series.transform = (a, b, c + turn, *rest)
    turned, turned_valid = cut_native(chip, BUILT_IN["grace"], series, 0, Crop(0, 0, 16))
    assert valid.all() and turned_valid.all() and turned == pytest.approx(values, rel=1e-5)


def test_a_degree_of_longitude_is_shorter_than_one_of_latitude(make_chip):
    chip, step = make_chip("a"), 0.0005
    series = chip.sources["grace"]
    series.values = np.tile(np.arange(40, dtype=np.float32), (12, 1, 2, 1))
    series.valid, series.transform = np.ones((12, 1, 2, 40), bool), (step, 0.0, 3.0 - 20 * step, 0.0, -0.5, 45.5)
    values, _ = cut_native(chip, finer(BUILT_IN["grace"], 40.0), series, 0, Crop(0, 0, 16))
    east_m = np.array([-60, -20, 20, 60])
    expected = 19.5 + east_m / (111_320 * np.cos(np.radians(45.15))) / step
    assert values[0, :, 0] == pytest.approx(expected, abs=0.01)


def test_a_native_grid_of_another_projection_is_reprojected(make_chip):
    pytest.importorskip("rasterio")
    chip = make_chip("a")
    series = chip.sources["grace"]
    plain = cut_native(chip, BUILT_IN["grace"], series, 0, Crop(0, 0, 16))[0]
    from rasterio.warp import transform

    (east,), (north,) = transform(chip.crs, "EPSG:3035", [500080.0], [4999920.0])
    series.crs, series.transform = "EPSG:3035", (50000.0, 0.0, east - 25000.0, 0.0, -50000.0, north + 25000.0)
    found, valid = cut_native(chip, BUILT_IN["grace"], series, 0, Crop(0, 0, 16))
    assert valid.all() and found[0, 0, 0] == pytest.approx(float(series.values[0, 0, 0, 0]), rel=1e-3)
    assert plain.shape == found.shape


def test_a_native_grid_without_area_is_refused(make_chip):
    chip = make_chip("a")
    series = chip.sources["era5_land"]
    series.transform = (0.0, 0.0, 0.0, 0.0, 0.0, 0.0)
    with pytest.raises(ChipError, match="era5_land: field transform"):
        cut_native(chip, BUILT_IN["era5_land"], series, 0, Crop(0, 0, 16))


# --- footprints ------------------------------------------------------------------------------------------------------


def test_footprints_lie_on_the_pixels_that_hold_their_centres(make_chip):
    series = make_chip("a").sources["gedi"]
    crop = Crop(4, -2, 8)
    inside = points_inside(series, crop)
    expected = (series.row >= 4) & (series.row < 12) & (series.col < 6)
    assert (inside == expected).all()
    values, valid = cut_points(series, np.flatnonzero(inside), crop)
    assert values.shape == (8, 8, 101) and valid.shape == (8, 8, 1)
    places = set(zip(series.row[inside] - 4, series.col[inside] + 2))
    assert valid.sum() == len(places)
    last = {(r - 4, c + 2): v for r, c, v in zip(series.row[inside], series.col[inside], series.values[inside])}
    for (row, col), value in last.items():
        assert (values[row, col] == value).all()
