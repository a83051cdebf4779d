"""What goes wrong in silence when a recipe leaves a field out: every case must be refused, or measurably wrong.

Each test first leaves the shipped recipe as it is where that is cheap, then takes one field out.
"""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import rasterio

from aef.data.chips import ChipError
from aef.data.ingest.places import IngestError
from aef.data.ingest.readers import RasterError
from aef.data.ingest.recipe import RecipeError
from aef.data.ingest.schema import TimeRule
from aef.data.ingest.times import FrameTimes
from aef.timecode import DAY_MS, parse_time
from tests.data.ingest.own_rasters import entries, first_chip, write_scene

BELGIUM_1, BELGIUM_2 = "00002806639B424A", "000028085BF08E7E"
REFUSED = (IngestError, RasterError, RecipeError, ChipError)


def valid_values(chip, source, band):
    series = chip.sources[source]
    index = series.bands.index(band)
    return series.values[:, index][series.valid[:, min(index, series.valid.shape[1] - 1)]]


# (recipe, place, inputs, input, field taken out, what the refusal says)
TAKEN_OUT = [
    ("worldcereal_patches", BELGIUM_1, ["s2_20m", "landsat_st"], "landsat_st", ["nodata"], "149 makes up"),
    ("worldcereal_patches", BELGIUM_1, ["s2_20m", "landsat_sr"], "landsat_sr", ["nodata"], "20000"),
    ("worldcereal_patches", BELGIUM_2, ["s2_20m", "landsat_sr"], "landsat_sr", ["nodata"], "one step of the limit"),
    ("worldcereal_patches", BELGIUM_1, ["s2_20m", "landsat_st"], "landsat_st", ["time", "precision"], "step"),
    ("worldcereal_patches", BELGIUM_2, ["s2_20m"], "s2_20m", ["dedupe"], "state a dedupe rule"),
    ("worldcereal_patches", BELGIUM_1, ["s2_20m", "landsat_sr"], "landsat_sr", ["dedupe"], "state a dedupe rule"),
    ("worldcereal_patches", BELGIUM_1, ["s2_20m", "weather"], "weather", ["pixel_m"], "add pixel_m"),
    ("worldcereal_patches", BELGIUM_1, ["s2_20m", "dem"], "dem", ["match"], "match: overlap"),
    ("worldcereal_patches", BELGIUM_1, ["s2_20m", "s1"], "s1", ["metadata"], "heading"),
    ("worldcereal_patches", BELGIUM_1, ["s2_20m", "s2_10m"], "s2_10m", ["accept"], "one step of the limit"),
    ("worldcereal_patches", BELGIUM_1, ["s2_20m"], "s2_20m", ["weight"], "weight is missing"),
    ("worldcereal_patches", BELGIUM_1, ["s2_20m"], "s2_20m", ["valid"], "valid is missing"),
    ("worldcereal_monthly", "hesbaye", ["s2_hesbaye"], "s2_hesbaye", ["nodata"], "65535 lies within one step"),
    ("worldcereal_monthly", "hesbaye", ["s2_hesbaye"], "s2_hesbaye", ["accept"], "lowest value 0"),
    ("worldcereal_monthly", "hesbaye", ["s2_hesbaye"], "s2_hesbaye", ["dtype_view"], "-1"),
    ("worldcereal_monthly", "hesbaye", ["s2_hesbaye", "terrain_hesbaye"], "terrain_hesbaye", ["collapse"], "collapse"),
    ("worldcereal_monthly", "hesbaye", ["s2_hesbaye", "weather_hesbaye"], "weather_hesbaye", ["collapse"], "collapse"),
    ("snowgalileo_8day", "rockies_20250406", ["landsat"], "landsat", ["nodata", "values"], "-9999 makes up"),
    ("snowgalileo_8day", "rockies_20250406", ["landsat"], "landsat", ["nodata", "all_zero"], "0 makes up"),
    ("snowgalileo_8day", "french_alps_20221012", ["landsat", "modis"], "modis", ["accept"], "makes up"),
    ("snowgalileo_8day", "rockies_20250510", ["landsat", "viirs_i"], "viirs_i", ["accept"], "makes up"),
    ("snowgalileo_8day", "french_alps_20221012", ["landsat", "s2_no_qa"], "s2_no_qa", ["weight"], "weight is missing"),
    ("snowgalileo_8day", "french_alps_20221012", ["landsat"], "landsat", ["layout"], "no variable 'L2'"),
    ("gee_monthly_stacks", "togo", ["s2", "terrain"], "terrain", ["band_map", "slope", "nodata"], "NaN"),
    ("gee_monthly_stacks", "honduras", ["s2"], "s2", ["time", "step"], "needs a step"),
    ("gee_monthly_stacks", "honduras", ["s2"], "s2", ["time", "regex"], "regex"),
    ("gee_monthly_stacks", "honduras", ["s2"], "s2", ["weight"], "weight is missing"),
    ("terramesh_examples", "282D_485L_3_3", ["s2_l1c"], "s2_l1c", ["time", "glob"], "glob"),
    ("terramesh_examples", "282D_485L_3_3", ["s2_l1c"], "s2_l1c", ["bands"], "no variable 'B02'"),
    (
        "eolearn_eopatch",
        "slovenia",
        ["scenes", "clouds", "data_mask"],
        "scenes",
        ["time", "index"],
        "5 times, found 68",
    ),
    ("eolearn_eopatch", "slovenia", ["scenes", "clouds", "data_mask"], "scenes", ["axes"], "axes"),
    ("treesatai_ts", "Abies_alba_1_1005_WEFL_NLF", ["s2"], "s2", ["time", "regex"], "regex"),
]


