"""Where places lie and which files reach them: outlines, ids, tiles and coarse rasters that places share."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import rasterio
import yaml
from rasterio.transform import Affine

from aef.data.chips import read_chip
from aef.data.ingest.convert import convert, convert_place
from aef.data.ingest.places import IngestError, find_places
from aef.data.ingest.raster import RasterError
from aef.data.ingest.recipe import parse_recipe
from aef.data.ingest.series import SeriesBuilder
from aef.launcher.command import run
from aef.launcher.ingest import main
from aef.sources import BUILT_IN
from aef.timecode import parse_time
from tests.data.ingest.own_rasters import LEFT, entries, scene, write_scene


@pytest.mark.parametrize("up", [False, True], ids=["north-up", "south-up"])
def test_of_a_coarse_raster_that_many_places_share_each_takes_the_cells_around_it(folder, up):
    cells = np.random.default_rng(0).uniform(250, 300, (180, 360)).astype(np.float32)  # of a degree, the whole Earth
    rows, transform = (cells[::-1], Affine(1, 0, -180, 0, 1, -90)) if up else (cells, Affine(1, 0, -180, 0, -1, 90))
    profile = {"driver": "GTiff", "count": 1, "dtype": "float32", "crs": "EPSG:4326", "height": 180, "width": 360}
    with rasterio.open(folder / "2020_01.tif", "w", transform=transform, **profile) as file:
        file.write(rows[None])
    own = entries()
    own["inputs"].append(
        {
            "name": "weather",
            "match": "overlap",
            "glob": "2020_01.tif",
            "source": "era5_land",
            "weight": "none",
            "valid": "all",
        }
        | {
            "band_map": {"temperature_2m": 1},
            "time": {"from": "map", "map": {"north": "2020-01-01"}, "precision": "month"},
        }
    )
    rule = parse_recipe(own)
    chip, _ = convert_place(rule, find_places(rule, folder, ["north"])[0][0])
    series = chip.sources["era5_land"]
    band = series.bands.index("temperature_2m")
    west, step, north = series.transform[2], series.transform[4], series.transform[5]
    # The chip lies in one cell, 5 to 6 degrees east and 50 to 51 north.
    assert series.values.shape[2:] == (5, 5) and west == 3 and (north, step) == ((48, 1) if up else (53, -1))
    found = series.values[0, band][:: -1 if up else 1]
    assert series.valid[0, band].all() and np.array_equal(found, cells[90 - 53 : 90 - 48, 180 + 3 : 180 + 8])


@pytest.mark.parametrize("matched", ["overlap", "group"])
def test_tiles_of_a_coarse_source_lie_on_one_grid(folder, matched):
    cells = np.random.default_rng(0).uniform(250, 300, (6, 12)).astype(np.float32)  # of 0.001 degrees
    profile = {"driver": "GTiff", "count": 1, "dtype": "float32", "crs": "EPSG:4326", "height": 6, "width": 7}
    rule = parse_recipe(entries())
    lon, lat = find_places(rule, folder, ["north"])[0][0].lon_lat()
    west, north = lon - 0.006, lat + 0.003
    for name, first in (("a", 0), ("b", 5)):  # side by side under the middle of the place, two columns in both
        transform = Affine(0.001, 0, west + 0.001 * first, 0, -0.001, north)
        with rasterio.open(folder / "north" / f"coarse_{name}.tif", "w", transform=transform, **profile) as file:
            file.write(cells[None, :, first : first + 7])
    own = entries()
    own["inputs"].append(
        {
            "name": "weather",
            "match": matched,
            "glob": "north/coarse_*.tif",
            "source": "coarse",
            "weight": "none",
            "valid": "all",
        }
        | {"band_map": {"t": 1}, "dedupe": {"within_s": 0, "keep": "mosaic"}}
        | {"time": {"from": "map", "map": {"north": "2020-01-01"}, "precision": "month"}}
    )
    coarse = {
        "name": "coarse",
        "title": "weather",
        "bands": [{"name": "t", "unit": "K", "valid_min": 150, "valid_max": 373}],
    }
    coarse |= {"native_resolution_m": 100, "grid": "native", "time": "interval", "role": "target"}
    own["sources"] = [*own.get("sources", []), coarse]
    rule = parse_recipe(own)
    chip, _ = convert_place(rule, find_places(rule, folder, ["north"])[0][0])
    series = chip.sources["coarse"]
    col = round((series.transform[2] - west) / 0.001)
    row = round((north - series.transform[5]) / 0.001)
    height, width = series.values.shape[2:]
    assert col + width > 7 and series.valid.all()
    assert np.array_equal(series.values[0, 0], cells[row : row + height, col : col + width])


def test_one_id_for_several_places_is_refused(folder, tmp_path):
    own = entries()
    own["place"]["id"] = "mine"
    with pytest.raises(IngestError, match="'mine' names 2 places"):
        find_places(parse_recipe(own), folder)
    (report,) = convert(parse_recipe(own), folder, tmp_path / "chips", places=("north",))
    assert report.file == "mine.npz"


@pytest.mark.parametrize(
    ("group_by", "id", "words"),
    [
        (r"^(?P<place>.+)\.tif", "{place}", "without slashes and leading dot, found 'north/S2_20200105'"),
        (r"^(?P<place>[^/]+)/", ".{place}", "found '.north'"),
        (r"^(?P<place>[^/]*?)", "{place}", "found ''"),
        (r"^(?P<place>[^/]+)/", "{place}" * 60, "at most 200 bytes, found 300"),
    ],
)
def test_a_place_whose_chip_would_have_no_name_is_refused_before_any_is_read(folder, group_by, id, words):
    own = entries()
    own["place"] |= {"group_by": group_by, "id": id}
    with pytest.raises(IngestError, match=words):
        find_places(parse_recipe(own), folder)


def outlined(root: Path, corners: list[list[float]]) -> dict:
    """A place whose outline is a polygon of degrees, and its recipe."""
    write_scene(root / "here" / "S2_20200105.tif", scene(np.random.default_rng(0)))
    (root / "here" / "outline.json").write_text(json.dumps({"type": "Polygon", "coordinates": [corners]}))
    own = entries()
    own["place"]["bounds"] = {"geojson": "{place}/outline.json"}
    return own


def test_an_outline_over_the_antimeridian_is_a_small_one(tmp_path):
    rule = parse_recipe(outlined(tmp_path, [[179.999, 10], [-179.999, 10], [-179.999, 10.002]]))
    (place,) = find_places(rule, tmp_path)[0]
    assert place.grid.width < 30 and place.grid.height < 30 and abs(place.lon_lat()[0]) == pytest.approx(180, abs=1e-3)


@pytest.mark.parametrize("corners", [[[664_000, 5_612_000], [664_320, 5_611_680]], [[float("nan"), 5], [6, 5]]])
def test_an_outline_that_is_none_is_named(tmp_path, corners):
    rule = parse_recipe(outlined(tmp_path, corners))
    with pytest.raises(
        IngestError, match=r"place here: its outline .* is none in EPSG:4326: is the projection another"
    ):
        convert_place(rule, find_places(rule, tmp_path)[0][0])


def test_a_place_beyond_memory_is_named(folder, monkeypatch):
    def too_much(self):
        raise MemoryError

    monkeypatch.setattr(SeriesBuilder, "_dtype", too_much)
    rule = parse_recipe(entries())
    with pytest.raises(IngestError, match="north: source sentinel2: 3 frames of 5 bands and 32 x 32 px do not fit"):
        convert_place(rule, find_places(rule, folder)[0][0])


@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
def test_a_raster_that_lies_nowhere_is_refused_although_the_recipe_names_its_projection(tmp_path):
    path = tmp_path / "here" / "S2_20200105.tif"
    path.parent.mkdir()
    with rasterio.open(path, "w", driver="GTiff", count=5, dtype="uint16", height=32, width=32) as file:
        file.write(scene(np.random.default_rng(0)))
    rule = parse_recipe(entries(crs="EPSG:32631"))
    with pytest.raises(RasterError, match=r"S2_20200105.tif: gives the place's bounds but has no georeference"):
        convert_place(rule, find_places(rule, tmp_path)[0][0])


def test_a_place_may_bear_any_letters(tmp_path):
    place = "Äcker [Süd] 100%"
    write_scene(tmp_path / place / "S2_1.tif", scene(np.random.default_rng(0)))
    (tmp_path / place / "times.json").write_text('["2020-01-05T10:30:00"]')
    rule = parse_recipe(entries(time={"from": "sibling", "glob": "{place}/times.json"}))
    (report,) = convert(rule, tmp_path, tmp_path / "chips")
    chip = read_chip(tmp_path / "chips" / f"{place}.npz", BUILT_IN)
    assert report.unused == [] and chip.sources["sentinel2"].time_ms.tolist() == [parse_time("2020-01-05T10:30")]


def test_tiles_that_lie_on_no_place_are_said_to_be_unused(folder, tmp_path, capsys):
    write_scene(folder / "dem" / "here.tif", np.full((1, 200, 200), 321, np.int16), LEFT - 100)
    write_scene(folder / "dem" / "far.tif", np.full((1, 200, 200), 321, np.int16), LEFT + 90_000)
    own = entries()
    own["inputs"].append(
        {"name": "dem", "role": "static", "match": "overlap", "glob": "dem/*.tif", "source": "glo30", "weight": "none"}
        | {"band_map": {"elevation": 1}, "valid": "all", "accept": {"values": [321]}}
    )
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(own))
    given = ["--recipe", str(tmp_path / "mine.yaml"), "--input", str(folder), "--out", str(tmp_path / "chips")]
    assert run(main, given) == 0
    assert [line for line in capsys.readouterr().out.splitlines() if "unused" in line] == ["unused file: dem/far.tif"]
