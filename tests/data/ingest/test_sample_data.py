"""Every recipe against numbers computed from the files without it: means, valid shares, times, corners, legends."""

from __future__ import annotations

import csv

import netCDF4
import numpy as np
import pytest
import rasterio
from rasterio.crs import CRS
from rasterio.warp import transform as transform_points

from aef.timecode import DAY_MS, parse_time

BELGIUM_1, BELGIUM_2 = "00002806639B424A", "000028085BF08E7E"
TANZANIA = "2021_TZA_COPERNICUS-GEOGLAM_POLY_1101950"


def stored(path, name):
    """A NetCDF variable as it is stored."""
    with netCDF4.Dataset(path) as data:
        data.set_auto_maskandscale(False)
        return np.array(data[name][:])


def band(chip, source, name):
    """Values (T, H, W) and their mask."""
    series = chip.sources[source]
    index = series.bands.index(name)
    return series.values[:, index], series.valid[:, min(index, series.valid.shape[1] - 1)]


def one(folder, pattern):
    (path,) = folder.glob(pattern)
    return path


class TestWorldCerealPatches:
    def test_20_metre_bands_are_repeated_exactly(self, converted, sample_data):
        path = one(sample_data("worldcereal_patches"), f"{BELGIUM_2}/S2_L2A_20m_*.nc")
        chip = converted("worldcereal_patches")[BELGIUM_2]
        for name in ("B05", "B12"):
            raw = stored(path, name)
            values, valid = band(chip, "sentinel2_l2a", name)
            assert values.dtype == np.uint16 and valid.all()
            assert (values == raw.repeat(2, 1).repeat(2, 2)).all()

    def test_weight_is_scl_4_to_6(self, converted, sample_data):
        classes = stored(one(sample_data("worldcereal_patches"), f"{BELGIUM_1}/S2_L2A_20m_*.nc"), "SCL")
        weight = converted("worldcereal_patches")[BELGIUM_1].sources["sentinel2_l2a"].weight[:, 0]
        assert (weight == np.where(np.isin(classes, [4, 5, 6]), 255, 0).repeat(2, 1).repeat(2, 2)).all()

    def test_times_are_those_of_the_file_and_of_the_withheld_list(self, converted, sample_data):
        folder = sample_data("worldcereal_patches")
        with netCDF4.Dataset(one(folder, f"{TANZANIA}/S2_L2A_20m_*.nc")) as data:
            clock = data["timestamp"]
            moments = netCDF4.num2date(clock[:], clock.units, only_use_cftime_datetimes=False)
        times = converted("worldcereal_patches")[TANZANIA].sources["sentinel2_l2a"].time_ms
        assert times.tolist() == [parse_time(moment.isoformat()) for moment in moments]
        with open(folder.parent / "withheld_dates.csv", newline="") as rows:
            withheld = [row for row in csv.DictReader(rows) if row["place"] == TANZANIA]
        assert len(withheld) == 20 and {parse_time(row["time_utc"]) for row in withheld} <= set(times.tolist())

    def test_landsat_keeps_what_is_neither_fill_nor_wrapped(self, converted, sample_data):
        raw = stored(one(sample_data("worldcereal_patches"), f"{BELGIUM_1}/L8_SR_10m_*.nc"), "B02")
        values, valid = band(converted("worldcereal_patches")[BELGIUM_1], "landsat8_sr", "B02")
        assert (valid == (raw < 60000)).all()
        assert values[valid].mean() == pytest.approx(1501, abs=0.5) and raw.mean() == pytest.approx(1975, abs=0.5)

    def test_radar_is_decibels_within_the_sensor_range(self, converted, sample_data):
        raw = stored(one(sample_data("worldcereal_patches"), f"{BELGIUM_1}/S1_*.nc"), "VH").repeat(2, 1).repeat(2, 2)
        values, valid = band(converted("worldcereal_patches")[BELGIUM_1], "sentinel1", "VH")
        assert (valid == (raw >= -300000)).all() and valid.mean() < 1
        assert values[valid].mean() == pytest.approx((raw / 1e4)[raw >= -300000].mean(), abs=1e-4)
        assert np.isnan(converted("worldcereal_patches")[BELGIUM_1].sources["sentinel1"].metadata).all()

    def test_terrain_of_the_tile_lies_under_its_place(self, converted, sample_data):
        with rasterio.open(one(sample_data("worldcereal_patches"), "dem/dem_31UES_*.tif")) as tile:
            raw = tile.read(1).astype(float)
        values, valid = band(converted("worldcereal_patches")[BELGIUM_2], "dem", "elevation")
        assert valid.all() and values.shape == (1, 64, 64)
        inner = values[0].reshape(32, 2, 32, 2).mean((1, 3))[1:-1, 1:-1]
        # Bilinear weights of a 20 m pixel's four quarters: 9/16 itself, 3/32 its neighbours, 1/64 the diagonals.
        cross = raw[:-2, 1:-1] + raw[2:, 1:-1] + raw[1:-1, :-2] + raw[1:-1, 2:]
        corners = raw[:-2, :-2] + raw[:-2, 2:] + raw[2:, :-2] + raw[2:, 2:]
        assert inner == pytest.approx(raw[1:-1, 1:-1] * 9 / 16 + cross * 3 / 32 + corners / 64, abs=1e-3)

    def test_corner_zone_and_weather(self, converted, sample_data):
        chip = converted("worldcereal_patches")[TANZANIA]
        assert chip.crs == "EPSG:32737" and chip.transform == (10, 0, 260900, 0, -10, 9595800)
        assert (chip.lon, chip.lat) == pytest.approx((36.850, -3.657), abs=2e-3)
        raw = stored(one(sample_data("worldcereal_patches"), f"{TANZANIA}/AgERA5_*.nc"), "precipitation_flux")
        values, valid = band(chip, "agera5_daily", "precipitation_flux")
        assert valid.all() and (values == raw).all() and (raw == 0).any()

    def test_labels_have_the_known_fields(self, converted):
        chips = converted("worldcereal_patches")

        def fields(name, code):
            labels = [chips[place].labels[name] for place in (BELGIUM_1, BELGIUM_2)]
            return sum(len(set(np.unique(label.fields[label.values == code])) - {0}) for label in labels)

        assert [fields("land_cover", code) for code in (11, 13, 60)] == [11, 16, 5]
        assert [fields("crop_type", code) for code in (1200, 9120, 5100)] == [9, 16, 3]
        assert set(chips[BELGIUM_1].labels["land_cover"].ignore) == {0, 99}


