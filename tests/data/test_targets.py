"""Targets: how many a source gives, which frames they are, that they leave the input, and the period of each."""

from __future__ import annotations

import numpy as np
import pytest

from aef.data.crop import Crop
from aef.data.periods import overlap
from aef.sources import BUILT_IN, INPUTS
from aef.timecode import DAY_MS, Period
from tests.data.drawing import draw, draws, sampler

HOUR_MS = 3_600_000


def test_every_source_gives_the_wanted_number_of_targets(make_chip):
    chip = make_chip("place", frames={"sentinel2": 30, "landsat": 9})
    sample = draw(chip, targets_per_source=3)
    counts = {name: len(targets) for name, targets in sample.targets.items()}
    assert counts["sentinel2"] == counts["sentinel1"] == counts["landsat"] == counts["era5_land"] == counts["gedi"] == 3
    # A static source and a map hold one frame; two PALSAR-2 scenes are all there is.
    assert counts["glo30"] == counts["nlcd"] == 1 and counts["palsar2"] == 2


@pytest.mark.parametrize(("frames", "expected"), [(1, 1), (3, 1), (4, 2), (5, 2), (6, 3), (9, 3)])
def test_further_targets_take_at_most_half_of_an_inputs_frames(make_chip, frames, expected):
    chip = make_chip("place", sources=("landsat", "sentinel1"), frames={"landsat": frames})
    sample = draw(chip, targets_per_source=3, support_days=3660.0)
    assert len(sample.targets["landsat"]) == expected


def test_targets_leave_the_input_with_their_twins(make_chip):
    chip = make_chip("place", sources=("sentinel2", "landsat"), frames={"sentinel2": 40})
    series = chip.sources["sentinel2"]
    # Every second frame is the twin of the one before.
    series.time_ms[1::2] = series.time_ms[::2] + np.arange(20) * 3 * 60_000
    for sample in draws(chip, 20, targets_per_source=2):
        times = [target.time_ms for target in sample.targets["sentinel2"]]
        assert len(times) == 2 and abs(times[0] - times[1]) > HOUR_MS
        for view in (sample.teacher, sample.student):
            if "sentinel2" in view:
                assert np.abs(view["sentinel2"].time_ms[:, None] - np.array(times)).min() > HOUR_MS


def test_without_twins_only_the_target_itself_leaves(chip):
    sample = draw(chip, twin_minutes=0.0)
    target = sample.targets["sentinel2"][0].time_ms
    assert target not in sample.teacher["sentinel2"].time_ms
    assert len(sample.teacher["sentinel2"].time_ms) >= 10


def test_targets_are_drawn_in_proportion_to_their_clear_weight(make_chip):
    chip = make_chip("place", sources=("sentinel2",), frames={"sentinel2": 4})
    series = chip.sources["sentinel2"]
    series.valid[:] = True
    shares = np.array([0.0, 1.0, 2.0, 5.0]) / 8
    series.weight = np.array([0, 40, 80, 200], np.uint8)[:, None, None, None] * np.ones((1, 1, 16, 16), np.uint8)
    counts = {int(t): 0 for t in series.time_ms}
    for sample in draws(chip, 800):
        counts[sample.targets["sentinel2"][0].time_ms] += 1
    found = np.array(list(counts.values())) / 800
    assert found[0] == 0 and found == pytest.approx(shares, abs=0.06)
    uniform = {s.targets["sentinel2"][0].time_ms for s in draws(chip, 60, target_by_clear_weight=False)}
    assert uniform == set(series.time_ms[1:].tolist())


def test_weight_where_nothing_was_observed_makes_a_frame_no_clearer(make_chip):
    chip = make_chip("place", sources=("sentinel2",), frames={"sentinel2": 2})
    series = chip.sources["sentinel2"]
    series.valid[:], series.weight[:] = True, 255
    series.valid[0, :, :, 4:] = False
    support = Period(int(series.time_ms[0]), int(series.time_ms[1]) + 1)
    found = sampler()._candidates(chip, "sentinel2", support, Crop(0, 0, 16))
    assert found.clear.tolist() == [0.25, 1.0]


def test_a_source_without_a_clear_frame_has_no_target(make_chip):
    chip = make_chip("place", sources=("sentinel2", "landsat"))
    chip.sources["sentinel2"].weight[:] = 0
    sample = draw(chip)
    assert not sample.targets.get("sentinel2") and sample.targets["landsat"]
    assert len(sample.teacher["sentinel2"].time_ms)


@pytest.mark.parametrize("source", INPUTS)
def test_a_target_that_would_empty_the_input_stays_with_weight_zero(make_chip, source):
    chip = make_chip("place", sources=(source,), frames={source: 1})
    if chip.sources[source].weight is not None:
        chip.sources[source].weight[:] = 255
    sample = draw(chip)
    (target,) = sample.targets[source]
    assert target.item_weight == 0
    assert sample.teacher[source].time_ms.tolist() == [target.time_ms]


