"""One map of many fields: which field a pixel is of, codes bit by bit, and what cannot be put together."""

import csv
import itertools

import matplotlib.image
import numpy as np
import pytest
import rasterio
from rasterio.crs import CRS
from rasterio.transform import Affine
from rasterio.warp import transform as warp
from rasterio.warp import transform_bounds

from aef.data.chips import Chip
from aef.launcher import classify, search
from aef.launcher import mosaic as command
from aef.launcher.command import run
from aef.mapping import files, mosaic
from aef.mapping.field_choice import FieldChoiceError, field_files
from aef.mapping.files import DamagedFieldError, as_data_array, read_field, read_tags, write_field
from aef.mapping.made_by import MadeBy
from aef.mapping.mosaic import plan_mosaic, write_mosaic
from aef.mapping.quantize import NODATA, dequantize, quantize
from aef.timecode import parse_period

ZONE, LEFT, TOP = "EPSG:32631", 500_000.0, 5_700_000.0
YEAR, NEXT = parse_period("2019-01-01/2020-01-01"), parse_period("2020-01-01/2021-01-01")
MODEL = MadeBy("small@20", "0" * 64)


def a_field(name, row=0, col=0, size=(20, 20), crs=ZONE, made_by=MODEL, period=YEAR, shift_m=0.0, bands=8, **about):
    """A field whose first pixel is pixel (row, col) of the map; its vectors are its own."""
    x, y = LEFT + 10 * col + shift_m, TOP - 10 * row
    chip = Chip(name, crs, (10.0, 0, x, 0, -10.0, y), *size, 3.0, 51.0, {})
    vectors = np.random.default_rng(sum(name.encode())).normal(size=(1, bands, *size))
    vectors = (vectors / np.linalg.norm(vectors, axis=1)).astype(np.float32)
    about = {"sources": "sentinel2", "support": str(YEAR), **about}
    return as_data_array(vectors, chip, [period], [about], made_by, single=True)


def write_all(folder, *fields, form="int8"):
    folder.mkdir(exist_ok=True)
    for field in fields:
        write_field(folder / f"{field.attrs['chip']}{files.SUFFIX[form]}", field, form)
    return field_files(folder)


def codes_of(path):
    with rasterio.open(path) as file:
        return file.read()


def by_hand(fields, height, width):
    """Codes (band, y, x), pixel by pixel."""
    out = np.full((8, height, width), NODATA, np.int8)
    placed = []
    for field in fields:
        affine = files.transform_of(field)
        placed.append((quantize(field.values), round((TOP - affine.f) / 10), round((affine.c - LEFT) / 10)))
    for y, x in np.ndindex(height, width):
        best = (0, 0)
        for codes, top, left in placed:
            row, col = y - top, x - left
            down, across = min(row, codes.shape[1] - 1 - row) + 1, min(col, codes.shape[2] - 1 - col) + 1
            depth = (min(down, across), max(down, across))
            if depth > best and min(depth) > 0 and codes[0, row, col] != NODATA:
                best, out[:, y, x] = depth, codes[:, row, col]
    return out


@pytest.fixture
def four():
    """Four overlapping fields on 36 x 36 pixels; one has a hole that the others cover in part."""
    fields = [a_field(f"c{row}{col}", row, col) for row, col in itertools.product((0, 16), repeat=2)]
    fields[0].values[:, 5:, 5:19] = np.nan
    return fields


def test_each_pixel_is_of_the_field_in_which_it_is_most_central_and_has_a_vector(four, tmp_path, monkeypatch):
    paths, out = write_all(tmp_path / "fields", *four), tmp_path / "map.tif"
    monkeypatch.setattr(files, "STRIP_PX", 7)
    write_mosaic(out, plan_mosaic(paths))
    expected = by_hand(four, 36, 36)
    assert np.array_equal(codes_of(out), expected)
    hole, filled = expected[0, 6:16, 6:16], expected[0, 17, 6:16]
    assert (hole == NODATA).all() and (filled != NODATA).all()
    with rasterio.open(out) as file:
        assert file.descriptions == tuple(f"A{band:02d}" for band in range(8)) and file.nodata == NODATA
        assert file.transform == Affine(10, 0, LEFT, 0, -10, TOP) and file.crs == CRS.from_user_input(ZONE)
        assert file.tags(ns="IMAGE_STRUCTURE")["LAYOUT"] == "COG"
    assert read_tags(out)[1]["vectors"] == str((expected[0] != NODATA).sum())


