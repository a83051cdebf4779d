"""Per source: the service's raster → chip → registry transform equals an independent NumPy computation.

Expected values are read from the stand-in's own rasters with SciPy's interpolation; the chip names the products that
each frame was made of, so the same images are looked up.
"""

import numpy as np
import pytest
import torch
from conftest import IOWA, SOURCES
from pyproj import Transformer
from scipy.ndimage import map_coordinates
from standin.world import World

from aef.data.transform import transform
from aef.earthengine.grid import ChipGrid

PX = 32
WORLD = World()


def looked_up(image_id, band, grid, order):
    """A band of one image at the chip's pixels, and whether all pixels that it is made of are unmasked."""
    collection, _, index = image_id.rpartition("/")
    raster = WORLD.band(collection, index, band)
    unmasked = raster.mask
    if "PALSAR" in collection:
        unmasked = unmasked & (WORLD.band(collection, index, "MSK").values == 1)
    x, y = np.meshgrid(grid.left + 10 * np.arange(grid.px) + 5.0, grid.top - 10 * np.arange(grid.px) - 5.0)
    x, y = Transformer.from_crs(grid.crs, raster.grid.crs, always_xy=True).transform(x, y)
    a, _, c, _, e, f = raster.grid.affine
    at = [(y - f) / e - 0.5, (x - c) / a - 0.5]
    at = [np.round(axis, 5) for axis in at]
    values = map_coordinates(raster.values.astype(float), at, order=order, mode="constant", cval=np.nan)
    seen = map_coordinates(unmasked.astype(float), at, order=order, mode="constant", cval=0)
    return values, seen > 0.999999


def expected(fetched, band, grid, order):
    """(T, H, W) values and masks of one band: the last product of a frame lies on top."""
    frames = []
    for products in fetched.products:
        values, seen = looked_up(products[0], band, grid, order)
        for image_id in products[1:]:
            above, visible = looked_up(image_id, band, grid, order)
            values, seen = np.where(visible, above, values), seen | visible
        frames.append((values, seen))
    return np.stack([v for v, _ in frames]), np.stack([s for _, s in frames])


def learned(name, values):
    """The registry's transform, in float64 NumPy."""
    out = np.empty(values.shape)
    for channel, band in enumerate(SOURCES[name].bands):
        x, t = values[:, channel].astype(float), band.transform
        if t.kind == "linear":
            out[:, channel] = t.scale * x + t.offset
        elif t.kind == "log":
            out[:, channel] = np.log(np.maximum(t.scale * x, 0) + 1) / 10
        else:
            out[:, channel] = t.scale * np.log10(np.maximum(x, max(band.valid_min, 1e-30))) + t.offset
    return out


def check_transform(name, series, raw):
    valid = np.broadcast_to(series.valid, series.values.shape)
    moved = np.moveaxis(series.values, 1, -1)
    ours = np.moveaxis(
        transform(SOURCES[name], torch.from_numpy(np.ascontiguousarray(moved).astype(np.float32))).numpy(), -1, 1
    )
    assert np.allclose(ours[valid], learned(name, raw)[valid], atol=2e-4, rtol=1e-5)


@pytest.mark.parametrize("name", ["sentinel2", "landsat", "sentinel1", "palsar2"])
def test_images_arrive_as_they_are(standin, fetch, name):
    fetched = fetch(standin(WORLD), name, px=PX)
    series, grid = fetched.series, ChipGrid.around(*IOWA, PX)
    source = SOURCES[name]
    assert series.values.shape[1:] == (source.channels, PX, PX) and series.frames >= 2
    valid = np.broadcast_to(series.valid, series.values.shape)
    raw = np.zeros(series.values.shape)
    others = np.delete(valid, 4, axis=1).any(axis=1) if name == "sentinel1" else True
    for channel, band in enumerate(source.band_names):
        held = [bool(valid[t, channel].any()) for t in range(series.frames)]
        values, seen = expected(fetched, band, grid, order=1)
        if name == "sentinel1":
            seen &= (values >= source.bands[channel].valid_min) & (values <= source.bands[channel].valid_max)
            seen &= others | (band != "angle")
        if series.values.dtype.kind == "u":
            values = np.round(values)
        for frame in np.flatnonzero(held):
            assert (valid[frame, channel] == seen[frame]).mean() > 0.999, (band, frame)
            both = valid[frame, channel] & seen[frame]
            assert np.allclose(
                series.values[frame, channel][both],
                values[frame][both],
                atol=1.0 if series.values.dtype.kind == "u" else 2e-3,
            )
            assert (series.values[frame, channel][~valid[frame, channel]] == 0).all()
        raw[:, channel] = series.values[:, channel]
    check_transform(name, series, raw)


class Extreme(World):
    """Radar images whose first rows lie at -35 dB, and whose last at 15 dB."""

    def _band(self, collection, index, band):
        raster = super()._band(collection, index, band)
        if collection.endswith("S1_GRD") and band != "angle":
            edge = raster.values.shape[0] // 4
            raster.values[:edge], raster.values[-edge:] = -35, 15
        return raster


