"""Several files of one date: what each fills, what counts there, and how far the chip reaches."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import rasterio
import yaml
from rasterio.transform import Affine

from aef.data.ingest.places import IngestError
from aef.launcher.command import run
from aef.launcher.ingest import main
from aef.timecode import parse_time
from tests.data.ingest.own_rasters import first_chip

LEFT, TOP, SIDE = 664_000.0, 5_612_000.0, 32
CLEAR, CLOUD = 4, 9


def recipe(dedupe=None, bounds=None, align="ten", weight=None):
    item = {
        "name": "s2",
        "glob": "*/S2_*.tif",
        "source": "sentinel2",
        "bands": ["B2", "B3", "B4", "B8", "B11", "SCL"],
        "band_map": {name: name for name in ("B2", "B3", "B4", "B8", "B11")},
        "nodata": {"values": [0]},
        "valid": "all",
        "weight": weight or {"var": "SCL", "in": [4, 5, 6]},
        "time": {"from": "file_name", "regex": r"S2_(?P<time>\d{8}(T\d{6})?)"},
        "dedupe": dedupe or {"within_s": 3600, "keep": "mosaic"},
    }
    place = {"group_by": "^(?P<place>[^/]+)/", "bounds": bounds or {"input": "s2"}, "grid": {"align": align}}
    return {"name": "mine", "place": place, "inputs": [item]}


def scene(seed: int, side: int = SIDE, width: int | None = None) -> np.ndarray:
    bands = np.random.default_rng(seed).integers(200, 4000, (5, side, width or side), dtype=np.uint16)
    return np.concatenate([bands, np.full((1, *bands.shape[1:]), CLEAR, np.uint16)])


def write(path: Path, array: np.ndarray, left: float = LEFT, top: float = TOP) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    profile = {"driver": "GTiff", "count": len(array), "dtype": array.dtype, "crs": "EPSG:32631"}
    profile |= {"height": array.shape[1], "width": array.shape[2], "transform": Affine(10, 0, left, 0, -10, top)}
    with rasterio.open(path, "w", **profile) as file:
        file.write(array)


def converted(root: Path, entries: dict):
    chip, report = first_chip(entries, root)
    return chip.sources["sentinel2"], report


def halves(root: Path, stamps: tuple[str, str], day: str = "20200105", cloudy_half: bool = False) -> np.ndarray:
    """Two files of one ground that each saw a part of it, columns 12 to 19 both; 0 and class 0 elsewhere."""
    ground = scene(1)
    for stamp, unseen in zip(stamps, (slice(20, None), slice(0, 12))):
        part = ground.copy()
        part[:, :, unseen] = 0
        if cloudy_half and unseen.start == 0:
            part[5, :, 12:] = CLOUD
        write(root / "here" / f"S2_{day}{stamp}.tif", part)
    return ground


def test_in_a_mosaic_each_file_weighs_the_pixels_that_it_filled(tmp_path):
    ground = halves(tmp_path, ("_a", "_b"))
    series, report = converted(tmp_path, recipe())
    assert series.frames == 1 and series.valid.all() and (series.values[0] == ground[:5]).all()
    assert (series.weight == 255).all() and "100% clear" in report.text()


def test_a_cloud_of_one_tile_weighs_only_where_that_tile_was_taken(tmp_path):
    halves(tmp_path, ("_a", "_b"), cloudy_half=True)
    series, _ = converted(tmp_path, recipe())
    assert (series.weight[0, 0, :, :20] == 255).all() and (series.weight[0, 0, :, 20:] == 0).all()


def test_pixels_that_no_file_saw_keep_weight_zero(tmp_path):
    part = scene(1)
    part[:, :, 20:] = 0
    write(tmp_path / "here" / "S2_20200105.tif", part)
    series, _ = converted(tmp_path, recipe())
    assert (series.weight[0, 0, :, 20:] == 0).all() and (series.weight[0, 0, :, :20] == 255).all()


def test_files_of_single_bands_weigh_together(tmp_path):
    ground = scene(1)
    own = recipe()
    (item,) = own["inputs"]
    del item["bands"]
    item |= {"glob": "*/S2_*_B*.tif", "band_regex": r"_(?P<band>B\d+)\.tif"}
    item |= {"weight": {"input": "classes", "var": "1", "in": [CLEAR]}}
    own["inputs"].append({"name": "classes", "role": "qa", "glob": "*/SCL_*.tif", "time": item["time"]})
    item["time"] = own["inputs"][1]["time"] = {"from": "file_name", "regex": r"_(?P<time>\d{8})"}
    for at, band in enumerate(("B2", "B3", "B4", "B8", "B11")):
        write(tmp_path / "here" / f"S2_20200105_{band}.tif", ground[at : at + 1])
    ground[5, :, 16:] = CLOUD
    write(tmp_path / "here" / "SCL_20200105.tif", ground[5:])
    series, _ = converted(tmp_path, own)
    assert series.frames == 1 and series.valid.all()
    assert (series.weight[0, 0, :, :16] == 255).all() and (series.weight[0, 0, :, 16:] == 0).all()


def test_files_of_single_bands_without_a_rule_are_told_which_one_puts_them_together(tmp_path):
    own = recipe()
    (item,) = own["inputs"]
    del item["bands"], item["dedupe"]
    item |= {"glob": "*/S2_*_B*.tif", "band_regex": r"_(?P<band>B\d+)\.tif", "weight": "none"}
    for at, band in enumerate(("B2", "B3")):
        write(tmp_path / "here" / f"S2_20200105_{band}.tif", scene(1)[at : at + 1])
    with pytest.raises(IngestError, match=r"put together by dedupe: \{within_s: 60, keep: mosaic\}$"):
        converted(tmp_path, own)
    item["dedupe"] = {"within_s": 60, "keep": "mosaic"}
    series, _ = converted(tmp_path, own)
    assert series.frames == 1


def test_tiles_seconds_apart_are_one_mosaic_at_the_earliest_time(tmp_path):
    for day in ("20200105", "20200206"):
        ground = halves(tmp_path, ("T104000", "T104014"), day)
    write(tmp_path / "here" / "S2_20200206T114100.tif", scene(3))  # an hour and more later: a scene of its own
    series, report = converted(tmp_path, recipe())
    assert series.time_ms.tolist() == [
        parse_time(text) for text in ("2020-01-05T10:40:00", "2020-02-06T10:40:00", "2020-02-06T11:41:00")
    ]
    assert series.valid.all() and (series.values[0] == ground[:5]).all() and (series.weight == 255).all()
    assert "twins" not in report.text()


def test_each_tile_of_a_mosaic_has_the_mask_of_its_own_time_and_ground(tmp_path):
    own = recipe(weight={"input": "clouds", "var": "1", "in": [0]})
    own["inputs"].append(
        {
            "name": "clouds",
            "role": "qa",
            "glob": "*/CLOUD_*.tif",
            "time": {"from": "file_name", "regex": r"CLOUD_(?P<time>\d{8})"},
        }
    )
    for name, column in (("a", 0), ("b", 16)):
        write(tmp_path / "here" / f"S2_20200105_{name}.tif", scene(column, width=16), LEFT + 10 * column)
        mask = np.full((1, SIDE, 16), column // 16, np.uint8)
        write(tmp_path / "here" / f"CLOUD_20200105_{name}.tif", mask, LEFT + 10 * column)
    series, _ = converted(tmp_path, own)
    assert series.valid.shape[-1] == SIDE and series.valid.all()
    assert (series.weight[0, 0, :, :16] == 255).all() and (series.weight[0, 0, :, 16:] == 0).all()


@pytest.mark.parametrize("align", ["ten", "file"])
def test_the_chip_covers_every_file_of_its_bounds(tmp_path, align):
    small, large = scene(1, side=16), scene(2)
    write(tmp_path / "here" / "S2_20200105.tif", small, LEFT + 43, TOP - 83)
    write(tmp_path / "here" / "S2_20200206.tif", large, LEFT + 3, TOP - 3)
    series, report = converted(tmp_path, recipe(align=align))
    px = SIDE if align == "file" else SIDE + 1  # off the multiples of 10 m a pixel more is needed
    assert series.values.shape == (2, 5, px, px)
    if align == "file":
        assert (series.values[1] == large[:5]).all() and series.valid[0, 0].sum() == 16 * 16
        assert (series.values[0, :, 8:24, 4:20] == small[:5]).all()
    assert "2 files of s2, of 16 x 16 px and 32 x 32 px" in report.text() and "extent: first" in report.text()
    kept, report = converted(tmp_path, recipe(align="file", bounds={"input": "s2", "extent": "first"}))
    assert kept.values.shape == (2, 5, 16, 16) and "note" not in report.text()


def test_files_of_one_extent_need_no_note(tmp_path):
    for day in ("20200105", "20200206"):
        write(tmp_path / "here" / f"S2_{day}.tif", scene(1))
    _, report = converted(tmp_path, recipe())
    assert report.notes == []


def test_scattered_files_are_no_place(tmp_path):
    write(tmp_path / "here" / "S2_20200105.tif", scene(1))
    write(tmp_path / "here" / "S2_20200206.tif", scene(2), LEFT + 50_000, TOP - 50_000)
    with pytest.raises(ValueError, match=r"place here: its 2 files of input s2 lie scattered.*group_by"):
        converted(tmp_path, recipe())


def test_a_dry_run_says_that_the_chip_covers_files_of_different_extent(tmp_path, capsys):
    write(tmp_path / "in" / "here" / "S2_20200105.tif", scene(1, side=16))
    write(tmp_path / "in" / "here" / "S2_20200206.tif", scene(2))
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(recipe()))
    options = ["--recipe", str(tmp_path / "mine.yaml"), "--input", str(tmp_path / "in"), "--out", str(tmp_path / "out")]
    assert run(main, [*options, "--dry-run"]) == 0
    printed = capsys.readouterr().out
    assert "here: 32 x 32 px" in printed and "note: 2 files of s2" in printed
