"""Times stay integers until a difference is encoded."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from aef.timecode import (
    DAY_MS,
    PERIOD_CODE_WIDTH,
    RELATIVE_PERIODS_MS,
    TIMECODE_WIDTH,
    UNIT_CODE_WIDTH,
    YEAR_MS,
    Period,
    encode_period,
    encode_time,
    encode_unit,
    format_time,
    parse_period,
    parse_time,
    position_in_period,
)

START = torch.tensor(parse_time("2019-03-11"))
ANY_TIME = st.integers(parse_time("1980-01-01"), parse_time("2090-01-01"))


def test_frames_seconds_apart_have_different_codes_in_any_year():
    """Epoch milliseconds in float32 would be 131 s coarse."""
    times = START + torch.arange(0, 600_000, 60_000)
    codes = encode_time(times, START)
    assert codes.shape == (10, TIMECODE_WIDTH) and codes.dtype == torch.float32
    assert (codes.diff(dim=0).abs().amax(1) > 1e-4).all()


@settings(max_examples=100, deadline=None)
@given(time=ANY_TIME, start=ANY_TIME)
def test_codes_are_exact_sines_and_cosines_of_wrapped_differences(time, start):
    code = encode_time(torch.tensor(time), torch.tensor(start)).double().numpy()
    phase = np.array([((time - start) % p) / p for p in RELATIVE_PERIODS_MS])
    annual = np.array([(time % YEAR_MS) / YEAR_MS * k for k in (1, 2)])
    expected = [f(2 * np.pi * x) for x in (phase, annual) for f in (np.sin, np.cos)]
    assert np.allclose(code, np.concatenate(expected), atol=1e-6)


def test_season_is_absolute_and_everything_else_relative_to_the_support():
    days = torch.tensor([10, 100]) * DAY_MS
    one = encode_time(START + days, START)
    later = START + 90 * DAY_MS
    other = encode_time(later + days, later)
    relative = 2 * len(RELATIVE_PERIODS_MS)
    assert torch.allclose(one[:, :relative], other[:, :relative])
    assert not torch.allclose(one[:, relative:], other[:, relative:], atol=0.1)
    next_year = START + YEAR_MS
    assert torch.allclose(one[:, relative:], encode_time(next_year + days, next_year)[:, relative:], atol=1e-5)


def test_a_period_is_encoded_by_its_start_and_its_end():
    periods = torch.tensor([[5, 40], [0, 365]]) * DAY_MS + START
    code = encode_period(periods, START.expand(2))
    assert code.shape == (2, PERIOD_CODE_WIDTH)
    assert torch.equal(code[:, :TIMECODE_WIDTH], encode_time(periods[:, 0], START))
    assert torch.equal(code[:, TIMECODE_WIDTH:], encode_time(periods[:, 1], START))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.int32])
def test_times_of_another_type_are_refused(dtype):
    with pytest.raises(ValueError, match="times must be int64 milliseconds"):
        encode_time(torch.zeros(2, dtype=dtype), START)
    with pytest.raises(ValueError, match="times must be int64 milliseconds"):
        encode_time(START, torch.zeros(2, dtype=dtype))


@settings(max_examples=200, deadline=None)
@given(start=ANY_TIME, length=st.integers(1, 600 * DAY_MS), share=st.floats(0, 1, exclude_max=True))
def test_a_contained_time_has_a_position_in_zero_to_one_exclusive(start, length, share):
    time = start + min(int(share * length), length - 1)
    position = position_in_period(torch.tensor([time]), torch.tensor([[start, start + length]]))
    assert 0 <= float(position) < 1
    assert float(position) == pytest.approx((time - start) / length, abs=1e-6)


def test_the_last_millisecond_of_a_period_lies_below_one_and_the_end_does_not():
    periods = torch.tensor([[0, YEAR_MS]] * 3)
    position = position_in_period(torch.tensor([YEAR_MS - 1, YEAR_MS, 2 * YEAR_MS]), periods)
    assert position[0] < 1 and position[1:].tolist() == [1, 2]


def test_positions_are_encoded_in_octaves_of_half_a_turn():
    code = encode_unit(torch.tensor([0.0, 0.25, 0.999]))
    assert code.shape == (3, UNIT_CODE_WIDTH)
    assert code[1, 0].item() == pytest.approx(np.sin(np.pi / 4), abs=1e-6)
    assert not torch.allclose(code[0], code[2], atol=0.1)


# --- text ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1970-01-01", 0),
        ("1970-01-02", DAY_MS),
        ("2018-06-01T10:58:09Z", 1527850689000),
        ("2018-06-01T10:58:09.250+02:00", 1527843489250),
        (" 2018-06-01 10:58:09 ", 1527850689000),
    ],
)
def test_iso_times_are_utc_unless_they_say_otherwise(text, expected):
    assert parse_time(text) == expected


@settings(max_examples=100, deadline=None)
@given(time=st.integers(-(10**12), 4 * 10**12), unit=st.sampled_from([1, 1000, DAY_MS]))
def test_a_formatted_time_is_read_back(time, unit):
    time -= time % unit
    assert parse_time(format_time(time)) == time


def test_times_are_as_fine_as_they_need_to_be():
    assert [format_time(time) for time in (DAY_MS, 1000, 1)] == [
        "1970-01-02",
        "1970-01-01T00:00:01Z",
        "1970-01-01T00:00:00.001Z",
    ]


@pytest.mark.parametrize("text", ["yesterday", "2018-13-01", "", "20180"])
def test_what_is_no_time_is_quoted(text):
    with pytest.raises(ValueError, match="expected an ISO date"):
        parse_time(text)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("2019-02-29", "found '2019-02-29': there is no such day, 2019-02 has the days 01 to 28"),
        ("2020-04-31T10:00", "2020-04 has the days 01 to 30"),
        ("20190100", "2019-01 has the days 01 to 31"),
        ("2018-13-01", "there is no month 13, expected 01 to 12"),
        ("2018-01-01T25:00", "found '2018-01-01T25:00'$"),
    ],
)
def test_a_date_that_the_calendar_does_not_have_is_told_from_one_of_another_form(text, why):
    with pytest.raises(ValueError, match=why):
        parse_time(text)


def test_periods_are_half_open_and_end_after_they_start():
    period = parse_period("2018-01-01/2019-01-01")
    assert period == parse_period(("2018-01-01", "2019-01-01")) and period.length_ms == 365 * DAY_MS
    assert period.contains(period.start_ms) and not period.contains(period.end_ms)
    assert str(period) == "2018-01-01/2019-01-01" and isinstance(period, Period)
    with pytest.raises(ValueError, match="must end after it starts"):
        parse_period("2019-01-01/2018-01-01")
    with pytest.raises(ValueError, match="expected START/END"):
        parse_period("2019-01-01")
