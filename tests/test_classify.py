"""Maps of a user's own classes: labels on fields, accuracy over squares of ground left out, class maps."""

import csv
import json
import re
import sys
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import rasterio
from rasterio.warp import transform as warp
from rasterio.warp import transform_geom
from sklearn.model_selection import StratifiedGroupKFold

from aef.classify import METHODS, Accuracy, class_map, cross_validate, draw, fit, labelled_areas
from aef.data.chips import Chip, Label, SourceSeries, write_chip
from aef.launcher.classify import main
from aef.launcher.command import run as run_command
from aef.mapping.files import as_data_array, read_field, write_field
from aef.mapping.labels import LabelError, LabelledArea, Samples, read_labels, sample
from aef.mapping.made_by import MadeBy
from aef.sources import BUILT_IN
from aef.timecode import parse_period, parse_time

YEAR, NEXT = parse_period("2019-01-01/2020-01-01"), parse_period("2020-01-01/2021-01-01")
CRS, LEFT, TOP, SIDE = "EPSG:32631", 500_000.0, 5_600_000.0, 12
WATER, WOOD = np.eye(8)[0], np.eye(8)[1]


def chip(number=0):
    x = LEFT + number * 1000
    (lon,), (lat,) = warp(CRS, "EPSG:4326", [x + SIDE * 5], [TOP - SIDE * 5])
    return Chip(f"c{number}", CRS, (10.0, 0.0, x, 0.0, -10.0, TOP), SIDE, SIDE, lon, lat, {})


