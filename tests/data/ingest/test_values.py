"""From stored values to those of a chip: types, scales, offsets, fills, masks and labels."""

from __future__ import annotations

import numpy as np
import pytest
import rasterio
from rasterio.transform import Affine

from aef.data.chips import read_chip
from aef.data.ingest.convert import convert
from aef.data.ingest.places import PlaceFiles
from aef.data.ingest.planes import subtract
from aef.data.ingest.raster import RasterError
from aef.data.ingest.recipe import parse_recipe
from aef.sources import BUILT_IN
from aef.timecode import parse_time
from tests.data.ingest.own_rasters import LEFT, TOP, entries, first_chip, scene, write_scene


@pytest.mark.parametrize(("left", "kind"), [(LEFT, np.uint16), (LEFT + 5, np.float32)])
def test_whole_numbers_stay_what_they_are_where_bilinear_has_nothing_to_interpolate(tmp_path, left, kind):
    stored = scene(np.random.default_rng(0))
    write_scene(tmp_path / "north" / "S2_20200105.tif", stored, left=left)
    chip, _ = first_chip(entries(resample="bilinear"), tmp_path)
    values = chip.sources["sentinel2"].values
    assert values.dtype == kind
    assert np.array_equal(values[0, :4, :, :32], stored[:4]) == (kind == np.uint16)


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
    chip, _ = first_chip(entries(offset_rule={"subtract": 1000, "when_minimum_at_least": 1000}), folder)
    assert np.array_equal(chip.sources["sentinel2"].values[0, 1:4], left_in[1:4] - taken)


def test_an_offset_is_taken_off_a_file_that_covers_the_place_in_part(folder):
    left_in = scene(np.random.default_rng(0))
    left_in[:4] += 1000
    left_in[:, :5] = 0  # the swath ends: no data, not the lowest reflectance
    write_scene(folder / "north" / "S2_20200105.tif", left_in)
    write_scene(folder / "north" / "S2_20200206.tif", np.zeros_like(left_in))
    chip, _ = first_chip(entries(offset_rule={"subtract": 1000, "when_minimum_at_least": 1000}), folder)
    series = chip.sources["sentinel2"]
    assert series.frames == 2 and np.array_equal(series.values[0, :4, 5:], left_in[:4, 5:] - 1000)


def test_an_offset_never_wraps_whole_numbers_and_never_loses_its_fraction(folder):
    assert subtract(np.array([200, 50], np.uint8), 1000).tolist() == [0, 0]
    assert subtract(np.array([200, 50], np.uint16), -1000).tolist() == [1200, 1050]
    with pytest.raises(RasterError, match="whole numbers"):
        first_chip(entries(offset_rule={"map": {"north": 10.5}}), folder)


def test_a_series_is_stored_in_a_type_that_holds_every_file(folder):
    later = scene(np.random.default_rng(0)).astype(np.float32)
    later[:4] += 0.25  # 2020-02-06 was resampled elsewhere, 2020-01-05 was not
    write_scene(folder / "north" / "S2_20200206.tif", later)
    chip, _ = first_chip(entries(), folder)
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
        band_map={name: name for name in bands},
        band_regex=r"_(?P<band>B\d)\.tif",
        weight="none",
        dedupe={"within_s": 60, "keep": "mosaic"},
    )
    own["inputs"][0]["time"] = {"from": "file_name", "regex": r"_(?P<time>\d{8})_"}
    chip, _ = first_chip(own, tmp_path)
    series = chip.sources["sentinel2"]
    assert series.values.dtype == np.uint16
    assert all(np.array_equal(series.values[0, series.bands.index(name)], array[0]) for name, array in stored.items())


def test_a_complex_raster_is_refused_by_name(folder, tmp_path):
    write_scene(folder / "north" / "S2_20200105.tif", scene(np.random.default_rng(0)).astype(np.complex64))
    for extra in ({}, {"offset_rule": {"subtract": 1000, "when_minimum_at_least": 1000}}):
        with pytest.raises(ValueError, match=r"S2_20200105\.tif: .*complex64.*amplitude"):
            list(convert(parse_recipe(entries(**extra)), folder, tmp_path / "chips"))


@pytest.mark.parametrize(
    ("fill", "refused"),
    [(0, None), (65535, "within one step of the limit of uint16"), (4444, "makes up"), (1, "one step of the limit")],
)
def test_a_fill_value_that_nobody_declared_is_refused(folder, fill, refused):
    array = scene(np.random.default_rng(3))
    array[:4, :4] = fill
    write_scene(folder / "north" / "S2_20200105.tif", array)
    if refused is None:
        first_chip(entries(), folder)
        return
    with pytest.raises(ValueError, match=refused) as refusal:
        first_chip(entries(), folder)
    assert "S2_20200105.tif: north: input s2: 1 (band B2)" in str(refusal.value)
    chip, _ = first_chip(entries(nodata={"values": [0, fill]}), folder)
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
    chip, _ = first_chip(own, folder)
    weight = chip.sources["sentinel2"].weight[:, 0]
    # Days end in 5, 6 and 9: the first 8 rows are clear on the first and the last of them.
    assert [int(frame[:8].mean()) for frame in weight] == [255, 0, 255] and (weight[:, 8:] == 0).all()


def test_masks_are_opened_for_their_time_and_for_their_frame_not_for_every_frame(folder, monkeypatch):
    for month in range(1, 10):
        write_scene(folder / "north" / f"S2_20210{month}01.tif", scene(np.random.default_rng(month)))
    days = [path.stem.removeprefix("S2_") for path in (folder / "north").glob("S2_*.tif")]
    for day in days:
        write_scene(folder / "north" / f"CLOUD_{day}.tif", np.zeros((1, 32, 32), np.uint8))
    own = entries(weight={"input": "clouds", "var": "1", "in": [0]})
    own["inputs"].append({"name": "clouds", "role": "qa", "glob": "*/CLOUD_*.tif", "time": own["inputs"][0]["time"]})
    opened: list[str] = []
    opening = PlaceFiles.open
    monkeypatch.setattr(
        PlaceFiles, "open", lambda self, path, item: opened.append(path.name) or opening(self, path, item)
    )
    first_chip(own, folder)
    for day in days:
        assert opened.count(f"CLOUD_{day}.tif") == 2


def test_a_mask_that_covers_less_than_the_bands_is_named(folder):
    write_scene(folder / "north" / "CLOUD_20200105.tif", np.zeros((1, 20, 20), np.uint8))
    own = entries(weight={"input": "clouds", "var": 1, "in": [0]})
    time = {"from": "file_name", "regex": r"_(?P<time>\d{8})"}
    own["inputs"].append({"name": "clouds", "role": "qa", "glob": "*/CLOUD_*.tif", "time": time})
    with pytest.raises(RasterError, match="input clouds has no 1 of the same time that covers all of it"):
        first_chip(own, folder)


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
    chip, _ = first_chip(own, folder)
    label = chip.labels["cover"]
    assert (label.values[:, :10] == 1).all() and (label.values[:, 10] == 0).all() and (label.values[:, 11:] == 2).all()
    assert sorted(np.unique(label.fields)) == [0, 1, 2] and label.valid_end_ms == parse_time("2021-01-01")
    del own["labels"][0]["codes"][2]
    with pytest.raises(ValueError, match="the code 2 is neither in codes nor in ignore"):
        first_chip(own, folder)
