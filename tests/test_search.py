"""Search by words and by example over embedding fields."""

import csv
import dataclasses
import errno
import os
import re
import shutil
import sys

import numpy as np
import pytest
import rasterio
import torch
from rasterio.warp import transform as warp

import aef
from aef.config import TINY
from aef.data.chips import Chip, ChipFolder, SourceSeries, write_chip
from aef.data.statistics import Statistics
from aef.launcher.command import run as run_command
from aef.launcher.search import main
from aef.mapping.field_choice import open_fields
from aef.mapping.files import as_data_array, read_field, write_field
from aef.mapping.made_by import MadeBy
from aef.run import TEXT_TOWER, Run, build_model, write_weights
from aef.search import (
    SearchError,
    embed_fields,
    pixel_at,
    pixel_direction,
    run_tower,
    search,
    text_direction,
    write_picture,
    year_of_most,
)
from aef.sources import BUILT_IN
from aef.text.tower import TINY_DIM, TextTower, TowerError, TowerIdentity
from aef.timecode import DAY_MS, parse_period, parse_time

YEAR = parse_period("2019-01-01/2020-01-01")
CRS = "EPSG:32631"


def chip(name, number=0, side=16):
    x, y = 500_000.0 + number * 1000, 5_600_000.0
    (lon,), (lat,) = warp(CRS, "EPSG:4326", [x + side * 5], [y - side * 5])
    times = parse_time("2019-01-05") + np.arange(8) * 44 * DAY_MS
    values = np.random.default_rng(number).integers(100, 4000, (8, 5, side, side)).astype(np.uint16)
    series = SourceSeries(values, np.ones((8, 1, side, side), bool), times, bands=BUILT_IN["sentinel2"].band_names)
    return Chip(name, CRS, (10.0, 0.0, x, 0.0, -10.0, y), side, side, lon, lat, {"sentinel2": series})


def field(name, vectors, number=0, period=YEAR):
    return as_data_array(
        vectors[None],
        chip(name, number, vectors.shape[1]),
        [period],
        [{"sources": "sentinel2"}],
        MadeBy("v"),
        single=True,
    )


def random_field(name, number=0, dim=8, side=6):
    vectors = np.random.default_rng(number).normal(size=(dim, side, side)).astype(np.float32)
    return field(name, vectors / np.linalg.norm(vectors, axis=0), number)


@pytest.fixture(scope="module")
def tower():
    return TextTower("tiny")


