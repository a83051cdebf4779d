"""Chips from a STAC catalogue: offsets, scales, masks, overpasses; a static catalogue, an API, and real files."""

import dataclasses
import sys
from pathlib import Path

import numpy as np
import pytest
import rasterio

pytest.importorskip("pystac_client", reason="pystac-client is not installed (extra [stac])")
pytest.importorskip("odc.stac", reason="odc-stac is not installed (extra [stac])")
sys.path.insert(0, str(Path(__file__).parent))

from catalogue import LEFT, TOP, Api, item, static_catalog, write_raster

from aef.data.chips import ChipFolder
from aef.earthengine.download import ChipRules, Downloader
from aef.earthengine.errors import AccessError, RequestError, UnavailableError
from aef.earthengine.grid import ChipGrid
from aef.earthengine.manifest import Manifest, PlannedChip
from aef.launcher import download as command
from aef.settings_file import read_sources
from aef.sources import BUILT_IN, Registry
from aef.stac.fetch import TRIES, StacFetcher, available
from aef.stac.products import SCL_NOT_CLEAR, product_of
from aef.timecode import parse_period, parse_time

PX = 16
GRID = ChipGrid("EPSG:32632", LEFT, TOP, PX)
CHIP = PlannedChip("here_20190101", "here", *GRID.centre_degrees, GRID, parse_period("2019-01-01/2020-01-01"), 1)
KNOWN = BUILT_IN.extended(read_sources(command.FURTHER_SOURCES))
DATA = Path(__file__).resolve().parents[3] / "shared" / "data" / "bigearthnet_pairs"


@pytest.fixture(autouse=True)
def hurry(monkeypatch):
    """Tries follow each other at once."""
    monkeypatch.setattr("aef.stac.fetch.random.random", lambda: -0.5)


def fetcher(catalog, *names):
    return StacFetcher(str(catalog), Registry(KNOWN[name] for name in names), workers=2, longest_s=0.01)


def fetch(catalog, name, chip=CHIP):
    return fetcher(catalog, name).fetch(chip, KNOWN[name])


def optical(folder, seed=0, keys=("blue", "green", "red", "nir", "swir16"), low=1200, **where):
    """Rasters of 10 m, two pixels wider than the chip on every side."""
    rng = np.random.default_rng(seed)
    side = PX + 4
    rasters = {}
    for key in keys:
        values = rng.integers(low, 6000, (side, side)).astype(np.uint16)
        rasters[key] = (
            values,
            write_raster(folder / f"{key}{seed}.tif", values, left=LEFT - 20, top=TOP + 20, **where),
        )
    return {k: v for k, (v, _) in rasters.items()}, {k: p for k, (_, p) in rasters.items()}


def inner(values):
    return values[2:-2, 2:-2].astype(int)


# --- Sentinel-2: the offset ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("properties", "bands", "offset"),
    [
        ({"s2:processing_baseline": "02.14"}, None, 0),
        ({"s2:processing_baseline": "05.09"}, None, 1000),
        (
            {"s2:processing_baseline": "05.09", "earthsearch:boa_offset_applied": True},
            {"scale": 0.0001, "offset": -0.1},
            0,
        ),
        ({"s2:processing_baseline": "05.09"}, {"scale": 0.0001, "offset": -0.1}, 1000),
        ({"s2:processing_baseline": "05.09"}, {"scale": 0.0001, "offset": 0}, 0),
    ],
)
def test_the_offset_is_taken_off_once_and_only_once(tmp_path, properties, bands, offset):
    values, paths = optical(tmp_path)
    catalog = static_catalog(
        tmp_path / "c", item("sentinel-2-l1c", "a", "2019-05-01T10:20:21", paths, bands=bands, **properties)
    )
    series = fetch(catalog, "sentinel2").series
    assert series.values.dtype == np.uint16 and series.collection == "stac:sentinel-2-l1c"
    for channel, key in enumerate(("blue", "green", "red", "nir", "swir16")):
        assert (series.values[0, channel] == inner(values[key]) - offset).all()
    assert series.time_ms.tolist() == [parse_time("2019-05-01T10:20:21")] and "no cloud mask" in series.note


