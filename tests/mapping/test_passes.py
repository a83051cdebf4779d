"""One pass of the encoder: what it reads of a chip, and what is said of it."""

import numpy as np
import pytest

from aef.data.chips import Chip, SourceSeries
from aef.mapping.errors import EmbeddingError
from aef.mapping.passes import Pass
from aef.timecode import DAY_MS, Period


def test_what_there_is_to_encode_is_counted_with_the_pixels_that_it_shows():
    times = np.array([0, 5, 9, 20], np.int64) * DAY_MS
    valid = np.ones((4, 1, 4, 4), bool)
    valid[:, :, 3] = False  # a row that is never seen
    valid[1] = False  # a frame that shows nothing
    series = SourceSeries(values=np.zeros((4, 5, 4, 4), np.uint16), valid=valid, time_ms=times)
    chip = Chip("c", "EPSG:32631", (10, 0, 0, 0, -10, 0), 4, 4, 3.0, 50.0, {"sentinel2": series})
    encoded = Pass.of(chip, Period(0, 10 * DAY_MS), [Period(0, DAY_MS)], ["sentinel2", "landsat"])
    assert encoded.times_ms.tolist() == [0, 9 * DAY_MS] and encoded.sources == ("sentinel2",)
    assert encoded.observed[:3].all() and not encoded.observed[3].any()
    assert encoded.about(Period(0, DAY_MS)) == {
        "sources": "sentinel2",
        "support": "1970-01-01/1970-01-11",
        "frames": 2,
        "frames_in_period": 1,
    }
    with pytest.raises(EmbeddingError, match="no frame of sentinel2 within the support 1970-01-02/1970-01-09 of"):
        Pass.of(chip, Period(DAY_MS, 8 * DAY_MS), [Period(0, DAY_MS)], ["sentinel2"])
