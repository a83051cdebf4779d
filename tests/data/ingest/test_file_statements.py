"""What a file says of itself (band names, scale and offset, no-data tag, mask) and a recipe does not may not be lost."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import rasterio
import xarray
from rasterio.transform import Affine

from aef.data.ingest import readers
from aef.data.ingest.raster import viewed
from aef.data.ingest.recipe import parse_recipe
from tests.data.ingest.own_rasters import first_chip

LEFT, TOP, SIDE = 664_000.0, 5_612_000.0, 32
BANDS = ("B2", "B3", "B4", "B8", "B11")
DAYS = ("20210410", "20210701", "20210910", "20220410", "20220701", "20220910")


def recipe(**extra) -> dict:
    item = {
        "name": "s2",
        "glob": "*/S2_*.tif",
        "source": "sentinel2",
        "bands": [*BANDS, "SCL"],
        "band_map": {name: name for name in BANDS},
        "nodata": {"values": [0]},
        "valid": "all",
        "weight": {"var": "SCL", "in": [4, 5, 6]},
        "time": {"from": "file_name", "regex": r"S2_(?P<time>\d{8})"},
        **extra,
    }
    place = {"group_by": "^(?P<place>[^/]+)/", "bounds": {"input": "s2"}}
    return {"name": "mine", "place": place, "inputs": [item]}


def scene(seed: int) -> np.ndarray:
    bands = np.random.default_rng(seed).integers(200, 4000, (5, SIDE, SIDE), dtype=np.uint16)
    return np.concatenate([bands, np.full((1, SIDE, SIDE), 4, np.uint16)])


def write(path: Path, array: np.ndarray, *, mask=None, names=None, scales=None, offsets=None, nodata=None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    profile = {"driver": "GTiff", "count": len(array), "dtype": array.dtype, "crs": "EPSG:32631", "nodata": nodata}
    profile |= {"height": SIDE, "width": SIDE, "transform": Affine(10, 0, LEFT, 0, -10, TOP)}
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True), rasterio.open(path, "w", **profile) as file:
        file.write(array)
        if mask is not None:
            file.write_mask(mask)
        if names:
            file.descriptions = names
        if scales:
            file.scales, file.offsets = scales, offsets


def converted(root: Path, entries: dict):
    chip, report = first_chip(entries, root)
    return chip.sources["sentinel2"], report


def two_baselines(root: Path, *, tags: bool = True) -> list[np.ndarray]:
    """Three scenes before and three after the offset of 1000 came in, as their tags say."""
    scenes = [scene(seed) for seed in range(len(DAYS))]
    for day, array in zip(DAYS, scenes):
        offset = 1000 if day >= "20220125" else 0
        stored = array.copy()
        stored[:5] += offset
        stated = {"scales": [1e-4] * 5 + [1.0], "offsets": [-offset / 1e4] * 5 + [0.0]} if tags else {}
        write(root / "here" / f"S2_{day}.tif", stored, **stated)
    return scenes


# --- scale and offset


def test_files_that_state_different_offsets_are_refused(tmp_path):
    two_baselines(tmp_path)
    with pytest.raises(ValueError, match="one transform cannot fit them all") as refusal:
        converted(tmp_path, recipe())
    words = str(refusal.value)
    assert "here: input s2: band B2: of 6 files" in words and "\n" not in words
    assert "scale 0.0001 and offset 0 in 3 (first S2_20210410.tif)" in words
    assert "scale 0.0001 and offset -0.1 in 3 (first S2_20220410.tif)" in words
    assert "transform: {tags: true, scale: 10000}" in words and "{tags: false}" in words


def test_tags_are_applied_file_by_file_where_the_recipe_asks_for_them(tmp_path):
    scenes = two_baselines(tmp_path)
    series, report = converted(tmp_path, recipe(transform={"tags": True, "scale": 10000}))
    assert series.valid.all() and report.suspicions == []
    for frame, array in zip(series.values, scenes):
        np.testing.assert_allclose(frame, array[:5], rtol=1e-6)


def test_tags_that_the_recipe_sets_aside_change_nothing(tmp_path):
    scenes = two_baselines(tmp_path)
    series, _ = converted(tmp_path, recipe(transform={"tags": False}))
    assert series.values.dtype == np.uint16 and (series.values[0] == scenes[0][:5]).all()
    assert (series.values[5] == scenes[5][:5] + 1000).all()


def test_an_offset_rule_answers_for_the_offset_tags(tmp_path):
    scenes = two_baselines(tmp_path)
    series, report = converted(tmp_path, recipe(offset_rule={"subtract": 1000, "when_minimum_at_least": 1000}))
    assert report.suspicions == [] and all((f == s[:5]).all() for f, s in zip(series.values, scenes))
    with pytest.raises(ValueError, match="keep one"):
        parse_recipe(
            recipe(
                offset_rule={"subtract": 1000, "when_minimum_at_least": 1000}, transform={"tags": True, "scale": 1e4}
            )
        )


def test_one_offset_in_all_files_is_suspicious_and_one_scale_is_not(tmp_path):
    array = scene(1)
    write(tmp_path / "here" / f"S2_{DAYS[0]}.tif", array, scales=[1e-4] * 6, offsets=[-0.02] * 6)
    _, report = converted(tmp_path, recipe())
    (line,) = [text for text in report.suspicions if "offset" in text]
    assert line.startswith("sentinel2 B2, B3, B4, B8, B11: the files state scale 0.0001 and offset -0.02")
    assert "transform: {tags: true, scale: 10000}" in line
    _, report = converted(tmp_path, recipe(transform={"tags": False}))
    assert report.suspicions == []
    write(tmp_path / "here" / f"S2_{DAYS[0]}.tif", array, scales=[1e-4] * 6, offsets=[0.0] * 6)
    series, report = converted(tmp_path, recipe())
    assert report.suspicions == [] and (series.values[0] == array[:5]).all()


def test_netcdf_files_packed_one_by_one_are_refused_too(tmp_path):
    for number, (day, factor) in enumerate(zip(DAYS, (1.0, 0.5))):
        data = xarray.Dataset(
            {"B2": (("y", "x"), scene(number)[0], {"scale_factor": factor, "add_offset": 0.0})},
            {"y": TOP - 5 - 10.0 * np.arange(SIDE), "x": LEFT + 5 + 10.0 * np.arange(SIDE)},
            {"crs": "EPSG:32631"},
        )
        (tmp_path / "here").mkdir(exist_ok=True)
        data.to_netcdf(tmp_path / "here" / f"S2_{day}.nc")
    own = recipe(glob="*/S2_*.nc", bands=[], band_map={"B2": "B2"}, weight="none")
    with pytest.raises(ValueError, match=r"band B2: of 2 files .*scale 0.5"):
        converted(tmp_path, own)
    own["inputs"][0]["decode"] = "cf"
    series, _ = converted(tmp_path, own)
    np.testing.assert_allclose(series.values[1, 0], scene(1)[0] * 0.5)


def test_cf_decoding_of_a_geotiff_is_refused_with_what_to_write(tmp_path):
    two_baselines(tmp_path)
    with pytest.raises(ValueError, match=r"decode: cf is for NetCDF and Zarr: transform: \{tags: true\}"):
        converted(tmp_path, recipe(decode="cf"))


def test_an_offset_that_comes_in_half_way_is_dated_without_tags(tmp_path):
    two_baselines(tmp_path, tags=False)
    _, report = converted(tmp_path, recipe())
    assert any("3 of 6 frames, all from 2022-04-10 on, are never below 1000" in text for text in report.suspicions)


# --- band names


@pytest.mark.parametrize("names", [("B4", "B3", "B2", "B8", "B11", "SCL"), ("B04", "B03", "B02", "B08", "B11", None)])
def test_bands_named_in_another_order_than_the_files_are_refused(tmp_path, names):
    write(tmp_path / "here" / "S2_20200105.tif", scene(1), names=names)
    with pytest.raises(
        ValueError, match=rf"band 1 is called {names[0]} in the file, B2 in the recipe's bands"
    ) as refusal:
        converted(tmp_path, recipe())
    assert "write them in its order" in str(refusal.value)
    order = ["B4", "B3", "B2", "B8", "B11", "SCL"]
    series, _ = converted(tmp_path, recipe(bands=order))
    assert (series.values[0, 0] == scene(1)[2]).all()


def test_names_that_only_one_of_both_knows_are_no_order(tmp_path):
    write(tmp_path / "here" / "S2_20200105.tif", scene(1), names=("blue", "green", "red", "nir", "swir", "class"))
    series, _ = converted(tmp_path, recipe())
    assert (series.values[0] == scene(1)[:5]).all()


# --- what the file declares as empty


def half_mask() -> np.ndarray:
    mask = np.full((SIDE, SIDE), 255, np.uint8)
    mask[:16] = 0
    return mask


def test_a_mask_that_the_recipe_does_not_name_is_refused(tmp_path):
    path = tmp_path / "here" / "S2_20200105.tif"
    write(path, scene(1), mask=half_mask())
    with pytest.raises(ValueError, match=r"its own mask says that 512 pixels hold no data.*nodata: \{file: true\}"):
        converted(tmp_path, recipe())
    series, _ = converted(tmp_path, recipe(nodata={"values": [0], "file": True}))
    assert not series.valid[0, 0, :16].any() and series.valid[0, 0, 16:].all()
    series, _ = converted(tmp_path, recipe(nodata={"values": [0], "file": False}))
    assert series.valid.all()
    write(path, scene(1), mask=np.full((SIDE, SIDE), 255, np.uint8))  # nothing is masked: nothing to ask
    assert converted(tmp_path, recipe())[0].valid.all()


def test_a_no_data_tag_that_the_recipe_contradicts_is_named(tmp_path):
    array = scene(1)
    array[:5, :1, :3] = 777  # too few to look like a fill value
    write(tmp_path / "here" / "S2_20200105.tif", array, nodata=777)
    with pytest.raises(ValueError, match=r"its own no-data tag \(777\) says that \d+ pixels"):
        converted(tmp_path, recipe())
    series, _ = converted(tmp_path, recipe(nodata={"values": [0], "file": True}))
    assert not series.valid[0, 0, 0, :3].any() and series.valid[0, 0, 1].all()
    assert converted(tmp_path, recipe(nodata={"values": [0, 777]}))[0].valid.sum() == series.valid.sum()
    assert converted(tmp_path, recipe(accept={"values": [777]}))[0].valid.all()


def label_of(root: Path, codes: np.ndarray, *, tag=None, mask=None, **extra) -> np.ndarray:
    """Codes 0 (other) and 1 (maize) as the chip holds them, 9 where there is none."""
    write(root / "here" / "S2_20200105.tif", scene(1))
    write(root / "here" / "crops.tif", codes[None], nodata=tag, mask=mask)
    label = {"name": "crops", "glob": "*/crops.tif", "var": 1, "codes": {0: "other", 1: "maize"}, "ignore": [9]}
    chip, _ = first_chip(recipe() | {"labels": [label | extra]}, root)
    return chip.labels["crops"].values


@pytest.mark.parametrize("stated", ["tag", "mask"])
def test_a_label_file_that_calls_a_class_no_data_is_refused_until_the_recipe_follows_it_or_not(tmp_path, stated):
    codes = (half_mask() > 0).astype(np.uint8)
    file = {"tag": 0} if stated == "tag" else {"mask": half_mask()}
    with pytest.raises(ValueError, match=r"512 pixels hold no data, which the recipe takes for a class \(code 0\)"):
        label_of(tmp_path, codes, **file)
    followed, not_followed = (label_of(tmp_path, codes, **file, nodata={"file": follow}) for follow in (True, False))
    assert (followed[:16] == 9).all() and (followed[16:] == 1).all() and np.array_equal(not_followed, codes)


def test_pixels_without_a_code_are_no_part_of_a_class(tmp_path):
    codes = np.where(half_mask() > 0, 0, np.nan).astype(np.float32)
    codes[:, :8] = 1
    found = label_of(tmp_path, codes, min_purity=0.5)
    assert (found[:16, 8:] == 9).all() and (found[16:, 8:] == 0).all() and (found[:, :8] == 1).all()


def test_codes_that_do_not_fit_into_a_label_are_refused(tmp_path):
    codes = np.full((SIDE, SIDE), 1, np.int64)
    codes[0, 0] = 2**32 + 1  # would wrap to 1
    with pytest.raises(ValueError, match="codes of up to 2147483647 fit into a chip, found 1 to 4294967297"):
        label_of(tmp_path, codes)


def test_a_fill_value_of_netcdf_is_taken_as_its_bits_are_read(tmp_path):
    stored = scene(1)[0].astype(np.int16)
    stored[:4] = -1
    data = xarray.Dataset(
        {"B2": (("y", "x"), stored, {"_FillValue": np.int16(-1)})},
        {"y": TOP - 5 - 10.0 * np.arange(SIDE), "x": LEFT + 5 + 10.0 * np.arange(SIDE)},
        {"crs": "EPSG:32631"},
    )
    (tmp_path / "here").mkdir()
    data.to_netcdf(tmp_path / "here" / "S2_20200105.nc")
    own = recipe(glob="*/S2_*.nc", bands=[], band_map={"B2": "B2"}, weight="none", dtype_view="uint16", nodata={})
    with pytest.raises(ValueError, match=r"no-data tag \(65535\)"):
        converted(tmp_path, own)
    own["inputs"][0]["nodata"] = {"file": True}
    series, _ = converted(tmp_path, own)
    assert not series.valid[0, 0, :4].any() and series.valid[0, 0, 4:].all()


@pytest.mark.parametrize("name", ["scale_factor", "_FillValue", "missing_value"])
def test_an_attribute_that_is_no_number_is_named(tmp_path, name, monkeypatch):
    data = xarray.Dataset(
        {"B2": (("y", "x"), scene(1)[0])},
        {"y": TOP - 5 - 10.0 * np.arange(SIDE), "x": LEFT + 5 + 10.0 * np.arange(SIDE)},
        {"crs": "EPSG:32631"},
    )
    (tmp_path / "here").mkdir()
    data.to_netcdf(tmp_path / "here" / "S2_20200105.nc")
    own = recipe(glob="*/S2_*.nc", bands=[], band_map={"B2": "B2"}, weight="none", nodata={})
    opened = readers._open_dataset

    def with_attribute(*arguments):
        found = opened(*arguments)
        found["B2"].attrs[name] = "one"
        return found

    monkeypatch.setattr(readers, "_open_dataset", with_attribute)
    with pytest.raises(ValueError, match=rf"S2_20200105\.nc: B2: its attribute {name} is no number: 'one'"):
        converted(tmp_path, own)


def test_a_no_data_tag_that_the_type_cannot_hold_never_occurs():
    for nodata in (-9999.0, 201.5, 1e9):
        assert viewed([nodata], np.dtype(np.uint16), "") == ()
    assert viewed([201.0, 201.0], np.dtype(np.uint16), "") == (201.0,)
    assert viewed([float("nan")], np.dtype(np.uint16), "") == ()
