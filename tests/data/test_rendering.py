"""Frames as pictures."""

import numpy as np
import pytest

from aef.data.rendering import MISSING, Rendering, shown_bands
from aef.sources import BUILT_IN


@pytest.mark.parametrize(
    ("name", "bands"),
    [
        ("sentinel2", ("B4", "B3", "B2")),
        ("landsat", ("B4", "B3", "B2")),
        ("sentinel1", ("VV", "VH", "VV")),
        ("palsar2", ("HH", "HV", "HH")),
        ("glo30", ("elevation",)),
        ("nlcd", ("landcover",)),
        ("era5_land", ("total_precipitation_sum",)),
    ],
)
def test_each_source_shows_its_telling_bands(name, bands):
    assert shown_bands(BUILT_IN[name]) == bands


def test_a_stretch_is_shared_and_missing_pixels_are_grey():
    source = BUILT_IN["sentinel2"]
    frame = np.arange(5 * 100, dtype=np.float32).reshape(5, 10, 10)
    valid = np.ones((1, 10, 10), bool)
    valid[0, 0, 0] = False
    rendering = Rendering.of(source, [frame, frame + 1000], [valid, valid])
    one, other = rendering.draw(frame, valid), rendering.draw(frame + 1000, valid)
    assert one.shape == (10, 10, 3) and (one[0, 0] == MISSING).all()
    assert one[1:].max() < other[1:].min() and other.max() <= 1 and one[1:].min() >= 0


def test_a_frame_that_was_never_observed_is_all_grey():
    source = BUILT_IN["sentinel2"]
    frame, nothing = np.zeros((5, 4, 4)), np.zeros((1, 4, 4), bool)
    assert (Rendering.of(source, [frame], [nothing]).draw(frame, nothing) == MISSING).all()


def test_classes_have_one_colour_each_as_codes_and_as_logits():
    source = BUILT_IN["nlcd"]
    codes = np.array([[[11, 12], [95, 250]]])
    logits = np.zeros((16, 2, 2))
    logits[0, 0, 0] = logits[1, 0, 1] = logits[15, 1, 0] = 9
    rendering = Rendering.of(source, [codes], [np.ones_like(codes, bool)])
    drawn, guessed = rendering.draw(codes), rendering.draw(logits)
    assert np.array_equal(drawn[0], guessed[0]) and np.array_equal(drawn[1, 0], guessed[1, 0])
    assert (drawn[1, 1] == MISSING).all() and not np.array_equal(drawn[0, 0], drawn[0, 1])