def test_an_item_that_states_no_offset_and_no_baseline_is_refused(tmp_path):
    _, paths = optical(tmp_path)
    catalog = static_catalog(tmp_path / "c", item("sentinel-2-l1c", "a", "2019-05-01T10:20:21", paths))
    with pytest.raises(RequestError, match="could be off by 1000"):
        fetch(catalog, "sentinel2")


def test_zeros_are_no_data_and_scene_classes_weight_the_loss(tmp_path):
    keys = [k for k, *_ in product_of("sentinel2_l2a").assets.values()]
    values, paths = optical(tmp_path, keys=keys)
    values["blue"][5, 5] = 0
    paths["blue"] = write_raster(tmp_path / "blue.tif", values["blue"], left=LEFT - 20, top=TOP + 20)
    classes = np.tile(np.arange(PX + 4, dtype=np.uint8) % 12, (PX + 4, 1))
    paths["scl"] = write_raster(tmp_path / "scl.tif", classes, left=LEFT - 20, top=TOP + 20)
    made = item("sentinel-2-l2a", "a", "2019-05-01T10:20:21", paths, **{"s2:processing_baseline": "02.14"})
    series = fetch(static_catalog(tmp_path / "c", made), "sentinel2_l2a").series
    assert (
        not series.valid[0, 0, 3, 3] and series.valid.sum() == series.valid.size - 1 and series.values[0, 0, 3, 3] == 0
    )
    assert (series.weight[0, 0] == np.where(np.isin(inner(classes), (0, *SCL_NOT_CLEAR)), 0, 255)).all()


# --- overpasses ------------------------------------------------------------------------------------------------------


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
    neighbour = ChipGrid.around(CHIP.lon, CHIP.lat, 200, "EPSG:32631")
    values = np.full((200, 200), 1500, np.uint16)
    where = {"left": neighbour.left, "top": neighbour.top, "crs": neighbour.crs}
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


# --- over the antimeridian -------------------------------------------------------------------------------------------

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


# --- the other products ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tagged", [None, 1], ids=["untagged", "tagged"])
def test_where_one_landsat_row_ends_the_flags_of_the_next_count(tmp_path, tagged):
    made = []
    where = {"left": LEFT - 60, "top": TOP + 60, "step": 30.0}
    for row, seen in (("north", slice(0, 6)), ("south", slice(6, 12))):
        inside = np.zeros((12, 12), bool)
        inside[seen] = True
        flags = np.where(inside, 1 << 6, 1).astype(np.uint16)  # outside its row: fill
        flags[6:, :6] |= inside[6:, :6] * np.uint16(1 << 4)
        paths = {"qa_pixel": write_raster(tmp_path / f"qa_{row}.tif", flags, nodata=tagged, **where)}
        for key in ("blue", "green", "red", "nir08", "swir16", "lwir11"):
            numbers = np.where(inside, 45000 if key == "lwir11" else 20000, 0).astype(np.uint16)
            paths[key] = write_raster(tmp_path / f"{key}_{row}.tif", numbers, nodata=0, **where)
        stated = {"scale": 0.00341802, "offset": 149.0}
        one = item("landsat-c2-l2", row, "2019-05-01T10:00:00", paths, platform="landsat-9", bands=stated)
        for key, asset in one.assets.items():
            if key != "lwir11":
                asset.extra_fields["raster:bands"] = [{"scale": 2.75e-05, "offset": -0.2}]
        made.append(one)
    series = fetch(static_catalog(tmp_path / "c", *made), "landsat_c2_l2").series
    assert series.valid.all() and series.frames == 1
    shadow = np.logical_and.outer(np.arange(PX) >= 12, np.arange(PX) < 12)
    assert (series.weight[0, 0] == np.where(shadow, 0, 255)).all()


