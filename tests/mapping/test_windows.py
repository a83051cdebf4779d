"""Windows of a chip, and the frames that are cut to them."""

import numpy as np
import pytest

from aef.data.chips import Chip, SourceSeries
from aef.mapping.windows import cut_frames, windows_along
from aef.timecode import DAY_MS, Period


def chip_of(times: np.ndarray, side: int = 4) -> Chip:
    values = np.arange(len(times) * 5 * side * side, dtype=np.uint16).reshape(len(times), 5, side, side)
    series = SourceSeries(values=values, valid=np.ones_like(values, bool), time_ms=times)
    return Chip("c", "EPSG:32631", (10, 0, 0, 0, -10, 0), side, side, 3.0, 50.0, {"sentinel2": series})


@pytest.mark.parametrize("window", [1, 2, 3, 4, 16, 32, 128])
@pytest.mark.parametrize("side", [1, 2, 8, 16, 17, 64, 100, 128, 131, 300])
def test_windows_give_every_pixel_once_and_stay_on_the_chip(side, window):
    along = windows_along(side, window)
    given = [pixel for w in along for pixel in range(w.start, w.stop)]
    assert given == list(range(side))
    for w in along:
        assert 0 <= w.origin <= w.start < w.stop <= w.origin + window
        assert side <= window or w.origin + window <= side


def test_an_inner_pixel_keeps_the_papers_margin():
    inner = windows_along(1000, 128)[1:-1]
    assert all(w.start - w.origin >= 16 and w.origin + 128 - w.stop >= 16 for w in inner)


@pytest.mark.parametrize("window", [3, 4, 6, 8])
def test_inner_pixels_of_small_windows_keep_a_neighbour_on_each_side(window):
    inner = windows_along(100, window)[1:-1]
    assert all(w.origin < w.start and w.stop < w.origin + window for w in inner)


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