def test_every_code_of_an_int8_field_is_copied_bit_by_bit(tmp_path):
    (path,) = write_all(tmp_path / "fields", a_field("a", size=(16, 16)))
    every = np.random.default_rng(0).integers(-127, 128, (8, 16, 16)).astype(np.int8)
    every[:, 3, 3] = NODATA
    with rasterio.open(path, "r+", IGNORE_COG_LAYOUT_BREAK="YES") as file:
        file.write(every)
    write_mosaic(tmp_path / "map.tif", plan_mosaic([path]))
    assert np.array_equal(codes_of(tmp_path / "map.tif"), every)


@pytest.mark.parametrize("forms", [("float", "float"), ("float", "int8"), ("netcdf", "netcdf")], ids="+".join)
def test_fields_that_are_not_all_codes_make_a_map_of_floats(forms, tmp_path):
    fields = a_field("a"), a_field("b", col=12)
    for field, form in zip(fields, forms):
        write_all(tmp_path / "fields", field, form=form)
    write_mosaic(tmp_path / "map.tif", plan_mosaic(field_files(tmp_path / "fields")))
    assert read_tags(tmp_path / "map.tif")[0] == "float"
    a, b = (dequantize(quantize(f.values)) if form == "int8" else f.values for f, form in zip(fields, forms))
    expected = np.concatenate([a[:, :, :16], b[:, :, 4:]], axis=2)
    assert np.array_equal(read_field(tmp_path / "map.tif").values, expected)


def test_a_field_that_is_stored_from_south_to_north_lies_as_any_other(tmp_path):
    south = a_field("a", col=10)
    paths = write_all(tmp_path / "fields", a_field("b"))
    grid = {"crs": ZONE, "transform": Affine(10, 0, LEFT + 100, 0, 10, TOP - 200), "nodata": NODATA}
    path = tmp_path / "fields" / "a.tif"
    with rasterio.open(path, "w", driver="GTiff", dtype="int8", count=8, height=20, width=20, **grid) as file:
        file.write(quantize(south.values)[:, ::-1])
        file.update_tags(**{key: south.attrs[key] for key in (*MODEL.tags, "period", "support")})
    write_mosaic(tmp_path / "map.tif", plan_mosaic([*paths, path]))
    assert np.array_equal(codes_of(tmp_path / "map.tif"), by_hand([a_field("b"), south], 20, 30))


def test_the_map_says_where_it_is_from(tmp_path):
    left_out = MadeBy("small@20", "0" * 64, ("landsat",))
    fields = [
        a_field("a", made_by=left_out, sources="sentinel2, sentinel1"),
        a_field("b", col=10, made_by=left_out, sources="glo30, sentinel2"),
    ]
    write_mosaic(tmp_path / "map.tif", plan_mosaic(write_all(tmp_path / "fields", *fields)))
    tags = read_field(tmp_path / "map.tif").attrs
    assert {name: tags[name] for name in (*left_out.tags, "period", "support", "sources", "fields")} == {
        **left_out.tags,
        "period": str(YEAR),
        "support": str(YEAR),
        "sources": "glo30, sentinel1, sentinel2",
        "fields": "2",
    }
    assert "chip" not in tags and "place" not in tags