def test_backscatter_power_becomes_db(tmp_path):
    rng = np.random.default_rng(0)
    power = {k: 10 ** rng.uniform(-2.8, 0.5, (PX + 4, PX + 4)).astype(np.float32) for k in ("vv", "vh")}
    power["vv"][4, 4], power["vv"][5, 5] = np.nan, 1e-6
    paths = {k: write_raster(tmp_path / f"{k}.tif", v, left=LEFT - 20, top=TOP + 20) for k, v in power.items()}
    series = fetch(
        static_catalog(tmp_path / "c", item("sentinel-1-rtc", "a", "2019-05-01T05:20:21", paths)), "sentinel1_rtc"
    ).series
    expected = 10 * np.log10(power["vv"][2:-2, 2:-2])
    seen = np.isfinite(expected) & (expected >= -30)
    assert (series.valid[0, 0] == seen).all() and not seen[2, 2] and not seen[3, 3]
    assert np.allclose(series.values[0, 0][seen], expected[seen], atol=1e-4)


def test_images_of_another_mode_are_left_out(tmp_path):
    paths = {
        k: write_raster(tmp_path / f"{k}.tif", np.full((20, 20), 0.1, np.float32), left=LEFT - 20, top=TOP + 20)
        for k in ("vv", "vh")
    }
    made = [
        item("sentinel-1-rtc", name, f"2019-05-0{day}T05:20:21", paths, **stated)
        for day, (name, stated) in enumerate(
            {"wide": {"sar:instrument_mode": "IW"}, "extra": {"sar:instrument_mode": "EW"}, "silent": {}}.items(),
            start=1,
        )
    ]
    fetched = fetch(static_catalog(tmp_path / "c", *made), "sentinel1_rtc")
    assert fetched.products == [["wide"], ["silent"]]


@pytest.mark.parametrize("everywhere", [True, False])
def test_an_image_of_black_water_is_no_frame_and_its_angle_no_observation(tmp_path, everywhere):
    made = []
    for name, land in (("water", PX + 4 if everywhere else 8), ("land", 0)):
        planes = {key: np.full((PX + 4, PX + 4), -12, np.float32) for key in ("vv", "vh")}
        for plane in planes.values():
            plane[:land] = -40
        planes["angle"] = np.full((PX + 4, PX + 4), 38, np.float32)
        where = {"left": LEFT - 20, "top": TOP + 20}
        paths = {k: write_raster(tmp_path / f"{k}_{name}.tif", v, **where) for k, v in planes.items()}
        when = f"2019-05-0{1 if land else 7}T05:20:21"
        made.append(item("sentinel-1-grd", name, when, paths, bands={"unit": "dB"}))
    fetched = fetch(static_catalog(tmp_path / "c", *made), "sentinel1")
    assert fetched.products == ([["land"]] if everywhere else [["water"], ["land"]])
    assert fetched.series.frames == len(fetched.products) and fetched.series.valid[-1, 4].all()
    assert everywhere or not fetched.series.valid[0, 4, :6].any()


def test_uncalibrated_amplitudes_are_refused(tmp_path):
    paths = {"vv": write_raster(tmp_path / "vv.tif", np.full((20, 20), 300, np.uint16), left=LEFT - 20, top=TOP + 20)}
    catalog = static_catalog(tmp_path / "c", item("sentinel-1-grd", "a", "2019-05-01T05:20:21", paths))
    with pytest.raises(RequestError, match="not calibrated; use the source sentinel1_rtc"):
        fetch(catalog, "sentinel1")


