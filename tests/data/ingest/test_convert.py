"""From a folder to chips: whole or not at all, a frame at a time, and every failure a named line."""

from __future__ import annotations

import os
import subprocess
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import rasterio
import xarray
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rasterio.transform import Affine

from aef.data.chips import ChipError, ChipFolder, read_chip
from aef.data.ingest.convert import convert, convert_place
from aef.data.ingest.places import IngestError, find_places
from aef.data.ingest.planes import subtract
from aef.data.ingest.raster import RasterError
from aef.data.ingest.recipe import parse_recipe
from aef.data.ingest.times import shift
from aef.launcher.command import run
from aef.launcher.ingest import main
from aef.settings_file import registry_of
from aef.sources import BUILT_IN
from aef.timecode import DAY_MS, parse_time
from tests.data.ingest.own_rasters import LEFT, TOP, entries, scene, write_scene

MOSAIC = {"within_s": 60, "keep": "mosaic"}
VEGETATION = {
    "name": "vegetation",
    "title": "a source of the user's own",
    "collections": ["mine"],
    "bands": [{"name": "NDVI", "unit": "1", "valid_min": -1, "valid_max": 1}],
    "role": "input",
    "native_resolution_m": 10,
    "frame_budget": 8,
}


def test_a_users_own_rasters_become_chips(folder, tmp_path):
    reports = list(convert(parse_recipe(entries()), folder, tmp_path / "chips"))
    chips = list(ChipFolder(tmp_path / "chips", BUILT_IN))
    assert [report.place for report in reports] == ["north", "south"] == [chip.place for chip in chips]
    series = chips[0].sources["sentinel2"]
    assert series.values.dtype == np.uint16 and series.frames == 3
    assert series.time_ms.tolist() == [parse_time(day) for day in ("2020-01-05", "2020-02-06", "2020-03-09")]
    with rasterio.open(folder / "north" / "S2_20200206.tif") as file:
        stored = file.read()
    assert (series.values[1, :4] == stored[:4]).all()
    assert (series.weight[1, 0] == np.where(np.isin(stored[4], [4, 5, 6]), 255, 0)).all()
    assert series.valid.shape == (3, 5, 32, 32) and not series.valid[:, 4].any()
    assert "B11" in reports[0].text() and reports[0].unused == []


@pytest.mark.parametrize(("left", "kind"), [(LEFT, np.uint16), (LEFT + 5, np.float32)])
def test_whole_numbers_stay_what_they_are_where_bilinear_has_nothing_to_interpolate(tmp_path, left, kind):
    stored = scene(np.random.default_rng(0))
    write_scene(tmp_path / "north" / "S2_20200105.tif", stored, left=left)
    rule = parse_recipe(entries(resample="bilinear"))
    chip, _ = convert_place(rule, find_places(rule, tmp_path)[0][0])
    values = chip.sources["sentinel2"].values
    assert values.dtype == kind
    assert np.array_equal(values[0, :4, :, :32], stored[:4]) == (kind == np.uint16)


def test_a_source_of_the_users_own_travels_with_the_chips(folder, tmp_path):
    own = entries() | {"sources": [VEGETATION]}
    own["inputs"].append(
        own["inputs"][0]
        | {"name": "ndvi", "source": "vegetation", "band_map": {"NDVI": {"var": "1", "transform": {"scale": 1e-4}}}}
    )
    out = tmp_path / "chips"
    list(convert(parse_recipe(own), folder, out))
    registry = registry_of(out)
    assert "vegetation" in registry
    chip = read_chip(out / "north.npz", registry, check_values=True)
    assert chip.sources["vegetation"].values.dtype == np.float32
    # A second recipe into the same folder keeps what the first one brought.
    list(convert(parse_recipe(entries()), folder, out, overwrite=True))
    assert "vegetation" in registry_of(out)


