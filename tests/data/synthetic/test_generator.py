"""The generator as a tool: valid chips, the same for the same seed however it is run, clear refusals."""

from __future__ import annotations

import dataclasses
import hashlib

import numpy as np
import pytest

from aef.data.chips import ChipFolder, read_chip, validate, write_chip
from aef.data.synthetic import SOURCES, Earth, SyntheticError, generate, write_earth
from aef.data.synthetic.grid import Site, inside, meridian_arc_m, sensing_matrix
from aef.data.transform import inverse_transform, transform
from aef.launcher.command import run
from aef.launcher.synthesize import main
from aef.sources import BUILT_IN
from aef.timecode import DAY_MS


@pytest.fixture(scope="module")
def american():
    """A chip with all nine sources: a place in America."""
    earth = Earth(seed=0)
    return next(chip for chip in (earth.chip(place) for place in range(9)) if "nlcd" in chip.sources)


def same(one, other):
    """Both chips hold the same bytes."""
    assert one.sources.keys() == other.sources.keys()
    for name in one.sources:
        for field in dataclasses.fields(one.sources[name]):
            a, b = (getattr(chip.sources[name], field.name) for chip in (one, other))
            assert np.array_equal(a, b) if isinstance(a, np.ndarray) else a == b, (name, field.name)
    for name in one.labels:
        assert np.array_equal(one.labels[name].values, other.labels[name].values)
    assert one.texts == other.texts


def test_all_nine_sources_keep_the_contract(american):
    assert set(american.sources) == set(SOURCES) == {name for name in BUILT_IN if BUILT_IN[name].enabled}
    validate(american, BUILT_IN)
    assert american.synthetic
    assert all(series.licence and series.collection for series in american.sources.values())


@pytest.mark.parametrize("place", range(4))
def test_every_place_is_valid(place):
    validate(generate(place, seed=7), BUILT_IN)


@pytest.mark.parametrize("px", [16, 33, 128])
def test_chips_of_any_side(px):
    chip = generate(1, chip_px=px)
    validate(chip, BUILT_IN)
    assert (chip.height, chip.width) == (px, px)


def test_nine_sources_survive_the_disk_and_their_transforms(american, tmp_path):
    path = write_chip(tmp_path / "chip.npz", american, BUILT_IN, compress=False)
    back = read_chip(path, BUILT_IN, check_values=True)
    same(american, back)
    import torch

    for name, series in back.sources.items():
        source = BUILT_IN[name]
        if source.classes:
            continue
        channel = 1
        stored = np.moveaxis(series.values, channel, -1).astype(np.float32)
        valid = np.moveaxis(np.broadcast_to(series.valid, series.values.shape), channel, -1)
        again = inverse_transform(source, transform(source, torch.from_numpy(stored))).numpy()
        assert np.allclose(again[valid], stored[valid], rtol=2e-4, atol=2e-3), name


def test_the_same_place_is_the_same_chip_and_another_seed_another():
    one = generate(3, chip_px=32)
    same(one, generate(3, chip_px=32))
    other = generate(3, chip_px=32, seed=1)
    assert not np.array_equal(one.labels["crop"].values, other.labels["crop"].values)


def test_a_source_does_not_depend_on_what_else_is_rendered():
    alone = generate(2, chip_px=32, sources=("landsat",)).sources["landsat"]
    beside = generate(2, chip_px=32).sources["landsat"]
    assert np.array_equal(alone.values, beside.values) and np.array_equal(alone.weight, beside.weight)


def test_files_are_the_same_for_any_number_of_workers(tmp_path):
    earth = Earth(seed=5, chip_px=16, sources=("sentinel2", "glo30"))
    digests = []
    for workers in (0, 1, 3):
        folder = tmp_path / str(workers)
        paths = list(write_earth(earth, folder, 5, workers=workers))
        assert [path.name for path in paths] == [f"synthetic_5_{place:05d}.npz" for place in range(5)]
        digests.append([hashlib.sha256(path.read_bytes()).hexdigest() for path in paths])
    assert digests[0] == digests[1] == digests[2]