def test_landsat_is_scaled_as_stated_and_weighted_by_two_bits(tmp_path):
    rng = np.random.default_rng(0)
    side = 12
    numbers = {
        k: rng.integers(8000, 30000, (side, side)).astype(np.uint16)
        for k in ("blue", "green", "red", "nir08", "swir16", "lwir11")
    }
    numbers["lwir11"] = rng.integers(40000, 45000, (side, side)).astype(np.uint16)
    flags = np.full((side, side), 1 << 6, np.uint16)
    flags[:, :6] |= 1 << 4
    made = []
    where = {"left": LEFT - 60, "top": TOP + 60, "step": 30.0}
    paths = {k: write_raster(tmp_path / f"{k}.tif", v, **where) for k, v in numbers.items()}
    paths["qa_pixel"] = write_raster(tmp_path / "qa.tif", flags, **where)
    for name, platform, tier, hour in (
        ("nine", "landsat-9", "T1", 10),
        ("seven", "landsat-7", "T1", 10),
        ("adrift", "landsat-8", "T2", 9),
        ("early", "landsat-8", "RT", 8),
    ):
        properties = {"platform": platform, "landsat:collection_category": tier}
        one = item("landsat-c2-l2", name, f"2019-05-01T{hour:02d}:00:00", paths, **properties)
        for key, asset in one.assets.items():
            temperature = (
                {"scale": 0.00341802, "offset": 149.0} if key == "lwir11" else {"scale": 2.75e-05, "offset": -0.2}
            )
            asset.extra_fields["raster:bands"] = [temperature]
        made.append(one)
    fetched = fetch(static_catalog(tmp_path / "c", *made), "landsat_c2_l2")
    series = fetched.series
    assert fetched.products == [["nine"]]
    # The centre of a 30 m cell is the centre of the middle of its nine 10 m pixels.
    cells = numbers["blue"][2:7, 2:7] * 2.75e-05 - 0.2
    assert np.allclose(series.values[0, 0, 1:15:3, 1:15:3], cells, atol=1e-6)
    assert np.allclose(series.values[0, 5, 1:15:3, 1:15:3], numbers["lwir11"][2:7, 2:7] * 0.00341802 + 149, atol=1e-3)
    assert (series.weight[0, 0][:, :12] == 0).all() and (series.weight[0, 0][:, 12:] == 255).all()


def test_a_scale_that_is_not_stated_is_not_guessed(tmp_path):
    _, paths = optical(tmp_path, keys=("blue", "green", "red", "nir08", "swir16", "lwir11"))
    catalog = static_catalog(
        tmp_path / "c", item("landsat-c2-l2", "a", "2019-05-01T10:00:00", paths, platform="landsat-8")
    )
    with pytest.raises(RequestError, match="states no scale"):
        fetch(catalog, "landsat_c2_l2")


def test_elevation_brings_slope_and_aspect(tmp_path):
    east, south = np.meshgrid(np.arange(PX + 8.0), np.arange(PX + 8.0))
    plane = (100 + 3 * east - 4 * south).astype(np.float32)  # rises 0.3 to the east and 0.4 to the north
    path = write_raster(tmp_path / "dem.tif", plane, left=LEFT - 40, top=TOP + 40)
    series = fetch(static_catalog(tmp_path / "c", item("cop-dem-glo-30", "a", None, {"data": path})), "glo30").series
    slope = np.arctan(0.5)
    expected = (np.sin(slope), np.cos(slope), -0.6, -0.8)  # it falls to the south-west
    for channel, value in enumerate(expected, start=1):
        assert np.allclose(series.values[0, channel], value, atol=1e-5)
    assert series.time_ms is None and np.allclose(series.values[0, 0], plane[4:-4, 4:-4])


# --- catalogues ------------------------------------------------------------------------------------------------------


def test_an_api_is_searched_with_place_and_period(tmp_path):
    values, paths = optical(tmp_path)
    made = [
        item("sentinel-2-l1c", n, w, paths, **{"s2:processing_baseline": "02.14"})
        for n, w in (("a", "2019-05-01T10:20:21"), ("b", "2021-05-01T10:20:21"))
    ]
    with Api(made, failures=2) as api:
        assert available(api.url) == ["sentinel2"]
        fetched = fetch(api.url, "sentinel2")
        assert fetched.products == [["a"]] and (fetched.series.values[0, 0] == inner(values["blue"])).all()
        query = api.searches[-1]
        assert (
            query["collections"] == ["sentinel-2-l1c"]
            and query["datetime"] == "2019-01-01T00:00:00.000Z/2019-12-31T23:59:59.999Z"
        )
        west, south, east, north = query["bbox"]
        assert west < CHIP.lon < east and south < CHIP.lat < north


def test_an_api_that_stays_away_is_given_up_and_one_that_refuses_is_not_asked_again(tmp_path):
    _, paths = optical(tmp_path)
    made = [item("sentinel-2-l1c", "a", "2019-05-01T10:20:21", paths, **{"s2:processing_baseline": "02.14"})]
    with Api(made, failures=99) as api, pytest.raises(UnavailableError, match="after 4 tries"):
        fetch(api.url, "sentinel2")
    with Api(made, failures=99, status=400) as api:
        with pytest.raises(RequestError, match="refused"):
            fetch(api.url, "sentinel2")
        assert len(api.searches) == 1