def field(number=0, period=YEAR, noise=0.05):
    """Water in the western half, wood in the eastern one."""
    directions = np.where(np.arange(SIDE) < SIDE // 2, WATER[:, None], WOOD[:, None])[:, None]
    vectors = directions + noise * np.random.default_rng(number).normal(size=(8, SIDE, SIDE))
    vectors = (vectors / np.linalg.norm(vectors, axis=0)).astype(np.float32)
    return as_data_array(vectors[None], chip(number), [period], [{"sources": "sentinel2"}], MadeBy("v"), single=True)


def degrees(row, col, number=0):
    """The middle of a pixel."""
    (lon,), (lat,) = warp(CRS, "EPSG:4326", [LEFT + number * 1000 + 10 * col + 5], [TOP - 10 * row - 5])
    return lon, lat


def points(path, places):
    """A CSV of (row, col, class, number of the field)."""
    with open(path, "w", newline="") as stream:
        table = csv.writer(stream)
        table.writerow(("Longitude", "lat", "cover"))
        table.writerows((*degrees(row, col, number), label) for row, col, label, number in places)
    return path


def box(rows, columns, number=0):
    """The outline of rows and columns of pixels, in degrees."""
    x, y = LEFT + number * 1000, TOP
    west, east, north, south = x + 10 * columns[0], x + 10 * columns[1], y - 10 * rows[0], y - 10 * rows[1]
    ring = [[west, south], [east, south], [east, north], [west, north], [west, south]]
    return transform_geom(CRS, "EPSG:4326", {"type": "Polygon", "coordinates": [ring]})


def geojson(path, areas):
    features = [{"type": "Feature", "properties": {"cover": label}, "geometry": geometry} for geometry, label in areas]
    path.write_text(json.dumps({"type": "FeatureCollection", "features": features}))
    return path


# --- labels ----------------------------------------------------------------------------------------------------------


def test_a_point_takes_the_pixel_that_holds_it(tmp_path):
    path = points(tmp_path / "labels.csv", [(3, 2, "water", 0), (11, 11, "wood", 0), (0, 0, "water", 7)])
    one = field()
    found = sample([one], read_labels(path, "cover"))
    assert found.classes == ("water", "wood") and found.codes.tolist() == [0, 1] and found.missed == 1
    assert np.array_equal(found.vectors, one.values[:, [3, 11], [2, 11]].T)


def test_an_area_takes_the_pixels_whose_centre_it_holds_and_a_narrow_one_what_it_touches(tmp_path):
    narrow = box((2, 2.3), (8.1, 8.4))
    path = geojson(tmp_path / "labels.geojson", [(box((1, 4), (0, 2)), "water"), (narrow, "wood")])
    one = field()
    found = sample([one], read_labels(path, "cover"))
    expected = [one.values[:, row, col] for row in (1, 2, 3) for col in (0, 1)] + [one.values[:, 2, 8]]
    assert np.array_equal(found.vectors, np.stack(expected)) and found.areas.tolist() == [0] * 6 + [1]
    fewer = sample([one], read_labels(path, "cover"), most=4)
    assert fewer.areas.tolist() == [0] * 4 + [1]
    assert {tuple(row) for row in fewer.vectors} <= {tuple(row) for row in found.vectors}


def test_pixels_without_a_vector_are_no_samples(tmp_path):
    path = geojson(tmp_path / "labels.geojson", [(box((0, 2), (0, 1)), "water"), (box((0, 1), (9, 10)), "wood")])
    one = field()
    one.values[:, 0, 0] = np.nan
    assert sample([one], read_labels(path, "cover")).areas.tolist() == [0, 1]
    one.values[:] = np.nan
    with pytest.raises(LabelError, match="at least two classes on the fields, found no label of 2 there"):
        sample([one], read_labels(path, "cover"))


def test_labels_of_one_square_of_ground_belong_together(tmp_path):
    places = [(0, 0, "water", 0), (0, 3, "water", 0), (0, 6, "wood", 0), (0, 6, "wood", 1)]
    areas = read_labels(points(tmp_path / "labels.csv", places), "cover")
    fields = [field(number) for number in range(2)]
    assert sample(fields, areas, block_m=50).blocks.tolist() == [0, 0, 1, 2]
    assert sample(fields, areas, block_m=500).blocks.tolist() == [0, 0, 0, 1]


def elsewhere(crs, lon, lat):
    """A field whose middle lies at a position."""
    (x,), (y,) = warp("EPSG:4326", crs, [lon], [lat])
    left, top = round(x / 10 - SIDE / 2) * 10.0, round(y / 10 + SIDE / 2) * 10.0
    there = Chip("there", crs, (10.0, 0.0, left, 0.0, -10.0, top), SIDE, SIDE, lon, lat, {})
    vectors = field().values[None]
    return as_data_array(vectors, there, [YEAR], [{"sources": "sentinel2"}], MadeBy("v"), single=True)


def at(lon, lat, label):
    return LabelledArea({"type": "Point", "coordinates": [lon, lat]}, label)


def test_labels_on_either_side_of_the_180th_meridian_lie_on_the_field_that_spans_it():
    taken = sample([elsewhere("EPSG:32760", 180.0, -17.0)], [at(179.9998, -17, "water"), at(-179.9998, -17, "wood")])
    assert taken.missed == 0 and taken.vectors.argmax(axis=1).tolist() == [0, 1]


def rectangle(west, south, east, north):
    ring = [[west, south], [east, south], [east, north], [west, north], [west, south]]
    return {"type": "Polygon", "coordinates": [ring]}


def test_of_a_label_that_spans_the_world_a_field_takes_what_lies_on_it():
    lon, lat = degrees(6, 6)  # where the pixels of row and column 6 have their middle
    south = rectangle(-180, -90, 180, lat)
    north = {"type": "MultiPolygon", "coordinates": [rectangle(-180, lat, 93, 90)["coordinates"]]}
    for one in (field(), field()[:, ::-1]):
        taken = sample([one], [LabelledArea(south, "south"), LabelledArea(north, "north")], most=SIDE * SIDE)
        rows = np.bincount(taken.areas, minlength=2) / SIDE
        assert taken.missed == 0 and abs(rows - [SIDE - 6, 6]).max() <= 1 and rows.sum() == SIDE
    holed = rectangle(-180, -90, 180, 90)
    holed["coordinates"].append(rectangle(lon, -80, 170, 80)["coordinates"][0])
    points = {"type": "MultiPoint", "coordinates": [[93.0, 0.0], [-87.0, 0.0], [lon, lat]]}
    taken = sample([field()], [LabelledArea(holed, "west"), LabelledArea(points, "point")], most=SIDE * SIDE)
    assert abs(np.bincount(taken.areas) / SIDE - [6, 1 / SIDE]).max() <= 1
    across = [LabelledArea(rectangle(-180, -90, -170, 90), "east"), LabelledArea(rectangle(0, -90, 180, 90), "west")]
    taken = sample([elsewhere("EPSG:32760", 180.0, -17.0)], across, most=SIDE * SIDE)
    assert abs(np.bincount(taken.areas) / SIDE - [6, 6]).max() <= 1


def test_labels_lie_on_a_field_that_was_thinned_where_its_coordinates_say():
    taken = sample([field()[:, 1::2, 1::2]], [at(*degrees(1, 1), "water"), at(*degrees(11, 11), "wood")])
    assert taken.missed == 0 and taken.codes.tolist() == taken.vectors.argmax(axis=1).tolist()


def test_a_label_on_fields_of_two_zones_is_never_on_both_sides_of_a_split():
    fields = [elsewhere("EPSG:32631", 6.0, 50.0), elsewhere("EPSG:32632", 6.0, 50.0)]
    taken = sample(fields, [at(5.9998, 50, "water"), at(6.0002, 50, "wood")], block_m=10)
    assert taken.areas.tolist() == [0, 1, 0, 1] and taken.blocks.tolist() == [0, 1, 0, 1]


def test_a_geopackage_in_metres_is_read_like_geojson_in_degrees(tmp_path):
    pyogrio = pytest.importorskip("pyogrio", reason="pyogrio, of the extra `vector`, is not installed")
    shapely = pytest.importorskip("shapely")
    shapes = [shapely.box(LEFT, TOP - 40, LEFT + 20, TOP - 10), shapely.Point(LEFT + 85, TOP - 25)]
    path = tmp_path / "labels.gpkg"
    pyogrio.raw.write(
        path, shapely.to_wkb(shapes), [np.array(["water", "wood"], object)], ["Cover"], crs=CRS, geometry_type="Unknown"
    )
    one = field()
    found = sample([one], read_labels(path, "Cover"))
    expected = [one.values[:, row, col] for row in (1, 2, 3) for col in (0, 1)] + [one.values[:, 2, 8]]
    assert np.array_equal(found.vectors, np.stack(expected)) and found.codes.tolist() == [0] * 6 + [1]


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.csv", "lon,lat,cover\n4,50,a\n4,fifty,b\n", "row 2: expected decimal degrees, found '4', 'fifty'"),
        ("a.csv", "lon,lat,cover\n4,50,a\n500000,5600000,b\n", r"row 2: expected degrees, found \(500000"),
        ("a.csv", "lon,lat,kind\n4,50,a\n", "row 1: expected a column 'cover', found lon, lat, kind"),
        ("a.csv", "easting,lat,cover\n4,50,a\n", "expected columns lon and lat, found easting, lat, cover"),
        ("a.csv", "lon,lat,cover\n4,50,a\n4,51,\n4,51,a\n", "expected 2 to 254 classes in 'cover', found 1"),
        ("a.geojson", '{"type"', "is no GeoJSON"),
        (
            "a.geojson",
            '{"type": "FeatureCollection", "features": [{"properties": {"cover": 1}, "geometry": null}]}',
            "row 1: its geometry is missing or broken",
        ),
        ("a.xlsx", "", "expected one of .csv, .geojson, .json, .gpkg, .shp, .fgb, .zip, found .xlsx"),
    ],
)
def test_labels_that_cannot_be_read_are_refused_by_row(tmp_path, name, content, words):
    (tmp_path / name).write_text(content)
    with pytest.raises(LabelError, match=words):
        read_labels(tmp_path / name, "cover")