def test_backscatter_below_30_and_above_10_db_is_not_observed(standin, fetch):
    found, usual = (fetch(standin(world), "sentinel1", px=2 * PX).series for world in (Extreme(), WORLD))
    seen, expected = found.valid[:, :2], usual.valid[:, :2]
    values = found.values[:, :2]
    assert values[seen].min() >= -30 and values[seen].max() <= 10
    lost = (expected & ~seen).mean() / expected.mean()
    assert 0.2 < lost < 0.8 and not values[expected & ~seen].any()


class Calm(World):
    """Radar images of black water, in some of which a strip of land lies in the north."""

    def _band(self, collection, index, band):
        raster = super()._band(collection, index, band)
        if collection.endswith("S1_GRD") and band != "angle":
            water = len(raster.values) // 2 * (index[12:15] in ("012", "013", "014"))
            raster.values[water:] = -35
        return raster


def test_where_no_backscatter_is_observed_nor_is_its_angle(standin, fetch):
    found, usual = (fetch(standin(world), "sentinel1", px=PX) for world in (Calm(), WORLD))
    seen = np.broadcast_to(found.series.valid, found.series.values.shape)
    assert 0 < found.series.frames < usual.series.frames
    assert not (seen[:, 4] & ~seen[:, :4].any(axis=1)).any() and seen[:, 4].any(axis=(1, 2)).all()
    assert not found.series.values[:, 4][~seen[:, 4]].any() and seen[:, 4].mean() < 0.9


def test_sentinel1_holds_only_the_polarisations_of_each_scene(standin, fetch):
    series = fetch(standin(WORLD), "sentinel1", px=PX).series
    held = series.valid.any(axis=(2, 3))
    assert held[:, 4].all() and not (held[:, 0] & held[:, 2]).any()
    assert {tuple(row[:4]) for row in held.tolist()} <= {
        (True, True, False, False),
        (False, False, True, True),
        (True, False, False, False),
    }
    assert np.isin(series.metadata[:, 0], (347.5, 192.25)).all() and np.allclose(series.metadata[:, 1], 98.18)


def test_clouds_weight_the_loss_and_mask_nothing(standin, fetch):
    grid = ChipGrid.around(*IOWA, PX)
    fetched = fetch(standin(WORLD), "sentinel2", px=PX)
    clear = set()
    for frame, products in enumerate(fetched.products):
        scores = np.full((PX, PX), np.nan)
        for image_id in products:
            score, seen = looked_up(
                image_id.replace("COPERNICUS/S2_HARMONIZED", "GOOGLE/CLOUD_SCORE_PLUS/V1/S2_HARMONIZED"), "cs", grid, 1
            )
            scores = np.where(seen, score, scores)
        expected_weight = np.where(scores >= 0.5, 255, 0)
        assert (fetched.series.weight[frame, 0] == expected_weight).mean() > 0.99
        clear |= set(np.unique(fetched.series.weight[frame]))
    assert clear == {0, 255}
    assert fetched.series.valid.mean() > 0.99


def test_landsat_weight_follows_dilated_cloud_and_shadow_only(standin, fetch):
    grid = ChipGrid.around(*IOWA, PX)
    fetched = fetch(standin(WORLD), "landsat", px=PX)
    marks, seen = expected(fetched, "QA_PIXEL", grid, order=0)
    wanted = np.where((marks.astype(int) & (1 << 1 | 1 << 4)) == 0, 255, 0)
    assert seen.any() and ((fetched.series.weight[:, 0] == wanted) | ~seen).mean() > 0.999
    # Where the row on top ends, in the north of the chip, the other goes on.
    assert all("195027" in below and "195028" in top for below, top in fetched.products)
    assert fetched.series.valid[:, :, :4].mean() > 0.9


def test_terrain_is_the_gradient_of_the_reprojected_surface(standin, fetch):
    grid = ChipGrid.around(*IOWA, PX)
    fetched = fetch(standin(WORLD), "glo30", px=PX)
    series = fetched.series
    z, seen = expected(fetched, "DEM", grid.grown(1), order=1)
    dz_dy, dz_dx = np.gradient(z[0], 10.0)
    east, north = dz_dx[1:-1, 1:-1], -dz_dy[1:-1, 1:-1]
    slope, aspect = np.arctan(np.hypot(east, north)), np.arctan2(-east, -north)
    wanted = np.stack((z[0][1:-1, 1:-1], np.sin(slope), np.cos(slope), np.sin(aspect), np.cos(aspect)))
    assert series.time_ms is None and series.values.shape == (1, 5, PX, PX)
    assert np.allclose(series.values[0], wanted, atol=2e-3)
    assert seen.all() and series.valid.all()
    check_transform("glo30", series, series.values)


