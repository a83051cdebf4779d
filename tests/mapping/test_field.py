"""Windows, supports and frames of an embedding field."""

import numpy as np
import pytest

from aef.data.chips import Chip, SourceSeries
from aef.mapping.field import EmbeddingError, cut_frames, group_by_support, observed_span, support_of, windows
from aef.timecode import DAY_MS, Period

YEAR = 365 * DAY_MS


def chip_of(times: np.ndarray, side: int = 4) -> Chip:
    values = np.arange(len(times) * 5 * side * side, dtype=np.uint16).reshape(len(times), 5, side, side)
    series = SourceSeries(values=values, valid=np.ones_like(values, bool), time_ms=times)
    return Chip("c", "EPSG:32631", (10, 0, 0, 0, -10, 0), side, side, 3.0, 50.0, {"sentinel2": series})


@pytest.mark.parametrize("window", [16, 32, 128])
@pytest.mark.parametrize("side", [8, 16, 17, 64, 100, 128, 131, 300])
def test_windows_give_every_pixel_once_and_stay_on_the_chip(side, window):
    found = windows(side, window)
    given = [pixel for w in found for pixel in range(w.start, w.stop)]
    assert given == list(range(side))
    for w in found:
        assert 0 <= w.origin <= w.start < w.stop <= w.origin + window
        assert side <= window or w.origin + window <= side


def test_an_inner_pixel_keeps_the_papers_margin():
    inner = windows(1000, 128)[1:-1]
    assert all(w.start - w.origin >= 16 and w.origin + 128 - w.stop >= 16 for w in inner)


def test_the_support_surrounds_the_period_and_stays_inside_the_observations():
    span = Period(0, 3 * YEAR)
    assert support_of(Period(YEAR, YEAR + 10 * DAY_MS), span, YEAR, "c").contains(YEAR)
    assert support_of(Period(5 * DAY_MS, 9 * DAY_MS), span, YEAR, "c") == Period(0, YEAR)
    assert support_of(Period(3 * YEAR, 3 * YEAR + 30 * DAY_MS), span, YEAR, "c") == Period(2 * YEAR, 3 * YEAR)
    assert support_of(Period(0, 2 * YEAR), span, YEAR, "c") == Period(0, 2 * YEAR)


def test_a_short_chip_keeps_a_support_of_full_length():
    assert support_of(Period(0, DAY_MS), Period(0, 100 * DAY_MS), YEAR, "c") == Period(0, YEAR)


@pytest.mark.parametrize("start", [-200 * DAY_MS, YEAR + 180 * DAY_MS])
def test_a_period_more_than_six_months_outside_is_refused(start):
    with pytest.raises(EmbeddingError, match="six months"):
        support_of(Period(start, start + 10 * DAY_MS), Period(0, YEAR), YEAR, "c")


def test_periods_within_one_year_share_their_support_and_others_do_not():
    span = Period(0, 3 * YEAR)
    months = [Period(YEAR + i * 30 * DAY_MS, YEAR + (i + 1) * 30 * DAY_MS) for i in range(12)]
    assert [len(v) for v in group_by_support(months, span, YEAR, "c").values()] == [12]
    years = [Period(0, YEAR), Period(YEAR, 2 * YEAR)]
    assert list(group_by_support(years, span, YEAR, "c").values()) == [[years[0]], [years[1]]]


def test_frames_are_cut_in_time_and_space_padded_as_invalid_and_left_out_on_request():
    times = np.array([0, 5, 9, 20], np.int64) * DAY_MS
    chip = chip_of(times)
    series = chip.sources["sentinel2"]
    frames = cut_frames(series, Period(0, 10 * DAY_MS), slice(1, 4), slice(0, 4), 4, without_ms=[5 * DAY_MS])
    assert frames.time_ms.tolist() == [0, 9 * DAY_MS]
    assert frames.values.shape == (2, 4, 4, 5)
    assert np.array_equal(frames.values[1, :3], np.moveaxis(series.values[2], 0, -1)[1:])
    assert not frames.valid[:, 3].any() and frames.valid[:, :3].all()
    before = cut_frames(series, Period(0, 9 * DAY_MS), slice(0, 4), slice(0, 4), 4)
    assert before.time_ms.tolist() == [0, 5 * DAY_MS]  # a support ends before its end
    assert cut_frames(series, Period(21 * DAY_MS, 30 * DAY_MS), slice(0, 4), slice(0, 4), 4) is None


def test_a_chip_without_any_input_of_the_model_is_refused_by_name():
    with pytest.raises(EmbeddingError, match="landsat"):
        observed_span(chip_of(np.array([0], np.int64)), ["landsat"])