def test_chips_that_are_there_are_not_written_over_unless_asked(tmp_path, capsys):
    options = ["--out", str(tmp_path), "--sources", "glo30"]
    assert run(main, [*options, "--places", "3", "--chip-px", "24"]) == 0
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    capsys.readouterr()
    assert run(main, [*options, "--places", "4", "--chip-px", "16"]) == 1
    error = capsys.readouterr().err
    assert "3 of 4 chips are there already (synthetic_0_00000.npz" in error and "--overwrite" in error
    assert before == {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert run(main, [*options, "--places", "4", "--chip-px", "16", "--overwrite"]) == 0
    assert {chip.height for chip in ChipFolder(tmp_path, BUILT_IN)} == {16}
    assert run(main, [*options, "--places", "1", "--seed", "1", "--chip-px", "16"]) == 0  # others beside them


def test_an_interrupted_call_goes_on_after_the_chips_that_it_wrote(tmp_path, capsys, monkeypatch):
    options = ["--sources", "glo30", "--places", "4", "--chip-px", "16"]
    assert run(main, ["--out", str(tmp_path / "whole"), *options]) == 0
    whole = {path.name: path.read_bytes() for path in (tmp_path / "whole").iterdir()}
    out, rendered = tmp_path / "out", Earth.chip
    monkeypatch.setattr(Earth, "chip", lambda earth, place: 1 / 0 if place == 2 else rendered(earth, place))
    with pytest.raises(ZeroDivisionError):
        main(["--out", str(out), *options])
    monkeypatch.setattr(Earth, "chip", rendered)
    before = {path.name: path.stat().st_mtime_ns for path in out.iterdir()}
    assert sorted(before) == ["synthetic_0_00000.npz", "synthetic_0_00001.npz", "unfinished.json"]
    for other, words in {
        ("--chip-px", "24"): "chip_px 16, now 24",
        ("--first-year", "2018"): "first_year 2019, now 2018",
    }.items():
        assert run(main, ["--out", str(out), *options, *other]) == 1
        assert words in capsys.readouterr().err
        assert before == {path.name: path.stat().st_mtime_ns for path in out.iterdir()}
    assert run(main, ["--out", str(out), *options]) == 0
    assert {path.name: path.read_bytes() for path in out.iterdir()} == whole  # and no record
    assert all((out / name).stat().st_mtime_ns == at for name, at in before.items() if name in whole)
    assert run(main, ["--out", str(out), *options]) == 1  # done: these are anybody's chips


def test_chips_that_an_interrupted_call_was_to_overwrite_are_not_taken_for_its_own(tmp_path, monkeypatch, capsys):
    options = ["--out", str(tmp_path), "--sources", "glo30", "--places", "3"]
    assert run(main, [*options, "--chip-px", "24"]) == 0
    rendered = Earth.chip
    monkeypatch.setattr(Earth, "chip", lambda earth, place: 1 / 0 if place == 2 else rendered(earth, place))
    with pytest.raises(ZeroDivisionError):
        main([*options, "--chip-px", "16", "--overwrite"])
    monkeypatch.setattr(Earth, "chip", rendered)
    assert run(main, [*options, "--chip-px", "16"]) == 1
    assert "3 of 3 chips are there already" in capsys.readouterr().err
    assert run(main, [*options, "--chip-px", "16", "--overwrite"]) == 0
    assert {chip.height for chip in ChipFolder(tmp_path, BUILT_IN)} == {16}


def test_several_years_keep_their_land_and_rotate_their_crops():
    earth = Earth(seed=0, chip_px=64, years=3, sources=("sentinel2", "era5_land", "nlcd"))
    scene, chip = earth.scene(0), earth.chip(0)
    validate(chip, BUILT_IN)
    first, last = chip.span_ms
    assert last - first > 2.5 * 365 * DAY_MS
    assert chip.sources["era5_land"].frames == 36
    kinds = scene.fields.cover
    crops = kinds[0] < 6
    assert (kinds[1][crops] != kinds[0][crops]).any() and (kinds[1][~crops] == kinds[0][~crops]).all()
    assert (kinds[1][crops] < 6).all()


def test_all_places_show_the_same_years():
    start = np.datetime64("2021-01-01", "ms").astype(np.int64)
    earth = Earth(chip_px=16, sources=("sentinel2", "nlcd"), first_year=2021)
    for chip in (earth.chip(place) for place in range(4)):
        assert start <= chip.span_ms[0] and chip.labels["crop"].valid_start_ms == start
        if "nlcd" in chip.sources:
            assert chip.sources["nlcd"].time_ms[0] == start


def test_green_cover_does_not_jump_at_new_year():
    scene = Earth(seed=0, chip_px=32, years=2).scene(1)
    turn = scene.weather.year_starts[1]
    before, after = scene.canopy(np.array([turn - DAY_MS, turn + DAY_MS])).green
    assert np.abs(before - after).max() < 0.05


def test_texts_are_true_and_inside_the_chip(american):
    assert len(american.texts) == 1 + len(np.setdiff1d(np.unique(american.labels["crop"].fields), 0))
    left, top = american.transform[2], american.transform[5]
    land, *fields = american.texts
    assert " land at " in land.text and "spring came in" in land.text
    for text in american.texts:
        assert left <= text.x <= left + 640 and top - 640 <= text.y <= top
        assert text.time_end_ms > text.time_ms and text.uncertainty_m > 0
    crops = american.labels["crop"]
    for text in fields:
        code = int(crops.values[int((top - text.y) // 10), int((text.x - left) // 10)])
        assert not code or crops.legend[code] in text.text


def test_seasons_can_be_seen_in_the_fields(american):
    """Clear near infrared over red is higher in the season than outside it."""
    scene = Earth(seed=0).scene(american.attributes["place"])
    series = american.sources["sentinel2"]
    green = inside(scene.canopy(series.time_ms).green[:, scene.field])
    clear = series.weight[:, 0] > 0
    ratio = series.values[:, 3] / np.maximum(series.values[:, 2].astype(np.float32), 1)
    assert ratio[clear & (green > 0.7)].mean() > 2 * ratio[clear & (green < 0.2)].mean()


def test_places_lie_on_the_meridian_of_their_zone():
    site = Site(31, 50.0, 64)
    assert (site.lon, site.crs) == (3.0, "EPSG:32631")
    assert abs(meridian_arc_m(50.0) - 5_540_847.04) < 0.1
    pyproj = pytest.importorskip("pyproj")
    x, y = pyproj.Transformer.from_crs("EPSG:4326", site.crs, always_xy=True).transform(site.lon, site.lat)
    left, top = site.left_top
    assert abs(left + 320 - x) <= 5 and abs(top - 320 - y) <= 5


@pytest.mark.parametrize("cell_m", [10, 15, 20, 30, 100])
@pytest.mark.parametrize("shift_m", [0.0, 13.0, -20.0])
def test_a_sensor_only_averages(cell_m, shift_m):
    matrix = sensing_matrix(32, cell_m, shift_m)
    assert np.allclose(matrix.sum(1), 1, atol=1e-5) and (matrix >= 0).all()


@pytest.mark.parametrize(
    "change, words",
    [
        ({"chip_px": 8}, "chip_px: expected 16 to 4096, found 8"),
        ({"chip_px": 1_000_000}, "chip_px: expected 16 to 4096, found 1000000"),
        ({"years": 0}, "years: expected 1 to 100"),
        ({"years": 100_000}, "years: expected 1 to 100"),
        ({"first_year": 1000}, "first_year: expected 1970 to"),
        ({"first_year": 9999}, "first_year: expected 1970 to"),
        ({"seed": -1}, "seed: expected 0 to"),
        ({"sources": ("nlcd",)}, "sources: nlcd exists in America only: name another one beside it"),
        ({"sources": ("modis",)}, "sources: expected some of sentinel2"),
        ({"sources": ()}, "found none"),
    ],
)
def test_what_cannot_be_made_is_refused_in_a_line(change, words):
    with pytest.raises(SyntheticError, match=words) as caught:
        Earth(**change)
    assert "\n" not in str(caught.value)


def test_the_command_writes_a_folder_of_chips(tmp_path, capsys):
    out = tmp_path / "chips"
    arguments = ["--out", str(out), "--places", "2", "--chip-px", "16", "--sources", "sentinel2", "glo30"]
    assert main([*arguments, "--dry-run"]) == 0
    assert "2 chips of 16 px" in capsys.readouterr().out and not out.exists()
    assert main(arguments) == 0
    folder = ChipFolder(out, BUILT_IN)
    assert len(folder) == 2 and len(set(folder.places())) == 2
    with pytest.raises(SyntheticError, match="at least one place"):
        main(["--out", str(out), "--places", "0"])
    with pytest.raises(SyntheticError, match="at least one place"):
        main(["--out", str(out), "--places", "-1", "--dry-run"])
