"""The figure of a chip counts what it shows, and can be drawn whatever the chip holds."""

from __future__ import annotations

import errno
import os
from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("matplotlib")

from aef.data.chip_figure import draw_chip
from aef.data.chips import Chip, ChipFolder, Label, SourceSeries, TextPoint, write_chip
from aef.data.ingest.report import frame_line
from aef.data.shard_writer import pack
from aef.data.source_summary import summarise
from aef.launcher.command import run
from aef.launcher.show import main
from aef.sources import BUILT_IN, Source
from aef.timecode import DAY_MS, parse_time

START = parse_time("2020-01-01")


def optical(days: list[float], clear: list[float], side: int = 16) -> SourceSeries:
    """Sentinel-2 without B11, each frame clear from the top down to a share."""
    rng = np.random.default_rng(0)
    frames = len(days)
    valid = np.ones((frames, 5, side, side), np.bool_)
    valid[:, 4] = False
    weight = np.zeros((frames, 1, side, side), np.uint8)
    for frame, share in enumerate(clear):
        weight[frame, :, : round(share * side)] = 255
    return SourceSeries(
        values=rng.integers(100, 4000, (frames, 5, side, side), dtype=np.uint16),
        valid=valid,
        weight=weight,
        time_ms=(START + np.array(days) * DAY_MS).astype(np.int64),
        bands=BUILT_IN["sentinel2"].band_names,
    )


def chip_of(**sources: SourceSeries) -> Chip:
    codes = np.zeros((16, 16), np.int32)
    codes[:8] = 1
    return Chip(
        id="here",
        crs="EPSG:32631",
        transform=(10.0, 0.0, 664000.0, 0.0, -10.0, 5612000.0),
        height=16,
        width=16,
        lon=5.3,
        lat=50.6,
        sources=sources,
        labels={"cover": Label(codes, {1: "field"}, (0,), START, START + DAY_MS, fields=codes)},
        texts=[
            TextPoint(
                664050.0, 5611950.0, 30.0, START, START + DAY_MS, "a long description of a field " * 4, "me", "CC0"
            )
        ],
    )


def test_a_source_is_summed_up_by_what_it_holds():
    series = optical([0, 0.0001, 100, 110], [1.0, 1.0, 1.0, 0.25])
    found = summarise(BUILT_IN["sentinel2"], series)
    assert found.frames == 4 and found.observed == 1 and found.missing == ("B11",)
    assert found.clear == pytest.approx(13 / 16) and found.per_pixel == 3
    assert found.gap_days == pytest.approx(100, abs=0.01) and found.twins == 1
    assert found.suspicions == ("100 d without a clear frame", "1 twins")


def test_clear_is_a_share_of_what_was_observed_wherever_it_is_said():
    series = optical([0, 10], [1, 0.5])
    series.valid[0, :, 8:] = False  # half of the clear frame was not observed
    assert summarise(BUILT_IN["sentinel2"], series).clear == pytest.approx(16 / 24)
    assert frame_line(chip_of(sentinel2=series), "sentinel2", 0, 0).endswith(", 67% clear")


def test_what_was_not_observed_is_suspicious():
    series = optical([0, 10, 20, 30], [1, 0, 0, 0])
    series.valid[:2] = False
    series.weight[:] = 0
    found = summarise(BUILT_IN["sentinel2"], series)
    assert found.observed == pytest.approx(0.5) and found.clear == 0
    assert found.suspicions == ("50% not observed", "only 0% clear")


def native() -> SourceSeries:
    bands = BUILT_IN["era5_land"].band_names
    starts = START + np.arange(3) * 31 * DAY_MS
    return SourceSeries(
        values=np.tile(
            np.array([0.1, 0.1, 0.1] + [280.0] * 6 + [90000.0] * 3, np.float32)[None, :, None, None], (3, 1, 1, 1)
        ),
        valid=np.ones((3, 1, 1, 1), np.bool_),
        time_ms=starts,
        time_end_ms=starts + 31 * DAY_MS,
        transform=(11132.0, 0.0, 660000.0, 0.0, -11132.0, 5620000.0),
        crs="EPSG:32631",
        bands=bands,
    )