@pytest.mark.parametrize(
    ("recipe", "place", "inputs", "name", "path", "words"), TAKEN_OUT, ids=lambda value: str(value)[:40]
)
def test_a_recipe_without_the_field_is_refused(altered, sample_data, recipe, place, inputs, name, path, words):
    sample_data(recipe)
    changed = altered(recipe, inputs)
    if recipe == "worldcereal_monthly":
        changed.entries["place"]["bounds"] = {"input": ["s2_hesbaye"]}
    with pytest.raises(REFUSED, match=words) as refusal:
        changed.drop(name, *path).chip(place)
    assert "\n" not in str(refusal.value)


def test_a_terrain_model_that_declares_no_fill_is_refused_until_the_recipe_does(altered, tmp_path):
    """The sample's own tile hides no fill where its place lies: this one is written here, without a no-data tag."""
    profile = {"driver": "GTiff", "crs": "EPSG:32631", "width": 32, "height": 32}
    profile["transform"] = rasterio.transform.from_origin(664_000, 5_612_000, 10, 10)
    rng = np.random.default_rng(0)
    elevation = rng.integers(40, 90, (32, 32)).astype(np.int16)
    elevation[:6, :9] = -32767
    (tmp_path / "dem").mkdir()
    (tmp_path / "north").mkdir()
    with rasterio.open(tmp_path / "dem" / "tile.tif", "w", count=1, dtype="int16", **profile) as file:
        file.write(elevation, 1)
    for day in ("20200105", "20200206"):
        with rasterio.open(tmp_path / "north" / f"S2_{day}.tif", "w", count=1, dtype="uint16", **profile) as file:
            file.write(rng.integers(200, 4000, (32, 32)).astype(np.uint16), 1)

    recipe = altered("worldcereal_patches", ["s2_20m", "dem"])
    recipe.entries["place"] = {"group_by": "^(?P<place>north)/", "bounds": {"input": "s2_20m"}}
    images = {"glob": "*/S2_*.tif", "band_map": {"B05": 1}, "weight": "none", "resample": "bilinear"}
    images["time"] = {"from": "file_name", "regex": r"_(?P<time>\d{8})\.tif", "precision": "day"}
    recipe.input("s2_20m").update(images)
    chip = recipe.chip("north", tmp_path)
    terrain = chip.sources["dem"]
    assert (terrain.valid[0, 0] == (elevation != -32767)).all()
    assert valid_values(chip, "dem", "elevation").min() >= 40 and terrain.values.min() >= 0
    with pytest.raises(IngestError, match="-32767 lies within one step of the limit"):
        recipe.drop("dem", "nodata").chip("north", tmp_path)


def test_surface_temperature_without_its_fill_is_60_kelvin_warmer(converted):
    observed = valid_values(converted("worldcereal_patches")[BELGIUM_1], "landsat_st", "ST_B10")
    assert observed.mean() == pytest.approx(286.1, abs=0.05)


