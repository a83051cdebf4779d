"""What an image becomes, product by product: offsets, scales, masks, decibels."""

import numpy as np
import pytest

from aef.earthengine.errors import RequestError
from aef.stac.products import SCL_NOT_CLEAR, product_of
from aef.timecode import parse_time
from tests.stac.catalogue import LEFT, PX, TOP, fetch, inner, item, optical, static_catalog, write_raster


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