def labelled_chip(number=0, year=2019):
    """Two fields of water, one of them in two parts, one of wood, ground without a field, and unknown ground."""
    values, fields = np.full((SIDE, SIDE), 1), np.zeros((SIDE, SIDE), np.int32)
    fields[:2], fields[4:6], fields[2:4, :6], fields[6:, 6:] = 7, 7, 8, 9
    values[:, 6:], values[10:] = 2, 255
    values[:6] = 1
    start, end = (parse_time(f"{at}-01-01") for at in (year, year + 1))
    label = Label(values, {1: "water", 2: "wood"}, (255,), start, end, fields)
    return replace(chip(number), labels={"cover": label})


def test_chips_that_carry_labels_are_labels_by_field():
    areas = labelled_areas([labelled_chip(), chip(1)], "cover", YEAR)
    assert [area.label for area in areas] == ["water", "water", "wood"]
    one = field()
    found = sample([one], areas, most=SIDE * SIDE)
    vectors = one.values
    whole = np.concatenate([vectors[:, [0, 1, 4, 5]].reshape(8, -1), vectors[:, 2:4, :6].reshape(8, -1)], axis=1)
    expected = np.concatenate([whole, vectors[:, 6:10, 6:].reshape(8, -1)], axis=1).T
    assert np.array_equal(found.vectors, expected)
    assert np.bincount(found.areas).tolist() == [4 * SIDE, 12, 24]