def footprints() -> SourceSeries:
    return SourceSeries(
        values=np.ones((4, 101), np.float32),
        valid=np.ones((4, 1), np.bool_),
        time_ms=np.full(4, START, np.int64),
        time_end_ms=np.full(4, START + 31 * DAY_MS, np.int64),
        row=np.arange(4, dtype=np.int32),
        col=np.arange(4, dtype=np.int32),
    )


def cover() -> SourceSeries:
    return SourceSeries(
        values=np.full((1, 1, 16, 16), 41, np.uint8),
        valid=np.ones((1, 1, 16, 16), np.bool_),
        time_ms=np.array([START]),
        time_end_ms=np.array([START + 366 * DAY_MS]),
    )


@pytest.mark.parametrize(
    "sources",
    [
        {"sentinel2": optical([0, 5, 10], [1, 0.5, 0])},
        {"sentinel2": optical([0], [0])},
        {"sentinel2": optical([0, 5], [1, 1]), "era5_land": native(), "gedi": footprints(), "nlcd": cover()},
    ],
    ids=["a series", "one cloudy frame", "every kind of grid"],
)
def test_any_chip_can_be_drawn(tmp_path, capsys, sources):
    path = write_chip(tmp_path / "here.npz", chip_of(**sources), BUILT_IN)
    assert run(main, [str(path), "--dpi", "40"]) == 0
    assert (tmp_path / "here.png").stat().st_size > 5000
    assert sorted(p.name for p in tmp_path.iterdir()) == ["here.npz", "here.png"]
    printed = capsys.readouterr().out
    assert all(f"{name}: " in printed for name in sources)
    assert "here: 16 × 16 px around 5.30000,50.60000 (lon,lat), place here\n" in printed
    assert "label cover: field\n" in printed


def test_a_source_without_an_observation_is_drawn_grey():
    series = optical([0, 5], [1, 1])
    series.valid[:] = False
    figure = draw_chip(chip_of(sentinel2=series), BUILT_IN)
    images = [axes.images[0].get_array() for part in figure.subfigs for axes in part.axes if axes.images]
    assert any(image.ndim == 3 and np.allclose(image, 0.85) for image in images)


def test_maps_show_classes_footprints_and_fields_as_they_are():
    soil = {"name": "soil", "title": "Soil", "bands": [{"name": "c", "unit": "class", "valid_min": 0, "valid_max": 9}]}
    soil |= {"role": "target", "time": "static", "native_resolution_m": 10, "classes": [1, 4], "loss": "cross_entropy"}
    codes = np.ones((1, 1, 16, 16), np.uint8)
    codes[..., 8:], seen = 4, np.ones((1, 1, 16, 16), bool)
    seen[..., 0] = False
    gedi = footprints()
    gedi.values[:] = np.arange(101)
    gedi.values[:, -1], gedi.valid[3] = [10, 20, 30, 999], False
    chip = chip_of(soil=SourceSeries(codes, seen, bands=("c",)), gedi=gedi)
    assert chip.labels["cover"].fields is not None
    chip.labels["cover"].fields = chip.labels["cover"].fields * 7000
    figure = draw_chip(chip, BUILT_IN.extended([Source.from_dict(soil)]))
    maps = {axes.get_title("left"): axes for part in figure.subfigs for axes in part.axes}
    picture = maps["soil c"].images[0].get_array()
    assert (picture[:, 0] == 0.85).all() and len(np.unique(picture.reshape(-1, 3), axis=0)) == 3
    assert maps["gedi"].collections[0].get_array().tolist() == [10, 20, 30]
    assert any("1 fields" in text.get_text() for text in maps["cover"].texts)


def test_nothing_that_is_written_runs_off_the_page():
    soil = {"name": "soil", "title": "Soil", "bands": [{"name": "c", "unit": "1", "valid_min": 0, "valid_max": 9}]}
    soil |= {"role": "target", "time": "static", "native_resolution_m": 10}
    ones = np.ones((1, 1, 16, 16))
    chip = chip_of(soil=SourceSeries(ones, ones > 0, bands=("c",)), gedi=footprints())
    chip.labels["crop"] = chip.labels["cover"]
    chip.texts = [replace(chip.texts[0], text="Rolling land at 129 m with winter barley and woods")]
    figure = draw_chip(chip, BUILT_IN.extended([Source.from_dict(soil)]))
    written = [text for part in figure.subfigs for axes in part.axes for text in axes.texts]
    assert any(text.get_text().startswith("1  Rolling land") for text in written)
    assert max(text.get_window_extent().x1 for text in written) < figure.bbox.width