class TestWorldCerealMonthly:
    def test_months_without_data_are_no_frames(self, converted, sample_data):
        path = sample_data("worldcereal_monthly") / "worldcereal_preprocessed_inputs.nc"
        raw = stored(path, "S2-L2A-B02").view(np.uint16)
        chip = converted("worldcereal_monthly")["hesbaye"]
        values, valid = band(chip, "sentinel2_l2a_composite", "B02")
        assert values.shape == (10, 100, 100) and valid.all()
        assert values.mean() == pytest.approx(raw[raw != 65535].mean(), abs=0.01)
        assert values.mean() == pytest.approx(552, abs=1) and raw.mean() == pytest.approx(11383, abs=1)
        series = chip.sources["sentinel2_l2a_composite"]
        assert parse_time("2020-12-01") not in series.time_ms and parse_time("2021-02-01") in series.time_ms
        assert chip.transform == (10, 0, 664000, 0, -10, 5612120)

    def test_decibels_of_16_bit_numbers(self, converted, sample_data):
        path = sample_data("worldcereal_monthly") / "worldcereal_preprocessed_inputs.nc"
        raw = stored(path, "S1-SIGMA0-VV").view(np.uint16)
        values, valid = band(converted("worldcereal_monthly")["hesbaye"], "sentinel1_composite", "VV")
        assert valid.all() and values == pytest.approx(20 * np.log10(raw) - 83, abs=1e-4)

    def test_slope_in_degrees_becomes_sine_and_cosine(self, converted, sample_data):
        slope = stored(sample_data("worldcereal_monthly") / "worldcereal_preprocessed_inputs.nc", "slope")[0]
        values, _ = band(converted("worldcereal_monthly")["hesbaye"], "glo30", "sin_slope")
        assert values[0] == pytest.approx(np.sin(np.radians(slope)), abs=1e-6)

    def test_the_rotated_grid_is_interpolated_at_its_own_place(self, converted, sample_data):
        """Bilinear by hand at a few pixel centres, through an independent transformation."""
        path = sample_data("worldcereal_monthly") / "worldcereal_inputs.nc"
        raw, x, y = stored(path, "B08")[6].astype(float), stored(path, "x"), stored(path, "y")
        chip = converted("worldcereal_monthly")["picardy"]
        values, valid = band(chip, "sentinel2_l2a_composite", "B08")
        for row, col in ((8, 8), (5, 10), (11, 6)):
            east, north = chip.transform[2] + 10 * (col + 0.5), chip.transform[5] - 10 * (row + 0.5)
            (px,), (py,) = transform_points(CRS.from_string(chip.crs), CRS.from_epsg(3035), [east], [north])
            fx, fy = (px - x[0]) / (x[1] - x[0]), (py - y[0]) / (y[1] - y[0])
            i, j = int(fy), int(fx)
            u, v = fy - i, fx - j
            corners = raw[i : i + 2, j : j + 2]
            wanted = np.array([1 - u, u]) @ corners @ np.array([1 - v, v])
            assert valid[6, row, col] and values[6, row, col] == pytest.approx(wanted, rel=2e-3)

    def test_weather_is_one_cell(self, converted):
        values, valid = band(converted("worldcereal_monthly")["hesbaye"], "agera5_monthly", "precipitation_sum")
        assert values.shape == (12, 1, 1) and valid.all() and (values.min(), values.max()) == (3576, 16072)