def test_a_missing_file_of_an_item_is_an_answer(tmp_path, capfd):
    _, paths = optical(tmp_path)
    catalog = static_catalog(
        tmp_path / "c", item("sentinel-2-l1c", "a", "2019-05-01T10:20:21", paths, **{"s2:processing_baseline": "02.14"})
    )
    paths["red"].unlink()
    with pytest.raises(RequestError, match=r"a: asset red: there is no file .*red0\.tif") as refusal:
        fetch(catalog, "sentinel2")
    assert not isinstance(refusal.value, UnavailableError) and capfd.readouterr().err == ""


@pytest.mark.parametrize(("status", "tries"), [(404, 1), (410, 1), (503, TRIES)])
def test_an_asset_that_a_server_does_not_have_is_not_asked_for_again(tmp_path, status, tries):
    import rasterio.errors

    _, paths = optical(tmp_path)
    catalog = static_catalog(
        tmp_path / "c", item("sentinel-2-l1c", "a", "2019-05-01T10:20:21", paths, **{"s2:processing_baseline": "02.14"})
    )
    opened, asked = fetcher(catalog, "sentinel2"), []

    def refuse():
        asked.append(1)
        raise rasterio.errors.RasterioIOError(f"HTTP response code: {status}")

    with pytest.raises(RequestError, match=f"response code: {status}") as refusal:
        opened._patiently(refuse)
    assert len(asked) == tries and isinstance(refusal.value, UnavailableError) == (status == 503)


def test_the_command_says_which_file_is_missing(tmp_path, capsys):
    _, paths = optical(tmp_path)
    catalog = static_catalog(
        tmp_path / "c", item("sentinel-2-l1c", "a", "2019-05-01T10:20:21", paths, **{"s2:processing_baseline": "02.14"})
    )
    paths["red"].unlink()
    words = ["--from", "stac", "--catalog", catalog, "--place", f"{CHIP.lon},{CHIP.lat}", "--chip-px", str(PX)]
    words += ["--periods", "2019-01-01/2020-01-01", "--out", str(tmp_path / "chips"), "--sources", "sentinel2"]
    assert command.main(words) == 1
    printed = capsys.readouterr()
    assert "asset red: there is no file" in printed.out and "--retry-failed" in printed.err


def test_wrong_catalogues_are_named(tmp_path):
    with pytest.raises(AccessError, match="no such catalogue"):
        fetcher(tmp_path / "absent.json", "glo30")
    (tmp_path / "x.json").write_text("{}")
    with pytest.raises(AccessError, match="is no STAC catalogue"):
        fetcher(tmp_path / "x.json", "glo30")
    with pytest.raises(AccessError, match="cannot be reached"):
        fetcher("http://127.0.0.1:1/", "glo30")
    _, paths = optical(tmp_path)
    catalog = static_catalog(tmp_path / "c", item("sentinel-2-l1c", "a", "2019-05-01T10:20:21", paths))
    with pytest.raises(ValueError, match=r"has no collection for source glo30 .*it offers sentinel-2-l1c"):
        fetcher(catalog, "glo30")
    with pytest.raises(ValueError, match="'grace' does not come from a STAC catalogue"):
        product_of("grace")


# --- the whole way ---------------------------------------------------------------------------------------------------


def test_command_writes_chips_that_no_other_provider_may_join(tmp_path, capsys):
    keys = [k for k, *_ in product_of("sentinel2_l2a").assets.values()]
    _, paths = optical(tmp_path, keys=keys)
    plane = np.full((PX + 8, PX + 8), 300, np.float32)
    dem = write_raster(tmp_path / "dem.tif", plane, left=LEFT - 40, top=TOP + 40)
    catalog = static_catalog(
        tmp_path / "c",
        item("sentinel-2-l2a", "a", "2019-05-01T10:20:21", paths, **{"s2:processing_baseline": "02.14"}),
        item("cop-dem-glo-30", "d", None, {"data": dem}),
    )
    words = [
        "--out",
        str(tmp_path / "chips"),
        "--place",
        f"{CHIP.lon},{CHIP.lat}",
        "--periods",
        "2019-01-01/2020-01-01",
        "--chip-px",
        "16",
    ]
    assert command.main(["--from", "stac", "--catalog", catalog, *words]) == 0
    assert "chips: 1 written" in capsys.readouterr().out
    assert command.main(["--from", "stac", "--catalog", catalog, *words]) == 0  # the same command again
    from aef.settings_file import registry_of

    (chip,) = ChipFolder(tmp_path / "chips", registry_of(tmp_path / "chips"))
    assert {n: s.collection for n, s in chip.sources.items()} == {
        "sentinel2_l2a": "stac:sentinel-2-l2a",
        "glo30": "stac:cop-dem-glo-30",
    }
    with pytest.raises(ValueError, match="was made with sources"):
        command.main(["--project", "p", "--sources", "sentinel2", *words])


