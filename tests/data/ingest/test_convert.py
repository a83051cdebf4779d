"""From a folder to chips: whole or not at all, resumed, shared among workers, and by the command."""

from __future__ import annotations

import os
import subprocess

import numpy as np
import pytest
import rasterio
import yaml

from aef.data.chips import ChipError, ChipFolder, read_chip
from aef.data.ingest.convert import convert
from aef.data.ingest.recipe import parse_recipe
from aef.launcher.command import run
from aef.launcher.ingest import main
from aef.settings_file import registry_of
from aef.sources import BUILT_IN
from aef.timecode import parse_time
from tests.data.ingest.own_rasters import LEFT, entries, scene, write_scene

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
