"""Maps of a user's own classes: labels that chips carry, accuracy over squares of ground left out, class maps."""

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
from sklearn.model_selection import StratifiedGroupKFold

from aef.classify import METHODS, Accuracy, class_map, cross_validate, draw, fit, labelled_areas
from aef.data.chips import Label, SourceSeries, write_chip
from aef.launcher.classify import main
from aef.launcher.command import run as run_command
from aef.mapping.files import read_field, write_field
from aef.mapping.labels import LabelError, Samples, sample
from aef.sources import BUILT_IN
from aef.timecode import parse_time
from tests.mapping.labelled_fields import (
    NEXT,
    SIDE,
    WATER,
    WOOD,
    YEAR,
    chip,
    field,
    points,
)

# --- labels that chips carry -------------------------------------------------------------------------------------


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