@pytest.mark.parametrize(
    ("other", "words"),
    [
        ({"period": NEXT}, "its period is 2020-01-01/2021-01-01, that of a.tif is 2019-01-01/2020-01-01: a map has one"),
        ({"support": str(NEXT)}, "its support is 2020-01-01/2021-01-01, that of a.tif is 2019-01-01/2020-01-01"),
        ({"made_by": MadeBy("small@30", "0" * 64)}, "its model_version is small@30, that of a.tif is small@20"),
        ({"made_by": MadeBy("small@20", "0" * 64, ("landsat",))}, "its left_out is landsat, that of a.tif is none"),
        ({"crs": "EPSG:32632"}, "several projections, EPSG:32631 (1), EPSG:32632 (1): make one map of each, chosen by --crs"),
        ({"shift_m": 2.5}, "b.tif: its pixels lie between those of a.tif, 0.25 of a pixel east and 0.00 south"),
        ({"bands": 16}, "b.tif: expected 8 bands as in a.tif, found 16"),
    ],
    ids=["period", "support", "model", "left out", "zone", "lattice", "bands"],
)  # fmt: skip
def test_what_does_not_belong_together_is_refused_with_what_differs(other, words, tmp_path):
    paths = write_all(tmp_path / "fields", a_field("a"), a_field("b", col=10, **other))
    with pytest.raises(FieldChoiceError) as refused:
        plan_mosaic(paths)
    assert words in str(refused.value)


def test_pixels_of_another_size_are_refused(tmp_path):
    coarse = a_field("b")
    coarse = coarse.assign_coords(x=LEFT + 10 + 20 * np.arange(20), y=TOP - 10 - 20 * np.arange(20))
    with pytest.raises(FieldChoiceError, match=r"expected pixels of 10 x 10 as in a\.tif, found 20 x 20"):
        plan_mosaic(write_all(tmp_path / "fields", a_field("a"), coarse))


def test_one_zone_one_period_and_one_part_are_chosen(tmp_path):
    fields = [a_field("a"), a_field("b", col=16), a_field("far", col=5000)]
    paths = write_all(tmp_path / "fields", *fields, a_field("z", crs="EPSG:32632"), a_field("next", period=NEXT))
    plan = plan_mosaic(paths, period=YEAR, crs="EPSG:32631")
    assert plan.shape == (8, 20, 5020) and len(plan.tiles) == 3
    # Whole pixels, those at the border too: from 10 m inside to 5 m inside the next one.
    box = transform_bounds(ZONE, "EPSG:4326", LEFT + 171, TOP - 59, LEFT + 229, TOP - 31)
    part = plan_mosaic(paths, period=YEAR, crs="EPSG:32631", bbox=box)
    assert part.shape == (8, 3, 6) and len(part.tiles) == 2
    whole = by_hand(fields[:2], 20, 36)
    assert np.array_equal(part.strip(0, 3), whole[:, 3:6, 17:23])
    assert part.transform.almost_equals(Affine(10, 0, LEFT + 170, 0, -10, TOP - 30), 1e-6)
    for crs, box, words in (
        ("EPSG:32633", None, "no field lies in EPSG:32633: there are fields in EPSG:32631 (3), EPSG:32632 (1)"),
        ("utm 31", None, "expected a projection like EPSG:32631, found 'utm 31'"),
        (ZONE, (9.0, 51.0, 9.1, 51.1), "no field lies in the box 9,51,9.1,51.1"),
        (ZONE, (-177.0, -51.0, -176.0, -50.0), "no field lies in the box"),
        (ZONE, (3.0, 52.0, 2.0, 51.0), "must be WEST,SOUTH,EAST,NORTH"),
    ):
        with pytest.raises(FieldChoiceError) as refused:
            plan_mosaic(paths, period=YEAR, crs=crs, bbox=box)
        assert words in str(refused.value)


def test_a_map_that_memory_cannot_hold_is_refused_before_it_is_begun(tmp_path, monkeypatch):
    paths = write_all(tmp_path / "fields", a_field("a"), a_field("b", row=9_980, col=9_980))
    monkeypatch.setattr(mosaic, "memory_bytes", lambda: 10**9)
    with pytest.raises(FieldChoiceError) as refused:
        plan_mosaic(paths)
    assert str(refused.value) == (
        "a map of 10,000 x 10,000 px needs 2.4 GB of memory, this machine has 1.0; the fields together have 0.0% of its "
        "pixels: choose a part of it by --bbox"
    )
    monkeypatch.setattr(mosaic, "memory_bytes", lambda: None)
    assert plan_mosaic(paths).shape == (8, 10_000, 10_000)


