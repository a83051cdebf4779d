"""What values look like, and whether that is what the product should hold: offsets, swaps and scales are seen."""

import numpy as np
import pytest

from aef.data import plausibility
from aef.data.chips import Chip, SourceSeries, write_chip
from aef.data.plausibility import survey, table, wrong_scale
from aef.earthengine.grid import ChipGrid
from aef.sources import BUILT_IN
from aef.timecode import DAY_MS, parse_time


def write_chips(folder, change=lambda values: values, count=10, seed=0):
    """Chips of Sentinel-2 with the order that air gives to dark targets, changed by ``change`` (T, 5, H, W)."""
    folder.mkdir(exist_ok=True)
    rng, source = np.random.default_rng(seed), BUILT_IN["sentinel2"]
    for number in range(count):
        grid = ChipGrid.around(8.5 + number / 50, 47.0, 16)
        dark = np.array([700, 550, 400, 300, 90]).reshape(1, 5, 1, 1)
        values = dark + rng.gamma(2.0, 500, (4, 5, 16, 16))
        times = parse_time("2019-01-01") + np.arange(4) * 10 * DAY_MS
        series = SourceSeries(
            change(values).astype(np.uint16),
            np.ones((4, 1, 16, 16), bool),
            times.astype(np.int64),
            bands=source.band_names,
        )
        write_chip(
            folder / f"c{number}.npz",
            Chip(f"c{number}", grid.crs, grid.affine, 16, 16, 8.5, 47.0, {"sentinel2": series}),
            BUILT_IN,
        )
    return folder


def suspicions(folder):
    return {row.band: row.suspicion for row in survey(folder, BUILT_IN) if row.suspicion}


def test_good_values_are_ok(tmp_path):
    rows = survey(write_chips(tmp_path / "c"), BUILT_IN)
    assert [r.band for r in rows] == list(BUILT_IN["sentinel2"].band_names) and not any(r.suspicion for r in rows)
    assert (
        rows[0].chips == 10
        and rows[0].observed == 1
        and rows[0].minimum <= rows[0].p1 <= rows[0].median <= rows[0].p99 <= rows[0].maximum
    )
    assert all(line.rstrip().endswith("ok") for line in table(rows)[1:])


def test_an_offset_that_was_left_in_is_seen(tmp_path):
    assert "offset of processing baseline" in suspicions(write_chips(tmp_path / "c", lambda v: v + 1000))["B2"]


def test_swapped_bands_are_seen(tmp_path):
    assert "bands swapped" in suspicions(write_chips(tmp_path / "c", lambda v: v[:, [2, 1, 0, 3, 4]]))["B2"]
    assert "bands swapped" in suspicions(write_chips(tmp_path / "d", lambda v: v[:, [4, 1, 2, 3, 0]]))["B2"]


def test_a_wrong_scale_is_seen(tmp_path):
    found = suspicions(write_chips(tmp_path / "c", lambda v: v / 100 + 1))
    assert set(found) == set(BUILT_IN["sentinel2"].band_names) and "wrong unit or scale" in found["B3"]


def test_an_offset_shows_on_one_chip_already(tmp_path):
    folder = write_chips(tmp_path / "c", lambda v: v + 1000, count=1)
    assert "offset of processing baseline" in suspicions(folder)["B2"]


def test_a_source_is_of_the_wrong_scale_when_all_its_bands_are():
    def rows(*medians, source="mine", unit="reflectance x 10000"):
        return [
            plausibility.BandSurvey(source, f"B{n}", unit, 1, 1.0, m, m, m, m, m, (0, 1e5))
            for n, m in enumerate(medians)
        ]

    assert "expected band medians of 100 to 12000 reflectance x 10000, found 0.03 to 0.4" in wrong_scale(
        rows(0.03, 0.4)
    )
    assert wrong_scale(rows(300, 12)) is None  # water is dark in the infrared
    assert wrong_scale(rows(float("nan"))) is None and wrong_scale(rows(0.1, unit="m")) is None
    assert "sentinel1" in wrong_scale(rows(0.1, 0.02, source="sentinel1", unit="dB"))  # linear power
    assert "landsat" in wrong_scale(
        [*rows(0.2, 0.1, unit="reflectance"), *rows(800, source="landsat", unit="reflectance")]
    )


def test_the_table_reads_a_bounded_number_of_chips(tmp_path, monkeypatch):
    folder, read = write_chips(tmp_path / "c", count=30), []
    real = plausibility.read_chip
    monkeypatch.setattr(plausibility, "read_chip", lambda path, registry: read.append(path) or real(path, registry))
    monkeypatch.setattr(plausibility, "SURVEYED_CHIPS", 7)
    survey(folder, BUILT_IN)
    assert len(read) == 7 and read[0].name == "c0.npz" and len(set(read)) == 7


@pytest.mark.parametrize(
    ("source", "upper", "lower"),
    [
        ("sentinel1", "VV", "VH"),
        ("palsar2", "HH", "HV"),
        ("gedi", "rh100", "rh50"),
        ("era5_land", "temperature_2m", "temperature_2m_min"),
    ],
)
def test_every_source_with_ordered_bands_has_a_rule_against_swaps(source, upper, lower):
    rows = [
        plausibility.BandSurvey(source, band, "", 9, 1.0, low, low, low, low, low, (0, 1))
        for band, low in ((upper, 1.0), (lower, 2.0))
    ]
    assert any("swapped" in row.suspicion for row in plausibility._judged(rows))
    assert not any(
        "swapped" in row.suspicion
        for row in plausibility._judged([rows[0], plausibility.dataclasses.replace(rows[1], median=0.5)])
    )
