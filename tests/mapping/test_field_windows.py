"""Fields that are read window by window: the same vectors, maps and pictures as of whole ones, in bounded memory."""

import csv
import json

import numpy as np
import pytest
import rasterio
from rasterio.transform import Affine
from rasterio.warp import transform as warp

from aef.data.chips import Chip
from aef.launcher import classify, search
from aef.mapping import field_windows
from aef.mapping.field_file import VectorsOnDisk
from aef.mapping.field_windows import Thinned, parts, vectors_at, windows
from aef.mapping.files import (
    DamagedFieldError,
    as_data_array,
    open_field,
    preview,
    read_field,
    write_field,
    write_geotiff,
    writing_map,
)
from aef.mapping.made_by import MadeBy
from aef.mapping.quantize import quantize
from aef.timecode import parse_period

HEIGHT, WIDTH, CRS, LEFT, TOP = 45, 70, "EPSG:32631", 500_000.0, 5_700_000.0
YEAR = parse_period("2019-01-01/2020-01-01")


def a_field():
    """Two kinds of ground side by side, with a hole."""
    rng = np.random.default_rng(3)
    ground = np.eye(8)[(np.arange(WIDTH) // 20) % 2].T[:, None]
    vectors = ground + 0.2 * rng.normal(size=(8, HEIGHT, WIDTH))
    vectors = (vectors / np.linalg.norm(vectors, axis=0)).astype(np.float32)
    vectors[:, 10:20, 5:30] = np.nan
    chip = Chip("c", CRS, (10.0, 0, LEFT, 0, -10.0, TOP), HEIGHT, WIDTH, 3.0, 51.0, {})
    return as_data_array(vectors[None], chip, [YEAR], [{"sources": "sentinel2"}], MadeBy("v"), single=True)


def published(path, dtype="int8", nodata=-128, south_up=True, **layout):
    """The field as other programs write it; with ``south_up`` the first row is the southernmost."""
    values = a_field().values.astype(np.float64)
    values = quantize(values) if dtype == "int8" else np.where(np.isnan(values), nodata, values)
    affine = Affine(10, 0, LEFT, 0, 10, TOP - 10 * HEIGHT) if south_up else Affine(10, 0, LEFT, 0, -10, TOP)
    grid = {"count": 8, "height": HEIGHT, "width": WIDTH, "crs": CRS, "transform": affine, "nodata": nodata}
    with rasterio.open(path, "w", driver="GTiff", dtype=dtype, **grid, **layout) as file:
        file.write((values[:, ::-1] if south_up else values).astype(dtype))
    return path


TILED = {"tiled": True, "blockxsize": 16, "blockysize": 32}
FILES = {
    "ours": lambda folder: write_field(folder / "f.tif", a_field()),
    "our floats": lambda folder: write_field(folder / "f.tif", a_field(), "float"),
    "netcdf": lambda folder: write_field(folder / "f.nc", a_field(), "netcdf"),
    "published": lambda folder: published(folder / "f.tif", interleave="band", **TILED),
    "strips": lambda folder: published(folder / "f.tif", interleave="pixel"),
    "export": lambda folder: published(folder / "f.tif", "float64", -1e6, interleave="pixel", **TILED),
    "north up": lambda folder: published(folder / "f.tif", "float32", float("nan"), south_up=False, **TILED),
}


@pytest.fixture(params=FILES)
def path(request, tmp_path):
    return FILES[request.param](tmp_path)


@pytest.fixture
def small(monkeypatch):
    """Windows of 300 pixels, read 600 at a time at most."""
    monkeypatch.setattr(field_windows, "WINDOW_PX", 300)
    monkeypatch.setattr(field_windows, "READ_PX", 600)


@pytest.fixture
def reads(monkeypatch):
    """Bands, rows and columns of everything that is read of files."""
    read, found = VectorsOnDisk._vectors, []
    monkeypatch.setattr(VectorsOnDisk, "_vectors", lambda self, *chosen: (found.append(chosen), read(self, *chosen))[1])
    return found


def test_a_field_that_is_opened_is_the_one_that_is_read(path):
    whole, opened = read_field(path), open_field(path)
    assert whole.identical(opened) and whole.dtype == opened.dtype == np.float32
    assert (
        whole.rio.crs == opened.rio.crs and whole.rio.transform() == opened.rio.transform() == a_field().rio.transform()
    )
    assert np.allclose(whole, a_field(), rtol=0, atol=0.008, equal_nan=True)  # half a step of the code at 1


@pytest.mark.parametrize(
    "key",
    [
        (slice(None), 3, 4),
        (0, slice(5, 40), slice(60, None)),
        (slice(2, 7, 2), slice(None, None, 7), slice(3, -3, 5)),
        (slice(None), slice(None, None, -1), slice(40, 10, -4)),
        (slice(None), slice(9, 9), slice(None)),
        ([6, 1], [40, 0, 12], -1),
        (-1, -2, -3),
    ],
)
def test_what_is_indexed_is_what_is_read(path, key, reads):
    whole = read_field(path)
    reads.clear()
    assert np.array_equal(open_field(path)[key].values, whole[key].values, equal_nan=True)
    assert sum(len(rows) * len(columns) for _, rows, columns in reads) < HEIGHT * WIDTH


def test_windows_hold_each_pixel_once_and_read_each_block_once(path, small, reads):
    whole, found = read_field(path), np.full((8, HEIGHT, WIDTH), np.inf, np.float32)
    reads.clear()
    for rows, columns, vectors in windows(open_field(path)):
        assert np.isinf(found[:, rows, columns]).all() and vectors[0].size <= 300
        found[:, rows, columns] = vectors
    assert np.array_equal(found, whole.values, equal_nan=True)
    assert max(len(rows) * len(columns) for _, rows, columns in reads) <= 600
    assert sum(len(rows) * len(columns) for _, rows, columns in reads) == HEIGHT * WIDTH


def test_what_is_read_at_once_is_whole_blocks_of_the_file(tmp_path, small):
    """45 rows of blocks of 32 from the south: 13 rows and 32 from the north."""
    found = parts(open_field(FILES["published"](tmp_path)))
    assert {(rows.start, rows.stop) for rows, _ in found} == {(0, 13), (13, 45)}
    assert {(columns.start, columns.stop) for _, columns in found} == {(0, 16), (16, 32), (32, 48), (48, 64), (64, 70)}


def test_blocks_too_large_to_be_read_at_once_are_cut_and_small_ones_joined(tmp_path, monkeypatch):
    field = open_field(FILES["published"](tmp_path))
    monkeypatch.setattr(field_windows, "READ_PX", 200)
    monkeypatch.setattr(field_windows, "WINDOW_PX", 100)
    cut = parts(field)
    assert max((rows.stop - rows.start) * (columns.stop - columns.start) for rows, columns in cut) <= 200
    assert sum((rows.stop - rows.start) * (columns.stop - columns.start) for rows, columns in cut) == HEIGHT * WIDTH
    monkeypatch.setattr(field_windows, "WINDOW_PX", 32 * 40)
    monkeypatch.setattr(field_windows, "READ_PX", 32 * 40)
    assert [(columns.start, columns.stop) for _, columns in parts(field)] == [(0, 32), (32, 70)] * 2


@pytest.mark.parametrize("cut", [lambda field: field, lambda field: field[:, 3:40, 5:9], lambda field: field.load()])
def test_a_field_in_memory_and_a_part_of_one_have_windows_too(tmp_path, small, cut):
    for field in (cut(open_field(FILES["published"](tmp_path))), cut(a_field())):
        assert sum(vectors[0].size for _, _, vectors in windows(field)) == field[0].size
        for rows, columns, vectors in windows(field):
            assert np.array_equal(vectors, field[:, rows, columns].values, equal_nan=True)


def test_vectors_of_pixels_are_read_where_they_lie(tmp_path, small, reads):
    path = FILES["published"](tmp_path)
    whole = read_field(path).values
    rows, columns = np.array([44, 0, 13, 44, 12]), np.array([69, 0, 3, 66, 2])
    reads.clear()
    assert np.array_equal(vectors_at(open_field(path), rows, columns), whole[:, rows, columns].T)
    assert len(reads) == 3 and sum(len(y) * len(x) for _, y, x in reads) < 60


def test_a_file_that_is_cut_short_while_it_is_read_is_damaged(tmp_path):
    path = FILES["published"](tmp_path)
    field = open_field(path)
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(DamagedFieldError, match=r"f\.tif: is damaged"):
        list(windows(field))


def test_a_large_field_is_written_again_strip_by_strip(tmp_path, reads, monkeypatch):
    monkeypatch.setattr("aef.mapping.files.STRIP_PX", 10)
    path = FILES["published"](tmp_path)
    whole = write_field(tmp_path / "whole.tif", read_field(path))
    reads.clear()
    assert write_field(tmp_path / "again.tif", open_field(path)).read_bytes() == whole.read_bytes()
    assert [len(rows) for _, rows, _ in reads] == [10, 10, 10, 10, 5]


def test_a_map_written_by_windows_is_the_one_written_at_once(tmp_path, small):
    field = read_field(FILES["published"](tmp_path))
    write_geotiff(tmp_path / "once.tif", field.values[:1], field, bands=["A00"], tags={"a": "b"})
    with writing_map(tmp_path / "windows.tif", field, bands=["A00"], tags={"a": "b"}) as write:
        for rows, columns, vectors in windows(field):
            write(rows, columns, vectors[0])
    assert (tmp_path / "windows.tif").read_bytes() == (tmp_path / "once.tif").read_bytes()


def test_what_is_kept_for_a_picture_is_every_nth_pixel(small, monkeypatch):
    monkeypatch.setattr(field_windows, "SHOWN_PX", 24)
    field = a_field()
    shown, one_band = Thinned(field.shape), Thinned(field.shape[1:])
    for rows, columns, vectors in windows(field):
        shown.take(rows, columns, vectors)
        one_band.take(rows, columns, vectors[2])
    assert shown.step == 3 and np.array_equal(shown.values, field.values[:, ::3, ::3], equal_nan=True)
    assert np.array_equal(one_band.values, field.values[2, ::3, ::3], equal_nan=True)


def test_a_preview_has_north_up_and_no_vector_where_there_is_no_data(path):
    assert np.array_equal(preview(path), read_field(path).values, equal_nan=True)


# --- the commands ----------------------------------------------------------------------------------------------------


def degrees(row, col):
    (lon,), (lat,) = warp(CRS, "EPSG:4326", [LEFT + 10 * col + 5], [TOP - 10 * row - 5])
    return lon, lat


def run(command, folder, out, *options):
    assert command.main([str(word) for word in ("--fields", folder, "--out", out, *options)]) == 0
    return {path.name: path.read_bytes() for path in out.iterdir() if not path.name.startswith("accuracy")}


@pytest.fixture
def folder(path):
    """A folder that holds one file, and beside it labels: points, and an area that holds the whole field."""
    inside = path.parent / "fields"
    inside.mkdir()
    path.rename(inside / path.name)
    places = [(row, col, "ab"[col // 20 % 2]) for row in range(1, 45, 6) for col in range(2, 70, 9)]
    features = [({"type": "Point", "coordinates": degrees(row, col)}, label) for row, col, label in places]
    ring = [(2.9, 51.0), (3.2, 51.0), (3.2, 51.6), (2.9, 51.6), (2.9, 51.0)]
    features.append(({"type": "Polygon", "coordinates": [ring]}, "a"))
    features = [{"type": "Feature", "properties": {"cover": label}, "geometry": g} for g, label in features]
    (path.parent / "labels.geojson").write_text(json.dumps({"type": "FeatureCollection", "features": features}))
    return inside


@pytest.mark.parametrize("method", ["logistic", "knn"])
def test_classes_are_those_of_a_field_read_at_once_and_no_more_is_read_than_a_part(folder, method, request, reads):
    labels = ("--labels", folder.parent / "labels.geojson", "--column", "cover", "--method", method, "--block-m", 50)
    once = run(classify, folder, folder.parent / "once", *labels)
    reads.clear()
    request.getfixturevalue("small")
    assert run(classify, folder, folder.parent / "parts", *labels) == once
    assert max(len(rows) * len(columns) for _, rows, columns in reads) <= 600
    accuracies = [json.loads((folder.parent / out / "accuracy.json").read_text()) for out in ("once", "parts")]
    assert accuracies[0]["accuracy"] == accuracies[1]["accuracy"] and accuracies[0]["pixels"] > 90


def test_a_search_finds_what_it_finds_in_a_field_read_at_once_and_no_more_is_read_than_a_part(folder, request, reads):
    question = ("--at", "{:.6f},{:.6f}".format(*degrees(30, 44)))
    once = run(search, folder, folder.parent / "once", *question)
    reads.clear()
    request.getfixturevalue("small")
    assert run(search, folder, folder.parent / "parts", *question) == once
    assert max(len(rows) * len(columns) for _, rows, columns in reads) <= 600
    assert (
        sum(len(rows) * len(columns) for _, rows, columns in reads) == HEIGHT * WIDTH + 1
    )  # the pixel that is asked for
    (found,) = csv.DictReader(once["places.csv"].decode().splitlines())
    assert (found["row"], found["col"], found["similarity"]) == ("30", "44", "1.0000")
