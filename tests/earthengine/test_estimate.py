"""The estimate before, and the manifests of the way back."""

import json

import numpy as np
import pytest

from aef.earthengine.decode import bytes_per_pixel
from aef.earthengine.estimate import ALLOWANCES_H, estimate
from aef.earthengine.fetch import SLAB_BANDS, SLAB_BYTES
from aef.earthengine.planning import PeriodRule, planned_chips
from aef.earthengine.recipes import RECIPES, Frame
from aef.earthengine.sites import at, parse_periods
from aef.earthengine.upload import upload_manifest
from aef.sources import BUILT_IN
from aef.timecode import parse_period

YEAR = PeriodRule(parse_periods("2019-01-01/2020-01-01"))

# --- the estimate ----------------------------------------------------------------------------------------------------


def totals(*places, names=tuple(BUILT_IN), px=128, rule=YEAR):
    found = estimate(planned_chips([at(*p) for p in places], rule, px=px), [BUILT_IN[n] for n in names], in_flight=40)
    return found, {s.source: s for s in found.sources}


def test_estimate_counts_frames_bytes_and_requests():
    found, by_source = totals((8.5, 0.0))
    frames = Frame((), 0, None, BUILT_IN["sentinel2"].band_names)
    assert by_source["sentinel2"].frames == pytest.approx(73)
    assert (
        by_source["sentinel2"].bytes == pytest.approx(73 * 128 * 128 * 11)
        and bytes_per_pixel(RECIPES["sentinel2"], frames) == 11
    )
    per_slab = SLAB_BYTES // (128 * 128 * 11)
    assert by_source["sentinel2"].requests == 1 + -(-73 // per_slab)
    assert by_source["nlcd"].frames == 0  # not mapped there
    assert found.chips == 1 and found.requests == sum(s.requests for s in by_source.values())


def test_estimate_follows_latitude_period_and_number_of_chips():
    one, _ = totals((8.5, 0.0), names=["sentinel2"])
    north, _ = totals((8.5, 60.0), names=["sentinel2"])
    assert north.bytes == pytest.approx(2 * one.bytes, rel=1e-3)
    many, _ = totals(*[(8.5, 0.0 + k / 10) for k in range(5)], names=["sentinel2"])
    assert many.chips == 5 and many.bytes == pytest.approx(5 * one.bytes, rel=1e-3)
    two_years = PeriodRule(parse_periods("2019-01-01/2021-01-01"))
    longer, _ = totals((8.5, 0.0), names=["sentinel2"], rule=two_years)
    assert longer.bytes == pytest.approx(2 * one.bytes, rel=0.01)


def test_estimate_prints_the_share_of_each_allowance_and_calls_the_assumption_one():
    found, _ = totals((8.5, 0.0))
    text = "\n".join(found.lines())
    assert found.eecu_hours == pytest.approx(found.requests / 3600)
    assert all(name in text for name in ALLOWANCES_H) and "assumed 1 EECU-s per request" in text
    assert found.hours == pytest.approx(found.requests * 3 / 40 / 3600)


@pytest.mark.parametrize("name", [n for n in RECIPES if n in BUILT_IN and BUILT_IN[n].grid == "chip"])
def test_one_frame_of_a_paper_size_chip_fits_a_request(name):
    recipe, source = RECIPES[name], BUILT_IN[name]
    size = bytes_per_pixel(recipe, Frame((), 0, None, source.band_names)) * (128 + 2 * recipe.margin_px) ** 2
    assert size <= SLAB_BYTES <= 48 * 2**20 and source.channels <= SLAB_BANDS <= 1024


# --- the way back ----------------------------------------------------------------------------------------------------


def write_cog(path, dtype="int8", nodata=-128, names=True, **tags):
    import rasterio
    from rasterio.transform import from_origin

    values = np.zeros((64, 16, 16), dtype)
    profile = {
        "driver": "GTiff",
        "height": 16,
        "width": 16,
        "count": 64,
        "dtype": dtype,
        "crs": "EPSG:32632",
        "nodata": nodata,
    }
    with rasterio.open(path, "w", transform=from_origin(461420, 5217040, 10, 10), **profile) as file:
        file.write(values)
        file.update_tags(**tags)
        if names:
            for band in range(64):
                file.set_band_description(band + 1, f"A{band:02d}")
    return path


def test_upload_manifests_name_bands_no_data_and_period(tmp_path):
    pytest.importorskip("rasterio")
    cogs = [write_cog(tmp_path / "32N_1.tif"), write_cog(tmp_path / "32N 2.tif", "float32", None, names=False)]
    one, other = upload_manifest(
        cogs,
        bucket="gs://mine/fields/",
        collection="projects/demo/assets/fields",
        period=parse_period("2018-01-01/2019-01-01"),
        out=tmp_path / "m",
        properties={"model": "base"},
    )
    manifest = json.loads(one.read_text())
    assert manifest["name"] == "projects/demo/assets/fields/32N_1"
    assert manifest["tilesets"] == [{"id": "field", "sources": [{"uris": ["gs://mine/fields/32N_1.tif"]}]}]
    assert [b["id"] for b in manifest["bands"]] == [f"A{i:02d}" for i in range(64)] and manifest["bands"][5][
        "tilesetBandIndex"
    ] == 5
    assert (
        manifest["missingData"] == {"values": [-128]} and manifest["pyramidingPolicy"] == "SAMPLE"
    )  # codes have no mean
    assert (manifest["startTime"], manifest["endTime"]) == ("2018-01-01T00:00:00Z", "2019-01-01T00:00:00Z")
    assert manifest["properties"] == {"model": "base"}
    second = json.loads(other.read_text())
    assert second["name"].endswith("/32N_2") and second["pyramidingPolicy"] == "MEAN" and "missingData" not in second
    assert [b["id"] for b in second["bands"]][:2] == ["A00", "A01"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"bucket": "mine"}, "expected gs://"),
        ({"collection": "users/me/x"}, "expected projects/PROJECT/assets/NAME"),
        ({"cogs": []}, "no COG was given"),
    ],
)
def test_upload_refuses_what_earth_engine_would(tmp_path, changes, message):
    given = {
        "cogs": [tmp_path / "a.tif"],
        "bucket": "gs://b",
        "collection": "projects/demo/assets/f",
        "period": parse_period("2018-01-01/2019-01-01"),
        "out": tmp_path,
    }
    with pytest.raises(ValueError, match=message):
        upload_manifest(**{**given, **changes})
    with pytest.raises(FileNotFoundError, match="no such COG"):
        upload_manifest(**given)
    with pytest.raises(ValueError, match="same name"):
        upload_manifest(**{**given, "cogs": [tmp_path / "a.tif", tmp_path / "x" / "a.tif"]})


