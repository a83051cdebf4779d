"""Hand-made features on series of known content, and chips with time or space destroyed."""

import dataclasses

import numpy as np
import pytest

from aef.data.chips import Chip, Label, SourceSeries
from aef.evaluation.baselines import (
    FEATURES,
    annual_statistics,
    baseline_fields,
    coordinates,
    raw_series,
    seasonal_composites,
    window_mean,
)
from aef.evaluation.probes import ProbeError
from aef.evaluation.series import ClearSeries
from aef.evaluation.shuffles import shuffle_pixels, shuffle_time
from aef.sources import BUILT_IN
from aef.timecode import DAY_MS, Period

YEAR = Period(0, 364 * DAY_MS)


def a_series(values, days, clear=None) -> ClearSeries:
    values = np.asarray(values, np.float32)[:, None, None, None]
    clear = np.ones((len(values), 1, 1), bool) if clear is None else np.asarray(clear)[:, None, None]
    return ClearSeries("p", np.asarray(days, np.int64) * DAY_MS, values, clear)


def test_annual_statistics_ignore_clouds():
    field = annual_statistics(a_series([1, 3, 99], [0, 100, 200], [True, True, False]), YEAR)
    assert field.ravel() == pytest.approx([2, 1])


def test_a_season_without_observation_gets_the_annual_mean():
    field = seasonal_composites(a_series([1, 3], [0, 300]), YEAR)
    assert field.ravel() == pytest.approx([1, 2, 2, 3])


def test_the_raw_series_has_twelve_interpolated_steps():
    days = np.arange(0, 365, 7)
    field = raw_series(a_series(days.astype(float), days), YEAR)
    assert field.ravel() == pytest.approx((np.arange(12) + 0.5) * 364 / 12, abs=1e-3)


def test_every_feature_is_finite_on_a_pixel_that_is_never_clear():
    series = a_series([1, 2, 3], [0, 100, 200], [False] * 3)
    for feature in FEATURES.values():
        assert np.isfinite(feature(series, YEAR)).all()


def test_the_window_mean_counts_only_what_lies_inside():
    field = window_mean(np.arange(9.0).reshape(1, 3, 3))
    assert field[0, 1, 1] == 4 and field[0, 0, 0] == pytest.approx((0 + 1 + 3 + 4) / 4)


def a_chip(frames=8, side=4) -> Chip:
    rng = np.random.default_rng(0)
    values = rng.integers(1, 3000, (frames, 5, side, side)).astype(np.uint16)
    s2 = SourceSeries(
        values=values,
        valid=np.ones((frames, 1, side, side), bool),
        time_ms=np.arange(frames, dtype=np.int64) * 30 * DAY_MS,
    )
    valid = np.zeros((frames, 5, side, side), bool)
    valid[:, [0, 1, 4]] = True
    s1 = SourceSeries(
        values=np.where(valid, -12.5, 0).astype(np.float32) + rng.normal(size=valid.shape).astype(np.float32),
        valid=valid,
        time_ms=np.arange(frames, dtype=np.int64) * 20 * DAY_MS,
    )
    label = Label(values[0, 0].astype(np.int32), fields=values[0, 1].astype(np.int32))
    return Chip(
        "c",
        "EPSG:32631",
        (10.0, 0, 5, 0, -10.0, 95),
        side,
        side,
        3,
        51,
        {"sentinel2": s2, "sentinel1": s1},
        labels={"lc": label},
    )


def test_baselines_use_every_common_input_and_the_bands_that_are_observed():
    fields, others = baseline_fields([a_chip(), a_chip()], BUILT_IN, lambda chip: Period(0, 240 * DAY_MS))
    bands = 5 + 3  # Sentinel-2, and of Sentinel-1 VV, VH and the angle
    widths = {name: field.shape[0] for name, field in fields.items()}
    assert widths["annual mean and s.d."] == 2 * bands and widths["harmonic"] == 7 * bands
    assert widths["raw series, 3×3"] == 12 * bands and widths["coordinates"] == 2
    assert list(others) == list(fields) and all(np.isfinite(field).all() for field in others.values())


def test_a_source_without_a_band_that_every_chip_observes_is_no_baseline():
    bare, none = a_chip(), a_chip()
    bare.sources["sentinel1"].valid[:] = False
    bare.sources["sentinel1"].valid[0, 0] = True  # one frame of eight
    empty = {name: getattr(none.sources["sentinel1"], name)[:0] for name in ("values", "valid", "time_ms")}
    none.sources["sentinel1"] = dataclasses.replace(none.sources["sentinel1"], **empty)
    for other in (bare, none):
        fields, _ = baseline_fields([a_chip(), other], BUILT_IN, lambda chip: Period(0, 240 * DAY_MS))
        assert fields["annual mean and s.d."].shape[0] == 2 * 5  # Sentinel-2 alone


