"""From files to frames: twins, mosaics, cubes with a time axis, damaged files, and a frame at a time in memory."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import xarray
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from aef.data.ingest.convert import convert
from aef.data.ingest.places import IngestError
from aef.data.ingest.raster import RasterError
from aef.data.ingest.recipe import parse_recipe
from aef.data.ingest.times import shift
from aef.timecode import DAY_MS, parse_time
from tests.data.ingest.own_rasters import LEFT, TOP, entries, first_chip, scene, write_scene


@pytest.mark.parametrize(
    ("keep", "frames"), [("all", 4), ("first", 3), ("most_valid", 3), (None, "state a dedupe rule")]
)
def test_twins_follow_the_rule(folder, tmp_path, keep, frames):
    rng = np.random.default_rng(2)
    twin = scene(rng)
    twin[:, :8] = 0
    (folder / "north" / "S2_20200105.tif").rename(folder / "north" / "S2_20200105T100000.tif")
    write_scene(folder / "north" / "S2_20200105T095950.tif", twin)
    own = entries(**({"dedupe": {"within_s": 3600, "keep": keep}} if keep else {}))
    if isinstance(frames, str):
        with pytest.raises(ValueError, match=frames):
            first_chip(own, folder)
        return
    chip, _ = first_chip(own, folder)
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
    chip, _ = first_chip(entries(dedupe={"within_s": 3600, "keep": "first"}), folder)
    start = parse_time("2020-01-05T10:00:00")
    assert ((chip.sources["sentinel2"].time_ms - start) // 60_000).tolist() == [0, 70, 140]


def test_a_mosaic_is_filled_from_the_next_file_and_overwritten_by_none(folder):
    rng = np.random.default_rng(2)
    upper, whole = scene(rng), scene(rng)
    upper[:, 8:] = 0
    write_scene(folder / "north" / "S2_20200105.tif", upper)
    write_scene(folder / "north" / "S2_20200105T000000.tif", whole)
    chip, _ = first_chip(entries(dedupe={"within_s": 3600, "keep": "mosaic"}), folder)
    found, bands = chip.sources["sentinel2"].values[0], slice(0, 4)  # the fifth plane classifies the scene
    assert np.array_equal(found[bands, :8], upper[bands, :8]) and np.array_equal(found[bands, 8:], whole[bands, 8:])


def test_frames_without_an_observation_do_not_exist(folder):
    write_scene(folder / "north" / "S2_20200420.tif", np.zeros((5, 32, 32), np.uint16))
    chip, report = first_chip(entries(), folder)
    assert chip.sources["sentinel2"].frames == 3
    assert "1 without any observation left out" in report.frames["sentinel2"]


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
    own = cube_with(tmp_path, t=times, heading=("t", [1.0, 2.0, 3.0]))
    with pytest.raises(IngestError, match=r"cube.nc: input s2: 1 of 3 times are missing"):
        first_chip(own, tmp_path)


def test_a_time_of_every_step_is_no_end(tmp_path):
    own = cube_with(tmp_path, heading=("t", [1.0, 2.0, 3.0]))
    own["inputs"][0]["time"]["anchor"] = "end"
    with pytest.raises(
        IngestError, match="anchor: end says that one time of a file is that of its last step; here are 3"
    ):
        first_chip(own, tmp_path)


@pytest.mark.parametrize("heading", [("k", [1.0, 2.0]), ("t", ["up", "down", "up"]), (("t", "k"), np.ones((3, 2)))])
def test_metadata_that_is_no_number_per_step_is_named(tmp_path, heading):
    own = cube_with(tmp_path, heading=heading)
    with pytest.raises(
        RasterError, match=r"cube.nc: heading .metadata heading.: expected one number, or one for each of 3"
    ):
        first_chip(own, tmp_path)


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


def test_days_and_months_follow_the_calendar():
    start = parse_time("2020-01-31T00:00:00")
    assert shift(start, "P8D", 2) == start + 16 * DAY_MS
    assert shift(parse_time("2020-12-01"), "P1M") == parse_time("2021-01-01")
    assert shift(parse_time("2020-03-01"), "P1M", -1) == parse_time("2020-02-01")
    assert shift(parse_time("2020-01-01"), "P1Y") == parse_time("2021-01-01")
    assert shift(parse_time("2020-01-01"), "PT6H", 4) == parse_time("2020-01-02")
    assert shift(start, "P1M") == parse_time("2020-02-29")
