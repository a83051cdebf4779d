"""The page and its pictures."""

import numpy as np
import pytest

from aef.timecode import DAY_MS, Period
from tests.evaluation.four_fields import SIDE, START, a_chip


def test_the_report_is_one_page_with_its_pictures(model, chips, judgement, tmp_path):
    from aef.evaluation.report import write_report

    log = [
        {
            "step": step,
            "reconstruction": 1 / step,
            "uniformity": None,
            "consistency": 0.1,
            "per_source": {"sentinel2": 0.5},
        }
        for step in range(1, 30)
    ]
    path = write_report(tmp_path / "report.html", model, chips, log, judgement, ["aef train <with> & care"])
    page = path.read_text()
    assert page.count("data:image/png;base64,") == 5 and "http" not in page.replace("http-equiv", "")
    assert "aef train &lt;with&gt; &amp; care" in page and "model, 120 d" in page
    assert [p.name for p in tmp_path.iterdir()] == ["report.html"]


def test_a_reconstruction_in_the_report_is_made_without_the_twins_of_its_frame(model):
    from aef.evaluation.report import reconstructions

    class Listener:
        registry, config, targets = model.registry, model.config, ("sentinel2",)

        def reconstruct(self, chip, source, requests, *, without_ms):
            self.forbidden = without_ms
            return np.ones((1, 5, SIDE, SIDE), np.float32)

    chip, listener = a_chip(0), Listener()
    optical, radar = chip.sources["sentinel2"], chip.sources["sentinel1"]
    frame = START + 168 * DAY_MS
    optical.time_ms[8] = frame + 60_000  # the next of the same pass
    radar.time_ms[2] = frame - 60_000
    reconstructions(listener, chip, Period(frame - DAY_MS, frame + DAY_MS))
    assert listener.forbidden == {"sentinel2": [frame, frame + 60_000], "sentinel1": [frame - 60_000]}


def test_pictures_of_similarity_share_a_scale(chips):
    from aef.evaluation.report import embedding_pictures

    fields = [np.random.default_rng(number).normal(size=(8, SIDE, SIDE)) for number in range(2)]
    figure = embedding_pictures(chips[:2], fields, None, "")
    *_, scale = figure.axes
    assert len(figure.axes) == 2 * 2 + 1 and scale.get_xlabel() == "cosine" and scale.get_xlim() == (0, 1)


def test_pictures_of_a_place_that_is_no_square_stand_side_by_side(chips):
    from aef.evaluation.report import embedding_pictures

    fields = [np.random.default_rng(number).normal(size=(8, SIDE // 2, SIDE)) for number in range(3)]
    figure = embedding_pictures(chips[:3], fields, None, "")
    figure.draw_without_rendering()
    for left, right in zip(figure.axes[0:6:2], figure.axes[1:6:2]):
        assert left.get_window_extent().y1 == pytest.approx(right.get_window_extent().y1, abs=1)
