"""What samples are expected to cost, by the folder's index alone."""

import pytest

from aef.data.chips import ChipError, ChipFolder
from aef.sources import BUILT_IN


def test_a_sample_is_expected_to_encode_the_frames_that_the_index_knows(chips, configure):
    from aef.data.dataset import ChipDataset
    from aef.training.costs import ExpectedFrames

    config = configure({"support_days": 240.0})
    folder = ChipFolder(chips, BUILT_IN)
    costs = ExpectedFrames(ChipDataset(folder, config.data), config)
    for number, chip in enumerate(folder):
        frames = 0.0
        for name in ("sentinel2", "sentinel1", "landsat"):
            times = chip.sources[name].time_ms
            years = max(1.0, (times[-1] - times[0]) / (240 * 86_400_000))
            frames += min(len(times) / years, config.data.frame_budget * BUILT_IN[name].frame_budget)
        assert costs[number] == pytest.approx(frames, rel=1e-6)
    assert len(costs) == 5
    first = costs.fingerprint()
    costs.require_same(first)
    (chips / "place4.npz").unlink()
    fewer = ExpectedFrames(ChipDataset(ChipFolder(chips, BUILT_IN), config.data), config)
    with pytest.raises(ChipError, match="this rank finds other chips than rank 0"):
        fewer.require_same(first)