def test_real_sentinel_2_and_sentinel_1_files(tmp_path):
    """Sentinel-2 L2A and Sentinel-1 of one place in Ireland, 17 June 2017, through a static catalogue."""
    if not DATA.exists():
        pytest.skip("the sample data (../shared/data/bigearthnet_pairs) are not here")
    import rasterio

    optical_files = {
        p.stem.rsplit("_", 1)[1]: p for p in (DATA / "s2-tiny" / "S2A_MSIL2A_20170617T113321_4_55").glob("*.tif")
    }
    radar = {
        p.stem.rsplit("_", 1)[1].lower(): p
        for p in (DATA / "s1-tiny" / "S1A_IW_GRDH_1SDV_20170617T064724_29UPU_4_55").glob("*.tif")
    }
    bands = {k: v for k, v in optical_files.items() if k in product_of("sentinel2_l2a").assets}
    catalog = static_catalog(
        tmp_path / "c",
        item(
            "sentinel-2-l2a",
            "s2",
            "2017-06-17T11:33:21",
            bands,
            platform="sentinel-2a",
            **{"s2:processing_baseline": "02.05"},
        ),
        item("sentinel-1-grd", "s1", "2017-06-17T06:47:24", radar, bands={"unit": "dB"}, platform="sentinel-1a"),
    )
    sources = Registry(dataclasses.replace(KNOWN[n]) for n in ("sentinel2_l2a", "sentinel1"))
    grid = ChipGrid("EPSG:32629", 604800 + 160, 5834040 - 80, 96)
    chip = PlannedChip("ireland_20170101", "ireland", *grid.centre_degrees, grid, parse_period("2017-01-01/2018-01-01"))
    with Manifest(tmp_path / "m.sqlite", {}) as manifest:
        manifest.plan([chip])
        (tmp_path / "chips").mkdir()
        Downloader(
            StacFetcher(catalog, sources, workers=2),
            manifest,
            tmp_path / "chips",
            ChipRules(sources, 96),
            provider="STAC",
        ).run()
        assert manifest.chip_counts() == {"written": 1}
    (made,) = ChipFolder(tmp_path / "chips", KNOWN)
    window = rasterio.windows.Window(16, 8, 96, 96)
    for name, paths, keys in (
        ("sentinel2_l2a", bands, ("B02", "B03", "B04", "B08")),
        ("sentinel1", radar, ("VV", "VH")),
    ):
        series = made.sources[name]
        for key in keys:
            with rasterio.open(paths[key if name == "sentinel2_l2a" else key.lower()]) as file:
                truth = file.read(1, window=window)
            channel = KNOWN[name].band_names.index(key)
            valid = np.broadcast_to(series.valid, series.values.shape)[0, channel]
            assert valid.mean() > 0.99 and np.allclose(series.values[0, channel][valid], truth[valid], atol=1e-4)
    with rasterio.open(bands["B11"]) as file:
        coarse = file.read(1)
    # Centres of 20 m cells lie between 10 m pixels: their mean is within the cell's neighbourhood.
    fine = made.sources["sentinel2_l2a"].values[0, KNOWN["sentinel2_l2a"].band_names.index("B11")].astype(float)
    means = fine.reshape(48, 2, 48, 2).mean((1, 3))
    assert np.corrcoef(means.ravel(), coarse[4:52, 8:56].ravel())[0, 1] > 0.98
    held = made.sources["sentinel1"].valid[0].any(axis=(1, 2))
    assert held.tolist() == [True, True, False, False, False]
