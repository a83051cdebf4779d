"""Inside a gap and beyond the support: the truth is the truth, nothing hidden is seen, and a knowing model wins."""

import json
import weakref
from types import SimpleNamespace

import numpy as np
import pytest

from aef.data.statistics import Statistics
from aef.data.synthetic import Earth
from aef.data.synthetic.earth import render_chip
from aef.data.synthetic.truth import clear_view
from aef.evaluation import gaps
from aef.evaluation.gaps import BEYOND, GAP_DAYS, INSIDE, MODEL, PERSISTENCE, RIVALS, _without, judge_gaps
from aef.evaluation.predictors import persistence
from aef.evaluation.proof import ProofError
from aef.evaluation.series import ClearSeries
from aef.sources import BUILT_IN
from aef.timecode import DAY_MS, Period

PLACES, PX = 2, 16


class Seer:
    """Reads the truth of the synthetic Earth, of all bands but one that it did not learn, and remembers what it was
    allowed to see."""

    inputs, targets, registry = ("sentinel2", "sentinel1"), ("sentinel2",), BUILT_IN

    def __init__(self):
        self.asked = []
        self.statistics = Statistics.identity(BUILT_IN, self.inputs)

    def reconstruct(self, chip, source, requests):
        self.asked.append((chip, requests))
        scene = Earth(1, PX, years=2).scene(chip.attributes["place"])
        view = clear_view(scene, source, np.array([time_ms for time_ms, _ in requests]))
        return np.where(self.scored(source)[:, None, None], view, np.nan)

    def scored(self, source):
        return np.array(BUILT_IN[source].scored(["sentinel2.B3"]))


@pytest.fixture(scope="module")
def seer():
    return Seer()


@pytest.fixture(scope="module")
def result(seer):
    return judge_gaps(seer, places=PLACES, chip_px=PX)


def test_the_truth_has_no_error_and_everybody_else_has(result):
    assert result.tables[INSIDE].mean(MODEL) < 1e-3 and result.tables[BEYOND].mean(MODEL) < 1e-3
    for table in result.tables.values():
        assert set(table.errors) == {*RIVALS, MODEL} and all(table.mean(name) > 0.02 for name in RIVALS)
    difference, (low, high) = result.difference(BEYOND, PERSISTENCE)
    assert low <= difference <= high < 0


def test_one_place_is_in_memory_at_a_time(result, monkeypatch):
    alive, most, whole = [], [], gaps._first_year

    def first_year(scene, chip):
        alive.append(weakref.ref(first := whole(scene, chip)))
        most.append(sum(one() is not None for one in alive))
        return first

    class Forgetful(Seer):
        def reconstruct(self, chip, source, requests):
            self.asked.clear()
            return super().reconstruct(chip, source, requests)

    monkeypatch.setattr(gaps, "_first_year", first_year)
    found = judge_gaps(Forgetful(), places=3, chip_px=PX)
    assert len(most) >= 3 and max(most) <= 2
    assert found.tables[INSIDE].errors[PERSISTENCE].keys() > result.tables[INSIDE].errors[PERSISTENCE].keys()


def test_nothing_is_seen_of_a_gap_nor_of_the_second_year(result, seer):
    assert len(seer.asked) == 2 * PLACES
    for (gapped, inside), (whole, after) in zip(seer.asked[::2], seer.asked[1::2]):
        times = np.sort(np.concatenate([s.time_ms for s in gapped.sources.values()]))
        first, last = inside[0][1].start_ms, inside[-1][1].end_ms
        assert not ((times >= first) & (times < last)).any() and last - first == GAP_DAYS * DAY_MS
        assert np.diff(times).max() >= GAP_DAYS * DAY_MS and len(inside) == 9
        end = max(s.time_ms[-1] for s in whole.sources.values())
        assert end < Earth(1, PX, years=2).scene(0).weather.year_starts[1]
        assert all(period.start_ms > end for _, period in after)
        assert after[-1][1].end_ms - end <= 183 * DAY_MS and len(after) == 6


