"""Images of one overpass are one frame, on both sides of 180 degrees too."""

import dataclasses

import numpy as np
import pytest
import rasterio

from aef.earthengine.grid import ChipGrid, to_utm
from aef.timecode import parse_time
from tests.stac.catalogue import (
    CHIP,
    LEFT,
    PX,
    TOP,
    Api,
    fetch,
    inner,
    item,
    optical,
    static_catalog,
    write_raster,
)


def test_tiles_of_one_overpass_are_merged_and_the_latest_processing_is_kept(tmp_path):
    made = []
    for seed, (when, tile, baseline, left) in enumerate(
        [
            ("2019-05-01T10:20:21", "T1", "02.07", LEFT - 100),
            ("2019-05-01T10:20:35", "T2", "02.07", LEFT + 80),
            ("2019-05-01T10:20:35", "T2", "05.00", LEFT + 80),
            ("2019-05-06T10:20:21", "T1", "02.07", LEFT - 100),
        ]
    ):
        rng = np.random.default_rng(seed)
        paths = {}
        for key in ("blue", "green", "red", "nir", "swir16"):
            values = rng.integers(2000, 6000, (PX + 4, 18)).astype(np.uint16)
            paths[key] = write_raster(tmp_path / f"{key}{seed}.tif", values, left=left, top=TOP + 20)
        properties = {"platform": "sentinel-2a", "grid:code": tile, "s2:processing_baseline": baseline}
        made.append(item("sentinel-2-l1c", f"i{seed}", when, paths, **properties))
    fetched = fetch(static_catalog(tmp_path / "c", *made), "sentinel2")
    assert fetched.products == [["i0", "i2"], ["i3"]]
    valid = np.broadcast_to(fetched.series.valid, fetched.series.values.shape)
    assert valid[0].all() and valid[1, 0, :, :8].all() and not valid[1, 0, :, 8:].any()


def test_tiles_of_the_chip_s_own_zone_lie_on_top_at_the_time_of_the_first(tmp_path):
    _, near = optical(tmp_path, seed=1)
    x, y = to_utm("EPSG:32631").transform(CHIP.lon, CHIP.lat)
    values = np.full((200, 200), 1500, np.uint16)
    where = {"left": round(x, -1) - 1000, "top": round(y, -1) + 1000, "crs": "EPSG:32631"}
    far = dict.fromkeys(near, write_raster(tmp_path / "far.tif", values, **where))
    made = [
        item("sentinel-2-l1c", name, when, paths, **{"s2:processing_baseline": "02.14", "grid:code": name, **stated})
        for name, when, paths, stated in (
            ("31TGN", "2019-05-01T10:20:21", far, {"proj:epsg": 32631}),
            ("32TLT", "2019-05-01T10:20:35", near, {"proj:code": "EPSG:32632"}),
        )
    ]
    fetched = fetch(static_catalog(tmp_path / "c", *made), "sentinel2")
    with rasterio.open(near["blue"]) as file:
        assert (fetched.series.values[0, 0] == inner(file.read(1))).all()
    assert fetched.products == [["32TLT", "31TGN"]]
    assert fetched.series.time_ms.tolist() == [parse_time("2019-05-01T10:20:21")]


def test_a_tile_that_was_received_in_two_parts_is_whole(tmp_path):
    made = []
    for number, (baseline, seen) in enumerate((("05.09", slice(0, 12)), ("05.09", slice(8, 20)), ("02.07", slice(20)))):
        paths = {}
        for key in ("blue", "green", "red", "nir", "swir16"):
            values = np.zeros((PX + 4, PX + 4), np.uint16)
            values[seen] = 3000 + number
            paths[key] = write_raster(tmp_path / f"{key}{number}.tif", values, left=LEFT - 20, top=TOP + 20)
        properties = {"grid:code": "T1", "s2:processing_baseline": baseline}
        made.append(item("sentinel-2-l1c", f"S2A_{number}", "2019-05-01T10:20:21", paths, **properties))
    fetched = fetch(static_catalog(tmp_path / "c", *made), "sentinel2")
    assert fetched.products == [["S2A_0", "S2A_1"]]
    assert fetched.series.valid.all() and set(np.unique(fetched.series.values)) == {2000, 2001}


def test_images_outside_the_period_or_place_do_not_count(tmp_path):
    _, paths = optical(tmp_path)
    late = item("sentinel-2-l1c", "late", "2020-01-01T00:00:00", paths, **{"s2:processing_baseline": "02.14"})
    _, far = optical(tmp_path, seed=9, crs="EPSG:32631")
    away = item("sentinel-2-l1c", "away", "2019-05-01T10:00:00", far, **{"s2:processing_baseline": "02.14"})
    fetched = fetch(static_catalog(tmp_path / "c", late, away), "sentinel2")
    assert fetched.series is None and fetched.reason == "no image"


TAVEUNI = ChipGrid.around(179.9999, -16.8, PX)


ASTRIDE = dataclasses.replace(CHIP, lon=TAVEUNI.centre_degrees[0], lat=TAVEUNI.centre_degrees[1], grid=TAVEUNI)


def over_180(folder, written):
    """An image of 4 km around 180 degrees, its outline written in one of the ways that catalogues have."""
    values = np.random.default_rng(3).integers(1200, 6000, (400, 400)).astype(np.uint16)
    where = {"left": TAVEUNI.left - 1920, "top": TAVEUNI.top + 1920, "crs": TAVEUNI.crs}
    raster = write_raster(folder / "fiji.tif", values, **where)
    paths = dict.fromkeys(("blue", "green", "red", "nir", "swir16"), raster)
    made = item("sentinel-2-l1c", "a", "2019-05-01T22:20:21", paths, **{"s2:processing_baseline": "02.14"})
    west, south, east, north = made.bbox
    assert west < -179 and east > 179
    if written == "by corners":
        made.bbox = [east, south, west, north]
    elif written == "with heights":
        made.bbox = [east, south, 0.0, west, north, 900.0]
    elif written == "in two parts":
        made.bbox = [-180.0, south, 180.0, north]
        parts = ((east, 180.0), (-180.0, west))
        rings = [[[[a, south], [b, south], [b, north], [a, north], [a, south]]] for a, b in parts]
        made.geometry = {"type": "MultiPolygon", "coordinates": rings}
    return values[192 : 192 + PX, 192 : 192 + PX], made


@pytest.mark.parametrize("written", ["by extremes", "by corners", "with heights", "in two parts"])
def test_a_chip_astride_180_degrees_is_seen_however_its_images_outline_is_written(tmp_path, written):
    values, made = over_180(tmp_path, written)
    _, elsewhere = optical(tmp_path)
    away = item("sentinel-2-l1c", "b", "2019-05-01T10:20:21", elsewhere, **{"s2:processing_baseline": "02.14"})
    fetched = fetch(static_catalog(tmp_path / "c", made, away), "sentinel2", ASTRIDE)
    assert fetched.products == [["a"]] and fetched.series.valid.all()
    assert (fetched.series.values[0, 0] == values).all()


def test_an_api_is_asked_for_both_sides_of_180_degrees_and_nothing_between(tmp_path):
    values, made = over_180(tmp_path, "in two parts")
    with Api([made]) as api:
        fetched = fetch(api.url, "sentinel2", ASTRIDE)
        boxes = [query["bbox"] for query in api.searches]
    assert fetched.products == [["a"]] and (fetched.series.values[0, 0] == values).all()
    assert [box[2] for box in boxes[:1]] + [box[0] for box in boxes[1:]] == [180.0, -180.0]
    assert all(0 < box[2] - box[0] < 0.01 for box in boxes)