def test_of_two_frames_either_is_decoded_from_the_other(make_chip):
    chip = make_chip("place", sources=("sentinel2", "landsat"), frames={"sentinel2": 1, "landsat": 1})
    chip.sources["sentinel2"].weight[:] = 255
    decoded = set()
    for sample in draws(chip, 20):
        weights = {name: target.item_weight for name, (target,) in sample.targets.items()}
        assert sorted(weights.values()) == [0.0, 1.0]
        assert list(sample.teacher) == [name for name, weight in weights.items() if weight == 0]
        decoded |= {name for name, weight in weights.items() if weight == 1}
    assert decoded == {"sentinel2", "landsat"}


def test_targets_carry_raw_values_masks_weights_and_metadata(chip):
    sample = draw(chip, crop_jitter=False)
    for name, targets in sample.targets.items():
        source, series = BUILT_IN[name], chip.sources[name]
        for target in targets:
            assert target.values.shape[-1] == source.channels and target.metadata.shape == (len(source.metadata),)
            if source.grid == "chip" and source.time == "instant":
                frame = int(np.flatnonzero(series.time_ms == target.time_ms)[0])
                assert (target.values == np.moveaxis(series.values[frame], 0, -1)).all()
                assert (target.valid == np.moveaxis(series.valid[frame], 0, -1)).all()
                weight = 255 if series.weight is None else np.moveaxis(series.weight[frame], 0, -1)
                assert (target.weight == weight).all()
                if series.metadata is not None:
                    assert (target.metadata == series.metadata[frame]).all()


def test_missing_metadata_is_nan(chip):
    chip.sources["sentinel1"].metadata = None
    assert np.isnan(draw(chip).targets["sentinel1"][0].metadata).all()


def test_footprints_of_one_month_are_one_target(chip):
    series = chip.sources["gedi"]
    for sample in draws(chip, 10):
        for target in sample.targets["gedi"]:
            month = (target.time_ms >= series.time_ms) & (target.time_ms < series.time_end_ms)
            inside = np.zeros((16, 16), bool)
            inside[series.row[month], series.col[month]] = True
            assert target.values.shape == (16, 16, 101) and (target.valid[..., 0] == inside).all()


def test_a_static_source_is_decoded_at_any_time(chip):
    positions = []
    for sample in draws(chip, 100):
        (target,) = sample.targets["glo30"]
        assert target.period.contains(target.time_ms)
        positions.append((target.time_ms - sample.support.start_ms) / sample.support.length_ms)
    assert min(positions) < 0.1 and max(positions) > 0.9


def test_the_nearest_mapped_year_is_decoded_inside_the_support(chip):
    """Maps of 2017 and, nearer by 200 days, of February 2020 to 2021."""
    series = chip.sources["nlcd"]
    for sample in draws(chip, 10, crop_jitter=False):
        (target,) = sample.targets["nlcd"]
        assert sample.support.contains(target.time_ms) and target.period.contains(target.time_ms)
        middle = (sample.support.start_ms + sample.support.end_ms) / 2
        nearest = int(np.argmin(np.abs(series.moment_ms - middle)))
        assert (target.values == np.moveaxis(series.values[nearest], 0, -1)).all()


def test_months_are_decoded_at_their_middle_from_a_period_that_covers_half(chip):
    series = chip.sources["era5_land"]
    for sample in draws(chip, 60):
        for target in sample.targets["era5_land"]:
            frame = int(np.flatnonzero(series.moment_ms == target.time_ms)[0])
            month = Period(int(series.time_ms[frame]), int(series.time_end_ms[frame]))
            within = min(month.length_ms // 2, overlap(month, sample.support))
            assert overlap(target.period, month) >= within and target.period.contains(target.time_ms)
            assert target.values.shape == (1, 1, 12)


def test_every_target_lies_in_its_period_of_more_than_four_days(chip):
    for settings in ({}, {"periods_per_sample": 4, "targets_per_source": 3}, {"period_beyond_days": 183.0}):
        for sample in draws(chip, 10, **settings):
            for targets in sample.targets.values():
                for target in targets:
                    assert target.period.contains(target.time_ms) and target.period.length_ms > 4 * DAY_MS
                    assert overlap(target.period, sample.support) > 0
                    if not settings.get("period_beyond_days"):
                        assert overlap(target.period, sample.support) == target.period.length_ms


def test_shared_periods_are_fewer_than_targets(chip):
    own = draw(chip, targets_per_source=3)
    shared = draw(chip, targets_per_source=3, periods_per_sample=4)

    def periods(sample):
        return {target.period for targets in sample.targets.values() for target in targets}

    assert len(periods(own)) > 8 > len(periods(shared))
