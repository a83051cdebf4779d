"""docs/data.md says what the code does: its table of sources is the registry's, its example entry works."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from aef.config import PRESETS, Config, DataConfig
from aef.data.chips import SourceSeries, read_chip, write_chip
from aef.data.collate import Collator
from aef.data.sampling import Sampler
from aef.data.standardizer import Standardizer
from aef.data.statistics import Statistics
from aef.data.synthetic import generate
from aef.launcher import sources as command
from aef.model.aef import AEF
from aef.settings_file import read_sources, registry_of
from aef.sources import BUILT_IN, INPUTS
from aef.sources_table import sources_table
from aef.timecode import DAY_MS, parse_time

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "data.md"
FURTHER = ROOT / "launcher" / "configs" / "sources" / "further.yaml"


def test_the_page_tables_every_source():
    """Regenerate with `aef sources --sources-file launcher/configs/sources/further.yaml`."""
    found = re.search(r"<!-- sources -->\n(.*?)\n?<!-- /sources -->", PAGE.read_text(encoding="utf-8"), re.S)
    assert found and found.group(1).strip() == sources_table(registry_of(files=[FURTHER]).values())


def test_every_built_in_source_is_licensed_and_attributed():
    for name, line in zip(BUILT_IN, sources_table(BUILT_IN.values()).splitlines()[2:]):
        assert line.startswith(f"| `{name}` ") and BUILT_IN[name].licence in line and BUILT_IN[name].attribution in line


def test_the_sources_command_lists_own_entries(capsys):
    assert command.main(["--sources-file", str(FURTHER)]) == 0
    assert "| `agera5_daily` " in capsys.readouterr().out


def test_every_setting_that_the_page_names_exists():
    config = Config()
    for section, name in re.findall(r"`(data|train|objective|model)\.(\w+)", PAGE.read_text(encoding="utf-8")):
        assert hasattr(getattr(config, section), name), f"{section}.{name}"


def test_every_choice_of_the_sampler_is_on_the_page():
    text = PAGE.read_text(encoding="utf-8")
    elsewhere = {"regrid_offset", "held_out_places", "cache_chips", "workers", "frame_bucket"}
    for item in dataclasses.fields(DataConfig):
        assert item.name in elsewhere or f"data.{item.name}" in text, item.name


# --- the example entry -----------------------------------------------------------------------------------------------


@pytest.fixture
def mine(tmp_path):
    """The page's own YAML, as a file."""
    (block,) = re.findall(r"```yaml\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.S)
    path = tmp_path / "my_sources.yaml"
    path.write_text(block)
    return path


def lst_series(source) -> SourceSeries:
    """A year of 8-day composites on a 1 km grid, in kelvin, with a gap."""
    rng = np.random.default_rng(0)
    starts = parse_time("2019-01-01") + np.arange(45, dtype=np.int64) * 8 * DAY_MS
    season = 288 + 12 * np.sin(np.arange(45) / 45 * 2 * np.pi)
    values = (season[:, None, None, None] + rng.normal(0, 2, (45, 2, 3, 3)) - [[[[0]], [[8]]]]).astype(np.float32)
    valid = np.ones((45, 1, 3, 3), bool)
    valid[7] = False
    values[7] = np.nan
    return SourceSeries(
        values,
        valid,
        starts,
        time_end_ms=starts + 8 * DAY_MS,
        bands=source.band_names,
        units=source.units,
        collection=source.collections[0],
        licence=source.licence,
    )


def test_a_source_that_the_paper_does_not_have_is_one_yaml_entry(tmp_path, mine):
    registry = registry_of(files=[mine])
    source = registry["modis_lst"]
    assert read_sources(mine) == [source] and yaml.safe_load(mine.read_text())["sources"][0]["name"] == source.name

    chip = _chip_with(source)
    chip = read_chip(write_chip(tmp_path / "c.npz", chip, registry), registry, check_values=True)
    statistics = Statistics.of_chips([chip], registry)
    assert statistics["modis_lst"].mean == pytest.approx((288, 280), abs=2)
    values = torch.from_numpy(chip.sources["modis_lst"].values).movedim(1, -1)
    valid = torch.from_numpy(chip.sources["modis_lst"].valid).movedim(1, -1)
    standardize = Standardizer(source, statistics)
    back = standardize.invert(standardize(values, valid))
    assert torch.allclose(back[:7], values[:7], atol=1e-3)

    targets = (*INPUTS, "modis_lst")
    sample = Sampler(DataConfig(chip_px=16, frame_budget=0.1), registry).draw(chip, seed=0, epoch=0, global_index=0)
    (target,) = sample.targets["modis_lst"]
    assert target.values.shape == (1, 1, 2) and target.period.contains(target.time_ms)
    batch = Collator(registry, INPUTS, targets)([sample])
    model = AEF(PRESETS["tiny"].model, registry, statistics, inputs=INPUTS, targets=targets)
    assert model(batch).reconstructions["modis_lst"].shape == (1, 16, 16, 2)


def _chip_with(source):
    chip = generate(0, chip_px=16, sources=INPUTS)
    series = lst_series(source)
    shift = int(chip.sources["sentinel2"].time_ms[0]) - int(series.time_ms[0])
    series.time_ms, series.time_end_ms = series.time_ms + shift, series.time_end_ms + shift
    left, top = chip.transform[2], chip.transform[5]
    series.transform = (1000.0, 0.0, left - 1000.0, 0.0, -1000.0, top + 1000.0)
    chip.sources["modis_lst"] = series
    return chip