class TestSnowGalileo:
    def test_values_days_and_mask_of_a_utm_file(self, converted, sample_data):
        with rasterio.open(one(sample_data("snowgalileo_8day"), "PR_20250406_*.tif")) as file:
            days = np.stack([file.read(38 * day + 4) for day in range(8)])
            flags = np.stack([file.read(38 * day + 37) for day in range(8)])
            elevation = file.read(305)
            corner = (file.transform.c, file.transform.f)
        chip = converted("snowgalileo_8day")["rockies_20250406"]
        assert (chip.transform[2], chip.transform[5]) == corner
        outside = elevation == 0
        present = [day for day in range(8) if (days[day][~outside] != -9999).any()]
        values, valid = band(chip, "sentinel2", "B2")
        start = parse_time("2025-03-30")
        assert chip.sources["sentinel2"].time_ms.tolist() == [start + day * DAY_MS + DAY_MS // 2 for day in present]
        assert (valid == ~outside).all() and (values[valid] == days[present][valid]).all()
        clear = (flags[present].astype(int) & (1 << 10 | 1 << 11)) == 0
        assert ((chip.sources["sentinel2"].weight[:, 0] == 255) == clear).all()
        assert band(chip, "glo30", "elevation")[0][0][~outside] == pytest.approx(elevation[~outside])

    def test_modis_cells_are_means_over_500_metres(self, converted, sample_data):
        with rasterio.open(one(sample_data("snowgalileo_8day"), "PR_20250406_*.tif")) as file:
            first = file.read(18)
        values, _ = band(converted("snowgalileo_8day")["rockies_20250406"], "modis_mod09ga", "sur_refl_b01")
        block = first[50:100, 50:100]
        assert values[0, 1, 1] == pytest.approx(block.mean(), rel=1e-5)

    def test_degrees_become_square_pixels(self, converted, sample_data):
        """141 x 101 pixels of 7.1 x 10.0 m are about 100 x 101 of 10 m."""
        chip = converted("snowgalileo_8day")["french_alps_20221012"]
        assert chip.crs == "EPSG:32631" and abs(chip.width - 102) <= 3 and abs(chip.height - 103) <= 3
        _, valid = band(chip, "sentinel2", "B2")
        assert valid[0].sum() * 100 == pytest.approx(141 * 101 * 7.096 * 9.98, rel=0.02)
        worldcover = chip.labels["worldcover_2021"]
        assert set(np.unique(worldcover.values)) <= {0, 10, 30, 40, 50}


class TestEarthEngineStacks:
    def test_the_inner_pixels_at_their_steps(self, converted, sample_data):
        with rasterio.open(one(sample_data("gee_monthly_stacks"), "98-togo_*.tif")) as file:
            third = file.read(2 * 17 + 4)
            grid = file.transform
        chip = converted("gee_monthly_stacks")["togo"]
        series = chip.sources["sentinel2_l1c_composite"]
        assert series.frames == 12 and series.time_ms[2] == parse_time("2019-02-06") + 60 * DAY_MS
        assert series.time_end_ms[-1] == parse_time("2020-02-01")
        values, valid = band(chip, "sentinel2_l1c_composite", "B02")
        inner = third[1:-1, 1:-1]
        assert values[2][valid[2]].mean() == pytest.approx(inner.mean(), rel=0.02)
        assert values[2][valid[2]].min() >= inner.min() and values[2][valid[2]].max() <= inner.max()
        lon, lat = grid.c + 8.5 * grid.a, grid.f + 8.5 * grid.e
        assert (chip.lon, chip.lat) == pytest.approx((lon, lat), abs=1e-4)

    def test_months_follow_the_calendar(self, converted):
        series = converted("gee_monthly_stacks")["honduras"].sources["sentinel1_composite"]
        assert series.frames == 24 and series.time_ms[14] == parse_time("2018-03-01")
        assert "no cloud rule" in series.note

    def test_slope_is_observed_where_it_is_a_number(self, converted):
        chip = converted("gee_monthly_stacks")["togo"]
        elevation, slope = (band(chip, "dem", name)[1] for name in ("elevation", "slope"))
        # 45 of the 225 inner pixels have no slope.
        assert slope.sum() / elevation.sum() == pytest.approx(180 / 225, abs=0.03)


class TestTerraMesh:
    def test_offset_is_taken_off_by_file(self, converted, sample_data):
        folder = sample_data("terramesh_examples")
        for place, offset in (("282D_485L_3_3", 1000), ("38D_378R_2_3", 0)):
            with rasterio.open(folder / "S2L1C" / f"{place}.tif") as file:
                raw = file.read(12).astype(float)
            values, valid = band(converted("terramesh_examples")[place], "sentinel2", "B11")
            assert valid.all() and (values[0] == raw - offset).all()

    def test_times_come_from_tags_and_siblings(self, converted, sample_data):
        folder = sample_data("terramesh_examples")
        chip = converted("terramesh_examples")["38D_378R_2_3"]
        for source, sibling in (("sentinel2", "NDVI"), ("sentinel2_l2a", "NDVI"), ("sentinel1_rtc", "S1RTC")):
            with rasterio.open(folder / sibling / "38D_378R_2_3.tif") as file:
                wanted = np.datetime64(file.tags()["datetime"], "ms").astype(np.int64)
                corner = (file.transform.c, file.transform.f)
            assert chip.sources[source].time_ms.tolist() == [wanted]
        assert (chip.transform[2], chip.transform[5]) == corner

    def test_land_cover_codes(self, converted, sample_data):
        with rasterio.open(sample_data("terramesh_examples") / "LULC" / "282D_485L_3_3.tif") as file:
            codes = file.read(1)
        label = converted("terramesh_examples")["282D_485L_3_3"].labels["land_cover"]
        assert (label.values == codes).all() and label.legend[2] == "trees"


class TestOpenEO:
    def test_values_and_days(self, converted, sample_data):
        path = sample_data("openeo_s1s2") / "cdse_sentinel1_grd.nc"
        raw = stored(path, "S1-SIGMA0-VH").view(np.uint16).astype(float)
        decibels = 20 * np.log10(raw) - 83
        chip = converted("openeo_s1s2")["kempen"]
        values, valid = band(chip, "sentinel1", "VH")
        inside = (decibels > -29.999) & (decibels < 9.999)
        assert (valid >= inside).all() and values[inside] == pytest.approx(decibels[inside], abs=1e-4)
        assert chip.sources["sentinel1"].time_ms[0] == parse_time("2023-04-03") + DAY_MS // 2
        assert "noon" in chip.sources["sentinel1"].note
        assert (chip.transform[2], chip.transform[5]) == (643260, 5676480)

    def test_composites_of_five_days(self, converted, sample_data):
        raw = stored(sample_data("openeo_s1s2") / "bap_quintad_cdse.nc", "S2-L2A-B04")
        series = converted("openeo_s1s2")["kempen"].sources["sentinel2_l2a_composite"]
        seen = np.isfinite(raw).any((1, 2))
        assert series.frames == seen.sum() == 19
        assert (series.values[:, 2] == raw[seen]).all()
        assert (series.time_end_ms - series.time_ms == 5 * DAY_MS).all()


class TestEoLearn:
    def test_scene_means_and_times(self, converted, sample_data):
        scenes = np.load(sample_data("eolearn_eopatch") / "REFERENCE_SCENES.npy", allow_pickle=False)
        chip = converted("eolearn_eopatch")["slovenia"]
        values, valid = band(chip, "sentinel2", "B8")
        assert chip.sources["sentinel2"].time_ms[2] == parse_time("2015-08-20T10:07:28")
        # Array order 2, 1, 4, 3, 0 of the overpasses: the third in time is the array's first.
        for frame, position in enumerate([4, 1, 0, 3, 2]):
            assert values[frame][valid[frame]].mean() == pytest.approx(scenes[position, ..., 7].mean() * 1e4, rel=2e-3)
        label = chip.labels["land_use"]
        assert (label.values == 2).sum() == pytest.approx(7601, abs=120)

    def test_the_outline_of_the_sidecar(self, converted):
        chip = converted("eolearn_eopatch")["slovenia"]
        assert chip.crs == "EPSG:32633" and chip.transform[2] == 465180 and chip.transform[5] == 5080260


def test_treesatai_by_product_id(converted, sample_data):
    path = one(sample_data("treesatai_ts"), "*.h5")
    raw, power = stored(path, "sen-2-data"), stored(path, "sen-1-des-data")
    names = stored(path, "sen-1-des-products")
    chip = converted("treesatai_ts")["Abies_alba_1_1005_WEFL_NLF"]
    values, valid = band(chip, "sentinel2_l2a", "B8A")
    assert chip.crs == "EPSG:32632" and (chip.height, chip.width) == (6, 6) and valid.all()
    assert (values == raw[:, 7]).all()
    assert chip.sources["sentinel2_l2a"].time_ms[0] == parse_time("2020-01-02T10:24:21")
    radar = chip.sources["sentinel1"]
    at = radar.time_ms.tolist().index(parse_time(str(names[0])[17:32]))
    assert radar.values[at, 0] == pytest.approx(10 * np.log10(power[0, 0]), abs=1e-4)
    assert chip.labels["species"].legend == {1: "silver fir (Abies alba)"}


def test_bigearthnet_joins_a_file_per_band(converted, sample_data):
    folder = sample_data("bigearthnet_pairs") / "s2-tiny" / "S2A_MSIL2A_20171221T112501_56_35"
    chip = converted("bigearthnet_pairs")["56_35"]
    series = chip.sources["sentinel2_l2a"]
    assert series.frames == 1 and series.time_ms[0] == parse_time("2017-12-21T11:25:01")
    for name, factor in (("B02", 1), ("B8A", 2)):
        with rasterio.open(one(folder, f"*_{name}.tif")) as file:
            raw, corner = file.read(1), (file.transform.c, file.transform.f)
        values, valid = band(chip, "sentinel2_l2a", name)
        assert valid.all() and (values[0] == raw.repeat(factor, 0).repeat(factor, 1)).all()
        assert (chip.transform[2], chip.transform[5]) == corner
    assert "Broad-leaved forest" in chip.attributes["corine_labels"]
    assert chip.sources["sentinel1"].time_ms[0] == parse_time("2017-12-21T06:42:38")


RECIPES = (
    "worldcereal_patches",
    "worldcereal_monthly",
    "snowgalileo_8day",
    "gee_monthly_stacks",
    "terramesh_examples",
    "openeo_s1s2",
    "eolearn_eopatch",
    "treesatai_ts",
    "bigearthnet_pairs",
)


@pytest.mark.parametrize("name", RECIPES)
def test_chips_say_where_they_come_from(converted, name):
    chips = converted(name)
    chip = chips[next(iter(chips))]
    assert chip.attributes["recipe"] == name and chip.attributes["licence"] and chip.attributes["attribution"]
    assert all(series.licence for series in chip.sources.values())
    assert not chip.synthetic
    report = chips.reports[chip.place].text()
    assert all(f"{source}:" in report for source in chip.sources) and "valid %" in report