def test_workers_write_the_same_chips(folder, tmp_path):
    rule = parse_recipe(entries())
    one = list(convert(rule, folder, tmp_path / "one"))
    two = list(convert(rule, folder, tmp_path / "two", workers=2))
    assert [report.text() for report in one] == [report.text() for report in two]
    for name in ("north.npz", "south.npz"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


@pytest.fixture
def interrupted(folder, tmp_path):
    """A folder in which one of two places was converted, and that chip's time."""
    first = convert(parse_recipe(entries()), folder, tmp_path / "chips")
    next(first)
    first.close()
    assert sorted(path.name for path in (tmp_path / "chips").iterdir()) == ["north.npz", "unfinished.json"]
    return tmp_path / "chips", (tmp_path / "chips" / "north.npz").stat().st_mtime_ns


def test_an_interrupted_call_goes_on_after_the_chips_that_it_wrote(folder, interrupted):
    out, written = interrupted
    reports = list(convert(parse_recipe(entries()), folder, out))
    assert [report.place for report in reports] == ["north", "south"] and not (out / "unfinished.json").exists()
    assert "kept: an interrupted call wrote it" in reports[0].text() and reports[1].bands
    assert (out / "north.npz").stat().st_mtime_ns == written and len(ChipFolder(out, BUILT_IN)) == 2


def test_what_a_killed_call_left_half_written_is_removed(folder, interrupted):
    out, _ = interrupted
    killed = subprocess.Popen(["true"])
    killed.wait()
    (out / f".south.npz.{killed.pid}.tmp").touch()
    list(convert(parse_recipe(entries()), folder, out))
    assert not list(out.glob(".*"))


def test_a_call_for_one_place_leaves_the_rest_to_the_interrupted_one(folder, tmp_path):
    write_scene(folder / "west" / "S2_20200105.tif", scene(np.random.default_rng(2)), LEFT + 2000)
    out = tmp_path / "chips"
    first = convert(parse_recipe(entries()), folder, out)
    next(first)
    first.close()
    list(convert(parse_recipe(entries()), folder, out, places=("west",)))
    reports = list(convert(parse_recipe(entries()), folder, out))
    assert [report.place for report in reports if report.notes] == ["north", "west"]
    assert sorted(path.name for path in out.iterdir()) == ["north.npz", "south.npz", "west.npz"]


def test_chips_of_another_recipe_or_of_other_files_are_not_kept(folder, interrupted):
    out, _ = interrupted
    with pytest.raises(ChipError, match=r"1 of 2 chips are there already .*of another: recipe_digest \w+, now"):
        list(convert(parse_recipe(entries() | {"licence": "another"}), folder, out))
    os.utime(folder / "north" / "S2_20200206.tif", (1, 1))
    with pytest.raises(ChipError, match=r"north.npz\).*what they are made of changed"):
        list(convert(parse_recipe(entries()), folder, out))


def test_a_place_whose_files_were_put_right_is_made_beside_those_that_are_kept(folder, tmp_path):
    out, bad = tmp_path / "chips", folder / "south" / "S2_20200309.tif"
    whole = bad.read_bytes()
    bad.write_bytes(b"no raster")
    with pytest.raises(ValueError, match="S2_20200309"):
        list(convert(parse_recipe(entries()), folder, out))
    bad.write_bytes(whole)
    reports = list(convert(parse_recipe(entries()), folder, out))
    assert [bool(report.bands) for report in reports] == [False, True]


def test_the_same_source_defined_differently_is_refused(folder, tmp_path):
    own = entries(source="vegetation", band_map={"NDVI": {"var": "1", "transform": {"scale": 1e-4}}})
    list(convert(parse_recipe(own | {"sources": [VEGETATION]}), folder, tmp_path / "chips"))
    other = parse_recipe(own | {"sources": [VEGETATION | {"native_resolution_m": 20}]})
    with pytest.raises(ValueError, match="source 'vegetation' is defined twice, differently"):
        list(convert(other, folder, tmp_path / "chips", overwrite=True))


def test_reflectance_of_0_to_1_is_refused_until_the_recipe_scales_it(tmp_path):
    scaled = scene(np.random.default_rng(0)).astype(np.float32)
    scaled[:4] *= 1e-4
    write_scene(tmp_path / "in" / "north" / "S2_20200105.tif", scaled)
    with pytest.raises(ValueError, match=r"north: sentinel2: expected band medians of 100 to 12000 .*transform"):
        list(convert(parse_recipe(entries()), tmp_path / "in", tmp_path / "chips"))
    assert not list((tmp_path / "chips").glob("*.npz"))
    (report,) = convert(parse_recipe(entries(transform={"scale": 1e4})), tmp_path / "in", tmp_path / "chips")
    assert "SUSPICIOUS" not in report.text()


def test_an_offset_left_in_is_said_beside_the_table(folder, tmp_path):
    left_in = scene(np.random.default_rng(0))
    left_in[:4] += 1000
    write_scene(folder / "north" / "S2_20200105.tif", left_in)
    for day in ("20200206", "20200309"):
        (folder / "north" / f"S2_{day}.tif").unlink()
    north, south = convert(parse_recipe(entries()), folder, tmp_path / "chips")
    assert "  SUSPICIOUS: sentinel2 B2: no band is ever below 1000" in north.text()
    assert south.suspicions == []


@pytest.mark.parametrize(("lowest", "taken"), [(1000, 1000), (999, 0)])
def test_an_offset_is_taken_off_a_file_in_which_nothing_is_below_it(folder, lowest, taken):
    left_in = scene(np.random.default_rng(0))
    left_in[:4] += 1000
    left_in[0, 0, 0] = lowest  # no reflectance at all, or a file without the offset
    write_scene(folder / "north" / "S2_20200105.tif", left_in)
    rule = parse_recipe(entries(offset_rule={"subtract": 1000, "when_minimum_at_least": 1000}))
    chip, _ = convert_place(rule, find_places(rule, folder, ["north"])[0][0])
    assert np.array_equal(chip.sources["sentinel2"].values[0, 1:4], left_in[1:4] - taken)


def test_an_offset_is_taken_off_a_file_that_covers_the_place_in_part(folder):
    left_in = scene(np.random.default_rng(0))
    left_in[:4] += 1000
    left_in[:, :5] = 0  # the swath ends: no data, not the lowest reflectance
    write_scene(folder / "north" / "S2_20200105.tif", left_in)
    write_scene(folder / "north" / "S2_20200206.tif", np.zeros_like(left_in))
    rule = parse_recipe(entries(offset_rule={"subtract": 1000, "when_minimum_at_least": 1000}))
    chip, _ = convert_place(rule, find_places(rule, folder, ["north"])[0][0])
    series = chip.sources["sentinel2"]
    assert series.frames == 2 and np.array_equal(series.values[0, :4, 5:], left_in[:4, 5:] - 1000)


def test_an_offset_never_wraps_whole_numbers_and_never_loses_its_fraction(folder):
    assert subtract(np.array([200, 50], np.uint8), 1000).tolist() == [0, 0]
    assert subtract(np.array([200, 50], np.uint16), -1000).tolist() == [1200, 1050]
    rule = parse_recipe(entries(offset_rule={"map": {"north": 10.5}}))
    with pytest.raises(RasterError, match="whole numbers"):
        convert_place(rule, find_places(rule, folder, ["north"])[0][0])


def test_a_series_is_stored_in_a_type_that_holds_every_file(folder):
    later = scene(np.random.default_rng(0)).astype(np.float32)
    later[:4] += 0.25  # 2020-02-06 was resampled elsewhere, 2020-01-05 was not
    write_scene(folder / "north" / "S2_20200206.tif", later)
    rule = parse_recipe(entries())
    chip, _ = convert_place(rule, find_places(rule, folder, ["north"])[0][0])
    assert np.array_equal(chip.sources["sentinel2"].values[1, :4], later[:4])


def test_a_band_of_small_numbers_does_not_wrap_those_of_the_other_bands(tmp_path):
    bands = {"B2": np.uint8, "B8": np.uint16}  # a file per band, the first of them in 8 bits
    stored = {
        name: np.random.default_rng(0).integers(10, 250, (1, 32, 32)).astype(kind) for name, kind in bands.items()
    }
    stored["B8"] *= 16
    for name, array in stored.items():
        write_scene(tmp_path / "north" / f"S2_20200105_{name}.tif", array)
    own = entries(
        band_map={name: name for name in bands}, band_regex=r"_(?P<band>B\d)\.tif", weight="none", dedupe=MOSAIC
    )
    own["inputs"][0]["time"] = {"from": "file_name", "regex": r"_(?P<time>\d{8})_"}
    rule = parse_recipe(own)
    chip, _ = convert_place(rule, find_places(rule, tmp_path)[0][0])
    series = chip.sources["sentinel2"]
    assert series.values.dtype == np.uint16
    assert all(np.array_equal(series.values[0, series.bands.index(name)], array[0]) for name, array in stored.items())


def test_a_complex_raster_is_refused_by_name(folder, tmp_path):
    write_scene(folder / "north" / "S2_20200105.tif", scene(np.random.default_rng(0)).astype(np.complex64))
    for extra in ({}, {"offset_rule": {"subtract": 1000, "when_minimum_at_least": 1000}}):
        with pytest.raises(ValueError, match=r"S2_20200105\.tif: .*complex64.*amplitude"):
            list(convert(parse_recipe(entries(**extra)), folder, tmp_path / "chips"))


def test_chips_are_not_written_over_unless_asked(folder, tmp_path, capsys):
    recipe, out = tmp_path / "mine.yaml", tmp_path / "chips"
    recipe.write_text(yaml.safe_dump(entries()))
    options = ["--recipe", str(recipe), "--input", str(folder), "--out", str(out)]
    assert run(main, [*options, "--only", "north"]) == 0
    written = (out / "north.npz").stat().st_mtime_ns
    capsys.readouterr()
    assert run(main, options) == 1
    error = capsys.readouterr().err
    assert "1 of 2 chips are there already (north.npz)" in error and "--overwrite" in error and error.count("\n") == 1
    assert sorted(path.name for path in out.iterdir()) == ["north.npz"]
    assert run(main, [*options, "--overwrite"]) == 0
    assert (out / "south.npz").is_file() and (out / "north.npz").stat().st_mtime_ns > written


def test_a_failing_place_leaves_earlier_chips_and_no_pieces(folder, tmp_path):
    write_scene(folder / "south" / "S2_20200309.tif", np.zeros((4, 32, 32), np.uint16))
    out = tmp_path / "chips"
    with pytest.raises(ValueError, match=r"S2_20200309\.tif: has no variable '5'"):
        list(convert(parse_recipe(entries()), folder, out))
    assert sorted(path.name for path in out.iterdir()) == ["north.npz", "unfinished.json"]


@pytest.mark.parametrize(
    ("keep", "frames"), [("all", 4), ("first", 3), ("most_valid", 3), (None, "state a dedupe rule")]
)
def test_twins_follow_the_rule(folder, tmp_path, keep, frames):
    rng = np.random.default_rng(2)
    twin = scene(rng)
    twin[:, :8] = 0
    (folder / "north" / "S2_20200105.tif").rename(folder / "north" / "S2_20200105T100000.tif")
    write_scene(folder / "north" / "S2_20200105T095950.tif", twin)
    rule = parse_recipe(entries(**({"dedupe": {"within_s": 3600, "keep": keep}} if keep else {})))
    place = find_places(rule, folder, ["north"])[0][0]
    if isinstance(frames, str):
        with pytest.raises(ValueError, match=frames):
            convert_place(rule, place)
        return
    chip, _ = convert_place(rule, place)
    series = chip.sources["sentinel2"]
    assert series.frames == frames and chip.attributes["twins"] == {"sentinel2": 1}
    kept_whole = series.valid[0, 0].all()
    assert kept_whole == (keep == "most_valid")


def test_of_frames_that_follow_each_other_all_day_one_an_hour_is_kept(folder):
    rng = np.random.default_rng(2)
    for path in (folder / "north").iterdir():
        path.unlink()
    for minute in range(0, 150, 10):
        write_scene(folder / "north" / f"S2_20200105T{10 + minute // 60:02d}{minute % 60:02d}00.tif", scene(rng))
    rule = parse_recipe(entries(dedupe={"within_s": 3600, "keep": "first"}))
    chip, _ = convert_place(rule, find_places(rule, folder, ["north"])[0][0])
    start = parse_time("2020-01-05T10:00:00")
    assert ((chip.sources["sentinel2"].time_ms - start) // 60_000).tolist() == [0, 70, 140]


def test_a_mosaic_is_filled_from_the_next_file_and_overwritten_by_none(folder):
    rng = np.random.default_rng(2)
    upper, whole = scene(rng), scene(rng)
    upper[:, 8:] = 0
    write_scene(folder / "north" / "S2_20200105.tif", upper)
    write_scene(folder / "north" / "S2_20200105T000000.tif", whole)
    rule = parse_recipe(entries(dedupe={"within_s": 3600, "keep": "mosaic"}))
    chip, _ = convert_place(rule, find_places(rule, folder, ["north"])[0][0])
    found, bands = chip.sources["sentinel2"].values[0], slice(0, 4)  # the fifth plane classifies the scene
    assert np.array_equal(found[bands, :8], upper[bands, :8]) and np.array_equal(found[bands, 8:], whole[bands, 8:])


def test_frames_without_an_observation_do_not_exist(folder):
    write_scene(folder / "north" / "S2_20200420.tif", np.zeros((5, 32, 32), np.uint16))
    rule = parse_recipe(entries())
    chip, report = convert_place(rule, find_places(rule, folder, ["north"])[0][0])
    assert chip.sources["sentinel2"].frames == 3
    assert "1 without any observation left out" in report.frames["sentinel2"]


@pytest.mark.parametrize(
    ("fill", "refused"),
    [(0, None), (65535, "within one step of the limit of uint16"), (4444, "makes up"), (1, "one step of the limit")],
)
def test_a_fill_value_that_nobody_declared_is_refused(folder, fill, refused):
    array = scene(np.random.default_rng(3))
    array[:4, :4] = fill
    write_scene(folder / "north" / "S2_20200105.tif", array)
    rule = parse_recipe(entries())
    place = find_places(rule, folder, ["north"])[0][0]
    if refused is None:
        convert_place(rule, place)
        return
    with pytest.raises(ValueError, match=refused) as refusal:
        convert_place(rule, place)
    assert "S2_20200105.tif: north: input s2: 1 (band B2)" in str(refusal.value)
    declared = parse_recipe(entries(nodata={"values": [0, fill]}))
    chip, _ = convert_place(declared, find_places(declared, folder, ["north"])[0][0])
    assert not chip.sources["sentinel2"].valid[0, 0, :4].any()


def test_class_codes_stored_as_floats_become_integers(folder, tmp_path):
    codes = np.full((1, 32, 32), 41.0)
    codes[0, :4] = 82
    write_scene(folder / "north" / "NLCD_2021.tif", codes)
    own = entries()
    own["inputs"].append(
        {
            "name": "cover",
            "glob": "*/NLCD_*.tif",
            "source": "nlcd",
            "band_map": {"landcover": 1},
            "valid": {"in": [41, 82]},
            "weight": "none",
            "time": {"from": "map", "map": {"north": "2021-01-01"}, "step": "P1Y"},
        }
    )
    list(convert(parse_recipe(own), folder, tmp_path / "chips", places=("north",)))
    series = read_chip(tmp_path / "chips" / "north.npz", BUILT_IN, check_values=True).sources["nlcd"]
    assert series.values.dtype == np.int32 and set(np.unique(series.values)) == {41, 82}
    assert series.time_end_ms[0] == parse_time("2022-01-01")


def test_a_mask_in_another_file_is_joined_by_time(folder):
    for path in sorted((folder / "north").glob("S2_*.tif")):
        mask = np.full((1, 16, 16), 1, np.uint8)
        mask[0, :4] = int(path.stem[-1])
        profile = {"driver": "GTiff", "count": 1, "dtype": "uint8", "crs": "EPSG:32631"}
        with rasterio.open(
            path.with_name(path.name.replace("S2", "CLOUD")),
            "w",
            height=16,
            width=16,
            transform=Affine(20, 0, LEFT, 0, -20, TOP),
            **profile,
        ) as file:
            file.write(mask)
    own = entries(weight={"input": "clouds", "var": "1", "in": [5, 9]})
    own["inputs"].append({"name": "clouds", "role": "qa", "glob": "*/CLOUD_*.tif", "time": own["inputs"][0]["time"]})
    rule = parse_recipe(own)
    chip, _ = convert_place(rule, find_places(rule, folder, ["north"])[0][0])
    weight = chip.sources["sentinel2"].weight[:, 0]
    # Days end in 5, 6 and 9: the first 8 rows are clear on the first and the last of them.
    assert [int(frame[:8].mean()) for frame in weight] == [255, 0, 255] and (weight[:, 8:] == 0).all()


def test_a_mask_that_covers_less_than_the_bands_is_named(folder):
    write_scene(folder / "north" / "CLOUD_20200105.tif", np.zeros((1, 20, 20), np.uint8))
    own = entries(weight={"input": "clouds", "var": 1, "in": [0]})
    time = {"from": "file_name", "regex": r"_(?P<time>\d{8})"}
    own["inputs"].append({"name": "clouds", "role": "qa", "glob": "*/CLOUD_*.tif", "time": time})
    rule = parse_recipe(own)
    with pytest.raises(RasterError, match="input clouds has no 1 of the same time that covers all of it"):
        convert_place(rule, find_places(rule, folder, ["north"])[0][0])


def test_labels_of_finer_pixels_need_purity(folder):
    codes = np.full((1, 64, 64), 2, np.uint8)
    codes[0, :, :21] = 1
    profile = {"driver": "GTiff", "count": 1, "dtype": "uint8", "crs": "EPSG:32631"}
    with rasterio.open(
        folder / "north" / "codes.tif", "w", height=64, width=64, transform=Affine(5, 0, LEFT, 0, -5, TOP), **profile
    ) as file:
        file.write(codes)
    own = entries() | {
        "labels": [
            {
                "name": "cover",
                "glob": "*/codes.tif",
                "var": 1,
                "codes": {1: "field", 2: "wood"},
                "ignore": [0],
                "min_purity": 0.75,
                "fields": {"min_px": 4},
                "valid_period": "2020-01-01/2021-01-01",
            }
        ]
    }
    rule = parse_recipe(own)
    chip, _ = convert_place(rule, find_places(rule, folder, ["north"])[0][0])
    label = chip.labels["cover"]
    assert (label.values[:, :10] == 1).all() and (label.values[:, 10] == 0).all() and (label.values[:, 11:] == 2).all()
    assert sorted(np.unique(label.fields)) == [0, 1, 2] and label.valid_end_ms == parse_time("2021-01-01")
    del own["labels"][0]["codes"][2]
    rule = parse_recipe(own)
    with pytest.raises(ValueError, match="the code 2 is neither in codes nor in ignore"):
        convert_place(rule, find_places(rule, folder, ["north"])[0][0])


def write_cube(path: Path, frames: int, side: int) -> None:
    rng = np.random.default_rng(4)
    data = xarray.Dataset(
        {
            name: (("t", "y", "x"), rng.integers(100, 5000, (frames, side, side), dtype=np.uint16))
            for name in ("B2", "B3", "B4", "B8", "B11")
        },
        {
            "t": np.datetime64("2020-01-01", "ns") + np.arange(frames) * np.timedelta64(5, "D"),
            "y": TOP - 5 - 10.0 * np.arange(side),
            "x": LEFT + 5 + 10.0 * np.arange(side),
        },
        {"crs": "EPSG:32631"},
    )
    data.to_netcdf(path, encoding={name: {"chunksizes": (1, side, side)} for name in data.data_vars})


def test_memory_stays_below_four_chips(tmp_path):
    (tmp_path / "here").mkdir()
    write_cube(tmp_path / "here" / "cube.nc", frames=40, side=96)
    own = entries(
        glob="*/cube.nc",
        band_map={name: name for name in ("B2", "B3", "B4", "B8", "B11")},
        weight={"var": "B2", "range": [0, 3000]},
        time={"from": "coord", "var": "t"},
    )
    rule = parse_recipe(own)
    list(convert(rule, tmp_path, tmp_path / "warm"))
    tracemalloc.start()
    (report,) = convert(rule, tmp_path, tmp_path / "chips", compress=False)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    size = (tmp_path / "chips" / report.file).stat().st_size
    assert size > 3e6
    assert peak < 4 * size


def cube_with(root: Path, **changes) -> dict:
    """A cube of Sentinel-1 at ``root``/here and its recipe; ``changes`` replace variables or coordinates."""
    path = root / "here" / "cube.nc"
    path.parent.mkdir()
    write_cube(path, frames=3, side=16)
    data = xarray.load_dataset(path).assign(changes)
    data.to_netcdf(path)
    return entries(
        glob="*/cube.nc",
        source="sentinel1",
        band_map={"VV": {"var": "B2", "transform": {"scale": 0.001}}},
        weight="none",
        time={"from": "coord", "var": "t"},
        dedupe={"within_s": 3600, "keep": "most_valid"},
        metadata={"heading": {"var": "heading"}, "inclination": "missing"},
    )


def test_a_time_that_is_missing_is_no_time(tmp_path):
    times = np.array(["2020-01-05", "NaT", "2020-03-05"], "datetime64[ns]")
    rule = parse_recipe(cube_with(tmp_path, t=times, heading=("t", [1.0, 2.0, 3.0])))
    with pytest.raises(IngestError, match=r"cube.nc: input s2: 1 of 3 times are missing"):
        convert_place(rule, find_places(rule, tmp_path)[0][0])


def test_a_time_of_every_step_is_no_end(tmp_path):
    own = cube_with(tmp_path, heading=("t", [1.0, 2.0, 3.0]))
    own["inputs"][0]["time"]["anchor"] = "end"
    rule = parse_recipe(own)
    with pytest.raises(
        IngestError, match="anchor: end says that one time of a file is that of its last step; here are 3"
    ):
        convert_place(rule, find_places(rule, tmp_path)[0][0])


@pytest.mark.parametrize("heading", [("k", [1.0, 2.0]), ("t", ["up", "down", "up"]), (("t", "k"), np.ones((3, 2)))])
def test_metadata_that_is_no_number_per_step_is_named(tmp_path, heading):
    rule = parse_recipe(cube_with(tmp_path, heading=heading))
    with pytest.raises(
        RasterError, match=r"cube.nc: heading .metadata heading.: expected one number, or one for each of 3"
    ):
        convert_place(rule, find_places(rule, tmp_path)[0][0])


DAMAGED = {
    "tif": entries(),
    "nc": entries(glob="*/cube.nc", band_map={"B2": "B2"}, weight="none", time={"from": "coord", "var": "t"}),
}


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
@pytest.mark.parametrize("kind", sorted(DAMAGED))
def test_damaged_files_are_named(tmp_path_factory, kind, data):
    root = tmp_path_factory.mktemp("damaged")
    path = root / "here" / ("S2_20200105.tif" if kind == "tif" else "cube.nc")
    if kind == "tif":
        write_scene(path, scene(np.random.default_rng(5), 16))
    else:
        path.parent.mkdir()
        write_cube(path, frames=2, side=16)
    content = bytearray(path.read_bytes())
    if data.draw(st.booleans()):
        content = content[: data.draw(st.integers(0, len(content) - 1))]
    else:
        for _ in range(data.draw(st.integers(1, 20))):
            content[data.draw(st.integers(0, len(content) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    path.write_bytes(bytes(content))
    try:
        list(convert(parse_recipe(DAMAGED[kind]), root, root / "chips"))
    except (ValueError, OSError) as refusal:
        assert "\n" not in str(refusal)
        assert path.name in str(refusal) or "here" in str(refusal)
    assert not list((root / "chips").glob(".*"))


def test_the_command_prints_a_table_and_says_what_is_unused(folder, tmp_path, capsys):
    (folder / "notes.txt").write_text("x")
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(entries()))
    out = tmp_path / "chips"
    options = ["--recipe", str(tmp_path / "mine.yaml"), "--input", str(folder), "--out", str(out)]
    assert run(main, [*options, "--dry-run"]) == 0 and not out.exists()
    assert run(main, options) == 0
    printed = capsys.readouterr().out
    assert "sentinel2: 3 frames, 2020-01-05 to 2020-03-09" in printed and "unused file: notes.txt" in printed
    assert sorted(path.name for path in out.iterdir()) == ["north.npz", "south.npz"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--recipe", "nothing"], "no recipe 'nothing': known are"),
        (["--recipe", "nothing.yaml"], "nothing.yaml: no such file"),
        (["--recipe", "worldcereal_patches", "--input", "nowhere"], "nowhere: no such folder"),
        (["--recipe", "worldcereal_patches"], "no file belongs to a place of recipe worldcereal_patches"),
    ],
)
def test_the_command_refuses_in_one_line(folder, tmp_path, capsys, options, words):
    given = ["--input", str(folder), "--out", str(tmp_path / "chips"), *options]
    assert run(main, given) == 1
    error = capsys.readouterr().err
    assert error.startswith("aef ingest: error: ") and words in error and error.count("\n") == 1
    assert not (tmp_path / "chips").exists()


def test_days_and_months_follow_the_calendar():
    start = parse_time("2020-01-31T00:00:00")
    assert shift(start, "P8D", 2) == start + 16 * DAY_MS
    assert shift(parse_time("2020-12-01"), "P1M") == parse_time("2021-01-01")
    assert shift(parse_time("2020-03-01"), "P1M", -1) == parse_time("2020-02-01")
    assert shift(parse_time("2020-01-01"), "P1Y") == parse_time("2021-01-01")
    assert shift(parse_time("2020-01-01"), "PT6H", 4) == parse_time("2020-01-02")
    assert shift(start, "P1M") == parse_time("2020-02-29")