def test_a_damaged_field_leaves_no_map(tmp_path):
    paths, out = write_all(tmp_path / "fields", a_field("a"), a_field("b", col=16)), tmp_path / "map.tif"
    whole = paths[1].read_bytes()
    paths[1].write_bytes(whole[: len(whole) - 400])
    with pytest.raises(DamagedFieldError):
        write_mosaic(out, plan_mosaic(paths))
    assert not out.exists()


# --- the command -----------------------------------------------------------------------------------------------------


@pytest.fixture
def call(four, tmp_path, capsys):
    write_all(tmp_path / "fields", *four)

    def call(*words, out=tmp_path / "map.tif"):
        code = run(command.main, ["--fields", str(tmp_path / "fields"), "--out", str(out), *map(str, words)])
        said = capsys.readouterr()
        return code, said.out, said.err

    return call


def test_the_command_writes_the_map_and_its_picture(call, four, tmp_path):
    code, said, _ = call("--period", YEAR)
    assert code == 0 and said == f"4 fields in one map of 36 x 36 px: {tmp_path / 'map.tif'}\n"
    assert np.array_equal(codes_of(tmp_path / "map.tif"), by_hand(four, 36, 36))
    assert matplotlib.image.imread(tmp_path / "map.png").shape[:2] == (36 * 14, 36 * 14)
    code, _, _ = call("--no-quicklook", "--bbox", "2.9,51,3.1,52", out=tmp_path / "part.tif")
    assert code == 0 and not (tmp_path / "part.png").exists()


def test_a_name_that_would_do_harm_is_refused(call, tmp_path):
    for out, words in (
        (tmp_path / "fields" / "map.tif", "would be taken for one of the fields next time"),
        (tmp_path / "map.nc", "expected a name that ends in .tif"),
        (tmp_path / "no" / "map.tif", "expected a folder that is there"),
    ):
        code, _, said = call(out=out)
        assert code == 1 and words in said and not out.exists()
    code, _, said = call("--bbox", "1,2,3")
    assert code == 1 and "expected --bbox WEST,SOUTH,EAST,NORTH, found '1,2,3'" in said


def test_a_map_is_classified_and_searched_as_any_field(call, tmp_path):
    maps, labels = tmp_path / "maps", tmp_path / "labels.csv"
    maps.mkdir()
    assert call(out=maps / "map.tif")[0] == 0
    with open(labels, "w", newline="") as stream:
        table = csv.writer(stream)
        table.writerow(("lon", "lat", "cover"))
        for number, (row, col) in enumerate(itertools.product((1, 25, 34), (1, 20, 25, 34))):
            (lon,), (lat,) = warp(ZONE, "EPSG:4326", [LEFT + 10 * col + 5], [TOP - 10 * row - 5])
            table.writerow((lon, lat, "wood" if number % 2 else "water"))
    words = ["--fields", maps, "--labels", labels, "--column", "cover", "--method", "knn", "--block-m", "50"]
    assert run(classify.main, [*map(str, words), "--period", str(YEAR), "--out", str(tmp_path / "classes")]) == 0
    with rasterio.open(tmp_path / "classes" / "map_classes.tif") as file:
        assert file.shape == (36, 36)
        assert np.array_equal(file.read(1) == 0, codes_of(maps / "map.tif")[0] == NODATA)
    (lon,), (lat,) = warp(ZONE, "EPSG:4326", [LEFT + 10 * 25 + 5], [TOP - 10 * 30 - 5])
    found = ["--fields", maps, "--at", f"{lon},{lat}", "--period", YEAR, "--out", tmp_path / "found"]
    assert run(search.main, [*map(str, found)]) == 0
    with open(tmp_path / "found" / "places.csv") as stream:
        (best,) = csv.DictReader(stream)
    assert (best["chip"], best["row"], best["col"], best["similarity"]) == ("map", "30", "25", "1.0000")
