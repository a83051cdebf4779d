"""The support of a field follows from its valid period, and nothing else moves it."""

import dataclasses
import warnings
from datetime import date, datetime

import numpy as np
import pytest

import aef
from aef.data.chips import Chip, SourceSeries
from aef.mapping.errors import EmbeddingError
from aef.mapping.support import (
    SparseSupportWarning,
    UnobservedPeriodWarning,
    as_period,
    as_periods,
    group_requests,
    observed_span,
    support_at,
    support_inside,
    support_of,
)
from aef.timecode import DAY_MS, Period, parse_period, parse_time

YEAR = 365 * DAY_MS
OBSERVED = parse_period("2019-01-03T09:30:16/2021-12-20T09:30:16")


@pytest.fixture(scope="module")
def model(tiny_run):
    return aef.load(tiny_run)


def a_chip(*times: str | int, side: int = 16) -> Chip:
    """A chip with one Sentinel-2 frame per time."""
    times_ms = np.array(sorted(t if isinstance(t, int) else parse_time(t) for t in times), np.int64)
    values = np.stack([np.random.default_rng(t % 9973).integers(100, 3000, (5, side, side)) for t in times_ms.tolist()])
    series = SourceSeries(values.astype(np.uint16), np.ones((len(times_ms), 1, side, side), bool), times_ms)
    grid = (10.0, 0, 500_000, 0, -10.0, 5_700_000)
    return Chip("c", "EPSG:32631", grid, side, side, 3.0, 51.0, {"sentinel2": series})


def every(days: int, start: str, end: str) -> range:
    return range(parse_time(start) + 34_216_000, parse_time(end), days * DAY_MS)


def without(chip: Chip, *index: int) -> Chip:
    series = chip.sources["sentinel2"]
    keep = np.setdiff1d(np.arange(len(series.time_ms)), np.arange(len(series.time_ms))[list(index)])
    rest = dataclasses.replace(
        series, values=series.values[keep], valid=series.valid[keep], time_ms=series.time_ms[keep]
    )
    return dataclasses.replace(chip, sources={"sentinel2": rest})


# --- the rule --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("period", "support"),
    [
        ("2019-01-01/2020-01-01", "2019-01-01/2020-01-01"),
        ("2020-01-01/2021-01-01", "2020-01-01/2021-01-01"),  # 366 days
        ("2019-01-01/2019-07-01", "2019-01-01/2020-01-01"),
        ("2019-12-31/2020-01-01", "2019-01-01/2020-01-01"),
        ("2019-10-01/2020-10-01", "2019-10-01/2020-10-01"),
        ("2019-01-01/2021-06-01", "2019-01-01/2021-06-01"),
        ("2019-11-01/2020-03-01", "2019-07-02/2020-07-01"),
        ("2019-03-02/2020-03-01", "2019-03-02/2020-03-01"),  # 365 days
    ],
)
def test_the_support_follows_from_the_period(period, support):
    found = support_of(parse_period(period), YEAR)
    assert str(found) == support
    wanted = parse_period(period)
    assert found.start_ms <= wanted.start_ms and wanted.end_ms <= found.end_ms


def test_other_lengths_of_training_have_no_calendar():
    period = parse_period("2019-02-10/2019-02-14")
    assert str(support_of(period, 8 * DAY_MS)) == "2019-02-08/2019-02-16"
    almost = Period(period.start_ms + 1, period.start_ms + 8 * DAY_MS)
    found = support_of(almost, 8 * DAY_MS)
    assert found.length_ms == 8 * DAY_MS and found.end_ms >= almost.end_ms


def test_a_period_beyond_the_observations_is_embedded_from_their_nearest_year():
    after, before = parse_period("2022-01-01/2022-03-01"), parse_period("2018-10-01/2019-01-01")
    assert str(support_at(after, OBSERVED, YEAR, "c")) == "2021-01-01/2022-01-01"
    assert str(support_at(before, OBSERVED, YEAR, "c")) == "2019-01-01/2020-01-01"
    one_frame_less = Period(OBSERVED.start_ms + 5 * DAY_MS, OBSERVED.end_ms - 5 * DAY_MS)
    for period in (after, before):
        assert support_at(period, OBSERVED, YEAR, "c") == support_at(period, one_frame_less, YEAR, "c")