def test_a_packed_chip_is_drawn_beside_its_shard(tmp_path, capsys):
    (tmp_path / "chips").mkdir()
    write_chip(tmp_path / "chips" / "here.npz", chip_of(sentinel2=optical([0], [1])), BUILT_IN)
    pack(ChipFolder(tmp_path / "chips", BUILT_IN), tmp_path / "packed", 2**30)
    (shard,) = (tmp_path / "packed").glob("*.zip")
    assert run(main, [str(shard / "here.npz"), "--dpi", "40"]) == 0
    assert (tmp_path / "packed" / "here.png").is_file() and "sentinel2: 1 frames" in capsys.readouterr().out
    assert run(main, [str(shard)]) == 1 and "is a shard of many chips: give its folder" in capsys.readouterr().err
    assert run(main, [str(shard / "other.npz")]) == 1 and "no such file or folder" in capsys.readouterr().err


def test_a_folder_is_no_chip(tmp_path, capsys):
    assert run(main, [str(tmp_path)]) == 1
    assert f"{tmp_path}: is a folder: name one of its chips, like {tmp_path}/NAME.npz" in capsys.readouterr().err


def test_a_picture_is_not_written_over_a_chip(tmp_path, capsys):
    path = write_chip(tmp_path / "here.npz", chip_of(sentinel2=optical([0], [1])), BUILT_IN)
    before = path.read_bytes()
    assert run(main, [str(path), "--out", str(path)]) == 1
    assert "here.npz: expected the name of a picture, ending in .png" in capsys.readouterr().err
    assert path.read_bytes() == before


def test_a_full_disk_names_the_picture(tmp_path, capsys, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    path = write_chip(tmp_path / "here.npz", chip_of(sentinel2=optical([0], [1])), BUILT_IN)
    monkeypatch.setattr(os, "fsync", full)
    assert run(main, [str(path)]) == 1
    assert "here.png: No space left on device" in capsys.readouterr().err
    assert [p.name for p in tmp_path.iterdir()] == ["here.npz"]


def test_a_missing_chip_is_one_line(tmp_path, capsys):
    assert run(main, [str(tmp_path / "none.npz")]) == 1
    assert "no such chip" in capsys.readouterr().err


def test_a_resolution_that_is_none_names_its_option(tmp_path, capsys):
    for dpi in ("0", "5", "100000"):  # of 5, letters would have no pixel; of 100000, the picture tens of gigabytes
        assert run(main, [str(tmp_path / "a.npz"), "--dpi", dpi]) == 1
        assert f"--dpi: expected 20 to 600, found {dpi}" in capsys.readouterr().err.replace("1e+05", "100000")


def test_what_to_look_at_twice_stays_inside_the_picture():
    series = replace(optical([0, 0.0001, 100], [1.0, 1.0, 0.1]), weight=None, note="noon stands in")
    series.valid[:, :, 6:] = False
    figure = draw_chip(chip_of(sentinel2=series, landsat=bare(series)), BUILT_IN)
    figure.draw_without_rendering()
    table = figure.subfigs[-1]
    boxes = [text.get_window_extent() for text in table.texts]
    assert max(box.x1 for box in boxes) <= figure.bbox.x1
    red = [box for text, box in zip(table.texts, boxes) if "known to" in text.get_text()]
    assert len(red) == 2 and red[0].y0 >= red[1].y1 and red[1].y0 >= table.bbox.y0


def bare(series: SourceSeries) -> SourceSeries:
    """The same of Landsat, without most of its bands."""
    shape = (series.frames, 7, 16, 16)
    valid = np.zeros(shape, np.bool_)
    valid[:, 0, :6] = True
    return replace(series, values=np.full(shape, 0.2, np.float32), valid=valid, bands=BUILT_IN["landsat"].band_names)