WHERE = {"bucket": "gs://b", "collection": "projects/demo/assets/f"}


def test_each_field_is_uploaded_under_the_period_and_maker_of_its_tags(tmp_path):
    pytest.importorskip("rasterio")
    tags = {"model_version": "small@400", "model_weights": "ab" * 32, "sources": "sentinel2", "long_name": "x"}
    halves = ("2021-01-01/2021-07-01", "2021-07-01/2022-01-01")
    cogs = [write_cog(tmp_path / f"f{n}.tif", period=period, **tags) for n, period in enumerate(halves)]
    found = [json.loads(path.read_text()) for path in upload_manifest(cogs, **WHERE, out=tmp_path / "m")]
    assert [(m["startTime"][:10], m["endTime"][:10]) for m in found] == [tuple(half.split("/")) for half in halves]
    assert found[0]["properties"] == {key: value for key, value in tags.items() if key != "long_name"}
    own = upload_manifest(cogs[:1], **WHERE, out=tmp_path / "m", properties={"model_version": "mine"})
    assert json.loads(own[0].read_text())["properties"]["model_version"] == "mine"


def test_a_period_that_contradicts_a_tag_or_is_unknown_writes_nothing(tmp_path):
    pytest.importorskip("rasterio")
    year = parse_period("2021-01-01/2022-01-01")
    cogs = [
        write_cog(tmp_path / "a.tif", period=str(year)),
        write_cog(tmp_path / "b.tif", period="2019-01-01/2020-01-01"),
    ]
    with pytest.raises(ValueError, match=r"b\.tif: its tags state the period 2019-01-01/2020-01-01, period= says 2021"):
        upload_manifest(cogs, **WHERE, out=tmp_path / "m", period=year)
    with pytest.raises(ValueError, match=r"c\.tif: its tags state no period: give period="):
        upload_manifest([cogs[0], write_cog(tmp_path / "c.tif")], **WHERE, out=tmp_path / "m")
    assert not (tmp_path / "m").exists()


def test_names_that_earth_engine_would_make_equal_are_refused(tmp_path):
    pytest.importorskip("rasterio")
    cogs = [write_cog(tmp_path / name, period="2021-01-01/2022-01-01") for name in ("a b.tif", "a_b.tif")]
    with pytest.raises(ValueError, match=r"a b\.tif and .*a_b\.tif have the same name in the collection, a_b: rename"):
        upload_manifest(cogs, **WHERE, out=tmp_path / "m")