def test_labels_of_chips_hold_in_their_own_time():
    chips = [labelled_chip(), labelled_chip(1, 2020)]
    assert len(labelled_areas(chips, "cover", NEXT)) == 3 and len(labelled_areas(chips, "cover")) == 6
    with pytest.raises(LabelError, match=f"label 'cover' of two classes or more at any time of {NEXT}, found 0"):
        labelled_areas(chips[:1], "cover", NEXT)
    with pytest.raises(LabelError, match="chips with a label 'crop' of two classes or more, found 0"):
        labelled_areas(chips, "crop")


# --- classifier and accuracy -----------------------------------------------------------------------------------------


def samples(vectors, codes, blocks):
    codes = np.array(codes)
    return Samples(
        np.array(vectors, np.float32), codes, np.arange(len(codes)), np.array(blocks), ("water", "wood", "rock"), 0
    )


@pytest.mark.parametrize("method", METHODS)
def test_a_map_gives_every_vector_its_class_and_none_where_there_is_none(method):
    rng = np.random.default_rng(0)
    codes = np.arange(40) % 2
    vectors = np.stack([WATER, WOOD])[codes] + 0.1 * rng.normal(size=(40, 8))
    classifier = fit(method, samples(vectors, codes, np.arange(40)))
    one = field()
    one.values[:, 5, 5] = np.nan
    found, confidence = class_map(classifier, one.values)
    expected = np.tile((np.arange(SIDE) >= SIDE // 2).astype(int), (SIDE, 1))
    expected[5, 5] = -1
    assert np.array_equal(found, expected)
    assert np.isnan(confidence[5, 5]) and np.nanmin(confidence) > 0.5 and np.nanmax(confidence) <= 1


@pytest.mark.parametrize("method", METHODS)
def test_accuracy_is_that_of_ground_which_was_not_learnt_from(method):
    """Pixels of a square are alike and say nothing about other squares: any split by pixel would call nearly all right."""
    rng = np.random.default_rng(0)
    blocks = np.repeat(np.arange(40), 3)
    vectors = rng.normal(size=(40, 8))[blocks] + 0.001 * rng.normal(size=(120, 8))
    found = cross_validate(method, samples(vectors, blocks % 2, blocks))
    assert 0.25 < found.balanced < 0.75 and found.confusion.sum() == 120


def test_each_label_counts_once_and_a_class_in_one_square_is_not_judged():
    """(area, class, square, pixels)"""
    areas = [(0, 0, 0, 9), (1, 0, 1, 3), (2, 1, 0, 3), (3, 1, 1, 3), (4, 2, 2, 3)]
    repeated = np.array([area[:3] for area in areas for _ in range(area[3])])
    vectors = np.eye(8)[repeated[:, 1]].astype(np.float32)
    table = Samples(vectors, repeated[:, 1], repeated[:, 0], repeated[:, 2], ("water", "wood", "rock"), 0)
    found = cross_validate("knn", table)
    assert found.classes == ("water", "wood") and found.not_judged == ("rock",) and found.blocks == 2
    assert found.confusion == pytest.approx(np.diag([2, 2])) and found.balanced == 1
    assert "Not judged, as all their labels lie in one square: rock." in found.markdown()
    with pytest.raises(LabelError, match="two classes with labels in two squares"):
        cross_validate("knn", samples([WATER, WOOD], [0, 1], [0, 1]))


@pytest.mark.parametrize("method", METHODS)
def test_every_class_is_learnt_in_every_part_however_few_squares_there_are(method):
    """Wood lies in squares 1 and 3, and the library puts both into one of its two parts."""
    codes, blocks = np.array([0, 0, 0, 0, 1, 1, 1, 1]), np.array([3, 2, 2, 3, 3, 1, 3, 1])
    assert any(set(codes[train]) == {0} for train, _ in StratifiedGroupKFold(2).split(codes, codes, blocks))
    vectors = np.stack([WATER, WOOD])[codes] + 0.01 * np.random.default_rng(0).normal(size=(8, 8))
    labels = samples(vectors, codes, blocks)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert cross_validate(method, labels).balanced == 1
        assert np.array_equal(fit(method, labels).predict(labels.vectors), codes)


def test_few_labels_are_learnt_from_and_all_judge():
    """Labels of one and three pixels: what is counted is labels, not pixels."""
    areas = np.repeat(np.arange(12), np.tile([1, 3], 6))
    codes = areas // 6
    vectors = np.stack([WATER, WOOD])[codes] + 0.01 * np.random.default_rng(0).normal(size=(len(codes), 8))
    table = Samples(vectors.astype(np.float32), codes, areas, areas // 2, ("water", "wood"), 0)
    drawn = draw(table, 2, seed=0)
    assert [len(np.unique(areas[drawn][codes[drawn] == code])) for code in (0, 1)] == [2, 2]
    assert set(drawn) == set(np.flatnonzero(np.isin(areas, areas[drawn])))  # a label with all of its pixels
    among = np.flatnonzero(areas >= 3)
    assert set(draw(table, 9, seed=0, rows=among)) == set(among)
    assert not np.array_equal(areas[draw(table, 1, seed=1)], areas[draw(table, 1, seed=2)])
    assert cross_validate("logistic", table, shots=2).confusion == pytest.approx(np.diag([6, 6]))
    # The first label of wood is called water: of one label a class this alone may be what is learnt.
    vectors[areas == 6] = vectors[0]
    scores = [cross_validate("knn", replace(table, vectors=vectors), 1, seed).balanced for seed in range(6)]
    assert min(scores) < max(scores) <= 1


def test_recall_is_of_what_is_so_and_precision_of_what_is_called_so():
    found = Accuracy(("water", "wood"), np.array([[6.0, 2.0], [3.0, 1.0]]), 9, ())
    assert found.recall.tolist() == [0.75, 0.25] and found.precision == pytest.approx([6 / 9, 1 / 3])
    assert (found.overall, found.balanced) == (7 / 12, 0.5)
    assert "| wood | 4 | 0.250 | 0.333 | 3.0 | 1.0 |" in found.markdown()


# --- the command -----------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "fields").mkdir()
    for number in range(3):
        write_field(tmp_path / "fields" / f"c{number}.tif", field(number))
    places = [
        (row, col, "water" if col < 6 else "wood", number)
        for number in range(3)
        for row, col in ((1, 1), (8, 3), (2, 10))
    ]
    points(tmp_path / "labels.csv", places)
    return tmp_path


def call(folder, *more):
    options = ["--fields", folder / "fields", "--labels", folder / "labels.csv", "--column", "cover"]
    return run_command(main, [str(word) for word in (*options, "--out", folder / "maps", *more)])


def test_a_class_map_is_one_command(folder, capsys):
    assert call(folder) == 0
    text = capsys.readouterr().out
    assert "9 labels, 0 of them on no field; 9 pixels learnt from." in text and "Balanced accuracy 1.000" in text
    figures = json.loads((folder / "maps" / "accuracy.json").read_text())
    assert figures["accuracy"]["confusion"] == [[6, 0], [0, 3]] and figures["command"].startswith("aef classify ")
    with (
        rasterio.open(folder / "maps" / "c1_classes.tif") as file,
        rasterio.open(folder / "fields" / "c1.tif") as source,
    ):
        codes = file.read(1)
        assert (file.crs, file.transform, file.nodata) == (source.crs, source.transform, 0)
        assert file.tags()["class_2"] == "wood" and file.tags()["period"] == str(YEAR)
        assert file.colormap(1)[2][:3] == (0x56, 0xB4, 0xE9)
    assert np.array_equal(codes, np.tile(np.where(np.arange(SIDE) < 6, 1, 2), (SIDE, 1)))
    with rasterio.open(folder / "maps" / "c1_confidence.tif") as file:
        assert file.nodata == 255 and 50 < file.read(1).min() <= file.read(1).max() <= 100
    legend = list(csv.DictReader((folder / "maps" / "legend.csv").open()))
    assert [(row["class"], row["pixels"], row["hectares"]) for row in legend] == [
        ("water", "216", "2.16"),
        ("wood", "216", "2.16"),
    ]
    assert (folder / "maps" / "classes.png").read_bytes().startswith(b"\x89PNG")


def test_without_matplotlib_only_the_picture_is_missing(folder, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert call(folder) == 0
    assert "no picture: matplotlib is not installed" in capsys.readouterr().out
    assert (folder / "maps" / "legend.csv").exists() and not (folder / "maps" / "classes.png").exists()


def test_the_picture_shows_fields_that_have_a_vector(folder, capsys, monkeypatch):
    empty = field(0)
    empty.values[:] = np.nan
    write_field(folder / "fields" / "c0.tif", empty)
    monkeypatch.setattr("aef.mapping.picture.PANELS", 1)
    shown = []
    with monkeypatch.context() as patch:
        patch.setattr("aef.classify.write_picture", lambda path, panels, classes: shown.extend(panels))
        assert call(folder) == 0
    assert [panel.title for panel in shown] == ["c1"]
    assert np.array_equal(shown[0].vectors, read_field(folder / "fields" / "c1.tif").values)
    monkeypatch.setattr("aef.mapping.field_windows.SHOWN_PX", 4)  # every third pixel, and there are none
    for number in range(3):
        holed = field(number)
        holed.values[:, ::3, ::3] = np.nan
        write_field(folder / "fields" / f"c{number}.tif", holed)
    assert call(folder) == 0
    assert "no picture: none of the pixels that it would show has a vector" in capsys.readouterr().out


def test_labels_may_be_those_of_chips_and_few(folder, capsys):
    (folder / "chips").mkdir()
    seen = SourceSeries(np.ones((1, 5, SIDE, SIDE), np.uint16), np.ones((1, 1, SIDE, SIDE), bool), np.array([YEAR[0]]))
    for number in range(4):
        one = replace(labelled_chip(number), sources={"sentinel2": seen})
        write_chip(folder / "chips" / f"c{number}.npz", one, BUILT_IN)
    assert call(folder, "--labels", folder / "chips") == 0
    assert "12 labels, 3 of them on no field; 252 pixels learnt from." in capsys.readouterr().out
    assert call(folder, "--labels", folder / "chips", "--shots", "2", "--most", "3") == 0
    text = capsys.readouterr().out
    assert "12 pixels learnt from, of at most 2 labels of each class; all labels judge." in text
    figures = json.loads((folder / "maps" / "accuracy.json").read_text())
    assert figures["pixels"] == 12 and np.sum(figures["accuracy"]["confusion"]) == pytest.approx(9)


def test_fields_of_several_periods_need_a_choice(folder, capsys):
    write_field(folder / "fields" / "c0_next.tif", field(0, NEXT))
    assert call(folder) == 1
    assert f"expected fields of one period, or --period, found {YEAR}, {NEXT}" in capsys.readouterr().err
    assert not (folder / "maps" / "legend.csv").exists()
    assert call(folder, "--period", "2019-01-01/2020-01-01") == 0
    assert not (folder / "maps" / "c0_next_classes.tif").exists()
    assert call(folder, "--period", "2018-01-01/2019-01-01") == 1


def test_fields_of_another_model_are_refused(folder, capsys):
    other = field(3)
    other.attrs["model_weights"] = "another"
    write_field(folder / "fields" / "c3.tif", other)
    assert call(folder) == 1
    assert "their vectors do not compare" in capsys.readouterr().err
    assert not (folder / "maps" / "legend.csv").exists()


def test_maps_are_made_where_no_accuracy_can_be(folder, capsys):
    points(folder / "labels.csv", [(1, 1, "water", 0), (2, 10, "wood", 0)])
    assert call(folder) == 0
    assert "no accuracy: expected two classes" in capsys.readouterr().out
    assert json.loads((folder / "maps" / "accuracy.json").read_text())["accuracy"] is None
    assert (folder / "maps" / "c2_classes.tif").exists()


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (("--block-m", 5), "--block-m: expected 10 or more, found 5"),
        (("--shots", 0), "--shots: expected 1 or more, found 0"),
        (("--most", 0), "--most: expected 1 or more, found 0"),
        (("--labels", "none.csv"), "none.csv: no such file"),
        (("--fields", "."), "holds no embedding fields"),
    ],
)
def test_bad_input_is_one_line(folder, given, words, capsys, monkeypatch):
    (folder / "empty").mkdir()
    monkeypatch.chdir(folder / "empty")
    assert call(folder, *given) == 1
    error = capsys.readouterr().err
    assert words in error and error.count("\n") == 1


def test_the_pages_own_code_runs(folder, monkeypatch, capsys):
    """Every block of Python on docs/maps.md, on two years of fields."""
    (folder / "fields2020").mkdir()
    (folder / "fields").rename(folder / "fields2019")
    # As `aef embed` names the fields of a chip PLACE.
    write_field(folder / "fields2019" / "PLACE_2019-01-01_2020-01-01.tif", field(3))
    write_field(folder / "fields2020" / "PLACE_2020-01-01_2021-01-01.tif", field(5, NEXT))
    monkeypatch.chdir(folder)
    page = (Path(__file__).parents[1] / "docs" / "maps.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)
    assert len(blocks) == 5
    names = {}
    for block in blocks:
        exec(compile(block, "docs/maps.md", "exec"), names)
    assert names["similar"].shape == names["change"].shape == names["clusters"].shape == (SIDE, SIDE)
    similar = names["similar"]
    assert similar.max() == similar[3, 2] == pytest.approx(1, abs=1e-6) and 0 < names["change"].min() < 0.2
    assert len(np.unique(names["clusters"][:, :6])) <= 2 and names["clusters"].min() == 0
    for name, shown in (("change", names["change"]), ("similar", similar), ("one_classes", names["codes"] + 1)):
        with rasterio.open(folder / f"{name}.tif") as file:
            assert np.array_equal(file.read(1), shown)
