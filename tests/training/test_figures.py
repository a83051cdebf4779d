"""The periodic figure shows the ground where there is some, and that nothing was observed where nothing was."""

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from aef.data.batch import FrameBlock
from aef.data.rendering import MISSING
from aef.sources import BUILT_IN
from aef.timecode import parse_time
from aef.training.figures import FRAMES_SHOWN, STRETCH_SIGMA, _input_row, _picture, _show, clearest_frames

OPTICAL, RADAR = BUILT_IN["sentinel2"], BUILT_IN["sentinel1"]


def series(source, frames):
    z = torch.zeros(frames, 4, 4, source.channels)
    return z, torch.ones_like(z, dtype=torch.bool)


@pytest.mark.parametrize("source", [OPTICAL, RADAR])
def test_of_each_part_of_the_support_the_frame_without_clouds_is_shown(source):
    z, seen = series(source, 3 * FRAMES_SHOWN)
    z[:] = 2 * STRETCH_SIGMA  # clouds
    ground = [3 * part + part % 3 for part in range(FRAMES_SHOWN)]
    z[ground] = 0.5
    assert clearest_frames(source, z, seen) == ground
    seen[ground[0], ..., :] = False
    z[2, 0] = 0.5  # a cloud with a hole shows more than a frame that was not observed
    assert clearest_frames(source, z, seen)[0] == 2


def test_fewer_frames_than_fit_are_all_shown():
    z, seen = series(OPTICAL, FRAMES_SHOWN - 2)
    assert clearest_frames(OPTICAL, z, seen) == list(range(FRAMES_SHOWN - 2))


def test_an_encoded_class_map_is_shown_in_shades_of_its_classes():
    cover = dataclasses.replace(BUILT_IN["nlcd"], name="cover", role="input", classes=(7, -3, 200), frame_budget=2)
    values = torch.tensor([[[7], [-3]], [[200], [7]]]).expand(2, 2, 2, 1).clone()
    values[1, 0, 0], valid = 5, torch.ones(2, 2, 2, 1, dtype=torch.bool)
    valid[1, 1, 1] = False
    block = FrameBlock(values, valid, torch.tensor([0, 1]))
    times = torch.tensor([parse_time("2019-01-01"), parse_time("2019-06-01")])
    batch = SimpleNamespace(frames={"cover": block}, cu_frames=torch.tensor([0, 2]), frame_time_ms=times)
    (_, first), (title, second) = _input_row(SimpleNamespace(registry={"cover": cover}), batch, "cover")
    assert first.tolist() == [[0, 0.5], [1, 0]] and title == "cover, input\n2019-06-01"
    assert np.array_equal(second, [[np.nan, 0.5], [1, np.nan]], equal_nan=True)  # of no class; not observed


def test_pixels_that_were_not_observed_are_grey_and_a_white_picture_has_a_frame():
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    for source in (OPTICAL, RADAR):
        z, seen = series(source, 1)
        z[:] = 2 * STRETCH_SIGMA
        seen[:, :2] = False
        figure = Figure(figsize=(1, 1), dpi=100)
        canvas = FigureCanvasAgg(figure)
        axis = figure.add_axes((0.1, 0.1, 0.8, 0.8))
        _show(axis, _picture(source, z[0], seen[0]))
        canvas.draw()
        drawn = np.asarray(canvas.buffer_rgba())[..., :3] / 255
        assert drawn[30, 50] == pytest.approx(MISSING, abs=0.01)
        assert (drawn[50, :8] == 1).all() and (drawn[50, 8:13] < 0.9).any()  # page, then the frame
    assert drawn[70, 50].max() > 0.9
