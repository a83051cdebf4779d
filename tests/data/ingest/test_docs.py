"""The worked examples of docs/ingest.md do what the page says, on rasters made for them."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import rasterio
import xarray
import yaml
from rasterio.transform import Affine

from aef.data.chips import read_chip
from aef.data.ingest.convert import convert
from aef.data.ingest.recipe import parse_recipe
from aef.settings_file import registry_of
from aef.timecode import DAY_MS, parse_time

PAGE = (Path(__file__).parents[3] / "docs" / "ingest.md").read_text(encoding="utf-8")
EXAMPLES = {entries["name"]: entries for entries in map(yaml.safe_load, re.findall(r"```yaml\n(.*?)```", PAGE, re.S))}
LEFT, TOP = 664_000.0, 5_612_000.0


def write_tif(path: Path, array: np.ndarray, pixel: float = 10.0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    transform = Affine(pixel, 0, LEFT, 0, -pixel, TOP)
    profile = {
        "driver": "GTiff",
        "count": len(array),
        "dtype": array.dtype,
        "crs": "EPSG:32631",
        "transform": transform,
    }
    with rasterio.open(path, "w", height=array.shape[1], width=array.shape[2], **profile) as file:
        file.write(array)


def test_the_ten_lines_are_a_recipe():
    (block,) = re.findall(r"<<'YAML'\n(.*?)YAML\n", PAGE, re.S)
    recipe = parse_recipe(yaml.safe_load(block))
    assert set(recipe.inputs[0].band_map) == {"B2", "B3", "B4", "B8", "B11"}
    shell = re.search(r"```bash\n(cat > mine.*?)```", PAGE, re.S)
    assert shell and shell.group(1).count("\n") == 10


def test_dated_geotiffs_with_masks_and_labels(tmp_path):
    rng = np.random.default_rng(0)
    for place in ("north", "south"):
        for day in ("20200105", "20200614"):
            write_tif(tmp_path / "in" / place / f"S2_{day}.tif", rng.integers(300, 3000, (5, 32, 32), dtype=np.uint16))
            mask = np.zeros((1, 16, 16), np.uint8)
            mask[0, :4] = 1
            write_tif(tmp_path / "in" / place / f"CLOUD_{day}.tif", mask, 20.0)
        codes = np.full((1, 32, 32), 2, np.uint8)
        codes[0, :, :10] = 1
        write_tif(tmp_path / "in" / place / "crops.tif", codes)
    out = tmp_path / "chips"
    reports = list(convert(parse_recipe(EXAMPLES["dated_geotiffs"]), tmp_path / "in", out))
    assert [report.place for report in reports] == ["north", "south"]
    chip = read_chip(out / "north.npz", registry_of(out), check_values=True)
    series = chip.sources["sentinel2"]
    assert series.time_ms.tolist() == [parse_time(d) + DAY_MS // 2 for d in ("2020-01-05", "2020-06-14")]
    assert (series.weight[:, 0, :8] == 0).all() and (series.weight[:, 0, 8:] == 255).all()
    assert chip.labels["crops"].legend == {1: "maize", 2: "grass"} and chip.labels["crops"].fields.max() == 2


@pytest.fixture
def hill(tmp_path: Path) -> Path:
    """The three files of the second example."""
    rng = np.random.default_rng(1)
    root = tmp_path / "in"
    root.mkdir()
    x, y = 3_950_000 + 10.0 * np.arange(40), 3_100_000 - 10.0 * np.arange(40)
    ndvi = rng.integers(100, 9000, (12, 40, 40)).astype(np.uint16)
    ndvi[:, 20:22, 20:22], ndvi[3:5] = 0, 65535
    months = np.arange("2021-01", "2022-01", dtype="datetime64[M]").astype("datetime64[ns]")
    attributes = {"crs": "EPSG:3035"}
    xarray.Dataset(
        {"ndvi": (("t", "y", "x"), ndvi.view(np.int16), {"_Unsigned": "true"})},
        {"t": months, "y": y, "x": x},
        attributes,
    ).to_netcdf(root / "cube_hill.nc")
    days = np.datetime64("2021-01-01", "ns") + np.arange(60) * np.timedelta64(1, "D")
    temperature = np.broadcast_to(rng.integers(26000, 29000, (60, 1, 1)).astype(np.int32), (60, 40, 40))
    xarray.Dataset({"tmean": (("t", "y", "x"), temperature)}, {"t": days, "y": y, "x": x}, attributes).to_netcdf(
        root / "weather_hill.nc"
    )
    profile = {"driver": "GTiff", "count": 1, "dtype": "int16", "crs": "EPSG:3035", "height": 60, "width": 60}
    for name, left in (("tile_07", x[0] - 500), ("tile_08", x[0] + 50_000)):
        (root / "dem").mkdir(exist_ok=True)
        with rasterio.open(
            root / "dem" / f"{name}.tif", "w", transform=Affine(30, 0, left, 0, -30, y[0] + 500), **profile
        ) as file:
            file.write(np.full((1, 60, 60), 321, np.int16))
    return root


def test_a_cube_with_weather_and_terrain(hill, tmp_path):
    out = tmp_path / "chips"
    (report,) = convert(parse_recipe(EXAMPLES["cube"]), hill, out)
    registry = registry_of(out)
    chip = read_chip(out / report.file, registry, check_values=True)
    series = chip.sources["ndvi_monthly"]
    assert chip.place == "hill" and series.frames == 10 and registry["ndvi_monthly"].channels == 1
    assert series.time_ms[1] == parse_time("2021-02-01") and series.time_end_ms[1] == parse_time("2021-03-01")
    assert series.values[:, 0][series.valid[:, 0]].min() >= 0 and series.values.max() < 9000
    cell = chip.sources["station_temperature"]
    assert cell.values.shape == (60, 1, 1, 1) and 260 <= cell.values.min() <= cell.values.max() <= 290
    terrain = chip.sources["glo30"]
    assert terrain.valid[0, 0].all() and (terrain.values[0, 0] == 321).all()
    assert report.unused == []


@pytest.mark.parametrize(
    ("name", "field", "words"),
    [
        ("ndvi", "dtype_view", "-1"),
        ("ndvi", "nodata", "65535"),
        ("ndvi", "accept", "lowest value 0"),
        ("temperature", "collapse", "collapse"),
        ("terrain", "match", "match: overlap"),
    ],
)
def test_what_the_page_says_would_do_harm_is_refused(hill, tmp_path, name, field, words):
    entries = yaml.safe_load(yaml.safe_dump(EXAMPLES["cube"]))
    del next(item for item in entries["inputs"] if item["name"] == name)[field]
    with pytest.raises(ValueError, match=words):
        list(convert(parse_recipe(entries), hill, tmp_path / "chips"))


def test_the_page_names_every_field_and_every_recipe():
    from aef.data.ingest import schema

    for kind in (schema.Place, schema.Input, schema.LabelRule, schema.TimeRule, schema.NoData, schema.Transform):
        for name, field in kind.__dataclass_fields__.items():
            key = field.metadata.get("key", name)
            assert re.search(rf"`[^`]*\b{re.escape(key)}\b[^`]*`", PAGE), f"docs/ingest.md does not name {key}"
    recipes = Path(__file__).parents[3] / "launcher" / "configs" / "ingest"
    assert all(f"`{path.stem}`" in PAGE for path in recipes.glob("*.yaml"))