@pytest.fixture(scope="module")
def trained(tmp_path_factory, tower):
    """A run with a text head, its chips, both untrained."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("run")
    config = dataclasses.replace(TINY, model=dataclasses.replace(TINY.model, text_dim=TINY_DIM))
    names = ("sentinel2",)
    run = Run(folder, config, BUILT_IN, Statistics.identity(BUILT_IN, names), names, names)
    run.write()
    write_weights(folder / "model.safetensors", build_model(run).state_dict(), step=1)
    (folder / TEXT_TOWER).write_text(tower.identity.to_json())
    chips = tmp_path_factory.mktemp("chips")
    for number, name in enumerate("abc"):
        write_chip(chips / f"{name}.npz", chip(name, number), BUILT_IN)
    return folder, chips


def test_the_best_pixel_of_each_field_is_found_and_the_best_fields_come_first():
    fields = [random_field(name, number) for number, name in enumerate("abcd")]
    wanted = fields[2].values[:, 4, 1]
    found = search(iter(fields), wanted, top=2)
    assert (found[0].chip, found[0].row, found[0].col) == ("c", 4, 1) and found[0].similarity == pytest.approx(1)
    assert len(found) == 2 and found[0].similarity > found[1].similarity
    assert found[1].similarity == pytest.approx(
        max(np.einsum("dyx,d->yx", f.values, wanted).max() for f in fields if f is not fields[2])
    )
    assert found[0].step == 1 and np.array_equal(found[0].vectors, fields[2].values)
    assert found[0].map.shape == (6, 6) and found[0].map[4, 1] == found[0].similarity


def test_of_equals_the_first_is_found_in_whatever_windows(monkeypatch):
    one = random_field("a")
    for row, col in ((4, 1), (2, 5), (2, 3)):
        one.values[:, row, col] = one.values[:, 5, 5]
    for pixels in (36, 6, 4):
        monkeypatch.setattr("aef.mapping.field_windows.WINDOW_PX", pixels)
        (found,) = search([one], one.values[:, 5, 5], top=1)
        assert (found.row, found.col) == (2, 3)


def test_the_pixel_that_is_found_is_shown_though_pictures_of_large_fields_leave_pixels_out(tmp_path, monkeypatch):
    monkeypatch.setattr("aef.mapping.field_windows.SHOWN_PX", 2)
    one = random_field("a", side=6)
    alone = one.values[:, 4, 2].copy()
    one.values[:] = np.nan
    one.values[:, 4, 2] = alone
    (found,) = search([one], alone, top=1)
    assert (found.step, found.row, found.col) == (3, 4, 2)
    assert np.array_equal(found.map, [[np.nan, np.nan], [found.similarity, np.nan]], equal_nan=True)
    assert np.array_equal(found.vectors[:, 1, 0], alone)
    drawn = []
    monkeypatch.setattr("aef.search.save_png", lambda path, figure: drawn.append(figure))
    write_picture(tmp_path / "search.png", [found], "query")
    (circle,) = (line for axes in drawn[0].axes for line in axes.lines)
    assert circle.get_xydata().tolist() == [[0, 1]]


def test_a_place_is_given_in_degrees():
    (found,) = search([random_field("a")], np.eye(8)[0], top=1)
    (x,), (y,) = warp("EPSG:4326", CRS, [found.lon], [found.lat])
    assert (x, y) == pytest.approx((500_000 + 10 * found.col + 5, 5_600_000 - 10 * found.row - 5), abs=0.01)


def test_a_pixel_is_an_example():
    fields = [random_field(name, number) for number, name in enumerate("ab")]
    (here,) = search(fields[1:], np.eye(8)[0], top=1)
    direction = pixel_direction(fields, here.lon, here.lat)
    assert np.array_equal(direction, fields[1].values[:, here.row, here.col])
    with pytest.raises(SearchError, match="no field holds 10,10"):
        pixel_direction(fields, 10, 10)


def test_a_position_beyond_a_fields_projection_is_on_another_field():
    """UTM reaches a quarter of the globe from its meridian: a folder may hold fields all over it."""
    one = random_field("a")
    assert pixel_at(one, 95, 0) == (-1, -1)
    with pytest.raises(SearchError, match="no field holds 95,0"):
        pixel_direction([one], 95, 0)


def test_of_overlapping_fields_the_one_that_observed_the_pixel_is_asked():
    one, other = random_field("a"), random_field("b")
    (here,) = search([one], one.values[:, 2, 3], top=1)
    one.values[:, 2, 3] = np.nan
    for fields in ([one, other], [other, one]):
        assert np.array_equal(pixel_direction(fields, here.lon, here.lat), other.values[:, 2, 3])
    with pytest.raises(SearchError, match="no frame observed this pixel"):
        pixel_direction([one, one], here.lon, here.lat)


def test_missing_vectors_are_never_found():
    one = random_field("a")
    one.values[:, 0, 0] = np.nan
    (found,) = search([one], np.eye(8)[0], top=1)
    assert (found.row, found.col) != (0, 0) and np.isfinite(found.similarity)
    one.values[:] = np.nan
    with pytest.raises(SearchError, match="none that holds a vector"):
        search([one], np.eye(8)[0])


def test_a_texts_direction_is_the_text_heads_for_the_fields_own_period(trained, tower):
    run, chips = trained
    model = aef.load(run)
    vector = tower.encode(["a forest"])[0]
    (one, *_) = embed_fields(model, ChipFolder(chips, model.registry), YEAR)
    direction = text_direction(model, vector, one)
    assert direction.shape == (64,) and np.linalg.norm(direction) == pytest.approx(1, abs=1e-5)
    assert not np.allclose(direction, text_direction(model, tower.encode(["a lake"])[0], one), atol=1e-3)
    summer = next(embed_fields(model, ChipFolder(chips, model.registry), "2019-06-01/2019-09-01"))
    assert not np.allclose(direction, text_direction(model, vector, summer), atol=1e-4)
    with pytest.raises(SearchError, match="expected a text vector of width 64, found shape"):
        text_direction(model, vector[:-1], one)


def test_another_tower_is_refused(trained, tmp_path, tower):
    run, _ = trained
    assert run_tower(run).identity == tower.identity
    (tmp_path / TEXT_TOWER).write_text(TowerIdentity("tiny", "fixed random", "0" * 64, 64, 77).to_json())
    with pytest.raises(TowerError, match=r"expected text vectors of tower tiny .* found tiny"):
        run_tower(tmp_path)
    (tmp_path / TEXT_TOWER).write_text(TowerIdentity("ViT-B-32", "absent.safetensors", "0" * 64, 512, 77).to_json())
    with pytest.raises(SearchError, match=r"read from a file absent\.safetensors: name it by --weights FILE"):
        run_tower(tmp_path)
    with pytest.raises(SearchError, match="this run learnt from no text"):
        run_tower(tmp_path / "elsewhere")


def test_the_command_writes_a_picture_a_table_and_maps(trained, tmp_path, capsys):
    run, chips = trained
    out = tmp_path / "found"
    assert (
        main(["--checkpoint", str(run), "--data", str(chips), "--text", "a lake", "--top", "2", "--out", str(out)]) == 0
    )
    assert sorted(p.name for p in out.iterdir()) == [
        *(f"{name}_2019-01-01_2020-01-01_similarity.tif" for name in "abc"),
        "places.csv",
        "search.png",
    ]
    rows = list(csv.DictReader((out / "places.csv").open()))
    assert len(rows) == 2 and float(rows[0]["similarity"]) >= float(rows[1]["similarity"])
    assert rows[0]["period"] == "2019-01-01/2020-01-01"
    with rasterio.open(out / f"{rows[0]['chip']}_2019-01-01_2020-01-01_similarity.tif") as file:
        assert file.read(1)[int(rows[0]["row"]), int(rows[0]["col"])] == pytest.approx(
            float(rows[0]["similarity"]), abs=1e-4
        )
        assert file.crs.to_string() == CRS
        said = file.tags()
        assert said["query"] == "“a lake”" and said["period"] == rows[0]["period"]
        assert said["model_weights"] == aef.load(run).weights
    assert rows[0]["lat"][:5] in capsys.readouterr().out


@pytest.fixture
def uneven(trained, tmp_path):
    """The run, and chips of 2019 that end on other days, one into the year after, with one of long before."""
    run, chips = trained
    folder = shutil.copytree(chips, tmp_path / "uneven")
    for name, days in (("b", 30), ("c", 70), ("z", -3000)):
        later = dataclasses.replace(chip(name, ord(name)), id=name)
        later.sources["sentinel2"].time_ms[:] += days * DAY_MS
        write_chip(folder / f"{name}.npz", later, BUILT_IN)
    return run, folder


def test_chips_that_end_on_other_days_are_searched_over_one_year(uneven, tmp_path, capsys):
    run, folder = uneven
    options = ["--checkpoint", str(run), "--data", str(folder), "--text", "a lake", "--out", str(tmp_path / "found")]
    assert run_command(main, options) == 0
    printed = capsys.readouterr()
    rows = list(csv.DictReader((tmp_path / "found" / "places.csv").open()))
    assert {row["chip"]: row["period"] for row in rows} == dict.fromkeys("abc", str(YEAR))
    assert f"1 chips have no frame in {YEAR} and are left out (z.npz); choose another by --period" in printed.err
    assert f"uneven over {YEAR}: " in printed.out


def test_the_year_of_most_is_the_later_of_equals():
    spans = [parse_period(text) for text in ("2018-01-01/2020-01-01", "2019-12-01/2020-02-01")]
    assert year_of_most(spans) == YEAR and year_of_most(spans[:1]) == YEAR and year_of_most([None, spans[1]]).end_ms
    with pytest.raises(SearchError, match="no chip holds a frame"):
        year_of_most([None])


def test_a_position_that_was_found_can_be_asked_for_as_it_is_printed(trained, tmp_path, capsys):
    run, chips = trained
    options = ["--checkpoint", str(run), "--data", str(chips), "--out", str(tmp_path / "found")]
    assert run_command(main, [*options, "--text", "a lake"]) == 0
    printed = re.search(r"1\. (\w+) over \S+ at (\S+): cosine", capsys.readouterr().out)
    assert run_command(main, [*options, "--at", printed[2]]) == 0
    said = capsys.readouterr().out
    assert (
        f"1. {printed[1]} over" in said and f"at {printed[2]}: cosine 1.000" in said and f"like {printed[2]} in" in said
    )


def test_without_matplotlib_only_the_picture_is_missing(trained, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    run, chips = trained
    options = ["--checkpoint", str(run), "--data", str(chips), "--out", str(tmp_path / "found")]
    assert run_command(main, [*options, "--text", "a lake"]) == 0
    said = capsys.readouterr().out
    assert "1. " in said and "no picture: matplotlib is not installed" in said
    assert not (tmp_path / "found" / "search.png").exists()


def test_the_command_searches_fields_on_disk_by_example(trained, tmp_path):
    run, chips = trained
    model = aef.load(run)
    fields = tmp_path / "fields"
    fields.mkdir()
    for one in embed_fields(model, ChipFolder(chips, model.registry), YEAR):
        write_field(fields / f"{one.attrs['chip']}.tif", one, "float")
    there = next(iter(open_fields([fields / "b.tif"])))
    (x,), (y,) = warp(CRS, "EPSG:4326", [float(there.x[3])], [float(there.y[7])])
    out = tmp_path / "found"
    assert main(["--checkpoint", str(run), "--fields", str(fields), "--at", f"{x},{y}", "--out", str(out)]) == 0
    best = next(csv.DictReader((out / "places.csv").open()))
    assert (best["chip"], best["row"], best["col"]) == ("b", "7", "3")


@pytest.fixture
def searched(trained, tmp_path, capsys):
    """A folder of fields of two places over two periods, and `aef search` in it: exit code and what it said."""
    run, chips = trained
    fields = tmp_path / "fields"
    fields.mkdir()
    model = aef.load(run)
    for period in ("2019-01-01/2019-07-01", YEAR):
        for number, one in enumerate(embed_fields(model, ChipFolder(chips, model.registry), period)):
            if number < 2:
                write_field(fields / f"{one.attrs['chip']}_{str(period)[-10:]}.tif", one)

    def call(*options, checkpoint=run):
        given = ["--fields", fields, "--out", tmp_path / "found", *options]
        code = run_command(main, [str(word) for word in given + ["--checkpoint", checkpoint] * bool(checkpoint)])
        return code, "".join(capsys.readouterr())

    return fields, call


def a_pixel_of(path):
    (there,) = search(open_fields([path]), np.ones(64), top=1)
    return f"{there.lon},{there.lat}"


def test_periods_are_kept_apart(searched, tmp_path):
    fields, call = searched
    assert call("--text", "a lake")[0] == 0
    found = tmp_path / "found"
    assert len(list(found.glob("*_similarity.tif"))) == 4
    rows = list(csv.DictReader((found / "places.csv").open()))
    assert len({(row["place"], row["period"]) for row in rows}) == 4
    at = a_pixel_of(fields / "a_2020-01-01.tif")
    code, said = call("--at", at)
    assert code == 1 and "2019-01-01/2019-07-01, 2019-01-01/2020-01-01 hold this pixel: choose one by --period" in said
    shutil.rmtree(found)
    assert call("--at", at, "--period", "2019-01-01/2019-07-01", checkpoint=None)[0] == 0
    assert sorted(path.name for path in found.glob("*.tif")) == [
        f"{name}_2019-01-01_2019-07-01_similarity.tif" for name in "ab"
    ]
    code, said = call("--text", "a lake", "--period", "2019-01-01/2019-08-01")
    assert code == 1 and "no field of the period 2019-01-01/2019-08-01: there are fields of 2019-01-01/2019-07" in said


def test_a_field_that_states_no_period_is_found_without_one(searched, tmp_path):
    fields, call = searched
    one = next(iter(open_fields(sorted(fields.glob("*.tif")))))
    (tmp_path / "others").mkdir()
    one.attrs = {}
    path = write_field(tmp_path / "others" / "tile.tif", one)
    code, said = call("--fields", path.parent, "--at", a_pixel_of(path), checkpoint=None)
    assert code == 0 and "1. tile at " in said


def test_fields_of_another_model_are_not_searched(searched, tmp_path):
    fields, call = searched
    at, year = a_pixel_of(fields / "a_2020-01-01.tif"), str(YEAR)
    one = read_field(fields / "a_2020-01-01.tif")
    theirs = write_field(fields / "c.tif", one.assign_attrs(model_weights="f" * 64, chip="c"))
    for dry in ([], ["--dry-run"]):
        for question in (["--text", "a lake"], ["--at", at, "--period", year]):
            code, said = call(*question, *dry)
            assert code == 1 and not (tmp_path / "found").exists()
            assert f"{theirs}: expected model tiny@1 (weights" in said and "found tiny@1 (weights ffffffffffff)" in said
    code, said = call("--at", at, "--period", year, checkpoint=None)
    assert code == 1 and f"{theirs}: its model_weights is ffff" in said and "their vectors do not compare" in said
    write_field(theirs, one.assign_attrs(left_out="sentinel1", chip="c"))
    assert "its left_out is sentinel1, that of a_2019-07-01.tif is none" in call("--text", "a lake")[1]
    write_field(theirs, one)
    assert "holds the field of a over 2019-01-01/2020-01-01 as a_2020-01-01.tif does" in call("--text", "a lake")[1]


def test_words_and_chips_need_a_run(searched, trained, tmp_path, capsys):
    _, call = searched
    assert "--checkpoint: words and chips need the run" in call("--text", "a lake", checkpoint=None)[1]
    assert run_command(main, ["--data", str(trained[1]), "--at", "1,2", "--out", str(tmp_path / "o")]) == 1
    assert "--checkpoint: words and chips need the run" in capsys.readouterr().err


def test_a_pixel_without_a_vector_is_no_example(searched):
    fields, call = searched
    at, path = a_pixel_of(fields / "a_2020-01-01.tif"), fields / "a_2020-01-01.tif"
    one = read_field(path)
    one.values[:] = np.nan
    write_field(path, one)
    assert "no frame observed this pixel, so it has no vector" in call("--at", at, "--period", str(YEAR))[1]


def test_a_place_with_a_chip_per_year_is_searched_once(trained, tmp_path):
    run, chips = trained
    model = aef.load(run)
    folder = shutil.copytree(chips, tmp_path / "chips")
    (folder / "b.npz").unlink()
    later = dataclasses.replace(chip("a"), id="a_2020")
    later.sources["sentinel2"].time_ms[:] += 365 * DAY_MS
    write_chip(folder / "a_2020.npz", later, BUILT_IN)
    found = [one.attrs["chip"] for one in embed_fields(model, ChipFolder(folder, model.registry), YEAR)]
    assert found == ["a", "c"]


def test_a_full_disk_is_one_line_and_no_map(trained, tmp_path, capsys, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    run, chips = trained
    monkeypatch.setattr(os, "fsync", full)
    options = ["--checkpoint", str(run), "--data", str(chips), "--text", "a lake", "--out", str(tmp_path / "found")]
    assert run_command(main, options) == 1
    assert capsys.readouterr().err.endswith("a_2019-01-01_2020-01-01_similarity.tif: No space left on device\n")
    assert not list((tmp_path / "found").iterdir())


def test_a_pixel_may_lie_west_of_greenwich(trained, tmp_path, capsys):
    run, chips = trained
    options = ["--checkpoint", str(run), "--data", str(chips), "--out", str(tmp_path / "o")]
    assert run_command(main, [*options, "--at", "-87.0,47.8"]) == 1
    assert "no field holds -87,47.8 (longitude, latitude)" in capsys.readouterr().err
    assert run_command(main, [*options, "--at", "-.5,47", "--dry-run"]) == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "give either --text WORDS or --at LON,LAT"),
        (["--text", "a", "--at", "1,2"], "give either --text WORDS or --at LON,LAT"),
        (["--text", " "], "--text: expected words, found none"),
        (["--at", "91"], "expected LON,LAT like 4.35,50.85, found '91'"),
        (["--at", "50,120"], "expected degrees, longitude first, found '50,120'"),
        (["--text", "a", "--top", "0"], "--top: expected at least 1, found 0"),
    ],
)
def test_bad_questions_are_one_line(trained, tmp_path, capsys, options, message):
    run, chips = trained
    code = run_command(main, ["--checkpoint", str(run), "--data", str(chips), "--out", str(tmp_path / "o"), *options])
    assert code == 1 and message in capsys.readouterr().err