def test_chips_without_a_common_input_are_not_judged():
    one, other = a_chip(), a_chip()
    del one.sources["sentinel1"], other.sources["sentinel2"]
    with pytest.raises(ProbeError, match="share no input source with a clear pixel"):
        next(baseline_fields([one, other], BUILT_IN, lambda chip: Period(0, 240 * DAY_MS)))


def test_a_source_that_nobody_saw_clear_is_no_baseline():
    cloudy = a_chip()
    series = cloudy.sources["sentinel2"]
    cloudy.sources["sentinel2"] = dataclasses.replace(series, weight=np.zeros((8, 1, 4, 4), np.uint8))
    fields, _ = baseline_fields([cloudy, cloudy], BUILT_IN, lambda chip: Period(0, 240 * DAY_MS))
    assert fields["annual mean and s.d."].shape[0] == 2 * 3  # Sentinel-1 alone
    del cloudy.sources["sentinel1"]
    with pytest.raises(ProbeError, match="no input source with a clear pixel"):
        next(baseline_fields([cloudy], BUILT_IN, lambda chip: Period(0, 240 * DAY_MS)))


def test_what_was_not_observed_may_be_no_number():
    """A chip may hold NaN where `valid` is False."""
    zero, nan = a_chip(), a_chip()
    for chip, missing in ((zero, 0), (nan, np.nan)):
        radar = chip.sources["sentinel1"]
        radar.valid[2, :, 1, 1] = False
        radar.values[~radar.valid] = missing
    known, found = (
        next(baseline_fields([chip], BUILT_IN, lambda chip: Period(0, 240 * DAY_MS))) for chip in (zero, nan)
    )
    for name, field in known.items():
        np.testing.assert_array_equal(found[name], field)


def test_baselines_see_no_observation_outside_the_year():
    chip = a_chip()
    chip.sources = {"sentinel2": chip.sources["sentinel2"]}
    series = chip.sources["sentinel2"]
    series.values[:] = np.array([900, 100, 100, 100, 100, 100, 900, 900])[:, None, None, None]  # one every 30 days
    year = Period(30 * DAY_MS, 180 * DAY_MS)
    field = next(baseline_fields([chip], BUILT_IN, lambda _: year))["annual mean and s.d."]
    assert (field[:5] < 0).all() and field[5:] == pytest.approx(0, abs=1e-6)


def test_coordinates_are_those_of_pixel_centres():
    east, north = coordinates(a_chip())
    assert east[0, 0] == 10 and north[0, 0] == 90 and east[0, 1] == 20 and north[1, 0] == 80


def test_shuffled_time_keeps_the_dates_and_moves_whole_frames():
    chip = a_chip()
    series, before = shuffle_time(chip, 1).sources["sentinel2"], chip.sources["sentinel2"]
    assert np.array_equal(series.time_ms, before.time_ms) and not np.array_equal(series.values, before.values)
    assert {frame.tobytes() for frame in series.values} == {frame.tobytes() for frame in before.values}


def test_a_moved_frame_takes_its_mask_and_its_weight_along():
    chip = a_chip()
    series = chip.sources["sentinel2"]
    mark = (series.values[:, :1] % 251).astype(np.uint8)
    chip.sources["sentinel2"] = dataclasses.replace(series, valid=mark > 100, weight=mark)
    moved = shuffle_time(chip, 1).sources["sentinel2"]
    expected = (moved.values[:, :1] % 251).astype(np.uint8)
    assert np.array_equal(moved.weight, expected) and np.array_equal(moved.valid, expected > 100)


def test_shuffled_pixels_take_their_labels_and_all_sources_along():
    chip = a_chip()
    moved = shuffle_pixels(chip, 1)
    label, s2 = moved.labels["lc"], moved.sources["sentinel2"]
    assert np.array_equal(label.values, s2.values[0, 0]) and np.array_equal(label.fields, s2.values[0, 1])
    assert not np.array_equal(label.values, chip.labels["lc"].values)
    assert np.array_equal(
        np.sort(s2.values[3, 2], axis=None), np.sort(chip.sources["sentinel2"].values[3, 2], axis=None)
    )