def test_surface_temperature_is_known_to_the_day_and_recurs_beside_surface_reflectance(converted):
    chip = converted("worldcereal_patches")[BELGIUM_1]
    temperature, reflectance = chip.sources["landsat_st"], chip.sources["landsat8_sr"]
    assert (temperature.time_ms % DAY_MS == 0).all()
    assert (temperature.time_end_ms - temperature.time_ms == DAY_MS).all()
    assert len(set(reflectance.time_ms // DAY_MS) & set(temperature.time_ms // DAY_MS)) >= 20


def test_twins_are_kept_and_counted(converted):
    chips = converted("worldcereal_patches")
    assert chips[BELGIUM_1].attributes["twins"] == {"landsat8_sr": 2}
    assert chips[BELGIUM_2].attributes["twins"] == {"sentinel2_l2a": 3}
    gaps = np.diff(chips[BELGIUM_2].sources["sentinel2_l2a"].time_ms)
    assert (gaps < 3_600_000).sum() == 3


def test_daily_weather_cannot_pass_for_monthly_weather(altered, sample_data):
    sample_data("worldcereal_patches")
    with pytest.raises(RecipeError, match="era5_land has no band dewpoint_temperature"):
        altered("worldcereal_patches", ["s2_20m", "weather"]).put("weather", "era5_land", "source").recipe()


def test_weather_keeps_its_own_cell_beside_the_chip(converted):
    chip = converted("worldcereal_patches")[BELGIUM_1]
    a, _, left, _, e, top = chip.sources["agera5_daily"].transform
    centre = (left + a / 2, top + e / 2)
    middle = (chip.transform[2] + 320, chip.transform[5] - 320)
    assert np.subtract(centre, middle) == pytest.approx((180, -180))


def test_monthly_stamps_are_intervals_of_a_month(altered, converted):
    series = converted("worldcereal_monthly")["picardy"].sources["sentinel2_l2a_composite"]
    assert series.time_ms[1] == parse_time("2021-02-01") and series.time_end_ms[1] == parse_time("2021-03-01")
    changed = altered("worldcereal_monthly", ["s2_picardy"])
    changed.entries["place"]["bounds"] = {"input": ["s2_picardy"]}
    changed.drop("s2_picardy", "time", "step").drop("s2_picardy", "time", "precision")
    with pytest.raises(IngestError, match="needs a step"):
        changed.chip("picardy")


def test_zero_precipitation_stays_while_zeros_outside_the_rectangle_go(converted):
    chip = converted("snowgalileo_8day")["rockies_20250406"]
    rain = valid_values(chip, "era5_land_daily", "total_precipitation_sum")
    assert len(rain) == 8 and (rain == 0).sum() == 1
    outside = ~chip.sources["sentinel2"].valid[0, 0]
    assert outside.sum() == 213
    assert converted("snowgalileo_8day")["rockies_20250510"].sources["sentinel2"].valid[0, 0].sum() == 101 * 107 - 634


def test_the_quality_band_of_2022_would_call_every_cloud_clear(altered, converted):
    kept = converted("snowgalileo_8day")["french_alps_20221012"].sources["sentinel2"]
    assert kept.weight is None and "no cloud rule" in kept.note
    changed = altered("snowgalileo_8day", ["landsat", "s2_no_qa"])
    changed.put("s2_no_qa", {"var": "QA60", "bits": {"clear": [10, 11]}}, "weight")
    believed = changed.chip("french_alps_20221012").sources["sentinel2"]
    bright = believed.values[1, 0][believed.valid[1, 0]].mean()
    assert (believed.weight[1, 0][believed.valid[1, 0]] == 255).all() and bright > 2000


def test_aspect_in_degrees_is_refused_and_its_mean_over_north_is_wrong(altered, sample_data):
    sample_data("snowgalileo_8day")
    changed = altered("snowgalileo_8day", ["landsat", "terrain"]).drop("terrain", "band_map", "sin_aspect", "transform")
    with pytest.raises(ChipError, match="sin_aspect"):
        changed.chip("french_alps_20221012")


def test_negative_reflectances_of_modis_are_values_because_the_recipe_says_so(altered, sample_data):
    sample_data("snowgalileo_8day")
    changed = altered("snowgalileo_8day", ["landsat", "modis"]).put("modis", {"ranges": [[0, 16000]]}, "accept")
    with pytest.raises(IngestError, match="lowest value -100 makes up"):
        changed.chip("french_alps_20221012")


def test_negative_reflectances_of_viirs_count_in_their_cell(converted, sample_data):
    """I1 is band 25 of 38 a day; the first 500 m cell is the mean of 50 x 50 pixels, -0.01 among them."""
    (path,) = sample_data("snowgalileo_8day").glob("PR_20250510_*.tif")
    with rasterio.open(path) as file:
        days = [file.read(38 * day + 25) for day in range(8)]
    lowest = min(plane[plane != 0].min() for plane in days)
    assert lowest == -0.01
    series = converted("snowgalileo_8day")["rockies_20250510"].sources["viirs_i"]
    for row, col in ((0, 0), (1, 1)):
        blocks = [plane[50 * row : 50 * row + 50, 50 * col : 50 * col + 50] for plane in days]
        means = [block[block != 0].mean() for block in blocks]
        assert series.values[:, 0, row, col] == pytest.approx(means, rel=1e-5)


def test_a_day_without_an_hour_is_its_noon_and_a_last_day_is_that_of_the_last_step():
    def days(**rule):
        time = TimeRule(source="file_name", regex=r"_(?P<time>\d{8})", precision="day", step="P8D", **rule)
        frames = FrameTimes(SimpleNamespace(time=time), "p", interval=False)
        found, _ = frames.of(SimpleNamespace(steps=3), Path(), "S2_20190310.tif", Path())
        return [(time_ms - parse_time("2019-03-10")) / DAY_MS for time_ms in found]

    assert days() == [0.5, 8.5, 16.5] and days(anchor="end") == [-15.5, -7.5, 0.5]


@pytest.mark.parametrize("stamp", ["20200201", "20200215", "20200229T235959"])
def test_a_month_is_the_same_wherever_in_it_it_is_stamped(stamp):
    rule = TimeRule(source="file_name", regex=r"_(?P<time>[\dT]+)", precision="month")
    frames = FrameTimes(SimpleNamespace(time=rule), "p", interval=True)
    starts, ends = frames.of(SimpleNamespace(steps=1), Path(), f"NDVI_{stamp}.tif", Path())
    assert (starts, ends) == ([parse_time("2020-02-01")], [parse_time("2020-03-01")])


def test_the_date_in_the_name_is_the_last_day(altered, converted):
    landsat = converted("snowgalileo_8day")["rockies_20250406"].sources["landsat"]
    noon = DAY_MS // 2
    assert landsat.time_ms.tolist() == [parse_time("2025-04-02") + noon]
    wrong = altered("snowgalileo_8day", ["landsat"]).drop("landsat", "time", "anchor").chip("rockies_20250406")
    assert wrong.sources["landsat"].time_ms[0] - landsat.time_ms[0] == 7 * DAY_MS


def test_the_blended_rim_brightens_honduras(altered, converted):
    inner = converted("gee_monthly_stacks")["honduras"]
    with_rim = altered("gee_monthly_stacks", ["s2"]).drop("s2", "erode_px").chip("honduras")
    series = with_rim.sources["sentinel2_l1c_composite"]
    assert series.valid.sum() > inner.sources["sentinel2_l1c_composite"].valid.sum()
    difference = valid_values(with_rim, "sentinel2_l1c_composite", "B02").mean()
    difference -= valid_values(inner, "sentinel2_l1c_composite", "B02").mean()
    assert difference > 80


def test_steps_must_reach_the_end_that_the_file_name_states(altered, sample_data):
    sample_data("gee_monthly_stacks")
    with pytest.raises(IngestError, match="24 steps of P30D end at 2018-12-22, but the file name says 2018-12-31"):
        altered("gee_monthly_stacks", ["s2"]).put("s2", "P30D", "time", "step").chip("honduras")


@pytest.mark.parametrize(
    ("place", "moved"), [("282D_485L_3_3", True), ("38D_378R_2_3", False), ("609U_541L_3_0", True)]
)
def test_a_radiometric_offset_left_in_moves_b11(altered, converted, place, moved):
    right = valid_values(converted("terramesh_examples")[place], "sentinel2", "B11").astype(float)
    wrong = valid_values(
        altered("terramesh_examples", ["s2_l1c"]).drop("s2_l1c", "offset_rule").chip(place), "sentinel2", "B11"
    ).astype(float)
    shift = np.log1p(wrong).mean() - np.log1p(right).mean()
    assert 0.5 < shift < 1.3 if moved else shift == 0


def test_radar_read_as_signed_has_no_logarithm(altered, sample_data):
    sample_data("openeo_s1s2")
    changed = altered("openeo_s1s2", ["s2_kempen", "s2_antwerp", "s1"]).drop("s1", "dtype_view")
    lost = changed.chip("kempen").sources["sentinel1"].valid[:, 0]
    kept = altered("openeo_s1s2", ["s2_kempen", "s2_antwerp", "s1"]).chip("kempen").sources["sentinel1"].valid[:, 0]
    assert kept.mean() > 0.995 and lost.sum() < kept.sum()


def test_without_a_range_signed_radar_is_refused(altered, sample_data):
    sample_data("openeo_s1s2")
    changed = (
        altered("openeo_s1s2", ["s2_kempen", "s2_antwerp", "s1"]).drop("s1", "dtype_view").put("s1", "all", "valid")
    )
    with pytest.raises(RasterError, match="check dtype_view"):
        changed.chip("kempen")


def test_scenes_in_array_order_would_not_match_their_index(altered, converted):
    def misfit(chip):
        """Median difference between the scenes' NDVI and the index series at the same times."""
        scenes, index = chip.sources["sentinel2"], chip.sources["sentinel2_ndvi"]
        near, red = (scenes.values[:, scenes.bands.index(b)].astype(float) for b in ("B8", "B4"))
        mine = (near - red) / np.maximum(near + red, 1)
        theirs = index.values[np.searchsorted(index.time_ms, scenes.time_ms), 0]
        return np.median(np.abs(mine - theirs)[scenes.valid[:, 0]])

    chip = converted("eolearn_eopatch")["slovenia"]
    assert misfit(chip) < 0.005
    changed = altered("eolearn_eopatch", ["scenes", "ndvi", "clouds", "data_mask"])
    changed.put("scenes", [0, 1, 2, 3, 4], "time", "index")
    assert misfit(changed.chip("slovenia")) > 0.05


def test_radar_passes_join_one_series_in_decibels(altered, converted):
    place = "Abies_alba_1_1005_WEFL_NLF"
    joined = converted("treesatai_ts")[place].sources["sentinel1"]
    assert joined.frames == 60 + 86 and (np.diff(joined.time_ms) > 0).all()
    assert -12 < np.median(joined.values[:, 0]) < -7
    with pytest.raises(IngestError, match="sentinel1: expected band medians of -35 to 0 dB"):  # linear power
        altered("treesatai_ts", ["s2", "s1_ascending"]).drop("s1_ascending", "transform").chip(place)


def test_masks_without_a_time_are_one_mask_or_refused(folder):
    own = entries(weight={"input": "clouds", "var": "1", "in": [0]})
    own["inputs"].append({"name": "clouds", "role": "qa", "glob": "*/CLOUD_*.tif"})

    water = np.zeros((1, 32, 32), np.uint8)
    water[0, :8] = 1
    write_scene(folder / "north" / "CLOUD_20200105.tif", water)
    weight = first_chip(own, folder)[0].sources["sentinel2"].weight[:, 0]
    assert (weight[:, :8] == 0).all() and (weight[:, 8:] == 255).all()
    write_scene(folder / "north" / "CLOUD_20200206.tif", water)
    first_chip(own, folder)
    write_scene(folder / "north" / "CLOUD_20200206.tif", 1 - water)
    with pytest.raises(RasterError, match=r"input clouds has other files that say otherwise.*add its time"):
        first_chip(own, folder)
    (folder / "north" / "CLOUD_20200206.tif").unlink()
    write_scene(folder / "north" / "CLOUD_20200105.tif", np.concatenate([water, 1 - water, water]))
    own["inputs"][1]["layout"] = {"per_step": ["1"], "n_time": 3, "order": "time_major"}
    with pytest.raises(RasterError, match="holds 3 steps of input clouds, which has no time"):
        first_chip(own, folder)