@pytest.mark.parametrize("period", ["2018-01-01/2018-07-01", "2022-05-01/2022-07-01"])
def test_a_period_more_than_six_months_outside_is_refused(period):
    with pytest.raises(EmbeddingError, match=r"six months.* or lies within 2018-07-05/2022-06-21$"):
        support_at(parse_period(period), OBSERVED, YEAR, "c")


def test_a_period_that_meets_the_observations_is_warned_of_at_most():
    only = observed_span(a_chip("2020-02-29"), ["sentinel2"])
    with pytest.warns(UnobservedPeriodWarning, match="reaches 307 days beyond the observations"):
        assert str(support_at(parse_period("2020-01-01/2021-01-01"), only, YEAR, "c")) == "2020-01-01/2021-01-01"
    with pytest.raises(EmbeddingError, match="six months"):
        support_at(parse_period("2019-01-01/2020-01-01"), only, YEAR, "c")


def test_what_is_compared_with_the_truth_keeps_its_support_inside_the_observations():
    span = Period(0, 3 * YEAR)
    assert support_inside(Period(5 * DAY_MS, 9 * DAY_MS), span, YEAR) == Period(0, YEAR)
    assert support_inside(Period(3 * YEAR, 3 * YEAR + 30 * DAY_MS), span, YEAR) == Period(2 * YEAR, 3 * YEAR)
    assert support_inside(Period(0, 2 * YEAR), span, YEAR) == Period(0, 2 * YEAR)
    assert support_inside(Period(0, DAY_MS), Period(0, 100 * DAY_MS), YEAR) == Period(0, YEAR)
    dates = [Period(YEAR + day * DAY_MS, YEAR + (day + 30) * DAY_MS) for day in range(0, 30, 3)]
    assert len(group_requests(dates, span, YEAR, "c")) <= 2


def test_a_chip_without_any_input_of_the_model_is_refused_by_name():
    with pytest.raises(EmbeddingError, match="landsat"):
        observed_span(a_chip("2020-02-29"), ["landsat"])


# --- fields ----------------------------------------------------------------------------------------------------------


def test_a_field_is_the_same_whatever_other_periods_are_asked_for(model):
    chip = a_chip(*every(40, "2019-01-01", "2022-01-01"))
    periods = ["2021-01-01/2021-07-01", "2021-07-01/2022-01-01", "2019-01-01/2020-01-01", "2020-11-01/2021-02-01"]
    together = model.embed(chip, periods)
    assert together.support.values.tolist() == [
        "2021-01-01/2022-01-01", "2021-01-01/2022-01-01", "2019-01-01/2020-01-01", "2020-06-17/2021-06-17",
    ]  # fmt: skip
    for index, period in enumerate(periods):
        alone = model.embed(chip, period)
        assert np.abs(together.values[index] - alone.values).max() < 1e-6
        assert alone.attrs["support"] == together.support.values[index]


def test_one_frame_more_or_less_moves_no_support(model):
    chip = a_chip(*every(5, "2019-01-02", "2020-01-01"))
    year = model.embed(chip, "2019-01-01/2020-01-01")
    for less in (without(chip, 0), without(chip, 0, 1), without(chip, -1)):
        found = model.embed(less, "2019-01-01/2020-01-01")
        assert found.attrs["support"] == year.attrs["support"] == "2019-01-01/2020-01-01"
        assert (found.values * year.values).sum(0).min() > 0.999
        for period in ("2019-02-01/2019-03-01", "2019-11-01/2020-02-01"):
            assert [one.support for one in model.passes(less, [parse_period(period)])] == [
                one.support for one in model.passes(chip, [parse_period(period)])
            ]


