"""A small folder of chips, and trainers over it."""

import dataclasses
import shutil

import numpy as np
import pytest
import torch

from aef.config import PRESETS
from aef.data.chips import Chip, SourceSeries, write_chip
from aef.sources import BUILT_IN
from aef.timecode import DAY_MS, parse_time

torch.set_num_threads(1)  # threads that wait for each other cost far more than they bring here
SIDE_PX = 20
START_MS = parse_time("2018-01-01")
FRAMES = {"sentinel2": 24, "sentinel1": 14, "landsat": 6, "glo30": 1}


def build_series(name, rng):
    source, frames = BUILT_IN[name], FRAMES[name]
    low = np.array([band.valid_min for band in source.bands])
    span = np.array([band.valid_max for band in source.bands]) - low
    shape = (frames, source.channels, SIDE_PX, SIDE_PX)
    season = 0.3 + 0.2 * rng.random((frames, source.channels, 1, 1))
    values = low[:, None, None] + span[:, None, None] * (season + 0.1 * rng.random(shape))
    days = np.sort(rng.choice(480, frames, replace=False)).astype(np.int64)
    return SourceSeries(
        values=values.astype(np.float32),
        valid=rng.random((frames, 1, SIDE_PX, SIDE_PX)) > 0.05,
        weight=rng.integers(1, 256, (frames, 1, SIDE_PX, SIDE_PX)).astype(np.uint8),
        time_ms=None if source.time == "static" else START_MS + days * DAY_MS,
        metadata=rng.random((frames, len(source.metadata))).astype(np.float32) if source.metadata else None,
        bands=source.band_names,
        units=tuple(band.unit for band in source.bands),
    )


def build_chip(number):
    rng = np.random.default_rng(number)
    return Chip(
        id=f"place{number}",
        crs="EPSG:32632",
        transform=(10.0, 0.0, 500000.0, 0.0, -10.0, 5000000.0),
        height=SIDE_PX,
        width=SIDE_PX,
        lon=9.0,
        lat=45.0,
        sources={name: build_series(name, rng) for name in FRAMES},
    )


@pytest.fixture(scope="session")
def pristine_chips(tmp_path_factory):
    """Five chips with statistics, which no test may change."""
    from aef.data.chips import ChipFolder
    from aef.data.statistics import FILE_NAME, Statistics

    folder = tmp_path_factory.mktemp("chips") / "chips"
    folder.mkdir()
    for number in range(5):
        write_chip(folder / f"place{number}.npz", build_chip(number), BUILT_IN)
    Statistics.of_chips(ChipFolder(folder, BUILT_IN), BUILT_IN).write(folder / FILE_NAME)
    return folder


@pytest.fixture
def chips(pristine_chips, tmp_path):
    """A copy of the chips for one test."""
    return shutil.copytree(pristine_chips, tmp_path / "chips")


def tiny(**train):
    """The preset `tiny` with other `train.*` settings; ten steps, a checkpoint every three."""
    settings = {"steps": 10, "checkpoint_every": 3, **train}
    return dataclasses.replace(PRESETS["tiny"], train=dataclasses.replace(PRESETS["tiny"].train, **settings))


@pytest.fixture
def make_config():
    """`make_config(steps=10, …)` → the preset `tiny` with other `train.*` settings."""
    return tiny


@pytest.fixture(scope="session")
def uninterrupted(pristine_chips, tmp_path_factory):
    """The log of a run that nothing interrupted: ten steps of `make_config()`."""
    from aef.training import Trainer
    from aef.training.log import read_log

    run = tmp_path_factory.mktemp("uninterrupted") / "run"
    with Trainer(tiny(), pristine_chips, run, quiet=True) as trainer:
        assert trainer.fit()
    return read_log(run)


@pytest.fixture
def configure(make_config):
    """`configure(data={...}, **train)` → the preset `tiny` with other `data.*` and `train.*` settings; two steps, a
    checkpoint after each."""

    def build(data=(), **train):
        config = make_config(**{"steps": 2, "checkpoint_every": 1, "figure_every": 0, **train})
        return dataclasses.replace(config, data=dataclasses.replace(config.data, **dict(data)))

    return build


@pytest.fixture
def train():
    """`train(config, chips, run, resume=None, steps=None)` → the trainer, at the end, or left after some steps as by a crash."""
    from aef.training import Trainer

    def to_the_end(config, chips, run, resume=None, steps=None):
        with Trainer(config, chips, run, resume=resume) as trainer:
            for record in trainer.steps():
                if record["step"] == steps:
                    break
            return trainer

    return to_the_end


@pytest.fixture
def listed(tmp_path):
    """A list that withholds a date of two places, one of them in the set `tune`."""
    path = tmp_path / "dates.csv"
    path.write_text("place,time_utc,set\nplace0,2018-03-01,tune\nplace1,2018-04-01,report\n")
    return path
