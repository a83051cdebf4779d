"""The estimate before, the table after, and the manifests of the way back."""

import json

import numpy as np
import pytest

from aef.data import plausibility
from aef.data.chips import Chip, SourceSeries, write_chip
from aef.data.plausibility import survey, table, wrong_scale
from aef.earthengine.decode import bytes_per_pixel
from aef.earthengine.estimate import ALLOWANCES_H, estimate
from aef.earthengine.fetch import SLAB_BANDS, SLAB_BYTES
from aef.earthengine.grid import ChipGrid
from aef.earthengine.planning import PeriodRule, planned_chips
from aef.earthengine.recipes import RECIPES, Frame
from aef.earthengine.sites import at, parse_periods
from aef.earthengine.upload import upload_manifest
from aef.sources import BUILT_IN
from aef.timecode import DAY_MS, parse_period, parse_time

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


# --- the table -------------------------------------------------------------------------------------------------------


def write_chips(folder, change=lambda values: values, count=10, seed=0):
    """Chips of Sentinel-2 with the order that air gives to dark targets, changed by ``change`` (T, 5, H, W)."""
    folder.mkdir(exist_ok=True)
    rng, source = np.random.default_rng(seed), BUILT_IN["sentinel2"]
    for number in range(count):
        grid = ChipGrid.around(8.5 + number / 50, 47.0, 16)
        dark = np.array([700, 550, 400, 300, 90]).reshape(1, 5, 1, 1)
        values = dark + rng.gamma(2.0, 500, (4, 5, 16, 16))
        times = parse_time("2019-01-01") + np.arange(4) * 10 * DAY_MS
        series = SourceSeries(
            change(values).astype(np.uint16),
            np.ones((4, 1, 16, 16), bool),
            times.astype(np.int64),
            bands=source.band_names,
        )
        write_chip(
            folder / f"c{number}.npz",
            Chip(f"c{number}", grid.crs, grid.affine, 16, 16, 8.5, 47.0, {"sentinel2": series}),
            BUILT_IN,
        )
    return folder


def suspicions(folder):
    return {row.band: row.suspicion for row in survey(folder, BUILT_IN) if row.suspicion}


def test_good_values_are_ok(tmp_path):
    rows = survey(write_chips(tmp_path / "c"), BUILT_IN)
    assert [r.band for r in rows] == list(BUILT_IN["sentinel2"].band_names) and not any(r.suspicion for r in rows)
    assert (
        rows[0].chips == 10
        and rows[0].observed == 1
        and rows[0].minimum <= rows[0].p1 <= rows[0].median <= rows[0].p99 <= rows[0].maximum
    )
    assert all(line.rstrip().endswith("ok") for line in table(rows)[1:])


def test_an_offset_that_was_left_in_is_seen(tmp_path):
    assert "offset of processing baseline" in suspicions(write_chips(tmp_path / "c", lambda v: v + 1000))["B2"]


def test_swapped_bands_are_seen(tmp_path):
    assert "bands swapped" in suspicions(write_chips(tmp_path / "c", lambda v: v[:, [2, 1, 0, 3, 4]]))["B2"]
    assert "bands swapped" in suspicions(write_chips(tmp_path / "d", lambda v: v[:, [4, 1, 2, 3, 0]]))["B2"]


def test_a_wrong_scale_is_seen(tmp_path):
    found = suspicions(write_chips(tmp_path / "c", lambda v: v / 100 + 1))
    assert set(found) == set(BUILT_IN["sentinel2"].band_names) and "wrong unit or scale" in found["B3"]


def test_an_offset_shows_on_one_chip_already(tmp_path):
    folder = write_chips(tmp_path / "c", lambda v: v + 1000, count=1)
    assert "offset of processing baseline" in suspicions(folder)["B2"]


def test_a_source_is_of_the_wrong_scale_when_all_its_bands_are():
    def rows(*medians, source="mine", unit="reflectance x 10000"):
        return [
            plausibility.BandSurvey(source, f"B{n}", unit, 1, 1.0, m, m, m, m, m, (0, 1e5))
            for n, m in enumerate(medians)
        ]

    assert "expected band medians of 100 to 12000 reflectance x 10000, found 0.03 to 0.4" in wrong_scale(
        rows(0.03, 0.4)
    )
    assert wrong_scale(rows(300, 12)) is None  # water is dark in the infrared
    assert wrong_scale(rows(float("nan"))) is None and wrong_scale(rows(0.1, unit="m")) is None
    assert "sentinel1" in wrong_scale(rows(0.1, 0.02, source="sentinel1", unit="dB"))  # linear power
    assert "landsat" in wrong_scale(
        [*rows(0.2, 0.1, unit="reflectance"), *rows(800, source="landsat", unit="reflectance")]
    )


def test_the_table_reads_a_bounded_number_of_chips(tmp_path, monkeypatch):
    folder, read = write_chips(tmp_path / "c", count=30), []
    real = plausibility.read_chip
    monkeypatch.setattr(plausibility, "read_chip", lambda path, registry: read.append(path) or real(path, registry))
    survey(folder, BUILT_IN, most=7)
    assert len(read) == 7 and read[0].name == "c0.npz" and len(set(read)) == 7


@pytest.mark.parametrize(
    ("source", "upper", "lower"),
    [
        ("sentinel1", "VV", "VH"),
        ("palsar2", "HH", "HV"),
        ("gedi", "rh100", "rh50"),
        ("era5_land", "temperature_2m", "temperature_2m_min"),
    ],
)
def test_every_source_with_ordered_bands_has_a_rule_against_swaps(source, upper, lower):
    rows = [
        plausibility.BandSurvey(source, band, "", 9, 1.0, low, low, low, low, low, (0, 1))
        for band, low in ((upper, 1.0), (lower, 2.0))
    ]
    assert any("swapped" in row.suspicion for row in plausibility._judged(rows))
    assert not any(
        "swapped" in row.suspicion
        for row in plausibility._judged([rows[0], plausibility.dataclasses.replace(rows[1], median=0.5)])
    )


# --- the way back ----------------------------------------------------------------------------------------------------


def write_cog(path, dtype="int8", nodata=-128, names=True):
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