def test_a_support_that_is_named_serves_every_period(model):
    chip = a_chip(*every(20, "2018-10-01", "2020-03-01"))
    season = ("2018-10-01", "2019-10-01")
    fields = model.embed(chip, ["2018-11-01/2018-12-01", "2019-03-01/2019-04-01"], support=season)
    assert set(fields.support.values) == {"2018-10-01/2019-10-01"} and set(fields.frames.values) == {19}
    other = model.embed(chip, "2019-03-01/2019-04-01")
    assert np.abs(fields.values[1] - other.values).max() > 1e-3
    with pytest.raises(EmbeddingError, match="more than six months beyond the support 2018-10-01/2019-10-01"):
        model.embed(chip, "2020-03-01/2020-05-01", support=season)


def test_an_empty_support_is_refused(model):
    chip = a_chip("2017-06-01", "2021-06-01")
    with pytest.raises(
        EmbeddingError, match="no frame of sentinel2, sentinel1 within the support 2019-01-01/2020-01-01"
    ):
        model.embed(chip, "2019-01-01/2020-01-01")
    hidden = {"sentinel2": [parse_time("2017-06-01")]}
    with pytest.raises(EmbeddingError, match="there is nothing to embed"):
        model.embed_array(chip, [parse_period("2017-01-01/2018-01-01")], without_ms=hidden)


def test_pixels_that_no_frame_of_the_support_observed_hold_no_data(model):
    chip = a_chip(*every(60, "2019-01-01", "2021-01-01"), side=24)
    series = chip.sources["sentinel2"]
    series.valid[..., 18:] = False
    series.valid[series.time_ms < parse_time("2020-01-01"), :, :3] = False
    early, late = model.embed(chip, ["2019-01-01/2020-01-01", "2020-01-01/2021-01-01"])
    assert np.isnan(early[:, :, 18:]).all() and np.isnan(early[:, :3]).all() and np.isfinite(early[:, 3:, :18]).all()
    assert np.isnan(late[:, :, 18:]).all() and np.isfinite(late[:, :, :18]).all()
    inpainted = model.embed(chip, "2019-01-01/2020-01-01", inpaint=True)
    assert np.isfinite(inpainted.values).all() and inpainted.attrs["unobserved"] == "inpainted"
    assert np.array_equal(inpainted.values[:, 3:, :18], early.values[:, 3:, :18])
    assert np.isfinite(model.embed_array(chip, [parse_period("2019-01-01/2020-01-01")])).all()


def test_a_support_with_few_of_the_frames_around_a_period_is_warned_of(model):
    chip = a_chip(*every(15, "2019-03-01", "2020-02-10"))
    with pytest.warns(SparseSupportWarning, match="holds 3 frames: name 2019-03-02/2020-03-01 as its support, which"):
        model.embed(chip, "2020-01-01/2020-02-01")
    with warnings.catch_warnings():
        warnings.simplefilter("error", SparseSupportWarning)
        model.embed(chip, "2020-01-01/2020-02-01", support="2019-03-02/2020-03-01")
        model.embed(chip, "2019-06-01/2019-07-01")


# --- periods in words ------------------------------------------------------------------------------------------------


def test_dates_of_python_and_numpy_make_periods():
    year = parse_period("2019-01-01/2020-01-01")
    for start, end in (
        (date(2019, 1, 1), datetime(2020, 1, 1)),
        (np.datetime64("2019-01-01"), np.datetime64("2020-01-01T00:00:00.000000000")),
        (np.datetime64("2019"), np.datetime64("2020-01")),
        ("2019-01-01", date(2020, 1, 1)),
    ):
        assert as_period((start, end)) == year
    assert as_periods((year, "2019-01-01/2020-01-01", ("2019-01-01", "2020-01-01"))) == ([year] * 3, False)
    assert as_periods(("2019-01-01", "2020-01-01")) == ([year], True)
    with pytest.raises(
        EmbeddingError, match=r"found the dates \['2019-01-01', '2020-01-01'\]: give one period as a tuple"
    ):
        as_periods(["2019-01-01", "2020-01-01"])


def test_sources_to_leave_out_may_be_one_name_but_not_all(model):
    assert model.inputs_without("sentinel1") == ("sentinel2",)
    with pytest.raises(EmbeddingError, match=r"cannot leave out every input of the model \(sentinel2, sentinel1\)"):
        model.inputs_without(["sentinel1", "sentinel2"])