def test_beyond_is_beyond_what_the_model_reads():
    """Landsat ends days before Sentinel-2: counted from the latter, the last month would lie out of the model's reach."""
    seer = Seer()
    seer.inputs = ("landsat",)
    judge_gaps(seer, places=PLACES, chip_px=PX)
    for chip, after in seer.asked[1::2]:
        end = chip.sources["landsat"].time_ms[-1]
        assert chip.sources["sentinel2"].time_ms[-1] <= end  # its rivals see no more
        assert after[-1][1].end_ms - end <= 183 * DAY_MS


def test_a_month_that_reaches_into_a_gap_is_hidden_with_it():
    chip = render_chip(Earth(1, PX).scene(0), ["era5_land"])
    starts, ends = chip.sources["era5_land"].time_ms, chip.sources["era5_land"].time_end_ms
    gap = Period(int(ends[2]) - DAY_MS, int(starts[4]) + DAY_MS)
    assert _without(chip, gap).sources["era5_land"].time_ms.tolist() == np.delete(starts, [2, 3, 4]).tolist()


def test_tables_and_figures_say_the_same(result):
    figures = json.loads(json.dumps(result.figures(), allow_nan=False))
    text = result.markdown()
    assert f"{figures['l1'][INSIDE]['harmonic fit per pixel']:.3f}" in text
    assert f"{figures['model_minus'][BEYOND][PERSISTENCE]['difference']:+.3f}" in text
    assert [name for name in figures["l1"] if name.startswith("beyond, month")] == [
        f"beyond, month {month}" for month in range(1, 7)
    ]


@pytest.mark.parametrize("source", ["sentinel2", "landsat"])
def test_clear_frames_scatter_around_the_clear_view(source):
    # Registration and patches average out; what is left must have no bias, or every predictor is judged wrongly.
    scene = Earth(5, 32).scene(3)
    series = render_chip(scene, [source]).sources[source]
    clear = (series.weight > 0) & series.valid
    truth = clear_view(scene, source, series.time_ms)
    ratio = np.where(clear, series.values / truth, np.nan)
    per_band = np.nanmedian(ratio, axis=(0, 2, 3))
    assert np.abs(per_band - 1).max() < 0.05, per_band


def test_persistence_is_the_last_clear_observation():
    values = np.arange(4, dtype=np.float32)[:, None, None, None] * np.ones((1, 1, 1, 2), np.float32)
    clear = np.array([[True, False], [True, False], [False, True], [True, True]])[:, None]
    predict = persistence(ClearSeries("p", np.arange(4, dtype=np.int64) * 10, values, clear))
    assert predict(25).tolist() == [[[1, 2]]] and predict(100).tolist() == [[[3, 3]]]
    assert predict(5).tolist() == [[[0, 2]]]  # nothing before: the first one after
    assert predict(30).tolist() == [[[1, 2]]]  # what is seen at the time itself does not count


def test_what_cannot_be_judged_is_refused_by_name():
    with pytest.raises(ProofError, match=r"source sentinel1: expected one of sentinel2, .*; it decodes sentinel2"):
        judge_gaps(Seer(), "sentinel1", places=PLACES)
    with pytest.raises(ProofError, match="at least two places"):
        judge_gaps(Seer(), places=1)
    trained = SimpleNamespace(**{n: getattr(Seer, n) for n in ("inputs", "targets", "registry")})
    trained.statistics = Statistics({}, weighting="clear", date="2026-01-01", places=["synthetic_1_00000"])
    with pytest.raises(ProofError, match="1 places were training places"):
        judge_gaps(trained, places=PLACES, chip_px=PX)
    trained.statistics = Statistics({}, weighting="clear", date="2026-01-01", places=["farm", "synthetic_farm"])
    with pytest.raises(ProofError, match=r"trained on synthetic places.*this one trained on farm …"):
        judge_gaps(trained, places=PLACES, chip_px=PX)