def test_footprints_lie_in_the_pixels_that_hold_their_centres(standin, fetch):
    px = 128
    grid = ChipGrid.around(*IOWA, px)
    fetched = fetch(standin(WORLD), "gedi", px=px)
    series, found = fetched.series, []
    for (image_id,) in fetched.products:
        collection, _, index = image_id.rpartition("/")
        first = WORLD.band(collection, index, "rh0")
        good = first.mask & (WORLD.band(collection, index, "quality_flag").values == 1)
        good &= WORLD.band(collection, index, "degrade_flag").values == 0
        x, y = first.grid.centres()
        inside = (x >= grid.left) & (x < grid.left + 1280) & (y <= grid.top) & (y > grid.top - 1280)
        for r, c in zip(*np.nonzero(good & inside)):
            col, row = np.floor((x[r, c] + 3 - grid.left) / 10), np.floor((grid.top - (y[r, c] - 2)) / 10)
            if 0 <= row < px and 0 <= col < px:
                rh = [WORLD.band(collection, index, f"rh{i}").values[r, c] for i in (0, 50, 100)]
                found.append((index[:6], row, col, *np.round(rh, 4)))
    months = {int(t): p[0].rpartition("/")[2][:6] for t, p in zip(np.unique(series.time_ms), fetched.products)}
    ours = [
        (months[int(t)], r, c, *np.round(v[[0, 50, 100]], 4))
        for t, r, c, v in zip(series.time_ms, series.row, series.col, series.values)
    ]
    assert len(found) > 20
    assert sorted(ours) == sorted((m, r, c, *map(np.float32, v)) for m, r, c, *v in found) or np.allclose(
        sorted(x[1:] for x in ours), sorted(x[1:] for x in found), atol=1e-3
    )
    assert (series.time_end_ms > series.time_ms).all() and series.values.shape[1] == 101


@pytest.mark.parametrize(("name", "step"), [("era5_land", 0.1), ("grace", 0.5)])
def test_coarse_products_keep_their_own_cells(standin, fetch, name, step):
    fetched = fetch(standin(WORLD), name, px=PX)
    series, source = fetched.series, SOURCES[name]
    a, _, west, _, e, north = series.transform
    assert (a, e) == (step, -step) and series.crs == "EPSG:4326" and series.frames == 12
    height, width = series.values.shape[2:]
    assert (
        west + step / 2 <= IOWA[0] <= west + (width - 0.5) * step
        and north - step / 2 >= IOWA[1] >= north - (height - 0.5) * step
    )
    for channel, band in enumerate(source.band_names):
        for frame, (image_id,) in enumerate(fetched.products):
            raster = WORLD.band(*image_id.rsplit("/", 1), band)
            col, row = round((west - raster.grid.affine[2]) / step), round((raster.grid.affine[5] - north) / step)
            cells = raster.values[row : row + height, col : col + width]
            if name == "grace":
                cells = softened(raster, row, col, height, width)
            seen = series.valid[frame, min(channel, series.valid.shape[1] - 1)]
            assert seen.all() and np.allclose(series.values[frame, channel], cells, rtol=1e-5, atol=1e-4)
    check_transform(name, series, series.values)


def softened(raster, row, col, height, width):
    """Means of 2 x 2 cells of the product, aligned to its own origin, interpolated back to the cells."""
    origin_row = round((90.0 - raster.grid.affine[5]) / 0.5)
    origin_col = round((raster.grid.affine[2] + 180.0) / 0.5)
    out = np.empty((height, width))
    for r in range(height):
        for c in range(width):
            y, x = origin_row + row + r, origin_col + col + c
            total = 0.0
            for dy, wy in ((0, 0.75), (1 if y % 2 else -1, 0.25)):
                for dx, wx in ((0, 0.75), (1 if x % 2 else -1, 0.25)):
                    top, left = (y // 2 + dy) * 2 - origin_row, (x // 2 + dx) * 2 - origin_col
                    total += wy * wx * raster.values[top : top + 2, left : left + 2].mean()
            out[r, c] = total
    return out


@pytest.mark.parametrize("name", ["nlcd", "cdl"])
def test_codes_are_taken_from_the_nearest_cell(standin, fetch, name):
    fetched = fetch(standin(WORLD), name, px=PX)
    values, seen = expected(fetched, SOURCES[name].band_names[0], ChipGrid.around(*IOWA, PX), order=0)
    assert seen.all() and fetched.series.values.dtype == np.uint8
    assert (
        fetched.series.values[:, 0] == values
    ).mean() > 0.99  # cells whose border is a pixel's centre may go either way
    assert np.isin(fetched.series.values, SOURCES[name].classes).all()


def test_outside_its_coverage_a_source_is_empty(standin, fetch):
    fetched = fetch(standin(WORLD), "nlcd", px=16, where=(8.5, 47.1))
    assert fetched.series is None and fetched.requests == 1


def test_successors_are_read_instead(standin, fetch):
    fetched = fetch(standin(WORLD), "grace", px=16, successors=True)
    assert fetched.series.collection == "NASA/GRACE/MASS_GRIDS_V04/MASCON_CRI"
