"""Lists of withheld dates, read strictly."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from aef.data.chips import ChipFolder, write_chip
from aef.data.withheld import WithheldDates, WithheldError, near
from aef.launcher import stats
from aef.sources import BUILT_IN
from aef.timecode import format_time, parse_time

SHARED = Path(__file__).parents[2].parent / "shared" / "data" / "withheld_dates.csv"
HOUR_MS = 3_600_000


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_near_is_the_distance_to_any_wanted_time():
    rng = np.random.default_rng(0)
    times, wanted = np.sort(rng.integers(0, 1000, 50)), np.sort(rng.integers(0, 1000, 7))
    expected = (np.abs(times[:, None] - wanted) <= 20).any(1)
    assert (near(times, wanted, 20) == expected).all() and 0 < expected.sum() < 50
    assert not near(times, np.zeros(0, np.int64), 20).any()


def test_a_date_withholds_its_frame_and_twins_of_every_source_of_its_place(tmp_path):
    path = write(tmp_path / "w.csv", "place,set,time_utc\na,report,2019-05-01T10:00:00Z\n")
    times = parse_time("2019-05-01T10:00:00Z") + np.array([-HOUR_MS - 1, -HOUR_MS, 0, HOUR_MS, HOUR_MS + 1])
    withheld = WithheldDates.read(path)
    assert withheld.frames("a", "sentinel2", times).tolist() == [False, True, True, True, False]
    assert withheld.frames("a", "landsat", times).any()
    assert not withheld.frames("b", "sentinel2", times).any()
    assert len(withheld) == 1 and withheld.places == {"a"}


def test_a_list_that_a_spreadsheet_saved_is_read(tmp_path):
    path = tmp_path / "w.csv"
    path.write_text("place,time_utc\r\na,2019-05-01T10:00:00Z\r\n", encoding="utf-8-sig")
    assert WithheldDates.read(path).places == {"a"}


def test_a_list_may_name_the_source(tmp_path):
    withheld = WithheldDates.read(write(tmp_path / "w.csv", "place,time_utc,source\na,2019-05-01,sentinel2\n"))
    times = np.array([parse_time("2019-05-01")])
    assert withheld.frames("a", "sentinel2", times).all() and not withheld.frames("a", "landsat", times).any()


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("place,date\na,2019-05-01\n", "line 1: expected columns place and time_utc"),
        ("", "line 1"),
        ("place,time_utc\na,2019-05-01\nb,yesterday\n", "line 3: expected an ISO date"),
        ("place,time_utc\na\n", "line 2"),
    ],
)
def test_a_list_that_cannot_be_read_names_file_and_line(tmp_path, text, word):
    with pytest.raises(WithheldError, match=word) as caught:
        WithheldDates.read(write(tmp_path / "w.csv", text))
    assert "w.csv" in str(caught.value) and "\n" not in str(caught.value)


def test_dates_that_no_frame_lies_near_are_counted(make_chip, tmp_path, capsys):
    write_chip(tmp_path / "a.npz", make_chip("a", sources=("sentinel2",)), BUILT_IN)
    folder = ChipFolder(tmp_path, BUILT_IN)
    noon = format_time(int(folder.read(0).sources["sentinel2"].time_ms[1]))
    rows = f"a,sentinel2,{noon}\na,,{noon}\na,sentinel1,{noon}\n"
    path = write(tmp_path / "w.csv", f"place,source,time_utc\n{rows}")
    words = f"1 of 3 dates have no frame of {tmp_path} within 60 minutes and withhold nothing: the first is a sentinel1 {noon}"
    assert WithheldDates.read(path).describe_unmatched(folder) == words
    assert stats.main(["--data", str(tmp_path), "--withheld", str(path), "--dry-run"]) == 0
    assert f"{path}: {words}\n" in capsys.readouterr().err
    path = write(tmp_path / "w.csv", f"place,time_utc\na,{noon}\n")
    assert WithheldDates.read(path).describe_unmatched(folder) is None


@pytest.mark.skipif(not SHARED.exists(), reason="the sample data is not beside the checkout (../shared/data)")
def test_the_frozen_list_of_the_sample_data_is_read():
    withheld = WithheldDates.read(SHARED)
    assert len(withheld) == 63 and len(withheld.places) == 3
